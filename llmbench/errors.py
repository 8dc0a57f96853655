"""The errors of llmbench; foreign errors are translated where the foreign library is called.

LlmbenchError                exit  HTTP
├── InputError                 2    400   wrong usage, configuration or input file
│   ├── ConfigError            2    400   a settings file or flag; names the key
│   ├── NotInstalled           2    400   an optional library is missing; says what to install
│   └── RequestError           2    400   one request's body or parameters
│       ├── PromptTooLong      2    400   prompt and answer together pass the server's limit
│       ├── PromptEmpty        2    400   nothing to continue, or the padding id inside
│       ├── BodyTooLarge       2    413   the body passes the server's limit
│       └── Unauthorised       2    401   the API key is missing or wrong
├── CheckFailed                1      -   a requested gate, SLO or accuracy check failed
├── InvalidMeasurement         3      -   the measurement itself is not valid or not comparable
└── ServingError               3    500   the serving stack could not do its work
    ├── Overloaded             3    503   the queue is full; carries retry_after_s
    ├── TimedOut               3    504   the answer took longer than the server allows
    └── AgentDied              3    500   the agent process ended, or its step failed
"""


class LlmbenchError(Exception):
    """Root of all errors that llmbench raises on purpose; its text is one line that names the place and the way out."""

    exit_code = 3
    http_status = 500


class InputError(LlmbenchError):
    """Wrong usage, configuration or input."""

    exit_code = 2
    http_status = 400


class ConfigError(InputError):
    """A settings file or a flag is wrong; the message begins with the key."""


class NotInstalled(InputError):
    """An optional library is missing; the message says what to install."""


class RequestError(InputError):
    """One request's body or parameters are wrong."""


class PromptTooLong(RequestError):
    """Prompt and answer together pass the longest sequence the server holds."""


class PromptEmpty(RequestError):
    """The prompt has no tokens, or the padding id is among them."""


class BodyTooLarge(RequestError):
    """The body passes the server's limit."""

    http_status = 413


class Unauthorised(RequestError):
    """The API key is missing or wrong."""

    http_status = 401


class CheckFailed(LlmbenchError):
    """A requested gate, SLO or accuracy check failed."""

    exit_code = 1


class InvalidMeasurement(LlmbenchError):
    """What was measured is not valid, or two measurements are not comparable."""


class ServingError(LlmbenchError):
    """The serving stack could not do its work."""


class Overloaded(ServingError):
    """The server's queue is full."""

    http_status = 503

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TimedOut(ServingError):
    """The answer took longer than the server allows."""

    http_status = 504


class AgentDied(ServingError):
    """The agent process ended, or its step failed."""
