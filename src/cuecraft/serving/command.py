"""What `cuecraft serve` does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from cuecraft.core.errors import ServeError, named
from cuecraft.export.runtime import is_export
from cuecraft.serving.cluster import Scale, run_cluster
from cuecraft.serving.setup import ServeSettings, require_extra


class ServeCommand(ServeSettings):
    """What is served, where, and by how many; `scale.drain` counts without Ray, too."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, description="port to listen on; 0 for a free one")
    backend: Literal["local", "ray"] = Field("local", description="this process, or replicas on Ray")
    scale: Scale = Field(default_factory=Scale, description="the replicas")


def run_serve(command: ServeCommand, ready: Callable[[str], None]) -> None:
    """Serve prompts until SIGTERM or SIGINT; `ready` is called with the address once it answers.

    Raises:
        ServeError: the extra is not installed, the address cannot be had, or others could ask without a token.
        CuecraftError: an artifact or the backbone cannot be used.
    """
    require_extra()
    from cuecraft.serving.http.access import LOOPBACK, check_open
    from cuecraft.serving.http.server import run_local

    if not command.open:
        check_open(command.host, command.tokens)
    if not command.prompts and command.keep is None:
        raise ServeError("there is no prompt to serve; name an artifact's folder")
    if command.backend == "ray" and command.port == 0:
        raise ServeError(f"Ray takes no free port by itself; give {named('port')}")
    if command.backend == "ray" and any(is_export(folder) for folder in command.prompts.values()):
        raise ServeError(f"exported folders are served by one process; leave {named('backend')} ray out")
    settings = ServeSettings.model_validate({name: getattr(command, name) for name in ServeSettings.model_fields})
    if command.host in LOOPBACK:
        settings = settings.model_copy(update={"open": True})  # no other client gets there
    if command.backend == "ray":
        run_cluster(settings, command.scale, (command.host, command.port), ready)
    else:
        run_local(settings, command.host, command.port, command.scale.drain, ready)
