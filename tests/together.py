"""Several ranks of an engine, each in a process of its own as in an agent, that tests can drive as one engine."""

import functools
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from llmbench import engines
from llmbench.engines import Batch, Capacity, Engine, EngineSettings, StepResult
from llmbench.errors import LlmbenchError
from llmbench.link import collective
from llmbench.link.collective import Collective
from llmbench.weights.model import Model, open_model


class Together:
    """An engine whose every step is taken by all ranks; what rank 0 gives is the result."""

    def __init__(self, name: str, model: Model, settings: EngineSettings, num_ranks: int) -> None:
        self.name = name
        path = collective.create(num_ranks)
        context = multiprocessing.get_context("spawn")
        self._ranks: list[Connection] = []
        for rank in range(num_ranks):
            here, there = context.Pipe()
            args = (there, path, rank, num_ranks, name, model.name, settings)
            context.Process(target=_serve, args=args, daemon=True).start()
            there.close()
            self._ranks.append(here)
        try:
            made = self._answers()
        finally:
            path.unlink()
        assert len({str(capacity) for capacity, _ in made}) == 1
        self._capacity: Capacity = made[0][0]
        self.dtype: str = made[0][1]
        self.compiled_s = 0.0

    def capacity(self) -> Capacity:
        return self._capacity

    def step(self, batch: Batch) -> StepResult:
        for rank in self._ranks:
            rank.send(batch)
        result: StepResult = self._answers()[0]
        return result

    def close(self) -> None:
        for rank in self._ranks:
            rank.close()

    def _answers(self) -> list[Any]:
        """What all ranks give; the error of the first rank that has one. The others have ended by then, too."""
        answers = [rank.recv() for rank in self._ranks]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


def _serve(
    connection: Connection, path: Path, rank: int, size: int, name: str, model: str, settings: EngineSettings
) -> None:
    """One rank: says what it holds, then answers each batch, until nobody asks any more."""
    group = Collective.join(path, rank, size)

    def answer(work: Callable[[], Any]) -> None:
        """What a rank does, and at its end the meeting that an agent keeps."""
        given: Any = None
        try:
            given = work()
        except LlmbenchError as error:
            given = error
        group.end_step(isinstance(given, Exception))
        connection.send(given)

    made: list[Engine] = []

    def load() -> tuple[Capacity, str]:
        made.append(engines.get(name, open_model(model), settings, group))
        return made[0].capacity(), made[0].dtype

    answer(load)
    try:
        while made:
            answer(functools.partial(made[0].step, connection.recv()))
    except EOFError:
        made[0].close()
