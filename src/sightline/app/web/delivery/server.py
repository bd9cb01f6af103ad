"""Serves the explorer's pages, on this machine unless told otherwise."""

import ipaddress
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sightline.app.web.explorer.explorer import Explorer
from sightline.errors import SightlineError, escape_for_display

if TYPE_CHECKING:
    import uvicorn

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8642

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
ANY_ADDRESS = ("0.0.0.0", "::")

MAX_CONNECTIONS = 256
KEEP_ALIVE_SECONDS = 30
STOP_SECONDS = 3


@dataclass(frozen=True)
class ServerAddress:
    """Where a server listens.

    Attributes:
        listener: The socket that is bound already, so that the port is ours.
        host, port: Where it listens.
        token: What requests must bring; None on this machine only.
    """

    listener: socket.socket
    host: str
    port: int
    token: str | None

    @property
    def link(self) -> str:
        """The address to open, with the token."""
        host = socket.gethostname() if self.host in ANY_ADDRESS else self.host
        if ":" in host:
            host = f"[{host}]"
        query = f"?token={self.token}" if self.token else ""
        return f"http://{host}:{self.port}/{query}"


def open_server_address(host: str = DEFAULT_HOST, port: int | None = None) -> ServerAddress:
    """Binds a port; without one the usual port, or any free one where that is in use.

    A host other than this machine's own gets a random token. Raises SightlineError for a port in
    use, and for a host that is not this machine's.
    """
    if port is not None and not 0 <= port <= 65_535:
        raise SightlineError(f"port is {port}; it must lie between 0 and 65535")
    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    wanted_ports = [DEFAULT_PORT, 0] if port is None else [port]
    for wanted_port in wanted_ports:
        try:
            listener = _bind(host, wanted_port)
        except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host at all
            if wanted_port == wanted_ports[-1]:
                raise _explain_bind_error(host, wanted_port, error) from error
            continue
        return ServerAddress(listener, host, listener.getsockname()[1], token)
    raise SightlineError(f"no port of {host} is free")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, seen from itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # On Windows this would let a second server take the same port.
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def _explain_bind_error(host: str, port: int, error: OSError | UnicodeError) -> SightlineError:
    shown_host = escape_for_display(host, 80)
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return SightlineError(f"host is {shown_host!r}; it is no address of this machine")
    reason = (error.strerror or str(error)).lower()
    return SightlineError(f"can't listen on port {port} of {shown_host}: {reason}; give another")


def make_server(explorer: Explorer, address: ServerAddress) -> "uvicorn.Server":
    """The server of an explorer, which listens once it runs with the address's socket."""
    import uvicorn

    from sightline.app.web.delivery.application import make_application
    from sightline.app.web.delivery.guard import RequestGuard

    guard = RequestGuard(
        make_application(explorer),
        hosts=None if address.token else LOOPBACK_HOSTS,
        token=address.token,
        cookie=f"sightline-{address.port}",
    )
    config = uvicorn.Config(
        guard,
        log_level="error",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
        ws="none",
    )
    return uvicorn.Server(config)


def serve(
    explorer: Explorer, address: ServerAddress, on_start: Callable[[str], None] | None = None
) -> None:
    """Serves the explorer until the process is interrupted.

    `on_start` gets the link, at which the server answers from then on. The caller closes the
    address's socket.
    """
    server = make_server(explorer, address)
    if on_start is not None:
        on_start(address.link)
    with suppress(KeyboardInterrupt):  # uvicorn raises it again when it has stopped
        server.run(sockets=[address.listener])
