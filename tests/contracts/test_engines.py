"""What every engine promises; a new file in the room is tested the moment it exists."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from llmbench import engines, plugins
from llmbench.engines import SAMPLING, Batch, Engine, EngineSettings, StepResult
from llmbench.errors import InputError, NotInstalled, ServingError
from llmbench.weights.model import Model, open_model
from tests.together import Together
from tests.weights import eight_bits

NAMES = plugins.names("engines")
MODEL = open_model("random:tiny")
SETTINGS = EngineSettings(num_blocks=64, block_size=8, max_batch=16, threads=1)
TOLERANCES = {"float": 1e-4, "int8": 0.1, "int8 and cache": 0.1}
"""Of float32 logits, whatever else is in the step, by what the model is of. Where activations are int8, a difference in
the last bit may make another number of one."""
RNG_SEED = 5

Ids = npt.NDArray[np.int32]
Same = Callable[[npt.NDArray[np.float32], npt.NDArray[np.float32]], None]


class Part(NamedTuple):
    """What one sequence has in a step: new tokens, how many are in the cache after it, its blocks."""

    new: Ids
    context_len: int
    blocks: Ids
    wants_token: bool = True
    temperature: float = 0.0
    seed: int = 0


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Beside MODEL such with every kind of linear and norms with biases, without and with an int8 cache."""
    kinds = eight_bits.every_linear(MODEL.config)
    kinds |= {name: "W8A16" for name in kinds if name.endswith("v_proj")}
    del kinds["model.layers.1.mlp.down_proj"]
    folder = tmp_path_factory.mktemp("models")
    plain, with_cache = (
        open_model(str(eight_bits.write(folder / str(kv), MODEL.name, kinds, kv=kv, norm_bias=True)))
        for kv in (False, True)
    )
    return {"float": MODEL, "int8": plain, "int8 and cache": with_cache}


@pytest.fixture(
    scope="module",
    params=[(name, ranks, numbers) for name in NAMES for numbers in TOLERANCES for ranks in (1, 2)],
    ids="{0[0]}-{0[1]}-{0[2]}".format,
)
def engine(request: pytest.FixtureRequest, models: dict[str, Model]) -> Iterator[Engine]:
    """Every engine, also as two ranks where it can be had so, and with quantised models."""
    name, num_ranks, numbers = request.param
    model = models[numbers]
    if num_ranks > 1 and not hasattr(plugins.load("engines", name), "sharded"):
        pytest.skip(f"engine {name} runs on one rank")
    try:
        made = engines.get(name, model, SETTINGS) if num_ranks == 1 else Together(name, model, SETTINGS, num_ranks)
    except NotInstalled as error:
        pytest.skip(str(error))
    except InputError as error:
        if numbers == "float" or " has no " not in str(error):  # an int8 cache, norms with biases
            raise
        pytest.skip(str(error))
    yield made
    made.close()


@pytest.fixture
def same(request: pytest.FixtureRequest) -> Same:
    """Asserts that logits are the same within what the numbers of the engine's model allow."""
    tolerance = TOLERANCES[request.node.callspec.params["engine"][2]]

    def check(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> None:
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)

    return check


def batch(*parts: Part) -> Batch:
    """A step, its arrays read-only as those in shared memory may be."""
    width = max(len(part.blocks) for part in parts)
    tables = np.full((len(parts), width), 10**6, np.int32)  # behind the last block the table is undefined
    sampling = np.zeros(len(parts), SAMPLING)
    sampling["top_p"] = 1
    for i, part in enumerate(parts):
        tables[i, : len(part.blocks)] = part.blocks
        sampling[i] = (part.temperature, 1.0, 0, part.context_len, part.seed)
    arrays = {
        "token_ids": np.concatenate([part.new for part in parts]).astype(np.int32),
        "query_lens": np.array([len(part.new) for part in parts], np.int32),
        "context_lens": np.array([part.context_len for part in parts], np.int32),
        "block_tables": tables,
        "wants_token": np.array([part.wants_token for part in parts]),
        "sampling": sampling,
    }
    for array in arrays.values():
        array.flags.writeable = False
    return Batch(**arrays, want_logits=True)


def rows(result: StepResult) -> npt.NDArray[np.float32]:
    assert result.logits is not None
    return result.logits


def prompts(*lengths: int) -> list[Ids]:
    rng = np.random.default_rng(RNG_SEED)
    return [rng.integers(3, MODEL.config.vocab_size, length).astype(np.int32) for length in lengths]


def blocks(length: int, order: int = 0, first: int = 0) -> Ids:
    """The blocks of a sequence, in a shuffled order, from block `first` on."""
    num = -(-length // SETTINGS.block_size)
    return first + np.random.default_rng(order).permutation(num).astype(np.int32)


def test_it_says_what_it_holds(engine: Engine) -> None:
    capacity = engine.capacity()
    assert (capacity.num_blocks, capacity.block_size) == (64, 8)
    assert capacity.max_model_len == 64 * 8


def test_one_sequence_too_many_tokens_is_an_error(engine: Engine) -> None:
    length = engine.capacity().max_model_len + 1
    with pytest.raises(ServingError, match=str(length)):
        engine.step(batch(Part(prompts(1)[0], length, blocks(length))))


@pytest.mark.parametrize("piece", [1, 5, 16])
def test_a_prompt_in_pieces_gives_what_it_gives_whole(engine: Engine, same: Same, piece: int) -> None:
    prompt, table = prompts(37)[0], blocks(37)
    whole = engine.step(batch(Part(prompt, 37, table)))
    for start in range(0, 37, piece):
        end = min(37, start + piece)
        last = engine.step(batch(Part(prompt[start:end], end, table, wants_token=end == 37)))
        assert rows(last).shape == (int(end == 37), MODEL.config.vocab_size)
    assert last.token_ids.tolist() == whole.token_ids.tolist()
    same(rows(last), rows(whole))


def test_decoding_gives_what_a_prompt_with_these_tokens_gives(engine: Engine, same: Same) -> None:
    prompt, table = prompts(30)[0], blocks(30)
    expected = [rows(engine.step(batch(Part(prompt[:n], n, table)))) for n in range(20, 31)]
    engine.step(batch(Part(prompt[:20], 20, table)))
    for n in range(21, 31):
        same(rows(engine.step(batch(Part(prompt[n - 1 : n], n, table)))), expected[n - 20])


def test_the_logits_of_a_step_are_left_alone_by_later_ones(engine: Engine) -> None:
    prompt, table = prompts(12)[0], blocks(12)
    found = rows(engine.step(batch(Part(prompt[:9], 9, table))))
    kept = found.copy()
    for n in range(10, 13):
        engine.step(batch(Part(prompt[n - 1 : n], n, table)))
    np.testing.assert_array_equal(found, kept)


def test_a_batch_gives_what_its_sequences_give_alone(engine: Engine, same: Same) -> None:
    lengths = (1, 2, 8, 9, 40, 63)
    tables = [blocks(length + 1, order=i, first=9 * i) for i, length in enumerate(lengths)]
    asked = prompts(*(length + 1 for length in lengths))
    starts = [Part(p[:-1], len(p) - 1, t) for p, t in zip(asked, tables, strict=True)]
    nexts = [Part(p[-1:], len(p), t) for p, t in zip(asked, tables, strict=True)]
    together = [engine.step(batch(*starts)), engine.step(batch(*nexts))]
    for i, parts in enumerate(zip(starts, nexts, strict=True)):
        for part, result in zip(parts, together, strict=True):
            alone = engine.step(batch(part))
            assert alone.token_ids[0] == result.token_ids[i]
            same(rows(alone)[0], rows(result)[i])


def test_prompts_pieces_and_decodes_may_share_a_step(engine: Engine, same: Same) -> None:
    long, short, fresh = prompts(50, 20, 11)
    tables = [blocks(50), blocks(20, first=20), blocks(11, first=40)]
    before = batch(Part(long[:30], 30, tables[0], wants_token=False), Part(short[:19], 19, tables[1]))
    parts = [
        Part(long[30:45], 45, tables[0], wants_token=False),
        Part(short[19:], 20, tables[1]),
        Part(fresh, 11, tables[2]),
    ]
    engine.step(before)
    mixed = engine.step(batch(*parts))
    engine.step(before)
    alone = [engine.step(batch(part)) for part in parts]
    assert mixed.token_ids.tolist() == [result.token_ids[0] for result in alone]
    assert mixed.token_ids[0] == -1
    same(rows(mixed), np.concatenate([rows(result) for result in alone]))


def test_which_blocks_a_sequence_has_makes_no_difference(engine: Engine, same: Same) -> None:
    prompt = prompts(60)[0]
    results = [
        rows(engine.step(batch(Part(prompt, 60, blocks(60, order, first))))) for order, first in [(1, 0), (2, 50)]
    ]
    same(*results)


def test_other_sequences_blocks_are_left_alone(engine: Engine, same: Same) -> None:
    one, other = prompts(20, 20)
    first = Part(one[:19], 19, blocks(20))
    expected = [engine.step(batch(part)) for part in (first, Part(one[19:], 20, blocks(20)))][1]
    engine.step(batch(first))
    engine.step(batch(Part(other, 20, blocks(20, first=3))))
    same(rows(engine.step(batch(Part(one[19:], 20, blocks(20))))), rows(expected))


def test_a_sampled_token_depends_on_the_seed_and_not_on_the_batch(engine: Engine) -> None:
    asked = prompts(*range(5, 13))
    parts = [Part(p, len(p), blocks(len(p), first=3 * i), temperature=1.0, seed=i) for i, p in enumerate(asked)]
    together = engine.step(batch(*parts)).token_ids.tolist()
    assert together == [engine.step(batch(part)).token_ids[0] for part in parts]
    others = [part._replace(seed=part.seed + 100) for part in parts]
    assert together != engine.step(batch(*others)).token_ids.tolist()


def test_the_chosen_logit_is_the_raw_one_of_the_token(engine: Engine) -> None:
    asked = prompts(6, 9)
    result = engine.step(
        batch(*(Part(p, len(p), blocks(len(p), first=5 * i), True, 1.5, i) for i, p in enumerate(asked)))
    )
    assert result.chosen_logits.tolist() == rows(result)[[0, 1], result.token_ids].tolist()
    assert [str(a.dtype) for a in (result.token_ids, result.chosen_logits)] == ["int32", "float32"]


def test_logits_come_only_when_asked_for_and_stay_as_they_are(engine: Engine) -> None:
    one, other = (batch(Part(p, 5, blocks(5))) for p in prompts(5, 5))
    kept = engine.step(one)
    copy = rows(kept).copy()
    engine.step(other)
    assert rows(kept).tolist() == copy.tolist()
    quiet = Batch(**{name: getattr(one, name) for name in one.__struct_fields__ if name != "want_logits"})
    assert engine.step(quiet).logits is None


def test_a_prompt_that_is_scored_has_the_logits_of_each_of_its_tokens(engine: Engine, same: Same) -> None:
    scored, other, decoded = prompts(20, 9, 6)
    parts = [
        Part(other, 9, blocks(9, first=10)),
        Part(scored[:14], 14, blocks(20), wants_token=False),
        Part(decoded[-1:], 6, blocks(6, first=20)),
    ]
    plain = engine.step(batch(*parts))
    step = msgspec.structs.replace(batch(*parts), score_prompts=np.array([False, True, True]))
    result = engine.step(step)
    assert result.token_ids.tolist() == plain.token_ids.tolist()
    same(rows(result), rows(plain))
    assert [found.shape for found in result.prompt_logits] == [(n, MODEL.config.vocab_size) for n in (14, 1)]
    for i, row in enumerate(result.prompt_logits[0]):
        alone = engine.step(batch(Part(scored[: i + 1], i + 1, blocks(20, first=30))))
        same(row, rows(alone)[0])


def test_closing_twice_is_fine(engine: Engine) -> None:
    another = engines.get(engine.name, MODEL, SETTINGS)
    another.close()
    another.close()


def test_an_unknown_engine_is_refused_with_a_near_match() -> None:
    with pytest.raises(InputError, match="Did you mean 'numpy_llama'"):
        engines.get("numpy_lama", MODEL, SETTINGS)
