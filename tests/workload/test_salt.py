"""Prompts that no server has seen."""

import msgspec
import pytest

from llmbench.errors import InputError
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.workload import plan as plans
from llmbench.workload import salt
from llmbench.workload.arrivals.constant import Arrival
from llmbench.workload.plan import Plan, Turn

TOKENIZER = Tokenizer.from_file(embedded_path())


def plan() -> Plan:
    """A prompt that is sent twice, and a conversation of two turns."""
    samples = [
        Turn(prompt="name a town", output="one two"),
        Turn(prompt="say hello", output="hello"),
        Turn(prompt="say hello again", output="hello again", think_s=1.0),
    ]
    settings = plans.PlanSettings(dataset="d", num_samples=3, arrivals="constant", qps=1.0, rate=1.0, seed=0)
    return plans.make_plan(samples, Arrival(qps=1.0), 4, settings, TOKENIZER)


def prompts(made: Plan) -> list[str]:
    return [str(planned.request.prompt) for planned in made.requests]


def test_each_prompt_has_a_nonce_of_its_own_before_it_and_turns_share_one() -> None:
    made = salt.salted(plan(), 7, TOKENIZER)
    nonces = [prompt.split(" ", 1)[0] for prompt in prompts(made)]
    assert [prompt.split(" ", 1)[1] for prompt in prompts(made)] == prompts(plan())
    assert nonces[1] == nonces[2]
    assert len(set(nonces)) == 3


def test_prompts_are_counted_again_and_the_rest_is_as_it_was() -> None:
    before, after = plan(), salt.salted(plan(), 7, TOKENIZER)
    for old, new in zip(before.requests, after.requests, strict=True):
        assert new.num_prompt_tokens == len(TOKENIZER.encode(str(new.request.prompt)))
        assert msgspec.structs.replace(new, request=old.request, num_prompt_tokens=old.num_prompt_tokens) == old
    assert (after.settings.cache, after.settings.seed_nonces) == ("cold", 7)


def test_a_seed_gives_the_same_nonces_and_another_one_others() -> None:
    assert salt.salted(plan(), 7, TOKENIZER).sha256 == salt.salted(plan(), 7, TOKENIZER).sha256
    assert salt.salted(plan(), 8, TOKENIZER).sha256 != salt.salted(plan(), 7, TOKENIZER).sha256


def test_prompts_of_ids_are_refused() -> None:
    first = plan().requests[0]
    ids = msgspec.structs.replace(first, request=msgspec.structs.replace(first.request, prompt=(1, 2)))
    with pytest.raises(InputError, match="--cache cold"):
        salt.salted(msgspec.structs.replace(plan(), requests=(ids,)), 7, TOKENIZER)
