"""An exported folder that answers: texts in, probabilities out."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cuecraft.core.errors import CuecraftWarning, DataError, ExportError, PromptError, named
from cuecraft.core.events import Answered, Event
from cuecraft.data.texts import Texts
from cuecraft.export.runtime.manifest import (
    EXPORT,
    INPUTS,
    PROMPTS,
    TOKENIZER,
    ExportManifest,
    GraphPrompt,
    read_export,
)
from cuecraft.export.runtime.sessions import Feed, RuntimeOptions, Session, open_session
from cuecraft.export.runtime.tokens import FileTokenizer
from cuecraft.task import AnswerSpace, Decision, Example, Task
from cuecraft.task.batches import TokenBudget, token_batches
from cuecraft.task.frame import Frame
from cuecraft.task.rendering import Pieces, Renderer


class RefusingRenderer(Renderer):
    """A renderer that cuts no text."""

    def fitted(self, examples: Sequence[Example]) -> tuple[list[Pieces], list[bool]]:
        """Return the pieces of each example, and that none was cut.

        Raises:
            DataError: a text has no tokens, or more than the graph takes.
        """
        found, is_cut = super().fitted(examples)
        for number, (example, cut) in enumerate(zip(examples, is_cut, strict=True), start=1):
            if cut:
                raise DataError(
                    f"text {number} has {self.text_lengths([example])[0]} tokens, and the graph takes "
                    f"{self.capacity()}; shorten it, or export with {named('truncation')} cut"
                )
        return found, is_cut


@dataclass(frozen=True, eq=False)
class FoldedPrompt:
    """A prompt of a graph, as far as it is known outside of it.

    Args:
        number: which of the graph's prompts it is.
        renderer: its task as the tokenizer writes it.
        frame: what the graph puts around a text by itself.
        entry: what the manifest says of it.
    """

    number: int
    renderer: Renderer
    frame: Frame
    entry: GraphPrompt

    @property
    def length(self) -> int:
        """Positions that it takes in addition to a text's pieces."""
        return self.entry.prompt_length


@dataclass(eq=False)
class ExportedModel:
    """A graph with its prompts: what an engine needs of a backbone, without PyTorch.

    Args:
        folder: where it lies.
        manifest: of the folder.
        session: runs the graph.
        prompts: name -> prompt, in the graph's order.
        budget: of one batch.
    """

    folder: Path
    manifest: ExportManifest
    session: Session
    prompts: Mapping[str, FoldedPrompt]
    budget: TokenBudget = field(default_factory=TokenBudget)
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def load(cls, folder: str | Path, options: RuntimeOptions | None = None) -> ExportedModel:
        """Read an exported folder.

        Raises:
            ExportError: it is damaged, or the runtime that it needs is not there.
        """
        source = Path(folder)
        manifest = read_export(source)
        tokenizer = FileTokenizer(source / TOKENIZER, manifest.tokens)
        kind = RefusingRenderer if manifest.truncation == "refuse" else Renderer
        made_for = manifest.backbone
        prompts = {}
        for number, entry in enumerate(manifest.prompts):
            renderer = kind(tokenizer, entry.task.task(), made_for.head, made_for.max_positions)
            prompts[entry.name] = FoldedPrompt(number, renderer, renderer.frame(), entry)
        return cls(source, manifest, open_session(source, manifest, options or RuntimeOptions()), prompts)

    @property
    def name(self) -> str:
        """The name of the backbone."""
        return self.manifest.backbone.name

    def probabilities(self, texts: Sequence[tuple[int, ...]], asked: Sequence[FoldedPrompt]) -> np.ndarray:
        """Return probabilities `[B, K, C]` of one batch of texts, with each of some prompts.

        Args:
            texts: `[B]` the graph's own ids of each (`Frame.inner`), the same for all of the prompts.
            asked: `[K]` the prompts.

        Raises:
            PromptError: a text is longer than the graph allows.
        """
        limits = [own.entry.max_text_tokens for own in asked if own.entry.max_text_tokens is not None]
        width = max(map(len, texts))
        if limits and width > min(limits):
            raise PromptError(f"a text has {width} tokens, and the graph takes {min(limits)}; shorten it")
        is_one = len(self.prompts) == 1
        feed = feed_of(texts, self.manifest.padding, None if is_one else [own.number for own in asked])
        with self._one_at_a_time:
            found = self.session.run(feed)
        return found[:, None] if is_one else found

    def mixed_logits(self, rows: Sequence[tuple[FoldedPrompt, Pieces]]) -> list[np.ndarray]:
        """Return calibrated log-probabilities `[C]` (float64) of each row: a text with one of the graph's prompts.

        A text that several rows have is read once, for as many of the prompts as a batch takes.

        Raises:
            PromptError: a text is longer than the graph allows.
        """
        asked: dict[tuple[int, ...], dict[int, list[int]]] = {}
        for row, (prompt, pieces) in enumerate(rows):
            asked.setdefault(prompt.frame.inner(pieces), {}).setdefault(prompt.number, []).append(row)
        known = list(self.prompts.values())
        opening = len(known[0].frame.opening)
        # Each branch of a graph is as long as the longest that it holds.
        branch = max(own.entry.constant_ids for own in known) - opening
        most = max(1, self.budget.tokens // max(1, branch))
        alike: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for text, by_number in asked.items():
            numbers = sorted(by_number)
            for start in range(0, len(numbers), most):
                alike.setdefault(tuple(numbers[start : start + most]), []).append(text)
        found: dict[int, np.ndarray] = {}
        for together, texts in alike.items():
            prompts, around = [known[number] for number in together], opening + branch * len(together)
            for batch in token_batches([len(text) + around for text in texts], self.budget):
                shares = self.probabilities([texts[n] for n in batch], prompts).astype(np.float64)
                for n, of_text in zip(batch, shares, strict=True):
                    for prompt, own_shares in zip(prompts, of_text, strict=True):
                        logs = _log_shares(own_shares, prompt.entry.task.answers)
                        found |= dict.fromkeys(asked[texts[n]][prompt.number], logs)
        return [found[row] for row in range(len(rows))]


def feed_of(texts: Sequence[tuple[int, ...]], padding: str, asked: Sequence[int] | None) -> Feed:
    """Return what a graph is given.

    Args:
        texts: `[B]` the graph's own ids of each text.
        padding: the side to pad on, `left` or `right`.
        asked: `[K]` numbers of the prompts to answer with; None for a graph of one prompt.
    """
    ids = np.zeros((len(texts), max(1, *map(len, texts))), np.int64)
    mask = np.zeros_like(ids)
    for row, own in enumerate(texts):
        start = ids.shape[1] - len(own) if padding == "left" else 0
        ids[row, start : start + len(own)] = own
        mask[row, start : start + len(own)] = 1
    feed = dict(zip(INPUTS, (ids, mask), strict=True))
    return feed if asked is None else feed | {PROMPTS: np.array(asked, np.int64)}


def _log_shares(shares: np.ndarray, answers: AnswerSpace) -> np.ndarray:
    own = shares[: answers.size]
    with np.errstate(divide="ignore"):
        found: np.ndarray = np.log(own / own.sum() if answers.adds_up else own)
    return found


class ExportedClassifier:
    """Answers as the `PromptClassifier` that was exported does, without PyTorch.

    Args:
        model: an exported folder that was loaded.
        prompt: which of its prompts answers; None where it holds one.

    Raises:
        ExportError: it holds no such prompt, or several and none was named.
    """

    def __init__(self, model: ExportedModel, prompt: str | None = None) -> None:
        self.model = model
        self._ready = model.prompts[model.manifest.prompt(prompt).name]
        self.task_: Task = self._ready.renderer.task
        self.classes_ = np.array(self._ready.entry.task.answers.classes)

    @classmethod
    def load(
        cls, folder: str | Path, options: RuntimeOptions | None = None, prompt: str | None = None
    ) -> ExportedClassifier:
        """Read an exported folder; raises as `ExportedModel.load`, or where it holds no such prompt."""
        EXPORT.read(Path(folder)).prompt(prompt)  # before the graph is loaded, which takes a while
        return cls(ExportedModel.load(folder, options), prompt)

    def predict_proba(self, texts: Texts, report: Callable[[Event], None] = lambda event: None) -> np.ndarray:
        """Return class probabilities `[N, C]`, columns as in `classes_`; `report` is the progress callback.

        Warns:
            CuecraftWarning: how many texts were cut.

        Raises:
            DataError: a text has no tokens, or is longer than the graph allows and was exported not to be cut.
            TemplateError: a text lacks a field.
            ExportError: the graph gives no numbers.
        """
        return self._probabilities(self.task_.examples(self.task_.records(texts)), report)

    def decide(
        self, examples: Sequence[Example], report: Callable[[Event], None] = lambda event: None
    ) -> list[Decision]:
        """Return the answers `[B]` to texts; warns and raises as `predict_proba`."""
        return self.task_.answers.decide(self._probabilities(examples, report), examples)

    @property
    def task(self) -> Task:
        """Template and answer space."""
        return self.task_

    def _probabilities(self, examples: Sequence[Example], report: Callable[[Event], None]) -> np.ndarray:
        ready, step = self._ready, 1024
        parts: list[np.ndarray] = []
        cut = 0
        for start in range(0, len(examples), step):
            pieces, is_cut = ready.renderer.fitted(examples[start : start + step])
            cut += sum(is_cut)
            parts += self.model.mixed_logits([(ready, own) for own in pieces])
            report(Answered(step=min(start + step, len(examples)), total=len(examples)))
        if cut:
            most = ready.entry.max_text_tokens
            warnings.warn(
                f"{cut} of {len(examples)} texts were cut at the end to fit {most} tokens",
                CuecraftWarning,
                stacklevel=2,
            )
        found: np.ndarray = np.exp(np.stack(parts))
        if not np.isfinite(found).all():
            raise ExportError(f"{self.model.manifest.backbone.name}: the graph gives no numbers; export it in fp32")
        return found

    def truncated(self, texts: Texts) -> np.ndarray:
        """Return for each text `[N]` whether `predict_proba` cuts it at its end to fit."""
        return np.array(self.cuts(self.task_.examples(self.task_.records(texts))), bool)

    def cuts(self, examples: Sequence[Example]) -> list[bool]:
        """Return for each text `[B]` whether it is cut at its end to fit."""
        return list(map(bool, self._ready.renderer.cuts(examples)))

    def predict(self, texts: Texts) -> np.ndarray:
        """Return the likeliest class of each text `[N]`."""
        labels: np.ndarray = self.classes_[self.predict_proba(texts).argmax(1)]
        return labels


def check_where(folder: str | Path, model: str | None, dtype: str) -> None:
    """Raise ExportError where a model or a number type is asked for, which an exported folder has in it."""
    if model is not None:
        raise ExportError(f"{folder}: is exported and has its model in it; leave {named('model')} out")
    if dtype != "auto":
        raise ExportError(
            f"{folder}: is exported, its numbers are what {named('precision')} made them; leave {named('dtype')} out"
        )
