"""Clients that others wrote, against a server of ours in its own process."""

from collections.abc import Iterator

import pytest

from llmbench.serving import launch


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "clients: runs clients of others (extra `clients`; part of `make test-all`)")


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """A server with the smallest random model."""
    with launch.launched(["--model", "random:tiny", "--threads", "1"]) as server:
        yield server.url
