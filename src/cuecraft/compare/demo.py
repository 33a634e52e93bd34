"""The demo: six ways to prompt a small model on real one-sentence film reviews."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuecraft.backbone import load_backbone
from cuecraft.compare.leaderboard import Leaderboard, run_methods
from cuecraft.data import Record, k_shot_split, read_records, subsample
from cuecraft.method import Candidate, Event, Problem, fresh_logits, label_context, score
from cuecraft.prompts import Artifact, HardPrompt
from cuecraft.tune.finish import make_artifact
from cuecraft.tune.prepare import data_entry, make_problem, make_task

MODEL = "demo:smollm2-135m"
DATA = "demo:movie-sentences"
METHODS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("zero-shot", "zero-shot", {}),
    ("calibrated", "zero-shot", {"calibration": "fitted"}),
    ("autoprompt", "autoprompt", {}),
    ("prompt-tuning", "prompt-tuning", {}),
    ("deep-cue", "deep-cue", {}),
    ("auto", "auto", {"preset": "fast"}),
)


@dataclass(frozen=True)
class DemoResult:
    """What the demo shows.

    Args:
        leaderboard: the methods side by side.
        artifact: the winner, unwritten.
        words: the best prompt in words.
        shown: texts, their true class, and the winner's probabilities by class.
        test_size: held-out reviews that the leaderboard reports on.
    """

    leaderboard: Leaderboard
    artifact: Artifact
    words: str
    shown: list[tuple[str, str, dict[str, float]]]
    test_size: int


def run_demo(
    shots: int,
    test_size: int,
    seed: int,
    started: Callable[[str], Callable[[Event], None]] = lambda name: lambda event: None,
) -> DemoResult:
    """Run the demo.

    Args:
        shots: reviews of each class to train on; as many others choose between prompts.
        test_size: held-out reviews to report on.
        seed: of the split and of every method.
        started: called with each part of the demo and returns the listener of its events.

    Raises:
        AssetError: a demo package is not installed.
    """
    started("loading the model")
    backbone = load_backbone(MODEL)
    started("reading the reviews")
    split = k_shot_split(read_records(DATA), shots, seed)
    # Three more reviews are kept apart, to be shown with the winner's answers; the data is sorted by class.
    test = subsample(split.rest, test_size + 3, seed)
    shown = [test.pop(row) for row in (len(test) - 1, len(test) // 2, 0)]
    task = make_task(backbone, split.train)
    problem = make_problem(backbone, task, split.train, split.dev, seed=seed)
    board = run_methods(problem, label_context(backbone, task, task.examples(test)), METHODS, started)
    winner = board.winner
    artifact = make_artifact(problem, winner.outcome, winner.method)
    return DemoResult(
        board,
        artifact.with_test({"test_accuracy": winner.test.accuracy}, data_entry(test)),
        _best_words(problem, board).prompt.text(backbone.tokenizer),
        _answers(problem, winner.outcome.best, shown),
        len(test),
    )


def _best_words(problem: Problem, board: Leaderboard) -> Candidate:
    """Return the prompt in words of least dev loss."""
    assert problem.dev is not None
    dev = problem.dev
    found = [row.outcome.words or row.outcome.best for row in board.rows]
    in_words = [candidate for candidate in found if isinstance(candidate.prompt, HardPrompt)]
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
