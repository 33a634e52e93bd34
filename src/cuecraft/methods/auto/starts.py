"""Where trainings start: the words in the prompt slot, how many, and the label words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Self

from cuecraft.artifact import HardPrompt, PrefixPrompt, Prompt
from cuecraft.backbone import AnyBackbone, Context
from cuecraft.core.storage import digest
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.problem import CalibrationKind, OtherTask, Problem
from cuecraft.methods.search import AutoPrompt
from cuecraft.methods.search.label_words import LabelWordSearch, with_label_words
from cuecraft.methods.train.prefix import PTuningV2
from cuecraft.methods.untuned import starting_point


@dataclass
class OtherWords(OtherTask):
    """Reads with other label words than the problem's; the texts and the prompt stay, and nothing is read again."""

    name: str = "label-words"

    @contextmanager
    def over(self, context: Context) -> Iterator[tuple[AnyBackbone, Context]]:
        """Lend the backbone and the context with the other label words."""
        yield self.backbone, replace(context, renderer=self.backbone.renderer(self.task))


@dataclass(frozen=True)
class LabelWords(ABC):
    """Which label words stand for the classes."""

    @abstractmethod
    def chosen(self, problem: Problem) -> Problem:
        """Return the problem with these label words; what is learnt of labels is learnt of its training part only."""


@dataclass(frozen=True)
class GivenWords(LabelWords):
    """The task's own."""

    def chosen(self, problem: Problem) -> Problem:
        """Return the problem as it is."""
        return problem


@dataclass(frozen=True)
class SearchedWords(LabelWords):
    """Found by a search over the training part.

    Args:
        search: its options.
        token_ids: the prompt that they are searched behind.
        found: words by the seed of the problem that they were found for: every fold has its own.
    """

    search: LabelWordSearch
    token_ids: tuple[int, ...]
    found: dict[int, Mapping[str, Sequence[str]]] = field(default_factory=dict, compare=False)

    def chosen(self, problem: Problem) -> Problem:
        """Search, unless that was done for this problem before; return the problem with what was found."""
        if problem.seed not in self.found:
            self.found[problem.seed] = self.search.search(replace(problem, dev=None), self.token_ids).words
        return with_label_words(problem, self.found[problem.seed])


@dataclass(frozen=True)
class Start(ABC):
    """Where a training starts.

    Args:
        name: as shown.
        label_words: which label words stand for the classes.
        token_ids: of words in the prompt slot.
    """

    name: str
    label_words: LabelWords
    token_ids: tuple[int, ...]

    @property
    def has_own_task(self) -> bool:
        """Whether the label words are the task's own, so that prompts made from it can answer together with others."""
        return isinstance(self.label_words, GivenWords)

    @abstractmethod
    def candidate(self, problem: Problem) -> Candidate:
        """Return the prompt, calibrated on the problem's training part; that problem has the label words already."""

    def bare(self, problem: Problem) -> Prompt:
        """Return the prompt without a class head."""
        return HardPrompt(self.token_ids)

    def on(self, problem: Problem) -> Candidate:
        """Return the prompt with its label words, as a candidate of a problem that has the task's own."""
        own = self.label_words.chosen(problem)
        return retasked(self.candidate(own), own, problem)


@dataclass(frozen=True)
class Words(Start):
    """Words in the prompt slot.

    Args:
        differs: whether they, or the label words, are others than the untuned prompt's.
    """

    differs: bool

    def candidate(self, problem: Problem) -> Candidate:
        """Return the words, calibrated."""
        return starting_point(problem, self.token_ids, CalibrationKind.FITTED)


@dataclass(frozen=True)
class SearchedPrompt(Start):
    """Words found by a discrete search that begins at other words, `token_ids`.

    Args:
        search: its options.
    """

    search: AutoPrompt

    def candidate(self, problem: Problem) -> Candidate:
        """Search by the training part alone, and return what was found."""
        # A state on disk must not serve another search: with a time limit their order differs from run to run.
        key = digest({"search": self.name, "seed": problem.seed, "rows": len(problem.train)})
        kept = problem.checkpoints and problem.checkpoints.within(key[:16])
        quiet = replace(problem, dev=None, report=lambda event: None, checkpoints=kept)
        return self.search.from_words(quiet, self.token_ids).best


@dataclass(frozen=True)
class BareWords(Start):
    """Words in the prompt slot without a class head, which is fitted after a training."""

    @classmethod
    def of(cls, name: str, token_ids: tuple[int, ...]) -> Self:
        """Return them with the task's own label words, which nothing reads."""
        return cls(name, GivenWords(), token_ids)

    def candidate(self, problem: Problem) -> Candidate:
        """Return the prompt without a class head."""
        return Candidate(self.bare(problem), problem.objective.plain())

    def on(self, problem: Problem) -> Candidate:
        """Return the words with what they answer by."""
        return starting_point(problem, self.token_ids, CalibrationKind.FITTED)


@dataclass(frozen=True)
class BarePrefix(BareWords):
    """A prefix of the words' keys and values in front of the template's own words."""

    def bare(self, problem: Problem) -> Prompt:
        """Return the prefix without a class head."""
        states = PTuningV2(prefix_length=len(self.token_ids)).initial_states(problem)
        return PrefixPrompt(HardPrompt(problem.initial_ids), states)


def retasked(candidate: Candidate, own: Problem, problem: Problem) -> Candidate:
    """Return a candidate of a problem with label words of its own as one of the problem at large."""
    if own.task is problem.task:
        return candidate
    return replace(candidate, reader=OtherWords(problem.backbone, own.task))
