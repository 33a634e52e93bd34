"""What prompts answer to texts without labels: its calibration, which prompt is best by it, and whether to trust that.

Selectors are functions of one tensor of probabilities ``p`` `[T, X, Y]` (T prompts, X texts, Y classes) and of the
classes' shares ``prior`` `[Y]`, ``π`` below. Greater scores are better. ``H`` is the entropy in nats, ``KL`` the
divergence, ``m_t = mean_x p[t, x]`` the marginal answer of a prompt. With equal shares every selector is the paper's;
where the shares are given, what a paper holds against uniform is held against them.

A choice can go only by what prompts have in common beyond chance. Where they hardly agree, most are wrong about most
texts, and nothing in the texts says which is right; nor which of two that name the same classes the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.artifact import Calibration, HardPrompt
from cuecraft.artifact.calibration import dividing_offsets, matching_offsets
from cuecraft.artifact.predictor import finite
from cuecraft.backbone import Context
from cuecraft.backbone.likelihood import cue_log_likelihood
from cuecraft.core.events import Progress
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.problem import Problem
from cuecraft.methods.untuned import CONTENT_FREE
from cuecraft.task import Example

Ids = tuple[int, ...]
_TEXTS_AT_A_TIME = 64  # between two looks at the clock
_FLUENCY_TEXTS = 16  # how likely a cue is as text differs little from text to text
#: Halfway between chance, 0, and full agreement, 1; and on the other side, with swapped classes, between 0 and -1.
ENOUGH = 0.5


def recalibrated(logits: Tensor, offsets: Tensor) -> Tensor:
    """Return probabilities `[T, X, Y]` (float64) of class logits `[T, X, Y]` after each prompt's offsets `[T, Y]`.

    ``q(y | x, t) ∝ p(y | x, t) exp(offset[t, y])``. What the offsets are is the calibration: ``dividing_offsets`` of
    the same logits for calibration by marginal (CBM, Yang et al., TACL 2024, arXiv 2305.14877), of answers to texts
    without content for contextual calibration (Zhao et al., ICML 2021, arXiv 2102.09690), of the answer to a domain
    premise for PMI-DC (Holtzman et al., EMNLP 2021, arXiv 2104.08315).
    """
    probabilities: Tensor = (logits.double() + offsets.unsqueeze(1)).softmax(-1)
    return probabilities


def mutual_information(p: Tensor, prior: Tensor) -> Tensor:
    """Return the mutual information of text and answer `[T]`, ``H(m_t) - mean_x H(p[t, x])``.

    Sorensen et al., ACL 2022, arXiv 2203.11364. ``H(m_t)`` is ``log Y - KL(m_t || uniform)``: an answer is expected to
    be spread equally over the classes. With shares given it is ``log Y - KL(m_t || π)``.
    """
    return _spread(p.mean(1), prior) - local_entropy(p)


def pseudo_label_agreement(p: Tensor, labels: Tensor) -> Tensor:
    """Return the share of texts `[T]` to which a prompt gives the pseudo-label `[X]` (ZPS).

    Zero-label prompt selection, Liao et al., 2022, arXiv 2211.04668: accuracy against `pseudo_labels`.
    """
    return (p.argmax(-1) == labels).double().mean(-1)


def pseudo_labels(p: Tensor, prior: Tensor) -> Tensor:
    """Return what the ensemble of all prompts answers `[X]`, ``argmax_y of sum_t log p[t, x, y]``.

    The variant of ZPS that joins prompts by their log-probabilities. The ensemble's own marginal is matched to the
    shares first: a liking for one class that most prompts have in common does not decide the labels, and with shares
    given, about so many texts get each label. (Of the sum, not the mean: what 24 prompts agree on is surer than each
    of them. The argmax of an unsure ensemble would be the commonest class everywhere.)
    """
    ensemble = p.clamp_min(torch.finfo(p.dtype).tiny).log().sum(0)
    return (ensemble + matching_offsets(ensemble, prior)).argmax(-1)


def global_entropy(p: Tensor, prior: Tensor) -> Tensor:
    """Return the entropy of the predicted classes' shares `[T]`, ``H(mean_x onehot(argmax_y p[t, x]))`` (GlobalE).

    Lu et al., ACL 2022, arXiv 2104.08786: a prompt that always answers alike is a bad one. As in
    `mutual_information`, with shares given it is ``log Y - KL(. || π)``.
    """
    return _spread(functional.one_hot(p.argmax(-1), p.shape[-1]).to(p).mean(1), prior)


def local_entropy(p: Tensor) -> Tensor:
    """Return the mean entropy of an answer `[T]`, ``mean_x H(p[t, x])`` (LocalE).

    Lu et al., ACL 2022, arXiv 2104.08786: a prompt that is sure of everything is a bad one.
    """
    entropies: Tensor = torch.special.entr(p).sum(-1)
    return entropies.mean(1)


def consensus(p: Tensor, prior: Tensor, labels: Tensor) -> Tensor:
    """Return the mutual information `[T]` of the half that agrees most with the pseudo-labels `[X]`, others below.

    Mutual information alone also likes a prompt that is sure, text by text, of something else than the classes. What
    most prompts have in common is the classes; so the half that agrees least is ranked behind the other.
    """
    information = mutual_information(p, prior)
    behind = information.max() - information.min() + 1
    return information - behind * ~agreeing_half(p, labels)


def agreeing_half(p: Tensor, labels: Tensor) -> Tensor:
    """Return which prompts `[T]` agree with the pseudo-labels `[X]` as often as the median prompt, or more often."""
    agreement = pseudo_label_agreement(p, labels)
    return agreement >= agreement.median()


def input_perplexity(log_likelihood: Tensor) -> Tensor:
    """Return minus the perplexity `[T]` of each prompt as text, ``-exp(-l_t)``: the likelier the words, the better.

    SPELL, Gonen et al., Findings of EMNLP 2023, arXiv 2212.04037. Here a prompt stands after the text, which is the
    same for all of them, so it is the cue that is looked at.

    Args:
        log_likelihood: `[T]` mean log-probability of a prompt's tokens (nats), averaged over texts.
    """
    return -(-log_likelihood).exp()


def _spread(shares: Tensor, prior: Tensor) -> Tensor:
    """Return ``log Y - KL(shares || prior)`` of shares `[T, Y]`: their entropy where the prior is uniform."""
    spread: Tensor = torch.special.entr(shares) + torch.special.xlogy(shares, prior * len(prior))
    return spread.sum(-1)


class LabelFreeCalibration(StrEnum):
    """How answers are corrected without labels, for the choice and in the artifact.

    `marginal` divides by the mean answer to the texts (CBM; also batch calibration, arXiv 2309.17249); `matched` makes
    that mean exactly the classes' shares; `contextual` divides by the mean answer to texts without content; `pmi` by
    the answer to a domain premise, for which the field's own name stands in the text's place.
    """

    NONE = "none"
    MARGINAL = "marginal"
    MATCHED = "matched"
    CONTEXTUAL = "contextual"
    PMI = "pmi"


@dataclass(frozen=True, eq=False)
class Answers:
    """What T prompts answer to X texts, as logits of Y classes.

    Args:
        prompts: `[T]` token ids.
        logits: `[T, X, Y]` float64.
        offsets: `[T, Y]` each prompt's calibration.
        fluency: `[T]` the mean log-probability (nats) of a cue's tokens behind a text; -inf for a cue without tokens.
    """

    prompts: tuple[Ids, ...]
    logits: Tensor
    offsets: Tensor
    fluency: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Calibrated probabilities `[T, X, Y]`."""
        return recalibrated(self.logits, self.offsets)

    def candidate(self, number: int) -> Candidate:
        """Return a prompt with its calibration."""
        bias = tuple(self.offsets[number].tolist())
        return Candidate(HardPrompt(self.prompts[number]), Calibration(bias))

    def select(self, numbers: Sequence[int]) -> Answers:
        """Return some of the prompts."""
        rows = list(numbers)
        prompts = tuple(self.prompts[n] for n in rows)
        return Answers(prompts, self.logits[rows], self.offsets[rows], self.fluency[rows])

    def joined(self, other: Answers) -> Answers:
        """Return these prompts and then others, over the same texts."""
        parts = [(self.logits, other.logits), (self.offsets, other.offsets), (self.fluency, other.fluency)]
        return Answers(self.prompts + other.prompts, *(torch.cat(part) for part in parts))


@dataclass(frozen=True, eq=False)
class Panel:
    """The texts that prompts are asked about.

    Args:
        problem: gives backbone and task.
        context: the texts.
        calibration: of each prompt's answers.
        prior: `[Y]` the classes' shares.
    """

    problem: Problem
    context: Context
    calibration: LabelFreeCalibration
    prior: Tensor

    @torch.no_grad()
    def ask(self, prompts: Sequence[Ids]) -> Answers:
        """Return what prompts answer to all texts.

        Raises:
            BackboneError: the model answers with NaN or infinity.
            PromptError: a prompt does not fit behind a text.
        """
        return self._answers(prompts, torch.cat(list(self._parts(prompts)), dim=1))

    @torch.no_grad()
    def ask_in_time(self, prompts: Sequence[Ids]) -> tuple[Answers, Panel]:
        """Return the same, and the panel of the texts that were read until the problem's time was up.

        Where that was too little for the first texts, the first prompt alone answers to one text.
        """
        parts: list[Tensor] = []
        done = 0
        with self.problem.in_time():
            for part in self._parts(prompts):
                parts.append(part)
                done += part.shape[1]
                self.problem.report(Progress("label-free", done, len(self.context)))
                if self.problem.out_of_time():
                    break
        if not parts:
            prompts, done = prompts[:1], 1
            parts = [self._logits(self.context.select([0]), prompts)]
        read = Panel(self.problem, self.context.select(range(done)), self.calibration, self.prior)
        return read._answers(prompts, torch.cat(parts, dim=1)), read

    def _parts(self, prompts: Sequence[Ids]) -> Iterator[Tensor]:
        """Yield logits `[T, x, Y]` of a few texts after another."""
        for start in range(0, len(self.context), _TEXTS_AT_A_TIME):
            yield self._logits(
                self.context.select(range(start, min(start + _TEXTS_AT_A_TIME, len(self.context)))), prompts
            )

    def _logits(self, context: Context, prompts: Sequence[Ids]) -> Tensor:
        backbone = self.problem.backbone
        logits = backbone.class_logits_many(context, [HardPrompt(ids) for ids in prompts])
        return finite(logits, backbone).cpu().double()

    def _answers(self, prompts: Sequence[Ids], logits: Tensor) -> Answers:
        return Answers(tuple(prompts), logits, self._offsets(prompts, logits), self._fluency(prompts))

    def _offsets(self, prompts: Sequence[Ids], logits: Tensor) -> Tensor:
        if self.calibration is LabelFreeCalibration.NONE:
            return torch.zeros_like(logits[:, 0])
        if self.calibration is LabelFreeCalibration.MARGINAL:
            return dividing_offsets(logits, self.prior)
        if self.calibration is LabelFreeCalibration.MATCHED:
            return matching_offsets(logits, self.prior)
        names = self.problem.task.template.field_names
        premise = {name: name for name in names}
        is_pmi = self.calibration is LabelFreeCalibration.PMI
        texts = [premise] if is_pmi else [dict.fromkeys(names, text) for text in CONTENT_FREE]
        context = self.problem.backbone.context([Example(fields) for fields in texts], self.problem.task)
        return dividing_offsets(self._logits(context, prompts), self.prior)

    def _fluency(self, prompts: Sequence[Ids]) -> Tensor:
        written = [n for n, ids in enumerate(prompts) if ids]
        found = torch.full((len(prompts),), -math.inf, dtype=torch.float64)
        if written:
            few = self.context.select(range(min(_FLUENCY_TEXTS, len(self.context))))
            likely = cue_log_likelihood(self.problem.backbone, [prompts[n] for n in written], few)
            found[written] = likely.cpu().double()
        return found


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
        "e.g. by the method auto"
    )
