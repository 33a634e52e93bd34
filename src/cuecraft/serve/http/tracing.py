"""Traces of requests, sent by OpenTelemetry to where its OTEL_* variables say; an extra: ``cuecraft[otel]``."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from cuecraft.errors import ServeError

_QUIET = "healthz,readyz,metrics"


def add_tracing(app: Any, provider: Any = None) -> None:
    """Have an application tell OpenTelemetry of each request: route, status and time, and nothing of its body.

    Args:
        app: a FastAPI application.
        provider: of tracers; None for one that exports by OTLP over HTTP.

    Raises:
        ServeError: the extra is not installed.
    """
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.instrumentation.asgi") is None:
        raise ServeError("tracing needs further packages: pip install 'cuecraft[otel]'")
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.util.http import parse_excluded_urls

    app.add_middleware(
        OpenTelemetryMiddleware,
        excluded_urls=parse_excluded_urls(_QUIET),
        default_span_details=lambda scope: (f"{scope['method']} {scope['path']}", {}),
        exclude_spans=["receive", "send"],
        tracer_provider=provider or _exporting(),
    )


def _exporting() -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "cuecraft"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
