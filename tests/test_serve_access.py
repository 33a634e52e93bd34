"""Who may ask the server, how much at once, and how long a request may take."""

import json
import threading

import pytest

from cuecraft.core.errors import ServeError
from cuecraft.serving import EngineOptions
from cuecraft.serving.http.access import AccessTokens, RateLimit, Role
from serving import X
from serving_here import classify

CLIENT = "client-token-0123456789"
ADMIN = "admin-token-0123456789"


def test_tokens_open_what_they_should_and_nothing_else(serve):
    tokens = AccessTokens({"app": (CLIENT, Role.CLIENT), "ops": (ADMIN, Role.ADMIN)})
    server = serve(tokens=tokens)
    for method, path, body in (classify("a", "hard"), ("GET", "/v1/prompts", None), ("GET", "/metrics", None)):
        assert server.ask(method, path, body).status_code == 401
        assert server.ask(method, path, body, token=CLIENT + "x").status_code == 401
        assert server.ask(method, path, body, token=CLIENT).status_code == 200
    for method in ("PUT", "DELETE"):
        assert server.ask(method, "/v1/prompts/hard", b"", token=CLIENT).status_code == 403
    for path in ("/healthz", "/readyz", "/"):
        assert server.ask("GET", path).status_code == 200
    assert server.ask("DELETE", "/v1/prompts/hard", token=ADMIN).status_code == 204


def test_without_tokens_nobody_changes_prompts(serve):
    assert serve().ask("DELETE", "/v1/prompts/hard").status_code == 403


def test_tokens_are_read_of_file_and_environment(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"# ours\nclient app {CLIENT}\n\nadmin ops {ADMIN}  # in the safe\n")
    tokens = AccessTokens.read(file, {"CUECRAFT_TOKENS": "other:other-token-0123456789"})
    assert tokens.caller(f"Bearer {CLIENT}").name == "app"
    assert tokens.caller(f"bearer {ADMIN}").role is Role.ADMIN
    assert tokens.caller("Bearer other-token-0123456789").name == "other"
    for header in (None, "", CLIENT, f"Basic {CLIENT}", "Bearer", "Bearer app"):
        assert tokens.caller(header) is None
    for line in (
        "client app",
        "root app token-0123456789",
        "client a short",
        f"client app {CLIENT}\nadmin app {ADMIN}",
    ):
        file.write_text(line)
        with pytest.raises(ServeError, match="tokens line") as error:
            AccessTokens.read(file, {})
        assert CLIENT not in str(error.value)
    with pytest.raises(ServeError, match="entry 1 is not NAME:TOKEN"):
        AccessTokens.read(None, {"CUECRAFT_TOKENS": CLIENT})
    with pytest.raises(ServeError, match="cannot be read"):
        AccessTokens.read(tmp_path / "absent", {})


def test_a_rate_is_kept_for_each_caller():
    now = [0.0]
    rate = RateLimit(10.0, lambda: now[0])
    assert rate.take("a", 20) == 0.0  # what two seconds save up
    assert rate.take("a", 5) == pytest.approx(0.5)
    assert rate.take("b", 5) == 0.0
    now[0] = 0.5
    assert rate.take("a", 5) == 0.0
    now[0] = 100.0
    assert rate.take("a", 100) == 0.0  # more than is ever saved up, when all of it is
    assert rate.take("a", 1) > 8.0  # and paid for afterwards


def test_over_the_rate_a_caller_is_told_when_to_come_back(serve):
    server = serve(rate=RateLimit(1.0))
    assert server.ask(*classify(["a", "b"], "hard")).status_code == 200
    response = server.ask(*classify("a", "hard"))
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1


def test_a_full_queue_answers_503_with_a_time(serve, causal, monkeypatch):
    opened, plain = threading.Event(), causal.mixed_logits
    monkeypatch.setattr(causal, "mixed_logits", lambda rows: opened.wait(20) and plain(rows))
    server = serve(engine=EngineOptions(max_queue=2))
    threading.Timer(0.3, opened.set).start()
    first, second = server.all([classify(["a", "b"], "hard"), classify("c", "hard")])
    assert first.status_code == 200
    assert second.status_code == 503
    assert int(second.headers["retry-after"]) >= 1


def test_what_takes_too_long_answers_504(serve, causal, monkeypatch):
    opened, plain = threading.Event(), causal.mixed_logits
    monkeypatch.setattr(causal, "mixed_logits", lambda rows: opened.wait(20) and plain(rows))
    server = serve()
    response = server.ask(*classify("a", "hard", timeout_ms=100))
    opened.set()
    assert response.status_code == 504
    assert "in time" in response.json()["error"]


def test_a_client_that_hangs_up_takes_its_request_back(serve, causal, monkeypatch):
    opened, plain = threading.Event(), causal.mixed_logits
    monkeypatch.setattr(causal, "mixed_logits", lambda rows: opened.wait(20) and plain(rows))
    server = serve()

    messages = [
        {"type": "http.request", "body": json.dumps({"inputs": X[1], "prompts": "hard"}).encode()},
        {"type": "http.disconnect"},
    ]

    async def receive():
        return messages.pop(0)

    held = server.engine.submit([{"text": X[0]}], ["hard"])
    assert server.raw(receive) == 499
    opened.set()
    assert len(held.result(20)) == 1
    server.engine.close(20)
    assert 'refusals_total{reason="gone"} 1.0' in server.metrics.document().decode()
