"""One graph for several prompts of one causal model: a text is read once, whatever is asked about it.

What each prompt puts behind the text is a branch of its own: it sees the text and itself, and no other prompt. The
graph takes by number which prompts to answer with, and computes the branches of those alone. Each branch is as long
as the longest that the graph holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.backbone import AnyBackbone, CausalBackbone, ReadyPrompt
from cuecraft.backbone.layers import entering
from cuecraft.backbone.readout import Readout
from cuecraft.backbone.rendering import LabelIds
from cuecraft.backbone.vocabulary import known_ids
from cuecraft.errors import ExportError
from cuecraft.export.folding import Sides, placed
from cuecraft.prompts import Calibration
from cuecraft.runtime.manifest import PROMPT_NAME

_NEVER = -1e9  # as a logit; less would not be a number after subtraction


def check_together(backbone: AnyBackbone, prompts: Mapping[str, ReadyPrompt]) -> None:
    """Raise ExportError where prompts cannot be answered with after reading a text once."""
    if not isinstance(backbone, CausalBackbone):
        raise ExportError(
            f"{backbone.name} reads a text with its prompt, so several prompts share nothing; export each alone"
        )
    if backbone.counts_keys:
        raise ExportError(f"{backbone.name} masks by the number of tokens before a token; export each prompt alone")
    first, *others = prompts
    for name in prompts:
        if not PROMPT_NAME.fullmatch(name):
            raise ExportError(
                f"{name[:80]!r} cannot be the name of a prompt; give it one of letters, digits, dot, dash, underscore, "
                "64 at most: NAME=FOLDER"
            )
    frames = {name: ready.renderer.frame() for name, ready in prompts.items()}
    for name, ready in prompts.items():
        if ready.opening is not None or (frames[name].is_first and ready.length):
            raise ExportError(f"prompt {name!r} stands before the text, which is then read with it; export it alone")
        if ready.states is not None:
            raise ExportError(f"prompt {name!r} is a prefix of keys and values; export it alone")
        if ready.head is not None or ready.branches is not None:
            kind = "a class head" if ready.head is not None else "label words of several tokens"
            raise ExportError(f"prompt {name!r} answers by {kind}; several prompts need label words of one token each")
        if not len(ready.vectors) and not frames[name].closing:
            raise ExportError(f"prompt {name!r} has nothing behind the text; export it alone")
    for name in others:
        if (frames[name].opening, frames[name].span) != (frames[first].opening, frames[first].span):
            raise ExportError(
                f"the templates of {first!r} and {name!r} begin otherwise, so that a text is read differently; "
                "export them apart"
            )


class FoldedSeveral(torch.nn.Module):
    """Prompts folded in: `input_ids` `[B, L]`, `attention_mask` `[B, L]`, `prompts` `[K]` -> `[B, K, C]`.

    C is the most classes that a prompt has; behind a prompt's own classes there are zeros.

    Args:
        backbone: the frozen model.
        prompts: each with the calibration of its logits; `check_together` has taken them.
    """

    def __init__(self, backbone: CausalBackbone, prompts: Sequence[tuple[ReadyPrompt, Calibration]]) -> None:
        super().__init__()
        self.model = backbone.model  # so that its weights are the graph's
        self._backbone = backbone
        with torch.no_grad():
            sides = [Sides(backbone, ready) for ready, _ in prompts]
            #: `[1, A, d]`, before every text.
            self._opening = sides[0].vectors[0]
            self._width = max(own.vectors[1].shape[1] for own in sides)
            #: `[P, Z, d]`, what each prompt puts behind it, and which of that is real: a shorter one begins later.
            self._behind = torch.stack([self._late(own.vectors[1][0]) for own in sides])
            self._real = torch.stack([self._late(torch.ones(own.vectors[1].shape[1], 1))[:, 0] > 0 for own in sides])
            self._offsets = self._offset_table(sides)
            self._readout = _SeveralWords(backbone, [ready.renderer.label_ids for ready, _ in prompts])
            classes = self._readout.is_word.shape[1]
            #: `[P, 1]` and `[P, C]`.
            self._scale = torch.tensor([[own.scale] for _, own in prompts])
            self._bias = torch.tensor([[*own.bias, *[0.0] * (classes - len(own.bias))] for _, own in prompts])

    def _late(self, rows: Tensor) -> Tensor:
        """Return rows `[..., z, d]` behind zeros `[..., Z, d]`."""
        return functional.pad(rows, (0, 0, self._width - rows.shape[-2], 0))

    def _offset_table(self, sides: Sequence[Sides]) -> Tensor | None:
        """Return what is added to the hidden states entering each layer `[n_layers, P, Z, d]`; None for nothing."""
        found = [own.offsets[1] for own in sides]
        some = next((own for own in found if own is not None), None)
        if some is None:
            return None
        none = some.new_zeros(some.shape[0], self._width, some.shape[2])
        return torch.stack([none if own is None else self._late(own) for own in found], dim=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, prompts: Tensor) -> Tensor:
        """Return class probabilities `[B, K, C]`."""
        rows, device = input_ids.shape[0], input_ids.device
        behind = self._behind[prompts].flatten(0, 1)[None].expand(rows, -1, -1)
        text = self._backbone.embed(known_ids(self._backbone.tokenizer, input_ids))
        inputs = torch.cat([self._opening.expand(rows, -1, -1), text, behind], dim=1)
        start, count = self._opening.shape[1] + input_ids.shape[1], inputs.shape[1]
        opened = torch.ones(rows, self._opening.shape[1], dtype=torch.bool, device=device)
        closed = self._real[prompts].flatten()[None].expand(rows, -1)
        real = torch.cat([opened, attention_mask.to(torch.bool), closed], dim=1)
        numbers = torch.arange(count, device=device)
        # Of the prompts each token belongs to one, counted from 1; what all see has 0.
        branch = ((numbers - start).div(self._width, rounding_mode="floor") + 1).clamp(min=0)
        own = (branch[None] == 0) | (branch[:, None] == branch[None])
        seen = (numbers[:, None] >= numbers[None]) & own & real[:, None, :]
        allowed, positions = placed(seen)
        at = start + (torch.arange(prompts.shape[0], device=device) + 1) * self._width - 1
        offsets = self._offsets

        def moved(layer: int, hidden: Tensor) -> Tensor:
            assert offsets is not None
            added = offsets[layer][prompts].flatten(0, 1)[None]
            return torch.cat([hidden[:, :start], hidden[:, start:] + added], dim=1)

        reads = self._readout
        reads.prompts = prompts
        layers = self._backbone.layers if offsets is not None else ()
        with reads.picking(lambda hidden: hidden[:, at]) as scores, entering(layers, moved):
            found = self._backbone.attend(inputs, allowed, positions, []).logits
        logits = scores(found) * self._scale[prompts] + self._bias[prompts]
        return torch.where(reads.is_word[prompts][:, :, 0], logits, _NEVER).softmax(-1)


class _SeveralWords(Readout):
    """Class scores of label words of one token, of several prompts.

    Args:
        backbone: with an output embedding.
        label_ids: of each prompt.
    """

    prompts: Tensor

    def __init__(self, backbone: CausalBackbone, label_ids: Sequence[LabelIds]) -> None:
        super().__init__(backbone.model)
        self.beginnings = []
        classes = max(len(own) for own in label_ids)
        words = max(len(tokens) for own in label_ids for tokens in own)
        ids = torch.zeros(len(label_ids), classes, words, dtype=torch.long)
        #: `[P, C, M]` which words there are.
        self.is_word = torch.zeros(ids.shape, dtype=torch.bool)
        for number, own in enumerate(label_ids):
            for c, tokens in enumerate(own):
                ids[number, c, : len(tokens)] = torch.tensor([token for (token,) in tokens])
                self.is_word[number, c, : len(tokens)] = True
        weight, bias = self._head.weight, self._head.bias
        #: `[P, d, C * M]`
        self._weight = weight[ids].flatten(1, 2).transpose(1, 2).contiguous()
        self._bias = None if bias is None else bias[ids].flatten(1, 2)

    def _logits(self, hidden: Tensor) -> tuple[Tensor, None]:
        """Return the words' logits `[B, K, C * M]`, given the hidden states `[B, K, d]`."""
        found: Tensor = (hidden[:, :, None] @ self._weight[self.prompts][None])[:, :, 0]
        return found if self._bias is None else found + self._bias[self.prompts][None], None

    def _scores(self, logits: Tensor, kept: None) -> Tensor:
        """Return class scores `[B, K, C]`; those of classes that a prompt has not are very low."""
        there = self.is_word[self.prompts]
        words = logits.to(torch.promote_types(logits.dtype, torch.float32)).unflatten(2, there.shape[1:])
        return torch.where(there[None], words, _NEVER).logsumexp(-1)
