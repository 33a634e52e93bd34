"""Who may ask: bearer tokens, compared in constant time, and how much each of them may ask for."""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cuecraft.core.errors import ServeError, named

CLIENT_VARIABLE, ADMIN_VARIABLE = "CUECRAFT_TOKENS", "CUECRAFT_ADMIN_TOKENS"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SHORTEST = 16
_BURST_SECONDS = 2.0  # so much of its rate may a token save up


class Role(StrEnum):
    """What a token is good for."""

    CLIENT = "client"
    ADMIN = "admin"


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Args:
        name: of the token, for logs and limits; never the token.
        role: what it may do.
    """

    name: str
    role: Role


class AccessTokens:
    """The tokens that are known, by their hashes.

    Args:
        known: name -> (token, role). None at all: every client may classify, none may change prompts.
    """

    def __init__(self, known: Mapping[str, tuple[str, Role]]) -> None:
        self._known = [(name, role, _hashed(token)) for name, (token, role) in known.items()]

    @classmethod
    def read(cls, file: Path | None, environment: Mapping[str, str] = os.environ) -> AccessTokens:
        """Read tokens of a file, and of the environment.

        A line of the file is ``client NAME TOKEN`` or ``admin NAME TOKEN``; `#` begins a comment. CUECRAFT_TOKENS and
        CUECRAFT_ADMIN_TOKENS hold ``NAME:TOKEN``, with commas between several.

        Raises:
            ServeError: the file cannot be read, or a line of it is none of these; it is named, the token is not.
        """
        known: dict[str, tuple[str, Role]] = {}
        for variable, role in ((CLIENT_VARIABLE, Role.CLIENT), (ADMIN_VARIABLE, Role.ADMIN)):
            for number, pair in enumerate(filter(None, environment.get(variable, "").split(",")), start=1):
                name, colon, token = pair.strip().partition(":")
                if not colon:
                    raise ServeError(f"{variable}: entry {number} is not NAME:TOKEN; write a name before the token")
                _add(known, f"{variable}: entry {number}", name, token, role)
        if file is None:
            return cls(known)
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ServeError(f"{file}: cannot be read ({error}); name a text file of tokens") from None
        for number, line in enumerate(lines, start=1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if len(words) != 3 or words[0] not in set(Role):
                raise ServeError(f"{file} line {number}: is not 'client NAME TOKEN' or 'admin NAME TOKEN'")
            _add(known, f"{file} line {number}", words[1], words[2], Role(words[0]))
        return cls(known)

    def __bool__(self) -> bool:
        return bool(self._known)

    def caller(self, header: str | None) -> Caller | None:
        """Return who an Authorization header stands for; None for an unknown caller."""
        if not self._known:
            return Caller("anyone", Role.CLIENT)
        scheme, _, token = (header or "").partition(" ")
        given = _hashed(token.strip())
        # Every token is compared, and always all of its hash, so that time tells nothing.
        found = [(name, role) for name, role, known in self._known if hmac.compare_digest(known, given)]
        if scheme.lower() != "bearer" or not found:
            return None
        return Caller(*found[0])


def check_open(host: str, tokens: Path | None) -> None:
    """Raise ServeError where others than this machine could ask a server without a token."""
    if host not in LOOPBACK and not AccessTokens.read(tokens):
        raise ServeError(
            f"without tokens anybody who reaches {host} may ask; give {named('tokens')} FILE, or {named('open')}"
        )


def _add(known: dict[str, tuple[str, Role]], where: str, name: str, token: str, role: Role) -> None:
    if len(token) < _SHORTEST:
        raise ServeError(f"{where}: the token of {name!r} is shorter than {_SHORTEST} characters; make a longer one")
    if name in known or not name:
        raise ServeError(f"{where}: the name {name!r} is empty or taken; give each token a name of its own")
    known[name] = (token, role)


def _hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


class RateLimit:
    """A bucket for each caller, from which answers are taken and which fills at a rate.

    Args:
        rate: answers a second; None for no limit.
        clock: seconds.
    """

    def __init__(self, rate: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # name -> (left, when)

    def take(self, name: str, answers: int) -> float:
        """Take answers for a caller; return 0, or the seconds after which to try again, where there are too few.

        What is more than a bucket ever holds is let through when it is full, and paid for afterwards.
        """
        if self._rate is None:
            return 0.0
        size = max(1.0, self._rate * _BURST_SECONDS)
        now = self._clock()
        left, before = self._buckets.get(name, (size, now))
        left = min(size, left + (now - before) * self._rate)
        needed = min(float(answers), size)
        if left < needed:
            self._buckets[name] = (left, now)
            return max(0.001, (needed - left) / self._rate)
        self._buckets[name] = (left - answers, now)
        return 0.0


def retry_after(seconds: float) -> str:
    """Return seconds as a Retry-After header has them: whole ones, one at least."""
    return str(max(1, math.ceil(min(seconds, 3600.0))))
