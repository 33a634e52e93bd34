"""Whether a choice without labels can be trusted, by how far the cues agree about the same texts.

What cues have in common beyond chance is all that a choice without labels can go by. Where they hardly agree, most of
them are wrong about most texts, and nothing in the texts says which one is right. Nor does anything say which is right
of two cues that separate the same texts and name the classes the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.prompts.calibration import matching_offsets
from cuecraft.search.label_free.selectors import agreeing_half, pseudo_labels, recalibrated

#: Halfway between chance, 0, and full agreement, 1; and on the other side, with swapped classes, between 0 and -1.
ENOUGH = 0.5


@dataclass(frozen=True)
class Agreement:
    """How far the cues of a pool agree about texts, beyond chance.

    Args:
        mean: Cohen's kappa, the mean over pairs of the half that agrees most with the pseudo-labels, at most 1.
        lowest: of the chosen cue with any other of the pool, at least -1. Near -1, two classes are swapped. (Of more
            classes kappa does not fall that far: where each is named as another, to -1 / (Y - 1).)
    """

    mean: float
    lowest: float


def agreement_of(logits: Tensor, prior: Tensor, chosen: int) -> Agreement | None:
    """Return how far prompts agree; None for fewer than two prompts.

    The half is the one that `consensus` chooses from: pools hold some cues that know nothing about any task. Answers
    are matched to the classes' shares and to equal shares; the greater mean counts, and the lower kappa. With the true
    shares of rare classes, unsure prompts predict the commonest class alone and have no kappa; with equal shares, sure
    ones divide a common class by chance.

    Args:
        logits: `[T, X, Y]` of T prompts over X texts and Y classes, not calibrated.
        prior: `[Y]` the classes' shares.
        chosen: number of the chosen prompt.
    """
    if len(logits) < 2:
        return None
    means, lowest = [], []
    for shares in (prior, torch.full_like(prior, 1 / len(prior))):
        p = recalibrated(logits, matching_offsets(logits, shares))
        kappa = pairwise_kappa(p)
        half = agreeing_half(p, pseudo_labels(p, shares))
        means.append(_mean_of_pairs(kappa[half][:, half]))
        lowest.append(float(torch.cat([kappa[chosen, :chosen], kappa[chosen, chosen + 1 :]]).min()))
    return Agreement(max(means), min(lowest))


def _mean_of_pairs(kappa: Tensor) -> float:
    rows, columns = torch.triu_indices(len(kappa), len(kappa), offset=1)
    return float(kappa[rows, columns].mean())


def pairwise_kappa(p: Tensor) -> Tensor:
    """Return Cohen's kappa of the classes that each two prompts predict, `[T, T]`.

    Cohen, Educational and Psychological Measurement 20(1), 1960: ``(o - e) / (1 - e)``, with ``o`` the share of texts
    to which both give the same class, and ``e`` the share that their own shares of classes make likely by chance. Two
    prompts that give one and the same class to all texts have no kappa (0 / 0); they get 0, as they tell no text from
    another.

    Args:
        p: `[T, X, Y]` what T prompts answer to X texts, as probabilities of Y classes.
    """
    answers = functional.one_hot(p.argmax(-1), p.shape[-1]).double()
    flat, shares = answers.flatten(1), answers.mean(1)
    observed, chance = flat @ flat.T / p.shape[1], shares @ shares.T
    alike = chance >= 1 - 1e-9  # float64 sums of shares
    return torch.where(alike, 0.0, (observed - chance) / (1 - chance).masked_fill(alike, 1.0))


def distrust(agreement: Agreement | None) -> str | None:
    """Return in one line why the choice is not to be trusted; None where cues agree and none swaps the classes."""
    if agreement is None:
        why = "only one cue was read, so nothing shows whether cues agree"
    elif agreement.mean <= ENOUGH:
        why = f"the cues' answers agree little (mean kappa {agreement.mean:.2f}, not above {ENOUGH:.2f})"
    elif agreement.lowest <= -ENOUGH:
        why = f"one cue answers as the chosen one does, but with classes swapped (kappa {agreement.lowest:.2f})"
    else:
        return None
    return (
        f"{why}: do not trust this choice; label 16 texts of each class or more and tune with them, "
        "e.g. --method auto (method='auto')"
    )
