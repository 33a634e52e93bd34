"""The mistakes a user can fix, each in one line: what is wrong, where, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_MARK = "\x1e"  # around the place of an option; no keyboard types it
_PLACE = re.compile(f"{_MARK}([a-z][a-z0-9_.]*){_MARK}")  # one mark alone is of a text that an error quotes


def named(place: str) -> str:
    """Return what stands for an option in the text of an error or a warning; each front end has its own word for it.

    Args:
        place: its key in a recipe, such as "data.dev".
    """
    return f"{_MARK}{place}{_MARK}"


def python_word(place: str) -> str:
    """Return what Python calls an option: its argument, such as `dev=`."""
    return f"{place.rpartition('.')[2]}="


class Worded:
    """One line that may name options."""

    args: tuple[Any, ...]

    @property
    def field(self) -> str | None:
        """The place of the first option that is named, such as "data.dev"."""
        return next(iter(self._parts()[1::2]), None)

    def worded(self, word: Callable[[str], str]) -> str:
        """Return the line with a front end's words for options.

        Args:
            word: gives its word for a place.
        """
        return "".join(word(part) if number % 2 else part for number, part in enumerate(self._parts()))

    def __str__(self) -> str:
        return self.worded(python_word)

    def _parts(self) -> list[str]:
        """Return texts and places in turns."""
        return _PLACE.split("".join(map(str, self.args)))


class CuecraftError(Worded, ValueError):
    """Base of every error that is the caller's to fix; the command line turns it into exit code 2."""


class DataError(CuecraftError):
    """A data file, column, row or label cannot be used."""


class TemplateError(CuecraftError):
    """A template cannot be parsed, or does not fit the backbone or the fields at hand."""


class LabelWordError(CuecraftError):
    """A verbalizer's label words are missing, collide, or cannot be scored by the backbone."""


class AssetError(CuecraftError):
    """A demo model or data set is not installed, or its files are damaged."""


class BackboneError(CuecraftError):
    """A backbone cannot be loaded, or cannot do what is asked of it."""


class PromptError(CuecraftError):
    """A prompt does not fit the backbone: width, vocabulary or number of positions."""


class MethodError(CuecraftError):
    """A method is unknown, wrongly configured, or does not go with the backbone."""


class ArtifactError(CuecraftError):
    """An artifact folder is missing, damaged, of a newer schema, or made for another backbone."""


class CompareError(CuecraftError):
    """A comparison's settings cannot be read, or its folder cannot be used."""


class RecipeError(CuecraftError):
    """A recipe cannot be read, or asks for something that is not there."""


class RunError(CuecraftError):
    """The folder of a run cannot be used, or is not in the state that is asked for."""


class EndpointError(CuecraftError):
    """An endpoint named by the user cannot be reached, refuses, or does not answer as it should."""


class ServeError(CuecraftError):
    """A server cannot be set up as asked, or a request cannot be answered as asked."""


class UnknownPromptError(ServeError):
    """There is no prompt of the id that was asked for."""


class ClosingError(ServeError):
    """The server is stopping, and takes no more requests."""


class QueueFullError(ServeError):
    """More is waiting than the queue holds; try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(ServeError):
    """An answer was not there in time."""


class GuardError(CuecraftError):
    """A guard cannot be set up as asked: a rule file, a limit, a threshold or a detector cannot be used."""


class ExportError(CuecraftError):
    """An artifact cannot be exported as asked, or an exported folder cannot be used."""


class BulkError(CuecraftError):
    """A job over files cannot be begun, gone on with, or brought to its end."""


class CuecraftWarning(Worded, UserWarning):
    """Something was done that the user would want to know of, such as texts cut to fit the model."""


class StoppedError(Exception):
    """Work was asked to stop, and did so at a place from which it can go on."""
