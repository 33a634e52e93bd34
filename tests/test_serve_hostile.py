"""What a server does with clients that are slow, break off, or send what nobody should; over real sockets."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress

import pytest

from cuecraft import PromptClassifier
from serving import X, Y, served

TOKEN, ADMIN = "client-token-0123456789", "admin-token-0123456789"
HEAD = f"POST /v1/classify HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n"
TIMEOUT = 2  # seconds that a request may take here


@pytest.fixture(scope="module")
def server(causal_folder, tmp_path_factory):
    """The address, host and port, of a server with one prompt, and its process."""
    folder = tmp_path_factory.mktemp("prompts")
    PromptClassifier(str(causal_folder), "zero-shot").fit(X, Y).save(folder / "plain")
    options = ("--option", f"limits.timeout_ms={TIMEOUT * 1000}")
    tokens = {"CUECRAFT_TOKENS": f"app:{TOKEN}", "CUECRAFT_ADMIN_TOKENS": f"ops:{ADMIN}"}
    with served(folder / "plain", *options, **tokens) as (
        process,
        address,
        _,
    ):
        host, port = address.removeprefix("http://").split(":")
        yield (host, int(port)), process


def sent(address, *pieces):
    """Send pieces over one connection, and no more; return all that comes back until the server closes it."""
    with socket.create_connection(address, timeout=20) as client:
        for piece in pieces:
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(1 << 16), b""))


def status(answer):
    return int(answer.split(b" ", 2)[1])


def asked(address, body, token=TOKEN, path="/v1/classify"):
    """Send a whole request; return status and document."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"http://{address[0]}:{address[1]}{path}", content, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture(autouse=True)
def still_serves(server):
    """Whatever a client did, the next one is answered."""
    yield
    address, process = server
    assert asked(address, {"inputs": X[0]})[0] == 200
    assert process.poll() is None


def texts_of(size):
    return b'{"inputs": "' + b"a " * (size // 2) + b'"}'


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        (texts_of(10_000_000), 413, "1000000 bytes"),
        (texts_of(1_000_000), 413, "1000000 bytes"),  # a million characters, and a few bytes around them
        (texts_of(900_000), 400, "20000"),
        ({"inputs": ["a"] * 10_000}, 400, "256"),
        (b'{"inputs": "\xff\xfe"}', 400, "unicode"),
        (b"\x00\x01\x02", 400, "json"),
        (b"[" * 100_000, 400, "json"),
        (b'{"inputs": "\\ud800"}', 400, "hex escape"),
        ({"inputs": "a", "prompts": "nobody"}, 404, "nobody"),
        ({"inputs": "a", "prompts": ["plain"] * 100}, 400, "32 at most"),
    ],
    ids=lambda value: None if isinstance(value, int | str) else repr(value)[:24],
)
def test_what_is_too_much_or_nonsense_is_refused(server, body, code, told):
    found, document = asked(server[0], body)
    assert (found, list(document)) == (code, ["error"])
    assert told in document["error"]
    assert len(document["error"]) < 500


def test_a_text_with_nul_is_refused_as_in_files(server):
    code, document = asked(server[0], {"inputs": "a\u0000b"})
    assert code == 400
    assert "holds NUL characters" in document["error"]


def test_a_wrong_token_opens_nothing(server):
    assert asked(server[0], {"inputs": "a"}, token=TOKEN + "x")[0] == 401
    assert asked(server[0], {"inputs": "a"}, token="")[0] == 401


def test_a_body_that_ends_early_is_dropped(server):
    answer = sent(server[0], f"{HEAD}content-length: 1000\r\n\r\n".encode(), b'{"inputs"')
    assert b" 200 " not in answer[:20]


def test_a_body_that_stops_is_not_waited_for(server):
    begun = time.monotonic()
    with socket.create_connection(server[0], timeout=20) as client:
        client.sendall(f"{HEAD}content-length: 1000\r\n\r\n".encode() + b'{"inputs"')
        answer = client.recv(1 << 16)
    assert status(answer) == 408
    assert TIMEOUT - 0.5 < time.monotonic() - begun < TIMEOUT + 5


def test_a_slow_client_is_answered_when_it_is_done(server):
    body = b'{"inputs": "a joy"}'
    head = f"{HEAD}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
    pieces = [whole[at : at + step] for whole, step in ((head, 16), (body, 2)) for at in range(0, len(whole), step)]
    with socket.create_connection(server[0], timeout=20) as client:
        for piece in pieces:
            client.sendall(piece)
            time.sleep(0.02)
        assert status(client.recv(1 << 16)) == 200


def test_many_that_hold_a_connection_open_keep_nobody_out(server):
    address, _ = server
    heads = [b"", b"POST /v1/cl", HEAD.encode(), f"{HEAD}content-length: 50\r\n\r\n".encode() + b"{"]
    held = [socket.create_connection(address, timeout=20) for _ in range(400)]
    try:
        for number, client in enumerate(held):
            client.sendall(heads[number % len(heads)])
        codes = []
        threads = [threading.Thread(target=lambda: codes.append(asked(address, {"inputs": X[0]})[0])) for _ in range(8)]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert codes == [200] * 8
        assert time.monotonic() - begun < 10
    finally:
        for client in held:
            client.close()


def test_what_is_no_http_is_refused(server):
    assert status(sent(server[0], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n")) == 400
    huge = b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n"
    with suppress(ConnectionError):  # it may be cut off while it sends
        assert status(sent(server[0], huge)) in (400, 404, 414, 431)


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [
        ["--exclude-method", "PUT"],
        # OpenAPI cannot say that bytes are a ZIP file, so that some which it allows are refused.
        ["--include-method", "PUT", "--exclude-checks", "positive_data_acceptance"],
    ],
    ids=["other methods", "PUT"],
)
def test_schemathesis_finds_nothing(server, chosen):
    tool = os.environ.get("SCHEMATHESIS") or shutil.which("schemathesis")
    if not tool:
        pytest.skip("pip install schemathesis in an environment of its own, and name it: SCHEMATHESIS=.../schemathesis")
    (host, port), _ = server
    flags = ["--header", f"authorization: Bearer {ADMIN}", "--seed", "1", "--max-examples", "50"]
    command = [tool, "run", f"http://{host}:{port}/openapi.json", *flags, *chosen]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "uthentication" not in done.stdout, done.stdout  # or all of it was refused alike
