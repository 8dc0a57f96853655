"""`acc bisect`: the layer that was changed is the one that is named, and nothing is named where nothing was."""

from pathlib import Path

import numpy as np
import pytest

from llmbench.accuracy import bisect as bisecting
from llmbench.accuracy import lane, profiles
from llmbench.accuracy.bisect import Found, Given, Place, bisect, first_bad, prompted, relative
from llmbench.accuracy.compare import Options
from llmbench.accuracy.lane import Lane
from llmbench.accuracy.measure import FIGURES
from llmbench.errors import InputError
from llmbench.logits.store import Store, Writer
from llmbench.weights.model import Model, open_model
from tests.accuracy.models import PROMPTS, captured, embedded, perturbed
from tests.conftest import need
from tests.engines.test_numpy_llama import LLAMA, QWEN2, write

FP32 = profiles.get("fp32")
ENGINE = "numpy_llama"


def look(base: Model, new: Model, num_new: int = 5, engines: tuple[str, str] = (ENGINE, ENGINE)) -> Found:
    """Both models on a prompt and the beginning of the base's answer."""
    ids = [token % base.config.vocab_size for token in PROMPTS[0]]
    sides = Given(base, engines[0]), Given(new, engines[1])
    return bisect(*sides, prompted(sides[0], ids, num_new, threads=1), FP32, threads=1)


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.0.input_layernorm.weight", "layers.0.attention"),
        ("model.layers.0.self_attn.q_proj.weight", "layers.0.attention"),
        ("model.layers.1.self_attn.k_proj.weight", "layers.1.attention"),
        ("model.layers.2.self_attn.v_proj.weight", "layers.2.attention"),
        ("model.layers.4.self_attn.o_proj.weight", "layers.4.attention"),
        ("model.layers.0.mlp.gate_proj.weight", "layers.0.mlp"),
        ("model.layers.3.mlp.up_proj.weight", "layers.3.mlp"),
        ("model.layers.4.mlp.down_proj.weight", "layers.4.mlp"),
        ("model.layers.2.post_attention_layernorm.weight", "layers.2.mlp"),
        ("model.norm.weight", "norm"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_the_part_whose_weights_are_off_by_a_thousandth_is_named(tmp_path: Path, tensor: str, part: str) -> None:
    found = look(open_model("embedded"), perturbed(tmp_path / "copy", embedded(), tensor))
    assert (found.verdict, found.part) == ("part", part)
    others = [other for other in found.parts if other.name != part]
    assert not any(other.differs for other in others), "an error counts where it is made"
    (own,) = (each for each in found.parts if each.name == part)
    assert own.error > 3 * own.limit
    assert [each.name for each in found.parts][:3] == ["embedding", "layers.0.attention", "layers.0.mlp"]
    assert len(found.parts) == 1 + 2 * 5 + 2


@pytest.mark.parametrize("config", [LLAMA, QWEN2], ids=["gqa", "qwen2"])
def test_heads_in_groups_biases_and_tied_embeddings_are_no_obstacle(tmp_path: Path, config: dict[str, object]) -> None:
    source = write(tmp_path / "model", config)
    base = open_model(str(source))
    tensors = {"model.layers.1.self_attn.k_proj.weight": "layers.1.attention"}
    if base.config.attention_bias:
        tensors["model.layers.2.self_attn.q_proj.bias"] = "layers.2.attention"
        tensors["model.embed_tokens.weight"] = "embedding"
    for i, (tensor, part) in enumerate(tensors.items()):
        found = look(base, perturbed(tmp_path / f"copy-{i}", source, tensor))
        assert (found.verdict, found.part) == ("part", part)
        differing = [each.name for each in found.parts if each.differs]
        assert differing == (["embedding", "lm_head"] if part == "embedding" else [part])


def test_nothing_is_named_in_a_model_and_itself() -> None:
    found = look(open_model("random:tiny"), open_model("random:tiny"))
    assert (found.verdict, found.part, found.kld) == ("nothing", None, 0)
    assert all(part.error == 0 for part in found.parts)
    assert any(part.noise > 0 for part in found.parts), "other steps have other last bits"
    assert all(part.limit < 1e-5 for part in found.parts)


@pytest.mark.mindspore
@pytest.mark.timeout(600)
def test_another_engine_differs_in_nothing_and_a_thousandth_in_it_is_found(tmp_path: Path) -> None:
    need("mindspore")
    source = write(tmp_path / "model", QWEN2 | {"num_hidden_layers": 2})
    base = open_model(str(source))
    found = look(base, base, 1, engines=(ENGINE, "mindspore_llama"))
    assert (found.verdict, found.part) == ("nothing", None), found.parts
    changed = perturbed(tmp_path / "copy", source, "model.layers.1.mlp.up_proj.weight")
    found = look(base, changed, 0, engines=(ENGINE, "mindspore_llama"))
    assert (found.verdict, found.part) == ("part", "layers.1.mlp")
    assert [part.name for part in found.parts if part.differs] == ["layers.1.mlp"]


def test_a_value_that_is_no_number_is_found_where_it_is_made(tmp_path: Path) -> None:
    source = write(tmp_path / "model", LLAMA)
    changed = perturbed(tmp_path / "copy", source, "model.layers.1.mlp.up_proj.weight", by=float("nan"))
    found = look(open_model(str(source)), changed)
    assert (found.verdict, found.part) == ("part", "layers.1.mlp")
    assert [part.name for part in found.parts if part.differs] == ["layers.1.mlp"]


# -- two captures ---------------------------------------------------------------------------------------------------


def test_the_first_bad_request_and_step_of_two_captures_are_looked_at(tmp_path: Path) -> None:
    base = open_model("embedded")
    new = perturbed(tmp_path / "copy", embedded(), "model.layers.3.mlp.down_proj.weight")
    folders = captured(tmp_path / "base", base), captured(tmp_path / "new", new)
    comparison, place = first_bad(*folders, Options(profile="bitwise"))
    assert place is not None
    assert (comparison.verdict, place.request_id, place.step, place.bad) == ("failed", "r0", 0, True)
    found = bisect(Given(base, ENGINE), Given(new, ENGINE), place, profiles.get("bitwise"), threads=1)
    assert (found.verdict, found.part, found.where) == ("part", "layers.3.mlp", "layer 3, mlp")
    assert found.kld == pytest.approx(place.kld, rel=1e-3)
    assert found.max_abs == pytest.approx(place.max_abs, rel=1e-3)


def test_the_tokens_before_a_later_step_are_the_bases_own(tmp_path: Path) -> None:
    model = open_model("embedded")
    base = captured(tmp_path / "base", model)
    new = altered(tmp_path / "new", model, request=1, step=4)
    _, place = first_bad(base, new, Options())
    assert place is not None
    tokens = lane.answer(Store(base), 1)
    assert place.ids == (*PROMPTS[1], *tokens[:4])
    assert (place.request_id, place.step, place.bad) == ("r1", 4, True)
    with Lane(model, ENGINE, 64, threads=1) as own:
        assert own.run(place.ids, [len(place.ids)], len(place.ids) - 1).argmax() == tokens[4]


def altered(folder: Path, model: Model, request: int, step: int) -> Path:
    """A capture of which one row is another one's: as if a request had got its neighbour's logits."""
    store = Store(captured(folder / "right", model))
    table = store.table
    rows = np.empty((len(table), store.vocab_size), np.float32)
    store.read(np.arange(len(table)), rows)
    rows[(table["request"] == request) & (table["step"] == step)] = rows[0]
    writer = Writer(folder / "wrong", store.manifest)
    for known in store.requests:
        writer.request(known.id, known.prompt_len, known.head, known.prompt, known.ids)
    writer.write(rows, table.copy())
    writer.close()
    return folder / "wrong"


def test_a_row_that_is_wrong_only_in_the_capture_is_not_blamed_on_a_layer(tmp_path: Path) -> None:
    model = open_model("random:tiny")
    base, new = captured(tmp_path / "base", model), altered(tmp_path / "new", model, request=2, step=3)
    _, place = first_bad(base, new, Options())
    assert place is not None
    assert (place.request_id, place.step, place.bad) == ("r2", 3, True)
    found = bisect(Given(model, ENGINE), Given(model, ENGINE), place, FP32, threads=1)
    assert (found.verdict, found.part) == ("elsewhere", None)


def test_where_no_row_is_bad_the_furthest_is_looked_at_and_equal_captures_need_none(tmp_path: Path) -> None:
    base = open_model("embedded")
    new = perturbed(tmp_path / "copy", embedded(), "model.layers.2.self_attn.o_proj.weight", by=1e-5)
    folders = captured(tmp_path / "base", base), captured(tmp_path / "new", new)
    comparison, place = first_bad(*folders, Options())
    assert place is not None
    assert (comparison.verdict, place.bad) == ("passed", False)
    same = captured(tmp_path / "same", base)
    assert first_bad(folders[0], same, Options())[1] is None


def test_a_request_and_a_step_can_be_chosen(tmp_path: Path) -> None:
    base, new = (captured(tmp_path / name, open_model(f"random:tiny,seed={name}")) for name in "01")
    _, place = first_bad(base, new, Options(), "r2", 0)
    assert place is not None
    assert (place.request_id, place.step) == ("r2", 0)
    with pytest.raises(InputError, match=r"--request r2 --step 99: .* do not both have such a row"):
        first_bad(base, new, Options(), "r2", 99)


def test_what_a_capture_lacks_is_said(tmp_path: Path) -> None:
    base, new = (captured(tmp_path / name, open_model(f"random:tiny,seed={name}")) for name in "01")
    with pytest.raises(InputError, match="not a store of logits"):
        first_bad(tmp_path, new, Options())
    requests = base / "part-0000.requests.jsonl"
    requests.write_text("".join(line.split(',"ids"')[0] + "}\n" for line in requests.read_text().splitlines()))
    with pytest.raises(InputError, match="does not know the prompts"):
        first_bad(base, new, Options())


def test_an_engine_that_does_not_show_its_layers_says_so() -> None:
    model = open_model("random:tiny")
    place = Place(ids=PROMPTS[0], num_prompt=len(PROMPTS[0]))
    with pytest.raises(InputError, match="engine stub: it does not show what its layers compute"):
        bisect(Given(model, ENGINE), Given(model, "stub"), place, FP32, threads=1)


def test_models_of_other_shapes_are_refused() -> None:
    sides = Given(open_model("random:tiny"), ENGINE), Given(open_model("random:tiny,layers=3"), ENGINE)
    with pytest.raises(InputError, match="has num_layers 3, random:tiny 2"):
        bisect(*sides, Place(ids=PROMPTS[0], num_prompt=len(PROMPTS[0])), FP32)


def test_the_relative_error_of_a_token_is_that_of_its_vector() -> None:
    base = np.array([[3, 4], [3, 4], [0, 0], [0, 0], [3, 4]], np.float32)
    new = np.array([[3, 4], [3, 4.5], [0, 0], [1, 0], [np.nan, 4]], np.float32)
    assert relative(new, base).tolist() == [0, 0.1, 0, np.inf, np.inf]


@pytest.mark.parametrize(
    ("profile", "field", "value", "bad"),
    [
        ("bitwise", "equal", False, True),
        ("contest", "close", False, True),
        ("fp32", "kld", 2e-4, True),
        ("fp32", "kld", 5e-5, False),  # above the mean's limit, below the largest's
        ("fp32", "max_abs_free", 0.1, True),
        ("fp32", "new_top", 1, True),
        ("w8", "kld", 3e-3, True),  # it has no limit for the largest
        ("w8", "kld", 1e-3, False),
        ("fp16", "finite", False, True),
    ],
)
def test_a_row_is_bad_by_the_limits_of_the_profile(profile: str, field: str, value: float, bad: bool) -> None:
    figures = np.zeros(1, FIGURES)
    figures["finite"] = figures["equal"] = figures["close"] = True
    figures["margin"] = 1.0
    figures[field] = value
    assert bisecting.bad_rows(profiles.get(profile), figures).tolist() == [bad]
