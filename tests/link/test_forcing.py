"""Teacher forcing in the agent: which sequences get the base's tokens, and which base can force at all."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llmbench import engines
from llmbench.engines import SAMPLING, Batch, StepResult
from llmbench.errors import InputError
from llmbench.link import forcing, frames
from llmbench.link.agent import run_step
from llmbench.link.arena import StepArrays
from llmbench.link.extras import Extra, Penalties
from llmbench.link.forcing import FREE, Forcing, give, open_forcing
from llmbench.logits import policy
from llmbench.logits.policy import Policy
from llmbench.logits.store import Store
from llmbench.weights.model import open_model
from tests.accuracy.captures import Row, store
from tests.link import test_agent, test_capture

VOCAB = 256
PROMPT = (1, 20355, 915, 278)
TOKENS = {"r1": (5, 6, 7, 8), "r2": (9, 10)}


def base(folder: Path, answers: dict[str, tuple[int, ...]] = TOKENS) -> Path:
    """A store in which these requests were answered with these tokens."""
    rows = [
        Row(request=name, step=step, prompt=PROMPT, token=token)
        for name, tokens in answers.items()
        for step, token in enumerate(tokens)
    ]
    return store(folder, rows, "fp")


def opened(folder: Path) -> Forcing:
    return open_forcing(str(base(folder)), VOCAB)


def asked(slot: int, request_id: str, prompt: Sequence[int] = PROMPT, arrival_s: float = 1.0) -> frames.Admitted:
    return frames.Admitted(slot=slot, request_id=request_id, arrival_s=arrival_s, prompt_ids=list(prompt))


def batch(lens: Sequence[int], wants: Sequence[bool]) -> Batch:
    n = len(lens)
    return Batch(
        token_ids=np.zeros(n, np.int32),
        query_lens=np.ones(n, np.int32),
        context_lens=np.array(lens, np.int32),
        block_tables=np.zeros((n, 1), np.int32),
        wants_token=np.array(wants, bool),
        sampling=np.zeros(n, SAMPLING),
    )


def tokens(
    forced: Forcing, slots: Sequence[int], lens: Sequence[int], wants: Sequence[bool] | None = None
) -> list[int]:
    given = forced.tokens(batch(lens, wants or [True] * len(lens)), np.array(slots, np.int32))
    return [int(token) for token in given]


def test_each_sequence_gets_the_token_that_the_base_has_for_its_step(tmp_path: Path) -> None:
    forced = opened(tmp_path / "b")
    forced.admit([asked(3, "r1"), asked(0, "r2", arrival_s=2.0)])
    assert tokens(forced, [3, 0], [2, 4], [False, True]) == [FREE, 9]  # a piece of a prefill gets no token
    assert tokens(forced, [3, 0], [4, 5]) == [5, 10]
    assert tokens(forced, [3], [5]) == [6]


def test_a_sequence_that_was_preempted_goes_on_where_it_was(tmp_path: Path) -> None:
    forced = opened(tmp_path / "b")
    forced.admit([asked(0, "r1")])
    assert tokens(forced, [0], [4]) == [5]
    forced.admit([asked(0, "r2", arrival_s=2.0), asked(1, "r1")])
    assert tokens(forced, [0, 1], [4, 5]) == [9, 6]


def test_what_the_base_does_not_know_runs_free_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    forced = opened(tmp_path / "b")
    new = [
        asked(0, "r2"),
        asked(1, "preflight"),
        asked(2, "r1", (*PROMPT, 5)),
        asked(3, "r1", (1, 20355, 915, 279), arrival_s=2.0),
    ]
    forced.admit(new)
    assert tokens(forced, range(4), [4, 4, 5, 4]) == [9, FREE, FREE, FREE]
    assert tokens(forced, [0], [6]) == [FREE]  # the base had ended
    with caplog.at_level(logging.INFO):
        forced.close()
    assert f"1 tokens of 1 requests forced to those of {tmp_path / 'b'}; free ran 1 requests" in caplog.text
    assert "2 that have another prompt there, 1 tokens behind the end" in caplog.text


def test_the_logits_and_the_told_logit_stay_the_models(tmp_path: Path) -> None:
    logits = np.arange(2 * VOCAB, dtype=np.float32).reshape(2, VOCAB)
    kept = logits.copy()
    result = StepResult(
        token_ids=np.array([VOCAB - 1, -1, VOCAB - 1], np.int32), chosen_logits=np.zeros(3, np.float32), logits=logits
    )
    give(batch([4, 2, 4], [True, False, True]), result, np.array([FREE, FREE, 7], np.int32))
    assert result.token_ids.tolist() == [VOCAB - 1, -1, 7]
    assert result.chosen_logits.tolist() == [0.0, 0.0, kept[1, 7]]
    np.testing.assert_array_equal(logits, kept)


def test_forcing_outweighs_penalties_bans_and_temperature_and_is_recorded(tmp_path: Path) -> None:
    """One real step whose own choice is another token, and is banned as well."""
    engine = engines.get("numpy_llama", open_model("random:tiny"), test_agent.SETTINGS)
    free = test_agent.in_process(1)[0]
    answer = forcing.Answer(tokens=np.array([77], np.int32), prompt_len=len(test_agent.PROMPT), prompt=0)
    forced = Forcing({"r": answer}, "made up")
    arrays = StepArrays.private(test_agent.SIZE)
    rows, steps = test_agent.place(arrays)
    num_tokens = arrays.write(rows, steps)
    arrays.sampling["temperature"] = 1.5
    recorder = test_capture.recorder(tmp_path / "s", vocab_size=open_model("random:tiny").config.vocab_size)
    step = frames.Step(
        num_sequences=1,
        num_tokens=num_tokens,
        admitted=[asked(0, "r", test_agent.PROMPT)],
        extras=[
            Extra(
                row=0,
                penalties=Penalties(repetition=9.0, presence=9.0, frequency=9.0, history=[77] * 5, prompt_len=0),
                banned=[77],
                num_logprobs=1,
            )
        ],
    )
    done = run_step(engine, arrays, step, recorder, forced)
    recorder.close()
    row = Store(tmp_path / "s").table[0]
    assert free != 77
    assert arrays.result(1)[0] == [77]
    assert (row["token"], row["forced"], row["top_id"]) == (77, 1, free)
    assert arrays.result(1)[1] == [row["token_logit"]]
    assert done.scored[0].logprob == pytest.approx(float(row["token_logit"]) - float(row["lse"]), abs=1e-5)
    engine.close()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([Row(step=0, token=1), Row(step=2, token=3)], "not every step of r1 is there"),
        ([Row(step=1, token=1)], "not every step of r1 is there"),
        ([Row(step=0, token=1), Row(step=0, token=1)], "not every step of r1 is there"),
    ],
)
def test_a_base_that_lacks_steps_cannot_force(tmp_path: Path, answers: list[Row], message: str) -> None:
    policy.write(store(tmp_path / "b", answers), Policy(every=2))
    with pytest.raises(InputError, match=rf"{message} \(every 2, rate 1\); capture the base with every row"):
        open_forcing(str(tmp_path / "b"), VOCAB)


def test_a_base_with_two_answers_of_one_request_cannot_force(tmp_path: Path) -> None:
    base(tmp_path / "b")
    base(tmp_path / "b")  # another agent went on with it
    with pytest.raises(InputError, match="request r1 is there twice"):
        open_forcing(str(tmp_path / "b"), VOCAB)


def test_a_base_of_another_vocabulary_or_none_at_all_cannot_force(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it has 256 token ids, the model 32000"):
        open_forcing(str(base(tmp_path / "b")), 32000)
    with pytest.raises(InputError, match="no capture of logits is there, nor a run that has one"):
        open_forcing(str(tmp_path / "none"), VOCAB)


def test_the_folder_of_a_run_stands_for_the_rows_in_it(tmp_path: Path) -> None:
    base(tmp_path / "run" / "rows")
    forced = open_forcing(str(tmp_path / "run"), VOCAB)
    forced.admit([asked(0, "r2")])
    assert tokens(forced, [0], [4]) == [9]


def test_an_empty_base_forces_nothing(tmp_path: Path) -> None:
    assert forcing.answers(Store(store(tmp_path / "b", []))) == {}
