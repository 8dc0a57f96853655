"""`perf --audit` and `llmbench audit` against real stacks: an honest one passes, each kind of cheat is caught."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from llmbench import chain
from llmbench.accuracy.audit import evidence, secret
from llmbench.cli import app
from llmbench.errors import InputError, InvalidMeasurement
from llmbench.logits.store import Store, Writer
from llmbench.serving.launch import launched
from llmbench.tokenizer import embedded_path
from tests.accuracy.cheats import Cheat, Excusing, Honest, Remembering, Trick, Truncating
from tests.conftest import ROOT

NUM_REQUESTS = 24
ENOUGH = ("--bad-requests", "0.2", "--trusted-model", "embedded")


class Stacks(msgspec.Struct, frozen=True):
    """Real stacks: two of the declared model, of which one keeps half of its rows, and one of a smaller model."""

    real: str
    keeping: str
    small: str
    rows: Path


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stacks]:
    rows = tmp_path_factory.mktemp("capture") / "rows"
    keep = [
        "--capture",
        str(rows),
        "--capture-tier",
        "full32",
        "--capture-rate",
        "0.5",
        "--capture-seed",
        "revealed later",
    ]
    with (
        launched(["--threads", "1"]) as real,
        launched(["--threads", "1", *keep]) as keeping,
        launched(["--model", "random:tiny", "--threads", "1"]) as small,
    ):
        yield Stacks(real.url, keeping.url, small.url, rows)


@contextmanager
def cheating(stacks: Stacks, trick: Trick) -> Iterator[Cheat]:
    server = Cheat(stacks.real, trick)
    try:
        yield server
    finally:
        server.close()


def perf(url: str | None, results: Path, *flags: str) -> Path:
    """The folder of an audited run; without a url it launches its own stack."""
    load = [
        "-n",
        str(NUM_REQUESTS),
        "-X",
        "80",
        "--max-new-tokens",
        "12",
        "--dataset",
        "alpaca_521",
        "--canaries",
        "0.2",
    ]
    where = ["--url", url] if url else ["--port", str(free_port())]
    words = ["perf", "--audit", *where, "--results", str(results), "--quiet", "--cache", "cold", *load, *flags]
    done = CliRunner().invoke(app(), words)
    assert done.exit_code in (0, 3, 4), done.output  # a busy machine is not what is tested here
    return max(results.iterdir(), key=lambda path: path.stat().st_mtime_ns)


def audit(run: Path, *flags: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """The exit status, and the findings by test."""
    out = run / "findings.json"
    done = CliRunner().invoke(app(), ["audit", str(run), "--json", str(out), *flags])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(out.read_text())["findings"]:
        found.setdefault(finding["test"], []).append(finding)
    return done.exit_code, found


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def verdicts(found: dict[str, list[dict[str, Any]]]) -> dict[str, set[str]]:
    return {test: {finding["verdict"] for finding in findings} for test, findings in found.items()}


@pytest.fixture(scope="module")
def honest(stacks: Stacks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest run; those who change it take a copy."""
    return perf(stacks.keeping, tmp_path_factory.mktemp("honest"))


@pytest.fixture
def copy(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "run"))


def test_an_honest_run_passes_every_test(stacks: Stacks, honest: Path) -> None:
    status, found = audit(honest, *ENOUGH, "--rows", str(stacks.rows))
    why = [finding for findings in found.values() for finding in findings if finding["verdict"] != "passed"]
    assert status == 0, why
    assert set(found) == {"A1", "A2", "A3", "A4", "A5", "A6", "A9", "A10"}
    assert [finding["what"] for finding in why] in ([], ["mean length against what was asked"])
    figures = found["A1"][0]["figures"]
    assert figures["requests"] == NUM_REQUESTS
    assert figures["share"] == 1.0
    assert figures["bad_requests_would_be_seen"] == pytest.approx(1 - 0.05 ** (1 / NUM_REQUESTS))
    assert found["A5"][0]["figures"]["questions"] == 5


@pytest.mark.parametrize(("reason", "tests"), [("eos", {"A1", "A4"}), ("length", {"A4"})])
def test_truncated_answers_are_caught(stacks: Stacks, tmp_path: Path, reason: Any, tests: set[str]) -> None:
    with cheating(stacks, Truncating(reason)) as server:
        run = perf(server.url, tmp_path)
    status, found = audit(run, *ENOUGH, "--only", "A1,A4")
    assert status == 1
    assert {test for test, these in verdicts(found).items() if "failed" in these} == tests


def test_answers_from_memory_are_caught(stacks: Stacks, tmp_path: Path) -> None:
    """Weakness 6: each prompt of the run had a nonce, so nothing was prepared for it, but the run's own are kept."""
    with cheating(stacks, Remembering()) as server:
        run = perf(server.url, tmp_path)
        status, found = audit(run, *ENOUGH, "--only", "A3,A9")
    assert status == 1
    assert "failed" in verdicts(found)["A3"]
    assert verdicts(found)["A9"] == {"passed"}  # the same text again, only too soon
    with cheating(stacks, Honest()) as server:
        slower = (*ENOUGH, "--only", "A3", "--rounds", "6", "--url", server.url)
        assert "failed" not in verdicts(audit(run, *slower)[1])["A3"]


def test_a_smaller_model_during_the_timed_run_is_caught(stacks: Stacks, tmp_path: Path) -> None:
    with cheating(stacks, Honest()) as server:
        server.url_behind = stacks.small
        run = perf(server.url, tmp_path)
        server.url_behind = stacks.real  # when the judge comes, all is as it should be
        status, found = audit(run, *ENOUGH, "--only", "A1,A5,A6,A9")
    assert status == 1
    seen = verdicts(found)
    assert (seen["A1"], seen["A9"]) == ({"failed"}, {"failed"})
    assert seen["A6"] == {"passed"}  # a server may say of itself what it likes


def test_the_secret_chooses_the_rows_that_a_launched_stack_keeps_and_the_seal_covers_them(tmp_path: Path) -> None:
    run = perf(None, tmp_path, "--model", "random:tiny", "--capture", "--capture-rate", "0.3")
    status, found = audit(run, "--trusted-model", "random:tiny", "--only", "A2,A10")
    assert (status, verdicts(found), found["A2"][0]["why"]) == (0, {"A2": {"passed"}, "A10": {"passed"}}, "")
    assert 0 < found["A2"][0]["figures"]["compared"] < NUM_REQUESTS * 12
    seed = json.loads((run / "config.json").read_text())["capture_seed"]
    shown = secret.revealed(secret.read(run))
    assert shown is not None
    assert (seed, seed == shown.seed) == (secret.of_rows(shown.seed), False)
    values = bytearray((run / "rows" / "part-0000.top").read_bytes())
    values[-1] ^= 1
    (run / "rows" / "part-0000.top").write_bytes(bytes(values))
    status, output = verify(run)
    assert (status, "rows/part-0000.top, MiB 1: is not what was sealed" in output) == (3, True)


def with_eight_bits(folder: Path) -> Path:
    """The embedded model with every matrix rounded to eight bits, row by row."""
    folder.mkdir()
    source = embedded_path().parent
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "embed" not in name:
            values = tensor.astype(np.float32)
            scale = np.abs(values).max(axis=1, keepdims=True) / 127 + 1e-12
            tensors[name] = (np.round(values / scale) * scale).astype(tensor.dtype)
    save_file(tensors, folder / "model.safetensors")
    for name in ("config.json", "tokenizer.model"):
        shutil.copy(source / name, folder / name)
    return folder


def test_coarser_weights_than_the_declared_ones_are_caught(tmp_path: Path) -> None:
    """Their answers read as well, and their questions are answered as well: only the tokens' gaps tell."""
    with launched(["--model", str(with_eight_bits(tmp_path / "coarse")), "--threads", "1"]) as server:
        run = perf(server.url, tmp_path / "results", "-n", "60", "--max-new-tokens", "32")
    status, found = audit(run, *ENOUGH, "--only", "A1,A4,A5,A6,A10")
    assert status == 1
    assert verdicts(found)["A1"] == {"failed"}
    assert "failed" not in set().union(*(these for test, these in verdicts(found).items() if test != "A1"))
    notes = json.loads((run / "findings.json").read_text())["notes"]
    assert any(note.startswith("the server said that its weights are ") for note in notes)


def test_swapped_and_missing_rows_are_caught(stacks: Stacks, honest: Path, tmp_path: Path) -> None:
    with_rows = (*ENOUGH, "--only", "A2", "--rows")
    assert audit(honest, *with_rows, str(stacks.rows))[0] == 0
    with Rewriting(stacks.rows) as rows:
        swapped = rows.written(tmp_path / "swapped", lambda values: values[::-1])
        fewer = rows.written(tmp_path / "fewer", lambda values: values, leave_out=1)
    status, found = audit(honest, *with_rows, str(swapped))
    assert (status, verdicts(found)) == (1, {"A2": {"failed"}})
    status, found = audit(honest, *with_rows, str(fewer))
    assert (status, verdicts(found)) == (1, {"A2": {"failed"}})
    assert found["A2"][0]["why"].endswith(": is missing")


class Rewriting:
    """A store of rows, written again with a change."""

    def __init__(self, folder: Path) -> None:
        self._store = Store(folder)

    def __enter__(self) -> "Rewriting":
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def written(self, folder: Path, change: Callable[[Any], Any], leave_out: int = 0) -> Path:
        """The same rows with changed values, or without the first one of the run."""
        store = self._store
        manifest = msgspec.structs.replace(store.manifest, capture_id="", created="")
        writer = Writer(folder, manifest)
        for request in store.requests:
            writer.request(request.id, request.prompt_len, request.head, request.prompt)
        numbers = np.arange(len(store))
        values = np.empty((len(store), store.vocab_size), np.float32)
        store.read(numbers, values)
        meta = store.table.copy()
        timed = [i for i in numbers.tolist() if store.requests[int(meta["request"][i])].id.startswith("plan-")]
        kept = [i for i in numbers.tolist() if i != timed[0]] if leave_out else numbers.tolist()
        writer.write(np.ascontiguousarray(change(values)[kept]), meta[kept])
        writer.close()
        (folder / "policy.json").write_bytes((store.folder / "policy.json").read_bytes())
        return folder


def edited(path: Path, number: int, change: Callable[[bytes], bytes]) -> None:
    """One line of a file, from 1, as somebody would edit it."""
    lines = path.read_bytes().split(b"\n")
    lines[number - 1] = change(lines[number - 1])
    path.write_bytes(b"\n".join(lines))


def verify(run: Path, *flags: str) -> "tuple[int, str]":
    done = CliRunner().invoke(app(), ["audit", "verify", str(run), *flags])
    return done.exit_code, done.output


def test_an_edited_evidence_file_is_named_with_its_line(copy: Path) -> None:
    assert verify(copy)[0] == 0
    edited(copy / "journal.jsonl", 7, lambda line: line.replace(b'"sent_ns":', b'"sent_ns":1'))
    status, output = verify(copy)
    assert status == 3
    assert "journal.jsonl, line 7: is not what was sealed" in output
    assert audit(copy, "--only", "A4,A10")[0] == 3


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("plan.jsonl.gz", "plan.jsonl.gz, MiB 1"),
        ("config.json", "config.json, line 2"),
        ("audit.jsonl", "audit.jsonl, line 2"),
    ],
)
def test_every_file_of_the_evidence_is_sealed(copy: Path, file: str, place: str) -> None:
    data = bytearray((copy / file).read_bytes())
    at = data.index(b"\n") + 3 if file != "plan.jsonl.gz" else len(data) - 9
    data[at] ^= 1
    (copy / file).write_bytes(bytes(data))
    status, output = verify(copy)
    assert (status, f"{place}: is not what was sealed" in output) == (3, True), output


def test_a_chain_that_is_made_anew_has_another_head(copy: Path) -> None:
    """Weakness 19: what is copied or made up can be sealed as well as the real thing, but not with its head."""
    head = json.loads((copy / chain.FILE).read_text())["head"]
    assert verify(copy, "--head", head[:12])[0] == 0
    journal = copy / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"at_ns":', b'"at_ns":1'))
    evidence.seal(copy)
    status, output = verify(copy, "--head", head[:12])
    assert (status, "it was sealed again" in output) == (3, True)


def test_another_secret_than_the_committed_one_is_no_secret(copy: Path) -> None:
    lines = secret.read(copy)
    shown = lines[-1]
    assert isinstance(shown, secret.Revealed)
    other = msgspec.structs.replace(shown, secret=secret.new((), "0" * 64))
    (copy / secret.FILE).unlink()
    secret.append(copy, *lines[:-1], other)
    evidence.seal(copy)
    status, output = verify(copy)
    assert (status, "is not the one that was committed to" in output) == (3, True)


def test_a_summary_that_says_more_than_the_journals_is_named(copy: Path) -> None:
    summary = copy / "summary.json"
    text = summary.read_text()
    line = next(n for n, one in enumerate(text.splitlines(), 1) if '"num_output_tokens"' in one)
    edited(summary, line, lambda old: old.replace(b": ", b": 9"))
    status, output = verify(copy)
    assert (status, f"summary.json, line {line}: is not what the journals give" in output) == (3, True), output


def cut_off(run: Path, num_left: int) -> None:
    """The journal as of a run that was killed: its last requests have no record."""
    journal = run / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    records = [number for number, line in enumerate(lines) if line.startswith(b'{"kind":"request"')]
    journal.write_bytes(b"".join(lines[: records[-num_left]]))


def test_a_killed_run_goes_on_with_a_secret_of_its_own(stacks: Stacks, copy: Path) -> None:
    cut_off(copy, 5)
    lines = (copy / secret.FILE).read_bytes().splitlines(keepends=True)
    (copy / secret.FILE).write_bytes(b"".join(lines[:2]))  # what is there until the last answer
    (copy / chain.FILE).unlink()
    assert verify(copy)[0] == 3
    done = CliRunner().invoke(app(), ["perf", "--resume", str(copy), "--url", stacks.real, "--quiet"])
    assert done.exit_code in (0, 3, 4), done.output
    assert verify(copy)[0] == 0
    status, found = audit(copy, *ENOUGH, "--only", "A1,A5,A6,A10")
    assert status == 1  # it is another server now
    assert {test: {one["verdict"] for one in these} for test, these in found.items()} == {
        "A1": {"passed"},
        "A5": {"not applicable"},
        "A6": {"failed"},
        "A10": {"passed"},
    }
    assert found["A1"][0]["figures"]["requests"] == NUM_REQUESTS
    assert "was lost when the run was killed" in found["A5"][0]["why"]


def test_a_sealed_run_that_was_changed_cannot_be_sealed_again(stacks: Stacks, copy: Path) -> None:
    cut_off(copy, 5)
    done = CliRunner().invoke(app(), ["perf", "--resume", str(copy), "--url", stacks.real, "--quiet"])
    assert isinstance(done.exception, InvalidMeasurement)
    assert "was sealed and is missing; a run that was changed cannot go on" in str(done.exception)


def test_a_trusted_server_scores_as_well_as_a_model_in_this_process(stacks: Stacks, honest: Path) -> None:
    status, found = audit(honest, "--trusted-url", stacks.real, "--bad-requests", "0.2", "--only", "A1")
    assert (status, found["A1"][0]["tier"]) == (0, "T2, ids")
    here = audit(honest, *ENOUGH, "--only", "A1")[1]["A1"][0]["figures"]
    assert found["A1"][0]["figures"] == pytest.approx(here, abs=1e-4)
    status, found = audit(honest, "--trusted-url", stacks.small, "--bad-requests", "0.2", "--only", "A1")
    assert (status, found["A1"][0]["verdict"]) == (1, "failed")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--audit", "--canaries", "0.1", "--dataset", "multiturn", "-n", "3"),
            "every request of this plan is of a conversation",
        ),
        (("--canaries", "0.1"), "add --audit"),
        (("--audit", "--canaries", "0.1", "--plan", "x.jsonl.gz"), "the plan of --plan is sent as it is"),
    ],
)
def test_flags_of_an_audited_run_that_contradict_are_refused(flags: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(app(), ["perf", *flags])
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)


def test_error_texts_in_the_place_of_answers_are_caught(stacks: Stacks, tmp_path: Path) -> None:
    """Weakness 8: HTTP 200, a finish_reason, as many tokens as asked, and quick: only the text tells."""
    with cheating(stacks, Excusing(6)) as server:
        run = perf(server.url, tmp_path)
    status, found = audit(run, "--only", "A4")
    assert status == 1
    (wrong,) = (finding for finding in found["A4"] if finding["verdict"] == "failed")
    assert wrong["what"] == "error texts as answers"
    assert wrong["value"] == f"4 of {NUM_REQUESTS}"
    assert "Error202: prompt out of range" in wrong["why"]


def test_a_run_without_evidence_is_told_so_and_too_few_requests_prove_nothing(
    stacks: Stacks, honest: Path, tmp_path: Path
) -> None:
    status, found = audit(honest, "--trusted-model", "embedded", "--only", "A1")
    assert (status, found["A1"][0]["verdict"]) == (4, "inconclusive")
    assert "could go unseen" in found["A1"][0]["why"]
    bare = Path(shutil.copytree(honest, tmp_path / "bare"))
    for name in (chain.FILE, secret.FILE):
        (bare / name).unlink()
    status, found = audit(bare, *ENOUGH, "--only", "A4,A5,A6,A10")
    assert status == 3
    assert verdicts(found)["A5"] == verdicts(found)["A6"] == {"not applicable"}
    assert "perf --audit" in found["A10"][0]["why"]


def test_a_server_that_is_gone_leaves_the_other_tests(stacks: Stacks, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"url": "http://127.0.0.1:9"}))
    status, found = audit(copy, *ENOUGH, "--only", "A1,A3,A6,A9")
    assert (status, verdicts(found)["A1"]) == (0, {"passed"})
    assert verdicts(found)["A3"] == verdicts(found)["A9"] == {"not applicable"}
    assert "needs a live server: nobody answers at http://127.0.0.1:9" in found["A9"][0]["why"]


def test_audit_as_a_user_runs_it(honest: Path) -> None:
    """Short for `audit run`, help, wrong names; the server that is asked again is the run's own."""
    command = [sys.executable, "-m", "llmbench", "audit"]
    done = subprocess.run(
        [*command, str(honest), *ENOUGH, "--only", "A1,A4,A6,A10"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("audit PASSED")
    assert "24 requests; a share of 11.7% bad ones or more would have been seen with 95 %" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "--only", "A11"], "unknown test 'A11'"),
        (["{run}", "--only", ","], "--only: name at least one of A1"),
        (["{run}/nothing"], "there is no plan.jsonl.gz in it"),
        (["{run}", "--dtype", "fp8"], "--dtype fp8: must be one of"),
        (["{run}", "--trusted-model", "embedded", "--trusted-url", "http://x"], "leave one out"),
        (["{run}", "--trusted-model", "no/such/model"], "no such folder"),
        (["{run}", "--only", "A4", "--base", "{run}/nothing"], "there is no plan.jsonl.gz in it"),
    ],
)
def test_wrong_use_is_refused(honest: Path, words: list[str], message: str) -> None:
    done = CliRunner().invoke(app(), ["audit", *(word.format(run=honest) for word in words)])
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)
