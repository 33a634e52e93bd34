"""What a checkpoint lacks, said before transformers tries to read it, and what transformers says, in our words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING

from cuecraft.errors import BackboneError
from cuecraft.storage import parse_json

CONFIG, ADAPTER, INDEX = "config.json", "adapter_config.json", "model.safetensors.index.json"
_POINTER = b"version https://git-lfs"
_READ = ("*.json", "*.txt", "*.model")  # kinds of file that loading reads, over the weights
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "*.model", "vocab.txt", "vocab.json")
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
    (("unrecognized configuration class",), "has no such head; choose another with head=/--head"),
)


def explained(error: Exception) -> str:
    """Return what an error of loading means, in one line."""
    reason = " ".join(str(error).split()) or type(error).__name__
    for signs, meaning in _MEANINGS:
        if any(sign in reason.lower() for sign in signs):
            return meaning
    return f"cannot load this model ({reason[:300]}); check the name or the folder"


def check_checkpoint(name: str) -> None:
    """Raise BackboneError where a name means a place on this machine that holds no checkpoint, or a damaged one."""
    folder = Path(name)
    if not name.strip():
        raise BackboneError("the name of the model is empty; give a Hub name or a folder")
    if folder.is_dir():
        _check_folder(folder)
    elif folder.suffix.lower() == ".gguf":
        what = "is a GGUF file, of which only the demo model is read" if folder.is_file() else "there is no such file"
        raise BackboneError(f"{name}: {what}; give a folder with config.json, safetensors and tokenizer, or a Hub name")
    elif folder.is_file():
        raise BackboneError(f"{name}: is a file; give the folder with {CONFIG}, safetensors and tokenizer")
    elif folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise BackboneError(f"{name}: there is no such folder; check the path, or give a Hub name")


def _check_folder(folder: Path) -> None:
    if not (folder / CONFIG).is_file() or ((folder / ADAPTER).is_file() and not any(folder.glob("model*.safetensors"))):
        raise BackboneError(f"{folder}: {_what_it_is(folder)}")
    for path in sorted({path for pattern in _READ for path in folder.glob(pattern)}):
        _refuse_pointer(path)
    config = json_object(folder / CONFIG)
    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        if config.get("auto_map"):
            raise BackboneError(f"{folder}: {_NO_CODE}")
        known = f"names the kind {kind!r}, which transformers does not know" if kind else "has no model_type"
        raise BackboneError(f"{folder / CONFIG}: {known}; restore it, or choose another model")
    _check_weights(folder)
    if not any(path.is_file() for pattern in _TOKENIZERS for path in folder.glob(pattern)):
        raise BackboneError(f"{folder}: holds no tokenizer; save one there (tokenizer.save_pretrained)")
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
    if any(folder.glob("*.gguf")):
        return f"holds a GGUF file, of which only the demo model is read; give a folder with {CONFIG} and safetensors"
    return f"holds no model ({CONFIG} is missing); check the path"


def _check_weights(folder: Path) -> None:
    files = [path for path in (folder / "model.safetensors",) if path.is_file()]
    if (folder / INDEX).is_file() and not files:
        shards = json_object(folder / INDEX).get("weight_map")
        names = sorted(set(shards.values())) if isinstance(shards, dict) else []
        files = [folder / str(name) for name in names]
        if not files:
            raise BackboneError(f"{folder / INDEX}: names no weights; restore it")
    if not files:
        pickled = next((path.name for pattern in _PICKLED for path in folder.glob(pattern)), None)
        held = (
            f"has its weights in {pickled}{_SAFETENSORS}" if pickled else "has no model.safetensors; download it again"
        )
        raise BackboneError(f"{folder}: {held}")
    for path in files:
        if not path.is_file():
            raise BackboneError(f"{folder}: {path.name} is missing; download the model again")
        _refuse_pointer(path)
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise BackboneError(f"{path}: is damaged or cut short ({error}); download it again") from error


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
    """Return the object that a file of a checkpoint holds; raises BackboneError where it holds none."""
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
        model, tokenizer = given
        if _is_tokenizer(model) and _is_model(tokenizer):
            raise BackboneError("model and tokenizer are swapped; give (model, tokenizer)")
        if not _is_model(model):
            raise BackboneError(f"the first of the pair is {_kind(model)} and no transformers model; {wanted}")
        if not _is_tokenizer(tokenizer):
            raise BackboneError(f"the second of the pair is {_kind(tokenizer)} and no tokenizer; {wanted}")
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


def _is_model(given: Any) -> bool:
    return not isinstance(given, type) and all(
        hasattr(given, name) for name in ("config", "parameters", "get_input_embeddings")
    )


def _is_tokenizer(given: Any) -> bool:
    return not isinstance(given, type) and callable(given) and hasattr(given, "get_vocab")


def _kind(given: Any) -> str:
    return "None" if given is None else f"of type {type(given).__name__}"
