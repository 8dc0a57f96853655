from collections.abc import Callable
from pathlib import Path

import pytest

from llmbench import plugins
from llmbench.errors import InputError

ROOMS = ("protocols", "engines", "workload.arrivals")


@pytest.mark.parametrize("room", ROOMS)
def test_the_public_modules_of_a_room_are_its_parts(room: str) -> None:
    folder = Path(plugins.__file__).parent.joinpath(*room.split("."))
    files = {path.stem for path in folder.glob("*.py") if not path.name.startswith("_")}
    assert files
    assert set(plugins.names(room)) == files
    assert plugins.names(room) == sorted(plugins.names(room))


@pytest.mark.parametrize(
    ("room", "name", "message"),
    [
        ("protocols", "contset", "unknown protocol 'contset'. Did you mean 'contest'? Known: "),
        ("engines", "numpy_lama", "unknown engine 'numpy_lama'. Did you mean 'numpy_llama'? Known: "),
        ("workload.arrivals", "poison", "unknown arrival 'poison'. Did you mean 'poisson'? Known: "),
        ("engines", "zzz", "unknown engine 'zzz'. Known: numpy_llama"),
    ],
)
def test_a_wrong_name_is_answered_with_the_near_one(room: str, name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        plugins.load(room, name)
    assert str(caught.value).startswith(message.replace("numpy_llama", "") if name == "zzz" else message)


@pytest.mark.parametrize("name", ["_sampling", "__init__", "../errors", "os", ""])
def test_helpers_and_modules_from_elsewhere_are_no_parts(name: str) -> None:
    with pytest.raises(InputError, match="unknown engine"):
        plugins.load("engines", name)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs a distribution with a module `their_engine` as the engine of a name."""

    def install(name: str) -> None:
        (tmp_path / "their_engine.py").write_text("NAME = 'theirs'\n")
        info = tmp_path / "their_engine-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-engine\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[llmbench.engines]\n{name} = their_engine\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


def test_a_third_party_part_stands_behind_ours_and_can_be_loaded(installed: Callable[[str], None]) -> None:
    ours = plugins.names("engines")
    installed("abacus")
    assert plugins.names("engines") == [*ours, "abacus"]
    assert plugins.load("engines", "abacus").NAME == "theirs"


def test_a_third_party_part_does_not_take_the_name_of_ours(installed: Callable[[str], None]) -> None:
    ours = plugins.names("engines")
    installed("numpy_llama")
    assert plugins.names("engines") == ours
    assert plugins.load("engines", "numpy_llama").__name__ == "llmbench.engines.numpy_llama"


def test_an_empty_room_says_so() -> None:
    assert plugins.unknown("eval", "mmlu", []) == "unknown eval 'mmlu'. Known: none"
