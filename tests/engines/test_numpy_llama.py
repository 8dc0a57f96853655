"""The NumPy engine computes what the architecture says: against a plain reference here, and against Hugging Face."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from llmbench import engines
from llmbench.engines import SAMPLING, Batch, Engine, EngineSettings
from llmbench.errors import InputError, ServingError
from llmbench.tokenizer import embedded_path
from llmbench.weights.model import Model, open_model
from tests.together import Together

Ids = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

TOLERANCE = 1e-4

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "vocab_size": 301,
    "max_position_embeddings": 640,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
QWEN2 = LLAMA | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
PLAIN = LLAMA | {"num_key_value_heads": 6, "head_dim": 16, "intermediate_size": 832, "num_hidden_layers": 1}


def write(folder: Path, config: dict[str, Any]) -> Path:
    """A Hugging Face folder with random weights, float32; norms are not 1, and q and k large enough to look about."""
    rng = np.random.default_rng(1)
    hidden, ffn, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes = {"model.embed_tokens": (config["vocab_size"], hidden), "model.norm": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head"] = (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {layer + f"self_attn.{p}_proj": (queries if p == "q" else keys, hidden) for p in "qkv"}
        shapes |= {layer + f"mlp.{p}_proj": (ffn, hidden) for p in ("gate", "up")}
        shapes |= {layer + "self_attn.o_proj": (hidden, queries), layer + "mlp.down_proj": (hidden, ffn)}
        shapes |= {layer + f"{p}_layernorm": (hidden,) for p in ("input", "post_attention")}
    tensors = {
        f"{name}.weight": (rng.standard_normal(shape) / np.sqrt(shape[-1])) * 1.5
        if len(shape) == 2
        else rng.random(shape)
        for name, shape in shapes.items()
    }
    if config["model_type"] == "qwen2":
        names = [name.removesuffix("weight") for name in tensors if name[-13:-11] in ("q_", "k_", "v_")]
        tensors |= {name + "bias": rng.standard_normal(len(tensors[name + "weight"])) for name in names}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    metadata = {"format": "pt"}  # transformers asks for it
    save_file({k: v.astype(np.float32) for k, v in tensors.items()}, folder / "model.safetensors", metadata)
    return folder


class Instead:
    """What a reference computes otherwise than in floats."""

    def linear(self, name: str, x: Float64) -> Float64 | None:
        """float64 [T, out]; None for a linear that is float."""
        return None

    def kept(self, layer: int, keys: Float64, values: Float64) -> tuple[Float64, Float64]:
        """Keys and values [T, kv_heads, head_dim] as they come back from the cache."""
        return keys, values


def reference(model: Model, ids: Ids, rope: type = np.float64, instead: Instead = Instead()) -> Float64:  # noqa: B008
    """float64 [T, vocab]: the architecture written down as plainly as can be; `rope` is the dtype of RoPE's angles."""
    config = model.config
    weight = {name: model.tensor(name).astype(np.float64) for name in model.names()}
    dim, group = config.head_dim, config.num_heads // config.num_kv_heads
    powers = np.arange(0, dim, 2, dtype=rope) / rope(dim)
    angles = np.arange(len(ids), dtype=rope)[:, None] * (rope(1) / rope(config.rope_theta) ** powers)
    angles = angles.astype(np.float64)
    cos, sin = (np.tile(f(angles), 2)[:, None] for f in (np.cos, np.sin))

    def norm(x: Float64, name: str) -> Float64:
        y = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * weight[name + ".weight"]
        return np.asarray(y + weight.get(name + ".bias", 0.0))

    def linear(x: Float64, name: str) -> Float64:
        y = instead.linear(name, x)
        return np.asarray(x @ weight[name + ".weight"].T + weight.get(name + ".bias", 0.0)) if y is None else y

    def rotate(x: Float64) -> Float64:
        return np.asarray(x * cos + np.concatenate([-x[..., dim // 2 :], x[..., : dim // 2]], -1) * sin)

    x = weight["model.embed_tokens.weight"][ids]
    for i in range(config.num_layers):
        layer = f"model.layers.{i}."
        h = norm(x, layer + "input_layernorm")
        q, k, v = (linear(h, layer + f"self_attn.{p}_proj").reshape(len(ids), -1, dim) for p in "qkv")
        k, v = (np.repeat(y, group, axis=1) for y in instead.kept(i, rotate(k), v))
        scores = np.einsum("qhd,khd->hqk", rotate(q), k) / np.sqrt(dim)
        scores += np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + linear(np.einsum("hqk,khd->qhd", shares, v).reshape(len(ids), -1), layer + "self_attn.o_proj")
        h = norm(x, layer + "post_attention_layernorm")
        gate, up = (linear(h, layer + f"mlp.{p}_proj") for p in ("gate", "up"))
        x = x + linear(gate / (1 + np.exp(-gate)) * up, layer + "mlp.down_proj")
    return linear(norm(x, "model.norm"), "model.embed_tokens" if config.tie_embeddings else "lm_head")


def step(engine: Engine, tables: npt.NDArray[np.int32], *parts: tuple[Ids, int]) -> Float32:
    """The logits of a step: of each sequence its new tokens, and how many are in the cache after it."""
    num = len(parts)
    batch = Batch(
        token_ids=np.concatenate([new for new, _ in parts]).astype(np.int32),
        query_lens=np.array([len(new) for new, _ in parts], np.int32),
        context_lens=np.array([context_len for _, context_len in parts], np.int32),
        block_tables=tables[:num],
        wants_token=np.ones(num, np.bool_),
        sampling=np.zeros(num, SAMPLING),
        want_logits=True,
    )
    logits = engine.step(batch).logits
    assert logits is not None
    return logits


def deviation(
    model: Model,
    expected: list[Float64],
    ids: list[Ids],
    num_decoded: int,
    num_ranks: int = 1,
    name: str = "numpy_llama",
) -> float:
    """The largest |difference| of logits from `expected` [T, vocab] of each sequence: each alone and all together,
    whole and in two pieces, then `num_decoded` tokens more.
    """
    longest = max(map(len, ids))
    settings = EngineSettings(num_blocks=len(ids) * (longest // 16 + 1), threads=2)
    engine: Engine
    engine = engines.get(name, model, settings) if num_ranks == 1 else Together(name, model, settings, num_ranks)
    tables = np.random.default_rng(0).permutation(engine.capacity().num_blocks).astype(np.int32).reshape(len(ids), -1)
    worst = 0.0
    for members in [*([i] for i in range(len(ids))), list(range(len(ids)))]:
        starts = [len(ids[i]) - num_decoded for i in members]
        for pieces in (1, 2):
            for piece in range(pieces):
                ends = [-(-start * (piece + 1) // pieces) for start in starts]
                begins = [-(-start * piece // pieces) if start > 1 else 0 for start in starts]
                parts = [(ids[i][b:e], e) for i, b, e in zip(members, begins, ends, strict=True)]
                found = step(engine, tables, *parts)
                worst = max(worst, *(abs(found[j] - expected[i][ends[j] - 1]).max() for j, i in enumerate(members)))
        for k in range(num_decoded):
            found = step(
                engine, tables, *((ids[i][s + k : s + k + 1], s + k + 1) for i, s in zip(members, starts, strict=True))
            )
            worst = max(worst, *(abs(found[j] - expected[i][starts[j] + k]).max() for j, i in enumerate(members)))
    engine.close()
    return worst


def random_ids(model: Model, *lengths: int) -> list[Ids]:
    rng = np.random.default_rng(2)
    return [rng.integers(3, model.config.vocab_size, length) for length in lengths]


@pytest.mark.parametrize("config", [LLAMA, QWEN2, PLAIN], ids=["llama-gqa", "qwen2-tied", "llama"])
def test_logits_are_those_of_the_architecture(tmp_path: Path, config: dict[str, Any]) -> None:
    model = open_model(str(write(tmp_path, config)))
    ids = random_ids(model, 4, 19, 36, 100)
    assert deviation(model, [reference(model, i) for i in ids], ids, num_decoded=3) < TOLERANCE


@pytest.mark.parametrize(
    ("config", "num_ranks"),
    [
        (LLAMA, 2),
        (QWEN2, 2),
        (QWEN2 | {"num_key_value_heads": 3, "intermediate_size": 201}, 3),
        (LLAMA | {"num_key_value_heads": 1}, 2),
        (QWEN2 | {"num_attention_heads": 8, "vocab_size": 9}, 4),  # 2 kv heads; the last rank has no part of the ids
        (PLAIN | {"num_hidden_layers": 2}, 2),
    ],
    ids=["2 kv heads, 301 ids", "bias and tied", "three", "1 kv head", "each kv head twice", "no gqa"],
)
def test_several_ranks_together_give_the_logits_of_the_architecture(
    tmp_path: Path, config: dict[str, Any], num_ranks: int
) -> None:
    model = open_model(str(write(tmp_path, config)))
    ids = random_ids(model, 4, 19, 36, 300)
    assert deviation(model, [reference(model, i) for i in ids], ids, num_decoded=3, num_ranks=num_ranks) < TOLERANCE


def hugging_face(folder: Path, dtype: str = "float32") -> Callable[[list[Ids]], list[Float64]]:
    """Logits [T, vocab] of each sequence as transformers computes them."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, about themselves
        transformers = pytest.importorskip("transformers")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def logits(ids: list[Ids]) -> list[Float64]:
        with torch.inference_mode():
            return [model(torch.from_numpy(i)[None]).logits[0].double().numpy() for i in ids]

    return logits


def oracle_ids(model: Model) -> list[Ids]:
    lengths = (1, 2, 3, 7, 15, 16, 17, 31, 64, 100, 128, 200, 255, 300, 400, 512)
    return random_ids(model, *(length + 3 for length in lengths))


@pytest.mark.oracle
@pytest.mark.parametrize("config", [LLAMA, QWEN2, PLAIN, None], ids=["llama-gqa", "qwen2-tied", "llama", "embedded"])
def test_logits_are_those_of_hugging_face(tmp_path: Path, config: dict[str, Any] | None) -> None:
    folder = embedded_path().parent if config is None else write(tmp_path, config)
    model = open_model("embedded" if config is None else str(folder))
    ids = oracle_ids(model)
    assert deviation(model, hugging_face(folder)(ids), ids, num_decoded=3) < TOLERANCE


def test_very_long_and_very_short_sequences_decode_together(tmp_path: Path) -> None:
    model = open_model(str(write(tmp_path, PLAIN)))
    ids = random_ids(model, 640, 2, 500, 3, 620, 33)
    assert deviation(model, [reference(model, i) for i in ids], ids, num_decoded=1) < TOLERANCE


def test_a_gate_that_overflows_the_exponential_gives_no_warning(tmp_path: Path) -> None:
    config = PLAIN | {"vocab_size": 11}
    path = write(tmp_path, config) / "model.safetensors"
    content = bytearray(path.read_bytes())
    model = open_model(str(tmp_path))
    gates = model.tensor("model.layers.0.mlp.gate_proj.weight")
    start = content.find(gates.tobytes())
    content[start : start + gates.nbytes] = (gates * 1000).tobytes()
    path.write_bytes(content)
    ids = random_ids(model, 8)
    with np.errstate(over="ignore"):
        expected = [reference(model, i) for i in ids]
    scale = float(abs(expected[0]).max())
    assert deviation(model, expected, ids, num_decoded=1) < 1e-4 * max(1.0, scale)


def spoilt(model: Model) -> Model:
    """The same, but that the embedding of token 7 has a NaN, also in its file."""
    (path,) = Path(model.name).glob("*.safetensors")
    content = bytearray(path.read_bytes())
    start = content.find(model.tensor("model.embed_tokens.weight")[7].tobytes())
    content[start : start + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(content)
    return open_model(model.name)


def reports_and_forgets(engine: Engine) -> None:
    """Asserts that an engine with spoilt weights says so, and that what it left in its blocks harms nobody."""
    tables = np.array([[0, 1]], np.int32)
    good = np.array([8, 9, 10])
    before = step(engine, tables, (good, 3))
    with pytest.raises(ServingError, match="row 0 have the maximum nan"):
        step(engine, tables, (np.array([7, 7, 7, 7, 7]), 5))
    assert (step(engine, tables, (good, 3)) == before).all()
    assert np.isfinite(step(engine, tables, (good[:1], 4))).all()
    engine.close()


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_weights_that_are_not_numbers_are_reported_and_leave_nothing_behind(tmp_path: Path, num_ranks: int) -> None:
    model = spoilt(open_model(str(write(tmp_path, PLAIN))))
    settings = EngineSettings(num_blocks=4, threads=1)
    engine: Engine = engines.get("numpy_llama", model, settings)
    if num_ranks > 1:
        engine = Together("numpy_llama", model, settings, num_ranks)
    reports_and_forgets(engine)


def test_a_token_outside_the_vocabulary_is_an_error() -> None:
    engine = engines.get("numpy_llama", open_model("random:tiny"), EngineSettings(num_blocks=4, threads=1))
    for wrong in (-1, open_model("random:tiny").config.vocab_size):
        with pytest.raises(ServingError, match="outside the vocabulary"):
            step(engine, np.zeros((1, 1), np.int32), (np.array([wrong]), 1))


def test_the_number_of_blocks_is_chosen_for_the_longest_sequences() -> None:
    model = open_model("random:tiny")
    engine = engines.get("numpy_llama", model, EngineSettings(max_batch=3, block_size=32, threads=1))
    assert engine.capacity().num_blocks == 3 * 2048 // 32
    assert engine.capacity().max_model_len == 2048


def test_a_model_that_does_not_fit_is_refused_before_it_is_read() -> None:
    with pytest.raises(InputError, match=r"its weights take 26\d\d\.\d GB in float32, .* random:<preset>,layers=N"):
        engines.get("numpy_llama", open_model("random:llama2-13b,layers=2080"), EngineSettings())


@pytest.mark.parametrize("config", [LLAMA, QWEN2], ids=["llama-gqa", "qwen2-tied"])
def test_in_float64_the_logits_are_those_of_the_architecture_to_the_last_digits(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    model = open_model(str(write(tmp_path, config)))
    (ids,) = random_ids(model, 100)
    engine = engines.get("numpy_llama", model, EngineSettings(num_blocks=7, threads=2, dtype="float64"))
    assert engine.dtype == "float64"
    tables = np.arange(7, dtype=np.int32)[None]
    expected = reference(model, ids, np.float32)
    for start, end in ((0, 40), (40, 99), (99, 100)):
        found = step(engine, tables, (ids[start:end], end))[0]
        assert found.dtype == np.float64
        assert abs(found - expected[end - 1]).max() < 1e-12
    engine.close()


@pytest.mark.parametrize(("dtype", "epsilon"), [("float16", 2.0**-10), ("bfloat16", 2.0**-7)])
def test_in_16_bits_what_is_kept_are_numbers_of_16_bits(tmp_path: Path, dtype: str, epsilon: float) -> None:
    model = open_model(str(write(tmp_path, QWEN2)))
    (ids,) = random_ids(model, 50)
    engine = engines.get("numpy_llama", model, EngineSettings(num_blocks=4, threads=1, dtype=dtype))
    assert engine.dtype == dtype
    shown: dict[str, Float32] = {}
    engines.watchable(engine).watch(lambda part, tokens, x: shown.update({part: x.copy()}))
    found = step(engine, np.arange(4, dtype=np.int32)[None], (ids, 50))[0]
    assert len(shown) == 1 + 2 * 3 + 2
    for x in shown.values():
        if dtype == "float16":
            assert (x == x.astype(np.float16)).all()
        else:
            assert not (np.ascontiguousarray(x).view(np.uint32) & 0xFFFF).any()
    error = abs(found - reference(model, ids)[-1]).max()
    assert epsilon / 10 < error < 30 * epsilon


def test_a_dtype_that_an_engine_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match="engine numpy_llama: dtype 'int8': on one rank it has float32, float64, "):
        engines.get("numpy_llama", open_model("random:tiny"), EngineSettings(dtype="int8"))
    with pytest.raises(InputError, match="engine stub: dtype 'float16': it has its own only"):
        engines.get("stub", open_model("random:tiny"), EngineSettings(dtype="float16"))
