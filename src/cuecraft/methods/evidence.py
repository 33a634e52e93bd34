"""Is a tuned prompt better than the untuned one? Paired comparison on held-out examples, and the verdict.

A tuned prompt ships only where it is better on examples that it was not trained on: less mean log-loss, and a primary
score (accuracy, of labels) that is not lower. The strength of that evidence is stated. It does not decide: with few
labels little would ever be certain, and the better of two prompts is the better guess at any strength.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cuecraft.core.scores import is_error, readable
from cuecraft.core.seeding import numpy_generator
from cuecraft.methods.objectives import Scores

_RESAMPLES = 9999
_BATCH = 500  # of them at once: all would take a gigabyte for 2,000 examples
_STRENGTHS = ((0.01, "strong"), (0.05, "good"), (0.2, "weak"))


@dataclass(frozen=True)
class Evidence:
    """How two prompts compare on the same held-out examples.

    Args:
        rows: examples, N.
        loss: mean log-loss (nats) of the tuned prompt.
        untuned_loss: of the untuned one.
        accuracy: mean primary score of the tuned prompt.
        untuned_accuracy: of the untuned one.
        gain_interval: 95% t-interval of the mean difference of the log-losses, untuned minus tuned.
        p_loss: two-sided p-value of that difference, by random changes of sign (paired permutation test).
        only_tuned_right: examples that the tuned prompt answers with a higher score: that it alone gets right.
        only_untuned_right: examples that the untuned prompt answers with a higher score.
        p_accuracy: two-sided p-value of those two counts (exact sign test; of 0 and 1, McNemar's).
        measure: the name of the primary score.
    """

    rows: int
    loss: float
    untuned_loss: float
    accuracy: float
    untuned_accuracy: float
    gain_interval: tuple[float, float]
    p_loss: float
    only_tuned_right: int
    only_untuned_right: int
    p_accuracy: float
    measure: str = "accuracy"

    @property
    def is_better(self) -> bool:
        """Whether the tuned prompt has less log-loss and no lower score."""
        return is_better((self.loss, self.accuracy), (self.untuned_loss, self.untuned_accuracy))


def is_better(tuned: tuple[float, float], untuned: tuple[float, float]) -> bool:
    """Return whether (mean log-loss, mean score) of a tuned prompt are better than those of the untuned one."""
    return tuned[0] < untuned[0] and tuned[1] >= untuned[1]


def strength_of(p: float) -> str:
    """Return how strong the evidence of a p-value is, in a word."""
    return next((word for limit, word in _STRENGTHS if p < limit), "hardly any")


def compare_paired(tuned: Scores, untuned: Scores, seed: int = 0) -> Evidence:
    """Compare two prompts' answers to the same held-out examples.

    Args:
        tuned: `[N]` of the tuned prompt.
        untuned: `[N]` of the untuned one.
        seed: of the permutation test.
    """
    from scipy.stats import binomtest

    losses, untuned_losses, hits, untuned_hits = (
        own.cpu().numpy() for own in (tuned.losses, untuned.losses, tuned.primary, untuned.primary)
    )
    only_tuned, only_untuned = int((hits > untuned_hits).sum()), int((untuned_hits > hits).sum())
    differing = only_tuned + only_untuned
    interval, p_loss = _paired_difference(untuned_losses - losses, seed)
    return Evidence(
        len(losses),
        float(losses.mean()),
        float(untuned_losses.mean()),
        float(hits.mean()),
        float(untuned_hits.mean()),
        interval,
        p_loss,
        only_tuned,
        only_untuned,
        float(binomtest(only_tuned, differing).pvalue) if differing else 1.0,
        tuned.measure,
    )


def _paired_difference(differences: NDArray[np.float64], seed: int) -> tuple[tuple[float, float], float]:
    """Return the 95% t-interval of the mean of differences `[N]`, and its p-value by random changes of sign."""
    from scipy.stats import permutation_test, ttest_1samp

    mean = float(differences.mean())
    if len(differences) < 2 or float(np.ptp(differences)) == 0.0:  # no spread to judge by
        return (mean, mean), 1.0
    interval = ttest_1samp(differences, 0.0).confidence_interval(0.95)
    found = permutation_test(
        (differences,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        rng=numpy_generator(seed, "evidence"),
    )
    return (float(interval.low), float(interval.high)), float(found.pvalue)


@dataclass(frozen=True)
class EvidenceVerdict:
    """Which prompt ships, and why.

    Args:
        ships: the tuned or the untuned prompt.
        reason: one sentence.
        evidence: how the two compare; None where there was nothing to compare on.
        remark: whether tuning is worth it at all, where there is doubt.
    """

    ships: Literal["tuned", "untuned"]
    reason: str
    evidence: Evidence | None = None
    remark: str | None = None

    def document(self) -> dict[str, Any]:
        """Return it JSON-ready."""
        found = {name: value for name, value in asdict(self).items() if name != "evidence"}
        if self.evidence is not None:
            found["evidence"] = asdict(self.evidence) | {"gain_interval": list(self.evidence.gain_interval)}
        return found


def judge(
    evidence: Evidence, untuned: Mapping[str, float], best: float, margin: float, among: int = 1
) -> EvidenceVerdict:
    """Decide between the tuned and the untuned prompt.

    Args:
        evidence: how they compare on held-out examples.
        untuned: held-out score of the prompt as written, by what was done to it, the cheapest first
            (`zero-shot`, `calibrated`).
        best: the best held-out score that was reached by anything.
        margin: of the score within which tuning is called hardly worth it.
        among: how many tuned prompts competed on the same examples; the best of many looks good by luck, and the
            strength that is reported is that after Bonferroni's correction.
    """
    loss = f"log-loss {evidence.untuned_loss:.3f} -> {evidence.loss:.3f}"
    score, before = readable(evidence.measure, evidence.untuned_accuracy)
    hits = f"{score} {before:.3f} -> {readable(evidence.measure, evidence.accuracy)[1]:.3f}"
    found = f"on {evidence.rows} held-out examples {loss}, {hits}"
    near = [(name, accuracy) for name, accuracy in untuned.items() if best - accuracy <= margin]
    remark = None
    if near:
        name, accuracy = near[0]
        remark = (
            f"{name} alone has {readable(evidence.measure, accuracy)[1]:.3f}, within {100 * margin:g} points of the "
            f"best that was reached ({readable(evidence.measure, best)[1]:.3f}): tuning is hardly worth it here"
        )
    if evidence.is_better:
        p = min(1.0, among * evidence.p_loss)
        strength = f"{strength_of(p)} evidence: paired permutation test, p = {p:.3g}"
        strength += f" after correction for the {among} that competed" if among > 1 else ""
        return EvidenceVerdict("tuned", f"{found} ({strength})", evidence, remark)
    moved = "rose" if is_error(evidence.measure) else "fell"
    worse = "log-loss did not fall" if evidence.loss >= evidence.untuned_loss else f"{score} {moved}"
    return EvidenceVerdict("untuned", f"{found}: {worse}, so the untuned prompt ships", evidence, remark)


@dataclass(frozen=True)
class Tried:
    """One line of the leaderboard of all that was tried.

    Args:
        name: what was tried.
        loss: mean held-out log-loss (nats).
        score: mean held-out primary score.
        sd: standard deviation of the score over folds; None with fewer than two.
        folds: how many folds it was tried on.
        rows: held-out examples of these folds.
        seconds: spent on it.
        measure: the name of the primary score, which a document has in place of `score`.
    """

    name: str
    loss: float
    score: float
    sd: float | None
    folds: int
    rows: int
    seconds: float
    measure: str = "accuracy"

    def document(self) -> dict[str, Any]:
        """Return it JSON-ready, the score by its name: of labels `accuracy`."""
        return {self.measure if name == "score" else name: own for name, own in vars(self).items() if name != "measure"}
