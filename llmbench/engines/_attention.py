"""Attention over the paged KV cache in NumPy: decoding sequences together by length, prompts one by one in pieces."""

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.engines._pages import Pages
from llmbench.engines._scratch import Scratch

Int32 = npt.NDArray[np.int32]
Intp = npt.NDArray[np.intp]
Float32 = npt.NDArray[np.float32]

_SCORES_ELEMENTS = 1 << 19  # 2 MiB of scores at once, so that softmax works on what the CPU's cache still holds
_GATHER_ELEMENTS = 1 << 20  # 4 MiB of gathered keys and values at once
_CHUNK = 64  # queries of a prompt at once, at most
_PADDING = 0.25  # how much shorter than the longest a sequence may be, to be padded to it


class DecodeGroup(msgspec.Struct, frozen=True):
    """b sequences of one new token each. `rows` intp [b] or a slice: where their tokens are in the step; `tables` intp
    [b, W]; `mask` float32 [b, 1, 1, W * block_size], -inf behind the end of a sequence.
    """

    rows: Intp | slice
    tables: Intp
    mask: Float32


class Prompt(msgspec.Struct, frozen=True):
    """A sequence with several new tokens: `start`..`stop` in the step, `context_len` in the cache after it, and its
    blocks intp [W]. `fresh` says that what the step computes is all there is of it: nothing needs to be read back.
    """

    start: int
    stop: int
    context_len: int
    table: Intp
    fresh: bool


class Heads(msgspec.Struct, frozen=True):
    """How many of each, and their size."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads


def group_decodes(
    rows: Intp, context_lens: Int32, tables: Int32, block_size: int, block_elements: int
) -> list[DecodeGroup]:
    """Groups of similar length, so that little is padding; a group's gathered blocks stay within a fixed size."""
    groups = []
    blocks = -(-context_lens // block_size)
    order = np.argsort(-context_lens, kind="stable")
    while len(order):
        width = int(blocks[order[0]])
        similar = int(np.count_nonzero(blocks[order] >= width - max(2, int(width * _PADDING))))
        members = order[: max(1, min(similar, _GATHER_ELEMENTS // (width * block_elements)))]
        groups.append(_decode_group(rows[members], context_lens[members], tables[members, :width], block_size))
        order = order[len(members) :]
    return groups


def _decode_group(rows: Intp, context_lens: Int32, tables: Int32, block_size: int) -> DecodeGroup:
    length = tables.shape[1] * block_size
    behind = np.arange(length) >= context_lens[:, None]
    mask = np.where(behind, np.float32(-np.inf), np.float32(0))[:, None, None, :]
    unused = behind[:, ::block_size]  # what lies in the table behind the last block is undefined
    return DecodeGroup(rows=rows, tables=np.where(unused, 0, tables).astype(np.intp), mask=mask)


def decode(group: DecodeGroup, q: Float32, cache: Pages, heads: Heads, scratch: Scratch, out: Float32) -> None:
    """Attention of one token per sequence: q and out float32 [T, heads, dim]."""
    num, width = group.tables.shape
    length, kv, dim = width * cache.block_size, heads.num_kv_heads, heads.head_dim
    keys_values = (
        cache.read(group.tables, scratch, "gathered").reshape(num, length, 2, kv, dim).transpose(2, 0, 3, 1, 4)
    )
    scores = scratch.get("scores", num, kv, heads.group, length)
    np.matmul(q[group.rows].reshape(num, kv, heads.group, dim), keys_values[0].swapaxes(2, 3), out=scores)
    scores += group.mask
    total = _exponentiate(scores)
    answer = np.matmul(scores, keys_values[1], out=scratch.get("answer", num, kv, heads.group, dim))
    answer /= total
    out[group.rows] = answer.reshape(num, heads.num_heads, dim)


def chunks(prompt: Prompt, heads: Heads) -> list[slice]:
    """The new tokens of a prompt in pieces of few enough for their scores, those that see most first."""
    size = max(32, min(_CHUNK, _SCORES_ELEMENTS // (heads.num_heads * prompt.context_len)))
    starts = range(prompt.start, prompt.stop, size)
    return [slice(start, min(start + size, prompt.stop)) for start in reversed(starts)]


def keys_values(prompt: Prompt, qkv: Float32, cache: Pages, heads: Heads, scratch: Scratch) -> Float32:
    """float32 [2, kv, context_len, dim] of a sequence: from the step itself when it has all, else from the cache."""
    if prompt.fresh:
        found = qkv[prompt.start : prompt.stop, heads.num_heads :]
    else:
        found = cache.read(prompt.table, scratch, "prompt")
    shape = (-1, 2, heads.num_kv_heads, heads.head_dim)
    split: Float32 = found.reshape(shape)[: prompt.context_len].transpose(1, 2, 0, 3)
    return split


def prefill(
    prompt: Prompt, rows: slice, q: Float32, keys_values: Float32, heads: Heads, scratch: Scratch, out: Float32
) -> None:
    """Causal attention of one chunk of a prompt: q and out float32 [T, heads, dim]."""
    kv, group, dim, num = heads.num_kv_heads, heads.group, heads.head_dim, rows.stop - rows.start
    visible = prompt.context_len - (prompt.stop - rows.stop)
    keys, values = keys_values[:, :, :visible]
    queries = scratch.get("queries", kv, group, num, dim)
    queries[:] = q[rows].reshape(num, kv, group, dim).transpose(1, 2, 0, 3)
    scores = scratch.get("scores", kv, group * num, visible)
    np.matmul(queries.reshape(kv, group * num, dim), keys.swapaxes(1, 2), out=scores)
    own = scores.reshape(kv, group, num, visible)[..., visible - num :]
    np.copyto(own, -np.inf, where=np.triu(np.ones((num, num), np.bool_), 1))
    total = _exponentiate(scores)
    answer = np.matmul(scores, values, out=scratch.get("answer", kv, group * num, dim))
    answer /= total
    out[rows].reshape(num, kv, group, dim)[:] = answer.reshape(kv, group, num, dim).transpose(2, 0, 1, 3)


def _exponentiate(scores: Float32) -> Float32:
    """exp(scores - max) in place, and its sum [..., 1]; dividing is left to the smaller product with the values."""
    scores -= np.maximum.reduce(scores, axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    total: Float32 = np.add.reduce(scores, axis=-1, keepdims=True)
    return total
