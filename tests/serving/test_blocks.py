import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.serving.blocks import BlockPool

TOKENS = list(range(100, 200))


def test_blocks_are_handed_out_in_the_order_in_which_they_became_free() -> None:
    pool = BlockPool(6, 4)
    first, second = pool.allocate(2), pool.allocate(2)
    assert (first, second) == ([0, 1], [2, 3])
    pool.release(first)
    assert pool.allocate(4) == [4, 5, 1, 0]


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (512, 32), (513, 33)])
def test_the_blocks_for_tokens_are_rounded_up(num_tokens: int, num_blocks: int) -> None:
    assert BlockPool(64, 16).needed(num_tokens) == num_blocks


def test_free_and_held_blocks_are_all_blocks() -> None:
    pool = BlockPool(8, 4)
    held = pool.allocate(3)
    assert pool.num_free == 5
    pool.check(held)
    pool.release(held)
    pool.check([])


def test_the_pool_notices_a_block_that_is_lost_or_in_two_hands() -> None:
    pool = BlockPool(8, 4)
    held = pool.allocate(3)
    for wrong in (held[:2], [*held, held[0]], [*held, 7], []):
        with pytest.raises(AssertionError, match="KV blocks were lost or shared by mistake"):
            pool.check(wrong)


def test_a_block_cannot_be_released_twice_nor_taken_when_none_is_free() -> None:
    pool = BlockPool(2, 4)
    held = pool.allocate(2)
    with pytest.raises(AssertionError, match="more blocks asked than are free"):
        pool.allocate(1)
    pool.release(held)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(held)


def test_without_a_prefix_cache_nothing_is_shared() -> None:
    pool = BlockPool(8, 4)
    held = pool.allocate(2)
    pool.remember(TOKENS[:8], held)
    assert pool.share(TOKENS[:20]) == []


def test_the_longest_known_prefix_of_full_blocks_is_shared() -> None:
    pool = BlockPool(8, 4, prefix_cache=True)
    held = pool.allocate(3)
    pool.remember(TOKENS[:12], held)
    assert pool.share([*TOKENS[:10], 7, 7, 7]) == held[:2]
    assert pool.share([7, *TOKENS[:11]]) == []
    pool.check([*held, *held[:2]])


def test_the_last_token_is_computed_even_when_all_of_them_are_known() -> None:
    pool = BlockPool(8, 4, prefix_cache=True)
    held = pool.allocate(2)
    pool.remember(TOKENS[:8], held)
    assert pool.share(TOKENS[:8]) == held[:1]
    assert pool.share(TOKENS[:9]) == held


def test_a_prefix_stays_known_after_release_until_its_block_is_handed_out_again() -> None:
    pool = BlockPool(4, 4, prefix_cache=True)
    held = pool.allocate(2)
    pool.remember(TOKENS[:8], held)
    pool.release(held)
    pool.check([])
    assert pool.share(TOKENS[:12]) == held
    pool.release(held)
    taken = pool.allocate(3)  # the two others and the end of the prefix, before its start
    assert held[0] not in taken
    assert pool.share(TOKENS[:12]) == held[:1]


def test_two_may_hold_one_block_and_it_is_free_when_both_let_go() -> None:
    pool = BlockPool(4, 4, prefix_cache=True)
    held = pool.allocate(1)
    pool.remember(TOKENS[:4], held)
    again = pool.share(TOKENS[:8])
    pool.release(held)
    assert pool.num_free == 3
    pool.check(again)
    pool.release(again)
    assert pool.num_free == 4


@given(data=st.data(), num_blocks=st.integers(1, 12), prefix_cache=st.booleans())
def test_whatever_is_taken_and_given_back_nothing_is_lost(
    data: st.DataObject, num_blocks: int, prefix_cache: bool
) -> None:
    pool = BlockPool(num_blocks, 2, prefix_cache)
    held: list[list[int]] = []
    prompts = st.lists(st.integers(0, 2), min_size=1, max_size=8)
    for _ in range(30):
        at = data.draw(st.integers(-len(held), len(held)))
        if at < 0:
            pool.release(held.pop(at))
        else:
            tokens = data.draw(prompts)
            blocks = pool.share(tokens)
            missing = pool.needed(len(tokens)) - len(blocks)
            if missing > pool.num_free:
                pool.release(blocks)
                continue
            blocks += pool.allocate(missing)
            pool.remember(tokens, blocks)
            held.append(blocks)
        pool.check([block for blocks in held for block in blocks])
        assert pool.num_free == num_blocks - len({block for blocks in held for block in blocks})
