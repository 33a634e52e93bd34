"""What a file of texts shows without a model: labels, balance, duplicates, contradictions, lengths. No torch here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cuecraft.backbone import AnyBackbone
from cuecraft.core.errors import DataError, LabelWordError, named
from cuecraft.data import Record, subsample
from cuecraft.task import Task
from cuecraft.task.rendering import HeadKind, Renderer

ROWS = 10_000  # texts that are counted at most: a share of one in a hundred is then known to a fifth of itself


@dataclass(frozen=True)
class Contradiction:
    """A text that stands under several labels.

    Args:
        rows: their numbers, from 1.
        labels: how often each label was given to it.
    """

    rows: tuple[int, ...]
    labels: Mapping[str, int]


@dataclass(frozen=True)
class Survey:
    """What the rows show.

    Args:
        rows: how many there are.
        classes: labelled rows of each class, in the classes' order; a class may have none.
        duplicates: rows whose text stood in an earlier row already, whatever their label.
        contradictions: texts that stand under several labels.
    """

    rows: int
    classes: Mapping[str, int]
    duplicates: int
    contradictions: tuple[Contradiction, ...]

    @property
    def labelled(self) -> int:
        """Rows with a label."""
        return sum(self.classes.values())

    @property
    def unlabelled(self) -> int:
        """Rows without a label."""
        return self.rows - self.labelled

    @property
    def majority(self) -> float | None:
        """The share of the largest class among the labelled rows: the accuracy of always naming it; None of none."""
        return max(self.classes.values()) / self.labelled if self.labelled else None

    @property
    def labels_per_class(self) -> float:
        """Labels of each class, as their harmonic mean.

        A score that weighs classes alike has a variance that goes with the mean of 1 / n over the classes, so this is
        the size that classes of one size would need to be as well off. A class without labels makes it 0.
        """
        if not all(self.classes.values()):
            return 0.0
        return len(self.classes) / sum(1 / count for count in self.classes.values())

    @property
    def ceiling(self) -> float:
        """The highest accuracy on the labelled rows, given that one text gets one answer."""
        lost = sum(sum(found.labels.values()) - max(found.labels.values()) for found in self.contradictions)
        return 1 - lost / self.labelled if self.labelled else 1.0


def survey(records: Sequence[Record], classes: Sequence[str] | None = None) -> Survey:
    """Count what the records show. Texts are alike where they differ in case and white space only.

    Args:
        records: with labels or without.
        classes: their order; None for the labels found, sorted.

    Raises:
        DataError: a label is none of the classes, or fewer than two classes are known.
    """
    found = Counter(record.label for record in records if record.label is not None)
    names = list(classes) if classes is not None else sorted(found)
    _check_classes(records, names, named=classes is not None)
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, record in enumerate(records):
        places[tuple(" ".join(text.split()).casefold() for text in record.fields.values())].append(row)
    contradictions = []
    for rows in places.values():
        labels = Counter(label for row in rows if (label := records[row].label) is not None)
        if len(labels) > 1:
            own = tuple(row + 1 for row in rows if records[row].label is not None)
            contradictions.append(Contradiction(own, dict(labels)))
    return Survey(
        len(records), {name: found[name] for name in names}, len(records) - len(places), tuple(contradictions)
    )


_CLASSES = named("task.classes")
_NAME_THEM = f"name their column ({named('data.label_column')}), or them ({_CLASSES} a,b)"


def _check_classes(records: Sequence[Record], names: Sequence[str], named: bool) -> None:
    for row, record in enumerate(records, start=1):
        if record.label is not None and record.label not in names:
            raise DataError(
                f"row {row}: label {record.label!r} is not one of the classes ({', '.join(names)}); "
                f"fix the label or name it in {_CLASSES}"
            )
    if len(set(names)) < 2:
        have = f"only one class ({names[0]})" if names else "no row has a label, so the classes are not known"
        how = "name at least two" if named or names else _NAME_THEM
        raise DataError(f"{have}; {how}")


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
        capacity: tokens of text that fit next to the template and what is kept for the prompt; None for no limit.
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
    capacity: int | None
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
    capacity = renderer.capacity()
    kept = lengths if capacity is None else np.minimum(lengths, capacity)
    return Lengths(
        rows=len(lengths),
        mean=float(kept.mean()),
        median=float(np.median(lengths)),
        p95=float(np.quantile(lengths, 0.95)),
        longest=int(lengths.max()),
        limit=renderer.max_tokens,
        capacity=capacity,
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
