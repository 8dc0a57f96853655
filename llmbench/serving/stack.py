"""The whole server: agent, scheduler, frontend and HTTP put together, started and stopped."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from llmbench import __version__, plugins, protocols
from llmbench.engines import Capacity, EngineSettings
from llmbench.errors import ConfigError
from llmbench.link import arena, frames
from llmbench.link.ranks import AgentGroup
from llmbench.link.remote import Agent
from llmbench.processes import allow_many_sockets
from llmbench.protocols import Dialect, Status
from llmbench.serving import server
from llmbench.serving.blocks import BlockPool
from llmbench.serving.config import ServeConfig
from llmbench.serving.frontend import Frontend
from llmbench.serving.identity import Teller, config_hash, file_hash
from llmbench.serving.loop import AnyAgent, StepLoop, cancelled
from llmbench.serving.observe import Observer
from llmbench.serving.scheduler import Scheduler
from llmbench.serving.stubs import FrontendStub, LinkStub
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.weights.model import Model, open_model

_log = logging.getLogger(__name__)


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """What a server that answers can say about itself."""

    url: str
    model: str
    engine: str
    dtype: str
    quantisation: str
    max_batch: int
    max_model_len: int
    num_blocks: int
    block_size: int
    agent_pids: tuple[int, ...]
    tokenizer: str


def serve(config: ServeConfig, on_ready: Callable[[Running], None], *, until_stdin_closes: bool = False) -> None:
    """Serve until SIGINT or SIGTERM, or also until stdin ends. Raises LlmbenchError when the stack cannot start."""
    allow_many_sockets()
    try:
        import uvloop
    except ImportError:  # it is not there on Windows
        asyncio.run(_serve(config, on_ready, until_stdin_closes))
    else:
        uvloop.run(_serve(config, on_ready, until_stdin_closes))


async def _serve(config: ServeConfig, on_ready: Callable[[Running], None], until_stdin_closes: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if until_stdin_closes:
        loop.add_reader(sys.stdin.fileno(), _at_end_of_stdin, stop)
    serving = asyncio.ensure_future(_run(config, on_ready))
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    serving.cancel()  # also while the agent still loads its model
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.cancel)  # the second time, nobody waits for answers under way
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def _at_end_of_stdin(stop: asyncio.Event) -> None:
    """Nothing is ever written there: that it can be read means its end."""
    asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
    stop.set()


async def _run(config: ServeConfig, on_ready: Callable[[Running], None]) -> None:
    """Serve until cancelled."""
    async with started(config) as running:
        on_ready(running)
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def started(config: ServeConfig) -> AsyncIterator[Running]:
    """The stack, answering; on leaving, no process and no shared memory is left behind."""
    model = open_model(config.model)
    tokenizer = open_tokenizer(model, config.tokenizer)
    dialects = open_dialects(config)
    for path in arena.sweep():
        _log.warning("removed %s, left behind by a server that was killed", path)
    async with contextlib.AsyncExitStack() as stack:
        sockets = server.bind(config.host, config.port)
        for bound in sockets:
            stack.callback(bound.close)
        starter = _AgentStarter(config)
        agent = await starter.start()
        capacity = agent.loaded.capacity
        wake, observer = asyncio.Event(), Observer()
        pool = BlockPool(capacity.num_blocks, capacity.block_size, config.limits.prefix_cache)
        scheduler = Scheduler(config.limits, pool, _max_model_len(config, agent.loaded))
        eos_ids = model.config.eos_ids if config.eos_ids is None else config.eos_ids
        frontend = Frontend(scheduler, tokenizer, frozenset(eos_ids), config.pad_id, wake, observer)
        answering = FrontendStub(config.step_time_s) if config.stub == "http" else frontend
        loop = StepLoop(scheduler, frontend, agent, starter.start, wake, observer)
        stack.push_async_callback(loop.close)
        host = _Host(config, model, tokenizer, scheduler, loop)
        teller = Teller(config, model, tokenizer.source, loop)
        http = server.Server(dialects, answering, host, observer, config.http, teller.identity)
        stack.push_async_callback(http.close)
        for work in (loop.run(), http.sweep()):
            task = asyncio.create_task(work)
            task.add_done_callback(_crashed)
            stack.push_async_callback(cancelled, task)
        await http.listen(sockets)
        stack.push_async_callback(http.drain)
        yield _running(host.status(), loop, tokenizer, sockets[0])


def _running(status: Status, loop: StepLoop, tokenizer: Tokenizer, bound: socket.socket) -> Running:
    host, port = bound.getsockname()[:2]
    return Running(
        url=f"http://{f'[{host}]' if ':' in host else host}:{port}",
        model=status.model_name,
        engine=loop.agent.loaded.engine,
        dtype=loop.agent.loaded.dtype,
        quantisation=status.quantisation,
        max_batch=status.max_batch,
        max_model_len=status.max_model_len,
        num_blocks=status.num_blocks,
        block_size=status.block_size,
        agent_pids=loop.agent.pids,
        tokenizer=tokenizer.source,
    )


class _AgentStarter:
    """Starts agents, the first and those after it, with an arena and a KV cache of the same size."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._num_blocks = config.kv_cache.num_blocks

    async def start(self) -> AnyAgent:
        """An agent with its model loaded. Raises LlmbenchError."""
        if self._config.stub in ("link", "http"):
            return _link_stub(self._config)
        agent = await _start(self._config, self._num_blocks)
        # the scheduler counts with what the first one chose, however much memory is free when it is replaced
        self._num_blocks = agent.loaded.capacity.num_blocks
        try:
            await agent.attach(_dimensions(self._config, agent.loaded))
        except BaseException:
            await agent.close()
            raise
        return agent


async def _start(config: ServeConfig, num_blocks: int | None) -> Agent | AgentGroup:
    load, ports = _load(config, num_blocks), (config.agent_ports + (0,) * config.ranks)[: config.ranks]
    if config.ranks == 1:
        return await Agent.start(load, config.agent_host, ports[0])
    return await AgentGroup.start(load, config.agent_host, ports)


def _link_stub(config: ServeConfig) -> LinkStub:
    """A stand-in for an agent, with room for `max_batch` of the longest sequences."""
    longest, block_size = open_model(config.model).config.max_positions, config.kv_cache.block_size
    num_blocks = config.kv_cache.num_blocks or config.limits.max_batch * -(-longest // block_size)
    capacity = Capacity(num_blocks=num_blocks, block_size=block_size, max_model_len=longest)
    loaded = frames.Loaded(capacity=capacity, engine="stub link", dtype="none")
    return LinkStub(loaded, _dimensions(config, loaded), config.step_time_s)


class _Host:
    """The server as its dialects see it."""

    def __init__(
        self, config: ServeConfig, model: Model, tokenizer: Tokenizer, scheduler: Scheduler, loop: StepLoop
    ) -> None:
        self._config = config
        self._model = model
        self._tokenizer = tokenizer
        self._scheduler = scheduler
        self._loop = loop

    def status(self) -> Status:
        scheduler, limits = self._scheduler, self._config.limits
        return Status(
            model_name=self._config.model_name or self._model.name,
            model_dtype=self._config.model_dtype or self._loop.agent.loaded.dtype,
            quantisation=self._model.config.quantisation,
            vocab_size=self._model.config.vocab_size,
            max_model_len=scheduler.max_model_len,
            max_batch=limits.max_batch,
            max_tokens_per_step=limits.max_tokens_per_step,
            max_waiting=limits.max_waiting,
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_blocks=scheduler.pool.num_blocks,
            num_free_blocks=scheduler.pool.num_free,
            block_size=scheduler.pool.block_size,
            num_ranks=self._config.ranks,
            ready=self._loop.ready,
        )

    def tokenize(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def detokenize(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)


def open_tokenizer(model: Model, given: str | None) -> Tokenizer:
    """The model's own tokenizer; for a model that brings none, the given one, or the embedded one where it fits.

    Raises ConfigError when there is none, or it has more pieces than the model has ids.
    """
    named = (
        None if given is None else Tokenizer.from_file(Path(given))
    )  # a wrong one is wrong where none is needed, too
    if model.tokenizer_path is not None:
        tokenizer = Tokenizer.from_file(model.tokenizer_path)
    elif named is not None:
        tokenizer = named
    else:
        tokenizer = Tokenizer.from_file(embedded_path())
        if tokenizer.vocab_size != model.config.vocab_size:
            raise ConfigError(
                f"tokenizer: {model.name} brings none and has {model.config.vocab_size} ids; give a tokenizer.model "
                "with --tokenizer"
            )
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ConfigError(
            f"tokenizer: {tokenizer.source} has {tokenizer.vocab_size} pieces, more than the "
            f"{model.config.vocab_size} ids of {model.name}"
        )
    return tokenizer


def open_dialects(config: ServeConfig) -> list[Dialect]:
    """Every dialect there is, with the options from the settings. Raises ConfigError naming a wrong one."""
    known = plugins.names("protocols")
    for name in config.dialects:
        if name not in known:
            raise ConfigError(f"dialects.{name}: {plugins.unknown('dialect', name, known)}")
    return [_dialect(name, config.dialects.get(name, {})) for name in known]


def _dialect(name: str, options: dict[str, Any]) -> Dialect:
    try:
        return protocols.get(name, **options)
    except TypeError as error:
        raise ConfigError(f"dialects.{name}: {error}") from error


def _load(config: ServeConfig, num_blocks: int | None) -> frames.Load:
    return frames.Load(
        model=config.model,
        engine="stub" if config.stub in ("model", "agent") else config.engine,
        hollow=config.stub == "agent",
        bind_cpu=config.bind_cpu,
        settings=EngineSettings(
            num_blocks=num_blocks,
            block_size=config.kv_cache.block_size,
            max_batch=config.limits.max_batch,
            threads=config.threads,
            step_time_s=config.step_time_s,
            warm_up=True,
            model_cfg_path=config.model_cfg_path,
        ),
        capture=_capture(config),
    )


def _capture(config: ServeConfig) -> frames.Capture | None:
    """What the agent is to write, and what it cannot know itself of what it runs in."""
    wanted = config.capture
    if wanted is None:
        return None
    tokenizer = open_model(config.model).tokenizer_path or config.tokenizer or embedded_path()
    return frames.Capture(
        folder=wanted.folder,
        every=wanted.every,
        tier=wanted.tier,
        rate=wanted.rate,
        seed=wanted.seed,
        force=wanted.force,
        tokenizer=file_hash(str(tokenizer)),
        config=config_hash(config),
        version=__version__,
    )


def _max_model_len(config: ServeConfig, loaded: frames.Loaded) -> int:
    capacity = loaded.capacity
    possible = min(capacity.max_model_len, capacity.num_blocks * capacity.block_size)
    return min(possible, config.limits.max_model_len or possible)


def _dimensions(config: ServeConfig, loaded: frames.Loaded) -> arena.Dimensions:
    return arena.Dimensions(
        max_batch=config.limits.max_batch,
        max_tokens=config.limits.max_tokens_per_step,
        max_blocks=-(-_max_model_len(config, loaded) // loaded.capacity.block_size),
    )


def _crashed(stepping: "asyncio.Task[None]") -> None:
    """An error of our own in the step loop must not leave a server that accepts and never answers."""
    if not stepping.cancelled() and (error := stepping.exception()) is not None:
        _log.critical("the step loop ended: this is a bug", exc_info=error)
        signal.raise_signal(signal.SIGTERM)
