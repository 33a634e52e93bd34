"""Which prompt is best, judged by its answers to texts without labels.

Everything here is a function of one tensor of probabilities ``p`` `[T, X, Y]` (T prompts, X texts, Y classes) and of
the classes' shares ``prior`` `[Y]`, ``π`` below. Greater scores are better. ``H`` is the entropy in nats, ``KL`` the
divergence, ``m_t = mean_x p[t, x]`` the marginal answer of a prompt. With equal shares every selector is the paper's;
where the shares are given, what a paper holds against uniform is held against them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.prompts.calibration import matching_offsets


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
