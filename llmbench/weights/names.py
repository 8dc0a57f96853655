"""What the tensors of Llama and Qwen2 are called elsewhere, and how some of them are merged there.

Every name is a template: {n} is the number of a layer, {part} is weight, bias, or a part of what is quantised, and all
else is meant literally, so that no name is taken for another that it is a part of. Values keep their layout [out, in];
nothing is transposed.
"""

import re
from collections.abc import Collection, Mapping
from functools import cache
from typing import Literal

import msgspec

from llmbench import plugins
from llmbench.errors import InputError
from llmbench.weights.config import ModelConfig
from llmbench.weights.quantised import KV_PARTS, PARTS
from llmbench.weights.tensors import Tensor, halves_apart, interleaved, uninterleaved

Groups = Literal["whole", "kv_heads", "rows"]


class Merged(msgspec.Struct, frozen=True):
    """A tensor in which several are one behind another: whole, head by head of the keys, or row by row."""

    hf: tuple[str, ...]
    own: str
    groups: Groups


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """The names that one stack gives to tensors: of each Hugging Face's and its own; what it has besides is dropped."""

    about: str
    names: tuple[tuple[str, str], ...]
    merged: tuple[Merged, ...] = ()
    dropped: tuple[str, ...] = ()
    mindspore: bool = True


Moved = tuple[str, ...]
"""The names, in the other layout, of the tensors that one is made of."""


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """Tensors under Hugging Face names, the names of what each is made of, what was dropped and why, and the rest."""

    tensors: dict[str, Tensor]
    moved: dict[str, Moved]
    dropped: dict[str, str]
    left: list[str]


_PARTS = "|".join(("weight", "bias", *PARTS, *KV_PARTS))
_LAYER = "model.layers.{n}."
_ATTENTION, _MLP = _LAYER + "self_attn.", _LAYER + "mlp."
_QKV = (_ATTENTION + "q_proj.{part}", _ATTENTION + "k_proj.{part}", _ATTENTION + "v_proj.{part}")
_GATE_UP = (_MLP + "gate_proj.{part}", _MLP + "up_proj.{part}")
_INV_FREQ = _ATTENTION + "rotary_emb.inv_freq"

_ENDS = (
    ("model.embed_tokens.weight", "model.tok_embeddings.embedding_weight"),
    ("model.norm.weight", "model.norm_out.weight"),
    ("lm_head.weight", "lm_head.weight"),
)
_SHARED = (  # what the legacy layout has in one piece whether or not the others are merged
    (_ATTENTION + "o_proj.{part}", _LAYER + "attention.wo.{part}"),
    (_MLP + "down_proj.{part}", _LAYER + "feed_forward.w2.{part}"),
    (_LAYER + "input_layernorm.{part}", _LAYER + "attention_norm.{part}"),
    (_LAYER + "post_attention_layernorm.{part}", _LAYER + "ffn_norm.{part}"),
)
_APART = (
    (_QKV[0], _LAYER + "attention.wq.{part}"),
    (_QKV[1], _LAYER + "attention.wk.{part}"),
    (_QKV[2], _LAYER + "attention.wv.{part}"),
    (_GATE_UP[0], _LAYER + "feed_forward.w1.{part}"),
    (_GATE_UP[1], _LAYER + "feed_forward.w3.{part}"),
)


def _hf_names() -> tuple[tuple[str, str], ...]:
    return tuple((hf, hf) for hf, _ in (_ENDS[0], *_APART, *_SHARED, *_ENDS[1:]))


def _mcore(up: str) -> tuple[tuple[str, str], ...]:
    layer = "decoder.layers.{n}."
    attention, mlp = layer + "self_attention.", layer + "mlp."
    return (
        ("model.embed_tokens.weight", "embedding.word_embeddings.weight"),
        *((_ATTENTION + f"{x}_proj.{{part}}", attention + f"linear_{x}.{{part}}") for x in "qkv"),
        (_ATTENTION + "o_proj.{part}", attention + "linear_proj.{part}"),
        (_GATE_UP[0], mlp + "gating.{part}"),
        (_GATE_UP[1], mlp + f"{up}.{{part}}"),
        (_MLP + "down_proj.{part}", mlp + "linear_fc2.{part}"),
        (_LAYER + "input_layernorm.{part}", layer + "input_layernorm.{part}"),
        (_LAYER + "post_attention_layernorm.{part}", layer + "pre_mlp_layernorm.{part}"),
        ("model.norm.weight", "decoder.final_layernorm.weight"),
        ("lm_head.weight", "output_layer.weight"),
    )


def _merged(qkv: Groups, gate_up: Groups) -> tuple[Merged, ...]:
    return (
        Merged(_QKV, _LAYER + "attention.w_qkv.{part}", qkv),
        Merged(_GATE_UP, _LAYER + "feed_forward.w_gate_hidden.{part}", gate_up),
    )


LAYOUTS: dict[str, Layout] = {
    "hf": Layout(
        about="Hugging Face: what transformers writes", names=_hf_names(), dropped=(_INV_FREQ,), mindspore=False
    ),
    "legacy": Layout(
        about="MindFormers' Llama, which is also its Qwen2", names=(*_ENDS, *_APART, *_SHARED), dropped=(_INV_FREQ,)
    ),
    "qkv-concat": Layout(
        about="legacy with qkv_concat, one behind another: [q, k, v] and [gate, up], as llm_boost takes them",
        names=(*_ENDS, *_SHARED),
        merged=_merged("whole", "whole"),
    ),
    "qkv-concat-mg": Layout(
        about="legacy with qkv_concat, as MindFormers takes them: [its q heads, k, v] of each key-value head, and gate "
        "and up row by row",
        names=(*_ENDS, *_SHARED),
        merged=_merged("kv_heads", "rows"),
    ),
    "mcore": Layout(about="MindFormers' mcore models, as version 1.9 has it", names=_mcore("hidden")),
    "mcore-1.6": Layout(about="the same as version 1.6 had it: up_proj is linear_fc1", names=_mcore("linear_fc1")),
    "meta": Layout(
        about="Meta's consolidated.*.pth (read only): the rows of q and k are in another order",
        names=(
            ("model.embed_tokens.weight", "tok_embeddings.weight"),
            *((hf, own.removeprefix("model.")) for hf, own in (*_APART, *_SHARED)),
            ("model.norm.weight", "norm.weight"),
            ("lm_head.weight", "output.weight"),
        ),
        dropped=("rope.freqs", "layers.{n}.attention.inner_attention.rope.freqs"),
        mindspore=False,
    ),
}
"""By the name that users type; `to_layout` and `from_layout` go by this table alone."""

WRITABLE = [name for name in LAYOUTS if name != "meta"]


def layout(name: str) -> Layout:
    """A layout by its name. Raises InputError for an unknown one."""
    if name not in LAYOUTS:
        raise InputError(plugins.unknown("layout", name, list(LAYOUTS)))
    return LAYOUTS[name]


def detect(names: Collection[str], source: str) -> str:
    """The layout that knows most of these names. Raises InputError when that is none, or when two know the same."""
    known = {key: sum(_knows(found, name) for name in names) for key, found in LAYOUTS.items()}
    most = max(known.values())
    if not most:
        raise InputError(
            f"{source}: no name here is one that Llama and Qwen2 have in any layout, such as {sorted(names)[:1]}"
        )
    best = [key for key, number in known.items() if number == most]
    if len(best) > 1 and "hf" not in best:
        raise InputError(
            f"{source}: its names are those of {' and of '.join(best)}, which differ in the order of the rows;"
            f" say which with --from {' or --from '.join(best)}"
        )
    return best[0]


def from_layout(tensors: Mapping[str, Tensor], name: str, config: ModelConfig) -> Named:
    """Tensors of a layout under Hugging Face names.

    Raises InputError for a merged tensor whose length is not that of its parts.
    """
    found: dict[str, Tensor] = {}
    moved: dict[str, Moved] = {}
    dropped: dict[str, str] = {}
    left: list[str] = []
    used = layout(name)
    for own, tensor in tensors.items():
        fields = _match_any(used.dropped, own)
        if fields is not None:
            dropped[own] = "computed from config.json"
            continue
        for hf, template in used.names:
            if (fields := _match(template, own)) is not None:
                found[hf.format(**fields)] = _upright(hf, tensor, config) if name == "meta" else tensor
                moved[hf.format(**fields)] = (own,)
                break
        else:
            parts = _split(own, tensor, used, config)
            if not parts:
                left.append(own)
            found |= parts
            moved |= dict.fromkeys(parts, (own,))
    return Named(tensors=found, moved=moved, dropped=dropped, left=left)


def to_layout(
    tensors: Mapping[str, Tensor], name: str, config: ModelConfig
) -> tuple[dict[str, Tensor], dict[str, Moved]]:
    """Tensors, which are under Hugging Face names, under those of a layout; and what each is made of.

    Raises InputError when the layout has no name for one.
    """
    used = layout(name)
    found: dict[str, Tensor] = {}
    moved: dict[str, Moved] = {}
    for hf, tensor in tensors.items():
        merged = next(((rule, fields) for rule in used.merged if (fields := _match_any(rule.hf, hf)) is not None), None)
        if merged is not None:
            rule, fields = merged
            own = rule.own.format(**fields)
            if own not in found:
                moved[own] = tuple(template.format(**fields) for template in rule.hf)
                found[own] = interleaved([tensors[part] for part in moved[own]], num_groups(rule, config), own)
            continue
        own = next((own.format(**fields) for hf_, own in used.names if (fields := _match(hf_, hf)) is not None), "")
        if not own:
            raise InputError(f"{hf}: layout {name} has no name for this tensor")
        found[own], moved[own] = tensor, (hf,)
    return found, moved


def num_groups(rule: Merged, config: ModelConfig) -> int:
    """In how many groups the parts of a merged tensor lie one behind another."""
    return {"whole": 1, "kv_heads": config.num_kv_heads, "rows": config.intermediate_size}[rule.groups]


def check_mergeable(name: str, config: ModelConfig) -> None:
    """Raise InputError when the tensors of this model are not to be merged as this layout merges them."""
    if layout(name).merged and (config.quantised or config.kv_cache):
        raise InputError(
            f"layout {name}: the tensors of a quantised model are not merged, since each has scales of its own;"
            " use --to hf or --to legacy"
        )
    if layout(name).merged and config.head_dim * config.num_heads != config.hidden_size:
        raise InputError(
            f"layout {name}: MindFormers takes heads of hidden_size / num_heads ="
            f" {config.hidden_size // config.num_heads} rows, those of this model have {config.head_dim};"
            " use --to legacy"
        )


def _split(own: str, tensor: Tensor, used: Layout, config: ModelConfig) -> dict[str, Tensor]:
    """The parts of a merged tensor; none when it is not one."""
    for rule in used.merged:
        fields = _match(rule.own, own)
        if fields is None:
            continue
        heads, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        lengths = [heads, keys, keys] if len(rule.hf) == 3 else [config.intermediate_size] * 2
        if tensor.shape[0] != sum(lengths):
            raise InputError(
                f"{own}: {tensor.shape[0]} rows, but config.json asks for {' + '.join(map(str, lengths))}"
                f" = {sum(lengths)}"
            )
        groups = num_groups(rule, config)
        widths = [length // groups for length in lengths]
        return {
            hf.format(**fields): uninterleaved(tensor, groups, sum(widths[:i]), width)
            for i, (hf, width) in enumerate(zip(rule.hf, widths, strict=True))
        }
    return {}


def _upright(hf: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """A tensor of Meta's with the rows of each head in Hugging Face's order: those of q and k are in pairs."""
    return halves_apart(tensor, config.head_dim) if hf in _QKV[:2] else tensor


def _knows(used: Layout, name: str) -> bool:
    templates = (*(own for _, own in used.names), *(rule.own for rule in used.merged), *used.dropped)
    return _match_any(templates, name) is not None


def _match_any(templates: Collection[str], name: str) -> dict[str, str] | None:
    return next((fields for template in templates if (fields := _match(template, name)) is not None), None)


def _match(template: str, name: str) -> dict[str, str] | None:
    """What stands for {n} and {part} in a name; None when the template is not of this name."""
    found = pattern(template).fullmatch(name)
    return None if found is None else found.groupdict()


@cache
def pattern(template: str) -> re.Pattern[str]:
    """The regular expression of a template."""
    text = re.escape(template)
    text = text.replace(r"\{n\}", r"(?P<n>0|[1-9][0-9]*)").replace(r"\{part\}", f"(?P<part>{_PARTS})")
    return re.compile(text)
