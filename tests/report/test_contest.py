"""The contest's files, as its own scripts read them."""

import json
import re
from pathlib import Path

import pytest

from llmbench.loadgen.record import Record
from llmbench.report import contest

MS = 1_000_000


def record(index: int, due: int, done: int, status: str = "answered", text: str = "text") -> Record:
    made = Record(
        index=index,
        due_ns=due * MS,
        sent_ns=(due + 1) * MS,
        stamps_ns=[(due + 51) * MS],
        tokens=[1],
        num_tokens=1,
        done_ns=done * MS,
        text=text,
    )
    made.status = "answered" if status == "answered" else "failed"
    return made


RUN = contest.Run(
    qps=6.0,
    interval_s=0.17,
    num_samples=5010,
    prompts=["first:prompt", "zweite Frage: wie spät?", "third"],
    start_ns=0,
    start_wall_s=1_700_000_000.25,
)
RECORDS = [
    record(1, due=170, done=300, text="halb drei\x85\u2028!"),
    record(0, due=0, done=400),
    record(2, due=350, done=420, status="failed"),
]


def test_the_result_file_lists_what_was_answered_in_the_order_in_which_it_ended(tmp_path: Path) -> None:
    path = contest.result(tmp_path, RUN, RECORDS)
    assert path.name == "result_6.0_x.json"
    raw = path.read_bytes()
    assert raw.isascii()
    assert b"\n" not in raw
    rows = json.loads(raw)
    assert [list(row) for row in rows] == [["input", "resp_text", "res_time", "first_token_time"]] * 2
    assert [row["input"] for row in rows] == ["zweite Frage: wie spät?", "first:prompt"]
    assert rows[0]["resp_text"] == "halb drei\x85\u2028!"
    assert rows[0]["res_time"] == pytest.approx(0.129)  # from sent, as the contest's client takes it
    assert rows[0]["first_token_time"] == pytest.approx(0.050)


@pytest.mark.parametrize(("qps", "name"), [(6, "result_6.0_x.json"), (0.625, "result_0.625_x.json")])
def test_the_rate_in_the_files_name_is_a_floats_repr(tmp_path: Path, qps: float, name: str) -> None:
    run = contest.Run(qps=qps, interval_s=1, num_samples=1, prompts=[], start_ns=0, start_wall_s=0)
    assert contest.result(tmp_path, run, []).name == name


def test_an_answer_that_was_not_streamed_has_no_first_token_time(tmp_path: Path) -> None:
    whole = record(0, due=0, done=100)
    whole.stamps_ns, whole.tokens = [], []
    assert "first_token_time" not in json.loads(contest.result(tmp_path, RUN, [whole]).read_bytes())[0]


def test_the_last_line_of_the_log_is_the_exec_time(tmp_path: Path) -> None:
    path = contest.log(tmp_path, RUN, RECORDS)
    assert re.fullmatch(r"test_performance_\d{4}-\d\d-\d\d-\d\d_\d\d\.log", path.name)
    assert path.parent.name == "testLog"
    lines = path.read_text(encoding="utf-8").split("\n")
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - test_llama\.log - INFO - "
    assert re.fullmatch(stamp + "All Tasks Done; Exec Time is 0.419", lines[-2])
    assert re.fullmatch(stamp + "testcases length is 5010", lines[0])
    assert re.fullmatch(stamp + "thread_tasks length is 3", lines[1])
    assert re.fullmatch(stamp + r"Start send request, avg interval is 0\.17", lines[2])


def test_the_log_tells_the_gaps_the_answers_and_the_progress(tmp_path: Path) -> None:
    text = contest.log(tmp_path, RUN, RECORDS).read_text(encoding="utf-8")
    assert re.findall(r"poisson random interval time is ([\d.]+)s", text) == ["0.17", "0.18"]
    assert re.findall(r"Test Progress --> (.*)", text) == ["1/3", "2/3"]
    assert text.count("first_token_time is 0.05") == 2


def test_a_run_without_an_answer_has_both_files(tmp_path: Path) -> None:
    nothing = [Record(index=0, due_ns=0, reason="not sent: interrupted")]
    assert json.loads(contest.result(tmp_path, RUN, nothing).read_bytes()) == []
    assert "Exec Time is 0.0" in contest.log(tmp_path, RUN, nothing).read_text()
