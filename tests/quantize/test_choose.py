"""Which linears stay float."""

import pytest

from llmbench.errors import ConfigError
from llmbench.quantize import choose
from llmbench.quantize.choose import Choice
from llmbench.quantize.journal import Observed, Record

SCORES = [{"qkv": 5.0, "o": 7.0, "gate_up": 4.0, "down": 90.0}, {"qkv": 30.0, "o": 6.0, "gate_up": 8.0, "down": 40.0}]


def records() -> list[Record]:
    return [
        Record(
            points={point: Observed(low=-1.0, high=1.0, score=score) for point, score in scores.items()},
            channels={},
            changed=[],
        )
        for scores in SCORES
    ]


def floats(**choice: object) -> list[str]:
    """Without "model.layers."."""
    found = choose.floats(Choice(**choice), records())  # type: ignore[arg-type]
    return [name.removeprefix("model.layers.") for name in found]


QKV1 = [f"1.self_attn.{part}_proj" for part in "qkv"]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (0, []),
        (1, ["0.mlp.down_proj"]),
        (2, ["0.mlp.down_proj", "1.mlp.down_proj"]),
        (3, ["0.mlp.down_proj", *QKV1, "1.mlp.down_proj"]),
    ],
)
def test_a_level_takes_the_inputs_with_the_highest_scores(level: int, expected: list[str]) -> None:
    assert floats(level=level) == expected


def test_a_level_counts_beside_what_is_float_already() -> None:
    assert floats(level=1, down=True) == ["0.mlp.down_proj", *QKV1, "1.mlp.down_proj"]


def test_linears_of_one_input_stay_float_together_and_say_why() -> None:
    found = choose.floats(Choice(linears=(r"layers\.1\..*k_proj",)), records())
    prefix = "model.layers.1.self_attn."
    assert list(found) == [f"{prefix}{part}_proj" for part in "qkv"]
    assert found[f"{prefix}k_proj"] == r"--float-linears layers\.1\..*k_proj"
    assert found[f"{prefix}q_proj"] == f"has the input of {prefix}k_proj"


def test_whole_layers_are_float_where_one_of_their_linears_is() -> None:
    assert floats(level=1, whole_layers=True) == floats(layers=(0,))
    assert len(floats(layers=(0,))) == 7


@pytest.mark.parametrize("text", ["6", "L-1", "L06", "l6", "L", ""])
def test_a_level_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--disable-level .*write L and a number"):
        choose.level(text)


def test_levels_and_layers_are_read() -> None:
    assert choose.level("L12") == 12
    assert choose.layers(" 3,0 , 3,", 4) == (0, 3)
    assert choose.layers("", 4) == ()


@pytest.mark.parametrize(("text", "message"), [("0,x", "write numbers"), ("-1", "write numbers"), ("0,4", "0 to 3")])
def test_layers_that_the_model_does_not_have_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"--float-layers .*{message}"):
        choose.layers(text, 4)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(linears=("(",)), "not a regular expression"),
        (Choice(linears=("lm_head",)), "no linear matches"),
        (Choice(level=9), "the model has 8 inputs"),
        (Choice(level=7, down=True), "the model has 6 inputs of linears that are not float already"),
        (Choice(level=8), "every linear would stay float"),
        (Choice(layers=(0, 1)), "every linear would stay float"),
        (Choice(down=True, whole_layers=True), "--whole-layers wants --no-rollback-down"),
    ],
)
def test_what_cannot_be_chosen_is_refused(choice: Choice, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose.check(choice, 2)
