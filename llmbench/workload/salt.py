"""Prompts that no server has seen: before each stands a nonce, so that no prefix of it can be in a cache.

A conversation has one nonce for all its turns: what its earlier turns have put into the cache it may use.
"""

import msgspec
import numpy as np

from llmbench.errors import InputError
from llmbench.tokenizer import Tokenizer
from llmbench.workload.plan import Plan, hash_of

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LENGTH = 10  # 47 bits: two of 100,000 prompts are alike with a chance of 4e-5


def salted(plan: Plan, nonce_seed: int, tokenizer: Tokenizer | None) -> Plan:
    """The plan with a nonce before each prompt; prompts are counted again, answers are asked for as before.

    The same seed gives the same nonces, and a server that has seen them may have them in its cache: it must be a new
    one for each run. Raises InputError for prompts of token ids.
    """
    rng = np.random.default_rng(nonce_seed)
    nonces: dict[int, str] = {}
    requests = []
    for planned in plan.requests:
        before = nonces.get(planned.after) if isinstance(planned.after, int) else None
        nonces[planned.index] = nonce = before or "".join(_LETTERS[n] for n in rng.integers(26, size=_LENGTH))
        prompt = planned.request.prompt
        if not isinstance(prompt, str):
            raise InputError("--cache cold: prompts of token ids cannot be salted; give their text")
        text = f"{nonce} {prompt}"
        requests.append(
            msgspec.structs.replace(
                planned,
                request=msgspec.structs.replace(planned.request, prompt=text),
                num_prompt_tokens=planned.num_prompt_tokens and (len(tokenizer.encode(text)) if tokenizer else None),
            )
        )
    settings = msgspec.structs.replace(plan.settings, cache="cold", seed_nonces=nonce_seed)
    return Plan(settings=settings, requests=tuple(requests), sha256=hash_of(requests))
