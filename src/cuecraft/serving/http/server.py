"""Running the application: a socket, uvicorn, and an orderly end."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from cuecraft.core.errors import ServeError, named
from cuecraft.core.signals import Stop
from cuecraft.serving.http.app import create_app
from cuecraft.serving.http.middleware import LOG, log_to_stderr
from cuecraft.serving.http.service import Service
from cuecraft.serving.setup import ServeSettings, make_service

_BACKLOG = 2048


def address_of(host: str, port: int) -> str:
    """Return the address of a server."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket with a port of its own, not yet listening; port 0 takes a free one.

    Raises:
        ServeError: the port is taken, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        raise ServeError(
            f"cannot listen on {host} port {port} ({error}); choose another {named('host')} or {named('port')}"
        ) from None
    return found


def run_local(settings: ServeSettings, host: str, port: int, drain: float, ready: Callable[[str], None]) -> None:
    """Load what is served, and serve it on this machine; arguments and end as for `run`.

    Raises:
        ServeError: the address cannot be had.
        CuecraftError: as `make_service`.
    """
    listening = listen(host, port)  # before the model is loaded, which takes longer than to say that this is in vain
    run(make_service(settings), listening, drain, ready)


def run(service: Service, listening: socket.socket, drain: float, ready: Callable[[str], None]) -> None:
    """Answer requests until SIGTERM or SIGINT; then what is in progress, for `drain` seconds at most.

    Args:
        service: what is served.
        listening: the socket.
        drain: seconds.
        ready: called with the server's address once it answers.
    """
    log_to_stderr()
    address = address_of(*listening.getsockname()[:2])
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(drain)),
        timeout_keep_alive=30,
        backlog=_BACKLOG,
    )
    fields = {"address": address, "model": service.engine.shelf.model}

    def told() -> None:
        LOG.info("ready", extra={"fields": fields})
        ready(address)

    with Stop().listening():  # uvicorn raises a signal once more when it is done, which would end the process
        _Telling(config, told).run(sockets=[listening])
    LOG.info("stopped")


class _Telling(uvicorn.Server):
    """A uvicorn server that tells when it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()
