"""Limits of a text: how long it may be, and how much it may repeat itself."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from cuecraft.errors import GuardError
from cuecraft.guard.findings import Finding, Kind, excerpt

_LONG_ENOUGH = 500  # bytes of a text whose repetition can be measured; shorter ones are not judged


@dataclass(frozen=True)
class Limits:
    """What a text may be.

    Args:
        characters: of a text at most; what is longer is flagged, and only its beginning is screened. None for no limit.
        repetition: the size that a text has compressed (zlib), as a share of its UTF-8 bytes, may not be less than
            this; English prose has about 0.5, one word over and over 0.01. None for no limit. Texts of less than 500
            bytes are not judged.

    Raises:
        GuardError: a limit is out of range.
    """

    characters: int | None = 50_000
    repetition: float | None = 0.05

    def __post_init__(self) -> None:
        if self.characters is not None and self.characters < 1:
            raise GuardError(f"characters: {self.characters} is no limit; give a positive number, or None for none")
        if self.repetition is not None and not 0 < self.repetition < 1:
            raise GuardError(f"repetition: {self.repetition} is no share; give one between 0 and 1, or None for none")

    def cut(self, text: str) -> str:
        """Return the beginning of a text, as long as it may be."""
        return text[: self.characters]

    def findings(self, text: str) -> list[Finding]:
        """Return which limits a text exceeds."""
        found = []
        if self.characters is not None and len(text) > self.characters:
            reason = f"{len(text):,} characters, where {self.characters:,} are allowed; the rest was not screened"
            found.append(Finding(Kind.LIMIT, "length", reason, excerpt(text, self.characters)))
        data = self.cut(text).encode("utf-8", "surrogatepass")
        if self.repetition is not None and len(data) >= _LONG_ENOUGH:
            share = len(zlib.compress(data)) / len(data)
            if share < self.repetition:
                reason = f"repeats itself: compressed it has {share:.1%} of its size"
                found.append(Finding(Kind.LIMIT, "repetition", reason, excerpt(text)))
        return found
