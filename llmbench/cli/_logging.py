"""Where log lines go: stderr, one line each."""

import logging


def configure(verbose: bool = False) -> None:
    """Log warnings and above; everything of ours with `verbose`."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("llmbench").setLevel(logging.DEBUG if verbose else logging.WARNING)
