"""Several tasks on one backbone, whose prompts share one tensor.

===================  ==================================================================================
family.json          schema version, options, and the hashes of backbone and shared part
shared.safetensors   the shared tensor, once
tasks/NAME/          one artifact for each task: its own part, template, calibration
===================  ==================================================================================

A task's folder is an artifact like any other: `cuecraft predict FAMILY/tasks/NAME`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cuecraft.api.estimators import PromptClassifier
from cuecraft.api.given import Answers, Given
from cuecraft.artifact import Artifact, Sharing, check_writable, load_artifact, shared_file
from cuecraft.artifact.artifact import as_folder, folder_files, loading_of
from cuecraft.backbone import AnyBackbone, load_backbone
from cuecraft.backbone.hooks import training
from cuecraft.core.checkpoints import Keeping
from cuecraft.core.errors import ArtifactError, MethodError
from cuecraft.core.events import Event
from cuecraft.core.storage import write_folder
from cuecraft.data import Record
from cuecraft.data.labels import words_by_name
from cuecraft.data.texts import Labels, Texts
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.prepare import make_problem, make_task, run_key, with_checkpoints
from cuecraft.methods.problem import Problem
from cuecraft.methods.train.multitask import MultitaskTuning, TaskOutcome
from cuecraft.task import Template

LabelledTexts = tuple[Texts, Labels]
TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DOCUMENT, _SHARED, _TASKS = "family.json", "shared.safetensors", "tasks"


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    options: MultitaskTuning
    seed: int
    backbone: str
    head: str
    shared_sha256: str


def check_family_target(folder: Path) -> None:
    """Raise ArtifactError where something else stands in the way of a family, or nothing can be written."""
    if folder.exists() and not (folder / _DOCUMENT).is_file():
        raise ArtifactError(f"{folder}: exists and is no family of prompts; choose another folder or remove it")
    check_writable(folder)


def _fields(template: str | None) -> tuple[str, ...] | None:
    """Return the fields that a template names; None for every column of the texts."""
    return Template(template).field_names if template else None


class PromptFamily:
    """Classifiers of several tasks over one frozen model, trained together.

    Args:
        model: as for `PromptClassifier`.
        options: of the training.
        seed: of everything random.
        head: ``causal``, ``masked`` or ``sequence``; None for what the checkpoint has.
        device: a torch device, or ``auto``.
        local_files_only: never ask the Hub for a model.
        dtype: of the model's weights, or ``auto``.
    """

    def __init__(
        self,
        model: Any = "demo:smollm2-135m",
        options: MultitaskTuning | None = None,
        *,
        seed: int = 0,
        head: str | None = None,
        device: str = "auto",
        local_files_only: bool = False,
        dtype: str = "auto",
    ) -> None:
        self.backbone: AnyBackbone = load_backbone(model, head, device, local_files_only, dtype)
        self.options = options or MultitaskTuning()
        self.seed = seed
        self._shared: Tensor | None = None
        self._sha256 = ""
        self.artifacts: dict[str, Artifact] = {}

    @training()
    def fit(
        self,
        tasks: Mapping[str, LabelledTexts],
        dev: Mapping[str, LabelledTexts] | None = None,
        templates: Mapping[str, str] | None = None,
        label_words: Mapping[str, Mapping[Any, Any]] | None = None,
        report: Callable[[Event], None] = lambda event: None,
        checkpoints: str | Path | Keeping | None = None,
        answers: Mapping[str, Answers] | None = None,
    ) -> Self:
        """Train all tasks jointly; their answers may be of several kinds.

        Args:
            tasks: name -> texts and labels, as `PromptClassifier.fit` takes them.
            dev: name -> texts and labels to choose and stop by; a quarter of the texts of a task without.
            templates: name -> template; a general one for the others.
            label_words: name -> class -> word or words; the classes' names for the others.
            report: progress callback, called with each step.
            checkpoints: a folder for the state of training, to go on from; or a `Keeping`.
            answers: name -> what counts as an answer; what the data shows for the others.

        Raises:
            CuecraftError: fewer than two tasks, a name that is no folder's name, or anything about a task's data.
        """
        self._check_names(tasks, dev, templates, label_words, answers)
        given, held_out = {}, {}
        for name, (texts, labels) in tasks.items():
            fields = _fields((templates or {}).get(name))
            given[name] = Given.of(texts, labels, (answers or {}).get(name), fields)
            held_out[name] = given[name].held_out((dev or {}).get(name), fields)
        return self.fit_given(given, held_out, templates, label_words, report, checkpoints)

    @training()
    def fit_given(
        self,
        given: Mapping[str, Given],
        dev: Mapping[str, Sequence[Record] | None],
        templates: Mapping[str, str] | None = None,
        label_words: Mapping[str, Mapping[Any, Any]] | None = None,
        report: Callable[[Event], None] = lambda event: None,
        checkpoints: str | Path | Keeping | None = None,
    ) -> Self:
        """Train all tasks jointly on records; arguments and errors otherwise as for `fit`.

        Args:
            given: name -> the examples.
            dev: name -> examples to choose and stop by; None for a quarter of the task's.
            templates: as for `fit`.
            label_words: as for `fit`.
            report: as for `fit`.
            checkpoints: as for `fit`.
        """
        self._check_names(given)
        problems = {
            name: self._problem(own, dev.get(name), (templates or {}).get(name), (label_words or {}).get(name), report)
            for name, own in given.items()
        }
        if checkpoints is not None:
            key = "-".join(run_key(problem, self.options)[:16] for problem in problems.values())
            first = next(iter(problems))
            problems[first] = with_checkpoints(problems[first], Keeping.of(checkpoints), key)
        found = self.options.fit_tasks(problems)
        self._shared = found.shared
        self._sha256 = shared_file(found.shared)[1]
        self.artifacts = {name: self._artifact(problems[name], task, given[name]) for name, task in found.tasks.items()}
        return self

    @training()
    def add(
        self,
        name: str,
        texts: Texts,
        labels: Sequence[Any],
        dev: LabelledTexts | None = None,
        template: str | None = None,
        label_words: Mapping[Any, Any] | None = None,
        report: Callable[[Event], None] = lambda event: None,
        checkpoints: str | Path | Keeping | None = None,
        answers: Answers | None = None,
    ) -> Self:
        """Train one more task's own part; the shared part and the other tasks stay as they are.

        Arguments are as for `fit`.

        Raises:
            CuecraftError: nothing was trained yet, the name is taken or no folder's name, or anything about the data.
        """
        self._check_is_new(name)
        given = Given.of(texts, labels, answers, _fields(template))
        held_out = given.held_out(dev, _fields(template))
        return self.add_given(name, given, held_out, template, label_words, report, checkpoints)

    @training()
    def add_given(
        self,
        name: str,
        given: Given,
        dev: Sequence[Record] | None,
        template: str | None = None,
        label_words: Mapping[Any, Any] | None = None,
        report: Callable[[Event], None] = lambda event: None,
        checkpoints: str | Path | Keeping | None = None,
    ) -> Self:
        """Train one more task's own part on records; arguments and errors otherwise as for `add`."""
        self._check_is_new(name)
        problem = self._problem(given, dev, template, label_words, report)
        if checkpoints is not None:
            key = f"{run_key(problem, self.options)}-{self._sha256}"
            problem = with_checkpoints(problem, Keeping.of(checkpoints).within(name), key)
        assert self._shared is not None
        found = self.options.add_task(problem, self._shared)
        self.artifacts[name] = self._artifact(problem, found, given)
        return self

    def _check_is_new(self, name: str) -> None:
        """Raise MethodError where a task of that name cannot be added."""
        if self._shared is None:
            raise MethodError("there is no shared part yet; train two tasks or more first")
        if name in self.artifacts:
            known = ", ".join(map(str, self.artifacts[name].classes))
            shown = f"with the classes {known}" if known else f"of kind {self.artifacts[name].task.answers.kind}"
            raise MethodError(f"task {name!r} is there already, {shown}; choose another name")
        self._check_names({name: None})

    def classifier(self, name: str) -> PromptClassifier:
        """Return one task's classifier.

        Raises:
            MethodError: there is no such task.
        """
        if name not in self.artifacts:
            raise MethodError(f"there is no task {name!r}; there are {', '.join(self.artifacts) or 'none'}")
        return PromptClassifier.of(self.artifacts[name], self.backbone)

    def save(self, folder: str | Path) -> None:
        """Write the family; one that is already there is replaced in one step.

        Raises:
            ArtifactError: nothing was trained, something else stands there, or the folder cannot be written.
        """
        if self._shared is None:
            raise ArtifactError("there is nothing to write; train two tasks or more first")
        target = Path(folder)
        check_family_target(target)
        content, sha256 = shared_file(self._shared)
        document = _Document(
            options=self.options,
            seed=self.seed,
            backbone=self.backbone.name,
            head=self.backbone.head_kind,
            shared_sha256=sha256,
        )

        def fill(scratch: Path) -> None:
            (scratch / _SHARED).write_bytes(content)
            (scratch / _DOCUMENT).write_text(document.model_dump_json(indent=1) + "\n", encoding="utf-8")
            for name, artifact in self.artifacts.items():
                artifact.save(scratch / _TASKS / name)

        try:
            write_folder(target, fill)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{target}: cannot write the prompts ({error}); choose another folder") from error

    @classmethod
    @training()
    def load(
        cls,
        folder: str | Path,
        model: Any = None,
        device: str = "auto",
        local_files_only: bool = False,
        dtype: str = "auto",
    ) -> PromptFamily:
        """Read a family; ready to classify, and to add tasks to.

        Raises:
            ArtifactError: no family, a damaged one, or another backbone than it was made for.
        """
        source = Path(folder)
        try:
            document = _Document.model_validate_json((source / _DOCUMENT).read_text(encoding="utf-8"))
            shared = load_file(source / _SHARED)["shared"]
            names = sorted(path.name for path in (source / _TASKS).iterdir() if path.is_dir())
        except (OSError, ValidationError, SafetensorError, KeyError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ArtifactError(f"{source}: no family of prompts here, or a damaged one ({reason})") from error
        if shared_file(shared)[1] != document.shared_sha256:
            raise ArtifactError(f"{source}: {_SHARED} is damaged (its hash differs); restore the folder or tune again")
        options = {"seed": document.seed, "head": document.head, "device": device, "dtype": dtype}
        named = document.backbone if model is None else model
        family = cls(named, document.options, local_files_only=local_files_only, **options)  # type: ignore[arg-type]
        family._shared, family._sha256 = shared, document.shared_sha256
        family.artifacts = {name: load_artifact(source / _TASKS / name) for name in names}
        for artifact in family.artifacts.values():
            artifact.check_backbone(family.backbone)
        return family

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle holds: the family's files, if it was trained, and the name of the backbone.

        Raises:
            ArtifactError: the model was given in memory, and has no name.
        """
        loading = loading_of(self.backbone) | {"head": self.backbone.head_kind}
        files = folder_files(self.save) if self._shared is not None else None
        return {"options": self.options.model_dump(), "seed": self.seed, "loading": loading, "files": files}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Take over a pickled state; the backbone is loaded by its name, and raises as `load`."""
        loading = dict(state["loading"])
        if state["files"] is None:
            self.__init__(options=MultitaskTuning(**state["options"]), seed=state["seed"], **loading)  # type: ignore[misc]
            return
        del loading["head"]  # the files have it
        with as_folder(state["files"]) as folder:
            vars(self).update(vars(PromptFamily.load(folder, **loading)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy over the same model, to which tasks can be added apart."""
        twin = type(self).__new__(type(self))
        vars(twin).update(vars(self) | {"artifacts": dict(self.artifacts)})
        return twin

    def _problem(
        self,
        given: Given,
        dev: Sequence[Record] | None,
        template: str | None,
        label_words: Mapping[Any, Any] | None,
        report: Callable[[Event], None],
    ) -> Problem:
        words, longest = words_by_name(label_words), self.options.longest_prompt()
        task = make_task(
            self.backbone, given.asked.known(given.records, dev), template, words, None, given.answers, longest
        )
        return make_problem(self.backbone, task, given.records, dev, seed=self.seed, report=report)

    def _artifact(self, problem: Problem, found: TaskOutcome, given: Given) -> Artifact:
        assert self._shared is not None
        sharing = Sharing(self._shared, found.part, self._sha256)
        return make_artifact(problem, found.outcome, self.options, given.classes, sharing)

    def _check_names(self, tasks: Mapping[str, Any], *others: Mapping[str, Any] | None) -> None:
        for name in tasks:
            if not TASK_NAME.fullmatch(name):
                raise MethodError(f"task name {name!r} is no folder's name; use letters, digits, dot, dash, underscore")
        for other in others:
            for name in other or {}:
                if name not in tasks:
                    raise MethodError(f"something is given for task {name!r}, but the tasks are {', '.join(tasks)}")
