"""A dialect that also keeps the log-probabilities of each response, which a Record has no place for."""

from collections.abc import Mapping

import msgspec

from llmbench.protocols import ClientHalf, Decoder, HttpRequest
from llmbench.types import Delta, Request, TokenLogprob


class Heard(msgspec.Struct):
    """The log-probabilities of one response: of the answer's tokens, and of the prompt's where those were asked for."""

    new: list[TokenLogprob] = []
    prompt: list[TokenLogprob] = []


class Listening:
    """The client's half of a dialect, listened to."""

    def __init__(self, dialect: ClientHalf) -> None:
        self._dialect = dialect
        self._heard: dict[str, Heard] = {}
        self.name = dialect.name

    def encode(self, request: Request) -> HttpRequest:
        """As the dialect does."""
        return self._dialect.encode(request)

    def decoder(self, request: Request, headers: Mapping[str, str]) -> Decoder:
        """The dialect's decoder; what it reads is kept until `take`."""
        heard = self._heard[request.request_id] = Heard()
        return _Tap(self._dialect.decoder(request, headers), heard)

    def take(self, request_id: str) -> Heard:
        """What a response said, once."""
        return self._heard.pop(request_id, None) or Heard()


class _Tap:
    """A decoder that notes log-probabilities on their way."""

    def __init__(self, decoder: Decoder, heard: Heard) -> None:
        self._decoder = decoder
        self._heard = heard

    def feed(self, data: bytes) -> list[Delta]:
        """What the decoder gives."""
        return self._noted(self._decoder.feed(data))

    def close(self) -> list[Delta]:
        """What the decoder gives."""
        return self._noted(self._decoder.close())

    def _noted(self, deltas: list[Delta]) -> list[Delta]:
        for delta in deltas:
            self._heard.new += delta.logprobs
            self._heard.prompt += delta.prompt
        return deltas
