"""The main interface: scikit-learn estimators whose model is frozen and whose prompt is tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from cuecraft.api.base import PromptEstimator
from cuecraft.api.given import Answers
from cuecraft.artifact import Artifact
from cuecraft.backbone import AnyBackbone, load_backbone
from cuecraft.backbone.hooks import training
from cuecraft.core.checkpoints import Keeping
from cuecraft.core.deadline import Deadline
from cuecraft.core.errors import ArtifactError, DataError, MethodError
from cuecraft.core.events import Event
from cuecraft.core.options import check_arguments, make_options
from cuecraft.data import subsample
from cuecraft.data.labels import label_name, python_value
from cuecraft.data.texts import Labels, Texts, as_labels, as_records, example_weights
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.prepare import heeding, label_free_problem, label_free_task
from cuecraft.methods.search.label_free import LabelFreeSearch, class_shares
from cuecraft.task.answers import AnswerColumns, asked_answers
from cuecraft.task.answers.asked import Asked
from cuecraft.task.answers.ordinal import Ordinal, number_of


class PromptClassifier(PromptEstimator, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    r"""Text classifier over a frozen language model, tuned through its prompt alone.

    Args:
        model: ``demo:smollm2-135m``, a folder, GGUF file, Hub name, pair `(model, tokenizer)` or a backbone.
        method: a name in `cuecraft.methods.METHODS`, such as ``auto``, which chooses by itself, ``zero-shot``,
            ``deep-cue``, ``autoprompt`` or ``lora``.
        answers: what counts as an answer: a kind in `cuecraft.task.answers.ANSWERS`, such as ``multilabel``, a kind
            with its options, ``{"kind": "ordinal", ...}``, or an `AnswerSpace`; None for what texts and answers show,
            which are labels unless texts bring ``choices`` or answers are lists.
        template: for instance ``"Review: {text}{prompt:\nSentiment:}{mask}"``; None for a general one.
        chat: True for the tokenizer's chat template, or turns, ``{"system": ..., "user": "{text}", "assistant":
            "{prompt:It is}{mask}"}``; False for none; None for none, unless `auto` finds it clearly better.
        label_words: class -> word or words, or a list, array or Series of these in the order of ``classes_``, for
            estimators that number the classes (`StackingClassifier`); None for the classes' own names; ``"auto"`` to
            search them first (`methods.search.label_words.LabelWordSearch`); where nothing is better, names stay.
        method_options: values for the method's options, ``{"epochs": 10}``.
        validation_fraction: part of the training examples held out to choose by, where `fit` gets no dev set.
        max_tokens: tokens of one input at most; None for what the model has positions for.
        time_limit: seconds of `fit` without loading the model; None for no limit. A run that hits it may not repeat.
        seed: of everything random.
        head: ``causal``, ``masked`` or ``sequence``; None for what the checkpoint has.
        device: a torch device, or ``auto``.
        local_files_only: never ask the Hub for a model.
        dtype: of the model's weights, or ``auto``: by the device.

    After `fit`: ``classes_``; ``prompt_`` (the prompt); ``trace_`` (events); ``outcome_``; ``task_``; ``artifact_``;
    ``padding_`` (share of padding, 0 to 1, in the batches that read the training texts).
    """

    @training()
    def fit_unlabeled(
        self,
        texts: Texts,
        classes: Sequence[Any] | None = None,
        prior: Mapping[Any, float] | Sequence[float] | None = None,
        report: Callable[[Event], None] = lambda event: None,
        stop: Callable[[], bool] = lambda: False,
        then: int = 0,
    ) -> Self:
        """Choose a prompt by texts without labels, among cues that come with the package.

        `method` plays no part; `method_options` are those of `cuecraft.methods.search.label_free.LabelFreeSearch`.

        Args:
            texts: `[N]` strings, or mappings from field to string; `max_texts` of them are drawn.
            classes: in the order of `classes_`; None for those of `label_words`.
            prior: each class's share, by class or in their order; None for equal shares.
            report: progress callback, called with each step; never affects the result.
            stop: whether to stop, by StoppedError.
            then: texts that `scores` is to answer afterwards within the same time limit, which leaves time for them.

        Raises:
            CuecraftError: anything about texts, classes, shares, template, label words, options or model that cannot be
                used.
        """
        check_arguments(self.get_params(deep=False))
        if self._searches_words:
            raise MethodError("label words are searched with labels; without any, give label_words={class: word}")
        kind = Asked.of(self.answers, AnswerColumns(), list).kind
        if kind != "labels":
            raise MethodError(f"without labels there are classes alone to choose among, not answers of kind {kind}")
        words_given = self.label_words if isinstance(self.label_words, Mapping) else ()
        given = list(words_given) if classes is None else as_labels(classes, "classes")
        names = [label_name(f"class {number}", name) for number, name in enumerate(given, start=1)]
        options = dict(self.method_options or {})
        if prior is not None:
            options["prior"] = class_shares(prior, names)
        search = make_options(LabelFreeSearch, options)
        records = subsample(as_records(texts, fields=self._fields()), search.max_texts, self.seed)
        words = self._given_words(names)
        backbone = load_backbone(self.model, self.head, self.device, self.local_files_only, self.dtype)
        task = label_free_task(backbone, records, names, self.template, words, self.max_tokens, chat=self.chat)
        longest = max(map(len, search.pool(task, backbone.tokenizer, self.seed)))
        task = replace(task, reserve=max(task.reserve, longest))
        deadline = Deadline(self.time_limit)
        problem = label_free_problem(
            backbone, task, records, seed=self.seed, deadline=deadline, then=then, report=report
        )
        outcome = search.fit(heeding(problem, stop))
        deadline.keep_back(0.0)
        values = (python_value(value) for value in given)
        own = {name: name if isinstance(value, str) else value for name, value in zip(names, values, strict=True)}
        return self._keep(problem, outcome, make_artifact(problem, outcome, search, own), deadline)


class PromptRegressor(PromptEstimator, RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Numbers of texts, in a range, by a frozen language model whose prompt alone is tuned.

    The model answers with ordered label words, each a number, and the answer is the expected number. Numbers between
    two of these words are right by both. Of more than twelve different numbers, words stand for the least one, the
    quartiles and the greatest one of the training numbers; so answers lie in their range.

    Args as of `PromptClassifier`, but for `answers`: options of `cuecraft.task.answers.ordinal.OrdinalOptions`, such as
    ``{"values": {"bad": 1, "good": 5}}``, ``{"range": (0, 10)}`` or ``{"coverage": 0.9}``; or an `Ordinal`.
    """

    def fit(
        self,
        texts: Texts,
        labels: Labels,
        dev: tuple[Texts, Labels] | None = None,
        report: Callable[[Event], None] = lambda event: None,
        checkpoints: str | Path | Keeping | None = None,
        sample_weight: Any = None,
        then: int = 0,
    ) -> Self:
        """Find the prompt; arguments and errors as for `PromptClassifier.fit`, where `labels` are `[N]` numbers."""
        held_out = None if dev is None else (dev[0], numbers_in(dev[1], "dev's numbers"))
        return super().fit(texts, numbers_in(labels), held_out, report, checkpoints, sample_weight, then)

    def predict(self, texts: Texts) -> np.ndarray:
        """Return the expected number of each text `[N]`, float64."""
        return np.array([own.value for own in self.decide(texts)], dtype=np.float64)

    def predict_interval(self, texts: Texts) -> np.ndarray:
        """Return the least and the greatest number that each text's may be `[N, 2]`; see `Ordinal` for its coverage."""
        return np.array([own.interval for own in self.decide(texts)], dtype=np.float64)

    def score(self, texts: Texts, labels: Labels, sample_weight: Any = None) -> float:
        """Return the coefficient of determination R² of the expected numbers (scikit-learn).

        Args:
            texts: `[N]`.
            labels: `[N]` numbers, which may lie outside of the range.
            sample_weight: `[N]` weight of each text; None for equal ones.
        """
        from sklearn.metrics import r2_score

        truth, found = numbers_in(labels), self.predict(texts)
        if len(truth) != len(found):
            raise DataError(f"{len(found)} texts but {len(truth)} numbers; give one number for each text")
        return float(r2_score(truth, found, sample_weight=example_weights(sample_weight, len(truth))))

    @classmethod
    def of(cls, artifact: Artifact, backbone: AnyBackbone, model: Any = None) -> Self:
        """Return an estimator that answers with an artifact of numbers; arguments as for `PromptClassifier.of`.

        Raises:
            ArtifactError: its answers are no numbers, or another backbone than it was made for.
        """
        if not isinstance(artifact.task.answers, Ordinal):
            raise ArtifactError(
                f"the artifact's answers are of kind {artifact.task.answers.kind}, not numbers; load it with "
                "PromptClassifier"
            )
        return super().of(artifact, backbone, model)

    def _answers(self) -> Answers:
        given = {} if self.answers in (None, Ordinal.kind) else self.answers
        asked = asked_answers({"kind": Ordinal.kind, **given}) if isinstance(given, Mapping) else given
        if getattr(asked, "kind", None) != Ordinal.kind:
            shown = " ".join(repr(given).split())[:60]
            raise MethodError(f"answers is {shown}; a regressor takes options of ordinal answers, or none")
        return asked


def numbers_in(labels: Labels, what: str = "numbers") -> list[float]:
    """Return numbers one after another, whatever holds them.

    Raises:
        DataError: one is missing, or no finite number; or they are a table of several columns.
    """
    return [number_of(f"row {row}", value) for row, value in enumerate(as_labels(labels, what), start=1)]
