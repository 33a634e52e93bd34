"""From records to a problem: default template, dev set, contexts, deadline; no more is read than time allows."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from cuecraft.artifact import HardPrompt
from cuecraft.artifact.manifest import DataEntry
from cuecraft.backbone import AnyBackbone
from cuecraft.core.checkpoints import Checkpoints, Keeping
from cuecraft.core.deadline import Deadline, WhileTimeLasts
from cuecraft.core.environment import versions
from cuecraft.core.errors import (
    CuecraftWarning,
    DataError,
    LabelWordError,
    MethodError,
    StoppedError,
    TemplateError,
    named,
)
from cuecraft.core.events import Event
from cuecraft.core.seeding import numpy_generator
from cuecraft.core.storage import digest
from cuecraft.data import Record, fingerprint, holdout
from cuecraft.data.texts import as_label_words
from cuecraft.methods.problem import Labelled, Method, Problem, ReadingLimit, label_context
from cuecraft.methods.search.halving import halving_rounds
from cuecraft.methods.settling import settled
from cuecraft.methods.train.loop import TrainingOptions
from cuecraft.task import AnswerSpace, Task, Template, Verbalizer
from cuecraft.task.answers import ANSWERS, AnswerOptions, answers_document
from cuecraft.task.answers.cloze import Cloze
from cuecraft.task.answers.labels import LabelOptions
from cuecraft.task.answers.words import WordChoice, Words, distinct_words
from cuecraft.task.chat import ChatChoice, chat_of
from cuecraft.task.fitting import MOST_BEGINNINGS, beginnings_of
from cuecraft.task.rendering import HeadKind
from cuecraft.task.right_answers import check_answers
from cuecraft.task.template import FIELD_NAME

_TOGETHER = 64  # examples that are read together, at most
#: Of a method that wants everything, where there is a time limit: a pass that answers takes as long again.
WITHIN_TIME = ReadingLimit(sys.maxsize, 1 / 3)
_FEW = 8  # examples whose answers say how long an answer takes
_SURPRISES = 1.5  # times what few answers make expect: what was not answered in time is lost
#: Starting words that do well on texts of many kinds; tuning takes it from there.
DEFAULT_CUE = "\nIn one word, this is"


def read_within(
    backbone: AnyBackbone,
    task: Task,
    parts: Sequence[Sequence[Record]],
    seed: int,
    limit: ReadingLimit,
    time_limit: float | None,
) -> tuple[list[Labelled | None], list[list[Record]]]:
    """Read as many examples of each part as a method wants and has time for, classes in turn.

    Args:
        backbone: the frozen model.
        task: the task.
        parts: training and dev examples; each gives the same share of its own.
        seed: of the choice.
        limit: how much is wanted.
        time_limit: of the whole run, in seconds from now; None for none.

    Returns:
        The contexts, None for an empty part; and the examples that were read, in their own order.
    """
    total = sum(map(len, parts))
    wanted = min(1.0, max(limit.examples, limit.of_each * task.answers.size) / max(1, total))
    begun = time.monotonic()
    contexts: list[Labelled | None] = []
    kept: list[list[Record]] = []
    for part in parts:
        strata = task.answers.strata([task.answers.gold(record) for record in part])
        order = [n for rows in halving_rounds(strata, numpy_generator(seed, "reading")) for n in rows]
        order = order[: max(min(len(part), task.answers.fewest), round(wanted * len(part)))]
        until = None if time_limit is None else begun + time_limit * limit.share * (len(part) / max(1, total))
        order, context = _read(backbone, task, part, order, until)
        begun = time.monotonic()
        contexts.append(context)
        kept.append([part[n] for n in order])
    read = sum(map(len, kept))
    if read < total:
        warnings.warn(
            f"{read} of {total} labelled examples are used; a longer {named('time_limit')}{_or_preset(limit)} uses "
            "more, and LoRA or full fine-tuning may be better with so many",
            CuecraftWarning,
            stacklevel=2,
        )
    return contexts, kept


def _or_preset(limit: ReadingLimit) -> str:
    return "" if limit is WITHIN_TIME else " or a greater preset"


def read_unlabelled_within(backbone: AnyBackbone, task: Task, records: Sequence[Record], until: float) -> Labelled:
    """Read texts without labels in their order until a time (monotonic clock, seconds), a few at least."""
    _, found = _read(backbone, task, records, range(len(records)), until)
    assert found is not None
    return found


@torch.no_grad()
def _read(
    backbone: AnyBackbone, task: Task, records: Sequence[Record], order: Sequence[int], until: float | None
) -> tuple[list[int], Labelled | None]:
    """Read records in an order until a time; return which were read, in their own order, and their context."""
    found: Labelled | None = None
    taken: list[int] = []
    enough = task.answers.fewest  # strata take turns

    def is_over() -> bool:
        return until is not None and len(taken) >= enough and time.monotonic() >= until

    while len(taken) < len(order) and not is_over():
        size = _TOGETHER if until is None else min(_TOGETHER, max(enough, len(taken)))
        rows = list(order[len(taken) : len(taken) + size])
        with WhileTimeLasts(is_over):
            context = label_context(backbone, task, task.examples([records[n] for n in rows]))
            if context.context.states[0] is None:
                # Nothing is kept of such texts, so that reading costs nothing and every pass over them costs all.
                backbone.features(context.context, HardPrompt(context.context.renderer.prompt_ids))
            found = context if found is None else found.joined(context)
            taken += rows
    if found is None:
        return [], None
    places = sorted(range(len(taken)), key=lambda place: taken[place])
    return [taken[place] for place in places], found.select(places)


def default_template(head: HeadKind, fields: Sequence[str]) -> Template:
    """Return the template used when none is given: the text, then the words that tuning starts from.

    Several fields are written one a line, each after its name.
    """
    text = _fields_text(fields)
    if head is HeadKind.SEQUENCE:
        return Template("{prompt}" + text)
    ending = "." if head is HeadKind.MASKED else ""
    return Template(f"{text}{{prompt:{DEFAULT_CUE}}}{{mask}}{ending}")


def _fields_text(fields: Sequence[str]) -> str:
    """Return the fields as a template writes them."""
    for name in fields:
        if name in ("prompt", "mask") or not FIELD_NAME.fullmatch(name):
            raise DataError(f"column {name!r} cannot be a field of a template; rename it, or choose text columns")
    if len(fields) == 1:
        return f"{{{fields[0]}}}"
    return "\n".join(f"{name[:1].upper()}{name[1:]}: {{{name}}}" for name in fields)


def written_template(
    backbone: AnyBackbone, fields: Sequence[str], template: str | None = None, chat: ChatChoice | None = None
) -> Template:
    """Return the template that a user asked for; a general one where nothing was given.

    Args:
        backbone: the frozen model.
        fields: of the texts.
        template: as written by the user.
        chat: whether its tokenizer's chat template writes it, or turns by name.

    Raises:
        TemplateError: template or turns cannot be used, or the backbone has no chat template.
    """
    text = "" if template or not fields else _fields_text(fields)
    turns = chat_of(chat, template or None, text, DEFAULT_CUE.lstrip())
    if turns is None:
        return Template(template) if template else default_template(backbone.head_kind, fields)
    if backbone.head_kind is not HeadKind.CAUSAL:
        raise TemplateError(
            f"{backbone.name} is no causal language model, and only those answer in a chat; leave "
            f"{named('task.chat')} out"
        )
    return turns.written(backbone.tokenizer, backbone.name)


def given_words(label_words: Any, names: Sequence[str]) -> WordChoice | None:
    """Return label words by class, checked before a model is loaded; None for none.

    Args:
        label_words: as `as_label_words` takes them.
        names: the classes in their order.

    Raises:
        LabelWordError: they cannot be read, or do not fit the classes.
    """
    words = as_label_words(label_words, names)
    if words is not None:
        Verbalizer.from_labels(names, words)
    return words


def make_task(
    backbone: AnyBackbone,
    records: Sequence[Record],
    template: str | None = None,
    label_words: Words = None,
    max_tokens: int | None = None,
    answers: AnswerOptions | AnswerSpace | None = None,
    prompt_length: int = 0,
    chat: ChatChoice | None = None,
) -> Task:
    """Return the task of labelled records.

    Args:
        backbone: the frozen model.
        records: the training examples.
        template: as written by the user; None for a general one.
        label_words: class -> word or words, or what gives these for names; None for the names.
        max_tokens: tokens of one input at most.
        answers: what is asked of the answers, or what counts as one; None for the records' labels, sorted.
        prompt_length: tokens to keep free for the prompt, if more than usual.
        chat: whether the tokenizer's chat template writes the texts, or turns by name.

    Raises:
        DataError: no records, a record without a label, only one class, or no answers of this kind.
        TemplateError, LabelWordError: the template or the label words do not fit.
    """
    if not records:
        raise DataError("no examples to learn from; give at least one for each of two classes")
    unlabelled = [row for row, record in enumerate(records, start=1) if record.label is None]
    if unlabelled:
        raise DataError(f"row {unlabelled[0]} has no label; tuning needs a label for every row")
    return _task(backbone, records, answers or LabelOptions(), template, label_words, max_tokens, prompt_length, chat)


def label_free_task(
    backbone: AnyBackbone,
    records: Sequence[Record],
    labels: Sequence[str],
    template: str | None = None,
    label_words: WordChoice | None = None,
    max_tokens: int | None = None,
    prompt_length: int = 0,
    chat: ChatChoice | None = None,
) -> Task:
    """Return the task of records whose classes are named apart; arguments and errors as for `make_task`."""
    asked = LabelOptions(classes=tuple(labels))
    return _task(backbone, records, asked, template, label_words, max_tokens, prompt_length, chat)


def _task(
    backbone: AnyBackbone,
    records: Sequence[Record],
    answers: AnswerOptions | AnswerSpace,
    template: str | None,
    label_words: Words,
    max_tokens: int | None,
    prompt_length: int,
    chat: ChatChoice | None,
) -> Task:
    written = written_template(backbone, tuple(records[0].fields), template, chat)
    given = label_words if label_words is not None or backbone.has_words else distinct_words
    space = answers if isinstance(answers, AnswerSpace) else ANSWERS[answers.kind].of(records, answers, given)
    words = [word for own in space.options.values() for word in own]
    if label_words is None and backbone.has_words and words and all(map(_is_number, words)):
        warnings.warn(
            f"the answers are named {', '.join(space.options)}, and a language model does not know what these mean; "
            f"give it words ({named('task.label_words')})",
            CuecraftWarning,
            stacklevel=2,
        )
    return with_norm(backbone, Task(written, space, max_tokens, max(Task.reserve, prompt_length)))


def with_norm(backbone: AnyBackbone, task: Task) -> Task:
    """Return the task with what further tokens of its label words are normalised over.

    Exactly, over the vocabulary after each beginning of a word, where there are up to `MOST_BEGINNINGS` of these; more
    take minutes for each pass over a few hundred texts. Over siblings too where a word of one class begins a word of
    another. A task whose words cannot be scored at all stays as it is, and is refused where they are to be.
    """
    if backbone.head_kind is not HeadKind.CAUSAL:
        return task  # a mask holds one token, and a class head reads no words
    with suppress(LabelWordError, TemplateError):
        if len(beginnings_of(backbone.renderer(task).label_ids)) <= MOST_BEGINNINGS:
            return task
    with suppress(LabelWordError, TemplateError):
        own = replace(task, norm="siblings")
        return own if backbone.renderer(own).label_ids else task
    return task


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


def label_free_problem(
    backbone: AnyBackbone,
    task: Task,
    records: Sequence[Record],
    *,
    seed: int = 0,
    deadline: Deadline | None = None,
    then: int = 0,
    report: Callable[[Event], None] = lambda event: None,
) -> Problem:
    """Read texts without labels and return the problem that a label-free search solves; their labels are dropped.

    Arguments as for `make_problem`.
    """
    deadline = deadline or Deadline()
    texts = [Record(record.fields) for record in records]
    begun = time.monotonic()
    if deadline.limit is None:
        read = label_context(backbone, task, task.examples(texts))
    else:
        until = begun + deadline.limit * WITHIN_TIME.share
        read = read_unlabelled_within(backbone, task, texts, until)
    texts = texts[: len(read)]
    problem = Problem(
        backbone,
        task,
        read,
        None,
        seed,
        {"unlabelled": data_entry(texts)},
        out_of_time=deadline,
        is_over=deadline,
        report=report,
    )
    _keep_back(problem, deadline, begun, then)
    return problem


def run_key(problem: Problem, method: Method | TrainingOptions) -> str:
    """Return the hash of all that a run's result depends on."""
    task = problem.task
    chat = {} if task.template.chat is None else {"chat": vars(task.template.chat)}
    norm = {} if task.norm is None else {"norm": task.norm}
    return digest(
        chat
        | norm
        | {
            "method": method.name,
            "options": method.model_dump(mode="json"),
            "seed": problem.seed,
            "backbone": [problem.backbone.fingerprint(), problem.backbone.dtype_name, problem.backbone.head_kind],
            "task": [task.template.source, answers_document(task.answers), task.max_tokens, task.reserve],
            "data": {name: entry.model_dump() for name, entry in problem.data.items()},
            "device": problem.backbone.device.type,
            "versions": versions(),
        }
    )


def with_checkpoints(problem: Problem, keeping: Keeping, key: str) -> Problem:
    """Return the problem with a place for the states of its trainings, and a clock that heeds a request to stop.

    Args:
        problem: the problem.
        keeping: where and how often they are kept, and whether to stop.
        key: hash of all that the run depends on.
    """
    return replace(heeding(problem, keeping.stop), checkpoints=Checkpoints(keeping, key))


def heeding(problem: Problem, stop: Callable[[], bool]) -> Problem:
    """Return the problem with a clock that raises StoppedError where it is asked for the time and `stop` says so."""

    def out_of_time(reserve: float = 0.0) -> bool:
        if stop():
            raise StoppedError
        return problem.out_of_time(reserve)

    return replace(problem, out_of_time=out_of_time)


def data_entry(records: Sequence[Record]) -> DataEntry:
    """Return a split's row count and hash."""
    return DataEntry(rows=len(records), sha256=fingerprint(records))


def make_problem(
    backbone: AnyBackbone,
    task: Task,
    train: Sequence[Record],
    dev: Sequence[Record] | None = None,
    *,
    seed: int = 0,
    validation_fraction: float = 0.25,
    deadline: Deadline | None = None,
    then: int = 0,
    report: Callable[[Event], None] = lambda event: None,
    reading: ReadingLimit | None = None,
) -> Problem:
    """Read the examples and return the problem that a method solves.

    Args:
        backbone: the frozen model.
        task: the task.
        train: examples to learn from.
        dev: examples to choose by; None to hold out `validation_fraction` of `train`, stratified. With one example
            of a class there is nothing to hold out, and the training loss decides.
        seed: of the hold-out and of the method.
        validation_fraction: of `train`, used without `dev`.
        deadline: when a method stops with its best so far; None for no time limit. With one, a third of it is for
            reading at most.
        then: further texts that are answered afterwards within the same limit, such as test rows.
        report: progress callback, called with each step.
        reading: how much the method wants to read; None for everything. What goes beyond is left out, with a warning.
    """
    deadline = deadline or Deadline()
    if reading is None and deadline.limit is not None:
        reading = WITHIN_TIME
    task = _knowing(backbone, task, (*train, *(dev or ())))
    begun = time.monotonic()
    if dev is None:
        train, dev = holdout(train, validation_fraction, seed, task.groups(train))
    if reading is None:
        contexts = [label_context(backbone, task, task.examples(part)) if part else None for part in (train, dev)]
    else:
        contexts, (train, dev) = read_within(backbone, task, (train, dev), seed, reading, deadline.limit)
    assert contexts[0] is not None
    problem = Problem(
        backbone,
        task,
        contexts[0],
        contexts[1],
        seed,
        {name: data_entry(rows) for name, rows in (("train", train), ("dev", dev)) if rows},
        out_of_time=deadline,
        is_over=deadline,
        report=report,
    )
    problem = settled(problem)
    _keep_back(problem, deadline, begun, then)
    return problem


def _knowing(backbone: AnyBackbone, task: Task, records: Sequence[Record]) -> Task:
    """Return the task whose answer space knows the examples of a run; raises where a model cannot give their answers.

    Raises:
        DataError: a row has no right answer that this model can give.
        MethodError: the answers are words, and the model has only features.
    """
    answers = task.answers.seeing(records)
    if isinstance(answers, Cloze):
        if backbone.head_kind is HeadKind.SEQUENCE:
            raise MethodError(
                f"cloze answers are words, and {backbone.name} has only features; use a causal or masked language model"
            )
        check_answers(backbone.renderer(replace(task, answers=Cloze(), shots=(), nearest=None)), answers, records)
    return task if answers is task.answers else replace(task, answers=answers)


@torch.no_grad()
def _keep_back(problem: Problem, deadline: Deadline, begun: float, then: int) -> None:
    """Keep time back for answers to the problem's own examples and to others, by how long a few of them take now.

    Args:
        problem: its examples were just read.
        deadline: of the run.
        begun: when their reading began, on the monotonic clock (seconds).
        then: the others: they are read, and three prompts answer (tuned, untuned, calibrated).
    """
    if deadline.limit is None:
        return
    own = len(problem.train) + len(problem.dev or ())
    reading = (time.monotonic() - begun) / own
    few = problem.train.select(list(range(min(_FEW, len(problem.train)))))
    begun = time.monotonic()
    prompt = HardPrompt(problem.initial_ids)
    with problem.in_time():
        if problem.backbone.has_words:
            problem.backbone.class_logits(few.context, prompt)
        else:
            problem.backbone.features(few.context, prompt)
    answering = (time.monotonic() - begun) / len(few)
    deadline.keep_back(_SURPRISES * (own * answering + then * (reading + 3 * answering)))
