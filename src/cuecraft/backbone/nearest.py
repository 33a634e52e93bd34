"""Labelled examples in front of a text that are the nearest to it of all that a task holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from cuecraft.backbone.prompt import Prompt
from cuecraft.backbone.query import Context
from cuecraft.core.errors import PromptError
from cuecraft.task import Example, Task
from cuecraft.task.frame import Frame
from cuecraft.task.rendering import HeadKind, Pieces, Renderer

_TOGETHER = 1024  # texts that are embedded together


class _Features(Protocol):
    """What gives the features of texts: a backbone."""

    def renderer(self, task: Task) -> Renderer: ...
    def features(self, context: Context, prompt: Prompt) -> Tensor: ...


class Nearest:
    """Chooses examples by the features with which the backbone would answer without any (Liu et al., 2101.06804).

    Features are those at the answer slot behind the template's own words, which sum a text up (Jiang et al.,
    2307.16645). They are compared by their cosines, after the mean over a task's examples is taken off. Those of the
    examples are kept; of a text nothing is kept.

    Args:
        backbone: gives the features.
        task: with all examples, of which `nearest` stand in front of each text.
    """

    def __init__(self, backbone: _Features, task: Task) -> None:
        self._backbone = backbone
        self._task = task
        self._plain = replace(task, shots=(), nearest=None)
        self._names = task.template.field_names

    def rows(self, examples: Sequence[Example]) -> list[list[int]]:
        """Return the numbers of the examples in front of each text, the nearest last.

        An example that is the text itself is left out, so that a text that is trained on does not see its own label.
        """
        if not examples:
            return []
        center, own = self._pool
        cosines = _unit(self._features(examples) - center) @ own.T
        for row, example in enumerate(examples):
            cosines[row, self._places.get(self._key(example.fields), [])] = -torch.inf
        count = min(self._task.nearest or 0, len(self._task.shots))
        found = cosines.sort(dim=1, descending=True, stable=True)
        pairs = zip(found.values[:, :count].tolist(), found.indices[:, :count].tolist(), strict=True)
        return [[number for cosine, number in zip(*own, strict=True) if cosine != -torch.inf][::-1] for own in pairs]

    @cached_property
    def _pool(self) -> tuple[Tensor, Tensor]:
        """The mean of the examples' features `[d]`, and their features less the mean, at length 1 `[N, d]`."""
        features = self._features([shot.example for shot in self._task.shots])
        center = features.mean(0)
        return center, _unit(features - center)

    @cached_property
    def _places(self) -> dict[tuple[str, ...], list[int]]:
        """The numbers of the examples of each text."""
        found: dict[tuple[str, ...], list[int]] = {}
        for number, shot in enumerate(self._task.shots):
            found.setdefault(self._key(dict(shot.fields)), []).append(number)
        return found

    def _key(self, fields: Any) -> tuple[str, ...]:
        return tuple(fields[name] for name in self._names)

    @torch.no_grad()
    def _features(self, examples: Sequence[Example]) -> Tensor:
        """Return features `[N, d]` of texts without examples in front."""
        renderer = self._backbone.renderer(self._plain)
        words, parts = Prompt(renderer.prompt_ids), []
        for start in range(0, len(examples), _TOGETHER):
            own = tuple(examples[start : start + _TOGETHER])
            # Longer texts are cut here as behind examples, where a warning counts them.
            pieces = tuple(renderer.fitted(own)[0])
            context = Context(pieces, (None,) * len(own), renderer=renderer, examples=own)
            parts.append(self._backbone.features(context, words).float().cpu())
        return torch.cat(parts)


def _unit(vectors: Tensor) -> Tensor:
    """Return vectors `[N, d]` at length 1; zeros stay."""
    return torch.nn.functional.normalize(vectors, dim=1)


class NearestRenderer(Renderer):
    """Renders each example behind the labelled examples nearest to it.

    Every text has the same capacity, whatever stands in front of it: as much as the longest examples leave.

    Args:
        tokenizer, task, head, max_positions, text_tokenizer: as for `Renderer`.
        nearest: chooses the examples.
    """

    def __init__(
        self,
        tokenizer: Any,
        task: Task,
        head: HeadKind,
        max_positions: int | None,
        text_tokenizer: Any,
        nearest: Nearest,
    ) -> None:
        super().__init__(tokenizer, task, head, max_positions, text_tokenizer)
        self._nearest = nearest

    @property
    def shared_ids(self) -> tuple[int, ...]:
        """Nothing: texts begin with examples of their own."""
        return ()

    @property
    def opening_ids(self) -> None:
        """Nothing: texts begin with examples of their own."""
        return

    def frame(self) -> Frame:
        """Refuse: what stands around the fields is not the same for every text.

        Raises:
            PromptError: always.
        """
        raise PromptError(
            "the examples in front of a text are the nearest to it, which only the model itself finds; tune with "
            "choice=seed for a graph or a folder of another library"
        )

    def template_length(self) -> int:
        """Return how many tokens the template and the longest examples take, without texts and prompt."""
        return super().template_length() + self._longest

    @cached_property
    def _longest(self) -> int:
        """Tokens of the longest examples that can stand in front of a text."""
        by_length = sorted(self.task.shots, key=lambda shot: len(self._shot_ids([shot])))
        return len(self._shot_ids(by_length[-(self.task.nearest or 0) :]))

    def fitted(self, examples: Sequence[Example]) -> tuple[list[Pieces], list[bool]]:
        """Return the pieces of each example behind those nearest to it, and whether it was cut; raises as `render`."""
        rendered, cut = super().fitted(examples)
        start, found = len(self._start), []
        for piece, rows in zip(rendered, self._nearest.rows(examples), strict=True):
            front = self._shot_ids([self.task.shots[row] for row in rows])
            answer = piece.answer + len(front) if self.head is HeadKind.MASKED else piece.answer
            found.append(Pieces(piece.before[:start] + front + piece.before[start:], piece.after, answer))
        return found, cut
