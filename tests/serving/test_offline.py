"""`llmbench.LLM`: the engine in this process, driven by the server's scheduler."""

import doctest
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmbench import LLM, engines
from llmbench.engines import Batch, EngineSettings, StepResult
from llmbench.engines.stub import Stub
from llmbench.errors import ConfigError, InputError, PromptEmpty, PromptTooLong
from llmbench.serving import offline
from llmbench.types import Sampling
from llmbench.weights.model import Model

PROMPTS = ["Hello", "Translate: the sea", "", "naïve 世界 👩‍🚀", "one two three four five six seven", "Hello"]
SAMPLED = Sampling(temperature=0.9, top_k=20, seed=11)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("random:tiny", threads=1) as opened:
        yield opened


def texts(llm: LLM, *asked: Any, **options: Any) -> list[str]:
    return [answer.text for answer in llm.generate(*asked, **options)]


def test_the_examples_in_the_documentation_are_true() -> None:
    found = doctest.testmod(offline)
    assert (found.failed, found.attempted) == (0, 4)


def test_a_batch_gives_each_prompt_the_answer_it_gets_alone(llm: LLM) -> None:
    together = texts(llm, PROMPTS, max_new_tokens=24)
    assert together == [texts(llm, prompt, max_new_tokens=24)[0] for prompt in PROMPTS]
    assert together[0] == together[5]
    assert len(set(together)) == 5


def test_a_small_batch_and_a_large_one_give_the_same(llm: LLM) -> None:
    with LLM("random:tiny", threads=1, batch_size=2) as narrow:
        assert texts(narrow, PROMPTS, max_new_tokens=16) == texts(llm, PROMPTS, max_new_tokens=16)


def test_no_prompts_give_no_answers(llm: LLM) -> None:
    assert llm.generate([]) == []


def test_a_seed_gives_the_same_answer_alone_and_in_a_batch_and_another_seed_another(llm: LLM) -> None:
    alone = texts(llm, "Hello", 24, SAMPLED)
    assert texts(llm, ["Hello"] * 3, 24, SAMPLED) == alone * 3
    assert texts(llm, "Hello", 24, Sampling(temperature=0.9, top_k=20, seed=12)) != alone
    assert texts(llm, "Hello", 24) != alone


def test_without_a_seed_sampled_answers_differ(llm: LLM) -> None:
    unseeded = Sampling(temperature=1.0)
    assert len(set(texts(llm, ["Hello"] * 4, 24, unseeded))) == 4


def test_one_token_is_one_token(llm: LLM) -> None:
    (answer,) = llm.generate("Hello", max_new_tokens=1, sampling=Sampling(ignore_eos=True))
    row = llm.logits(llm.tokenizer.encode("Hello"))[-1]
    assert answer.token_ids == [int(row.argmax())]
    assert answer.text == llm.tokenizer.decode(answer.token_ids)


# -- what an answer says ----------------------------------------------------------------------------------------------


def test_an_answer_says_how_it_ended_and_what_it_was_given(llm: LLM) -> None:
    (cut,) = llm.generate("Hello", max_new_tokens=5, ignore_eos=True)
    assert (cut.finish_reason, cut.stop_reason, len(cut.token_ids)) == ("length", None, 5)
    assert cut.prompt_token_ids == llm.tokenizer.encode("Hello")
    (stopped,) = llm.generate("Hello", max_new_tokens=5, stop=cut.text[2:4], ignore_eos=True)
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", cut.text[2:4])
    assert stopped.text == cut.text[: cut.text.index(cut.text[2:4])]
    (banned,) = llm.generate("Hello", max_new_tokens=5, stop_token_ids=[cut.token_ids[2]], ignore_eos=True)
    assert (banned.finish_reason, banned.stop_reason) == ("stop", cut.token_ids[2])
    assert banned.token_ids == cut.token_ids[: cut.token_ids.index(cut.token_ids[2]) + 1]


def test_an_answer_that_a_stop_text_ends_is_not_computed_to_its_end() -> None:
    with LLM("random:tiny", threads=1) as llm:
        (whole,) = llm.generate("Hello", max_new_tokens=40, ignore_eos=True)
        before = llm.speed.num_decoded_tokens
        (stopped,) = llm.generate("Hello", max_new_tokens=40, stop=whole.text[4:7], ignore_eos=True)
        assert llm.speed.num_decoded_tokens - before == len(stopped.token_ids) - 1 < 39
        assert texts(llm, "Hello", max_new_tokens=40, ignore_eos=True) == [whole.text], "its blocks are free again"


def test_the_pieces_of_a_stream_are_the_answers(llm: LLM) -> None:
    streamed = ["", "", "", "", "", ""]
    ended = []
    for piece in llm.stream(PROMPTS, 16):
        streamed[piece.index] += piece.text
        if piece.answer is not None:
            assert piece.answer.text == streamed[piece.index]
            ended.append(piece.index)
    assert streamed == texts(llm, PROMPTS, 16)
    assert sorted(ended) == list(range(6))


def test_a_stream_that_is_left_gives_everything_back(llm: LLM) -> None:
    for _ in llm.stream(PROMPTS, 64, ignore_eos=True):
        break
    assert llm._scheduler.pool.num_free == llm._scheduler.pool.num_blocks
    assert texts(llm, "Hello", 8) == texts(llm, ["Hello"], 8)


def test_token_ids_are_prompts_too_and_text_and_ids_may_be_mixed(llm: LLM) -> None:
    ids = llm.tokenizer.encode("Translate: the sea")
    text, same = llm.generate(["Translate: the sea", ids], max_new_tokens=12)
    assert (text.token_ids, text.prompt_token_ids) == (same.token_ids, ids)
    with pytest.raises(PromptEmpty, match="prompt 2: it has no tokens"):
        llm.generate(["Hello", []])


def test_the_longest_length_counts_the_prompt(llm: LLM) -> None:
    ids = llm.tokenizer.encode("one two three four five six seven")
    short, long = llm.generate(["Hello", ids], max_length=len(ids) + 3, ignore_eos=True)
    assert len(long.token_ids) == 3
    assert len(short.prompt_token_ids) + len(short.token_ids) == len(ids) + 3
    with pytest.raises(PromptTooLong, match=r"prompt 2: its .* tokens leave no room for an answer"):
        llm.generate(["Hello", ids], max_length=len(ids))
    with pytest.raises(InputError, match="max_length counts the prompt"):
        llm.generate("Hello", 3, max_length=10)


# -- how tokens are chosen --------------------------------------------------------------------------------------------


def test_options_by_name_are_the_fields_of_sampling(llm: LLM) -> None:
    assert texts(llm, "Hello", 24, temperature=0.9, top_k=20, seed=11) == texts(llm, "Hello", 24, SAMPLED)
    assert texts(llm, "Hello", 24, SAMPLED, seed=12) == texts(llm, "Hello", 24, temperature=0.9, top_k=20, seed=12)
    assert texts(llm, "Hello", 24, do_sample=True, seed=3) == texts(llm, "Hello", 24, temperature=1.0, seed=3)
    assert texts(llm, "Hello", 24, SAMPLED, do_sample=False) == texts(llm, "Hello", 24)
    assert texts(llm, "Hello", 24, do_sample=False, top_k=3, top_p=0.5) == texts(llm, "Hello", 24)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temprature": 1.0}, "unknown option of generate 'temprature'. Did you mean 'temperature'?"),
        ({"num_logprobs": 3}, "unknown option of generate 'num_logprobs'"),
        ({"temperature": -0.1}, "temperature: must be 0 or more, got -0.1"),
        ({"temperature": float("inf")}, "temperature: must be 0 or more, got inf"),
        ({"temperature": "hot"}, "generate: temperature: Expected `float`, got `str`"),
        ({"do_sample": True, "top_p": 0.0}, "top_p: must be above 0 and at most 1, got 0.0"),
        ({"top_p": float("nan"), "do_sample": True}, "top_p: must be above 0 and at most 1, got nan"),
        ({"do_sample": True, "top_k": -1}, "top_k: must be 0 (all) or more, got -1"),
        ({"do_sample": True, "temperature": 0.0}, "temperature: 0 is greedy, but do_sample asks for sampling"),
        ({"do_sample": 1}, "do_sample: must be true or false, got 1"),
        ({"top_k": 3}, "top_k: has no effect where the likeliest token is taken; ask for do_sample as well"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: must be above 0, got 0.0"),
        ({"seed": -1}, "seed: must be from 0 to 2^64 - 1, got -1"),
        ({"stop": ["a", ""]}, "stop: a stop text must have a character at least"),
    ],
)
def test_wrong_options_are_named(llm: LLM, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        llm.generate("Hello", **options)
    assert said in str(caught.value)


# -- speed ------------------------------------------------------------------------------------------------------------


class Compiling(Stub):
    """A stub whose first step of each number of sequences compiles for 20 ms."""

    def __init__(self, model: Model, settings: EngineSettings) -> None:
        super().__init__(model, settings)
        self._seen: set[int] = set()

    def step(self, batch: Batch) -> StepResult:
        if len(batch.query_lens) not in self._seen:
            self._seen.add(len(batch.query_lens))
            start = time.perf_counter()
            time.sleep(0.02)
            self.compiled_s += time.perf_counter() - start
        return super().step(batch)


def test_what_was_compiled_is_in_no_other_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "get", lambda name, model, settings: Compiling(model, settings))
    with LLM("random:tiny") as llm:
        start = time.perf_counter()
        answers = llm.generate(["Hello", "one two three"], max_new_tokens=4)
        took_s = time.perf_counter() - start
    compiled_s = llm.speed.compiled_s
    assert compiled_s >= 0.02
    assert 0 < llm.speed.prefill_s + llm.speed.decode_s < took_s - compiled_s
    for answer in answers:
        parts = (answer.timing.queued_s, answer.timing.prefill_s, answer.timing.decode_s)
        assert min(parts) >= 0
        assert sum(parts) < took_s - compiled_s


def test_tokens_of_prompts_and_decoded_ones_are_counted_apart() -> None:
    with LLM("random:tiny", engine="stub", batch_size=4) as llm:
        assert (llm.speed.prefill_tokens_per_s, llm.speed.decode_tokens_per_s) == (None, None)
        llm.generate([[5] * 30, [6] * 20], max_new_tokens=8)
        assert (llm.speed.num_prompt_tokens, llm.speed.num_decoded_tokens) == (50, 14)
        assert llm.speed.decode_tokens_per_s == pytest.approx(14 / llm.speed.decode_s)
        llm.generate([[5] * 600, [6]], max_new_tokens=2)  # the first takes several steps, beside it the other decodes
        assert llm.speed.num_prompt_tokens == 50 + 601


def test_what_waits_for_room_in_the_batch_says_how_long() -> None:
    with LLM("random:tiny", engine="stub", batch_size=1) as llm:
        first, second = llm.generate([[5] * 8, [6] * 8], max_new_tokens=4)
    before_s = first.timing.queued_s + first.timing.prefill_s + first.timing.decode_s
    assert second.timing.queued_s > before_s * 0.999999


# -- chat templates ---------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role != 'user' %}{{ raise_exception('users only') }}"
    "{% endif %}[INST] {{ message.content | trim }} [/INST]{% endfor %}{% if add_generation_prompt %} >{% endif %}"
)


@pytest.fixture
def chatting(tmp_path: Path) -> Path:
    """The embedded model as a folder; its chat template is still to be written."""
    folder = tmp_path / "model"
    embedded = Path(offline.__file__).parents[1] / "weights" / "embedded"
    shutil.copytree(embedded, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    return folder


@pytest.mark.parametrize("kind", ["file", "settings", "named"])
def test_a_chat_is_asked_in_the_models_own_template(chatting: Path, kind: str) -> None:
    settings: dict[str, Any] = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    if kind == "file":
        (chatting / "chat_template.jinja").write_text(TEMPLATE)
    elif kind == "settings":
        settings["chat_template"] = TEMPLATE
    else:
        settings["chat_template"] = [{"name": "tool", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    (chatting / "tokenizer_config.json").write_text(json.dumps(settings))
    with LLM(str(chatting), threads=1) as llm:
        (answer,) = llm.generate(" Name a colour ", max_new_tokens=2, chat=True)
        assert answer.prompt_token_ids == llm.tokenizer.encode("[INST] Name a colour [/INST] >")
        with pytest.raises(InputError, match="a chat's message is text"):
            llm.generate([[5, 6]], chat=True)


def test_a_template_that_refuses_or_is_missing_is_named(chatting: Path) -> None:
    with LLM(str(chatting), threads=1) as llm:
        with pytest.raises(InputError, match="it has no chat template; leave --chat out"):
            llm.generate("Hello", chat=True)
        (chatting / "chat_template.jinja").write_text("{{ raise_exception('only system messages') }}")
        with pytest.raises(InputError, match=r"its chat template refuses this \(only system messages\)"):
            llm.generate("Hello", chat=True)
        (chatting / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}")
        with pytest.raises(InputError, match="its chat template refuses this"):
            llm.generate("Hello", chat=True)


# -- logits -----------------------------------------------------------------------------------------------------------


def test_logits_have_a_row_for_each_token_and_a_value_for_each_id(llm: LLM) -> None:
    ids = llm.tokenizer.encode("The quick brown fox")
    rows = llm.logits(ids)
    assert rows.shape == (len(ids), llm.tokenizer.vocab_size)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()


def test_the_logits_of_a_prefix_do_not_depend_on_what_follows(llm: LLM) -> None:
    ids = llm.tokenizer.encode("The quick brown fox jumps over the lazy dog")
    np.testing.assert_allclose(llm.logits(ids)[:5], llm.logits(ids[:5]), atol=1e-4)


def test_greedy_answers_follow_the_largest_logit(llm: LLM) -> None:
    prompt = llm.tokenizer.encode("Hello")
    (answer,) = llm.generate("Hello", 8, Sampling(ignore_eos=True))
    ids = list(prompt)
    for _ in range(8):
        ids.append(int(llm.logits(ids)[-1].argmax()))
    assert answer.token_ids == ids[len(prompt) :]


def test_a_prompt_longer_than_a_step_is_computed_in_pieces(llm: LLM) -> None:
    ids = [1, *[300 + i % 50 for i in range(700)]]
    rows = llm.logits(ids)
    assert rows.shape[0] == 701
    np.testing.assert_allclose(rows[:40], llm.logits(ids[:40]), atol=1e-4)


def test_a_prompt_that_is_too_long_is_refused_and_the_next_one_is_answered(llm: LLM) -> None:
    before = texts(llm, "Hello", 8)
    with pytest.raises(PromptTooLong):
        llm.generate(["Hello", "Hi"], max_new_tokens=5000)
    with pytest.raises(PromptTooLong):
        llm.logits([5] * 5000)
    with pytest.raises(PromptEmpty):
        llm.logits([])
    assert texts(llm, "Hello", 8) == before


def test_a_sequence_may_fill_the_longest_length_exactly(llm: LLM) -> None:
    assert llm.logits([5] * 2048).shape[0] == 2048


def test_wrong_models_engines_and_tokenizers_are_named() -> None:
    with pytest.raises(InputError, match=r"unknown random model 'tinny'\. Did you mean 'tiny'"):
        LLM("random:tinny")
    with pytest.raises(InputError, match=r"unknown engine 'numpy_lama'\. Did you mean 'numpy_llama'"):
        LLM("random:tiny", engine="numpy_lama")
    with pytest.raises(ConfigError, match="tokenizer: random:110m,layers=1 brings none and has 32000 ids"):
        LLM("random:110m,layers=1")


def test_a_joined_answer_keeps_the_space_behind_its_prompt(llm: LLM) -> None:
    (alone,) = texts(llm, "Hello", max_new_tokens=24)
    (joined,) = texts(llm, "Hello", max_new_tokens=24, joined=True)
    whole = llm.tokenizer.decode(llm.tokenizer.encode("Hello") + _greedy(llm, llm.tokenizer.encode("Hello"), 24))
    assert joined == whole.removeprefix("Hello")
    assert joined.removeprefix(" ") == alone


def _greedy(llm: LLM, ids: list[int], number: int) -> list[int]:
    """Greedy continuation, a whole prefill for each token."""
    new: list[int] = []
    for _ in range(number):
        new.append(int(llm.logits(ids + new)[-1].argmax()))
        if new[-1] == llm.tokenizer.eos_id:
            break
    return new
