"""Prompts by id: put, swapped and dropped while a server runs. What they answer with is known elsewhere: no torch here.

An engine, and whatever else answers texts, needs no more of a prompt than is written here. `serving/artifacts.py` has
those of artifacts, `serving/exported.py` those of exported folders.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from cuecraft.core.errors import ServeError, UnknownPromptError
from cuecraft.data import Record
from cuecraft.export.runtime.manifest import PROMPT_NAME
from cuecraft.task import Decision, Example, Task
from cuecraft.task.answers import AnswerColumns
from cuecraft.task.rendering import Pieces, Renderer


def check_id(name: str) -> None:
    """Raise ServeError where a prompt cannot have an id."""
    if not PROMPT_NAME.fullmatch(name):
        shown = name[:80]
        raise ServeError(f"prompt id {shown!r} cannot be one; use letters, digits, dot, dash, underscore, 64 at most")


class Listed(Protocol):
    """What is known of a prompt without what answers with it."""

    @property
    def name(self) -> str:
        """Its id."""
        ...

    @property
    def task(self) -> Task:
        """Template and answer space."""
        ...

    @property
    def version(self) -> str:
        """A hash that another prompt of this id has not."""
        ...

    def example(self, fields: Mapping[str, Any]) -> Example:
        """Return a text's fields, and the options that it brings, as an example of the task; raises as `example_of`."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what a client may know of it, JSON-ready."""
        ...


def example_of(task: Task, text: Mapping[str, Any]) -> Example:
    """Return a text as an example of a task.

    Args:
        task: the task.
        text: its fields by name, and the options that it brings where the task's answers ask for these.

    Raises:
        TemplateError: a field that the template names is missing.
        DataError: options are missing, or cannot be chosen among.
    """
    column = AnswerColumns().options
    if not task.answers.asks_options:
        return task.examples([Record({name: value for name, value in text.items() if name != column})])[0]
    options = task.answers.read_options("the text", text, AnswerColumns())
    return task.examples([Record({name: value for name, value in text.items() if name != column}, options=options)])[0]


def described(prompt: Listed, **more: Any) -> dict[str, Any]:
    """Return what a client may know of a prompt, JSON-ready: what all have, then `more`."""
    template, answers = prompt.task.template, prompt.task.answers
    return {
        "id": prompt.name,
        "version": prompt.version,
        "answers": answers.kind,
        "classes": list(answers.classes),
        "fields": list(template.field_names),
        **({"options": AnswerColumns().options} if answers.asks_options else {}),
        "template": template.source,
        **more,
    }


class Ready(Protocol):
    """A prompt as its backbone takes it: how texts are written, and positions that it takes."""

    @property
    def renderer(self) -> Renderer:
        """Its task as the tokenizer writes it."""
        ...

    @property
    def length(self) -> int:
        """Positions that it takes in addition to a text's pieces."""
        ...


class TextReader(Protocol):
    """What reads texts: a backbone, or an exported graph."""

    @property
    def budget(self) -> Any:
        """What one pass may take; its `tokens` are an engine's batch."""
        ...

    def mixed_logits(self, rows: Sequence[Any]) -> Sequence[Any]:
        """Return class logits `[C]` of rows, each a ready prompt of this reader and a text's pieces."""
        ...


class ServedMember(Protocol):
    """One prompt of several that answer together, or the only one."""

    @property
    def backbone(self) -> Any:
        """What reads the texts, a `TextReader`."""
        ...

    @property
    def ready(self) -> Any:
        """The prompt as the reader takes it, a `Ready`."""
        ...

    def ready_for(self, example: Example) -> Any:
        """Return the prompt as the reader takes it for one text, which may bring options of its own."""
        ...


class Served(Listed, Protocol):
    """A prompt that is ready to answer."""

    @property
    def members(self) -> Sequence[Any]:
        """The prompts whose probabilities are averaged, each a `ServedMember`; one, unless several answer together."""
        ...

    def decided(self, logits: Sequence[Any], example: Example) -> Decision:
        """Return the answer to a text, given what its members' readers returned for it.

        Raises:
            BackboneError: that is NaN or infinite.
        """
        ...

    def searched(self, examples: Sequence[Example]) -> list[Decision]:
        """Return the answers to texts where any word may be one (`AnswerSpace.is_open`), in passes of their own."""
        ...


def decide_mixed(rows: Sequence[tuple[Served, Example, Pieces]]) -> list[Decision]:
    """Return the answer to each row, over as few passes as the readers of its prompt's members allow.

    Args:
        rows: texts, each with a prompt of its own and as that prompt's renderer writes it.
    """
    with_options = [row for row in rows if not row[0].task.answers.is_open]
    found = iter(_decide_options(with_options))
    words = iter(_decide_words([row for row in rows if row[0].task.answers.is_open]))
    return [next(words if served.task.answers.is_open else found) for served, _, _ in rows]


def _decide_words(rows: Sequence[tuple[Served, Example, Pieces]]) -> list[Decision]:
    """Return the answers to rows where any word may be one; those of one prompt are searched for together."""
    by_prompt: dict[int, list[int]] = {}
    for number, (served, _, _) in enumerate(rows):
        by_prompt.setdefault(id(served), []).append(number)
    found: dict[int, Decision] = {}
    for numbers in by_prompt.values():
        decisions = rows[numbers[0]][0].searched([rows[number][1] for number in numbers])
        found.update(zip(numbers, decisions, strict=True))
    return [found[number] for number in range(len(rows))]


def _decide_options(rows: Sequence[tuple[Served, Example, Pieces]]) -> list[Decision]:
    """Return the answers to rows that have options."""
    by_reader: dict[int, tuple[TextReader, list[tuple[int, Any]]]] = {}
    for number, (served, example, pieces) in enumerate(rows):
        for member in served.members:
            _, own = by_reader.setdefault(id(member.backbone), (member.backbone, []))
            own.append((number, (member.ready_for(example), pieces)))
    found: list[list[Any]] = [[] for _ in rows]
    for reader, own in by_reader.values():
        logits = reader.mixed_logits([row for _, row in own])
        for (number, _), part in zip(own, logits, strict=True):
            found[number].append(part)
    return [served.decided(own, example) for (served, example, _), own in zip(rows, found, strict=True)]


P = TypeVar("P", bound=Listed)


class PromptRegistry(ABC, Generic[P]):
    """Prompts by id.

    What is being answered with a prompt that is swapped or dropped is answered with it to the end.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int = 1024) -> None:
        self._most = most
        self._prompts: dict[str, P] = {}
        self._lock = threading.Lock()

    @property
    @abstractmethod
    def model(self) -> str:
        """The name of the backbone that all of them were made for."""

    @property
    def is_remote(self) -> bool:
        """Whether others answer, who would not learn of a change."""
        return False

    def check_uploads(self) -> None:
        """Raise ServeError where no artifact can be added."""

    @abstractmethod
    def _made(self, name: str, artifacts: Sequence[Any]) -> P:
        """Return what stands for artifacts, or raise CuecraftError where they cannot be taken."""

    def put(self, name: str, artifacts: Sequence[Any]) -> P:
        """Add a prompt, or swap the one of that id for it; several artifacts are an ensemble.

        Raises:
            ServeError: the id is no id, or there are too many prompts.
            CuecraftError: it cannot be served; then nothing has changed.
        """
        check_id(name)
        made = self._made(name, artifacts)
        with self._lock:
            if name not in self._prompts and len(self._prompts) >= self._most:
                raise ServeError(f"there are {self._most} prompts already, which is the limit; drop one first")
            self._prompts = {**self._prompts, name: made}
        return made

    def drop(self, name: str) -> None:
        """Remove a prompt.

        Raises:
            UnknownPromptError: there is none of that id.
        """
        with self._lock:
            self.get(name)
            self._prompts = {key: prompt for key, prompt in self._prompts.items() if key != name}

    def get(self, name: str) -> P:
        """Return a prompt.

        Raises:
            UnknownPromptError: there is none of that id.
        """
        found = self._prompts.get(name)
        if found is None:
            raise UnknownPromptError(
                f"there is no prompt {name[:64]!r}; there are {', '.join(self._prompts) or 'none'}"
            )
        return found

    def all(self) -> list[P]:
        """Return all of them, in the order they were put."""
        return list(self._prompts.values())


class AnyShelf(PromptRegistry[P]):
    """Prompts that are ready to answer, over one reader."""

    backbone: Any

    @abstractmethod
    def use_threads(self, count: int) -> None:
        """Let each pass use so many threads of the processor."""
