"""The guard: a text in, a verdict and findings out; and the limits of length and repetition.

A text is cut to the longest that is allowed, normalised, and searched for texts that are hidden in it; those are
normalised and searched in turn, to a bounded depth. Rules and detectors then look at all of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cuecraft.core.errors import GuardError
from cuecraft.serving.guard.detectors import Detector, windows
from cuecraft.serving.guard.findings import Finding, Kind, Severity, Where, excerpt
from cuecraft.serving.guard.normalise import PIECES, hidden_texts, normalised
from cuecraft.serving.guard.rules import Rule, shipped_rules

_LONG_ENOUGH = 500  # bytes of a text whose repetition can be measured; shorter ones are not judged
_DEPTH = 3  # how often what was decoded is decoded again
_HIDDEN = 16  # hidden texts of one text that are screened at most
_HIDDEN_CHARACTERS = 40_000  # of all of them together


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


class Verdict(StrEnum):
    """What a guard says of a text."""

    PASS = "pass"
    FLAG = "flag"


@dataclass(frozen=True)
class Screening:
    """What a guard says of one text.

    Args:
        verdict: `flag` where one finding is of high severity.
        findings: what was found, in the order of the parts of the guard.
        scores: each detector's probability of an attack, 0 to 1: the greatest of the text's windows and hidden texts.
        text: the normalised text.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    scores: dict[str, float]
    text: str

    def document(self) -> dict[str, Any]:
        """Return it ready for JSON, without the text."""
        return {
            "verdict": self.verdict.value,
            "findings": [finding.document() for finding in self.findings],
            "scores": dict(self.scores),
        }


@dataclass(frozen=True)
class _Piece:
    """A text to be looked at: the one that was given, or one hidden in it."""

    text: str
    where: Where


@dataclass(frozen=True)
class _Prepared:
    """A text and what is hidden in it, normalised, and what was found on the way."""

    pieces: list[_Piece]
    findings: list[Finding]


@dataclass(frozen=True)
class Guard:
    """Screens texts.

    Args:
        rules: what attacks are known by; those that ship where none are given.
        limits: how long a text may be, and how much it may repeat itself.
        detectors: classifiers that are asked in addition to the rules; each has a name of its own.
        threshold: a detector's score, 0 to 1, from which on the text is flagged.

    Raises:
        GuardError: the threshold is no probability, or two detectors have one name.
    """

    rules: Sequence[Rule] = field(default_factory=shipped_rules)
    limits: Limits = field(default_factory=Limits)
    detectors: Sequence[Detector] = ()
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise GuardError(f"threshold: {self.threshold} is no probability; give one between 0 and 1")
        names = [detector.name for detector in self.detectors]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise GuardError(f"two detectors are called {twice!r}; name each once")

    def screen(self, text: str) -> Screening:
        """Return what is found in a text. Any string will do."""
        return self.screen_many([text])[0]

    def screen_many(self, texts: Sequence[str]) -> list[Screening]:
        """Return what is found in each text; a detector is asked once about all of them."""
        prepared = [self._prepared(text) for text in texts]
        scored = [_scores(detector, prepared) for detector in self.detectors]
        return [self._screening(own, [column[row] for column in scored]) for row, own in enumerate(prepared)]

    def _prepared(self, text: str) -> _Prepared:
        findings = self.limits.findings(text)
        clean = normalised(self.limits.cut(text))
        findings.extend(clean.found)
        shown = self.limits.cut(clean.text)  # one character can become 18 of them
        pieces = [_Piece(shown, Where.TEXT)]
        room = _HIDDEN_CHARACTERS
        layer = [*clean.hidden, *self._decoded(shown, Where.TEXT, findings)]
        is_whole = len(layer) < PIECES
        for _ in range(_DEPTH):
            inner: list[str] = []
            for hidden in layer:
                if len(pieces) > _HIDDEN or not room:
                    is_whole = False
                    break
                found = normalised(hidden[:room])
                room -= min(room, len(hidden))
                pieces.append(_Piece(found.text, Where.HIDDEN))
                inner += [*found.hidden, *self._decoded(found.text, Where.HIDDEN, findings)]
            layer = inner
        if layer or not is_whole:  # or harmless pieces could stand in front of one that is not
            reason = "more is encoded in it, or deeper, than is screened"
            findings.append(Finding(Kind.LIMIT, "hidden", reason, excerpt(text)))
        return _Prepared(pieces, findings)

    def _decoded(self, text: str, where: Where, findings: list[Finding]) -> Iterator[str]:
        """Yield the texts that are encoded in one, and take note of each."""
        for piece in hidden_texts(text, self._is_suspicious):
            reason = f"{piece.encoding} was decoded, and what it says was screened too"
            shown = excerpt(text, piece.start, piece.end)
            findings.append(Finding(Kind.ENCODING, piece.encoding.value, reason, shown, where, Severity.LOW))
            yield piece.text

    def _is_suspicious(self, text: str) -> bool:
        return any(rule.severity is Severity.HIGH and rule.match(text) for rule in self.rules)

    def _screening(self, prepared: _Prepared, scored: Sequence[tuple[float, _Piece]]) -> Screening:
        findings = list(prepared.findings)
        for rule in self.rules:
            matches = (rule.finding(piece.text, piece.where) for piece in prepared.pieces)
            findings.extend([found for found in matches if found is not None][:1])
        scores = {}
        for detector, (score, piece) in zip(self.detectors, scored, strict=True):
            scores[detector.name] = score
            if score >= self.threshold:
                reason = f"an attack with probability {score:.2f}; the threshold is {self.threshold:.2f}"
                shown = excerpt(piece.text)
                findings.append(Finding(Kind.DETECTOR, detector.name, reason, shown, piece.where))
        is_flagged = any(found.flags for found in findings)
        verdict = Verdict.FLAG if is_flagged else Verdict.PASS
        return Screening(verdict, tuple(findings), scores, prepared.pieces[0].text)


def _scores(detector: Detector, prepared: Sequence[_Prepared]) -> list[tuple[float, _Piece]]:
    """Return each text's score: the greatest of its windows and hidden texts, and the window it is of."""
    views = [
        [_Piece(window, piece.where) for piece in own.pieces for window in windows(piece.text)] for own in prepared
    ]
    flat = [view.text for own in views for view in own]
    found = iter(detector.scores(flat) if flat else [])
    empty = _Piece("", Where.TEXT)
    return [max(((next(found), view) for view in own), key=lambda pair: pair[0], default=(0.0, empty)) for own in views]
