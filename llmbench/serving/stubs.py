"""Parts of the stack replaced by ones that do nothing in a declared time, to see what each of the others costs.

The levels, from the outside in, each with all that stands before it: `http` answers behind the HTTP server, `link`
behind frontend and scheduler, `agent` behind the link to a real agent process, `model` is the stub engine in the agent.
The contest's stack had such levels as RUN_LEVEL.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from llmbench.errors import AgentDied, LlmbenchError
from llmbench.link import frames
from llmbench.link.agent import HOLLOW_TOKEN_ID
from llmbench.link.arena import Dimensions, Row, StepArrays
from llmbench.link.extras import Extra, Scored
from llmbench.serving.frontend import Mailbox
from llmbench.types import Delta, Request

Level = Literal["none", "model", "agent", "link", "http"]


class LinkStub:
    """What the step loop sees of an agent, without an agent."""

    engine_ns = 0
    agent_ns = 0
    died: AgentDied | None = None

    def __init__(self, loaded: frames.Loaded, size: Dimensions, step_time_s: float) -> None:
        self.loaded = loaded
        self.arrays = StepArrays.private(size)
        self.pids = (os.getpid(),)
        self._step_time_s = step_time_s
        self._wanted: list[bool] = []

    def watch(self, ended: Callable[[], None]) -> None:
        """There is nothing that could end."""

    def begin(
        self, rows: Sequence[Row], steps: Sequence[int], admitted: list[frames.Admitted], extras: list[Extra]
    ) -> None:
        """Remember who wants a token."""
        self._wanted = [row.wants_token for row in rows]

    async def finish(self, num_sequences: int) -> tuple[list[int], list[float], list[Scored]]:
        """The same token for everybody, when the declared time has passed."""
        await asyncio.sleep(self._step_time_s)
        return [HOLLOW_TOKEN_ID if wanted else -1 for wanted in self._wanted], [0.0] * num_sequences, []

    async def close(self) -> None:
        """There is nothing to end."""


class FrontendStub:
    """What the HTTP server sees of a frontend, without anything behind it."""

    def __init__(self, step_time_s: float) -> None:
        self.stopping = False
        self._step_time_s = step_time_s
        self._answers: dict[Mailbox, list[asyncio.Task[None]]] = {}

    def submit(self, requests: Iterable[Request]) -> Mailbox:
        """Begin to answer at once."""
        mailbox = Mailbox()
        tasks = [asyncio.create_task(self._answer(mailbox, i, request)) for i, request in enumerate(requests)]
        self._answers[mailbox] = tasks
        return mailbox

    def cancel(self, mailbox: Mailbox) -> None:
        """Stop answering."""
        for task in self._answers.pop(mailbox, []):
            task.cancel()

    def fail_all(self, error: LlmbenchError) -> None:
        """End every request."""
        for mailbox in list(self._answers):
            mailbox.pieces.put_nowait((0, error))
            self.cancel(mailbox)

    def expire(self, older_than_s: float) -> None:
        """Nothing here takes long."""

    async def all_answered(self) -> None:
        """Until no request is under way."""
        while self._answers:
            await asyncio.wait([task for tasks in self._answers.values() for task in tasks])
            await asyncio.sleep(0)

    async def _answer(self, mailbox: Mailbox, index: int, request: Request) -> None:
        number = request.max_new_tokens or 1
        for i in range(number):
            await asyncio.sleep(self._step_time_s)
            last = i == number - 1
            mailbox.pieces.put_nowait(
                (
                    index,
                    Delta(
                        text=" the",
                        token_ids=(HOLLOW_TOKEN_ID,),
                        logits=(0.0,),
                        num_tokens=1,
                        finish_reason="length" if last else None,
                        num_prompt_tokens=1 if last else None,
                    ),
                )
            )
