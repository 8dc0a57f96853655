"""Reading a body: every wrong value is an error that names its field."""

import json
from typing import Any

import pytest

from llmbench.errors import RequestError
from llmbench.protocols._body import FieldError, Fields, decode, prompt_key


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": -Infinity}', "not JSON"),
        (b'{"a": 1e999}', "not JSON"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b'{"a": "\xed\xa0\x80"}', "not JSON"),
        (b'{"a": ' + b"9" * 6000 + b"}", "not JSON"),
        (b'{"a": 1} {"b": 2}', "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[1]", "must be an object, got a list"),
        (b"null", "must be an object, got null"),
    ],
)
def test_a_body_that_is_no_object_is_refused_with_the_reason(body: bytes, says: str) -> None:
    with pytest.raises(FieldError, match=says):
        decode(body)


@pytest.mark.parametrize(
    ("reader", "value", "says"),
    [
        ("integer", "5", "must be a whole number, got a string"),
        ("integer", True, "must be a whole number, got a boolean"),
        ("integer", 1.5, "must be a whole number, got a number"),
        ("integer", 0, "must be between 1 and 9, got 0"),
        ("integer", 10**300, r"must be between 1 and 9, got 1000\d+\.\.\."),
        ("number", "1", "must be a number, got a string"),
        ("number", True, "must be a number, got a boolean"),
        ("number", 0, "must be above 0 and at most 1, got 0"),
        ("number", 10**400, "must be above 0 and at most 1, got 1000"),
        ("flag", 1, "must be true or false, got a number"),
        ("text", [], "must be a string, got a list"),
        ("object", "{}", "must be an object, got a string"),
        ("prompt", "", "must have 1 to 4194304 characters, got 0"),
        ("prompt", 5, "must be a string, got a number"),
        ("prompt", [{"type": "image_url", "image_url": "x"}], "only parts"),
        ("prompt", ["a"], "only parts"),
        ("seed", -(2**63) - 1, "must be between"),
        ("ids", 5, "must be a list of token ids, got a number"),
        ("ids", [1, "2"], "found a string in it"),
        ("ids", [1, True], "found a boolean in it"),
        ("ids", [1, -1], "token ids must be between 0 and"),
        ("stops", 5, "must be a string or a list of strings"),
        ("stops", ["a", 5], "must be a string or a list of strings"),
        ("stops", ["a"] * 65, "at most 64 texts"),
        ("stops", "a" * 1025, "at most 64 texts of 1024 characters"),
    ],
)
def test_a_wrong_value_is_named_with_its_path(reader: str, value: Any, says: str) -> None:
    fields = Fields({"it": value}, "parameters.")
    limits: dict[str, tuple[Any, ...]] = {"integer": (1, 9), "number": (0, 1)}
    more = {"above": True} if reader == "number" else {}
    with pytest.raises(FieldError, match=rf"^parameters\.it: .*{says}") as caught:
        getattr(fields, reader)("it", *limits.get(reader, ()), **more)
    assert caught.value.field == "parameters.it"
    assert isinstance(caught.value, RequestError)


def test_null_is_the_same_as_not_given() -> None:
    for fields in (Fields({"it": None}), Fields({})):
        assert (fields.integer("it", 1), fields.number("it", 1), fields.text("it"), fields.seed("it")) == (None,) * 4
        assert (fields.stops("it"), fields.ids("it")) == ((), ())
        assert fields.flag("it", default=True)
        assert fields.object("it").text("inside") is None
        assert "it" not in fields


def test_values_are_read_as_the_real_servers_read_them() -> None:
    assert Fields({"it": 5.0}).integer("it", 1) == 5
    assert Fields({"it": 1}).number("it", 0) == 1.0
    assert Fields({"it": "a"}).stops("it") == ("a",)
    assert Fields({"it": ["a", ""]}).stops("it") == ("a",)  # MindIE's own example has an empty one
    assert Fields({"it": -1}).seed("it") == 2**64 - 1
    assert Fields({"it": 1e-6}).temperature("it") == 0
    assert Fields({"it": [{"type": "text", "text": "a"}, {"text": "b"}]}).prompt("it") == "ab"


def test_what_is_not_supported_is_refused_only_when_it_asks_for_something() -> None:
    harmless: tuple[Any, ...] = (None, [], {}, 1)
    for value in harmless:
        Fields({"n": value}).refuse({"n": (1,)})
    for wanted in (2, True, "1", [1]):
        with pytest.raises(FieldError, match="n: not supported"):
            Fields({"n": wanted}).refuse({"n": (1,)})


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"inputs": "a"}, "inputs"),
        ({"prompt": "a", "inputs": None}, "inputs"),  # MindIE asks for `inputs` first
        ({"x": {"inputs": 1}, "prompt": [1]}, "prompt"),
        ({"text": "a"}, ""),
        ([], ""),
    ],
)
def test_the_two_dialects_of_generate_are_told_apart(value: Any, key: str) -> None:
    assert prompt_key(json.dumps(value).encode()) == key


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"inputs": NaN}', b'{"inputs"'])
def test_a_broken_body_belongs_to_neither(body: bytes) -> None:
    assert prompt_key(body) == ""
