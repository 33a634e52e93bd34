"""Pages of other origins that ask the server: CORS, and which origins can be named."""

import pytest

from cuecraft.core.errors import ServeError
from cuecraft.core.options import make_options
from cuecraft.serving.command import ServeCommand
from cuecraft.serving.requests import RequestLimits
from serving_here import classify


def preflight(server, origin, method="POST", header="authorization"):
    asked = {"origin": origin, "access-control-request-method": method, "access-control-request-headers": header}
    return server.ask("OPTIONS", "/v1/classify", extra=asked)


def test_other_origins_may_not_ask_unless_named(serve):
    assert "access-control-allow-origin" not in preflight(serve(), "https://a.example").headers
    plain = serve().ask(*classify("a", "hard"), extra={"origin": "https://a.example"})
    assert "access-control-allow-origin" not in plain.headers
    server = serve(origins=("https://a.example", "http://localhost:3000"), limits=RequestLimits(body_bytes=100))
    for origin in server.app.state.service.origins:
        found = preflight(server, origin, "DELETE", "authorization, content-type")
        assert (found.status_code, found.headers["access-control-allow-origin"]) == (200, origin)
        assert found.headers["access-control-allow-credentials"] == "true"
        for request in (classify("a", "hard"), classify("a", "none"), classify("a" * 200, "hard")):
            answer = server.ask(*request, extra={"origin": origin})
            assert answer.headers["access-control-allow-origin"] == origin
            assert "retry-after" in answer.headers["access-control-expose-headers"].lower()
    refused = preflight(server, "https://b.example")
    assert (refused.status_code, refused.headers.get("access-control-allow-origin")) == (400, None)
    assert "access-control-allow-origin" not in server.ask(*classify("a"), extra={"origin": "null"}).headers


def test_all_origins_may_ask_without_credentials(serve):
    server = serve(origins=("*",))
    for response in (preflight(server, "null"), server.ask(*classify("a", "hard"), extra={"origin": "https://b"})):
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, "*")
        assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize(
    "origin", ["a.example", "https://a.example/", "https://a/x", "*.example", "", "null", "ftp://a"]
)
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(ServeError, match="is no origin") as refused:
        make_options(ServeCommand, {"cors_origins": (origin,)})
    assert "\n" not in str(refused.value)


NEVER_SENT = {
    "https://a.com:443": "https://a.com",
    "http://a.com:80": "http://a.com",
    "https://a.com:0444": "https://a.com:444",
    "https://a.com:": "https://a.com",
    "https://A.com": "https://a.com",
    "HTTPS://a.com": "https://a.com",
    "https://a.com/": "https://a.com",
    "https://bücher.example": "https://xn--bcher-kva.example",
    "http://[0:0::1]:80": "http://[::1]",
    "https://a.com:abc": None,
    "https://a.com:99999": None,
    "https://a.com:0": None,
    "https://a.com:-1": None,
    "https://a..com": None,
    "https://straße.example": None,
    "https://a%41.com": None,
    "https://me@a.com": None,
    "https://[::1": None,
    "http://1.2.3.400": None,
}


@pytest.mark.parametrize("origin", NEVER_SENT)
def test_an_origin_that_no_browser_sends_is_refused_with_the_one_to_write(origin):
    with pytest.raises(ServeError, match="is no origin") as refused:
        make_options(ServeCommand, {"cors_origins": (origin,)})
    remedy = NEVER_SENT[origin]
    assert str(refused.value).endswith(f"; write {remedy}" if remedy else "https://app.example.com, or *")
    if remedy:
        make_options(ServeCommand, {"cors_origins": (remedy,)})


@pytest.mark.parametrize(
    "origin", ["*", "http://localhost:3000", "http://127.0.0.1", "https://a_b.example:8443", "http://[::1]:8000"]
)
def test_an_origin_that_a_browser_sends_is_taken(origin):
    assert make_options(ServeCommand, {"cors_origins": (origin,)}).cors_origins == (origin,)
