"""Servers that cheat: real sockets in front of real stacks, whose answers they change, keep, or get from elsewhere."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from llmbench import protocols
from llmbench.loadgen.client import Client, Timeouts
from llmbench.loadgen.record import Record
from llmbench.loadgen.target import locate
from llmbench.protocols import Reply, Status
from llmbench.tokenizer import Detokenizer, Tokenizer, embedded_path
from llmbench.types import Delta, FinishReason, Request
from tests.loadgen.relay import Threaded

Ask = Callable[[Request], Awaitable["Said"]]

STATUS = Status(
    model_name="embedded",
    model_dtype="float32",
    vocab_size=1 << 16,
    max_model_len=4096,
    max_batch=64,
    max_tokens_per_step=512,
    max_waiting=1000,
    num_running=0,
    num_waiting=0,
    num_blocks=1,
    num_free_blocks=1,
    block_size=16,
    ready=True,
)


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """An answer: token ids and why it ended; `text` stands for the ids' own where it is given."""

    ids: tuple[int, ...]
    reason: FinishReason
    text: str | None = None


class Trick(Protocol):
    """What a server does instead of answering."""

    async def answer(self, request: Request, ask: Ask) -> Said:
        """The answer to a request; `ask` gets the honest one."""
        ...


class Honest:
    """Answers as the stack does."""

    async def answer(self, request: Request, ask: Ask) -> Said:
        return await ask(request)


class Truncating:
    """Gives half of each answer, and says that the model ended it."""

    def __init__(self, reason: FinishReason = "eos") -> None:
        self.reason = reason

    async def answer(self, request: Request, ask: Ask) -> Said:
        said = await ask(request)
        return Said(ids=said.ids[: max(1, len(said.ids) // 2)], reason=self.reason)


class Remembering:
    """Keeps whole answers by their prompt, and gives them at once when it comes again."""

    def __init__(self) -> None:
        self._kept: dict[str | tuple[int, ...], Said] = {}

    async def answer(self, request: Request, ask: Ask) -> Said:
        if request.prompt in self._kept:
            said, limit = self._kept[request.prompt], request.max_new_tokens or 1
            return said if len(said.ids) <= limit else Said(ids=said.ids[:limit], reason="length")
        said = self._kept[request.prompt] = await ask(request)
        return said


class Excusing:
    """Gives every so manieth request an error text instead of an answer, quickly, with HTTP 200."""

    def __init__(self, every: int) -> None:
        self._every, self._count = every, 0

    async def answer(self, request: Request, ask: Ask) -> Said:
        self._count += 1
        if self._count % self._every:
            return await ask(request)
        return Said(ids=(300,) * (request.max_new_tokens or 1), reason="length", text="Error202: prompt out of range")


class Cheat:
    """A server of the contest's dialect in a thread, in front of the stack at `url`, which may be set anew."""

    def __init__(self, url: str, trick: Trick) -> None:
        self.url_behind, self.trick = url, trick
        self._shown = url  # what it says of itself does not change with what answers
        self._dialect = protocols.get("contest")
        self._tokenizer = Tokenizer.from_file(embedded_path())
        self._server = Threaded(self._handle)
        self.url = f"http://127.0.0.1:{self._server.port}"

    def close(self) -> None:
        """End it."""
        self._server.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, path, _ = head.split(" ", 2)
            if method == "GET":
                writer.write(await self._passed_on(path))
                await writer.drain()
                return
            headers = {
                name.strip().lower(): value.strip()
                for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:] if line)
            }
            body = await reader.readexactly(int(headers["content-length"]))
            reply = self._dialect.parse(path, body, headers, STATUS)
            said = await self.trick.answer(reply.requests[0], self._ask)
            await self._write(writer, reply, said)

    async def _passed_on(self, path: str) -> bytes:
        """What the stack says at another page."""
        target = locate(self._shown)
        reader, writer = await asyncio.open_connection(target.host, target.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {target.authority}\r\nConnection: close\r\n\r\n".encode())
        found = await reader.read()
        writer.close()
        return found

    async def _ask(self, request: Request) -> Said:
        client = Client(locate(self.url_behind), self._dialect, Timeouts())
        try:
            record: Record = await client.send(msgspec.structs.replace(request, stream=True))
        finally:
            await client.close()
        assert record.status == "answered", record.reason
        assert record.finish_reason is not None
        return Said(ids=tuple(record.token_ids), reason=record.finish_reason)

    async def _write(self, writer: asyncio.StreamWriter, reply: Reply, said: Said) -> None:
        lines = [*(f"{name}: {value}" for name, value in reply.headers), "Transfer-Encoding: chunked", "", ""]
        writer.write(("HTTP/1.1 200 OK\r\n" + "\r\n".join(lines)).encode("latin-1"))
        detokenizer = Detokenizer(self._tokenizer)
        for place, token in enumerate(said.ids):
            last = place == len(said.ids) - 1
            text = detokenizer.push(token) + (detokenizer.flush() if last else "")
            if said.text is not None:
                text = said.text if place == 0 else ""
            delta = Delta(
                text=text,
                token_ids=(token,),
                logits=(0.0,),
                num_tokens=1,
                finish_reason=said.reason if last else None,
            )
            for chunk in reply.render(delta):
                writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        writer.write(b"0\r\n\r\n")
        await writer.drain()
