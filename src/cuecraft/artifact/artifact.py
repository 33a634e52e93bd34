"""The artifact: a folder with a prompt, all that is needed to use it, and how it came about.

===================  =================================================================================
manifest.json        schema version, method, backbone and its hash, task, calibration, metrics, hashes
prompt.safetensors   token ids, vectors, offsets or states, and a class head where there is one; of a task of several
                     its own part, and the shared one lies in ``../../shared.safetensors``; of further prompts that
                     answer with it the same, as ``1/offsets`` and so on
weights.safetensors  tuned weights, where there are some
trace.jsonl          one event for each step of the search or training
README.md            model card
===================  =================================================================================
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from cuecraft.artifact.calibration import AnswersTogether, CalibratedPrompt, Calibration
from cuecraft.artifact.manifest import (
    SCHEMA_VERSION,
    BackboneEntry,
    CalibrationEntry,
    DataEntry,
    Manifest,
    PromptEntry,
    model_card,
)
from cuecraft.artifact.shared import Sharing, TaskPart
from cuecraft.backbone import AnyBackbone
from cuecraft.backbone.base import Backbone
from cuecraft.backbone.prompt import Prompt, PromptKind
from cuecraft.backbone.weights import FullSpec, LoraSpec, TunedWeights, load_weights
from cuecraft.core.errors import ArtifactError, CuecraftWarning
from cuecraft.core.storage import (
    MANIFEST,
    ManifestKind,
    digest,
    file_sha256,
    manifest_document,
    unwritable,
    write_folder,
)
from cuecraft.task import Task
from cuecraft.task.task import TaskEntry

TENSORS, TRACE, CARD = "prompt.safetensors", "trace.jsonl", "README.md"
REPORT = "report.html"  # of the demo: not part of the artifact, and replaced with it
WEIGHTS = "weights.safetensors"
SHARED = Path("..", "..", "shared.safetensors")  # next to the folder `tasks` that a task's folder lies in
_PACKAGES = ("cuecraft", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scikit-learn")
Files = Mapping[str, bytes]


@dataclass(frozen=True)
class StoredWeights:
    """Tuned weights of the backbone: which ones, and their values by name."""

    spec: LoraSpec | FullSpec
    values: Mapping[str, Tensor]


@dataclass(frozen=True)
class Artifact(AnswersTogether):
    """A tuned prompt and its surroundings.

    Args:
        prompt: the prompt.
        calibration: of its logits.
        task: template and answer space.
        manifest: what is written next to the tensors.
        trace: one event for each step.
        weights: tuned weights that the prompt stands on; None for the backbone's own.
        sharing: how the prompt's tensor comes about from one that several tasks share; None where it does not.
        others: further prompts, each with its calibration, whose probabilities are averaged with the prompt's.
    """

    prompt: Prompt
    calibration: Calibration
    task: Task
    manifest: Manifest
    trace: Sequence[Mapping[str, Any]] = ()
    weights: StoredWeights | None = None
    sharing: Sharing | None = None
    others: tuple[CalibratedPrompt, ...] = ()

    @property
    def classes(self) -> tuple[Any, ...]:
        """The options that all texts share, `[O]`, as the user's data has them."""
        return self.task.answers.classes

    @classmethod
    def create(
        cls,
        prompt: Prompt,
        calibration: Calibration,
        task: Task,
        backbone: AnyBackbone,
        *,
        method: str,
        method_options: Mapping[str, Any],
        seed: int,
        metrics: Mapping[str, float],
        data: Mapping[str, DataEntry],
        words: str | None = None,
        trace: Sequence[Mapping[str, Any]] = (),
        weights: StoredWeights | None = None,
        sharing: Sharing | None = None,
        others: Sequence[CalibratedPrompt] = (),
    ) -> Artifact:
        """Gather a tuned prompt and what it depends on."""
        manifest = Manifest(
            method=method,
            method_options=dict(method_options),
            seed=seed,
            backbone=BackboneEntry.of(backbone),
            task=TaskEntry.of(task),
            prompt=PromptEntry(
                kind=prompt.kind,
                length=len(prompt),
                text=prompt.text(backbone.tokenizer),
                shared_sha256=sharing.sha256 if sharing else None,
                count=1 + len(others),
            ),
            weights=weights.spec if weights else None,
            words=words,
            calibration=CalibrationEntry.of(calibration),
            other_calibrations=[CalibrationEntry.of(other.calibration) for other in others],
            metrics=dict(metrics),
            data=dict(data),
            versions={name: metadata.version(name) for name in _PACKAGES},
            files={},
        )
        return cls(prompt, calibration, task, manifest, tuple(trace), weights, sharing, tuple(others))

    def with_test(self, metrics: Mapping[str, float], data: DataEntry) -> Artifact:
        """Return the artifact with metrics of a test set, and that set's hash, in its manifest."""
        merged = {"metrics": self.manifest.metrics | dict(metrics), "data": self.manifest.data | {"test": data}}
        return replace(self, manifest=self.manifest.model_copy(update=merged))

    def save(self, folder: str | Path) -> str:
        """Write the artifact and return its hash; an artifact already there is replaced in one step.

        Raises:
            ArtifactError: something else stands there, or the folder cannot be written.
        """
        target = Path(folder)
        check_target(target)
        try:
            write_folder(target, self._fill)
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{target}: cannot write the artifact ({error}); choose another folder") from error
        return Manifest.model_validate_json((target / MANIFEST).read_text(encoding="utf-8")).artifact_sha256

    def _fill(self, folder: Path) -> None:
        names = [TENSORS, TRACE]
        save_file(_tensors(self.prompt, self.sharing) | _others_tensors(self.prompts[1:]), folder / TENSORS)
        if self.weights is not None:
            save_file(_plain(self.weights.values), folder / WEIGHTS)
            names.append(WEIGHTS)
        lines = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in self.trace)
        (folder / TRACE).write_text(lines, encoding="utf-8")
        files = {name: file_sha256(folder / name) for name in names}
        prompt = self.manifest.prompt.model_copy(update={"count": len(self.prompts)})
        first, *rest = [CalibrationEntry.of(own) for own in self.calibrations]
        # What was read from an older version is written as this one.
        own = {
            "schema_version": SCHEMA_VERSION,
            "task": TaskEntry.of(self.task),
            "prompt": prompt,
            "calibration": first,
            "other_calibrations": rest,
        }
        own |= {"files": files, "artifact_sha256": ""}
        manifest = self.manifest.model_copy(update=own)
        manifest = manifest.model_copy(update={"artifact_sha256": digest(manifest.model_dump(mode="json"))})
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (folder / CARD).write_text(model_card(manifest, self.trace, self.reads_words), encoding="utf-8")

    def whole(self) -> Artifact:
        """Return the artifact by itself: with all of a prompt that shares a part with other tasks."""
        entry = self.manifest.prompt.model_copy(update={"shared_sha256": None})
        return replace(self, sharing=None, manifest=self.manifest.model_copy(update={"prompt": entry}))

    def check_sizes(self, called: str) -> None:
        """Raise ArtifactError where its parts are not for one number of options; `called` is what to call it."""
        answers, biases = self.task.answers, {len(calibration.bias) for calibration in self.calibrations}
        rows = {len(prompt.head.weight) for prompt in self.prompts if prompt.head is not None}
        if biases != {answers.size} or not rows <= {answers.head_rows}:
            raise ArtifactError(f"{called}: its parts are for different numbers of options; tune it again")

    def require_single(self, what: str) -> None:
        """Raise ArtifactError where several prompts answer together and `what` holds one."""
        if self.others:
            raise ArtifactError(
                f"{len(self.prompts)} prompts answer together here, and {what} holds one; tune `auto` again with its "
                "option prompts=1"
            )

    def reader(self, backbone: AnyBackbone) -> TunedWeights | None:
        """Return what reads the texts in place of the backbone that it was made for; None for that one itself.

        Raises:
            BackboneError: tuned weights of another backbone.
        """
        return load_weights(backbone, self.weights.spec, self.weights.values) if self.weights else None

    def check_backbone(self, backbone: AnyBackbone) -> None:
        """Raise ArtifactError where the backbone is not the one that the prompt was made for.

        Warns:
            CuecraftWarning: the same weights in another number type.
        """
        made_for = self.manifest.backbone
        if backbone.head_kind != made_for.head:
            raise ArtifactError(
                f"the prompt was made for a {made_for.head} backbone, but {backbone.name} is loaded as "
                f"{backbone.head_kind}; load {made_for.name}"
            )
        if backbone.fingerprint() != made_for.sha256:
            raise ArtifactError(
                f"the prompt was made for {made_for.name} with hash {made_for.sha256[:12]}, but {backbone.name} has "
                f"{backbone.fingerprint()[:12]}; use the same weights and tokenizer, or tune again"
            )

        if backbone.dtype_name != made_for.dtype:
            warnings.warn(
                f"the prompt was tuned on {made_for.dtype} weights and {backbone.name} is loaded as "
                f"{backbone.dtype_name}; probabilities will differ a little "
                f"(give dtype {made_for.dtype} for the same ones)",
                CuecraftWarning,
                stacklevel=3,
            )


def member_folders(folder: str | Path) -> list[Path]:
    """Return the artifacts of a folder that `tune --seeds` wrote, by seed; none where it is another folder."""
    found = [path for path in Path(folder).glob("seed-*") if path.name.removeprefix("seed-").lstrip("-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("seed-")))


def check_target(folder: Path) -> None:
    """Raise ArtifactError where something that is no artifact stands in the way of one, or nothing can be written."""
    if folder.exists():
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else {""}
        keys = {_ARTIFACT.version, _ARTIFACT.sha256}  # of a manifest of ours, whatever its schema version
        if not names <= {MANIFEST, TENSORS, TRACE, CARD, WEIGHTS, REPORT} or not keys <= set(manifest_document(folder)):
            raise ArtifactError(f"{folder}: exists and is no artifact; choose another folder or remove it")
    check_writable(folder)


def check_writable(folder: Path) -> None:
    """Raise ArtifactError where a folder cannot be made."""
    where = unwritable(folder.absolute().parent)  # a folder that is there is replaced as a whole
    if where is not None:
        raise ArtifactError(f"{folder}: {where} cannot be written to; choose another folder")


def stored_bytes(prompts: Sequence[Prompt], weights: Mapping[str, Tensor] | None = None) -> int:
    """Return the size of the tensors of prompts as an artifact stores them, and of tuned weights."""
    first, *others = prompts
    stored = len(save(_tensors(first, None) | _others_tensors(others)))
    return stored + sum(tensor.nbytes for tensor in (weights or {}).values())


def load_artifact(folder: str | Path) -> Artifact:
    """Read an artifact and check its hashes.

    Raises:
        ArtifactError: no artifact, a damaged one, or one of a newer schema.
    """
    source = Path(folder)
    manifest = _ARTIFACT.read(source)
    _ARTIFACT.check_files(source, manifest.files)
    try:
        tensors = load_file(source / TENSORS)
        sharing = _sharing(manifest, tensors, source) if manifest.prompt.shared_sha256 else None
        prompt = _prompt(manifest, tensors, sharing)
        prompts = _other_prompts(manifest, tensors)
        calibration, *rest = [entry.calibration() for entry in manifest.calibrations]
        weights = StoredWeights(manifest.weights, load_file(source / WEIGHTS)) if manifest.weights else None
        trace = [json.loads(line) for line in (source / TRACE).read_text(encoding="utf-8").split("\n") if line]
    except (SafetensorError, KeyError, OSError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{source}: is damaged ({error}); restore the folder or tune again") from error
    others = tuple(CalibratedPrompt(own, calibrated) for own, calibrated in zip(prompts, rest, strict=True))
    return Artifact(prompt, calibration, manifest.task.task(), manifest, trace, weights, sharing, others)


_ARTIFACT = ManifestKind(
    model=Manifest,
    version="schema_version",
    newest=SCHEMA_VERSION,
    sha256="artifact_sha256",
    error=ArtifactError,
    folder="artifact",
    versioned="schema version",
    remedy="tune again",
)

#: The tensor of each kind of prompt that tasks can share.
_SHARED_NAMES: dict[PromptKind, str] = {"soft": "embeddings", "deep": "offsets", "prefix": "states"}


def _tensors(prompt: Prompt, sharing: Sharing | None) -> dict[str, Tensor]:
    tensors = prompt.tensors()
    if sharing is not None:
        del tensors[_SHARED_NAMES[prompt.kind]]
        tensors |= sharing.part.tensors()
    return _plain(tensors)


def _others_tensors(others: Sequence[Prompt]) -> dict[str, Tensor]:
    """Return the tensors of further prompts, numbered from 1 on."""
    named = [(f"{n}/{name}", own) for n, one in enumerate(others, 1) for name, own in one.tensors().items()]
    return _plain(dict(named))


def _other_prompts(manifest: Manifest, tensors: Mapping[str, Tensor]) -> tuple[Prompt, ...]:
    """Return the further prompts; KeyError where one is missing, or there are more than the manifest says."""
    found: dict[str, dict[str, Tensor]] = {str(number): {} for number in range(1, manifest.prompt.count)}
    for name, own in tensors.items():
        number, slash, rest = name.partition("/")
        if not slash:
            continue  # the first one's
        if number not in found:
            raise KeyError(f"{name}: more prompts than {manifest.prompt.count}")
        found[number][rest] = own
    return tuple(Prompt.of_tensors(parts) for parts in found.values())


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Copies where storage is shared, which safetensors does not write.
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def _sharing(manifest: Manifest, tensors: Mapping[str, Tensor], source: Path) -> Sharing:
    path = source / SHARED
    if not path.is_file():
        raise ArtifactError(f"{source}: is one of several tasks, and {SHARED} that they share is missing; restore it")
    sha256 = file_sha256(path)
    if sha256 != manifest.prompt.shared_sha256:
        raise ArtifactError(f"{source}: {SHARED} is not the one that it was made with (its hash differs); restore it")
    return Sharing(load_file(path)["shared"], TaskPart.from_tensors(tensors), sha256)


def _prompt(manifest: Manifest, stored: Mapping[str, Tensor], sharing: Sharing | None) -> Prompt:
    tensors = dict(stored)
    if sharing is not None:
        tensors[_SHARED_NAMES[manifest.prompt.kind]] = sharing.part.of(sharing.shared)
    prompt = Prompt.of_tensors(tensors)
    if prompt.kind != manifest.prompt.kind:
        raise KeyError(f"the tensors of a {manifest.prompt.kind} prompt")
    return prompt


def folder_files(save: Callable[[Path], object]) -> dict[str, bytes]:
    """Return the files of a folder that `save` writes, by their paths in it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "folder")
        save(folder)
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@contextmanager
def as_folder(files: Files) -> Iterator[Path]:
    """Give the files back as a folder, which is gone afterwards.

    Raises:
        ArtifactError: a path leads out of the folder.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in files.items():
            parts = PurePosixPath(name).parts
            if not parts or ".." in parts or PurePosixPath(name).is_absolute():
                raise ArtifactError(f"the state has a file {name!r}, which no folder of ours has; save it again")
            path = Path(scratch, *parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield Path(scratch)


def loading_of(backbone: Backbone | None) -> dict[str, Any]:
    """Return the arguments by which `load_backbone` gives a backbone again.

    Args:
        backbone: the backbone; None for a model that was never loaded by a name.

    Raises:
        ArtifactError: it was given in memory, so that it has no name.
    """
    source = None if backbone is None else backbone.source
    if source is None:
        raise ArtifactError(
            "the model was given in memory and has no name, by which a pickle could find it again; write the prompt "
            "with save(folder), or save the model as a folder and give that as model="
        )
    return dict(source)
