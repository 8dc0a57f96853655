"""The pool of KV blocks: who holds which; no tensors."""

from collections import deque


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens, handed out first in, first out."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = deque(range(num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def needed(self, num_tokens: int) -> int:
        """How many blocks hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks; the caller has looked at `num_free`."""
        assert count <= len(self._free), "more blocks asked than are free"
        return [self._free.popleft() for _ in range(count)]

    def release(self, blocks: list[int]) -> None:
        """Give blocks back."""
        self._free.extend(blocks)

    def check(self, held: list[int]) -> None:
        """Assert that free and held blocks together are all blocks, each once."""
        assert sorted([*self._free, *held]) == list(range(self.num_blocks)), "KV blocks were lost or shared"
