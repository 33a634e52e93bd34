"""The guard in front of the prompts: texts are screened before they are classified, and flagged or refused."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from cuecraft.core.errors import DeadlineError, GuardError
from cuecraft.core.options import Options
from cuecraft.serving.guard import (
    Detector,
    Guard,
    GuardMode,
    HubDetector,
    PromptDetector,
    Screening,
    all_rules,
    only_field,
)
from cuecraft.serving.requests import TOO_LATE, AnyEngine

#: When the detectors of the screening in progress have to answer; a detector is asked about texts alone.
_UNTIL: ContextVar[float] = ContextVar("until")
_GRACE = 1.0  # seconds for the engine to tell by itself that it is too late
_STRICTNESS = (GuardMode.OFF, GuardMode.FLAG, GuardMode.BLOCK)


class GuardSettings(Options):
    """What the guard is made of, and what is done with its verdict."""

    mode: GuardMode = Field(GuardMode.OFF, description="`off`, `flag` or `block`; a request may ask for more, not less")
    rules: tuple[Path, ...] = Field((), description="files of rules in addition to those that ship")
    prompt: str | None = Field(None, description="id of a served prompt that is asked as a detector")
    detectors: tuple[str, ...] = Field((), description="text classifiers, Hub names or folders")
    attack: tuple[str, ...] = Field(
        (), description="classes of detectors that mean an attack; by default by their names"
    )
    threshold: float = Field(0.5, ge=0, le=1, description="a detector's score from which on a text is flagged")


@dataclass(frozen=True)
class Screener:
    """A guard, and how strict a server is with what it finds.

    Args:
        guard: screens texts.
        mode: what is done with a flag at least.
    """

    guard: Guard
    mode: GuardMode

    @classmethod
    def of(cls, settings: GuardSettings, engine: AnyEngine, device: str, local_files_only: bool) -> Screener:
        """Set a guard up.

        Args:
            settings: what it is made of.
            engine: answers with the prompt that is a detector.
            device: of other detectors.
            local_files_only: never ask the Hub for one.

        Raises:
            UnknownPromptError: there is no such prompt.
            GuardError: rules, detectors or their classes cannot be used.
        """
        detectors: list[Detector] = []
        if settings.prompt is not None:
            detectors.append(_served_detector(settings.prompt, settings.attack, engine))
        own = [HubDetector(name, settings.attack, device, local_files_only) for name in settings.detectors]
        guard = Guard(all_rules(settings.rules), detectors=[*detectors, *own], threshold=settings.threshold)
        return cls(guard, settings.mode)

    def mode_of(self, asked: GuardMode | None) -> GuardMode:
        """Return the stricter of what a request asks for and what the server does at least."""
        return max(self.mode, asked or GuardMode.OFF, key=_STRICTNESS.index)

    def screened(self, fields: Sequence[Mapping[str, Any]], until: float) -> list[Screening]:
        """Screen texts, all fields of each together, and the options that it brings.

        Args:
            fields: of each text.
            until: when a detector among the served prompts has to answer, on the monotonic clock (seconds).

        Raises:
            DeadlineError, QueueFullError: it did not.
        """
        _UNTIL.set(until)
        return self.guard.screen_many(["\n".join(_parts(own)) for own in fields])


def _parts(text: Mapping[str, Any]) -> list[str]:
    """Return all strings of a text: its fields, and its options."""
    return [part for value in text.values() for part in ([value] if isinstance(value, str) else value)]


def _served_detector(name: str, attack: Sequence[str], engine: AnyEngine) -> PromptDetector:
    """Return a served prompt as a detector; where it is swapped, the new one answers from then on."""
    served = engine.shelf.get(name)
    if not served.task.has_labels:
        raise GuardError(
            f"prompt {name!r} answers with {served.task.answers.kind}, and a detector needs labels, one of which means "
            "an attack; name another prompt"
        )
    field = only_field(served.task.template.field_names, name)

    def answers(texts: Sequence[str]) -> list[tuple[float, ...]]:
        # A text without letters has no tokens for some models; it is no attack that a prompt could tell.
        asked = [{field: text if text.strip() else "."} for text in texts]
        left = max(0.0, _UNTIL.get() - time.monotonic())
        try:
            return [answer.probabilities for answer in engine.submit(asked, [name], left).result(left + _GRACE)]
        except TimeoutError:
            raise DeadlineError(TOO_LATE) from None

    return PromptDetector(name, answers, [str(label) for label in served.task.answers.classes], attack)
