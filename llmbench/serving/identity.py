"""What a server is, as `/identity` tells it: by this an audit sees whether it was one and the same all the time."""

import asyncio
import hashlib
import os
import time
from pathlib import Path

import msgspec

from llmbench import __version__
from llmbench.serving.config import ServeConfig
from llmbench.serving.loop import StepLoop
from llmbench.weights.model import Model

_HEX = 16


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """A process, its settings and its weights. `config` and `tokenizer` are as in the manifests of its captures."""

    pid: int
    agent_pids: tuple[int, ...]
    started_s: float
    """Seconds since the epoch."""
    engine_version: str
    model: str
    fingerprint: str
    """sha256 of the weights; of random ones, of their name, unless rows are captured: then as in the manifest."""
    tokenizer: str
    config: str
    engine: str
    dtype: str
    quantisation: str
    """What of the model is of 8 bits, such as "w8a8"; "" for a float one."""


class Teller:
    """Knows what a server is; its weights are hashed when somebody asks for the first time, beside the event loop."""

    def __init__(self, config: ServeConfig, model: Model, tokenizer: str, loop: StepLoop) -> None:
        self._model = model
        self._loop = loop
        self._tokenizer = file_hash(tokenizer)
        self._config = config_hash(config)
        self._started_s = time.time()
        self._fingerprint: asyncio.Task[str] | None = None

    async def identity(self) -> Identity:
        """What the server is now."""
        loaded = self._loop.agent.loaded
        fingerprint = loaded.fingerprint or await self._hashed()
        return Identity(
            pid=os.getpid(),
            agent_pids=self._loop.agent.pids,
            started_s=self._started_s,
            engine_version=__version__,
            model=self._model.name,
            fingerprint=fingerprint,
            tokenizer=self._tokenizer,
            config=self._config,
            engine=loaded.engine,
            dtype=loaded.dtype,
            quantisation=self._model.config.quantisation,
        )

    async def _hashed(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = asyncio.create_task(asyncio.to_thread(self._model.identity))
        return await asyncio.shield(self._fingerprint)  # one who asks and leaves does not end it for the others


def config_hash(config: ServeConfig) -> str:
    """16 hex digits of the settings, without what changes nothing in the answers: addresses, key, capture."""
    http = msgspec.structs.replace(config.http, api_key=None)
    settings = msgspec.structs.replace(config, capture=None, host="", port=0, agent_ports=(), http=http)
    return _hash(msgspec.json.encode(settings))


def file_hash(path: str) -> str:
    """16 hex digits of a file."""
    return _hash(Path(path).read_bytes())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_HEX]
