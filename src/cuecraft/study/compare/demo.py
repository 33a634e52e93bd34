"""The demo: several methods on film reviews, over one read of the texts, as a leaderboard and an HTML page.

Its template draws with boxes, so that the demo needs no drawing package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from importlib import resources
from typing import Any

from cuecraft.artifact import Artifact
from cuecraft.backbone import AnyBackbone, load_backbone
from cuecraft.core.assets import model_place
from cuecraft.core.errors import MethodError, named
from cuecraft.core.events import Event, Progress
from cuecraft.core.options import make_options
from cuecraft.data import Record, k_shot_split, read_records, subsample
from cuecraft.methods import METHODS as ALL_METHODS
from cuecraft.methods import make_method
from cuecraft.methods.candidate import Candidate, fresh_logits
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.prepare import data_entry, make_problem, make_task
from cuecraft.methods.problem import Labelled, Method, Problem, label_context, score
from cuecraft.methods.search.written_words import WrittenWords
from cuecraft.study.compare.demo_packages import DATA, MODEL
from cuecraft.study.compare.report import nearest_words
from cuecraft.study.compare.trial import Trial, run_trial
from cuecraft.task import Task

#: Shown name, method, options. All of it takes about a minute and a half on two cores.
METHODS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("untuned", "zero-shot", {}),
    ("calibrated", "zero-shot", {"calibration": "fitted"}),
    ("words", WrittenWords.name, {}),
    ("auto", "auto", {"preset": "fast"}),
)
#: About how long one of `against` takes on two cores, for what is shown before it starts.
MINUTES = {"lora": 4, "full": 8}
_TOGETHER = 80  # held-out reviews that are read between two reports
TEMPLATE = "demo.html.j2"


@dataclass(frozen=True)
class Leaderboard:
    """The methods' results, in the order they were run."""

    rows: tuple[Trial, ...]

    @property
    def winner(self) -> Trial:
        """The row of least dev loss; of equals, the first. The test set has no say."""
        return min(self.rows, key=lambda row: row.dev.loss)


def run_methods(
    problem: Problem,
    test: Labelled,
    methods: Sequence[tuple[str, str, Mapping[str, Any]]],
    started: Callable[[str], Callable[[Event], None]] = lambda name: lambda event: None,
) -> Leaderboard:
    """Run methods `(shown name, method, options)` on one problem and score each on the test examples.

    Args:
        problem: splits already read, with a dev set.
        test: held-out examples.
        methods: what to run, in this order.
        started: called with each shown name and returns the listener of its steps.
    """
    return Leaderboard(
        tuple(
            run_trial(name, make_method(kind, options), replace(problem, report=started(name)), test)
            for name, kind, options in methods
        )
    )


@dataclass(frozen=True)
class DemoResult:
    """What the demo shows.

    Args:
        leaderboard: the methods side by side; those of `against` are the last ones.
        winner: the row that is kept, that of `auto`.
        artifact: the winner's, unwritten.
        words: the prompt in words of least dev loss, or several that answer together.
        nearest: for each vector of a soft prompt the words nearest to it; empty for other prompts.
        shown: texts, their true class, and the winner's probabilities by class.
        test_size: held-out reviews that the leaderboard reports on.
    """

    leaderboard: Leaderboard
    winner: Trial
    artifact: Artifact
    words: tuple[str, ...]
    nearest: tuple[str, ...]
    shown: list[tuple[str, str, dict[str, float]]]
    test_size: int


def check_against(names: Sequence[str]) -> None:
    """Raise MethodError where a method to compare with is unknown, or has the name of a row that is shown anyway."""
    for name in names:
        if name in (shown for shown, _, _ in METHODS):
            raise MethodError(f"{named('against')} {name!r} is in the demo already; leave it out")
        if name not in ALL_METHODS:
            raise MethodError(f"{named('against')} {name!r} is no method; choose {', '.join(ALL_METHODS)}")


def run_demo(
    shots: int,
    test_size: int,
    seed: int,
    started: Callable[[str], Callable[[Event], None]] = lambda name: lambda event: None,
    against: Sequence[str] = (),
) -> DemoResult:
    """Run the demo.

    Args:
        shots: reviews of each class to train on; as many others choose between prompts.
        test_size: held-out reviews to report on.
        seed: of the split and of every method.
        started: gets the name of each part of the demo and returns the progress callback of its events.
        against: further methods, with their default options; they are shown and never kept.

    Raises:
        AssetError: a demo package is not installed.
        MethodError: a method of `against` is unknown, or shown anyway.
    """
    check_against(against)
    is_converted = not MODEL.startswith("demo:") or model_place(MODEL).is_dir()
    started("loading the model" if is_converted else "converting the model, once (about 20 s)")
    backbone = load_backbone(MODEL)
    reading = started("reading the reviews")
    split = k_shot_split(read_records(DATA), shots, seed)
    # Three more reviews are kept apart, to be shown with the winner's answers; the data is sorted by class.
    test = subsample(split.rest, test_size + 3, seed)
    shown = [test.pop(row) for row in (len(test) - 1, len(test) // 2, 0)]
    task = make_task(backbone, split.train)
    problem = make_problem(backbone, task, split.train, split.dev, seed=seed)
    tested = _read(backbone, task, test, reading)
    rows = [
        run_trial(name, _method(kind, options), replace(problem, report=started(name)), tested)
        for name, kind, options in METHODS
    ]
    winner = rows[-1]  # `auto`, which ships the untuned prompt where held-out texts prefer it; other losses are of dev
    artifact = make_artifact(problem, winner.outcome, winner.method)
    words = tuple(prompt.text(backbone.tokenizer) for prompt in _best_words(problem, rows).prompts)
    answers = _answers(problem, winner.outcome.best, shown)
    others = run_methods(problem, tested, [(name, name, {}) for name in against], _announced(started))
    near = nearest_words(winner.outcome.best.prompt, backbone, 3) or []
    return DemoResult(
        Leaderboard((*rows, *others.rows)),
        winner,
        artifact.with_test({"test_accuracy": winner.test.primary}, data_entry(test)),
        words,
        tuple(" ".join(word.strip() for word in row.words) for row in near),
        answers,
        len(test),
    )


def _read(backbone: AnyBackbone, task: Task, records: Sequence[Record], report: Callable[[Event], None]) -> Labelled:
    """Read held-out texts, a part at a time."""
    examples = task.examples(records)
    parts = []
    for first in range(0, len(examples), _TOGETHER):
        parts.append(label_context(backbone, task, examples[first : first + _TOGETHER]))
        report(Progress("reading", min(first + _TOGETHER, len(examples)), len(examples)))
    return reduce(Labelled.joined, parts)


def _method(kind: str, options: Mapping[str, Any]) -> Method:
    return make_options(WrittenWords, options) if kind == WrittenWords.name else make_method(kind, options)


def _announced(started: Callable[[str], Callable[[Event], None]]) -> Callable[[str], Callable[[Event], None]]:
    """Return the same with about how many minutes a method takes in its name, where that is known."""
    return lambda name: started(f"{name} (about {MINUTES[name]} min)" if name in MINUTES else name)


def _best_words(problem: Problem, rows: Sequence[Trial]) -> Candidate:
    """Return the prompt in words of least dev loss."""
    assert problem.dev is not None
    dev = problem.dev
    found = [row.outcome.words or row.outcome.best for row in rows]
    in_words = [candidate for candidate in found if candidate.prompt.kind == "hard"]
    return min(in_words, key=lambda candidate: score(problem.backbone, candidate, dev).loss)


def _answers(
    problem: Problem, candidate: Candidate, records: Sequence[Record]
) -> list[tuple[str, str, dict[str, float]]]:
    """Return texts, their true class, and class probabilities."""
    logits = fresh_logits(problem.backbone, problem.task, [candidate], problem.task.examples(records))[0]
    labels = problem.task.verbalizer.labels
    return [
        (record.fields["text"], str(record.label), dict(zip(labels, row, strict=True)))
        for record, row in zip(records, logits.softmax(-1).tolist(), strict=True)
    ]


def render_demo(document: Mapping[str, Any], title: str) -> str:
    """Return the page.

    Args:
        document: of `cuecraft demo --json`.
        title: data, model and sizes in a line.
    """
    import jinja2  # a requirement of torch

    source = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.undefined = jinja2.StrictUndefined
    lows, highs = zip(*(row["interval_95"] for row in document["leaderboard"]), strict=True)
    left, right = min(lows), max(highs)
    span = max(right - left, 0.01)

    def place(value: float) -> str:
        """Return where a value stands on the drawn scale, in percent of its width."""
        return f"{100 * (value - left) / span:.2f}"

    environment.filters["place"] = place
    return environment.from_string(source).render(document=document, title=title, left=left, right=right) + "\n"
