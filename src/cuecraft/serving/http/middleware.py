"""Around every request: its size, its log line, its metrics for Prometheus, its trace, and security headers.

Traces go by OpenTelemetry to where its OTEL_* variables say; an extra: ``cuecraft[otel]``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cuecraft.core.errors import ServeError
from cuecraft.serving.requests import AnyEngine, Watcher

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
LOG = logging.getLogger("cuecraft.serving")
_POLICY = b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"
_HEADERS = [
    (b"content-security-policy", _POLICY + b"; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
_QUIET = "healthz,readyz,metrics"


class Metrics(Watcher):
    """Counters and histograms of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        to: dict[str, Any] = {"namespace": "cuecraft", "registry": self._registry}
        self._requests = Counter("requests", "Requests, by route and status.", ["route", "status"], **to)
        self._request_seconds = Histogram(
            "request_seconds", "Seconds of a request, by route.", ["route"], buckets=_SECONDS, **to
        )
        self._answers = Counter(
            "answers",
            "Answers, by prompt and by where they came from (computed, shared, cache).",
            ["prompt", "source"],
            **to,
        )
        self._answer_seconds = Histogram(
            "answer_seconds", "Seconds until an answer was there, by prompt.", ["prompt"], buckets=_SECONDS, **to
        )
        self._refusals = Counter("refusals", "Answers refused, by reason.", ["reason"], **to)
        self._screened = Counter("screened", "Texts that the guard looked at, by verdict.", ["verdict"], **to)
        self._batch_rows = Histogram("batch_rows", "Rows of a batch.", buckets=_ROWS, **to)
        self._batch_tokens = Counter("batch_tokens", "Tokens of all batches.", **to)
        self._batch_seconds = Histogram("batch_seconds", "Seconds of a batch.", buckets=_SECONDS, **to)
        self._queue = Gauge("queue_depth", "Answers that are waited for.", **to)
        self._prompts = Gauge("prompts", "Prompts that are served.", **to)

    def follow(self, engine: AnyEngine) -> None:
        """Read the gauges off an engine."""
        self._queue.set_function(lambda: engine.waiting)
        self._prompts.set_function(lambda: len(engine.shelf.all()))

    def requested(self, route: str, status: int, seconds: float) -> None:
        """Take note of a request."""
        self._requests.labels(route, status).inc()
        self._request_seconds.labels(route).observe(seconds)

    def batched(self, rows: int, texts: int, tokens: int, seconds: float) -> None:
        """Take note of a batch."""
        self._batch_rows.observe(rows)
        self._batch_tokens.inc(tokens)
        self._batch_seconds.observe(seconds)

    def answered(self, prompt: str, seconds: float, source: str) -> None:
        """Take note of an answer."""
        self._answers.labels(prompt, source).inc()
        self._answer_seconds.labels(prompt).observe(seconds)

    def refused(self, reason: str, answers: int) -> None:
        """Take note of answers that were refused."""
        self._refusals.labels(reason).inc(answers)

    def screened(self, verdict: str) -> None:
        """Take note of a text that the guard looked at."""
        self._screened.labels(verdict).inc()

    def document(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return bytes(generate_latest(self._registry))


class JsonLines(logging.Formatter):
    """One JSON object a line. What a request says of itself goes along; texts are not among it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        document = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        document |= getattr(record, "fields", {})
        if record.exc_info:
            document["error"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False, default=str)


def log_to_stderr() -> None:
    """Write the server's log to stderr as JSON lines; once, however often it is called."""
    if not LOG.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        LOG.addHandler(handler)
        LOG.setLevel(logging.INFO)
        LOG.propagate = False


_DROPPED_BYTES, _DROPPED_SECONDS = 64_000_000, 5.0  # of a body that is too large, before its sender gets the error


def cross_origin(origins: Sequence[str]) -> dict[str, Any]:
    """Return what web pages of other origins may do from a browser, as Starlette's CORSMiddleware takes it.

    Credentials that a browser sends by itself go with named origins only.
    """
    return {
        "allow_origins": list(origins),
        "allow_methods": ["GET", "HEAD", "POST", "PUT", "DELETE"],
        "allow_headers": ["authorization", "content-type"],
        "expose_headers": ["retry-after", "x-request-id"],
        "allow_credentials": "*" not in origins,
        "max_age": 600,
    }


class TooLargeError(Exception):
    """A body is larger than allowed."""


class BodyLimit:
    """Refuses bodies that are too large, before they are read where their size is declared, and while they are else.

    Args:
        app: what answers.
        most: bytes by method.
    """

    def __init__(self, app: AsgiApp, most: Callable[[str], int]) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._most(scope["method"])
        headers = dict(scope["headers"])
        told = headers.get(b"content-length", b"0")
        size = int(told) if told.isdigit() else 0
        has_begun, read, is_more = False, 0, True

        async def counted() -> Message:
            nonlocal read, is_more
            message = await receive()
            is_more = message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > most:
                raise TooLargeError
            return message

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        if size <= most:
            try:
                await self._app(scope, counted, watched)
            except TooLargeError:
                if has_begun:
                    raise
            else:
                return
        if is_more and b"expect" not in headers:  # a client that asks first sends nothing once it is refused
            await _thrown_away(receive)
        await _refuse(send, 413, f"the request's body is larger than {most} bytes; send less at once")


async def _thrown_away(receive: Receive) -> None:
    """Read what is left of a body, within bounds, and drop it.

    Most clients look for an answer once they have sent everything, and find the connection reset where it was closed on
    what they had sent.
    """
    left = _DROPPED_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(_DROPPED_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


class Observed:
    """Logs and counts every request.

    Args:
        app: what answers.
        metrics: where requests are counted.
    """

    def __init__(self, app: AsgiApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 500
        told: dict[str, Any] = {}
        request_id = uuid.uuid4().hex[:16]
        scope.setdefault("state", {})["log"] = told  # routes add what they know: caller, texts, prompts

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name for name, _ in message.get("headers", [])}
                extra = [pair for pair in _HEADERS if pair[0] not in own]
                message["headers"] = [*message.get("headers", []), *extra, (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            LOG.exception("failed", extra={"fields": {"request": request_id}})
            await _refuse(watched, 500, f"the server failed; its log says why, under request {request_id}")
        finally:
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requested(route, status, seconds)
            if route not in ("/healthz", "/readyz", "/metrics"):
                fields = {"request": request_id, "route": route, "status": status, "ms": round(1000 * seconds, 1)}
                LOG.info("request", extra={"fields": fields | told})


async def _refuse(send: Send, status: int, error: str) -> None:
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


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
