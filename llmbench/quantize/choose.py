"""Which linears stay float: those that a user names, those with the worst outliers, and those that go with them."""

import re
from collections.abc import Iterator, Sequence

import msgspec

from llmbench.errors import ConfigError
from llmbench.quantize.forward import POINTS, prefix
from llmbench.quantize.journal import Record

NOTHING_LEFT = (
    "every linear would stay float: take a lower --disable-level, or name fewer of them; --whole-layers wants"
    " --no-rollback-down"
)

_LEVEL = re.compile(r"L(0|[1-9]\d*)")


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What stays float beside embeddings, norms, head. `level` n: the n inputs with the highest scores, see `floats`.

    `layers` are decoder layers as a whole, `linears` regular expressions of names such as
    "model.layers.0.mlp.down_proj", `down` is every down_proj. `whole_layers`: a layer with one float linear is float,
    as run-time systems with FLOAT_LAYERS compute it.
    """

    level: int = 0
    layers: tuple[int, ...] = ()
    linears: tuple[str, ...] = ()
    down: bool = False
    whole_layers: bool = False


def level(text: str) -> int:
    """`L6` as 6. Raises ConfigError."""
    if not (found := _LEVEL.fullmatch(text)):
        raise ConfigError(f"--disable-level {text}: write L and a number, as L0 (none) or L6 (the six worst)")
    return int(found[1])


def layers(text: str, num_layers: int) -> tuple[int, ...]:
    """`0,1,30` as numbers of decoder layers. Raises ConfigError for one that the model does not have."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        raise ConfigError(f"--float-layers {text}: write numbers of layers with commas between, as 0,1,30")
    found = tuple(sorted({int(word) for word in words}))
    if found and found[-1] >= num_layers:
        raise ConfigError(f"--float-layers {text}: the model has layers 0 to {num_layers - 1}")
    return found


def names(num_layers: int) -> list[str]:
    """The linears of all decoder layers, in their order."""
    return [name for at in _inputs(num_layers) for name in of_point(*at)]


def of_point(layer: int, point: str) -> list[str]:
    """The linears behind a point, by their whole names."""
    return [prefix(layer) + linear for linear in POINTS[point].linears]


def check(choice: Choice, num_layers: int) -> None:
    """Raise ConfigError for a regular expression that is none or that no linear matches, or when nothing is left."""
    for text in choice.linears:
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise ConfigError(f"--float-linears {text!r}: not a regular expression ({error.msg})") from error
        if not any(pattern.search(name) for name in names(num_layers)):
            raise ConfigError(
                f"--float-linears {text!r}: no linear matches; they are called model.layers.0.self_attn.q_proj,"
                f" … model.layers.{num_layers - 1}.mlp.down_proj"
            )
    found = dict(_named(choice, num_layers))
    _complete(found, choice, num_layers)
    left = sum(of_point(*at)[0] not in found for at in _inputs(num_layers))
    if choice.level > left:
        raise ConfigError(
            f"--disable-level L{choice.level}: the model has {left} inputs of linears that are not float already; take"
            " a lower level"
        )
    if choice.level == left:
        raise ConfigError(NOTHING_LEFT)


def floats(choice: Choice, records: Sequence[Record]) -> dict[str, str]:
    """The linears that stay float, each with the reason.

    Linears of one input stay float together: they have the same score, and share its scale. A level therefore counts
    inputs; msmodelslim, whose levels count linears, mostly finds inputs of one linear (down_proj) worst as well.
    """
    found = dict(_named(choice, len(records)))
    _complete(found, choice, len(records))
    ranked = sorted(_inputs(len(records)), key=lambda at: -records[at[0]].points[at[1]].score)
    left = [at for at in ranked if of_point(*at)[0] not in found]
    for layer, point in left[: choice.level]:
        reason = f"--disable-level L{choice.level}: score {records[layer].points[point].score:.1f}"
        found |= dict.fromkeys(of_point(layer, point), reason)
    _complete(found, choice, len(records))
    return {name: found[name] for name in names(len(records)) if name in found}


def _inputs(num_layers: int) -> list[tuple[int, str]]:
    """Layer and point of every input."""
    return [(layer, point) for layer in range(num_layers) for point in POINTS]


def _named(choice: Choice, num_layers: int) -> Iterator[tuple[str, str]]:
    """What a user names."""
    patterns = [re.compile(text) for text in choice.linears]
    for layer, point in _inputs(num_layers):
        for name in of_point(layer, point):
            if layer in choice.layers:
                yield name, "--float-layers"
            elif choice.down and point == "down":
                yield name, "--rollback-down"
            elif by := next((pattern.pattern for pattern in patterns if pattern.search(name)), None):
                yield name, f"--float-linears {by}"


def _complete(found: dict[str, str], choice: Choice, num_layers: int) -> None:
    """What has the input of a float linear is float as well; so is all of its layer, where layers go as a whole."""
    for at in _inputs(num_layers):
        own = of_point(*at)
        first = next((name for name in own if name in found), None)
        if first is not None:
            found |= {name: f"has the input of {first}" for name in own if name not in found}
    for layer in range(num_layers) if choice.whole_layers else ():
        own = [name for point in POINTS for name in of_point(layer, point)]
        if any(name in found for name in own):
            found |= {name: "--whole-layers" for name in own if name not in found}
