"""The OpenAI-compatible reference: a stub server in a thread plays every part, good and bad."""

import json
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuecraft.core.errors import EndpointError
from cuecraft.study.advise.endpoint import Endpoint, ask_all, key_from, question, read_answer

LABELS = ("negative", "positive")
KEY = "sk-Secret123"


class Stub(ThreadingHTTPServer):
    """Answers each request with what `plan` returns for its number and body: (status, headers, body, delay)."""

    def __init__(self, plan):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.requests, self.times = plan, [], []
        self.lock = threading.Lock()
        self.now = self.most = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        stub = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with stub.lock:
            number = len(stub.requests)
            stub.requests.append((self.path, dict(self.headers), body))
            stub.times.append(time.monotonic())
            stub.now += 1
            stub.most = max(stub.most, stub.now)
        status, headers, answer, delay = stub.plan(number, body)
        time.sleep(delay)
        with stub.lock:
            stub.now -= 1
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has given up

    def log_message(self, *_):
        pass


def says(text, tokens=10, delay=0.0):
    usage = {} if tokens is None else {"usage": {"total_tokens": tokens}}
    document = {"choices": [{"message": {"role": "assistant", "content": text}}], **usage}
    return 200, {"Content-Type": "application/json"}, json.dumps(document).encode(), delay


def fails(status, text="busy", **headers):
    return status, headers, json.dumps({"error": {"message": text}}).encode(), 0.0


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(plan):
        server = Stub(plan)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(server, texts=("a joy",), truth=(1,), **settings):
    settings = {"key": KEY, "wait": 0.01, "timeout": 5.0} | settings
    endpoint = Endpoint(server.url, "tiny", **settings)
    return ask_all(endpoint, [{"text": text} for text in texts], LABELS, truth)


def by_word(number, body):
    return says("Positive." if "joy" in body["messages"][0]["content"] else "negative")


def test_right_and_wrong_answers_are_counted(stub):
    server = stub(by_word)
    texts = ["a joy", "a bore", "a joy again", "awful"]
    found = ask(server, texts, truth=(1, 0, 0, 0))
    assert (found.accuracy.hits, found.accuracy.rows, found.unclear, found.tokens) == (3, 4, 0, 40)
    low, high = found.accuracy.interval
    assert low < 0.75 < high
    assert found.seconds > 0
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body["model"] == "tiny"
    assert body["temperature"] == 0
    asked = {r[2]["messages"][0]["content"] for r in server.requests}
    assert asked == {question({"text": text}, LABELS) for text in texts}


def test_answers_that_are_no_class_count_as_such_and_as_wrong(stub):
    answers = ["I cannot say", "neutral", "negative or positive", ""]
    server = stub(lambda number, body: says(answers[int(body["messages"][0]["content"][-1])]))
    found = ask(server, [f"text {n}" for n in range(4)], truth=(0, 0, 0, 0))
    assert (found.accuracy.hits, found.unclear) == (0, 4)


def test_no_content_is_no_class_and_tokens_may_be_untold(stub):
    found = ask(stub(lambda number, body: says(None, tokens=None)))
    assert (found.unclear, found.tokens) == (1, None)


def test_it_waits_as_long_as_a_busy_server_asks(stub):
    server = stub(lambda number, body: fails(429, **{"Retry-After": "0.3"}) if number == 0 else says("positive"))
    assert ask(server, wait=60.0).accuracy.hits == 1
    assert 0.3 <= server.times[1] - server.times[0] < 5


def test_it_waits_until_the_date_that_a_server_gives(stub):
    def plan(number, body):
        return fails(503, **{"Retry-After": formatdate(time.time() + 2, usegmt=True)}) if number == 0 else says("x")

    server = stub(plan)
    ask(server, wait=60.0)
    assert 0.5 < server.times[1] - server.times[0] < 5  # dates have whole seconds


def test_waits_double_where_the_server_gives_none(stub):
    server = stub(lambda number, body: fails(500) if number < 3 else says("positive"))
    assert ask(server, wait=0.1).accuracy.hits == 1
    waits = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert waits[0] >= 0.1
    assert waits[1] >= 0.2
    assert waits[2] >= 0.4


def test_a_server_that_always_fails_ends_in_one_clear_line(stub):
    server = stub(lambda number, body: fails(500, f"broken, key {KEY}\nsecond line"))
    with pytest.raises(EndpointError, match=r"500 \(broken, key \*\*\* second line\) \(4 attempts\)") as error:
        ask(server)
    assert KEY not in str(error.value)
    assert len(server.requests) == 4


def test_after_a_failure_for_good_nothing_more_is_sent(stub):
    server = stub(lambda number, body: fails(500) if number else fails(404, "no such model"))
    with pytest.raises(EndpointError, match="no such model"):
        ask(server, ["text"] * 50, (0,) * 50, concurrency=2, wait=30.0)
    assert len(server.requests) <= 4  # the other one under way, and at most its next


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_cannot_pass_is_not_tried_again(stub, status):
    server = stub(lambda number, body: fails(status, "no"))
    with pytest.raises(EndpointError, match=str(status)):
        ask(server)
    assert len(server.requests) == 1


def test_a_timeout_is_tried_again_and_then_told(stub):
    server = stub(lambda number, body: says("positive", delay=0.6 if number < 2 else 0.0))
    assert ask(server, timeout=0.2, attempts=3).accuracy.hits == 1
    with pytest.raises(EndpointError, match=r"no answer within 0.2 s \(2 attempts\)"):
        ask(stub(lambda number, body: says("positive", delay=0.6)), timeout=0.2, attempts=2)


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"[]", b'{"choices": []}', b"\xff\xfe", b""])
def test_answers_that_are_no_chat_completion(stub, body):
    server = stub(lambda number, _: (200, {}, body, 0.0))
    with pytest.raises(EndpointError, match="no chat completion"):
        ask(server)
    assert len(server.requests) == 1


def test_the_key_is_not_shown_where_the_server_repeats_it(stub):
    server = stub(lambda number, _: (200, {}, b"x" * 195 + KEY.encode(), 0.0))
    with pytest.raises(EndpointError) as error:
        ask(server)
    assert KEY[:4] not in str(error.value)
    assert KEY not in repr(Endpoint(server.url, "m", KEY))


def test_a_redirect_is_not_followed(stub):
    other = stub(lambda number, body: says("positive"))
    server = stub(lambda number, body: (307, {"Location": f"{other.url}/chat/completions"}, b"", 0.0))
    with pytest.raises(EndpointError, match="307"):
        ask(server)
    assert not other.requests


def test_no_more_requests_at_once_than_asked(stub):
    server = stub(lambda number, body: says("positive", delay=0.05))
    assert ask(server, ["text"] * 12, (1,) * 12, concurrency=3).accuracy.hits == 12
    assert 2 <= server.most <= 3


def test_without_a_key_no_header_is_sent(stub):
    server = stub(by_word)
    ask(server, key=None)
    assert "Authorization" not in server.requests[0][1]


def test_nobody_there_is_told(stub):
    server = stub(by_word)
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(EndpointError, match="cannot be reached"):
        ask_all(Endpoint(url, "m", wait=0.01, attempts=2), [{"text": "a"}], LABELS, (0,))


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host/v1", "file:///etc/passwd", "http://", "http://user:pw@host/v1", "http://a b"]
)
def test_addresses_that_cannot_be_used(url):
    with pytest.raises(EndpointError) as error:
        Endpoint(url, "m")
    assert "pw" not in str(error.value)


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel", ""])
def test_keys_that_cannot_be_in_a_header(key):
    with pytest.raises(EndpointError) as error:
        Endpoint("http://host/v1", "m", key)
    assert not key or key not in str(error.value)


def test_the_whole_address_may_be_given():
    assert Endpoint("http://h/v1/chat/completions", "m").address == Endpoint("http://h/v1/", "m").address


def test_the_key_comes_from_the_named_variable(monkeypatch):
    official, other = "https://api.openai.com/v1", "https://models.example/v1"
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert key_from(None, official) is None
    monkeypatch.setenv("OPENAI_API_KEY", "one\n")
    monkeypatch.setenv("MINE", "two")
    assert key_from(None, official) == "one"
    assert key_from("MINE", other) == "two"
    with pytest.raises(EndpointError, match="ABSENT is not set"):
        key_from("ABSENT", other)


def test_the_default_key_goes_to_its_own_host_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "one")
    for url in ("https://models.example/v1", "http://localhost:8000/v1", "https://api.openai.com.example/v1"):
        assert key_from(None, url) is None
    assert key_from("OPENAI_API_KEY", "https://models.example/v1") == "one"


def test_a_key_is_not_sent_over_plain_http_to_another_machine():
    with pytest.raises(EndpointError, match="plain http"):
        Endpoint("http://models.example/v1", "m", "secret")
    Endpoint("http://models.example/v1", "m")
    Endpoint("http://localhost:8000/v1", "m", "secret")


@pytest.mark.parametrize(
    ("text", "labels", "said"),
    [
        ("Positive", LABELS, 1),
        (' "positive". ', LABELS, 1),
        ("The answer is: **negative**", LABELS, 0),
        ("not positive but negative", LABELS, None),
        ("positively", LABELS, None),
        ("sci fi", ("Sci_Fi", "drama"), 0),
        ("very negative", ("negative", "very negative"), 1),
        ("I think very negative!", ("negative", "very negative"), 1),
        ("I think negative, maybe very negative", ("negative", "very negative"), None),
        ("C++", ("C", "C++"), 1),
        ("2", ("1", "2"), 1),
        ("12", ("1", "2"), None),
    ],
)
def test_reading_an_answer(text, labels, said):
    assert read_answer(text, labels) == said


@given(st.lists(st.from_regex(r"[a-z]{1,6}", fullmatch=True), min_size=2, max_size=6, unique=True), st.data())
def test_every_name_is_read_as_itself(labels, data):
    number = data.draw(st.integers(0, len(labels) - 1))
    assert (
        read_answer(data.draw(st.sampled_from(["{}", "{}.", "'{}'", " {}\n"])).format(labels[number]), labels) == number
    )


def test_a_question_names_classes_and_fields():
    asked = question({"title": "Joy", "body": "A film."}, LABELS)
    assert "negative, positive" in asked
    assert "title: Joy\nbody: A film." in asked
