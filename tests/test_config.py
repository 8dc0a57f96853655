import json
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from llmbench import config
from llmbench.errors import ConfigError


class Inner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    max_batch: int = 8
    kind: Literal["poisson", "burst"] = "poisson"


class Outer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    port: int = 8835
    limits: Inner = Inner()
    capture: Inner | None = None
    named: dict[str, Inner] = {}
    several: tuple[Inner, ...] = ()


def written(tmp_path: Path, text: str | bytes, name: str = "settings.yaml") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_yaml_and_json_give_the_same_settings(tmp_path: Path) -> None:
    values = {"port": 1, "limits": {"max_batch": 2, "kind": "burst"}}
    from_yaml = config.read(written(tmp_path, "port: 1\nlimits: {max_batch: 2, kind: burst}\n"))
    from_json = config.read(written(tmp_path, json.dumps(values), "settings.json"))
    assert from_yaml == from_json == values
    assert config.build(values, Outer, "f") == Outer(port=1, limits=Inner(max_batch=2, kind="burst"))


def test_what_is_left_out_takes_the_default() -> None:
    assert config.build({"limits": {"max_batch": 2}}, Outer, "f") == Outer(limits=Inner(max_batch=2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prot": 1}, "f: prot: unknown key; did you mean 'port'?"),
        ({"limits": {"max_bacth": 1}}, "f: limits.max_bacth: unknown key; did you mean 'max_batch'?"),
        ({"capture": {"max_bacth": 1}}, "f: capture.max_bacth: unknown key; did you mean 'max_batch'?"),
        ({"zzz": 1}, "f: zzz: unknown key; known: port, limits, capture, named, several"),
        ({"port": "eight"}, "f: port: Expected `int`, got `str`"),
        ({"port": True}, "f: port: Expected `int`, got `bool`"),
        ({"limits": {"kind": "posson"}}, "f: limits.kind: Invalid enum value 'posson'"),
        ({"limits": 5}, "f: limits: Expected `object`, got `int`"),
        ({"named": {"a": {"max_bacth": 1}}}, "f: named[...].max_bacth: unknown key; did you mean 'max_batch'?"),
        ({"several": [{}, {"zzz": 1}]}, "f: several[1].zzz: unknown key; known: max_batch, kind"),
        ({"capture": {"max_batch": None}}, "f: capture.max_batch: Expected `int`, got `null`"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_path(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.build(values, Outer, "f")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "a: [1, 2", "a.yaml: while parsing"),
        ("a.yaml", "a: b: c", "a.yaml: mapping values are not allowed here"),
        ("a.yaml", "- 1\n- 2\n", "a.yaml: expected a mapping of keys to values, found list"),
        ("a.yaml", "", "a.yaml: expected a mapping of keys to values, found NoneType"),
        ("a.yaml", "!!python/object:os.system {}", "a.yaml: could not determine a constructor"),
        ("a.yaml", b"a: \xff", "a.yaml: not UTF-8 text"),
        ("a.json", "{", "a.json: Expecting property name"),
        ("a.json", "[]", "a.json: expected a mapping of keys to values, found list"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config.read(written(tmp_path, content, name))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_number_with_an_exponent_is_one_in_yaml_as_in_json(tmp_path: Path) -> None:
    text = "a: 1e-5\nb: -2E3\nc: 1.5e-7\nd: e5\ne: 0e5x\n"
    assert config.read(written(tmp_path, text)) == {"a": 1e-5, "b": -2e3, "c": 1.5e-7, "d": "e5", "e": "0e5x"}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot read the settings \(No such file or directory\)"):
        config.read(tmp_path / "nothing.yaml")


def test_a_wrong_setting_ends_a_command_with_the_status_of_wrong_usage() -> None:
    assert ConfigError.exit_code == 2
