"""Where a run sends to, and the way there: found and tried once, so that no request waits for a name."""

import re
import socket
import ssl
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import msgspec

from llmbench.errors import InputError, ServingError

_PORTS = {"http": 80, "https": 443}
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_OURS = ("host", "content-length", "transfer-encoding", "connection")


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """How requests get to a server. Its headers may hold secrets: it is never written to a file.

    `headers` go along with every request; `cacert` is a file of certificates to trust instead of the system's, and
    `insecure` trusts anybody. `proxy` is the URL of an HTTP proxy. So many `warm_connections` are open before the
    first request.
    """

    headers: tuple[tuple[str, str], ...] = ()
    cacert: str | None = None
    insecure: bool = False
    proxy: str | None = None
    warm_connections: int = 0


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run sends to: the name as given, and the one address that answered (the proxy's, where there is one).

    `about` is what a server that was launched for the run said of itself.
    """

    url: str
    authority: str
    prefix: str
    family: int
    host: str
    port: int
    tls_name: str | None = None
    """The name that the server's certificate must have; None for plain HTTP."""
    way: Way = Way()
    about: str = ""

    @property
    def transport(self) -> str:
        """What carries the requests, for people."""
        if self.way.proxy is not None:
            return "aiohttp through a proxy"
        return "https" if self.tls_name is not None else "http"

    def tls(self) -> ssl.SSLContext | None:
        """What a connection is secured with; None for plain HTTP. Raises InputError for a wrong `cacert`."""
        if self.tls_name is None:
            return None
        try:
            context = ssl.create_default_context(cafile=self.way.cacert)
        except OSError as error:  # ssl.SSLError is one too
            raise InputError(f"--cacert {self.way.cacert}: cannot read it as certificates ({_words(error)})") from error
        context.set_alpn_protocols(["http/1.1"])
        if self.way.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def locate(url: str, timeout_s: float = 5.0, flag: str = "--url", way: Way = Way()) -> Target:  # noqa: B008 (frozen)
    """Find the address behind a URL and try it. Raises InputError for a wrong URL, ServingError when nobody answers."""
    parts = _split(url, flag)
    first, first_flag = parts, flag
    if way.proxy is not None:
        first, first_flag = _split(way.proxy, "--proxy"), "--proxy"
        if first.scheme != "http":
            raise InputError("--proxy: only http://HOST:PORT is a proxy; https targets go through it too")
    try:
        addresses = socket.getaddrinfo(first.host, first.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(f"{first_flag} {first.authority}: cannot find the host ({error.strerror})") from error
    failures: list[str] = []
    for family, _, _, _, address in addresses:
        target = Target(
            url=url,
            authority=parts.authority,
            prefix=parts.prefix,
            family=family,
            host=str(address[0]),
            port=first.port,
            tls_name=parts.host if parts.scheme == "https" else None,
            way=way,
        )
        failure = _try(target, timeout_s)
        if not failure:
            return target
        failures.append(failure)
    there = url if way.proxy is None else f"the proxy {first.authority}"
    raise ServingError(f"nobody answers at {there} ({failures[0]}); start a server there, or leave {first_flag} out")


def header(text: str) -> tuple[str, str]:
    """`NAME:VALUE` as a header. Raises InputError for what is none, and for those that the client makes itself."""
    name, colon, value = text.partition(":")
    value = value.strip()
    if not colon or not _TOKEN.fullmatch(name) or not value.isprintable() or not value.isascii():
        raise InputError(f"--header {name}: expected NAME:VALUE in ASCII")
    if name.lower() in _OURS:
        raise InputError(f"--header {name}: the client makes this one itself")
    return name, value


class _Parts(NamedTuple):
    """Of a URL; `prefix` is the path in front of all routes."""

    scheme: str
    host: str
    port: int
    authority: str
    prefix: str


def _split(url: str, flag: str) -> _Parts:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise InputError(f"{flag} {url}: {error}") from error
    if parts.scheme not in _PORTS or not parts.hostname:
        raise InputError(f"{flag} {url}: expected http://HOST:PORT or https://HOST:PORT")
    return _Parts(parts.scheme, parts.hostname, port, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"))


def _try(target: Target, timeout_s: float) -> str:
    """Connect once; what failed. Through a proxy only the way to it is tried."""
    context = target.tls() if target.way.proxy is None else None
    try:
        with socket.create_connection((target.host, target.port), timeout=timeout_s) as connection:
            if context is not None:
                context.wrap_socket(connection, server_hostname=target.tls_name).close()
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message
        raise ServingError(
            f"{target.url}: its certificate is not trusted ({why}); see --cacert and --insecure"
        ) from error
    except OSError as error:
        return _words(error)
    return ""


def _words(error: OSError) -> str:
    return cast("str | None", getattr(error, "reason", None)) or error.strerror or str(error)
