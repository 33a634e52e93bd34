"""An OpenAI-compatible endpoint as one more zero-shot reference.

Chat completions over HTTP with the standard library. Texts leave this machine only when a caller names an address, and
go to that address alone: redirects are refused and proxies are not used. The key goes into one header and into nothing
that is shown; not over plain http, and OPENAI_API_KEY to its own host only, unless it is named.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from cuecraft.core.errors import EndpointError, named
from cuecraft.core.events import Event, Progress
from cuecraft.study.advise.measure import Accuracy

KEY_VARIABLE = "OPENAI_API_KEY"
_KEY_HOST = "api.openai.com"  # whose key that variable holds; any other host gets a key only by name
_LOCAL = ("localhost", "127.0.0.1", "::1")
_LATER = {408, 429, 500, 502, 503, 504}  # worth another try
_LONGEST_WAIT = 60.0  # seconds before another try, whatever a server asks for
_ANSWER_BYTES = 2**20
_SHOWN = 200  # characters of a server's own words


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow nothing: texts go to the address that was named."""


_OPENER = build_opener(ProxyHandler({}), _NoRedirect)  # a proxy would be another address


@dataclass(frozen=True)
class Endpoint:
    """A server of chat completions.

    Args:
        url: its base, such as ``http://localhost:8000/v1``, or the whole address of its chat completions.
        model: the name that it knows the model by.
        key: sent as a bearer token; None to send none.
        timeout: seconds without a byte after which a request has failed.
        attempts: of one request, the first one included.
        wait: seconds before the second attempt; each later one waits twice as long, unless the server says how long.
        concurrency: requests at once.

    Raises:
        EndpointError: an address that is not http or https or carries a password, or a key that cannot be in a header.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    attempts: int = 4
    wait: float = 1.0
    concurrency: int = 4

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            is_address = False
        if not is_address or re.search(r"\s", self.url):
            raise EndpointError("the endpoint is no http or https address; write for instance http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise EndpointError("the endpoint's address carries a password or a query; put the key into a variable")
        if self.key is not None and not re.fullmatch(r"[!-~]+", self.key):
            raise EndpointError("the endpoint's key has white space or letters beyond ASCII; fix the variable")
        if self.key is not None and parts.scheme == "http" and parts.hostname not in _LOCAL:
            raise EndpointError("a key is not sent over plain http; write https, or send none")

    @property
    def address(self) -> str:
        """Where requests go."""
        base = self.url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"


@dataclass(frozen=True)
class Reply:
    """One answer.

    Args:
        text: what the model wrote.
        tokens: read and written, as the server counts them; None where it does not say.
    """

    text: str
    tokens: int | None


@dataclass(frozen=True)
class Reference:
    """What an endpoint's model got right.

    Args:
        accuracy: answers that are no class count as wrong.
        unclear: answers that are no class, or several.
        seconds: of all requests.
        tokens: read and written; None where the server does not say.
    """

    accuracy: Accuracy
    unclear: int
    seconds: float
    tokens: int | None


def key_from(variable: str | None, url: str) -> str | None:
    """Return the key in an environment variable; without a name, that of `KEY_VARIABLE` for the host that it is for.

    Raises:
        EndpointError: a variable was named and is not set.
    """
    if variable is None:
        return os.environ.get(KEY_VARIABLE, "").strip() or None if urlsplit(url).hostname == _KEY_HOST else None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise EndpointError(f"the variable {variable} is not set; set it to the endpoint's key, or name another one")
    return key


def question(fields: Mapping[str, str], labels: Sequence[str]) -> str:
    """Return what is asked about one text."""
    texts = list(fields.values()) if len(fields) == 1 else [f"{name}: {text}" for name, text in fields.items()]
    return (
        f"Which of these classes does the text belong to: {', '.join(labels)}?\n"
        "Answer with the name of one class and nothing else.\n\nText:\n" + "\n".join(texts)
    )


def read_answer(text: str, labels: Sequence[str]) -> int | None:
    """Return the number of the class that an answer names; None where it names none, or several.

    An answer that is a class's name counts, whatever its case and the signs around it; otherwise a name that occurs as
    whole words, where it is the only one. A name inside a longer one that occurs there too does not count for itself.
    """
    plain = _plain(text)
    names = [_plain(label) for label in labels]
    if plain in names:
        return names.index(plain)
    spans = [
        (found.start(), found.end(), number)
        for number, name in enumerate(names)
        for found in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", plain)
    ]
    whole = {n for a, b, n in spans if not any(c <= a and b <= d and (c, d) != (a, b) for c, d, _ in spans)}
    return whole.pop() if len(whole) == 1 else None


def _plain(text: str) -> str:
    return " ".join(text.replace("_", " ").split()).casefold().strip(" .,:;!?\"'`*()[]{}<>")


def ask_all(
    endpoint: Endpoint,
    texts: Sequence[Mapping[str, str]],
    labels: Sequence[str],
    truth: Sequence[int],
    report: Callable[[Event], None] = lambda event: None,
) -> Reference:
    """Ask about every text, several at once, at temperature 0.

    Args:
        endpoint: where to send them.
        texts: fields of each text; these leave this machine.
        labels: names of the classes, at least one.
        truth: class numbers of the texts.
        report: progress callback, called with each answer.

    Raises:
        EndpointError: a request failed for good. No further requests are made then.
    """
    begun = time.perf_counter()
    stop = threading.Event()
    replies: list[Reply] = []
    hits = unclear = 0
    pool = ThreadPoolExecutor(endpoint.concurrency)
    try:
        asked = {pool.submit(_ask, endpoint, question(text, labels), stop): n for n, text in enumerate(texts)}
        for done in as_completed(asked):
            reply = done.result()
            replies.append(reply)
            said = read_answer(reply.text, labels)
            hits += said == truth[asked[done]]
            unclear += said is None
            report(Progress("asking", len(replies), len(texts)))
    finally:
        stop.set()  # a thread that waits for another attempt gives up
        pool.shutdown(wait=True, cancel_futures=True)
    counted = [reply.tokens for reply in replies if reply.tokens is not None]
    tokens = sum(counted) if len(counted) == len(replies) else None
    return Reference(Accuracy(hits, len(texts)), unclear, time.perf_counter() - begun, tokens)


def _ask(endpoint: Endpoint, content: str, stop: threading.Event) -> Reply:
    """Return the reply to one question, after as many attempts as it takes or as are allowed."""
    attempt = 1
    while True:
        try:
            return _reply(endpoint, _post(endpoint, content))
        except _PassingError as failed:
            waiting = endpoint.wait * 2 ** (attempt - 1) if failed.after is None else failed.after
            if attempt == endpoint.attempts or stop.wait(min(waiting, _LONGEST_WAIT)):
                raise EndpointError(
                    f"{endpoint.address} {failed} ({attempt} attempts); try again later, or leave "
                    f"{named('endpoint')} out"
                ) from None
            attempt += 1


class _PassingError(Exception):
    """A request failed in a way that may pass; `after` says in how many seconds, where the server says so."""

    def __init__(self, what: str, after: float | None = None) -> None:
        super().__init__(what)
        self.after = after


def _post(endpoint: Endpoint, content: str) -> bytes:
    body = {"model": endpoint.model, "messages": [{"role": "user", "content": content}], "temperature": 0}
    request = Request(endpoint.address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    if endpoint.key is not None:
        request.add_unredirected_header("Authorization", f"Bearer {endpoint.key}")
    try:
        with _OPENER.open(request, timeout=endpoint.timeout) as response:
            found: bytes = response.read(_ANSWER_BYTES + 1)
    except HTTPError as error:
        with error:
            said = _own_words(endpoint, error)
        if error.code in _LATER:
            raise _PassingError(f"answers {said}", _retry_after(error.headers.get("Retry-After"))) from None
        hint = "check the key's variable" if error.code in (401, 403) else "check the address and the model's name"
        raise EndpointError(f"{endpoint.address} answers {said}; {hint}") from None
    except TimeoutError:
        raise _PassingError(f"gives no answer within {endpoint.timeout:g} s") from None
    except (URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, TimeoutError):
            raise _PassingError(f"gives no answer within {endpoint.timeout:g} s") from None
        raise _PassingError(f"cannot be reached ({_shown(endpoint, str(reason) or type(reason).__name__)})") from None
    return found


def _reply(endpoint: Endpoint, body: bytes) -> Reply:
    """Read a chat completion."""
    try:
        document = json.loads(body)
        text = document["choices"][0]["message"]["content"]
        if not isinstance(text, str | None):
            raise TypeError
    except (ValueError, LookupError, TypeError, RecursionError):
        said = _shown(endpoint, body.decode(errors="replace"))
        raise EndpointError(
            f"{endpoint.address} answers something that is no chat completion: {said!r}; check the address"
        ) from None
    usage = document.get("usage")
    tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
    return Reply(text or "", tokens if isinstance(tokens, int) else None)


def _own_words(endpoint: Endpoint, error: HTTPError) -> str:
    """Return a failed response's status and what the server says of it."""
    try:
        body = error.read(_ANSWER_BYTES).decode(errors="replace")
    except (OSError, HTTPException):
        body = ""
    try:
        said = json.loads(body)["error"]
        said = said["message"] if isinstance(said, dict) else said
    except (ValueError, LookupError, TypeError, RecursionError):
        said = body
    words = _shown(endpoint, str(said))
    return f"{error.code} ({words})" if words else str(error.code)


def _shown(endpoint: Endpoint, text: str) -> str:
    """Return a server's words fit to be shown: short, on one line, without the key that it may repeat."""
    if endpoint.key:
        text = text.replace(endpoint.key, "***")
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())[:_SHOWN]


def _retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, given as a number or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
