"""Several ranks of an engine in one process, one thread for each, so that tests can drive them as one engine."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from llmbench import engines
from llmbench.engines import Batch, Capacity, Engine, EngineSettings, StepResult
from llmbench.link import collective
from llmbench.link.collective import Collective
from llmbench.weights.model import Model

T = TypeVar("T")


class Together:
    """An engine whose every step is taken by all ranks; what rank 0 gives is the result."""

    def __init__(self, name: str, model: Model, settings: EngineSettings, num_ranks: int) -> None:
        self.name = name
        path = collective.create(num_ranks)
        self._groups = [Collective.join(path, rank, num_ranks, patience_s=20) for rank in range(num_ranks)]
        path.unlink()
        self._pool = ThreadPoolExecutor(num_ranks)
        self.ranks: list[Engine] = self._each(lambda rank: engines.get(name, model, settings, self._groups[rank]))
        self.dtype = self.ranks[0].dtype
        self.compiled_s = 0.0

    def capacity(self) -> Capacity:
        assert len({str(rank.capacity()) for rank in self.ranks}) == 1
        return self.ranks[0].capacity()

    def step(self, batch: Batch) -> StepResult:
        return self._each(lambda rank: self.ranks[rank].step(batch))[0]

    def close(self) -> None:
        for rank in self.ranks:
            rank.close()
        self._pool.shutdown()

    def _each(self, work: Callable[[int], T]) -> list[T]:
        """What all ranks give; the error of the first rank that has one. The others have ended by then, too."""
        futures = [self._pool.submit(self._or_leave, work, rank) for rank in range(len(self._groups))]
        errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error
        return [future.result() for future in futures]

    def _or_leave(self, work: Callable[[int], T], rank: int) -> T:
        """What a rank does, and at its end the meeting that an agent keeps."""
        group, failed = self._groups[rank], True
        try:
            result = work(rank)
            failed = False
            return result
        finally:
            group.end_step(failed)
