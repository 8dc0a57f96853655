"""The chat template of a model's folder: what makes a conversation a prompt, in the words that it was trained with."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmbench.errors import InputError, NotInstalled
from llmbench.weights.model import Model

_CONFIG, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"


def prompt(model: Model, messages: Sequence[Mapping[str, str]]) -> str:
    """Messages with `role` and `content` as the text that the model goes on with, its own `<s>` included.

    The template is `chat_template.jinja` or the one in `tokenizer_config.json`, rendered in a sandbox with the
    variables that transformers gives it. Raises InputError when there is none or it refuses, NotInstalled.
    """
    template, marks = _template(model)
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as error:
        raise NotInstalled("chat: jinja2 is not installed; pip install 'llmbench[chat]'") from error

    def refuse(message: str) -> None:
        raise TemplateError(message)

    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    sandbox.globals["raise_exception"] = refuse
    try:
        compiled = sandbox.from_string(template)
        return str(compiled.render(messages=messages, add_generation_prompt=True, **marks))
    except TemplateError as error:
        raise InputError(f"model {model.name}: its chat template refuses this ({error})") from error


def _template(model: Model) -> tuple[str, dict[str, str]]:
    """The template, and the special tokens that it may write."""
    folder = model.tokenizer_path.parent if model.tokenizer_path is not None else Path(model.name)
    settings = _settings(folder / _CONFIG)
    marks = {name: _text(settings.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    file = folder / _TEMPLATE
    if file.is_file():
        return file.read_text(encoding="utf-8"), marks
    found = settings.get("chat_template")
    if isinstance(found, list):  # several with names
        found = next((one.get("template") for one in found if one.get("name") == "default"), None)
    if not isinstance(found, str):
        raise InputError(f"model {model.name}: it has no chat template; leave --chat out")
    return found, marks


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read the tokenizer's settings ({error})") from error
    return found if isinstance(found, dict) else {}


def _text(mark: Any) -> str:
    """A special token as text: older files have it as an object."""
    return str(mark.get("content", "")) if isinstance(mark, dict) else str(mark or "")
