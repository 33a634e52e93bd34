"""A small student of the prompts, and how often its answers agree with the backbone's, as a random sample of rows says.

The student is linear over words and pairs of words, fitted on the prompts' own answers; it answers where it is sure.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from cuecraft.core.storage import parse_json
from cuecraft.serving.bulk.reading import text_number
from cuecraft.serving.bulk.table import STUDENT, AnswerBatch, undamaged
from cuecraft.serving.bulk.texts import masked

_LATELY = 200  # rows of a sample that show whether a student drifts
_CHANCE = 0.001  # how likely so many disagreements may be where the student keeps its word
_FEATURES = 2**17
_HELD_OUT = 2, 5  # two in five texts of the sample calibrate
_ARRAYS = ("weights", "bias", "classes")
_GROWTH = 1.1  # of the rows that a threshold lets in, from one tried threshold to the next


@dataclass(frozen=True)
class Sampled:
    """Rows that were asked about again, and how many of them agreed."""

    rows: int = 0
    agreed: int = 0

    def __add__(self, other: Sampled) -> Sampled:
        return Sampled(self.rows + other.rows, self.agreed + other.agreed)

    def document(self) -> dict[str, Any]:
        """Return the share that agrees with its interval of 95%, JSON-ready; None for the share of nothing."""
        low, high = interval(self.agreed, self.rows)
        share = self.agreed / self.rows if self.rows else None
        return {"rows": self.rows, "agreed": self.agreed, "share": share, "interval": [low, high]}


def lower_bound(agreed: int, rows: int, chance: float = 0.05) -> float:
    """Return the share that is at least true but for a chance (Clopper and Pearson, 1934); 0 for no rows."""
    if not agreed:  # as where nothing was audited; SciPy is not waited for then, nor needed
        return 0.0
    from scipy.stats import beta

    return float(beta.ppf(chance, agreed, rows - agreed + 1))


def interval(agreed: int, rows: int) -> tuple[float, float]:
    """Return the interval of 95% of a share (Clopper and Pearson, 1934)."""
    return lower_bound(agreed, rows, 0.025), 1.0 - lower_bound(rows - agreed, rows, 0.025)


def needed(share: float, misses: int) -> int:
    """Return the fewest rows of which so many may disagree where the share is at least this, but for a chance of 5%."""
    rows = misses + 1
    while lower_bound(rows - misses, rows) < share:
        rows += 1
    return rows


class Drift:
    """Watches whether a student keeps its word.

    Args:
        share: of answers that it promised to agree in.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._lately: deque[bool] = deque(maxlen=_LATELY)
        self.is_drifting = False

    def note(self, agreed: Sequence[bool]) -> bool:
        """Take the next rows of the sample; return whether the student has just been found to drift.

        Whether so many of the last 200 could disagree by chance is asked once for each shard, so the chance is small.
        """
        self._lately.extend(agreed)
        if self.is_drifting or not agreed:
            return False
        rows, misses = len(self._lately), self._lately.count(False)
        self.is_drifting = misses > 1 and _tail(misses, rows, 1 - self._share) < _CHANCE
        return self.is_drifting


def _tail(misses: int, rows: int, chance: float) -> float:
    """Return how likely so many misses or more are."""
    few = sum(math.comb(rows, n) * chance**n * (1 - chance) ** (rows - n) for n in range(misses))
    return 1.0 - few


@dataclass(frozen=True)
class _Head:
    """What answers for one prompt.

    Args:
        weights: `[C, D]`.
        bias: `[C]`.
        classes: `[C]` numbers of the prompt's classes that the sample had.
        threshold: the least probability that is believed.
    """

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    classes: NDArray[np.int64]
    threshold: float

    def probabilities(self, features: Any) -> NDArray[np.float64]:
        """Return `[N, C]`."""
        scores = features @ self.weights.T + self.bias
        scores -= scores.max(1, keepdims=True)
        shares = np.exp(scores)
        found: NDArray[np.float64] = shares / shares.sum(1, keepdims=True)
        return found


class Student:
    """Answers for P prompts where it is sure for all of them.

    Args:
        idf: `[D]` how rare each word is.
        heads: `[P]`.
        is_masked: whether it reads texts with their numbers masked.
    """

    def __init__(self, idf: NDArray[np.float64], heads: Sequence[_Head], is_masked: bool) -> None:
        self._idf, self._heads, self._is_masked = idf, tuple(heads), is_masked

    def answers(self, texts: Sequence[str]) -> tuple[NDArray[np.bool_], AnswerBatch]:
        """Return for which texts `[N]` it is sure, and its answers to those."""
        found = AnswerBatch.empty(len(texts), len(self._heads))
        sure = np.ones(len(texts), bool)
        if not texts:
            return sure, found
        features = _features(texts, self._is_masked, self._idf)
        for number, head in enumerate(self._heads):
            shares = head.probabilities(features)
            best = shares.argmax(1)
            found.probabilities[:, number] = shares[np.arange(len(texts)), best]
            found.labels[:, number] = head.classes[best]
            sure &= found.probabilities[:, number] >= head.threshold
        found.makers[:] = STUDENT
        found.texts[:] = [text_number(text) for text in texts]
        return sure, found.at(sure)

    def save(self, path: Path) -> None:
        """Write it: one safetensors file, its numbers as JSON in the header; may raise OSError."""
        arrays = {"idf": self._idf}
        for number, head in enumerate(self._heads):
            arrays |= {f"{number}.{name}": np.ascontiguousarray(getattr(head, name)) for name in _ARRAYS}
        document = {"thresholds": [head.threshold for head in self._heads], "is_masked": self._is_masked}
        path.write_bytes(save(arrays, {"student": json.dumps(document)}))

    @classmethod
    def load(cls, path: Path) -> Student:
        """Read it; raises BulkError where it is damaged."""
        with undamaged(path), safe_open(path, "np") as file:
            document = parse_json(file.metadata()["student"])
            heads = [
                _Head(**{name: file.get_tensor(f"{number}.{name}") for name in _ARRAYS}, threshold=threshold)
                for number, threshold in enumerate(document["thresholds"])
            ]
            return cls(file.get_tensor("idf"), heads, document["is_masked"])


@dataclass(frozen=True)
class Fitted:
    """What came of fitting a student.

    Args:
        student: None where it cannot keep its word, so that the backbone answers all.
        document: what is reported of it, JSON-ready.
    """

    student: Student | None
    document: dict[str, Any]


def fit_student(
    texts: Sequence[str], answers: AnswerBatch, names: Sequence[str], share: float, is_masked: bool
) -> Fitted:
    """Fit a student on the prompts' own answers, and calibrate it on those that it was not fitted on.

    The texts that it is surest of are let in first, then ever more, as long as the lower bound of their agreement
    (Clopper and Pearson, one-sided, 95%) stays at the share or above: hypotheses in a fixed order, the first that fails
    ends it, so that no correction for their number is due (Angelopoulos et al., Learn then Test, arXiv 2110.01052).

    Args:
        texts: `[N]` distinct ones.
        answers: `[N, P]` of the prompts.
        names: `[P]` of the prompts.
        share: of its answers that have to agree.
        is_masked: whether it is to read texts with their numbers masked.
    """
    taken, of = _HELD_OUT
    held = np.array([text_number(text) // 8 % of < taken for text in texts], bool)
    first = needed(share, misses=1)
    document: dict[str, Any] = {"sample": len(texts), "held_out": int(held.sum()), "target": share}
    if held.sum() < first or (~held).sum() < 2:
        return Fitted(None, document | {"used": False, "why": f"fewer than {first} texts to calibrate on"})
    idf = _idf(_counts([text for text, out in zip(texts, held, strict=True) if not out], is_masked))
    features = _features(texts, is_masked, idf)
    heads, told = [], {}
    for number, name in enumerate(names):
        own = answers.labels[:, number].astype(np.int64)
        weights, bias, classes = _linear(features[~held], own[~held])
        head = _Head(weights, bias, classes, 0.0)
        threshold, calibrated = _threshold(head, features[held], own[held], share, first)
        told[name] = calibrated
        if threshold is None:
            surest, agreed = calibrated["rows"], calibrated["agreed"]
            why = f"of the {surest} texts that it is surest of, {agreed} agree for prompt {name!r}"
            return Fitted(None, document | {"used": False, "why": why, "prompts": told})
        heads.append(_Head(weights, bias, classes, threshold))
    return Fitted(Student(idf, heads, is_masked), document | {"used": True, "prompts": told})


def _threshold(
    head: _Head, features: Any, labels: NDArray[np.int64], share: float, first: int
) -> tuple[float | None, dict[str, Any]]:
    """Return the least probability to believe, None where none is enough, and what was seen."""
    shares = head.probabilities(features)
    best = shares.max(1)
    order = np.argsort(-best, kind="stable")
    right = np.cumsum(head.classes[shares.argmax(1)][order] == labels[order])
    scores = best[order].astype(np.float32)
    # A threshold lets in all texts of its score, so those that have the same one are judged together.
    ends = np.append(np.flatnonzero(np.diff(scores)) + 1, len(scores))
    found, rows = None, _next(ends, first)
    told: dict[str, Any] = {"rows": rows, "agreed": int(right[rows - 1])}
    while lower_bound(int(right[rows - 1]), rows) >= share:
        found = float(scores[rows - 1])
        told = {"rows": rows, "agreed": int(right[rows - 1]), "threshold": found}
        told["lower_bound"] = lower_bound(told["agreed"], rows)
        if rows == len(order):
            break
        rows = _next(ends, min(len(order), int(rows * _GROWTH) + 1))
    return found, told


def _next(ends: NDArray[np.int64], rows: int) -> int:
    """Return the first of some ascending numbers that is so many or more."""
    return int(ends[np.searchsorted(ends, rows)])


def _linear(features: Any, labels: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """Return weights `[C, D]`, bias `[C]` and classes `[C]` of a logistic regression."""
    from sklearn.linear_model import LogisticRegression

    classes = np.unique(labels)
    if len(classes) == 1:
        return np.zeros((1, features.shape[1])), np.zeros(1), classes
    fitted = LogisticRegression(C=100.0, max_iter=1000).fit(features, labels)
    if len(classes) > 2:
        return fitted.coef_, fitted.intercept_, classes
    none = np.zeros_like(fitted.coef_)
    return np.vstack([none, fitted.coef_]), np.append(0.0, fitted.intercept_), classes


def _counts(texts: Sequence[str], is_masked: bool) -> Any:
    """Return how often each text has each word and pair of words, `[N, D]`, sparse."""
    from sklearn.feature_extraction.text import HashingVectorizer

    # Words by hash, so that no list of words has to be kept, and new ones have a place.
    words = HashingVectorizer(
        ngram_range=(1, 2), n_features=_FEATURES, norm=None, alternate_sign=False, token_pattern=r"(?u)\w+|[<>*%=]"
    )
    return words.transform([masked(text) for text in texts] if is_masked else texts)


def _idf(counts: Any) -> NDArray[np.float64]:
    in_texts = np.bincount(counts.indices, minlength=counts.shape[1])
    found: NDArray[np.float64] = np.log((1 + counts.shape[0]) / (1 + in_texts)) + 1.0
    return found


def _features(texts: Sequence[str], is_masked: bool, idf: NDArray[np.float64]) -> Any:
    """Return TF-IDF `[N, D]`, rows of length one."""
    from sklearn.preprocessing import normalize

    counts = _counts(texts, is_masked)
    counts.data = (1.0 + np.log(counts.data)) * idf[counts.indices]
    return normalize(counts)
