"""What a checkpoint lacks: before transformers reads it, by what was read, and in what transformers says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING
from transformers.quantizers import AutoHfQuantizer

from cuecraft.backbone.budget import is_out_of_memory
from cuecraft.core.errors import BackboneError, named
from cuecraft.core.storage import parse_json
from cuecraft.task.rendering import HeadKind

CONFIG, ADAPTER, INDEX = "config.json", "adapter_config.json", "model.safetensors.index.json"
_POINTER = b"version https://git-lfs"
_READ = ("*.json", "*.txt", "*.model")  # kinds of file that loading reads, over the weights
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "*.model", "vocab.txt", "vocab.json")
_TOKENIZER_VALUES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
_NO_CODE = "needs code of its own repository, which is never run here; choose a model that transformers has itself"
_SAFETENSORS = "; only safetensors are read, as a pickle can run code: save it with save_pretrained"
#: What transformers and the Hub's client say, in small letters, and what that means.
_MEANINGS = (
    (("trust_remote_code", "custom code"), _NO_CODE),
    (("gated repo", "401 client", "403 client"), "is not open to everyone; ask for access on the Hub and log in there"),
    (
        ("no file named model.safetensors", "does not appear to have a file named model.safetensors"),
        f"has no safetensors weights{_SAFETENSORS}",
    ),
    (
        ("couldn't connect", "offline mode", "cannot find the requested files", "connection error", "max retries"),
        "is not on this machine, and the Hub cannot be reached; check the name, or give a folder",
    ),
    (
        ("not a valid model identifier", "repository not found", "repo id must", "404 client"),
        "there is no such folder, and no such model on the Hub; check the name",
    ),
    (
        ("instantiate the backend tokenizer", "can't load tokenizer"),
        "has no tokenizer that can be read; save one into its folder (tokenizer.save_pretrained)",
    ),
    (("does not recognize this architecture",), "is of a kind that this version of transformers does not know"),
    (("unrecognized configuration class",), f"has no such head; choose another with {named('model.head')}"),
)


def explained(error: Exception, reading: str | None = None) -> str:
    """Return what an error of loading means, in one line.

    Args:
        error: what transformers raised.
        reading: the file whose values were being used.
    """
    reason = " ".join(str(error).split()) or type(error).__name__
    for signs, meaning in _MEANINGS:
        if any(sign in reason.lower() for sign in signs):
            return meaning
    if is_out_of_memory(error):
        return "does not fit into memory; choose a smaller model, or a narrower dtype"
    if reading and not isinstance(error, OSError | ImportError):  # a package may be missing
        return f"cannot be loaded by the values in its {reading} ({type(error).__name__}: {reason[:300]}); restore it"
    return f"cannot load this model ({reason[:300]}); check the name or the folder"


def check_checkpoint(name: str) -> None:
    """Raise BackboneError where a name means a place on this machine that holds no checkpoint, or a damaged one."""
    folder = Path(name)
    if not name.strip():
        raise BackboneError("the name of the model is empty; give a Hub name or a folder")
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        pass  # said below, or a name of the Hub
    except OSError as error:  # too long, not to be looked into, links in a circle
        raise BackboneError(f"{name[:80]}: cannot be looked up ({error.strerror or error}); check the path") from error
    if folder.is_dir():
        _check_folder(folder)
    elif folder.is_file():
        raise BackboneError(
            f"{name}: is a file, but not GGUF; give the folder with {CONFIG}, safetensors and tokenizer"
        )
    elif folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise BackboneError(f"{name}: there is no such folder; check the path, or give a Hub name")


def _check_folder(folder: Path) -> None:
    if not (folder / CONFIG).is_file() or ((folder / ADAPTER).is_file() and not any(folder.glob("model*.safetensors"))):
        raise BackboneError(f"{folder}: {_what_it_is(folder)}")
    if (folder / ADAPTER).is_file() and not any((folder / name).is_file() for name in _ADAPTER_WEIGHTS):
        raise BackboneError(
            f"{folder}: holds a model and {ADAPTER}, but not the adapter's weights ({_ADAPTER_WEIGHTS[0]}); remove "
            f"{ADAPTER}, or add the weights"
        )
    for path in sorted({path for pattern in _READ for path in folder.glob(pattern)}):
        _refuse_pointer(path)
    config = json_object(folder / CONFIG)
    kind = config.get("model_type")
    if not isinstance(kind, str | None):
        raise BackboneError(f"{folder / CONFIG}: model_type is {kind!r} and no name; restore it")
    if kind not in CONFIG_MAPPING:
        if config.get("auto_map"):
            raise BackboneError(f"{folder}: {_NO_CODE}")
        known = f"names the kind {kind!r}, which transformers does not know" if kind else "has no model_type"
        raise BackboneError(f"{folder / CONFIG}: {known}; restore it, or choose another model")
    _check_weights(folder, is_quantised=config.get("quantization_config") is not None)
    if not any(path.is_file() for pattern in _TOKENIZERS for path in folder.glob(pattern)):
        raise BackboneError(f"{folder}: holds no tokenizer; save one there (tokenizer.save_pretrained)")
    for path in (folder / name for name in _TOKENIZER_VALUES):
        if path.is_file():
            json_object(path)
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file() and not {"model", "added_tokens"} <= set(json_object(tokenizer)):
        raise BackboneError(f"{tokenizer}: is no tokenizer; restore it")


def _what_it_is(folder: Path) -> str:
    """Return what a folder without a model is, and what to give in its place."""
    if (folder / ADAPTER).is_file():
        base = json_object(folder / ADAPTER).get("base_model_name_or_path")
        return (
            f"is an adapter of PEFT, and no model; give its base model{f' ({base})' if base else ''}, merge it there "
            "(merge_and_unload), or import a prompt (cuecraft import)"
        )
    if (folder / "manifest.json").is_file():
        return "was written by cuecraft, and is no model; give the model that it was made for"
    if gguf := next(iter(sorted(folder.glob("*.gguf"))), None):
        return f"holds no {CONFIG}, but a GGUF file; give its path ({gguf})"
    return f"holds no model ({CONFIG} is missing); check the path"


def _check_weights(folder: Path, is_quantised: bool) -> None:
    files = [path for path in (folder / "model.safetensors",) if path.is_file()]
    if (folder / INDEX).is_file() and not files:
        index = json_object(folder / INDEX)
        shards = index.get("weight_map")
        if not isinstance(shards, dict) or not shards or not isinstance(index.get("metadata"), dict):
            raise BackboneError(f"{folder / INDEX}: names no weights, or has no metadata; restore it")
        for key, name in shards.items():
            if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
                raise BackboneError(
                    f"{folder / INDEX}: {key!r} is in {name!r}, which is no file of the folder; restore it"
                )
        files = [folder / name for name in sorted(set(shards.values()))]
    if not files:
        raise BackboneError(f"{folder}: {_what_weights(folder)}")
    for path in files:
        if not path.is_file():
            raise BackboneError(f"{folder}: {path.name} is missing; download the model again")
        _refuse_pointer(path)
        try:
            with safe_open(path, "pt") as weights:
                kinds = {key: weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise BackboneError(f"{path}: is damaged or cut short ({error}); download it again") from error
        integers = [key for key, kind in sorted(kinds.items()) if kind[0] in "IU" and key.endswith(".weight")]
        if integers and not is_quantised:
            raise BackboneError(
                f"{path}: its weights {integers[0]!r} are integers ({kinds[integers[0]]}), but {CONFIG} has no "
                "quantization_config that says how they are meant; restore it, or give weights of floats"
            )


def architectures(config: Any) -> list[str]:
    """Return the classes that a configuration says it was saved from.

    Raises:
        BackboneError: it names them in no list.
    """
    found = getattr(config, "architectures", None) or []
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise BackboneError(
            f"{config.name_or_path}: architectures of its {CONFIG} is {found!r}, and no list of names; restore it"
        )
    return found


def _what_weights(folder: Path) -> str:
    """Return what a folder holds in the place of weights under the name that is read, and what to do."""
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in _ADAPTER_WEIGHTS)
    if len(others) == 1 and "-of-" not in others[0]:
        return f"has its weights in {others[0]}, but model.safetensors is read; rename it"
    if others:
        return f"has its weights in several files ({', '.join(others[:3])}), but no {INDEX}; download it again"
    if pickled := next((path.name for pattern in _PICKLED for path in sorted(folder.glob(pattern))), None):
        return f"has its weights in {pickled}{_SAFETENSORS}"
    if gguf := next(iter(sorted(folder.glob("*.gguf"))), None):
        return f"has its weights in GGUF; give the path of that file ({gguf})"
    return "has no model.safetensors; download it again"


def check_quantisation(name: str, config: Any) -> None:
    """Raise BackboneError where a configuration names a kind of quantisation that transformers would pass over."""
    for own in (config, config.get_text_config()):
        found: Any = getattr(own, "quantization_config", None)
        found = found.to_dict() if hasattr(found, "to_dict") else found
        try:
            is_known = found is None or AutoHfQuantizer.supports_quant_method(found)
        except (ValueError, TypeError, AttributeError):  # no quant_method, or no object at all
            is_known = False
        if not is_known:
            method = found.get("quant_method") if isinstance(found, dict) else found
            raise BackboneError(
                f"{name}: quantization_config of its {CONFIG} names no kind that transformers knows (quant_method "
                f"{method!r}); restore it, or give weights that are not quantised"
            )


def check_read(name: str, model: Any, info: Mapping[str, Any], kind: HeadKind) -> None:
    """Raise BackboneError where the weights of a checkpoint are not those that its configuration asks for.

    Args:
        name: of the checkpoint.
        model: made by its configuration.
        info: what transformers says of the weights that it read.
        kind: the head that the model has.
    """
    for key, found, wanted in sorted(info["mismatched_keys"]):
        raise BackboneError(
            f"{name}: its weights {key!r} are {list(found)}, but {CONFIG} makes them {list(wanted)}; they are of "
            "two models, so download both again"
        )
    missing = sorted(key for key in info["missing_keys"] if not (kind is HeadKind.SEQUENCE and "pooler" in key))
    unexpected = sorted(info["unexpected_keys"])
    for key in unexpected:
        prefix = next((key.removesuffix(own) for own in missing if key.endswith(f".{own}")), None)
        if prefix:
            raise BackboneError(
                f"{name}: the names of its weights begin with {prefix!r}, as those of a wrapped model do; save the "
                "model inside the wrapper (save_pretrained of its module)"
            )
    body = model.base_model
    start = "" if body is model else f"{model.base_model_prefix}."
    of_body = {f"{start}{key}" for key in body.state_dict()} & set(missing)
    if of_body:
        raise BackboneError(
            f"{name}: the checkpoint has no weights for {min(of_body)!r} ({len(of_body)} missing), which its {CONFIG} "
            "asks for; they are of two models, so download both again"
        )
    if missing:
        raise BackboneError(
            f"{name}: the checkpoint has no weights for {missing[0]!r} ({len(missing)} missing), so it has no "
            f"{kind} head; choose another with {named('model.head')}"
        )
    left_out = [key for key in unexpected if _is_of_layers(key, body, model.base_model_prefix)]
    if left_out:
        raise BackboneError(
            f"{name}: the checkpoint has weights {left_out[0]!r} ({len(left_out)} such), for which its {CONFIG} makes "
            "no place, and the model would go without them; they are of two models, so download both again"
        )


def _is_of_layers(key: str, body: Any, prefix: str) -> bool:
    """Return whether weights that a model has no place for are of its own layers: of one more, or a bias of one.

    Heads that are not used, buffers of older versions, and parts that the architecture leaves out are neither.
    """
    module, parts = body, key.removeprefix(f"{prefix}.").split(".")
    for part in parts[:-1]:
        if isinstance(module, torch.nn.ModuleList) and part.isdigit() and int(part) >= len(module):
            return True
        module = getattr(module, part, None)
    return isinstance(module, torch.nn.Module) and parts[-1] in module._parameters


def _refuse_pointer(path: Path) -> None:
    """Raise BackboneError where a file is what Git LFS puts in the place of one that was not fetched."""
    try:
        with path.open("rb") as handle:
            is_pointer = handle.read(len(_POINTER)) == _POINTER
    except OSError as error:
        raise BackboneError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
    if is_pointer:
        raise BackboneError(
            f"{path}: is a pointer of Git LFS, and not the file itself; fetch it (git lfs pull) or download again"
        )


def json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        BackboneError: it holds none.
    """
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path}: cannot be read as JSON ({error}); restore it") from error
    if not isinstance(found, dict):
        raise BackboneError(f"{path}: holds no JSON object; restore it")
    return found


def checked_pair(given: Any) -> tuple[Any, Any]:
    """Return model and tokenizer of a pair in memory.

    Raises:
        BackboneError: it is no such pair, or nothing that names a model.
    """
    wanted = "give a name, a folder, or a pair (model, tokenizer)"
    if isinstance(given, tuple | list):
        if len(given) != 2:
            raise BackboneError(f"a model in memory is a pair (model, tokenizer), but {len(given)} were given")
        model, tokenizer = getattr(given[0], "_orig_mod", given[0]), given[1]  # what torch.compile wraps
        if _is_tokenizer(model) and _is_model(tokenizer):
            raise BackboneError("model and tokenizer are swapped; give (model, tokenizer)")
        if not _is_model(model):
            raise BackboneError(f"the first of the pair is {_kind(model)} and no transformers model; {wanted}")
        if not _is_tokenizer(tokenizer):
            raise BackboneError(f"the second of the pair is {_kind(tokenizer)} and no tokenizer; {wanted}")
        _check_in_memory(model)
        return model, tokenizer
    if isinstance(given, type):
        raise BackboneError(f"model is the class {given.__name__}, not a model; {wanted}")
    if _is_model(given):
        raise BackboneError(f"a model in memory ({_kind(given)}) comes with its tokenizer; give (model, tokenizer)")
    if _is_tokenizer(given):
        raise BackboneError(f"model is a tokenizer alone ({_kind(given)}); give (model, tokenizer)")
    if _is_model(getattr(given, "model", None)) and _is_tokenizer(getattr(given, "tokenizer", None)):
        raise BackboneError(f"model is a pipeline ({_kind(given)}); give (pipeline.model, pipeline.tokenizer)")
    raise BackboneError(f"model is {_kind(given)}; {wanted}")


def _check_in_memory(model: Any) -> None:
    """Raise BackboneError where a model's weights have no values or no gradient, or a prompt of PEFT wraps it."""
    kind = type(model).__name__
    weights = list(model.parameters())
    is_placed = any(hasattr(module, "_hf_hook") for module in model.modules())  # layers get their values for a pass
    if any(weight.is_meta for weight in weights) and not is_placed:
        raise BackboneError(f"{kind} has weights without values (on the device meta); load them with from_pretrained")
    if any(weight.is_inference() for weight in weights):
        raise BackboneError(
            f"{kind} was made in torch.inference_mode(), and no gradient can pass through it; load it outside"
        )
    if any(getattr(own, "is_prompt_learning", False) for own in (getattr(model, "peft_config", None) or {}).values()):
        raise BackboneError(
            f"{kind} holds a prompt of PEFT around its model; give the base model (get_base_model()), and import the "
            "prompt (cuecraft import)"
        )


def _is_model(given: Any) -> bool:
    return not isinstance(given, type) and all(
        hasattr(given, name) for name in ("config", "parameters", "get_input_embeddings")
    )


def _is_tokenizer(given: Any) -> bool:
    return not isinstance(given, type) and callable(given) and hasattr(given, "get_vocab")


def _kind(given: Any) -> str:
    return "None" if given is None else f"of type {type(given).__name__}"
