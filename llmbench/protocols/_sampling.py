"""The sampling fields of vLLM's body, which its `/generate` and OpenAI's routes have in common."""

from typing import Any

from llmbench.protocols._body import Fields
from llmbench.types import Request, Sampling

CARRIED = frozenset(
    {
        "presence_penalty",
        "frequency_penalty",
        "stop",
        "stop_token_ids",
        "include_stop",
        "ignore_eos",
        "min_new_tokens",
    }
)
"""What can be said beside temperature, top_k, top_p, seed and the repetition penalty."""

# Fields that would change the answer and that this server cannot honour, with the values that ask for nothing.
# Other keys are passed over, as vLLM does.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "detokenize": (True,),
    "min_p": (0, 0.0),
    "logit_bias": (),
    "bad_words": (),
    "allowed_token_ids": (),
    "logits_processors": (),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "prompt_embeds": (),
    "lora_request": (),
}


def generation(
    fields: Fields, vocab_size: int, *max_tokens: str, default: int | None = None, lowest: int = 1
) -> tuple[int | None, Sampling]:
    """How many new tokens, by the first of the names that is there, and how they are chosen. Raises FieldError."""
    fields.refuse(_UNSUPPORTED)
    limits = [fields.integer(name, lowest) for name in max_tokens]
    new_tokens = next((limit for limit in limits if limit is not None), default)
    top_k = fields.integer("top_k", -1) or 0  # vLLM: -1 is all
    min_tokens = fields.integer("min_tokens", 0) or 0
    if new_tokens is not None and min_tokens > new_tokens:
        raise fields.error("min_tokens", f"must be at most {max_tokens[-1]} ({new_tokens}), got {min_tokens}")
    temperature, top_p = fields.temperature(), fields.number("top_p", 0, 1, above=True)
    sampling = Sampling(
        temperature=1.0 if temperature is None else temperature,
        top_k=min(max(top_k, 0), vocab_size),
        top_p=1.0 if top_p is None else top_p,
        seed=fields.seed(),
        repetition_penalty=fields.number("repetition_penalty", 0, above=True) or 1.0,
        presence_penalty=fields.number("presence_penalty", -2, 2) or 0.0,
        frequency_penalty=fields.number("frequency_penalty", -2, 2) or 0.0,
        stop=fields.stops(),
        stop_token_ids=fields.ids("stop_token_ids"),
        include_stop=fields.flag("include_stop_str_in_output"),
        ignore_eos=fields.flag("ignore_eos"),
        min_new_tokens=min_tokens,
    )
    return new_tokens, sampling


def client_fields(request: Request, max_tokens: str) -> dict[str, Any]:
    """The client's side: the temperature always, as the servers' default is 1, and what differs from the defaults."""
    asked = request.sampling
    fields: dict[str, Any] = {}
    if request.max_new_tokens is not None:
        fields[max_tokens] = request.max_new_tokens
    fields["temperature"] = 0.0 if asked.greedy else asked.temperature
    others: tuple[tuple[str, Any, Any], ...] = (
        ("top_p", asked.top_p, 1.0),
        ("top_k", 0 if asked.greedy else asked.top_k, 0),
        ("seed", asked.seed, None),
        ("repetition_penalty", asked.repetition_penalty, 1.0),
        ("presence_penalty", asked.presence_penalty, 0.0),
        ("frequency_penalty", asked.frequency_penalty, 0.0),
        ("stop", list(asked.stop), []),
        ("stop_token_ids", list(asked.stop_token_ids), []),
        ("include_stop_str_in_output", asked.include_stop, False),
        ("ignore_eos", asked.ignore_eos, False),
        ("min_tokens", asked.min_new_tokens, 0),
    )
    return fields | {name: value for name, value, default in others if value != default}
