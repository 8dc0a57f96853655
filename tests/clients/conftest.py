"""Clients that others wrote, against a server of ours in its own process."""

from collections.abc import Iterator

import pytest

from llmbench.serving import launch


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """A server with the smallest random model."""
    with launch.launched(["--model", "random:tiny", "--threads", "1"]) as server:
        yield server.url
