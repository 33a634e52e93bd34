"""What happens, as Prometheus asks for it."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cuecraft.serve.requests import AnyEngine, Watcher

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


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
