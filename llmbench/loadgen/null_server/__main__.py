"""`python -m llmbench.loadgen.null_server`: serve until a signal, or until stdin closes."""

import argparse
import gc
import signal
import sys
from typing import get_type_hints

import msgspec

from llmbench import config
from llmbench.errors import LlmbenchError
from llmbench.loadgen.null_server import READY, Faults, Settings
from llmbench.loadgen.null_server._loop import Loop


def parser() -> argparse.ArgumentParser:
    """A flag for every setting and every fault."""
    made = argparse.ArgumentParser(prog="python -m llmbench.loadgen.null_server", description="See the module's text.")
    made.add_argument("--host", default="127.0.0.1")
    made.add_argument("--port", type=int, default=0, help="0: a free one, which is printed")
    made.add_argument("--until-stdin-closes", action="store_true")
    for part in (Settings, Faults):
        kinds = get_type_hints(part)
        for field in msgspec.structs.fields(part):
            flag, kind = f"--{field.name.replace('_', '-')}", kinds[field.name]
            if kind is bool:
                made.add_argument(flag, action="store_true")
            elif field.name != "faults":
                made.add_argument(flag, type=kind, default=field.default)
    return made


def settings(options: argparse.Namespace) -> Settings:
    """The settings that the flags say. Raises ConfigError."""
    values = vars(options)
    own = {field.name: values[field.name] for field in msgspec.structs.fields(Settings) if field.name != "faults"}
    faults = {field.name: values[field.name] for field in msgspec.structs.fields(Faults)}
    return config.build(own | {"faults": faults}, Settings, "null server")


def main() -> None:
    """Serve."""
    options = parser().parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        loop = Loop(settings(options), options.host, options.port)
    except (LlmbenchError, OSError) as error:
        print(f"null server: {error}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, LlmbenchError) else 3)
    if options.until_stdin_closes:
        loop.end_with(sys.stdin.fileno())
    print(f"{READY}http://{options.host}:{loop.port}", flush=True)
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection would hold tokens back; what is made for a request is freed without one
    loop.run()


if __name__ == "__main__":
    main()
