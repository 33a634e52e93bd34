"""Loading a backbone: a demo name, a local folder, a GGUF file, a Hub name, or model and tokenizer in memory."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from cuecraft.backbone.base import Backbone
from cuecraft.backbone.causal import CausalBackbone
from cuecraft.backbone.checkpoint import (
    CONFIG,
    architectures,
    check_checkpoint,
    check_quantisation,
    check_read,
    checked_pair,
    explained,
    json_object,
)
from cuecraft.backbone.encoder import MaskedBackbone, Pooling, SequenceBackbone
from cuecraft.backbone.hooks import ordinary_tensors
from cuecraft.backbone.hosted import borrowed, within_vocabulary
from cuecraft.core import assets
from cuecraft.core.errors import BackboneError, CuecraftError, CuecraftWarning
from cuecraft.core.remembered import LARGE, keep, recall
from cuecraft.task.rendering import HeadKind
from cuecraft.task.token_text import copied_tokenizer

AnyBackbone = CausalBackbone | MaskedBackbone | SequenceBackbone

NF4 = "nf4"
_AUTO_CLASS = {
    HeadKind.CAUSAL: AutoModelForCausalLM,
    HeadKind.MASKED: AutoModelForMaskedLM,
    HeadKind.SEQUENCE: AutoModel,
}


def load_backbone(
    model: str | Path | tuple[Any, Any] | AnyBackbone,
    head: str | None = None,
    device: str = "auto",
    local_files_only: bool = False,
    dtype: str = "auto",
) -> AnyBackbone:
    """Return a frozen backbone.

    Args:
        model: a demo name such as ``demo:smollm2-135m``, a folder, a GGUF file (of a split one any part), converted
            once into the user's cache, a Hub name, a `(model, tokenizer)` pair, whose model stays as it is and shares
            its weights, or a backbone (returned as it is).
        head: ``causal``, ``masked`` or ``sequence``; by default what the checkpoint was saved as, and ``sequence``
            for one without a language head.
        device: a torch device, or ``auto``: a GPU if there is one.
        local_files_only: never ask the Hub (as the environment variable HF_HUB_OFFLINE=1 does).
        dtype: of the weights: ``float32``, ``bfloat16``, ``float16``, or ``auto``: float32 on a CPU; on a GPU bfloat16,
            or float16 where it has none; or ``nf4``: 4 bits a weight, as in QLoRA (Dettmers et al., NeurIPS 2023, arXiv
            2305.14314), through bitsandbytes and on a GPU only. Class scores, losses and tuned vectors are float32 in
            any case. A model in memory keeps its own.

    A name is loaded once in a process and shared after that. Weights are read from safetensors only (GGUF is converted
    to them), and no code of a model's repository is run.

    Raises:
        BackboneError: not found, not loadable, or without the head asked for.
        AssetError: a demo model is not installed, or the cache of converted models is damaged.
    """
    if isinstance(model, Backbone):
        return model
    kind = _head_kind(head)
    if not isinstance(model, str | Path):
        return _from_memory(*checked_pair(model), kind)
    device, dtype = str(device), str(dtype).removeprefix("torch.")
    where = device_named(device)
    if dtype == NF4:
        _require_nf4(where)
    kept = (local_files_only, _dtype("auto" if dtype == NF4 else dtype, where), dtype)
    loaded = _load(str(model), kind, where, *kept)
    if loaded.source is None:
        own = {"head": head, "device": device, "local_files_only": local_files_only, "dtype": dtype}
        loaded.source = {"model": str(model), **own}
    return loaded


def _head_kind(head: str | None) -> HeadKind | None:
    try:
        return HeadKind(head) if head is not None else None
    except ValueError:
        raise BackboneError(f"head {head!r} is unknown; choose {', '.join(HeadKind)}") from None


def device_named(device: str) -> str:
    """Return the torch device of a name; `auto` takes a GPU if there is one.

    Raises:
        BackboneError: it cannot be used.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BackboneError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _require_nf4(device: str) -> None:
    """Raise BackboneError where weights of 4 bits cannot be had."""
    if not device.startswith("cuda"):
        raise BackboneError(
            f"dtype {NF4} (4-bit weights) needs a CUDA GPU, but the device is {device}; leave it at auto"
        )
    if find_spec("bitsandbytes") is None:
        raise BackboneError(f"dtype {NF4} (4-bit weights) needs bitsandbytes: pip install 'cuecraft[nf4]'")


def _quantization(dtype: torch.dtype) -> Any:
    """Return the settings of QLoRA's backbone: NF4, doubly quantised."""
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _dtype(dtype: str, device: str) -> torch.dtype:
    """Return the weights' type: by the device, not by fashion."""
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    on_gpu = device.startswith("cuda")
    if dtype == "auto":
        if not on_gpu:
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if dtype not in kinds:
        raise BackboneError(f"dtype {dtype!r} is unknown; choose auto, {', '.join(kinds)}, {NF4}")
    if device == "cpu" and dtype != "float32" and not _has_fast_half_precision():
        warnings.warn(
            f"{dtype} is 10 to 20 times slower than float32 on this CPU; leave dtype at auto",
            CuecraftWarning,
            stacklevel=3,
        )
    return kinds[dtype]


def _has_fast_half_precision() -> bool:
    """Return whether the CPU multiplies half-precision matrices in hardware (Linux; elsewhere taken as no)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


@lru_cache(maxsize=4)
@ordinary_tensors()
def _load(
    name: str, head: HeadKind | None, device: str, local_files_only: bool, dtype: torch.dtype, asked: str
) -> AnyBackbone:
    if assets.is_known(name):  # of these, the files are checked by their hashes
        with _quiet():
            folder = str(assets.model_folder(name))
    else:
        folder = name
        check_checkpoint(name)
    where = {"pretrained_model_name_or_path": folder, "local_files_only": local_files_only}
    with _quiet(), _readable_errors(name, CONFIG):
        config = AutoConfig.from_pretrained(**where, trust_remote_code=False)
    _refuse_encoder_decoder(config)
    check_quantisation(name, config)
    kind = head or _saved_head(config)
    with _quiet(), _readable_errors(name, "tokenizer's files"):
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
    with _quiet(), _readable_errors(name, CONFIG):
        model, info = _AUTO_CLASS[kind].from_pretrained(
            **where,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that these are named, and refused, below
            # Weights of 4 bits are made on the GPU while they are read, and cannot be moved afterwards.
            **({"quantization_config": _quantization(dtype), "device_map": device} if asked == NF4 else {}),
        )
    check_read(name, model, info, kind)
    pooling = _pooling(_snapshot(folder), config)
    with _readable_errors(name):
        model = model if asked == NF4 else model.to(device)
        loaded = _checked_once(model, tokenizer, name, kind, pooling)
    loaded.local_files_only = local_files_only
    return loaded


@ordinary_tensors()
def _from_memory(model: Any, tokenizer: Any, head: HeadKind | None) -> AnyBackbone:
    _refuse_encoder_decoder(model.config)
    kind = head or _saved_head(model.config, type(model).__name__)
    if kind is HeadKind.SEQUENCE:
        model = model.base_model
    elif model.get_output_embeddings() is None:
        raise BackboneError(f"{type(model).__name__} has no output embedding, so it is no {kind} language model")
    name = f"{type(model).__name__} in memory"
    # Copies, so that nothing the caller does with model and tokenizer meanwhile changes an answer.
    model, tokenizer = borrowed(model), copied_tokenizer(tokenizer)
    with _readable_errors(name):
        return _wrap(model, tokenizer, name, kind, lambda: _hash_state(model, tokenizer), _pooling(None, model.config))


def _checked_once(model: Any, tokenizer: Any, name: str, kind: HeadKind, pooling: Pooling) -> AnyBackbone:
    """Return a backbone of files; what its check finds is kept, since the passes of the check take as long as a load.

    The check is made again where files, device, number type, torch, transformers, or this package's own code differ.
    """
    if sum(own.numel() * own.element_size() for own in model.parameters()) < LARGE:
        return _wrap(model, tokenizer, name, kind, lambda: _hash_files(name), pooling)
    sha256 = _hash_files(name)
    device = next(model.parameters()).device
    key = {
        "check": kind,
        "model": sha256,
        "config": hashlib.sha256(model.config.to_json_string().encode()).hexdigest(),
        "dtype": str(model.dtype),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": [torch.__version__, transformers.__version__, _own_code()],
    }
    known = recall(key)
    loaded = _wrap(model, tokenizer, name, kind, lambda: sha256, pooling, known if isinstance(known, bool) else None)
    if not isinstance(known, bool):
        keep(key, loaded.shares_context if isinstance(loaded, CausalBackbone) else True)
    return loaded


@cache
def _own_code() -> str:
    """Return the hash of the modules that a backbone is made of."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def _wrap(
    model: Any,
    tokenizer: Any,
    name: str,
    kind: HeadKind,
    fingerprint: Callable[[], str],
    pooling: Pooling,
    known: bool | None = None,
) -> AnyBackbone:
    """Return a backbone; `known` is what an earlier check found: of a causal one, whether it shares contexts."""
    tokenizer = within_vocabulary(tokenizer, model, name)
    if kind is HeadKind.CAUSAL:
        return CausalBackbone(model, tokenizer, name, fingerprint, shares_context=known)
    if kind is HeadKind.MASKED:
        if tokenizer.mask_token_id is None:
            raise BackboneError(f"{name}: its tokenizer has no mask token, so it cannot fill {{mask}}")
        backbone: MaskedBackbone | SequenceBackbone = MaskedBackbone(model, tokenizer, name, fingerprint)
    else:
        backbone = SequenceBackbone(model, tokenizer, name, fingerprint, pooling)
    if known is None:
        backbone.check()
    return backbone


def _refuse_encoder_decoder(config: Any) -> None:
    """Raise BackboneError for T5, BART and similar models, whatever head is asked for."""
    if getattr(config, "is_encoder_decoder", False):
        raise BackboneError(f"{config.model_type} is an encoder-decoder, which is not supported; use a causal model")


def _saved_head(config: Any, class_name: str | None = None) -> HeadKind:
    """Return what a checkpoint was saved as."""
    saved = class_name or next(iter(architectures(config)), "")
    if saved.endswith(("ForMaskedLM", "ForPreTraining")):
        return HeadKind.MASKED
    if saved.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return HeadKind.CAUSAL
    return HeadKind.SEQUENCE


def _pooling(folder: Path | None, config: Any) -> Pooling:
    """Follow a sentence-transformers folder's own pooling; else mean for encoders, last token for decoders."""
    declared = folder / "1_Pooling" / "config.json" if folder else None
    if declared is not None and declared.is_file():
        options = json_object(declared)
        modes = {name.removeprefix("pooling_mode_") for name, value in options.items() if value is True}
        known = {"cls_token": Pooling.CLS, "mean_tokens": Pooling.MEAN, "lasttoken": Pooling.LAST}
        if chosen := [known[mode] for mode in modes & set(known)]:
            return chosen[0]
        raise BackboneError(f"{declared}: pooling by {', '.join(sorted(modes)) or 'nothing'} is not supported")
    is_decoder = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING and (
        type(config) not in transformers.MODEL_FOR_MASKED_LM_MAPPING
    )
    return Pooling.LAST if is_decoder else Pooling.MEAN


def _snapshot(name: str) -> Path:
    """Return the folder that holds a checkpoint's files: itself, or the Hub's cached snapshot."""
    if os.path.isdir(name):
        return Path(name)
    return Path(transformers.utils.cached_file(name, "config.json", local_files_only=True)).parent


def checkpoint_hash(name: str) -> str | None:
    """Return the hash that a checkpoint's files would have as a backbone; None where they are not on this machine."""
    try:
        return _hash_files(name)
    except (OSError, ValueError):  # no such folder, not in the Hub's cache, or no name at all
        return None


def _hash_files(name: str) -> str:
    """Return the hash of a checkpoint's files."""
    digest = hashlib.sha256()
    for part, sha256 in assets.model_parts(name if assets.is_known(name) else str(_snapshot(name))):
        digest.update(f"{part} {sha256}\n".encode())
    return digest.hexdigest()


def _hash_state(model: Any, tokenizer: Any) -> str:
    digest = hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _readable_errors(name: str, reading: str | None = None) -> Iterator[None]:
    try:
        yield
    except CuecraftError:
        raise
    except Exception as error:  # loaders raise whatever they like for a file that is damaged or not theirs
        raise BackboneError(f"{name}: {explained(error, reading)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and notices off the terminal while loading, for one load at a time.

    Both are settings of the process: a load that began within another one would put back what that one had set.
    """
    logging = transformers.utils.logging
    with _ONE_LOAD_AT_A_TIME:
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()


_ONE_LOAD_AT_A_TIME = threading.RLock()
