"""One graph of a backbone and one or several prompts: template pieces, label words, calibration; ids to probabilities.

The modules here make the plan of a pass with tensor operations alone, so that it can be traced with any batch size and
length. What they lay out is what `RowTree` and `EncoderBackbone` lay out row by row; the pass itself is the backbone's
own (`run`), so masks, positions, kept keys and values, offsets and what is read are not written twice. With several
prompts a text is read once; what each puts behind it is a branch that sees the text and itself alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cuecraft.artifact import Calibration
from cuecraft.backbone import AnyBackbone, CausalBackbone, MaskedBackbone, ReadyPrompt
from cuecraft.backbone.columns import Columns, feature_columns, levelled, option_columns
from cuecraft.backbone.hosted import known_ids
from cuecraft.backbone.plan import Past, Plan
from cuecraft.core.errors import ExportError
from cuecraft.export.runtime.manifest import PROMPT_NAME
from cuecraft.task import AnswerSpace
from cuecraft.task.fitting import LabelIds, beyond_slot

_NEVER = -1e9  # as a logit; less would not be a number after subtraction


class Folded(torch.nn.Module):
    """A backbone with one prompt folded in: `input_ids` `[B, L]`, `attention_mask` `[B, L]` -> probabilities `[B, C]`.

    The ids are a text's own (`Frame.inner`); everything that is the same for every text is held here.

    Args:
        backbone: the frozen model.
        ready: the prompt and its task.
        calibration: of its logits.
    """

    def __init__(self, backbone: AnyBackbone, ready: ReadyPrompt, calibration: Calibration) -> None:
        super().__init__()
        self.model = backbone.model  # so that its weights are the graph's
        self._backbone: Any = backbone
        self._calibration = calibration
        self._sides = Sides(backbone, ready)
        self._columns = _columns(backbone, ready)
        self._answers = ready.renderer.task.answers

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return class probabilities `[B, C]`."""
        plan = self.plan(known_ids(self._backbone.tokenizer, input_ids), attention_mask.to(torch.bool))
        logits: Tensor = self._backbone.run(plan, self._columns)[0]
        calibrated: Tensor = self._calibration.apply(logits.to(torch.float32))
        return shares(calibrated, self._answers)

    def plan(self, input_ids: Tensor, valid: Tensor) -> Plan:
        """Return the pass of a batch."""
        raise NotImplementedError


def shares(calibrated: Tensor, answers: AnswerSpace) -> Tensor:
    """Return the probabilities `[..., C]` of calibrated logits, as `AnswerSpace.probabilities` does without PyTorch."""
    return calibrated.softmax(-1) if answers.adds_up else calibrated.sigmoid()


def fold(backbone: AnyBackbone, ready: ReadyPrompt, calibration: Calibration) -> Folded:
    """Return one module from ids to probabilities.

    Raises:
        TemplateError: the prompt stands between two fields.
    """
    kind: type[Folded] = FoldedCausal if isinstance(backbone, CausalBackbone) else FoldedEncoder
    with torch.no_grad():
        return kind(backbone, ready, calibration).eval()


def _columns(backbone: AnyBackbone, ready: ReadyPrompt) -> Columns:
    """Return what is read; of label words of one token with their rows alone, so that a graph need not hold others."""
    if ready.head is not None:
        return feature_columns(ready.head)
    options, task = ready.renderer.label_ids, ready.renderer.task
    if beyond_slot(options):  # these may be normalised over the whole vocabulary
        found = option_columns(backbone.model.get_output_embeddings(), options, task.norm or "row")
        return levelled(found, task.answers.level)
    tokens = sorted({token for words in options for (token,) in words})
    places = {token: place for place, token in enumerate(tokens)}
    embedding = backbone.model.get_output_embeddings()
    weight, bias = (None if own is None else own[tokens].clone() for own in (embedding.weight, embedding.bias))
    numbered = tuple(tuple((places[token],) for (token,) in words) for words in options)
    return levelled(option_columns(SimpleNamespace(weight=weight, bias=bias), numbered), task.answers.level)


def _offset_rows(offsets: Tensor, before: int, after: int) -> Tensor:
    """Return offsets `[n_layers, before + S + after, d]` with zeros around them."""
    return functional.pad(offsets, (0, 0, before, after))


class Sides(torch.nn.Module):
    """What stands before and behind a text's own ids, the tuned tokens in one of both.

    Args:
        backbone: the frozen model.
        ready: the prompt; where it has an `opening`, that part of the side is left out.
    """

    def __init__(self, backbone: AnyBackbone, ready: ReadyPrompt) -> None:
        super().__init__()
        frame = ready.renderer.frame()
        sides = [frame.opening, frame.closing]
        own = 0 if frame.is_first else 1
        before, after = sides[own][: frame.at], sides[own][frame.at :]
        if ready.opening is not None:
            before, count = (), 0
        else:
            count = len(ready.vectors)
        codes = [[*side] for side in sides]
        codes[own] = [*before, *[-1] * count, *after]
        self.codes = [torch.tensor(side, dtype=torch.long)[None] for side in codes]
        embedded = [backbone.embed(torch.tensor(side, dtype=torch.long)) for side in sides]
        embedded[own] = torch.cat([embedded[own][: len(before)], ready.vectors, embedded[own][frame.at :]])
        #: `[1, A, d]` and `[1, Z, d]`.
        self.vectors = [side[None].clone() for side in embedded]
        self.is_first, self.start, self.count = frame.is_first, len(before), count
        #: `[n_layers, A, d]` and `[n_layers, Z, d]`; None where nothing is added there.
        self.offsets: list[Tensor | None] = [None, None]
        if ready.offsets is not None and count:
            self.offsets[own] = _offset_rows(ready.offsets, len(before), len(after))

    def around(self, inner: Tensor, sides: list[Tensor]) -> Tensor:
        """Put constants `[1, A, ...]` and `[1, Z, ...]` around what is a text's own `[B, L, ...]`."""
        rows = [side.expand(inner.shape[0], *side.shape[1:]) for side in sides]
        return torch.cat([rows[0], inner, rows[1]], dim=1)


class FoldedCausal(Folded):
    """A causal model: the text between its constant sides, padding anywhere; the answer is read near the end.

    Positions count real tokens and masks leave padding out, so that padding moves nothing.
    """

    def __init__(self, backbone: AnyBackbone, ready: ReadyPrompt, calibration: Calibration) -> None:
        super().__init__(backbone, ready, calibration)
        branches = ready.branches
        self._grown = 0 if branches is None else len(branches.codes)
        if branches is not None:
            words = backbone.embed(branches.codes)[None]
            self._sides.vectors[1] = torch.cat([self._sides.vectors[1], words], dim=1)
            own = self._sides.offsets[1]
            self._sides.offsets[1] = None if own is None else _offset_rows(own, 0, self._grown)
            #: `[G, G]` which branches do not see each other.
            self._apart = ~branches.ancestors
        ends = () if branches is None else branches.ends
        #: What is read, counted from the end: the answer slot, which may be the text's own last token, and ends of
        #: branches.
        self._slots = [1 + self._grown, *(self._grown - end for end in ends)]
        states = ready.opening if ready.opening is not None else ready.states
        #: `[n_layers, 2, n_kv_heads, P, head_dim]`
        self._kept = None if states is None or not states.shape[3] else states

    def plan(self, input_ids: Tensor, valid: Tensor) -> Plan:
        """Return the pass of a batch."""
        sides, kept = self._sides, self._kept
        inputs = sides.around(self._backbone.embed(input_ids), sides.vectors)
        ones = [torch.ones(side.shape[:2], dtype=torch.bool, device=valid.device) for side in sides.vectors]
        past = None
        if kept is not None:
            rows = 1 if self._backbone.shares_context else inputs.shape[0]
            past = Past.of(kept[:, :, None].expand(-1, -1, rows, -1, -1, -1))
        is_moved = any(own is not None for own in sides.offsets)
        return Plan(
            inputs=inputs,
            valid=sides.around(valid, ones),
            pick=lambda hidden: torch.stack([hidden[:, hidden.shape[1] - back] for back in self._slots], dim=1),
            sees=self._ancestors(inputs.shape[1], inputs.device),
            past=past,
            sees_past=self._behind(inputs.shape[1], inputs.device),
            change=self._moved if is_moved else None,
        )

    def _ancestors(self, count: int, device: torch.device) -> Tensor:
        """Return which tokens each sees `[N, N]`."""
        numbers = torch.arange(count, device=device)
        found = numbers[:, None] >= numbers[None, :]
        if not self._grown:
            return found
        room = count - self._grown
        apart = functional.pad(self._apart, (room, 0, room, 0), value=False)
        return found & ~apart

    def _behind(self, count: int, device: torch.device) -> Tensor:
        """Return which tokens stand behind the kept keys and values `[N]`."""
        numbers, sides = torch.arange(count, device=device), self._sides
        if sides.is_first:
            return numbers >= sides.start
        return numbers >= count - sides.vectors[1].shape[1] + sides.start

    def _moved(self, layer: int, hidden: Tensor) -> Tensor:
        parts = [
            hidden.new_zeros(1, side.shape[1], hidden.shape[2]) if own is None else own[layer][None]
            for side, own in zip(self._sides.vectors, self._sides.offsets, strict=True)
        ]
        opening, closing = (part.shape[1] for part in parts)
        stop = hidden.shape[1] - closing
        moved = [hidden[:, :opening] + parts[0], hidden[:, opening:stop], hidden[:, stop:] + parts[1]]
        return torch.cat(moved, dim=1)


class FoldedEncoder(Folded):
    """An encoder: the text, padded on the right, between its constant sides; padding ends up behind all."""

    def __init__(self, backbone: AnyBackbone, ready: ReadyPrompt, calibration: Calibration) -> None:
        super().__init__(backbone, ready, calibration)
        self._states = ready.states
        moved = [own for own in self._sides.offsets if own is not None]
        #: `[n_layers, 1 + A or Z, d]`, the first row zeros; None for nothing.
        self._moves = _offset_rows(moved[0], 1, 0) if moved else None
        self._mask_id = backbone.tokenizer.mask_token_id if isinstance(backbone, MaskedBackbone) else -1

    def plan(self, input_ids: Tensor, valid: Tensor) -> Plan:
        """Return the pass of a batch."""
        sides = self._sides
        opening, closing = (side.shape[1] for side in sides.vectors)
        rows, length = input_ids.shape
        width = opening + length + closing
        own = valid.sum(1, keepdim=True)
        numbers = torch.arange(width, device=input_ids.device)[None]
        # The text's padding is passed over: what stands behind it moves up to its last token.
        at = torch.where(numbers < opening + own, numbers, numbers + length - own).clamp(max=width - 1)
        mask = numbers < opening + own + closing
        places = torch.arange(rows, device=at.device)
        flat = (at + places[:, None] * width).flatten()

        def ordered(inner: Tensor, of_sides: list[Tensor]) -> Tensor:
            """Put a text's own values `[B, L, ...]` and those of opening and closing into the order of the pass."""
            found: Tensor = sides.around(inner, of_sides).flatten(0, 1)[flat].unflatten(0, (rows, width))
            return found

        is_text = [(side >= 0).to(input_ids.device) for side in sides.codes]
        # Texts are tokenised without special tokens, so the mask's id stands in each input once.
        slot = (ordered(input_ids, sides.codes) == self._mask_id).to(torch.int).argmax(1)
        states = self._states
        return Plan(
            inputs=ordered(self._backbone.embed(input_ids), sides.vectors),
            valid=mask,
            pick=lambda hidden: hidden[places, slot][:, None],
            past=None if states is None else Past.of(states[:, :, None].expand(-1, -1, rows, -1, -1, -1)),
            change=self._change(ordered, input_ids),
            text=ordered(torch.ones_like(valid), is_text) & mask,
        )

    def _change(
        self, ordered: Callable[[Tensor, list[Tensor]], Tensor], input_ids: Tensor
    ) -> Callable[[int, Tensor], Tensor] | None:
        """Return what adds a deep cue's offsets at its own positions; None where there are none."""
        moves, sides = self._moves, self._sides
        if moves is None:
            return None
        numbers = [
            torch.zeros_like(side) if own is None else torch.arange(1, 1 + side.shape[1])[None]
            for side, own in zip(sides.codes, sides.offsets, strict=True)
        ]
        rows = ordered(torch.zeros_like(input_ids), numbers)
        return lambda layer, hidden: hidden + moves[layer][rows]


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
        if ready.head is not None or beyond_slot(ready.renderer.label_ids):
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
            self._words = _Words(backbone, [ready.renderer.label_ids for ready, _ in prompts])
            classes = self._words.there.shape[1]
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
        at = start + (torch.arange(prompts.shape[0], device=device) + 1) * self._width - 1
        offsets = self._offsets

        def moved(layer: int, hidden: Tensor) -> Tensor:
            assert offsets is not None
            added = offsets[layer][prompts].flatten(0, 1)[None]
            return torch.cat([hidden[:, :start], hidden[:, start:] + added], dim=1)

        plan = Plan(
            inputs=inputs,
            valid=real,
            pick=lambda hidden: hidden[:, at],
            sees=(numbers[:, None] >= numbers[None]) & own,
            change=None if offsets is None else moved,
        )
        found = self._backbone.run(plan, self._words.columns(prompts))
        logits = found * self._scale[prompts] + self._bias[prompts]
        return torch.where(self._words.there[prompts][:, :, 0], logits, _NEVER).softmax(-1)


class _Words:
    """Label words of one token, of several prompts.

    Args:
        backbone: with an output embedding.
        label_ids: of each prompt.
    """

    def __init__(self, backbone: CausalBackbone, label_ids: Sequence[LabelIds]) -> None:
        classes = max(len(own) for own in label_ids)
        words = max(len(tokens) for own in label_ids for tokens in own)
        ids = torch.zeros(len(label_ids), classes, words, dtype=torch.long)
        #: `[P, C, M]` which words there are.
        self.there = torch.zeros(ids.shape, dtype=torch.bool)
        for number, own in enumerate(label_ids):
            for c, tokens in enumerate(own):
                ids[number, c, : len(tokens)] = torch.tensor([token for (token,) in tokens])
                self.there[number, c, : len(tokens)] = True
        embedding = backbone.model.get_output_embeddings()
        #: `[P, d, C * M]`
        self._weight = embedding.weight[ids].flatten(1, 2).transpose(1, 2).contiguous()
        self._bias = None if embedding.bias is None else embedding.bias[ids].flatten(1, 2)

    def columns(self, prompts: Tensor) -> Columns:
        """Return what gives the class scores `[B, K, C]` of the prompts asked for; very low ones behind a prompt's."""

        def logits(hidden: Tensor) -> tuple[Tensor, None]:
            found: Tensor = (hidden[:, :, None] @ self._weight[prompts][None])[:, :, 0]
            return found if self._bias is None else found + self._bias[prompts][None], None

        def scores(logits: Tensor, kept: None) -> Tensor:
            there = self.there[prompts]
            words = logits.to(torch.promote_types(logits.dtype, torch.float32)).unflatten(2, there.shape[1:])
            return torch.where(there[None], words, _NEVER).logsumexp(-1)

        return Columns(logits, scores)
