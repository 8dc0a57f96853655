"""The agent's capture into a store: which rows, whose, and after what text."""

import errno
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llmbench.engines import SAMPLING, Batch, StepResult
from llmbench.errors import AgentDied
from llmbench.link import agent
from llmbench.link.capture import StoreRecorder
from llmbench.link.frames import Admitted
from llmbench.logits import policy
from llmbench.logits.policy import Policy
from llmbench.logits.store import Manifest, Store, Writer

VOCAB = 50


def recorder(folder: Path, chosen: Policy = Policy(), vocab_size: int = VOCAB) -> StoreRecorder:  # noqa: B008
    manifest = Manifest(model="m", fingerprint="f", engine="e", dtype="float32", vocab_size=vocab_size, tier="full32")
    writer = Writer(folder, manifest)
    return StoreRecorder(writer, policy.Watched(folder, chosen))


def admitted(slot: int, request_id: str, prompt_len: int, prompt: int = 11, arrival_s: float = 1.0) -> Admitted:
    """One whose prompt begins with `prompt`."""
    ids = [prompt, *range(1, prompt_len)]
    return Admitted(slot=slot, request_id=request_id, arrival_s=arrival_s, prompt_ids=ids)


def logits(n: int, seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, (n, VOCAB)).astype(np.float32)


def step(
    capture: StoreRecorder,
    slots: Sequence[int],
    lens: Sequence[int],
    tokens: Sequence[int],
    new: Sequence[Admitted] = (),
    flush: bool = True,
) -> bool:
    """One step; a token of -1 means that the sequence wanted none. Everything that is shown is overwritten after it."""
    wants = np.array(tokens) >= 0
    n = len(slots)
    batch = Batch(
        token_ids=np.zeros(n, np.int32),
        query_lens=np.ones(n, np.int32),
        context_lens=np.array(lens, np.int32),
        block_tables=np.zeros((n, 1), np.int32),
        wants_token=wants,
        sampling=np.zeros(n, SAMPLING),
    )
    places = np.array(slots, np.int32)
    capture.admit(list(new))
    wanted = capture.wants(batch, places)
    rows = logits(int(wants.sum()), sum(lens)) if wanted else None
    result = StepResult(token_ids=np.array(tokens, np.int32), chosen_logits=np.zeros(n, np.float32), logits=rows)
    capture.take(result)
    for shared in (batch.context_lens, batch.wants_token, places):
        shared[:] = 0  # the server writes the next step there
    if flush:
        capture.flush()
    return wanted


def test_every_row_that_gives_a_token_is_kept_with_its_request_and_step(tmp_path: Path) -> None:
    capture = recorder(tmp_path / "s")
    new = [admitted(3, "long", 20), admitted(0, "short", 4)]
    assert step(capture, [3, 0], [16, 4], [-1, 7], new)  # a piece of a prefill gives no token
    assert step(capture, [3, 0], [20, 5], [8, 9])
    assert not step(capture, [3], [0], [-1])
    capture.close()
    store = Store(tmp_path / "s")
    rows = [(store.requests[row["request"]].id, row["step"], row["position"], row["token"], row["batch"],
             row["prefill"]) for row in store.table]  # fmt: skip
    assert rows == [("short", 0, 3, 7, 2, 1), ("long", 0, 19, 8, 2, 1), ("short", 1, 4, 9, 2, 0)]
    out = np.empty((3, VOCAB), np.float32)
    store.read(np.arange(3), out)
    np.testing.assert_array_equal(out, np.concatenate([logits(1, 20), logits(2, 25)]))


def test_a_request_is_known_with_its_whole_prompt(tmp_path: Path) -> None:
    capture = recorder(tmp_path / "s")
    step(capture, [0, 1], [40, 4], [7, 8], [admitted(0, "long", 40), admitted(1, "short", 4)])
    capture.close()
    long, short = Store(tmp_path / "s").requests
    assert (long.ids, long.prompt_len, long.head) == ((11, *range(1, 40)), 40, (11, *range(1, 20)))
    assert short.ids == short.head == (11, 1, 2, 3)


def test_the_text_before_a_row_is_known_though_the_rows_before_it_are_not_kept(tmp_path: Path) -> None:
    """Two runs that chose the same tokens have the same hashes, one that chose another has not from there on."""

    def prefixes(name: str, tokens: Sequence[int], every: int, prompt: int = 11) -> dict[int, int]:
        capture = recorder(tmp_path / name, Policy(every=every))
        for i, token in enumerate(tokens):
            step(capture, [0], [4 + i], [token], [admitted(0, "r", 4, prompt)] if i == 0 else ())
        capture.close()
        table = Store(tmp_path / name).table
        return dict(zip(table["step"].tolist(), table["prefix"].tolist(), strict=True))

    every_row = prefixes("all", [5, 6, 7, 8, 9, 1], 1)
    assert len(set(every_row.values())) == 6
    assert prefixes("few", [5, 6, 7, 8, 9, 1], 4) == {1: every_row[1], 5: every_row[5]}
    other = prefixes("other", [5, 6, 30, 8, 9, 1], 1)
    assert [other[i] == every_row[i] for i in range(6)] == [True, True, True, False, False, False]
    assert not set(prefixes("prompt", [5, 6], 1, prompt=12).values()) & set(every_row.values())


def test_a_sequence_that_was_preempted_goes_on(tmp_path: Path) -> None:
    capture = recorder(tmp_path / "s")
    step(capture, [0], [4], [5], [admitted(0, "r", 4)])
    step(capture, [0], [5], [6])
    step(capture, [0], [4], [9], [admitted(0, "other", 4, 12, arrival_s=2.0)])
    step(capture, [2, 0], [6, 5], [7, 9], [admitted(2, "r", 4)])  # its text is computed again, in another slot
    capture.close()
    undisturbed = recorder(tmp_path / "t")
    for i, token in enumerate((5, 6, 7)):
        step(undisturbed, [0], [4 + i], [token], [admitted(0, "r", 4)] if i == 0 else ())
    undisturbed.close()
    seen, expected = Store(tmp_path / "s"), Store(tmp_path / "t")
    assert [request.id for request in seen.requests] == ["r", "other"]
    own = seen.table[seen.table["request"] == 0]
    for name in ("step", "position", "token", "prefix"):
        assert own[name].tolist() == expected.table[name].tolist()


def test_two_requests_of_one_id_are_two_requests(tmp_path: Path) -> None:
    capture = recorder(tmp_path / "s")
    step(capture, [0, 1], [4, 4], [5, 6], [admitted(0, "r", 4), admitted(1, "r", 4, arrival_s=2.0)])
    capture.close()
    assert [request.id for request in Store(tmp_path / "s").requests] == ["r", "r"]


@pytest.mark.parametrize("chosen", [Policy(every=3), Policy(rate=0.4, seed="s"), Policy(requests=("r1", "r4"))])
def test_only_the_rows_of_the_policy_are_kept(tmp_path: Path, chosen: Policy) -> None:
    capture = recorder(tmp_path / "s", chosen)
    new = [admitted(i, f"r{i}", 4, arrival_s=float(i)) for i in range(6)]
    asked = [step(capture, range(6), [4 + i] * 6, [i + 1] * 6, new if i == 0 else ()) for i in range(12)]
    capture.close()
    store = Store(tmp_path / "s")
    found = {(store.requests[row["request"]].id, int(row["step"])) for row in store.table}
    expected = {(f"r{i}", k) for i in range(6) for k in range(12) if chosen.wants(f"r{i}", k, 3 + k)}
    assert found == expected
    assert asked == [any(k == i for _, k in expected) for i in range(12)]  # logits are asked for only where needed


def test_a_capture_is_switched_off_and_on_while_it_runs(tmp_path: Path) -> None:
    capture = recorder(tmp_path / "s")
    new = [admitted(0, "r", 4)]
    for i, chosen in enumerate((Policy(), policy.NOTHING, Policy())):
        capture._watched.policy = chosen
        assert step(capture, [0], [4 + i], [5], new if i == 0 else ()) == (chosen != policy.NOTHING)
    capture.close()
    table = Store(tmp_path / "s").table
    assert table["step"].tolist() == [0, 2]
    assert len(set(table["prefix"].tolist())) == 2


def test_the_rows_of_a_few_steps_are_written_at_once(tmp_path: Path) -> None:
    capture = recorder(tmp_path / "s")
    seen = []
    for i in range(5):
        step(capture, [0], [4 + i], [5], [admitted(0, "r", 4)] if i == 0 else (), flush=False)
        capture.write()
        seen.append(len(Store(tmp_path / "s")))
    assert seen == [0, 0, 0, 4, 4]
    capture.flush()
    table = Store(tmp_path / "s").table
    assert table["step"].tolist() == [0, 1, 2, 3, 4]
    capture.flush()
    assert len(Store(tmp_path / "s")) == 5
    many = [admitted(i, f"r{i}", 4, arrival_s=2.0 + i) for i in range(40)]
    for i in range(2):
        step(capture, range(40), [4 + i] * 40, [5] * 40, many if i == 0 else (), flush=False)
        capture.write()
    assert len(Store(tmp_path / "s")) == 85  # 64 rows are enough, too
    capture.close()


def test_rows_of_steps_that_are_written_at_once_are_those_of_steps_written_alone(tmp_path: Path) -> None:
    stores = []
    for name, alone in (("together", False), ("alone", True)):
        capture = recorder(tmp_path / name, Policy(rate=0.6, seed="s"))
        for i in range(7):
            new = [admitted(0, "a", 4), admitted(1, "b", 9, arrival_s=2.0)] if i == 0 else ()
            step(capture, [0, 1], [4 + i, 9 + i], [5 + i, 6], new, flush=alone)
            capture.write()
        capture.close()
        stores.append(Store(tmp_path / name))
    assert len(stores[0]) > 4
    assert (stores[0].table == stores[1].table).all()
    rows = np.empty((2, len(stores[0]), VOCAB), np.float32)
    for store, values in zip(stores, rows, strict=True):
        store.read(np.arange(len(store)), values)
    np.testing.assert_array_equal(rows[0], rows[1])


def no_space() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_rows_that_cannot_be_written_end_the_agent_instead_of_answering_a_step_twice() -> None:
    with pytest.raises(AgentDied, match=r"the captured rows cannot be written: .*No space left on device"):
        agent.written(no_space)
