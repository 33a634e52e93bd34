"""Ray Serve: replicas with an engine each, and fronts that take the requests.

The prompt is named in the request and stands on the row: every replica serves all prompts, and rows of all of them
share its batches. (Ray's multiplexing would send each prompt to replicas of its own, and tear the batches apart.)

A front is the server of one machine with an engine that asks the replicas. It holds a request until it has the answer,
and asks another replica where one dies: classifying twice does no harm. (HAProxy alone, in front of the replicas,
loses what stands in the buffers of a replica that is killed; that was tried.)

Ray's defaults are overridden where they were measured to cost most: code runs in the loop that also takes the requests,
fronts take HTTP themselves behind HAProxy, and far more requests may be in progress than five.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from pydantic import Field

from cuecraft.core.environment import set_threads
from cuecraft.core.errors import CuecraftError, ServeError
from cuecraft.core.options import Options
from cuecraft.core.signals import Stop
from cuecraft.serving.engine import Engine
from cuecraft.serving.kept import Kept, follow
from cuecraft.serving.remote import Refusal, RemoteEngine, Reply
from cuecraft.serving.setup import ServeSettings, load_listing, load_shelf, require_extra, service_of

#: What has to stand in the environment of every node before Ray starts there; what is set already is left alone.
ENVIRONMENT = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # of 5, which a busy machine does not keep
}
#: The same for a cluster of this machine alone, where no load balancer has to learn first that a front goes away.
_ALONE = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}
_APPLICATION = "cuecraft"
_LOOK = 0.2  # seconds between two looks whether to stop


class Scale(Options):
    """How many replicas there are, and what each of them has."""

    replicas: int = Field(1, ge=1, description="at least")
    max_replicas: int | None = Field(None, ge=1, description="at most, by load; by default no more than at least")
    cpus: float = Field(1.0, gt=0, description="cores of one replica; so many threads compute in it")
    gpus: float = Field(0.0, ge=0, description="GPUs of one replica")
    memory_mb: int | None = Field(None, ge=1, description="memory that is set aside for one replica")
    target_ongoing: int = Field(
        32, ge=1, description="requests in progress in a replica, above which one more is started"
    )
    max_ongoing: int = Field(512, ge=1, description="requests in progress in a replica, at most")
    max_queued: int = Field(4096, ge=1, description="requests that wait for a replica, at most")
    drain: float = Field(20.0, ge=0, description="seconds for what is in progress when a replica is stopped")
    fronts: int = Field(1, ge=1, description="processes that take the requests")
    front_cpus: float = Field(0.1, ge=0, description="cores that are set aside for one of them")


def build(arguments: Mapping[str, Any]) -> Any:
    """Return the Serve application: the `import_path` of a Serve config file is ``cuecraft.serving.cluster:build``.

    Args:
        arguments: ``serve``, as `ServeSettings` has it, and ``scale``, as `Scale` has it.

    Raises:
        ServeError: an argument is unknown or wrong.
    """
    unknown = set(arguments) - {"serve", "scale"}
    if unknown:
        raise ServeError(f"unknown argument {sorted(unknown)[0]!r} in the Serve config; there are serve and scale")
    settings = ServeSettings.model_validate(arguments.get("serve", {}))
    return application(settings, Scale.model_validate(arguments.get("scale", {})))


def application(settings: ServeSettings, scale: Scale) -> Any:
    """Return the Serve application."""
    from ray import serve

    document = settings.model_dump_json()
    memory = {"memory": scale.memory_mb * 2**20} if scale.memory_mb else {}
    engines: Any = serve.deployment(
        Replica,
        name="engine",
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus, **memory},
        max_ongoing_requests=scale.max_ongoing,
        max_queued_requests=scale.max_queued,
        graceful_shutdown_timeout_s=scale.drain,
        autoscaling_config={
            "min_replicas": scale.replicas,
            "max_replicas": max(scale.replicas, scale.max_replicas or 0),
            "target_ongoing_requests": scale.target_ongoing,
        },
    )
    fronts: Any = serve.deployment(
        serve.ingress()(Front),
        name="front",
        num_replicas=scale.fronts,
        ray_actor_options={"num_cpus": scale.front_cpus},
        max_ongoing_requests=scale.max_queued,
        graceful_shutdown_timeout_s=scale.drain,
    )
    return fronts.bind(document, engines.bind(document, max(1, round(scale.cpus))))


class Replica:
    """One replica: the engine of `cuecraft serve`.

    Args:
        settings: `ServeSettings`, as JSON.
        threads: that compute.
    """

    def __init__(self, settings: str, threads: int) -> None:
        set_threads(threads)
        own = ServeSettings.model_validate_json(settings)
        self._engine = Engine(load_shelf(own), own.batches)
        if own.keep is not None:
            follow(Kept(self._engine.shelf, own.keep))

    async def answer(self, texts: Sequence[Mapping[str, Any]], names: Sequence[str], timeout: float | None) -> Reply:
        """Return the engine's answers to a request, or what is wrong with it."""
        try:
            return await asyncio.wrap_future(self._engine.submit(texts, names, timeout))
        except CuecraftError as error:
            return Refusal(type(error).__name__, str(error), getattr(error, "retry_after", 1.0))

    def check_health(self) -> None:
        """Raise where the replica answers no more; Ray then starts another one."""
        if not self._engine.is_open:
            raise RuntimeError("the engine has stopped")


class Front:
    """One front: what `cuecraft serve` has around its engine.

    Args:
        settings: `ServeSettings`, as JSON.
        engines: the replicas' handle.
    """

    def __init__(self, settings: str, engines: Any) -> None:
        from cuecraft.serving.http.access import check_open
        from cuecraft.serving.http.middleware import Metrics, log_to_stderr

        log_to_stderr()
        own, metrics = ServeSettings.model_validate_json(settings), Metrics()
        if not own.open:  # the environment that may hold tokens is this node's
            check_open("the cluster", own.tokens)
        self._service = service_of(own, RemoteEngine(engines, load_listing(own), metrics), metrics)

    def __serve_build_asgi_app__(self) -> Any:  # the name is Ray's
        """Return the application."""
        from cuecraft.serving.http.app import create_app

        return create_app(self._service)


def run_cluster(settings: ServeSettings, scale: Scale, address: tuple[str, int], ready: Callable[[str], None]) -> None:
    """Serve on Ray until SIGTERM or SIGINT: on the cluster that RAY_ADDRESS names, or on one of this machine alone.

    Args:
        settings: what is served; its folders have to be there on every node.
        scale: the replicas.
        address: host and port.
        ready: called with the address once it answers.

    Raises:
        ServeError: Ray is not installed, or the replicas cannot be started.
    """
    require_extra()
    if find_spec("ray") is None:
        raise ServeError("the Ray backend needs Ray: pip install 'cuecraft[ray]'")
    own = ENVIRONMENT if os.environ.get("RAY_ADDRESS") else ENVIRONMENT | _ALONE
    for name, value in own.items():
        os.environ.setdefault(name, value)
    import ray
    from ray import serve
    from ray.serve.exceptions import RayServeException

    from cuecraft.serving.http.server import address_of

    stop, is_shared = Stop(), bool(os.environ.get("RAY_ADDRESS"))
    host, port = address
    try:
        ray.init(include_dashboard=False, log_to_driver=False, namespace=_APPLICATION)
        with stop.listening():  # after Ray's start, which takes the signals for itself
            seconds = settings.limits.timeout_ms / 1000 + scale.drain
            serve.start(http_options={"host": host, "port": port, "request_timeout_s": seconds})
            serve.run(application(settings, scale), name=_APPLICATION, route_prefix="/")
            ready(address_of(host, port))
            while not stop():
                time.sleep(_LOOK)
    except (OSError, RuntimeError, TimeoutError, RayServeException, ray.exceptions.RayError) as error:
        raise ServeError(f"the replicas did not start ({' '.join(str(error).split())[:300]})") from error
    finally:
        if ray.is_initialized():
            # Others may have applications of their own on a cluster that is shared.
            serve.delete(_APPLICATION) if is_shared else serve.shutdown()
            ray.shutdown()
