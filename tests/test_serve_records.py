"""What the server records: metrics, traces, log lines, failures."""

import logging

import pytest

from cuecraft.serving import EngineOptions
from cuecraft.serving.http.middleware import LOG, add_tracing
from serving import X
from serving_here import classify


def test_metrics_count_what_happened(serve):
    server = serve(engine=EngineOptions(cache_answers=10, max_wait_ms=0))
    server.ask(*classify(X[0], ["hard", "soft"]))
    server.ask(*classify(X[0], ["hard"]))
    server.ask(*classify(X[0], "nobody"))
    text = server.ask("GET", "/metrics").text
    for line in (
        'cuecraft_requests_total{route="/v1/classify",status="200"} 2.0',
        'cuecraft_requests_total{route="/v1/classify",status="404"} 1.0',
        'cuecraft_answers_total{prompt="hard",source="computed"} 1.0',
        'cuecraft_answers_total{prompt="hard",source="cache"} 1.0',
        "cuecraft_batch_rows_sum 2.0",
        "cuecraft_queue_depth 0.0",
        "cuecraft_prompts 2.0",
    ):
        assert line in text
    assert "nobody" not in text


def test_traces_have_route_and_status_and_no_text(serve):
    pytest.importorskip("opentelemetry.instrumentation.asgi")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider, server = InMemorySpanExporter(), TracerProvider(), serve()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    add_tracing(server.app, provider)
    server.ask(*classify("a secret joy", "hard"))
    server.ask("GET", "/healthz")
    (span,) = exporter.get_finished_spans()
    assert span.name == "POST /v1/classify"
    assert 200 in span.attributes.values()
    assert "secret" not in span.to_json()


@pytest.mark.parametrize("logs_texts", [False, True])
def test_the_log_has_texts_only_where_that_was_chosen(serve, monkeypatch, caplog, logs_texts):
    monkeypatch.setattr(LOG, "propagate", True)
    server = serve(logs_texts=logs_texts)
    with caplog.at_level(logging.INFO, "cuecraft.serving"):
        response = server.ask(*classify("a secret joy", "hard"))
        server.ask("GET", "/healthz")
    (record,) = caplog.records
    assert record.fields["prompts"] == ["hard"]
    assert record.fields["status"] == 200
    assert record.fields["request"] == response.headers["x-request-id"]
    assert ("a secret joy" in str(record.fields)) is logs_texts


def test_a_failure_of_the_server_names_the_log_line_and_no_more(serve, causal, monkeypatch, caplog):
    def broken(rows):
        raise RuntimeError("weights of /secret/place")

    monkeypatch.setattr(causal, "mixed_logits", broken)
    monkeypatch.setattr(LOG, "propagate", True)
    with caplog.at_level(logging.ERROR, "cuecraft.serving"):
        response = serve().ask(*classify(X[0], "hard"))
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in response.json()["error"]
    assert "weights of /secret/place" in caplog.text
