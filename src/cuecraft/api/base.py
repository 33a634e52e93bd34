"""What scikit-learn estimators over a frozen model have in common: fitting, answering, files and pickles."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from sklearn.exceptions import NotFittedError

from cuecraft.api.given import Answers, Given
from cuecraft.api.scored import ScoredClassifier
from cuecraft.artifact import Artifact, Prompt, load_artifact
from cuecraft.artifact.artifact import as_folder, folder_files, loading_of
from cuecraft.artifact.predictor import Predictor, with_backbone
from cuecraft.backbone import AnyBackbone, load_backbone
from cuecraft.backbone.base import Backbone
from cuecraft.backbone.hooks import training
from cuecraft.backbone.weights import TunedWeights
from cuecraft.core.checkpoints import Keeping
from cuecraft.core.deadline import Deadline
from cuecraft.core.errors import MethodError
from cuecraft.core.events import Event
from cuecraft.core.options import check_arguments
from cuecraft.data import Record
from cuecraft.data.labels import words_by_name
from cuecraft.data.texts import (
    Labels,
    Texts,
    as_label_words,
    repeated,
    weighed,
)
from cuecraft.methods import make_method
from cuecraft.methods.auto import Auto
from cuecraft.methods.fit import answering_model, decided_answers, make_artifact
from cuecraft.methods.prepare import (
    given_words,
    make_problem,
    make_task,
    run_key,
    with_checkpoints,
)
from cuecraft.methods.problem import Method, Outcome, Problem
from cuecraft.methods.search.label_words import LabelWordSearch, with_label_words
from cuecraft.task.answers.asked import Asked
from cuecraft.task.answers.words import WordChoice, Words, default_word, distinct_words
from cuecraft.task.chat import asked_fields


class PromptEstimator(ScoredClassifier):
    """An estimator over a frozen language model, tuned through its prompt alone; arguments as of `PromptClassifier`.

    A class of it derives from scikit-learn's `BaseEstimator` and a mixin too, behind this one.
    """

    get_params: Callable[..., dict[str, Any]]  # of BaseEstimator
    set_params: Callable[..., Any]

    def __init__(
        self,
        model: Any = "demo:smollm2-135m",
        method: str = "auto",
        *,
        answers: Answers | None = None,
        template: str | None = None,
        chat: bool | Mapping[str, str] | None = None,
        label_words: Mapping[Any, str | Sequence[str]] | Sequence[str | Sequence[str]] | Literal["auto"] | None = None,
        method_options: Mapping[str, Any] | None = None,
        validation_fraction: float = 0.25,
        max_tokens: int | None = None,
        time_limit: float | None = None,
        seed: int = 0,
        head: str | None = None,
        device: str = "auto",
        local_files_only: bool = False,
        dtype: str = "auto",
    ) -> None:
        self.model = model
        self.method = method
        self.answers = answers
        self.template = template
        self.chat = chat
        self.label_words = label_words
        self.method_options = method_options
        self.validation_fraction = validation_fraction
        self.max_tokens = max_tokens
        self.time_limit = time_limit
        self.seed = seed
        self.head = head
        self.device = device
        self.local_files_only = local_files_only
        self.dtype = dtype

    @training()
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
        """Find the prompt.

        Args:
            texts: `[N]` strings or mappings from field to string, a DataFrame, or an Arrow array or table.
            labels: `[N]` classes: strings, truth values or whole numbers, in any container of one column. Strings lose
                their outer spaces. Of other kinds of answers what `Record.label` has: lists of labels or an indicator
                matrix, numbers, places of choices, spans.
            dev: texts and labels to choose and stop by.
            report: progress callback, called with each step; never affects the result.
            checkpoints: a folder for the state of search and training; the same call goes on from what it finds there,
                and ends with the same bits as one that was not interrupted. Or a `Keeping`, which also says how often.
            sample_weight: `[N]` weight of each text in the training loss, 0 or more; only their ratios count, and
                texts of weight 0 are left out. Methods that train on no loss (`zero-shot`, `in-context`, `auto`)
                take whole numbers, as so many copies of a row.
            then: texts that `scores` is to answer afterwards within the same time limit, which leaves time for them.

        Raises:
            CuecraftError: anything about data, template, label words, method or model that cannot be used.
            StoppedError: `Keeping.stop` asked for it; the state is kept.
        """
        check_arguments(self.get_params(deep=False))
        method = make_method(self.method, self.method_options)
        given = Given.of(texts, labels, self._answers(), self._fields())
        given = replace(given, records=self._weighed(given, sample_weight, method))
        held_out = given.held_out(dev, self._fields())
        return self._tuned(method, given, held_out, report, checkpoints, then)

    @training()
    def fit_records(
        self,
        records: Sequence[Record],
        dev: Sequence[Record] | None,
        asked: Asked,
        report: Callable[[Event], None] = lambda event: None,
        checkpoints: str | Path | Keeping | None = None,
        then: int = 0,
    ) -> Self:
        """Find the prompt for records that were read of files; arguments and errors as for `fit`.

        Args:
            records: the training examples.
            dev: examples to choose and stop by.
            asked: what is asked of their answers, by which they were read.
            report: as for `fit`.
            checkpoints: as for `fit`.
            then: as for `fit`.
        """
        check_arguments(self.get_params(deep=False))
        method = make_method(self.method, self.method_options)
        return self._tuned(method, Given.read(list(records), asked), dev, report, checkpoints, then)

    def _tuned(
        self,
        method: Method,
        given: Given,
        held_out: Sequence[Record] | None,
        report: Callable[[Event], None],
        checkpoints: str | Path | Keeping | None,
        then: int,
    ) -> Self:
        train, classes, words = given.records, given.classes, self._words(given, method)
        known = given.asked.known(train, held_out)
        head = given.asked.head(self.head)
        backbone = load_backbone(self.model, head, self.device, self.local_files_only, self.dtype)
        longest = method.longest_prompt()
        task = make_task(backbone, known, self.template, words, self.max_tokens, given.answers, longest, self.chat)
        deadline = Deadline(self.time_limit)  # reading counts
        asked: dict[str, Any] = {"seed": self.seed, "validation_fraction": self.validation_fraction}
        asked |= {"deadline": deadline, "then": then, "report": report, "reading": method.reading_limit()}
        problem = make_problem(backbone, task, train, held_out, **asked)
        if isinstance(method, Auto):  # it searches words in each fold, by its training part
            method = method.asked(self._searches_words, self.chat)
        elif self._searches_words:
            with problem.in_time():  # else the current words stay
                problem = with_label_words(problem, LabelWordSearch().search(problem).words)
        if checkpoints is not None:
            problem = with_checkpoints(problem, Keeping.of(checkpoints), run_key(problem, method))
        outcome = method.fit(problem)
        deadline.keep_back(0.0)
        self._keep(problem, outcome, make_artifact(problem, outcome, method, classes), deadline)
        self._answers_matrix = given.is_matrix
        return self

    def _weighed(self, given: Given, sample_weight: Any, method: Method) -> list[Record]:
        """Return the training examples with their weights."""
        if not method.weighs_examples:
            return repeated(given.records, sample_weight, method.name)
        records = weighed(given.records, sample_weight)
        if self._searches_words and any(record.weight is not None for record in records):
            raise MethodError("label_words='auto' searches words without sample_weight; give words or no weights")
        return records

    def _words(self, given: Given, method: Method) -> Words:
        """Return the label words that are given, checked before the model is loaded."""
        if given.classes is not None:
            words = self._given_words(list(given.classes))
            return distinct_words(list(given.classes)) if words is None and method.has_own_head else words
        if self._searches_words:
            given.check_is_labels("label_words='auto'")
        found: Words = words_by_name(self.label_words) if isinstance(self.label_words, Mapping) else None
        if found is None and self.label_words is not None:
            found = partial(as_label_words, self.label_words)
        given.asked.space(given.records, distinct_words if found is None else found)
        return distinct_words if found is None and method.has_own_head else found

    def _answers(self) -> Answers | None:
        """Return what is asked of the answers; None for what texts and answers show."""
        return self.answers

    @property
    def _searches_words(self) -> bool:
        return isinstance(self.label_words, str) and self.label_words == "auto"

    def _given_words(self, names: Sequence[str]) -> WordChoice | None:
        if self._searches_words:
            return {name: default_word(name) for name in names}
        return given_words(self.label_words, names)

    def _fields(self) -> tuple[str, ...] | None:
        """Return the fields that the template names; None where every column of the texts is one."""
        return asked_fields(self.template, self.chat)

    def _keep(self, problem: Problem, outcome: Outcome, artifact: Artifact, deadline: Deadline) -> Self:
        # All at once and last: a fit that is interrupted leaves the classifier as it was.
        self.artifact_ = artifact
        self.backbone_, self.task_, self.outcome_ = problem.backbone, problem.task, outcome
        self._deadline = deadline
        start = replace(outcome, best=outcome.start, answers=None)
        self._start_answers = decided_answers(problem, start, problem.task.answers)
        reader = outcome.best.reader
        weights = reader if isinstance(reader, TunedWeights) else None
        self.predictor_ = Predictor.of(artifact, answering_model(problem.backbone, outcome.best), weights)
        self.padding_ = problem.train.context.padding
        self.classes_ = np.array(list(artifact.classes))
        return self

    @property
    def prompt_(self) -> Prompt:
        """The tuned prompt; the first one where several answer together (`artifact_.prompts` has all)."""
        return self._fitted().prompt

    @property
    def trace_(self) -> list[dict[str, Any]]:
        """One event for each step of search and training."""
        return [dict(event) for event in self._fitted().trace]

    def leaderboard(self) -> list[dict[str, Any]]:
        """Return what `auto` tried, the best first, the score by its name; of other methods nothing."""
        if not hasattr(self, "outcome_"):
            raise NotFittedError("what was tried is not kept in an artifact; call fit")
        return [row.document() for row in self.outcome_.tried]

    def save(self, folder: str | Path) -> str:
        """Write the artifact and return its hash.

        Raises:
            ArtifactError: the folder cannot be written, or holds something else.
        """
        return self._fitted().save(folder)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model: Any = None,
        device: str = "auto",
        local_files_only: bool = False,
        dtype: str = "auto",
    ) -> Self:
        """Read an artifact; ready to predict.

        Args:
            folder: the artifact.
            model: where the backbone is now; None for the name it was tuned under.
            device: a torch device, or ``auto``.
            local_files_only: never ask the Hub for a model.
            dtype: of the model's weights, or ``auto``: by the device.

        Raises:
            ArtifactError: no artifact, a damaged one, or another backbone than it was made for.
        """
        where = {"device": device, "local_files_only": local_files_only, "dtype": dtype}
        loaded = cls.of(*with_backbone(folder, model, where))
        loaded.set_params(**where)
        return loaded

    @classmethod
    def of(cls, artifact: Artifact, backbone: AnyBackbone, model: Any = None) -> Self:
        """Return an estimator that answers with an artifact over a backbone already loaded.

        Args:
            artifact: the tuned prompt.
            backbone: the model that it was made for.
            model: what to call that model from now on; None for the backbone itself.

        Raises:
            ArtifactError: another backbone than it was made for.
        """
        manifest, chat = artifact.manifest, artifact.task.template.chat
        found = cls(
            backbone if model is None else model,
            manifest.method,
            template=None if chat else manifest.task.template,
            chat=chat.turns if chat else None,
            answers=None if artifact.task.has_labels else artifact.task.answers,
            label_words=dict(zip(artifact.classes, artifact.task.verbalizer.words, strict=True))
            if artifact.task.has_labels
            else None,
            method_options=manifest.method_options,
            max_tokens=manifest.task.max_tokens,
            seed=manifest.seed,
            head=manifest.backbone.head,
        )
        found._answer_with(artifact, backbone)
        return found

    def _answer_with(self, artifact: Artifact, backbone: AnyBackbone) -> None:
        self.predictor_ = Predictor.of(artifact, backbone)
        self.backbone_ = backbone
        self.artifact_ = artifact
        self.task_ = artifact.task
        self.classes_ = np.array(artifact.classes)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle holds: the parameters, the artifact's files, and the name of the backbone.

        Raises:
            ArtifactError: the model was given in memory, and has no name.
        """
        parameters = self.get_params(deep=False)
        if not isinstance(self.model, str | Path):
            parameters |= loading_of(self.model if isinstance(self.model, Backbone) else None)
        state: dict[str, Any] = {"parameters": parameters, "files": None}
        if hasattr(self, "artifact_"):
            answering = loading_of(self.predictor_.backbone)
            # Where it runs is the classifier's choice; another use of the model in this process may have had its own.
            answering |= {name: parameters[name] for name in ("device", "local_files_only")}
            state |= {"files": folder_files(self.artifact_.whole().save), "answering": answering}
            state |= {"padding": getattr(self, "padding_", None)}
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Take over a pickled state; the backbone is loaded by its name.

        Raises:
            BackboneError: there is no such model now.
            ArtifactError: the state is damaged, or the model is another one.
        """
        self.__init__(**state["parameters"])  # type: ignore[misc]
        if state["files"] is not None:
            with as_folder(state["files"]) as folder:
                artifact = load_artifact(folder)
            self._answer_with(artifact, load_backbone(**state["answering"]))
            if state["padding"] is not None:
                self.padding_ = state["padding"]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy over the same model; what `fit` found is never changed in place, and shared."""
        parameters = self.get_params(deep=False)
        copied = {name: own if name == "model" else copy.deepcopy(own, memo) for name, own in parameters.items()}
        twin = type(self)(**copied)
        twin.__dict__.update({name: own for name, own in vars(self).items() if name not in parameters})
        return twin

    def _fitted(self) -> Artifact:
        if not hasattr(self, "artifact_"):
            name = type(self).__name__
            raise NotFittedError(f"this {name} is not fitted; call fit(texts, labels) or load(folder) first")
        return self.artifact_
