"""What the routes share: the engine, who may ask it, and how errors are answered."""

from __future__ import annotations

import asyncio
import codecs
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from cuecraft.core.errors import (
    BackboneError,
    ClosingError,
    CuecraftError,
    DataError,
    DeadlineError,
    QueueFullError,
    ServeError,
    TemplateError,
    UnknownPromptError,
)
from cuecraft.serving.guard import Guard, GuardMode, Screening, Verdict
from cuecraft.serving.guarding import Screener
from cuecraft.serving.http.access import AccessTokens, Caller, RateLimit, Role, retry_after
from cuecraft.serving.http.middleware import Metrics
from cuecraft.serving.http.wire import check_names_once, checked_texts
from cuecraft.serving.kept import Kept
from cuecraft.serving.requests import TOO_LATE, Answer, AnyEngine, RequestLimits

_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_BEGINS = b'{["-0123456789tfn \t\r\n'  # with these, JSON
_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\s;\"]+)", re.IGNORECASE)
D = TypeVar("D", bound=BaseModel)
_SCREENED_AT_ONCE = 4  # requests
_PATIENCE = 0.05  # seconds after which it is looked whether the client is still there
_STATUS: Sequence[tuple[type[CuecraftError], int]] = (
    (UnknownPromptError, 404),
    (DeadlineError, 504),
    (QueueFullError, 503),
    (ClosingError, 503),
    (TemplateError, 409),  # the fields are not the prompt's
    (BackboneError, 500),  # not the client's mistake
    (CuecraftError, 400),
)


class RefusedError(Exception):
    """A request that is not even looked at.

    Args:
        status: of the response.
        message: what is wrong, and what to do.
        headers: of the response.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


class ClientGoneError(Exception):
    """The client disconnected before the answer was there."""


@dataclass(frozen=True, eq=False)
class Service:
    """A server's parts.

    Args:
        engine: what answers.
        metrics: where everything is counted.
        tokens: who may ask.
        rate: how much each of them may ask for.
        limits: what one request may hold.
        screener: what screens the texts.
        kept: where uploaded prompts are kept, to be there after a restart; None to have them in memory alone.
        logs_texts: whether the log has the texts that were sent.
        traces: whether requests are reported to OpenTelemetry.
        origins: web pages of which origins may ask from a browser; ``*`` for all.
    """

    engine: AnyEngine
    metrics: Metrics
    tokens: AccessTokens = field(default_factory=lambda: AccessTokens({}))
    rate: RateLimit = field(default_factory=lambda: RateLimit(None))
    limits: RequestLimits = field(default_factory=RequestLimits)
    screener: Screener = field(default_factory=lambda: Screener(Guard(), GuardMode.OFF))
    kept: Kept | None = None
    logs_texts: bool = False
    traces: bool = False
    origins: Sequence[str] = ()
    _screening: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_SCREENED_AT_ONCE))

    def admit(self, request: Request, role: Role = Role.CLIENT) -> Caller:
        """Return who asks, or raise RefusedError where the caller may not."""
        caller = self.tokens.caller(request.headers.get("authorization"))
        if caller is None:
            self.metrics.refused("token", 1)
            raise RefusedError(401, "send 'Authorization: Bearer TOKEN'", {"www-authenticate": "Bearer"})
        request.state.log["caller"] = caller.name
        if role is Role.ADMIN and caller.role is not Role.ADMIN:
            self.metrics.refused("token", 1)
            raise RefusedError(403, "this needs an admin token; ask the operator of the server for one")
        return caller

    def charge(self, caller: Caller, answers: int) -> None:
        """Take answers off what a caller may still ask for, or raise RefusedError."""
        wait = self.rate.take(caller.name, answers)
        if wait:
            self.metrics.refused("rate", answers)
            raise RefusedError(
                429, "too much was asked for of late; ask again later", {"retry-after": retry_after(wait)}
            )

    def prompt_ids(self, given: Sequence[str] | None) -> list[str]:
        """Return the prompts that are asked, or say why that cannot be.

        Raises:
            ServeError: none was named and there are several, or too many were.
        """
        if given is None:
            names = [served.name for served in self.engine.shelf.all()]
            if len(names) != 1:
                raise ServeError(f"name one of the prompts: {', '.join(names) or 'there is none yet'}")
            return names
        if len(given) > self.limits.prompts or len(set(given)) < len(given):
            raise ServeError(f"name each prompt once, and {self.limits.prompts} at most")
        return list(given)

    def texts(self, given: Sequence[str | Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the fields of each text that the prompts read, and its options; raises as `checked_texts`."""
        return checked_texts(given, [self.engine.shelf.get(name).task for name in names], self.limits)

    async def body(self, request: Request) -> bytes:
        """Return a request's body, or raise RefusedError where it is packed, or does not come in time."""
        given = ",".join(request.headers.getlist("content-encoding")).lower().split(",")
        packing = ", ".join(own.strip() for own in given if own.strip() not in ("", "identity"))
        if packing:
            raise RefusedError(
                415, f"the body is packed ({packing[:40]}); send it as it is", {"accept-encoding": "identity"}
            )
        try:
            return await asyncio.wait_for(request.body(), self.limits.timeout_ms / 1000)
        except TimeoutError:
            raise RefusedError(408, "the request's body did not come in time; send it at once") from None

    def until(self, timeout_ms: int | None) -> float:
        """Return when a request that is there now has to be answered, on the monotonic clock (seconds)."""
        return time.monotonic() + min(timeout_ms or self.limits.timeout_ms, self.limits.timeout_ms) / 1000

    async def answers(
        self, request: Request, texts: Sequence[Mapping[str, Any]], names: Sequence[str], until: float
    ) -> list[Answer]:
        """Return the engine's answers; what no client waits for any more is taken back.

        Raises:
            CuecraftError: as `Engine.submit`, and as its future raises.
            ClientGoneError: the client disconnected.
        """
        seconds = max(0.0, until - time.monotonic())
        waiting = asyncio.wrap_future(self.engine.submit(texts, names, seconds))
        done, _ = await asyncio.wait([waiting], timeout=min(_PATIENCE, seconds))
        if done:
            return waiting.result()
        hung_up = asyncio.create_task(_hung_up(request))
        both: list[asyncio.Future[Any]] = [waiting, hung_up]
        await asyncio.wait(both, timeout=max(0.0, until - time.monotonic()), return_when=asyncio.FIRST_COMPLETED)
        is_gone = hung_up.done()
        hung_up.cancel()
        if waiting.done():
            return waiting.result()
        waiting.cancel()
        self.metrics.refused("gone" if is_gone else "deadline", len(texts) * len(names))
        if is_gone:
            raise ClientGoneError
        raise DeadlineError(TOO_LATE)

    async def screened(
        self, request: Request, texts: Sequence[Mapping[str, Any]], asked: GuardMode | None, until: float
    ) -> tuple[list[Screening | None], list[bool]]:
        """Return what the guard finds in each text, and which texts may not be classified.

        Raises:
            DeadlineError: the guard took too long.
        """
        mode = self.screener.mode_of(asked)
        if mode is GuardMode.OFF:
            return [None] * len(texts), [False] * len(texts)
        async with self._screening:  # or screening would take the threads that uploads and the end need
            found = await run_in_threadpool(self.screener.screened, texts, until)
        is_flagged = [own.verdict is Verdict.FLAG for own in found]
        for own in is_flagged:
            self.metrics.screened("flag" if own else "pass")
        request.state.log["flagged"] = sum(is_flagged)
        return [*found], [own and mode is GuardMode.BLOCK for own in is_flagged]


async def _hung_up(request: Request) -> None:
    """Return once the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def parsed(kind: type[D], body: bytes, content_type: str = "") -> D:
    """Return a request's body, which is JSON in UTF-8, with or without a byte order mark.

    Raises:
        DataError: it is not as asked, or has a name twice; says where.
        RefusedError: it is in another encoding.
    """
    charset = _CHARSET.search(content_type)
    named = charset[1].lower() if charset else "utf-8"
    # A document begins with a character of ASCII: with zero bytes around it, that is UTF-16 or UTF-32.
    begin = body[:4].strip(b"\0")[:1]
    is_wide = b"\0" in body[:4] and begin != b"" and begin in _BEGINS
    if (
        is_wide
        or body.startswith(_WIDE_MARKS)
        or (named not in ("utf-8", "utf8", "us-ascii", "ascii") and not body.isascii())
    ):
        raise RefusedError(415, "the body is JSON in another encoding than UTF-8; send it as UTF-8")
    plain = body.removeprefix(codecs.BOM_UTF8)
    try:
        found = kind.model_validate_json(plain)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # Of what may be one thing or another, pydantic names the kind after the place.
        place = ".".join(str(part) for part in first["loc"] if not (part == "str" or "[" in str(part)))
        where = f"at {place!r}: " if place else ""
        raise DataError(f"the request's body is not as asked: {where}{first['msg'].lower()}") from None
    check_names_once(plain)
    return found


def error_response(error: Exception) -> JSONResponse:
    """Return the response that tells an error."""
    document = {"error": str(error)}
    if isinstance(error, RefusedError):
        return JSONResponse(document, error.status, error.headers)
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    wait = error.retry_after if isinstance(error, QueueFullError) else 1.0
    return JSONResponse(document, status, {"retry-after": retry_after(wait)} if status == 503 else None)
