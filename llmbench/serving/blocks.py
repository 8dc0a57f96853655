"""The pool of KV blocks: who holds which, and which hold a prefix that may be used again; no tensors."""

from collections import OrderedDict
from collections.abc import Sequence


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens, handed out in the order in which they became free.

    With `prefix_cache` a full block keeps its content, and can be found by it, until it is handed out again; several
    sequences may then hold one block.
    """

    def __init__(self, num_blocks: int, block_size: int, prefix_cache: bool = False) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self._num_holders = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._by_prefix: dict[int, int] = {}
        self._prefix_of: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def needed(self, num_tokens: int) -> int:
        """How many blocks hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks; the caller has looked at `num_free`."""
        assert count <= len(self._free), "more blocks asked than are free"
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._num_holders[block] = 1
            self._forget(block)
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """Give blocks back; the end of a prefix is handed out again before its start."""
        for block in reversed(blocks):
            self._num_holders[block] -= 1
            assert self._num_holders[block] >= 0, "a KV block was released twice"
            if not self._num_holders[block]:
                self._free[block] = None

    def share(self, token_ids: Sequence[int]) -> list[int]:
        """Take the blocks that hold the longest known prefix of these tokens; none without a prefix cache.

        The last token is never among them: something must be computed to get a next one.
        """
        blocks = []
        for prefix in self._prefixes(token_ids[:-1]):
            block = self._by_prefix.get(prefix)
            if block is None:
                break
            blocks.append(block)
        for block in blocks:
            self._num_holders[block] += 1
            self._free.pop(block, None)
        return blocks

    def remember(self, token_ids: Sequence[int], blocks: Sequence[int]) -> None:
        """These full blocks now hold these tokens; a block that holds the same as another is left alone."""
        for prefix, block in zip(self._prefixes(token_ids), blocks, strict=False):
            if prefix not in self._by_prefix and block not in self._prefix_of:
                self._by_prefix[prefix] = block
                self._prefix_of[block] = prefix

    def forget(self) -> None:
        """No block holds a prefix any more: what was in them is lost."""
        self._by_prefix.clear()
        self._prefix_of.clear()

    def check(self, held: Sequence[int]) -> None:
        """Assert that every block is either free or held by as many as the pool believes."""
        holders = [0] * self.num_blocks
        for block in held:
            holders[block] += 1
        assert holders == self._num_holders, "KV blocks were lost or shared by mistake"
        assert all((block in self._free) == (count == 0) for block, count in enumerate(holders)), "free and held blocks"

    def _prefixes(self, token_ids: Sequence[int]) -> list[int]:
        """A hash of everything up to the end of each full block; Python's tuple hash of integers is the same anywhere.

        64 bits: with a million blocks the chance that any two prefixes share a hash is 3e-8.
        """
        if not self.prefix_cache:
            return []
        prefixes, before = [], 0
        for start in range(0, len(token_ids) - self.block_size + 1, self.block_size):
            before = hash((before, *token_ids[start : start + self.block_size]))
            prefixes.append(before)
        return prefixes

    def _forget(self, block: int) -> None:
        prefix = self._prefix_of.pop(block, None)
        if prefix is not None:
            del self._by_prefix[prefix]
