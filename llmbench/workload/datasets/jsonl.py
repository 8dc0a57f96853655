"""A file of JSON lines (or a JSON list) with fields of any name."""

from pathlib import Path
from typing import Any

from llmbench.errors import InputError
from llmbench.plugins import unknown
from llmbench.workload.plan import Turn
from llmbench.workload.sources import Need, records
from llmbench.workload.sources import Source as Base


class Source(Base, frozen=True):
    """`prompt` and `output` name the fields, `a.b` for b inside of a; `tokens` that of the answer's length, if any.

    Without `output`, a field of that name is the reference answer where there is one.
    """

    path: Path
    prompt: str = "prompt"
    output: str | None = None
    tokens: str | None = None

    def samples(self, need: Need) -> list[Turn]:
        """One sample per record."""
        return [self._turn(place, record) for place, record in records(self.path)]

    def _turn(self, place: str, record: dict[str, Any]) -> Turn:
        output = ""
        if self.output is not None or "output" in record:
            output = _text(self._field(place, record, self.output or "output"), self.path, place, self.output)
        prompt = _text(self._field(place, record, self.prompt), self.path, place, self.prompt)
        return Turn(prompt=prompt, output=output, output_tokens=self._tokens(place, record))

    def _tokens(self, place: str, record: dict[str, Any]) -> int | None:
        if self.tokens is None:
            return None
        value = self._field(place, record, self.tokens)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{self.path}: {place}: {self.tokens} must be a whole number above 0, got {value!r}")
        return value

    def _field(self, place: str, record: dict[str, Any], name: str) -> Any:
        value: Any = record
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                known = list(value) if isinstance(value, dict) else []
                raise InputError(f"{self.path}: {place}: {name} is missing: {unknown('field', key, known)}")
            value = value[key]
        return value


def _text(value: Any, path: Path, place: str, name: str | None) -> str:
    if not isinstance(value, str):
        raise InputError(f"{path}: {place}: {name or 'output'} must be a string")
    return value
