"""What a cell keeps of its answers for the plots that fit their kind.

Reliability where an answer is right or wrong, precision and recall of sets, ranks of right options, errors of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cuecraft.study.compare.schema import Band, ErrorCount, Figures, PrecisionRecall
from cuecraft.task import AnswerSpace, Decision
from cuecraft.task.answers import Gold
from cuecraft.task.answers.multilabel import Multilabel
from cuecraft.task.answers.ordinal import Ordinal

Floats = NDArray[np.float64]
BANDS = 10  # of probabilities
_POINTS = 60  # of a curve
_ERRORS = 17  # of the range of numbers, from minus to plus all of it
_MOST_RANKS = 10


def figures_of(
    answers: AnswerSpace,
    decisions: Sequence[Decision],
    probabilities: Floats,
    golds: Sequence[Gold],
    primary: Sequence[float],
) -> Figures:
    """Return what plots need of answers to the test rows.

    Args:
        answers: the answer space that decided.
        decisions: `[N]`.
        probabilities: `[N, O]` that they were made of.
        golds: `[N]` right answers.
        primary: `[N]` primary scores.
    """
    if isinstance(answers, Multilabel):
        truth = answers.indicators(golds)
        found = np.array([[int(value in own.value) for value in answers.classes] for own in decisions])
        return Figures(
            reliability=_reliability(probabilities.ravel(), truth.ravel()),
            precision_recall=_precision_recall(probabilities, truth, found),
        )
    if isinstance(answers, Ordinal):
        places = answers.class_numbers(golds)
        right = np.arange(answers.size) == np.array(places)[:, None]
        return Figures(
            reliability=_reliability(probabilities.ravel(), right.ravel()), errors=_errors(answers, decisions, golds)
        )
    is_right = set(primary) <= {0.0, 1.0}
    confidences = np.array([own.confidence for own in decisions])
    return Figures(
        reliability=_reliability(confidences, np.array(primary)) if is_right else None,
        ranks=_ranks(answers, decisions, golds),
    )


def _reliability(expected: Floats, observed: NDArray[np.generic]) -> list[Band]:
    """Return, for each tenth of probabilities that there are, their mean and how often the answer was right."""
    place = np.minimum((expected * BANDS).astype(int), BANDS - 1)
    bands = []
    for band in range(BANDS):
        own = place == band
        if own.any():
            mean, share = float(expected[own].mean()), float(observed[own].astype(float).mean())
            bands.append(Band(expected=mean, observed=share, count=int(own.sum())))
    return bands


def expected_calibration_error(bands: Sequence[Band]) -> float:
    """Return the mean difference of probabilities and shares over all answers (Guo et al., ICML 2017)."""
    total = sum(band.count for band in bands)
    return sum(band.count * abs(band.expected - band.observed) for band in bands) / max(1, total)


def _precision_recall(probabilities: Floats, truth: Floats, found: NDArray[np.generic]) -> PrecisionRecall | None:
    """Return the curve over all labels together, at one threshold for all, and where the decisions are."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, precision_score, recall_score

    right, scores = truth.ravel(), probabilities.ravel()
    if not right.any():
        return None
    precision, recall, _ = precision_recall_curve(right, scores)
    kept = np.unique(np.linspace(0, len(recall) - 1, _POINTS).round().astype(int))
    decided = found.ravel()
    return PrecisionRecall(
        recall=recall[kept].tolist(),
        precision=precision[kept].tolist(),
        average_precision=float(average_precision_score(right, scores)),
        decided_recall=float(recall_score(right, decided, zero_division=0)),
        decided_precision=float(precision_score(right, decided, zero_division=0)),
    )


def _ranks(answers: AnswerSpace, decisions: Sequence[Decision], golds: Sequence[Gold]) -> dict[str, int] | None:
    """Return of how many rows the right option has which rank; None where answers are not ranked."""
    if not decisions or "mean_reciprocal_rank" not in answers.measure(decisions[:1], golds[:1]):
        return None
    names = [*map(str, range(1, _MOST_RANKS + 1)), "later"]
    counts = dict.fromkeys(names, 0)
    for decision, gold in zip(decisions, golds, strict=True):
        reciprocal = answers.measure([decision], [gold])["mean_reciprocal_rank"]
        rank = round(1 / reciprocal) if reciprocal > 0 else _MOST_RANKS + 1
        counts[names[min(rank, _MOST_RANKS + 1) - 1]] += 1
    return counts


def _errors(answers: Ordinal, decisions: Sequence[Decision], golds: Sequence[Gold]) -> list[ErrorCount]:
    """Return how many answers are too small or too great by how much."""
    errors = np.array([own.value for own in decisions]) - np.array(golds, dtype=float)
    width = answers.numbers[-1] - answers.numbers[0]
    counts, edges = np.histogram(errors, bins=_ERRORS, range=(-width, width))
    return [
        ErrorCount(low=float(low), high=float(high), count=int(count))
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
