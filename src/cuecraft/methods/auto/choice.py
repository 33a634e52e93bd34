"""`auto`: chooses method and settings by cross-validation, and ships nothing that is worse than the untuned prompt.

1. The untuned prompt is read once over all labelled examples, and calibrated in several ways, on folds. Where the user
   gave no template and the tokenizer has one for chats, that is tried first, and taken where it is clearly better.
2. Starting words written by hand, and other label words, are tried without training.
3. A class head is fitted, and a first-order deep cue: one gradient for each example, and the rest is algebra.
4. Trainings are cross-fitted: one prompt without each fold, side by side, which ship together. Of a model that has only
   features, prefixes are trained contrastively too, and a class head is fitted to each.
5. Those that may be as good as the best, as far as so few examples tell, answer together.
6. With many classes, class heads learn from names of classes too, and trained are a vector for each class with a
   prompt, or prompts alone, on few folds; what reads label words again and again is left out.
7. They ship, or the one of least held-out log-loss, if that is less, and the accuracy not lower, than those of the
   calibrated untuned prompt; otherwise that one ships, with the reason.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from cuecraft.artifact import HardPrompt
from cuecraft.backbone import FeatureScale
from cuecraft.core.errors import BackboneError, MethodError, PromptError, named
from cuecraft.core.events import Document, Event, Refused
from cuecraft.methods.auto.contenders import Contender, FirstOrderCue, Together, WordsAlone, probed
from cuecraft.methods.auto.crossfit import Trainings, tokens_of
from cuecraft.methods.auto.forms import chosen_form, read_in_chat
from cuecraft.methods.auto.many import FOLDS, Lesson, has_many, lesson
from cuecraft.methods.auto.many import trainings as many_trainings
from cuecraft.methods.auto.plans import (
    PLANS,
    PREFIX_LENGTH,
    UNIT_HEADS,
    AutoPlan,
    Preset,
    configurations,
    contrasts,
    within_tokens,
)
from cuecraft.methods.auto.starts import BarePrefix, BareWords, Start, Words
from cuecraft.methods.auto.untrained import Untrained
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.evidence import Evidence, EvidenceVerdict, Tried, judge
from cuecraft.methods.first_order import linearised
from cuecraft.methods.held_out import gather, stratified_folds, texts_of
from cuecraft.methods.in_context import BehindShots
from cuecraft.methods.objectives import Score
from cuecraft.methods.problem import (
    CalibrationKind,
    Method,
    Outcome,
    Problem,
    ReadingLimit,
    has_single_word,
    held_out_step,
    note,
)
from cuecraft.methods.search.space import filled_ids
from cuecraft.methods.untuned import untuned_prompt
from cuecraft.task import AnswerSpace
from cuecraft.task.answers.words import default_word

_READING = 0.25  # of the time limit
_CLASSES = 20  # beyond which more examples are read than a preset's, as many of each class
_ONE, _SEVERAL = 1.0, 2.0  # standard errors within which one prompt, or several, may be as good as the best


class Auto(BehindShots, Method):
    """Automatic choice of method and settings, within a time limit where there is one."""

    name: ClassVar[str] = "auto"

    preset: Preset = Field(Preset.GOOD, description="how much is tried: `fast`, `good` or `best`")
    label_words: Literal["search", "keep"] | None = Field(
        None, description="`search` other label words, or `keep` these; by default those that the user gave are kept"
    )
    chat: Literal["try", "keep"] | None = Field(
        None, description="`try` the tokenizer's chat template, or `keep` the template; by default one that you gave"
    )
    prompts: int = Field(8, ge=1, description="prompts that answer together, at most")
    margin: float = Field(0.01, ge=0, le=1, description="accuracy within which tuning is called hardly worth it")

    def reading_limit(self) -> ReadingLimit:
        """Return how much it wants to read: what leaves time to try things."""
        plan = PLANS[self.preset]
        return ReadingLimit(plan.examples, _READING, plan.examples // _CLASSES)

    def fit(self, problem: Problem) -> Outcome:
        """Choose by cross-validation over the training and dev examples together; make the choice on all of them.

        Raises:
            MethodError: label words are to be searched, or the chat template is to be tried, and examples are to stand
                in the prompt, which are written with them.
        """
        if not self.shots:
            asked = "keep" if self.chat is None and self.spares_words(problem) else self.chat
            form = chosen_form(problem, PLANS[self.preset], asked)
            outcome = _Choice(form.problem, self, list(form.trace), tried=list(form.tried)).made()
            return read_in_chat(outcome, form.problem) if form.is_chat else outcome
        if self.label_words == "search":
            raise MethodError("examples in the prompt (shots) are written with the label words; give label_words=keep")
        if self.chat == "try":
            raise MethodError(
                f"examples in the prompt (shots) are written in one template; give {named('task.chat')} or chat=keep"
            )
        own = self.model_copy(update={"label_words": "keep"})
        return self.tuned_behind(problem, lambda behind: _Choice(behind, own).made())

    @property
    def reads_label_words(self) -> bool:
        """No: where they say nothing, class heads and vectors of classes compete alone."""
        return False

    def spares_words(self, problem: Problem) -> bool:
        """Return whether nothing is trained that reads label words: classes are too many, or there is one alone."""
        return has_single_word(problem) or (has_many(problem) and self.label_words != "search")

    def asked(self, searches_words: bool, chat: Any) -> Self:
        """Return the method as asked for in addition to its own options.

        Args:
            searches_words: whether label words are to be searched.
            chat: False to keep the template.
        """
        words = self.label_words or ("search" if searches_words else None)
        return self.model_copy(update={"label_words": words, "chat": "keep" if chat is False else self.chat})


@dataclass(frozen=True, eq=False, kw_only=True)
class Decided(Event):
    """Which prompt ships, and why."""

    verdict: EvidenceVerdict

    def document(self) -> Document:
        """Return phase and verdict, JSON-ready."""
        return {"phase": self.phase, **self.verdict.document()}


@dataclass
class _Choice:
    """One problem in progress.

    Args:
        problem: what is solved.
        options: of the method.
    """

    problem: Problem
    options: Auto
    trace: list[Document] = field(default_factory=list)
    contenders: list[Contender] = field(default_factory=list)
    refusal: str | None = None  # why something could not be tried
    tried: list[Tried] = field(default_factory=list)  # before

    def __post_init__(self) -> None:
        self.plan, self.has_many = PLANS[self.options.preset], self.options.spares_words(self.problem)
        self.pool = self.problem.pool
        self.whole = replace(self.problem, train=self.pool, dev=None)
        texts = texts_of(self.pool.context.examples)
        folds = FOLDS if self.has_many else self.plan.folds
        if self.problem.task.answers.brings_options:  # no class head, nor a first-order cue
            folds = self.plan.loop_folds or folds
        self.folds = stratified_folds(self.pool.golds.strata, folds, self.problem.seed, texts)

    def made(self) -> Outcome:
        """Return the outcome."""
        if not self.folds:
            plain, _ = untuned_prompt(self.whole, CalibrationKind.NONE)
            reason = "the labelled texts cannot be split so that each class is both learnt from and checked, so nothing"
            reason += " was tried; give at least two different texts of each class"
            return self._untuned_ships(plain, EvidenceVerdict("untuned", reason), None, [])
        plan = replace(self.plan, searches_words=self._searches_words())
        untrained = Untrained(self.problem, self.pool, self.folds, plan)
        untrained.tried += self.tried
        untuned = untrained.measure()
        if untuned is None:
            cut, _ = untuned_prompt(self.whole, CalibrationKind.NONE)
            reason = "the time limit ended before the untuned prompt was measured, so nothing was tried"
            return self._untuned_ships(cut, EvidenceVerdict("untuned", reason), None, [])
        if self.has_many:
            self.trace += untrained.trace
            self._try_many(untrained.pace)
        else:
            self._try_over(untrained.own)
            starts = untrained.starts()
            self.trace += untrained.trace
            self._try_all(untrained, starts)
        if not self.contenders:
            ended = "nothing was finished within the time limit"
            reason = ended if self.problem.out_of_time() or self.refusal is None else self.refusal
            verdict, found = EvidenceVerdict("untuned", reason), untrained.best
            return self._untuned_ships(untuned, verdict, found.score, untrained.tried, found.decided)
        return self._judged(untuned, untrained)

    def _searches_words(self) -> bool:
        """Return whether other label words are tried: the user says so, or gave none and the preset does."""
        if self.options.label_words is not None:
            return self.options.label_words == "search"
        if not self.problem.task.has_labels:
            return False
        verbalizer = self.problem.task.verbalizer
        are_defaults = verbalizer.words == tuple((default_word(label),) for label in verbalizer.labels)
        return are_defaults and self.plan.searches_words

    def _try_all(self, untrained: Untrained, starts: Sequence[Words]) -> None:
        """Gather contenders, those that cost least first."""
        best = starts[0]
        if best.differs:
            self._try(partial(self._words_alone, untrained, best))
        for start in starts[: self.plan.first_order]:
            if start.has_own_task and start != untrained.own:
                self._try_over(start)
        trainings = Trainings(self.problem, self.pool, self.folds, untrained.pace, self.options.prompts, self.trace)
        if not self.problem.backbone.has_words and self.problem.task.answers.at == "answer":  # words are no classes
            self._try_contrasts(trainings)
        has_linear = any(isinstance(one, FirstOrderCue) for one in self.contenders)
        together = len(self.folds) if trainings.may_join else 1
        plan = self._affordable(best) if self.problem.backbone.has_words and not has_linear else self.plan
        for configuration in (
            () if plan is None else configurations(plan, starts[:together], untrained.filler, has_linear)
        ):
            self._try(partial(trainings.cross_fit, configuration))
        self._join()

    def _affordable(self, start: Words) -> AutoPlan | None:
        """Return the plan whose training reads no more than the preset allows; None, with the reason, without one."""
        each = len(self.pool) * tokens_of(self.pool, len(start.token_ids))
        found = within_tokens(self.plan, each, len(self.folds))
        if found is None:
            self.refusal = (
                f"a training reads {each:,.0f} tokens in each pass over these examples, which takes longer than "
                f"preset={self.options.preset} is for; give preset=good, or fewer examples"
            )
            self._note(Refused(reason=self.refusal))
        return found

    def _try_many(self, pace: float) -> None:
        """Gather contenders that read no label words; `pace` as of `Trainings`."""
        found: list[Lesson] = []

        def heads() -> Contender:
            found.append(lesson(self.problem, self.pool, self.folds))
            return found[0].heads

        self._try(heads)
        if found:
            pool, folds = found[0].pool, found[0].folds
            trainings = Trainings(self.problem, pool, folds, pace, self.options.prompts, self.trace)
            for configuration in many_trainings(self.problem, len(pool)):
                self._try(partial(trainings.cross_fit, configuration))
        self._join()

    def _try_contrasts(self, trainings: Trainings) -> None:
        """Train prefixes contrastively; class heads over the untuned prompt, and over where they start, compete."""
        own = BareWords.of("untuned prompt", self.problem.initial_ids)
        prefix = BarePrefix.of("prefix", filled_ids(self.problem, PREFIX_LENGTH))
        for start in (own, prefix):
            self._try(partial(probed, self.whole, start, self.folds, UNIT_HEADS, FeatureScale.UNIT))
        for configuration in contrasts(self.plan, prefix):
            self._try(partial(trainings.cross_fit, configuration))

    def _try_over(self, start: Words) -> None:
        """Fit a class head and a first-order deep cue over words, which have the task's own label words."""
        if self.plan.first_order and self.plan.heads:
            self._try(partial(probed, self.whole, start, self.folds, self.plan.heads))
        if self.plan.first_order and self.problem.backbone.has_words:
            self._try(partial(self._first_order, start))

    def _try(self, attempt: Callable[[], Contender | None]) -> None:
        """Add a contender, unless the time ends before or the backbone refuses it."""
        if self.problem.out_of_time():
            return
        found: Contender | None = None
        try:
            with self.problem.in_time():
                found = attempt()
        except (MethodError, BackboneError, PromptError) as error:
            self.refusal = str(error)
            self._note(Refused(reason=str(error)))
        if found is not None:
            self._add(found)

    def _add(self, contender: Contender) -> None:
        self.contenders.append(contender)
        row = contender.tried(self.problem.seed)
        self._note(held_out_step("tried", row, self.problem.task.answers.tuning_score))

    def _note(self, event: Event) -> None:
        note(self.problem, self.trace, event)

    def _words_alone(self, untrained: Untrained, start: Words) -> Contender | None:
        begun = time.perf_counter()
        found = untrained.held_out(start)
        if found is None:
            return None
        return WordsAlone(start.name, found, time.perf_counter() - begun, start, self.whole)

    def _first_order(self, start: Start) -> Contender | None:
        """Fit a first-order deep cue with the penalty of least held-out loss.

        Raises:
            MethodError: the gradients do not fit into memory, or the answers at every penalty are not finite.
        """
        begun = time.perf_counter()
        linear = linearised(self.whole, HardPrompt(start.token_ids))
        best: FirstOrderCue | None = None
        if linear is None:  # the time is over
            return None
        for penalty in self.plan.penalties:
            if self.problem.out_of_time():
                break
            with self.problem.in_time():  # what was checked before the time ended competes
                _, logits = linear.held_out(self.whole, self.folds, penalty)
                parts = logits.split([len(fold.held_out) for fold in self.folds])
                found = gather(parts, self.pool.golds, self.folds)
                is_least = best is None or found.score.loss < best.held_out.score.loss
                if is_least and math.isfinite(found.score.loss):
                    made = linear.candidate(linear.fitted(range(len(self.pool)), self.whole, penalty))
                    name = f"first-order {penalty:g}, {start.name}"
                    best = FirstOrderCue(name, found, 0.0, start, self.whole, penalty, made)
        if best is None:
            if self.problem.out_of_time():
                return None
            raise MethodError(f"first-order, {start.name}: its answers are not finite")
        best.seconds = time.perf_counter() - begun
        return best

    def _join(self) -> None:
        """Let contenders that are as good as the best, as far as so few examples tell, answer together.

        A mean is steadier than a choice among them by the luck of the folds.
        """
        ranked = [one for one in self._ranked() if one.joins]
        parts: list[Contender] = []
        for one in ranked:
            fits = sum(part.members for part in (*parts, one)) <= self.options.prompts
            if fits and self._is_near(one, ranked[0]):
                parts.append(one)
        if len(parts) > 1:
            self._add(Together.of(parts, self.problem.seed))

    def _is_near(self, one: Contender, best: Contender) -> bool:
        """Return whether a contender may be as good as the one of least held-out loss.

        What was held out is answered by one prompt, or by one of each part. Where more of them ship, their mean is
        better than that says, so it has to be clearer that they are worse: two standard errors in place of one.
        """
        seed, errors = self.problem.seed, _SEVERAL if one.members > 1 else _ONE
        return one.answers(seed).is_near(best.answers(seed), errors)

    def _ranked(self) -> list[Contender]:
        """Return the contenders by held-out loss, the least first; before them those that answer together, if near."""
        ranked = sorted(self.contenders, key=lambda one: one.answers(self.problem.seed).score.loss)
        together = [one for one in ranked if isinstance(one, Together) and self._is_near(one, ranked[0])]
        return together + [one for one in ranked if one not in together]

    def _judged(self, untuned: Candidate, untrained: Untrained) -> Outcome:
        """Compare the contenders, in their order, with the untuned prompt; the first that is better ships."""
        seed, ranked = self.problem.seed, self._ranked()
        tried = untrained.tried + [one.tried(seed) for one in ranked]
        # A temperature alone can be a gain, which is none of a prompt's.
        base = min((untrained.best, untrained.best.recalibrated(seed)), key=lambda found: found.score.loss)
        compared = [(one, one.answers(seed).compared_with(base, seed)) for one in ranked]
        better = [pair for pair in compared if pair[1].is_better]
        for chosen, evidence in better:
            found = chosen.shipped(self.problem.in_time)
            words: Candidate | None = None
            with self.problem.in_time():
                words = chosen.words()
            if found is not None:
                held_out = Score(evidence.loss, evidence.accuracy, evidence.measure)
                verdict, answers = self._verdict(evidence, untrained, tried), chosen.answers(seed).decided
                return self._outcome(untuned, found, verdict, held_out, words, tried, answers)
        _, evidence = (better or compared)[0]
        verdict = self._verdict(evidence, untrained, tried)
        if better:
            reason = "the time limit ended before what was better was made on all examples, so the untuned prompt ships"
            verdict = EvidenceVerdict("untuned", reason, evidence)
        before = Score(evidence.untuned_loss, evidence.untuned_accuracy, evidence.measure)
        return self._untuned_ships(untuned, verdict, before, tried, untrained.best.decided)

    def _verdict(self, evidence: Evidence, untrained: Untrained, tried: Sequence[Tried]) -> EvidenceVerdict:
        complete = [row.score for row in tried if row.rows == len(self.pool)]
        best = max([evidence.accuracy, *complete])
        return judge(evidence, untrained.accuracies, best, self.options.margin, len(self.contenders))

    def _untuned_ships(
        self,
        untuned: Candidate,
        verdict: EvidenceVerdict,
        held_out: Score | None,
        tried: Sequence[Tried],
        answers: AnswerSpace | None = None,
    ) -> Outcome:
        return self._outcome(untuned, untuned, verdict, held_out, None, tried, answers)

    def _outcome(
        self,
        untuned: Candidate,
        best: Candidate,
        verdict: EvidenceVerdict,
        held_out: Score | None,
        words: Candidate | None,
        tried: Sequence[Tried],
        answers: AnswerSpace | None,
    ) -> Outcome:
        self._note(Decided("verdict", verdict=verdict))
        ranked = tuple(sorted(tried, key=lambda row: (-row.rows, row.loss)))
        has_own = answers is not None and answers.fits_decisions
        return Outcome(
            untuned, best, self.trace, words, held_out, verdict, ranked, answers=answers if has_own else None
        )
