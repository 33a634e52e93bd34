"""Detectors: classifiers that score how likely a text is an attack, a tuned prompt or any other, over windows of it.

Windows of a long text overlap, so that an attack in the middle is read whole by one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from cuecraft.core.errors import BackboneError, GuardError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


import re

Answers = Callable[[Sequence[str]], "ArrayLike"]  # texts `[N]` in, class probabilities `[N, C]` out

# Parts of class names that mean an attack, and ones that mean none though they hold the former.
_ATTACKS = ("attack", "injection", "jailbreak", "malicious", "unsafe", "harmful")
_NOT_ATTACKS = ("no", "non", "not", "without")
_LONGEST = 512  # tokens that are read at once; a window has about 250 of English, thousands of Chinese
_ANY_LENGTH = 100_000  # what a tokenizer says that knows no limit is far above this
WORDS = 160  # of a window; about 250 tokens of English, which the smallest classifiers still take whole
OVERLAP = 32  # words that a window shares with the next
MOST = 64  # windows of one text; a longer text has wider ones
_WORD = re.compile(r"\S{1,24}")  # a longer run, as in scripts without spaces, counts as several words


class Detector(Protocol):
    """What a guard asks of a detector."""

    @property
    def name(self) -> str:
        """What it is called in what is reported."""
        ...

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Return the probability, 0 to 1, that each text is an attack."""
        ...


def attack_classes(classes: Sequence[str], named: Sequence[str] = (), source: str = "classes") -> tuple[str, ...]:
    """Return which classes mean an attack.

    Args:
        classes: `[C]` all of them.
        named: those that the user says; none to find them by their names, such as INJECTION, JAILBREAK or MALICIOUS.
        source: what has the classes, for errors.

    Raises:
        GuardError: a class is named that is not there, or none, or all of several, are found by their names.
    """
    unknown = [name for name in named if name not in classes]
    if unknown:
        raise GuardError(f"{source}: no class {unknown[0]!r}; the classes are {', '.join(classes)}")
    found = tuple(named) or tuple(name for name in classes if _means_attack(name))
    if not found or (not named and len(found) == len(classes) > 1):
        raise GuardError(
            f"{source}: which of {', '.join(classes)} mean an attack is not clear from their names; say which do"
        )
    return found


def only_field(fields: Sequence[str], source: str) -> str:
    """Return the field of a prompt that is a detector, or raise GuardError where it takes several."""
    if len(fields) > 1:
        raise GuardError(f"{source}: its prompt takes the fields {', '.join(fields)}; a detector takes one text")
    return fields[0]


def _means_attack(name: str) -> bool:
    words = name.lower().replace("-", " ").replace("_", " ").split()
    return any(attack in name.lower() for attack in _ATTACKS) and not set(words) & set(_NOT_ATTACKS)


class PromptDetector:
    """A detector that is a tuned prompt, or anything else that answers with class probabilities.

    Args:
        name: what it is called in what is reported.
        answers: takes texts `[N]`, returns class probabilities `[N, C]`.
        classes: `[C]` in the order of the answers.
        attack: the classes that mean an attack; their probabilities are added.

    Raises:
        GuardError: as `attack_classes`.
    """

    def __init__(self, name: str, answers: Answers, classes: Sequence[str], attack: Sequence[str] = ()) -> None:
        self.name = name
        self._answers = answers
        self._columns = [list(classes).index(label) for label in attack_classes(classes, attack, name)]

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Return the probability, 0 to 1, that each text is an attack."""
        import numpy as np

        if not texts:
            return []
        found = np.asarray(self._answers(texts), dtype=np.float64)[:, self._columns].sum(axis=1)
        return [float(value) for value in found.clip(0.0, 1.0)]


class HubDetector:
    """A sequence classifier of the Hugging Face Hub or in a local folder, such as Prompt Guard.

    Weights are read from safetensors only, and no code of the model's repository is run.

    Args:
        model: a Hub name or a folder.
        attack: the labels that mean an attack; none to find them by their names.
        device: a torch device, or ``auto``: a GPU if there is one.
        local_files_only: never ask the Hub.
        batch_size: texts, or windows of tokens, that are read at once.

    Raises:
        GuardError: it cannot be loaded, or as `attack_classes`.
        BackboneError: the device cannot be used.
    """

    def __init__(
        self,
        model: str,
        attack: Sequence[str] = (),
        device: str = "auto",
        local_files_only: bool = False,
        batch_size: int = 16,
    ) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from cuecraft.backbone.checkpoint import explained
        from cuecraft.backbone.hosted import within_vocabulary
        from cuecraft.backbone.load import device_named

        self.name = model
        self._device = device_named(device)
        self._batch_size = batch_size
        options = {"local_files_only": local_files_only, "trust_remote_code": False}
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model, **options)
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(model, use_safetensors=True, **options)
        except Exception as error:  # transformers raises many unrelated types for what cannot be found or read
            raise GuardError(f"detector {model}: {explained(error)}") from error
        try:
            padding = (self._tokenizer.pad_token_id,)
            self._tokenizer = within_vocabulary(self._tokenizer, loaded, f"detector {model}", padding)
        except BackboneError as error:
            raise GuardError(str(error)) from error
        if self._tokenizer.pad_token is None:
            raise GuardError(f"detector {model}: its tokenizer has no padding token; give it one and save it again")
        loaded.config.pad_token_id = self._tokenizer.pad_token_id  # causal models find a text's last token by it
        if not self._tokenizer.is_fast:
            raise GuardError(f"detector {model}: its tokenizer cannot make windows; save it with a tokenizer.json")
        self._model = loaded.to(self._device).eval()
        labels = [str(loaded.config.id2label[number]) for number in range(loaded.config.num_labels)]
        self._columns = [labels.index(label) for label in attack_classes(labels, attack, f"detector {model}")]
        self._is_sigmoid = loaded.config.problem_type == "multi_label_classification"
        limit = self._tokenizer.model_max_length
        # Position tables of RoBERTa and similar models are two longer than the texts that they take.
        places = getattr(loaded.config, "max_position_embeddings", _LONGEST + 2) - 2
        self._longest = min(_LONGEST, limit if limit < _ANY_LENGTH else places)

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Return the probability, 0 to 1, that each text is an attack; the classes that mean one are added.

        A text of more tokens than the model takes is read in overlapping windows, and has the greatest of their scores.
        Where the model's classes do not exclude each other, it is the greatest of their probabilities.
        """
        import torch

        if not texts:
            return []
        encoded = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self._longest,
            stride=self._longest // 8,
            return_overflowing_tokens=True,
        )
        owners = encoded.pop("overflow_to_sample_mapping")
        order = sorted(range(len(owners)), key=lambda row: len(encoded["input_ids"][row]))  # less padding
        found = [0.0] * len(texts)
        for begin in range(0, len(order), self._batch_size):
            rows = order[begin : begin + self._batch_size]
            windows = {key: [values[row] for row in rows] for key, values in encoded.items()}
            batch = self._tokenizer.pad(windows, return_tensors="pt").to(self._device)
            with torch.inference_mode():
                logits = self._model(**batch).logits.float()
            for row, score in zip(rows, self._scored(logits), strict=True):
                found[owners[row]] = max(found[owners[row]], score)
        return found

    def _scored(self, logits: Any) -> list[float]:
        """Return the scores `[N]` of logits `[N, C]`."""
        if self._is_sigmoid:
            return [float(score) for score in logits.sigmoid()[:, self._columns].amax(1)]
        return [min(1.0, float(score)) for score in logits.softmax(-1)[:, self._columns].sum(1)]


def windows(text: str, words: int = WORDS, overlap: int = OVERLAP, most: int = MOST) -> list[str]:
    """Return the windows of a text, in order; every word is in one, and a text without words has none.

    Args:
        text: the whole.
        words: of a window; more where `most` windows would not do.
        overlap: words that a window shares with the next; fewer than `words`.
        most: windows at most.
    """
    places = [match.span() for match in _WORD.finditer(text)]
    if len(places) <= words:
        return [text] if places else []
    step = max(words - overlap, -(-(len(places) - overlap) // most))
    starts = range(0, len(places) - overlap, step)
    return [text[places[start][0] : places[min(start + step + overlap, len(places)) - 1][1]] for start in starts]
