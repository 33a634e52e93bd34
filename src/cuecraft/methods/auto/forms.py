"""Whether texts are written plainly or by the tokenizer's chat template, where the user fixed neither.

Both are tried on folds of some examples in two ways: the untuned prompt, calibrated, and a class head on the features
at the answer slot. The first says how good the words are as they stand, the second what a tuned prompt can make of
them: on TREC the calibrated prompts do not differ, the heads do, and so do the trained cues. The chat template is taken
where it is clearly better in one of the two and not clearly worse in the other: each reading of it takes longer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from cuecraft.artifact import HardPrompt
from cuecraft.core.errors import CuecraftError
from cuecraft.core.events import Document, Event, Refused
from cuecraft.methods.auto.contenders import probed
from cuecraft.methods.auto.plans import AutoPlan
from cuecraft.methods.auto.starts import GivenWords, OtherWords, Words
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.evidence import Evidence, Tried
from cuecraft.methods.held_out import Fold, HeldOut, few_examples, untuned_answers
from cuecraft.methods.prepare import default_template, written_template
from cuecraft.methods.problem import (
    CalibrationKind,
    Labelled,
    OtherTask,
    Outcome,
    Problem,
    held_out_step,
    label_context,
    note,
)
from cuecraft.task import Example, Task
from cuecraft.task.chat import has_chat_template
from cuecraft.task.rendering import HeadKind

_CLEAR = 0.05  # p-value below which a form is clearly better, over the comparisons made
PLAIN, CHAT = "plain template", "chat template"


@dataclass(eq=False)
class OtherTemplate(OtherTask):
    """Reads texts as another template writes them; the template is part of the manifest."""

    name: str = "template"


@dataclass(frozen=True, eq=False, kw_only=True)
class FormChosen(Event):
    """How texts are written, by how many rows; `p_loss` is the p-value of the difference in log-loss."""

    chosen: str
    rows: int
    p_loss: float


@dataclass(frozen=True)
class Form:
    """How the texts are written from here on.

    Args:
        problem: with texts written so.
        is_chat: whether by the chat template, in place of the template that the problem came with.
        tried: what was measured.
        trace: one event for each step.
    """

    problem: Problem
    is_chat: bool = False
    tried: tuple[Tried, ...] = ()
    trace: tuple[Document, ...] = field(default=())


def chosen_form(problem: Problem, plan: AutoPlan, asked: Literal["try", "keep"] | None) -> Form:
    """Return the problem as it is, or with texts that the chat template writes where that is clearly better.

    Args:
        problem: what is solved.
        plan: how many examples both are tried on, and in how many folds.
        asked: whether to try; None to try where the template is the general one.
    """
    plain = Form(problem)
    if not _is_tried(problem, asked) or problem.out_of_time():
        return plain
    some, folds = few_examples(problem, problem.pool, plan.form, plan.folds)
    if not folds:
        return plain
    with problem.in_time():
        try:
            return _compared(problem, plan, some, folds)
        except CuecraftError as error:  # such as label words that run into the end of a control token
            refused = Refused(reason=f"{CHAT}: {error}")
            problem.report(refused)
            return replace(plain, trace=(refused.document(),))
    return plain


def read_in_chat(outcome: Outcome, problem: Problem) -> Outcome:
    """Return an outcome over texts that the chat template writes, as one of the problem that reads them plainly."""
    readers: dict[Task, OtherTemplate] = {}
    made: dict[int, Candidate] = {}

    def read(candidate: Candidate) -> Candidate:
        reader = candidate.reader
        if reader is not None and not isinstance(reader, OtherWords):
            return candidate  # it reads the texts in its own way
        task = problem.task if reader is None else reader.task
        own = readers.setdefault(task, OtherTemplate(problem.backbone, task))
        return made.setdefault(id(candidate), replace(candidate, reader=own))

    words = outcome.words and read(outcome.words)
    return replace(outcome, start=read(outcome.start), best=read(outcome.best), words=words)


def is_clear(evidence: Evidence, comparisons: int = 1) -> bool:
    """Return whether one form is clearly better than the other, as one of several comparisons (Bonferroni)."""
    return evidence.is_better and comparisons * evidence.p_loss < _CLEAR


@dataclass(frozen=True)
class _Measured:
    """What one form answers to held-out examples.

    Args:
        answers: of the untuned prompt, calibrated; and of class heads on its features, where they could be fitted.
        tried: their lines of the leaderboard.
    """

    answers: Sequence[HeldOut]
    tried: Sequence[Tried]

    def compared_with(self, plain: _Measured, seed: int) -> list[Evidence]:
        """Compare each kind of answers with that of another form."""
        return [own.compared_with(other, seed) for own, other in zip(self.answers, plain.answers, strict=False)]


def prefers_chat(found: Sequence[Evidence]) -> bool:
    """Return whether the chat template is clearly better in one comparison, and clearly worse in none."""
    worse = [evidence.loss > evidence.untuned_loss and evidence.p_loss < _CLEAR for evidence in found]
    return any(is_clear(evidence, len(found)) for evidence in found) and not any(worse)


def _is_tried(problem: Problem, asked: Literal["try", "keep"] | None) -> bool:
    backbone, task = problem.backbone, problem.task
    if asked == "keep" or task.template.chat is not None or task.shots or backbone.head_kind is not HeadKind.CAUSAL:
        return False
    is_general = task.template == default_template(backbone.head_kind, task.template.field_names)
    return has_chat_template(backbone.tokenizer) and (is_general or asked == "try")


def _compared(problem: Problem, plan: AutoPlan, some: Labelled, folds: list[Fold]) -> Form:
    """Measure both over some examples; return the problem in the better form.

    Raises:
        CuecraftError: the chat template cannot write these texts, or the label words do not fit it.
    """
    names = problem.task.template.field_names
    template = written_template(problem.backbone, names, chat=True)
    own = replace(problem, task=replace(problem.task, template=template))
    plain = _measured(problem, plan, some, folds, PLAIN)
    begun = time.perf_counter()
    chat = _measured(own, plan, _read(own, some.context.examples, some), folds, CHAT)
    found = chat.compared_with(plain, problem.seed)
    # All texts are to be read again: as long again for each of them.
    needed = (time.perf_counter() - begun) / len(some) * len(problem.pool)
    is_chat = prefers_chat(found) and not problem.out_of_time(2 * needed)
    tried = (*plain.tried, *chat.tried)
    trace: list[Document] = []
    for one in tried:
        note(problem, trace, held_out_step("form", one, problem.task.answers.tuning_score))
    chosen, p_loss = CHAT if is_chat else PLAIN, min(evidence.p_loss for evidence in found)
    note(problem, trace, FormChosen("form", chosen=chosen, rows=len(some), p_loss=p_loss))
    if not is_chat:
        return Form(problem, tried=tried, trace=tuple(trace))
    parts = [part and _read(own, part.context.examples, part) for part in (problem.train, problem.dev)]
    assert parts[0] is not None
    kept = problem.checkpoints and problem.checkpoints.within("chat")
    return Form(replace(own, train=parts[0], dev=parts[1], checkpoints=kept), True, tried, tuple(trace))


def _read(problem: Problem, examples: tuple[Example, ...], like: Labelled) -> Labelled:
    """Read examples as the problem's template writes them; labels and weights are those of `like`."""
    return replace(like, context=label_context(problem.backbone, problem.task, list(examples)).context)


def _measured(problem: Problem, plan: AutoPlan, some: Labelled, folds: list[Fold], name: str) -> _Measured:
    """Return what the untuned prompt answers to the held-out parts, calibrated and by a class head."""
    begun = time.perf_counter()
    start = Words(name, GivenWords(), some.context.renderer.prompt_ids, differs=False)
    answers = [untuned_answers(problem, some, [HardPrompt(start.token_ids)], folds)(0, CalibrationKind.FITTED)]
    tried = [answers[0].tried(name, time.perf_counter() - begun)]
    try:
        head = probed(replace(problem, train=some, dev=None), start, folds, plan.heads)
    except CuecraftError:  # such as features that are all zero
        return _Measured(answers, tried)
    return _Measured([*answers, head.held_out], [*tried, head.held_out.tried(head.name, head.seconds)])
