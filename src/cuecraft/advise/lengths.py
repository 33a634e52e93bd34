"""How long the texts are, in the backbone's tokens, and how many would be cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cuecraft.backbone import AnyBackbone, HeadKind
from cuecraft.backbone.rendering import Renderer
from cuecraft.data import Record, subsample
from cuecraft.errors import LabelWordError
from cuecraft.task import Task

ROWS = 10_000  # texts that are counted at most: a share of one in a hundred is then known to a fifth of itself


@dataclass(frozen=True)
class Lengths:
    """Lengths of the texts, in tokens of the backbone.

    Args:
        rows: texts that were counted, drawn at random where there are many.
        mean: after cutting.
        median: before cutting, as are the next two.
        p95: the length that one text in twenty exceeds.
        longest: of all that were counted.
        limit: tokens of one input: the backbone's positions, or `--max-tokens` where that is less; None for no limit.
        room: tokens of text that fit next to the template and what is kept for the prompt; None for no limit.
        cut: texts that are longer than that.
        fixed: tokens of the template, its prompt included.
        cue: tokens of that prompt, at least one.
    """

    rows: int
    mean: float
    median: float
    p95: float
    longest: int
    limit: int | None
    room: int | None
    cut: int
    fixed: int
    cue: int

    @property
    def cut_share(self) -> float:
        """The share of the texts that would lose their end."""
        return self.cut / self.rows

    @property
    def input_tokens(self) -> float:
        """Mean tokens of one input, template included."""
        return self.mean + self.fixed


def measure_lengths(backbone: AnyBackbone, task: Task, records: Sequence[Record], seed: int = 0) -> Lengths:
    """Tokenise the texts as a run would.

    Raises:
        TemplateError, PromptError: the template does not fit the fields, or leaves no space for text.
    """
    renderer = _renderer(backbone, task)
    chosen = subsample(records, ROWS, seed)
    lengths = np.array(renderer.text_lengths(renderer.task.examples([Record(r.fields) for r in chosen])))
    room = renderer.room()
    kept = lengths if room is None else np.minimum(lengths, room)
    return Lengths(
        rows=len(lengths),
        mean=float(kept.mean()),
        median=float(np.median(lengths)),
        p95=float(np.quantile(lengths, 0.95)),
        longest=int(lengths.max()),
        limit=renderer.max_tokens,
        room=room,
        cut=int((lengths > kept).sum()),
        fixed=renderer.template_length() + len(renderer.prompt_ids),
        cue=max(1, len(renderer.prompt_ids)),
    )


def _renderer(backbone: AnyBackbone, task: Task) -> Renderer:
    """Return the task's renderer; where its label words cannot be scored, one that needs none."""
    try:
        return backbone.renderer(task)
    except LabelWordError:
        bare = replace(task.template, source=task.template.source.replace("{mask}", ""))
        plain = Task(bare, task.verbalizer, task.max_tokens, task.reserve)
        return Renderer(backbone.tokenizer, plain, HeadKind.SEQUENCE, backbone.max_positions, backbone.text_tokenizer)
