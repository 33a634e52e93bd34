"""Where contrastive trainings start: prompts without a class head, which is fitted afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from cuecraft.method import CalibrationKind, Candidate, Problem
from cuecraft.prompts import Calibration, HardPrompt, PrefixPrompt
from cuecraft.tune.auto.starts import GivenWords, Start
from cuecraft.tune.prefix_tuning import PTuningV2
from cuecraft.untuned import starting_point


@dataclass(frozen=True)
class BareWords(Start):
    """Words in the prompt slot."""

    @classmethod
    def of(cls, name: str, token_ids: tuple[int, ...]) -> BareWords:
        """Return them with the task's own label words, which nothing reads."""
        return cls(name, GivenWords(), token_ids)

    def candidate(self, problem: Problem) -> Candidate:
        """Return the words without a class head."""
        return Candidate(HardPrompt(self.token_ids), Calibration.none(problem.task.verbalizer.num_classes))

    def on(self, problem: Problem) -> Candidate:
        """Return the words with what they answer by."""
        return starting_point(problem, self.token_ids, CalibrationKind.FITTED)


@dataclass(frozen=True)
class BarePrefix(BareWords):
    """A prefix of the words' keys and values in front of the template's own words."""

    def candidate(self, problem: Problem) -> Candidate:
        """Return the prefix without a class head."""
        states = PTuningV2(prefix_length=len(self.token_ids)).initial_states(problem)
        found = PrefixPrompt(HardPrompt(problem.initial_ids), states)
        return Candidate(found, Calibration.none(problem.task.verbalizer.num_classes))
