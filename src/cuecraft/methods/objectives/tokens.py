"""Each word of a text has a tag: the mean cross-entropy of a text's words, and the F1 of its spans.

Values `[..., B, X]` are those of R words with O tags each, X = R * O, as `cuecraft.task.answers.tokens` says. Words
that were not read or cut off have no part in losses, calibrations and class heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.artifact import Calibration, calibration
from cuecraft.artifact.calibration import PLAIN_FIT, HeadFit
from cuecraft.backbone import ClassHead
from cuecraft.backbone.columns import class_scores, word_scores
from cuecraft.methods.objectives.base import Objective
from cuecraft.task.answers import Gold
from cuecraft.task.answers.chains import best_tags
from cuecraft.task.answers.tokens import LabelledSpans, TokenLabels, span_f1

_UNSEEN = 0.5  # examples that a tag without any is taken to have


class TokenObjective(Objective):
    """Mean cross-entropy of a text's words, and the F1 of its spans, by the likeliest tags that can follow each other.

    Args:
        answers: the labels.
    """

    answers: TokenLabels

    def losses(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        """Return the mean cross-entropies; 0 for a text of which no word was read."""
        table, read = self._by_word(values)
        tags = self._tags(golds, read).expand(read.shape)
        found = functional.cross_entropy(table.flatten(0, -2), tags.flatten(), reduction="none").view(read.shape)
        return (found * read).sum(-1) / read.sum(-1).clamp(min=1)

    @torch.no_grad()
    def scores(self, values: Tensor, golds: Sequence[Gold]) -> Tensor:
        """Return the F1 of each text's spans, 1 where there are none and none were found."""
        probabilities = self.answers.probabilities(values.double().cpu().numpy())
        tags, found = self.answers.head_rows, []
        for own in probabilities.reshape(-1, len(golds), values.shape[-1] // tags, tags):
            for path, gold in zip(best_tags(own, self.answers.weights), golds, strict=True):
                assert isinstance(gold, LabelledSpans)
                spans = frozenset(span for _, _, span in self.answers.spans(path.tolist(), gold.words))
                found.append(span_f1(spans, gold.spans))
        return torch.tensor(found, dtype=torch.float64, device=values.device).view(values.shape[:-1])

    def fitted(self, values: Tensor, golds: Sequence[Gold], weights: Tensor | None = None) -> Calibration:
        """Return a scale, which all tags share."""
        table, read = self._by_word(values)
        shares = self._shares(read, weights)
        return Calibration((), calibration.tempered(table[read], self._tags(golds, read)[read], weights=shares).scale)

    def tempered(self, values: Tensor, golds: Sequence[Gold], weights: Tensor | None = None) -> Calibration:
        """Return the same."""
        return self.fitted(values, golds, weights)

    def fitted_head(self, features: Tensor, golds: Sequence[Gold], fit: HeadFit = PLAIN_FIT) -> ClassHead:
        """Return the head of a multinomial logistic regression over words, those of a text weighing as much as a text.

        A tag without examples has as much probability over all words as half an example.

        Args:
            features: `[B, R, d]`, not scaled yet; infinite where no word was read.
            golds: `[B]` right answers.
            fit: how.
        """
        read = features[..., 0].isfinite()
        rows, tags, shares = features[read], self._tags(golds, read)[read], self._shares(read, fit.weights)
        known, numbers = tags.unique(return_inverse=True)
        size = (self.answers.head_rows, features.shape[-1])
        weight, bias = torch.zeros(size, device=features.device), torch.zeros(size[0], device=features.device)
        if len(known) > 1:
            own = calibration.fitted_head(rows, numbers, len(known), replace(fit, weights=shares))
            weight[known], bias[known] = own.weight, own.bias
            # Of which the exponential is what the known tags sum up to, by the harmonic mean over words.
            level = math.log(len(rows)) - (-class_scores(rows.float(), own).logsumexp(-1)).logsumexp(0)
        else:
            level = bias.new_zeros(())
        unseen = torch.ones(size[0], dtype=torch.bool, device=bias.device).index_fill(0, known, False)
        return ClassHead(weight, torch.where(unseen, level + math.log(_UNSEEN / len(rows)), bias), fit.scale)

    def by_head(self, features: Tensor, head: ClassHead) -> Tensor:
        """Return the values `[..., B, R * O]` that a class head gives for features `[..., B, R, d]`."""
        return word_scores(features, head)

    def each_read(self, features: Tensor) -> Tensor:
        """Return the features `[N, d]` of all words that were read."""
        return features[features[..., 0].isfinite()]

    def normalised(self, values: Tensor) -> Tensor:
        """Return log-probabilities (nats) of each word's tags, float64."""
        return self._logs(values.double()).flatten(-2)

    def mixed(self, values: Tensor, shares: Tensor | None = None) -> Tensor:
        """Return the values of prompts that answer together: the mean of each word's probabilities."""
        shares = values.new_ones(len(values)) if shares is None else shares.to(values)
        logs = self._logs(values)
        parts = logs + (shares / shares.sum()).log()[:, None, None, None]
        is_none = parts.isneginf().all(0)
        return parts.masked_fill(is_none, 0.0).logsumexp(0).masked_fill(is_none, -torch.inf).flatten(-2)

    def _logs(self, values: Tensor) -> Tensor:
        """Return log-probabilities `[..., R, O]`, minus infinity where a word was not read."""
        table: Tensor = values.unflatten(-1, (-1, self.answers.head_rows))
        unread = table[..., :1].isneginf()
        return table.masked_fill(unread, 0.0).log_softmax(-1).masked_fill(unread, -torch.inf)

    def _by_word(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return values `[..., R, O]` of each word, zeros where it was not read, and `[..., R]` whether it was."""
        table = values.unflatten(-1, (-1, self.answers.head_rows))
        read = ~table[..., 1].isneginf()  # those of O are there for a word that was cut off
        return table.masked_fill(~read[..., None], 0.0), read

    def _tags(self, golds: Sequence[Gold], read: Tensor) -> Tensor:
        """Return the right tag `[B, R]` of each word; of a span whose first word was not read, the next begins it."""
        found = np.zeros(read.shape[-2:], np.int64)
        known = read.reshape(-1, *found.shape)[0].cpu().numpy()
        for row, gold in enumerate(golds):
            assert isinstance(gold, LabelledSpans)
            found[row, : len(gold.tags)] = gold.tags
            for word in np.flatnonzero((found[row] % 2 == 1) & ~known[row]):
                behind = word + 1
                while behind < len(gold.tags) and found[row, behind] == found[row, word] + 1:
                    if known[row, behind]:
                        found[row, behind] -= 1
                        break
                    behind += 1
        return torch.from_numpy(found).to(read.device)

    def _shares(self, read: Tensor, weights: Tensor | None) -> Tensor:
        """Return the weight `[N]` of each word that was read; those of a text add up to the text's own."""
        each = 1 / read.sum(-1).clamp(min=1)
        each = each if weights is None else each * weights.to(each)
        return each[:, None].expand(read.shape)[read]
