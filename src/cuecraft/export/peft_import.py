"""From a PEFT folder to an artifact, once the base model that it names is the backbone. PEFT itself is not needed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cuecraft.artifact import Artifact, Calibration, HardPrompt, PrefixPrompt, Prompt, SoftPrompt
from cuecraft.artifact.manifest import CAVEAT
from cuecraft.backbone import AnyBackbone
from cuecraft.backbone.load import checkpoint_hash
from cuecraft.core import assets
from cuecraft.core.errors import ArtifactError, AssetError, BackboneError, CuecraftWarning, named
from cuecraft.core.storage import file_sha256, parse_json
from cuecraft.export.peft_export import (
    CONFIG,
    PICKLED,
    TENSOR,
    WEIGHTS,
    Beside,
    read_beside,
    require_prompt_first,
    unflatten_states,
)
from cuecraft.task import Task, Template, Verbalizer
from cuecraft.task.rendering import HeadKind

_CACHED = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]+)")
_MOVING = (None, "", "main")  # revisions that name no fixed state of a repository
#: PEFT's kinds of adapter that hold one prompt, and the method of the same name here.
_METHODS = {"PROMPT_TUNING": "prompt-tuning", "P_TUNING": "p-tuning", "PREFIX_TUNING": "prefix-tuning"}


def check_base(
    folder: Path, config: Mapping[str, Any], beside: Beside | None, backbone: AnyBackbone, any_base: bool
) -> str | None:
    """Return what to warn of in the model card, or None where the adapter was trained on the backbone.

    Args:
        folder: of the adapter.
        config: of `adapter_config.json`.
        beside: what `cuecraft.json` holds; None without one.
        backbone: what the adapter is imported for.
        any_base: take an adapter of another base model, with a warning.

    Raises:
        ArtifactError: it names another base model, and that was not allowed.

    Warns:
        CuecraftWarning: it names none, or another one, which was allowed.
    """
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str | None) or not isinstance(revision, str | None):
        raise ArtifactError(f"{folder / CONFIG}: the name of its base model is no text; restore it")
    if beside is not None and beside.manifest.backbone.sha256 == backbone.fingerprint():
        return None
    if not base or not base.strip():
        note = f"the adapter names no base model, and is taken for {backbone.name}"
    elif beside is not None and base == beside.manifest.backbone.name:
        note = f"the adapter was trained on {base} of other weights than {backbone.name}"
    elif not _is_same(base, backbone):
        note = f"the adapter was trained on {base}, and not on {backbone.name}"
    elif not _has_revision(base, revision, backbone):
        note = f"the adapter was trained on revision {revision} of {base}, and not on the one that is loaded"
    else:
        return None
    if base and base.strip() and not any_base:
        raise ArtifactError(
            f"{folder}: {note}; give the model that it was trained on, or allow it where both are the same weights "
            f"({named('any_base')})"
        )
    note += "; where it was trained on other weights, its answers mean nothing"
    warnings.warn(f"{folder}: {note}", CuecraftWarning, stacklevel=3)
    return note


def _is_same(base: str, backbone: AnyBackbone) -> bool:
    """Return whether a name means the backbone's own checkpoint: by name, by place, or by the hash of the files."""
    own = {backbone.name, str(getattr(backbone.model.config, "name_or_path", "") or "")} - {""}
    if _meanings(base) & set().union(*map(_meanings, own)):
        return True
    return checkpoint_hash(base) == backbone.fingerprint()


def _meanings(name: str) -> set[str]:
    """Return what a model's name may be known by: a Hub name, and the place of a folder."""
    name = name.strip()
    plain = name.rstrip("/\\") or name
    found = {plain.casefold()}
    if assets.is_known(plain):
        try:
            return found | {str(assets.model_place(plain).resolve())}
        except (AssetError, BackboneError):
            return found
    place = Path(plain).expanduser()
    if place.is_dir():
        # A folder of the current directory is what transformers takes such a name for, whatever the Hub has.
        found = {str(place.resolve())}
    cached = _CACHED.search(plain)
    return found | ({f"{cached[1]}/{cached[2]}".casefold()} if cached else set())


def _has_revision(base: str, revision: str | None, backbone: AnyBackbone) -> bool:
    """Return whether the backbone is of the revision that an adapter names; a folder has none."""
    if revision in _MOVING or assets.is_known(base) or Path(base).expanduser().is_dir():
        return True
    assert revision is not None
    loaded = str(getattr(backbone.model.config, "_commit_hash", None) or "")
    return bool(loaded) and loaded.startswith(revision.strip().lower()) and len(revision.strip()) >= 7


@dataclass(frozen=True)
class _Adapter:
    """An adapter as its folder holds it.

    Args:
        folder: where it lies.
        config: of `adapter_config.json`.
        tensor: the saved prompt, `[P, X]`.
    """

    folder: Path
    config: Mapping[str, Any]
    tensor: Tensor

    @property
    def kind(self) -> str:
        """PEFT's name of its kind."""
        return str(self.config["peft_type"])


def import_peft(
    folder: str | Path,
    backbone: AnyBackbone,
    task: Task | None = None,
    *,
    template: str | None = None,
    label_words: Mapping[Any, str | Sequence[str]] | None = None,
    classes: Sequence[Any] | None = None,
    any_base: bool = False,
) -> Artifact:
    """Read a prompt-tuning, P-tuning or prefix-tuning adapter of PEFT.

    An adapter that `export_peft` wrote, given with neither task nor template nor words, comes back as the artifact that
    it was. Any other adapter is taken uncalibrated, for the task that is given.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        backbone: the causal language model that it was trained on.
        task: template and verbalizer; or, in its place:
        template: begins with `{prompt}`, because PEFT trained the prompt first.
        label_words: class -> word or words, in the order of the classes.
        classes: the classes in their order; needed where `label_words` are not given.
        any_base: take an adapter that names another base model; the warning then stands in the artifact's card too.

    Returns:
        An artifact with a `SoftPrompt`, or for a prefix a `PrefixPrompt` without words behind it.

    Raises:
        ArtifactError: the folder holds no such adapter, is damaged, does not fit the backbone or the template, or
            names another base model.

    Warns:
        CuecraftWarning: the adapter names no base model, or another one that was allowed, or was changed after it was
            exported.
    """
    source = Path(folder)
    adapter = _read_adapter(source)
    if backbone.head_kind is not HeadKind.CAUSAL:
        raise ArtifactError(
            f"{source}: is for causal language models, but {backbone.name} is a {backbone.head_kind} one"
        )
    beside = read_beside(source)
    is_own = beside is not None and beside.adapter_sha256 == file_sha256(source / WEIGHTS)
    given = any(part is not None for part in (task, template, label_words, classes))
    if task is not None and any(part is not None for part in (template, label_words, classes)):
        raise ArtifactError("a task and a template or label words were given; give one of them")
    wanted = _task(source, beside, task, template, label_words, classes)
    require_prompt_first(backbone, wanted)
    prompt = _prompt(adapter, backbone)
    if beside is not None and is_own and not given:
        return _restored(beside, prompt, wanted, backbone)
    if beside is not None and not is_own:
        warnings.warn(
            f"{source}: the adapter was changed after cuecraft exported it; calibration and metrics are left out",
            CuecraftWarning,
            stacklevel=2,
        )
    note = check_base(source, adapter.config, beside, backbone, any_base)
    return _new(adapter, prompt, wanted, backbone, note)


def _new(adapter: _Adapter, prompt: Prompt, task: Task, backbone: AnyBackbone, note: str | None) -> Artifact:
    """Return an artifact of an adapter that PEFT has trained; `note` is what its card warns of."""
    event = {
        "phase": "import",
        "step": 0,
        "peft_type": adapter.kind,
        "adapter_sha256": file_sha256(adapter.folder / WEIGHTS),
    }
    return Artifact.create(
        prompt,
        Calibration.none(task.verbalizer.num_classes),
        task,
        backbone,
        method=_METHODS[adapter.kind],
        method_options={},
        seed=0,
        metrics={},
        data={},
        trace=[event if note is None else event | {CAVEAT: note}],
    )


def _read_adapter(source: Path) -> _Adapter:
    path = source / CONFIG
    if not path.is_file():
        raise ArtifactError(f"{source}: no PEFT adapter here ({CONFIG} is missing); check the path")
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: is damaged ({error}); restore it") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{path}: is no PEFT configuration; restore it")
    kind = config.get("peft_type")
    if kind not in _METHODS:
        raise ArtifactError(
            f"{source}: is a PEFT adapter of type {kind}; only {', '.join(_METHODS)} hold a prompt that can be imported"
        )
    if config.get("num_transformer_submodules", 1) not in (1, None):
        raise ArtifactError(f"{source}: is for an encoder-decoder model, which is not supported")
    if config.get("task_type") != "CAUSAL_LM":
        raise ArtifactError(
            f"{source}: was trained for task type {config.get('task_type')}; only CAUSAL_LM adapters can be imported"
        )
    return _Adapter(source, config, _read_tensor(source, config))


def _read_tensor(source: Path, config: Mapping[str, Any]) -> Tensor:
    path = source / WEIGHTS
    if not path.is_file():
        if (source / PICKLED).is_file():
            raise ArtifactError(
                f"{source}: {PICKLED} is a pickle, which can run code when read; save the adapter as safetensors "
                "(safe_serialization=True)"
            )
        raise ArtifactError(f"{source}: {WEIGHTS} is missing; restore the folder")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: is damaged ({error}); restore it") from error
    if set(tensors) != {TENSOR}:
        other = next((name for name in tensors if name != TENSOR), None)
        what = f"holds {other!r} besides a prompt" if TENSOR in tensors else f"has no {TENSOR!r}"
        raise ArtifactError(f"{path}: {what}; only adapters that are a prompt alone can be imported")
    tensor = tensors[TENSOR]
    if tensor.ndim != 2 or not tensor.is_floating_point() or len(tensor) != config.get("num_virtual_tokens"):
        raise ArtifactError(
            f"{path}: holds {list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}, but {CONFIG} says "
            f"{config.get('num_virtual_tokens')} virtual tokens; restore the folder"
        )
    if not bool(tensor.isfinite().all()):
        raise ArtifactError(f"{path}: holds NaN or infinity; train the adapter again")
    return tensor


def _task(
    source: Path,
    beside: Beside | None,
    task: Task | None,
    template: str | None,
    label_words: Mapping[Any, str | Sequence[str]] | None,
    classes: Sequence[Any] | None,
) -> Task:
    """Return the task, made of what is given and, where that is silent, of `cuecraft.json`."""
    if task is not None:
        return task
    stored = beside.manifest.task if beside else None
    template = stored.template if template is None and stored is not None else template
    if template is None:
        raise ArtifactError(f"{source}: PEFT keeps no template; give one that begins with {{prompt}}")
    written = Template(template)
    options: dict[str, Any] = {}
    if stored is not None:
        options = {"max_tokens": stored.max_tokens, "reserve": stored.reserve}
    if label_words is None and classes is None:
        if stored is None:
            raise ArtifactError(f"{source}: PEFT keeps no classes; give label words, or classes named by such words")
        return Task(written, stored.answers, norm=stored.norm, **options)
    names = tuple(classes if classes is not None else label_words or ())
    chosen = label_words and {str(name): words for name, words in label_words.items()}
    found = Verbalizer.from_labels([str(name) for name in names], chosen)
    return Task(written, replace(found, classes=names), **options)


def _prompt(adapter: _Adapter, backbone: AnyBackbone) -> Prompt:
    """Return the adapter's prompt, or say that it does not fit the backbone."""
    tensor = adapter.tensor
    if adapter.kind != "PREFIX_TUNING":
        if tensor.shape[1] != backbone.hidden_size:
            raise ArtifactError(
                f"{adapter.folder}: its vectors are {tensor.shape[1]} wide, but {backbone.name} takes "
                f"{backbone.hidden_size}; it was trained on another model"
            )
        return SoftPrompt(tensor)
    try:
        shape = backbone.states_shape(len(tensor))
    except BackboneError as error:
        raise ArtifactError(f"{adapter.folder}: {error}") from error
    layers, _, heads, _, width = shape
    found = tuple(adapter.config.get(name) for name in ("num_layers", "num_attention_heads", "token_dim"))
    if found != (layers, heads, heads * width) or tensor.shape[1] != 2 * layers * heads * width:
        raise ArtifactError(
            f"{adapter.folder}: its prefix has (layers, key-value heads, their width together) = {found}, but "
            f"{backbone.name} has {(layers, heads, heads * width)}; it was trained on another model"
        )
    return PrefixPrompt(HardPrompt(()), unflatten_states(tensor, shape))


def _restored(beside: Beside, prompt: Prompt, task: Task, backbone: AnyBackbone) -> Artifact:
    """Return the artifact that was exported."""
    ids, manifest = beside.token_ids, beside.manifest
    if prompt.states is not None and ids is None:
        prompt = replace(prompt, tokens=torch.empty(0, backbone.hidden_size))
    elif ids:
        prompt = HardPrompt(tuple(ids))
    calibration = manifest.calibration.calibration()
    artifact = Artifact(prompt, calibration, task, manifest, beside.trace)
    artifact.check_backbone(backbone)
    return artifact
