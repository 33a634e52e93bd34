"""Whether texts are written plainly or by the tokenizer's chat template, where the user fixed neither.

Both are tried untuned and calibrated on folds of some examples. The chat template is taken where it is clearly better:
it is longer, so everything that follows takes longer with it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Literal

from cuecraft.artifact import HardPrompt
from cuecraft.artifact.predictor import Candidate
from cuecraft.core.errors import CuecraftError
from cuecraft.core.events import Document, Event, HeldOutStep, Refused
from cuecraft.methods.auto.plans import Plan
from cuecraft.methods.auto.starts import OtherWords
from cuecraft.methods.evidence import Evidence, Tried
from cuecraft.methods.held_out import Fold, HeldOut, few_examples, untuned_answers
from cuecraft.methods.prepare import default_template, written_template
from cuecraft.methods.problem import CalibrationKind, Labelled, OtherTask, Outcome, Problem, label_context, note
from cuecraft.task import Example, Task
from cuecraft.task.chat import has_chat_template
from cuecraft.task.rendering import HeadKind

_CLEAR = 0.05  # p-value below which a form is clearly better
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


def chosen_form(problem: Problem, plan: Plan, asked: Literal["try", "keep"] | None) -> Form:
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
            return _compared(problem, some, folds)
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


def is_clear(evidence: Evidence) -> bool:
    """Return whether one form is clearly better than the other."""
    return evidence.is_better and evidence.p_loss < _CLEAR


def _is_tried(problem: Problem, asked: Literal["try", "keep"] | None) -> bool:
    backbone, task = problem.backbone, problem.task
    if asked == "keep" or task.template.chat is not None or task.shots or backbone.head_kind is not HeadKind.CAUSAL:
        return False
    is_general = task.template == default_template(backbone.head_kind, task.template.field_names)
    return has_chat_template(backbone.tokenizer) and (is_general or asked == "try")


def _compared(problem: Problem, some: Labelled, folds: list[Fold]) -> Form:
    """Measure both over some examples; return the problem in the better form.

    Raises:
        CuecraftError: the chat template cannot write these texts, or the label words do not fit it.
    """
    names = problem.task.template.field_names
    template = written_template(problem.backbone, names, chat=True)
    own = replace(problem, task=replace(problem.task, template=template))
    plain, row = _measured(problem, some, folds, PLAIN)
    begun = time.perf_counter()
    chat, chat_row = _measured(own, _read(own, some.context.examples, some), folds, CHAT)
    evidence = chat.compared_with(plain, problem.seed)
    # All texts are to be read again: as long again for each of them.
    needed = (time.perf_counter() - begun) / len(some) * len(problem.pool)
    is_chat = is_clear(evidence) and not problem.out_of_time(2 * needed)
    trace: list[Document] = []
    for one in (row, chat_row):
        note(problem, trace, HeldOutStep("form", tried=one.name, dev_loss=one.loss, dev_accuracy=one.accuracy))
    chosen = CHAT if is_chat else PLAIN
    note(problem, trace, FormChosen("form", chosen=chosen, rows=len(some), p_loss=evidence.p_loss))
    found = problem
    if is_chat:
        parts = [part and _read(own, part.context.examples, part) for part in (problem.train, problem.dev)]
        assert parts[0] is not None
        kept = problem.checkpoints and problem.checkpoints.within("chat")
        found = replace(own, train=parts[0], dev=parts[1], checkpoints=kept)
    return Form(found, is_chat, (row, chat_row), tuple(trace))


def _read(problem: Problem, examples: tuple[Example, ...], like: Labelled) -> Labelled:
    """Read examples as the problem's template writes them; labels and weights are those of `like`."""
    return replace(like, context=label_context(problem.backbone, problem.task, list(examples)).context)


def _measured(problem: Problem, some: Labelled, folds: list[Fold], name: str) -> tuple[HeldOut, Tried]:
    """Return what the untuned prompt answers to the held-out parts, calibrated, and its line of the leaderboard."""
    begun = time.perf_counter()
    prompt = HardPrompt(some.context.renderer.prompt_ids)
    found = untuned_answers(problem, some, [prompt], folds)(0, CalibrationKind.FITTED)
    own, seconds = found.score, time.perf_counter() - begun
    return found, Tried(name, own.loss, own.accuracy, found.sd, len(found.sizes), len(found.labels), seconds)
