"""`llmbench.LLM`: the engine in this process, driven by the server's scheduler."""

from collections.abc import Iterator

import numpy as np
import pytest

from llmbench import LLM
from llmbench.errors import ConfigError, InputError, PromptEmpty, PromptTooLong
from llmbench.types import Sampling

PROMPTS = ["Hello", "Translate: the sea", "", "naïve 世界 👩‍🚀", "one two three four five six seven", "Hello"]
SAMPLED = Sampling(temperature=0.9, top_k=20, seed=11)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("random:tiny", threads=1) as opened:
        yield opened


def test_a_batch_gives_each_prompt_the_answer_it_gets_alone(llm: LLM) -> None:
    together = llm.generate(PROMPTS, max_new_tokens=24)
    assert together == [llm.generate(prompt, max_new_tokens=24)[0] for prompt in PROMPTS]
    assert together[0] == together[5]
    assert len(set(together)) == 5


def test_a_small_batch_and_a_large_one_give_the_same(llm: LLM) -> None:
    with LLM("random:tiny", threads=1, batch_size=2) as narrow:
        assert narrow.generate(PROMPTS, max_new_tokens=16) == llm.generate(PROMPTS, max_new_tokens=16)


def test_no_prompts_give_no_answers(llm: LLM) -> None:
    assert llm.generate([]) == []


def test_a_seed_gives_the_same_answer_alone_and_in_a_batch_and_another_seed_another(llm: LLM) -> None:
    alone = llm.generate("Hello", 24, SAMPLED)
    assert llm.generate(["Hello"] * 3, 24, SAMPLED) == alone * 3
    assert llm.generate("Hello", 24, Sampling(temperature=0.9, top_k=20, seed=12)) != alone
    assert llm.generate("Hello", 24) != alone


def test_without_a_seed_sampled_answers_differ(llm: LLM) -> None:
    unseeded = Sampling(temperature=1.0)
    assert len(set(llm.generate(["Hello"] * 4, 24, unseeded))) == 4


def test_one_token_is_one_token(llm: LLM) -> None:
    (text,) = llm.generate("Hello", max_new_tokens=1, sampling=Sampling(ignore_eos=True))
    row = llm.logits(llm.tokenizer.encode("Hello"))[-1]
    assert text == llm.tokenizer.decode([int(row.argmax())])


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
    (text,) = llm.generate("Hello", 8, Sampling(ignore_eos=True))
    ids = list(prompt)
    for _ in range(8):
        ids.append(int(llm.logits(ids)[-1].argmax()))
    assert text == llm.tokenizer.decode(ids[len(prompt) :])


def test_a_prompt_longer_than_a_step_is_computed_in_pieces(llm: LLM) -> None:
    ids = [1, *[300 + i % 50 for i in range(700)]]
    rows = llm.logits(ids)
    assert rows.shape[0] == 701
    np.testing.assert_allclose(rows[:40], llm.logits(ids[:40]), atol=1e-4)


def test_a_prompt_that_is_too_long_is_refused_and_the_next_one_is_answered(llm: LLM) -> None:
    before = llm.generate("Hello", 8)
    with pytest.raises(PromptTooLong):
        llm.generate(["Hello", "Hi"], max_new_tokens=5000)
    with pytest.raises(PromptTooLong):
        llm.logits([5] * 5000)
    with pytest.raises(PromptEmpty):
        llm.logits([])
    assert llm.generate("Hello", 8) == before


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
    (alone,) = llm.generate("Hello", max_new_tokens=24)
    (joined,) = llm.generate("Hello", max_new_tokens=24, joined=True)
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
