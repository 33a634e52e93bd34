"""From records to a problem: default template, dev set, contexts, deadline."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

from cuecraft.backbone import AnyBackbone, HeadKind
from cuecraft.checkpoints import Checkpoints, Keeping
from cuecraft.data import Record, fingerprint, holdout
from cuecraft.errors import CuecraftWarning, DataError, StoppedError
from cuecraft.machine import versions
from cuecraft.method import Clock, Event, Method, Problem, ReadingLimit, label_context
from cuecraft.prompts.manifest import DataEntry
from cuecraft.storage import digest
from cuecraft.task import Task, Template, Verbalizer
from cuecraft.task.template import FIELD_NAME
from cuecraft.task.verbalizer import WordChoice, distinct_words
from cuecraft.tune.loop import TrainingOptions
from cuecraft.tune.reading import read_within

#: Starting words that do well on texts of many kinds; tuning takes it from there.
DEFAULT_CUE = "\nIn one word, this is"


def default_template(head: HeadKind, fields: Sequence[str]) -> Template:
    """Return the template used when none is given: the text, then the words that tuning starts from.

    Several fields are written one a line, each after its name.
    """
    for name in fields:
        if name in ("prompt", "mask") or not FIELD_NAME.fullmatch(name):
            raise DataError(f"column {name!r} cannot be a field of a template; rename it, or choose text columns")
    if len(fields) == 1:
        text = f"{{{fields[0]}}}"
    else:
        text = "\n".join(f"{name[:1].upper()}{name[1:]}: {{{name}}}" for name in fields)
    if head is HeadKind.SEQUENCE:
        return Template("{prompt}" + text)
    ending = "." if head is HeadKind.MASKED else ""
    return Template(f"{text}{{prompt:{DEFAULT_CUE}}}{{mask}}{ending}")


def make_task(
    backbone: AnyBackbone,
    records: Sequence[Record],
    template: str | None = None,
    label_words: WordChoice | None = None,
    max_tokens: int | None = None,
    labels: Sequence[str] | None = None,
    prompt_length: int = 0,
) -> Task:
    """Return the task of labelled records.

    Args:
        backbone: the frozen model.
        records: the training examples.
        template: as written by the user; None for a general one.
        label_words: class -> word or words; None for the classes' names.
        max_tokens: tokens of one input at most.
        labels: the classes in their order; None for the records' labels, sorted.
        prompt_length: tokens to keep free for the prompt, if more than usual.

    Raises:
        DataError: no records, a record without a label, or only one class.
        TemplateError, LabelWordError: the template or the label words do not fit.
    """
    if not records:
        raise DataError("no examples to learn from; give at least one for each of two classes")
    unlabelled = [row for row, record in enumerate(records, start=1) if record.label is None]
    if unlabelled:
        raise DataError(f"row {unlabelled[0]} has no label; tuning needs a label for every row")
    labels = labels or sorted({record.label for record in records if record.label is not None})
    return label_free_task(backbone, records, labels, template, label_words, max_tokens, prompt_length)


def label_free_task(
    backbone: AnyBackbone,
    records: Sequence[Record],
    labels: Sequence[str],
    template: str | None = None,
    label_words: WordChoice | None = None,
    max_tokens: int | None = None,
    prompt_length: int = 0,
) -> Task:
    """Return the task of records whose classes are named apart; arguments and errors as for `make_task`."""
    written = Template(template) if template else default_template(backbone.head_kind, tuple(records[0].fields))
    has_words = backbone.head_kind is not HeadKind.SEQUENCE
    given = label_words if label_words is not None or has_words else distinct_words(labels)
    verbalizer = Verbalizer.from_labels(labels, given)
    if label_words is None and has_words and all(map(_is_number, labels)):
        warnings.warn(
            f"the classes are named {', '.join(labels)}, and a language model does not know what these mean; "
            "give it words (--label-words, label_words=)",
            CuecraftWarning,
            stacklevel=2,
        )
    return Task(written, verbalizer, max_tokens, max(Task.reserve, prompt_length))


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
    time_limit: float | None = None,
    report: Callable[[Event], None] = lambda event: None,
) -> Problem:
    """Read texts without labels and return the problem that a label-free search solves; their labels are dropped."""
    clock = _clock(time_limit)
    texts = [Record(record.fields) for record in records]
    return Problem(
        backbone,
        task,
        label_context(backbone, task, task.examples(texts)),
        None,
        seed,
        {"unlabelled": data_entry(texts)},
        out_of_time=clock,
        report=report,
    )


def run_key(problem: Problem, method: Method | TrainingOptions) -> str:
    """Return the hash of all that a run's result depends on."""
    task, verbalizer = problem.task, problem.task.verbalizer
    return digest(
        {
            "method": method.name,
            "options": method.model_dump(mode="json"),
            "seed": problem.seed,
            "backbone": [problem.backbone.fingerprint(), problem.backbone.dtype_name, problem.backbone.head_kind],
            "task": [task.template.source, verbalizer.labels, verbalizer.words, task.max_tokens, task.reserve],
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
    time_limit: float | None = None,
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
        time_limit: seconds from now after which a method stops with its best so far.
        report: is told of each step.
        reading: how much the method wants to read; None for everything. What goes beyond is left out, with a warning.
    """
    clock = _clock(time_limit)  # reading counts
    if dev is None:
        train, dev = holdout(train, validation_fraction, seed)
    if reading is None:
        contexts = [label_context(backbone, task, task.examples(part)) if part else None for part in (train, dev)]
    else:
        contexts, (train, dev) = read_within(backbone, task, (train, dev), seed, reading, time_limit)
    assert contexts[0] is not None
    return Problem(
        backbone,
        task,
        contexts[0],
        contexts[1],
        seed,
        {name: data_entry(rows) for name, rows in (("train", train), ("dev", dev)) if rows},
        out_of_time=clock,
        report=report,
    )


def _clock(time_limit: float | None) -> Clock:
    """Return what tells, from now on, whether a limit in seconds is reached."""
    deadline = None if time_limit is None else time.monotonic() + time_limit
    return lambda reserve=0.0: deadline is not None and time.monotonic() + reserve >= deadline
