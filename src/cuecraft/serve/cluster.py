"""Ray Serve: the same application and engine in every replica, behind one address.

The prompt is named in the request and stands on the row: every replica serves all prompts, and rows of all of them
share its batches. (Ray's multiplexing would send each prompt to replicas of its own, and tear the batches apart.)

Ray's defaults are overridden where they were measured to cost most: it runs the replica's code in the loop that also
takes the requests, replicas take HTTP themselves behind HAProxy, and far more requests may be under way than five. A
request whose replica dies is sent to another one: classifying twice does no harm. That holds for requests of up to
about 15 kB, which is what HAProxy keeps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from pydantic import Field

from cuecraft.errors import ServeError
from cuecraft.options import Options
from cuecraft.serve.setup import ServeSettings, make_service, require_extra
from cuecraft.signals import Stop

#: What has to stand in the environment of every node before Ray starts there; what is set already is left alone.
ENVIRONMENT = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "5",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # of 5, which a busy machine does not keep
}
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
        32, ge=1, description="requests under way in a replica, above which one more is started"
    )
    max_ongoing: int = Field(512, ge=1, description="requests under way in a replica, at most")
    max_queued: int = Field(4096, ge=1, description="requests that wait for a replica, at most")
    drain: float = Field(20.0, ge=0, description="seconds for what is under way when a replica is stopped")


def build(arguments: Mapping[str, Any]) -> Any:
    """Return the Serve application: the `import_path` of a Serve config file is ``cuecraft.serve.cluster:build``.

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

    deployment: Any = serve.deployment(
        serve.ingress()(Replica),
        name="engine",
        ray_actor_options={
            "num_cpus": scale.cpus,
            "num_gpus": scale.gpus,
            **({"memory": scale.memory_mb * 2**20} if scale.memory_mb else {}),
        },
        max_ongoing_requests=scale.max_ongoing,
        max_queued_requests=scale.max_queued,
        graceful_shutdown_timeout_s=scale.drain,
        autoscaling_config={
            "min_replicas": scale.replicas,
            "max_replicas": max(scale.replicas, scale.max_replicas or 0),
            "target_ongoing_requests": scale.target_ongoing,
        },
    )
    return deployment.bind(settings.model_dump_json(), max(1, round(scale.cpus)))


class Replica:
    """One replica: a service of its own.

    Args:
        settings: `ServeSettings`, as JSON.
        threads: that compute.
    """

    def __init__(self, settings: str, threads: int) -> None:
        import torch

        from cuecraft.serve.http.middleware import log_to_stderr

        torch.set_num_threads(threads)
        log_to_stderr()
        self._service = make_service(ServeSettings.model_validate_json(settings))

    def __serve_build_asgi_app__(self) -> Any:  # the name is Ray's
        """Return the application."""
        from cuecraft.serve.http.app import create_app

        return create_app(self._service)

    def check_health(self) -> None:
        """Raise where the replica answers no more; Ray then starts another one."""
        if not self._service.engine.is_open:
            raise RuntimeError("the engine has stopped")


def run_cluster(settings: ServeSettings, scale: Scale, address: tuple[str, int], ready: Callable[[str], None]) -> None:
    """Serve on Ray until SIGTERM or SIGINT: on the cluster that RAY_ADDRESS names, or on one of this machine alone.

    Args:
        settings: what is served; its folders have to be there on every node.
        scale: the replicas.
        address: host and port.
        ready: is told the address once it answers.

    Raises:
        ServeError: Ray is not installed, or the replicas cannot be started.
    """
    require_extra()
    if find_spec("ray") is None:
        raise ServeError("the Ray backend needs Ray: pip install 'cuecraft[ray]'")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    from ray import serve

    host, port = address
    stop = Stop()
    with stop.listening():
        ray.init(include_dashboard=False, log_to_driver=False, namespace=_APPLICATION)
        try:
            timeout = settings.limits.timeout_ms / 1000
            serve.start(http_options={"host": host, "port": port, "request_timeout_s": timeout + scale.drain})
            serve.run(application(settings, scale), name=_APPLICATION, route_prefix="/")
            ready(f"http://{host}:{port}")
            while not stop():
                time.sleep(_LOOK)
        except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
            raise ServeError(f"the replicas did not start ({' '.join(str(error).split())[:300]})") from error
        finally:
            serve.shutdown()
            ray.shutdown()
