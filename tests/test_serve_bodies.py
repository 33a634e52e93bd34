"""Bodies of requests to the server: encodings, packing, size, and those that do not come."""

import asyncio
import codecs
import gzip
import json
import zlib

import httpx
import pytest

from cuecraft.serving.http.access import AccessTokens, Role
from cuecraft.serving.requests import RequestLimits
from serving import X
from serving_here import classify

ADMIN = "admin-token-0123456789"


def packed(body, encoding):
    return gzip.compress(body) if encoding == "gzip" else zlib.compress(body)


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/explain", "/v1/prompts/new"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip", "GZIP"])
def test_a_packed_body_is_refused_with_what_to_do(serve, path, encoding):
    body = packed(json.dumps({"inputs": "a", "prompts": "hard"}).encode(), encoding)
    server = serve(tokens=AccessTokens({"own": (ADMIN, Role.ADMIN)}))
    method = "PUT" if "prompts" in path else "POST"
    response = server.ask(method, path, body, ADMIN, extra={"content-encoding": encoding})
    assert response.status_code == 415
    assert response.json()["error"] == f"the body is packed ({encoding.lower()}); send it as it is"
    assert response.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/explain"])
def test_a_body_in_another_encoding_is_refused(serve, codec, path):
    server = serve()
    for begin in ("", " ", "\t", "\r\n", "\n"):
        body = (begin + json.dumps({"inputs": "é", "prompts": "hard"}, ensure_ascii=False)).encode(codec)
        response = server.ask("POST", path, body)
        assert (response.status_code, "UTF-8" in response.json()["error"]) == (415, True)


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["identity", "gzip"], 415),
        (["gzip", "identity"], 415),
        (["identity, br"], 415),
        (["", "identity"], 200),
        (["Identity , identity"], 200),
    ],
)
def test_every_content_encoding_is_looked_at(serve, lines, code):
    server, body = serve(("hard",)), b'{"inputs": "a"}'
    assert (
        server.ask("POST", "/v1/classify", body, extra=[("content-encoding", own) for own in lines]).status_code == code
    )


@pytest.mark.parametrize(
    ("charset", "text", "expected"),
    [
        ("utf-8", "é", 200),
        ('"UTF-8"', "é", 200),
        ("iso-8859-1", "é", 415),
        ("iso-8859-1", "e", 200),
        ("utf-16", "é", 415),
    ],
)
def test_the_charset_of_a_body_is_heeded(serve, charset, text, expected):
    codec = "latin-1" if charset == "iso-8859-1" else "utf-8"
    body = json.dumps({"inputs": text, "prompts": "hard"}, ensure_ascii=False).encode(codec)
    headers = {"content-type": f"application/json; charset={charset}"}
    assert serve().ask("POST", "/v1/classify", body, extra=headers).status_code == expected


def test_a_byte_order_mark_is_skipped(serve):
    server, body = serve(), json.dumps({"inputs": X[0], "prompts": "hard"}).encode()
    marked = server.ask("POST", "/v1/classify", codecs.BOM_UTF8 + body)
    assert marked.json() == server.ask("POST", "/v1/classify", body).json()
    assert marked.status_code == 200


def test_a_body_that_is_too_large_is_not_read(serve):
    server = serve(limits=RequestLimits(body_bytes=50))
    assert server.ask(*classify("a" * 60, "hard")).status_code == 413

    async def chunks():
        for _ in range(10):
            yield b" " * 10

    async def send():
        transport = httpx.ASGITransport(app=server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/classify", content=chunks())

    assert asyncio.run(send()).status_code == 413


def test_a_body_that_does_not_come_is_not_waited_for(serve):
    async def receive():
        await asyncio.sleep(30)

    assert serve(limits=RequestLimits(timeout_ms=50)).raw(receive) == 408
