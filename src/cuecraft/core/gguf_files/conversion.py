"""The conversion of a GGUF model to float32 safetensors, through transformers, and what makes it refuse.

What the file says of a model and transformers leaves at its defaults is put into the configuration first.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from math import pi
from pathlib import Path
from typing import Any

import numpy as np

from cuecraft.core.errors import BackboneError
from cuecraft.core.gguf_files.header import Header, join_parts, read_header

#: Keys of GGUF, and the attribute of a configuration that has the same meaning in all architectures.
_SAME = {
    "context_length": "max_position_embeddings",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_TWO_WIDTHS = "gemma4"  # its layers have heads of two widths, and the file names the wider
#: Llama 3.1 and its successors (Dubey et al. 2024, arXiv 2407.21783) have these in common; GGUF keeps their outcome.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_INSTEAD = "give a folder with config.json, safetensors and tokenizer of the same model, or a Hub name"
_NEEDED = ("gguf", "accelerate")  # transformers reads GGUF files through both


def amend(config: Any, headers: Sequence[Header]) -> None:
    """Put into a configuration of transformers what the file says and transformers passed over.

    Raises:
        BackboneError: the file scales its rotary positions in a way that cannot be carried over.
    """
    header = headers[0]
    for key, name in _SAME.items():
        value = header.own(key)
        if value is not None and hasattr(config, name) and not header.architecture.startswith(_TWO_WIDTHS):
            setattr(config, name, value)
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return
    full = rope.get("full_attention", rope)  # Gemma 3 has others in its windowed layers, which are never scaled
    if "rope_theta" in rope:
        _amend_plain(config, header, rope)
    _scale(header, full)
    _amend_llama3(headers, full)


def _amend_plain(config: Any, header: Header, rope: dict[str, Any]) -> None:
    """Set the base of the rotations, and the share of a head that is rotated."""
    base, width = header.own("rope.freq_base"), header.own("rope.dimension_count")
    if base is not None:
        rope["rope_theta"] = base
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if width is not None and (width != head or "partial_rotary_factor" in rope):
        rope["partial_rotary_factor"] = width / head


def _scale(header: Header, rope: dict[str, Any]) -> None:
    kind, factor = header.own("rope.scaling.type"), header.own("rope.scaling.factor")
    is_known = kind == "linear" and factor is not None
    has_factors = any(tensor.name.startswith("rope_factors") for tensor in header.tensors)
    if has_factors or (kind not in (None, "none") and not is_known):
        raise _unscaled(header, "longrope" if has_factors else kind)
    if is_known and factor != 1:
        rope.update(rope_type="linear", factor=factor)


def _amend_llama3(headers: Sequence[Header], rope: dict[str, Any]) -> None:
    """Find the settings of Llama 3's rotary scaling, of which a file keeps one factor for each frequency.

    Raises:
        BackboneError: the factors are of other settings.
    """
    found = next((found for header in headers if (found := header.floats("rope_freqs.weight")) is not None), None)
    if found is None or np.all(found == 1):
        return
    factor = float(found.max())
    length = 2 * pi * rope["rope_theta"] ** (np.arange(len(found)) / len(found))
    low, high, positions = (_LLAMA3[name] for name in _LLAMA3)
    share = np.clip((positions / length - low) / (high - low), 0, 1)
    if not np.allclose(found, 1 / ((1 - share) / factor + share), rtol=1e-3):
        raise _unscaled(headers[0], "unknown settings")
    rope.update(rope_type="llama3", factor=factor, **_LLAMA3)


def _unscaled(header: Header, kind: str) -> BackboneError:
    return BackboneError(
        f"{header.path}: its rotary positions are scaled ({kind}), which is not carried over from GGUF; give a folder "
        "with config.json, safetensors and tokenizer of the same model, or a Hub name"
    )


def convert(files: Sequence[Path], folder: Path) -> None:
    """Write a GGUF model as a folder that `from_pretrained` reads, in float32.

    Args:
        files: of the model, in order.
        folder: an empty one.

    Raises:
        BackboneError: a file is damaged, or not one that transformers reads; packages or space are missing.
    """
    name = files[0]
    if missing := [package for package in _NEEDED if find_spec(package) is None]:
        raise BackboneError(f"{name}: reading GGUF needs {' and '.join(missing)}; pip install 'cuecraft[gguf]'")
    headers = [read_header(file) for file in files]
    _refuse(headers)
    _check_space(headers, folder)
    with tempfile.TemporaryDirectory(prefix="gguf-", dir=folder.parent) as scratch, _one_line(headers[0]):
        _write(headers, _alone(headers, Path(scratch)), folder)


def _alone(headers: Sequence[Header], scratch: Path) -> Path:
    """Return a file of the whole model in a folder of its own: transformers would read what else lies next to it."""
    target = scratch / "model.gguf"
    if len(headers) > 1:
        join_parts(headers, target)
        return target
    source = headers[0].path.resolve()
    try:
        target.symlink_to(source)
    except OSError:  # Windows lets only some users make links
        shutil.copyfile(source, target)
    return target


def _write(headers: Sequence[Header], file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    source |= {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(**source)
    if config.is_encoder_decoder:
        raise BackboneError(
            f"{headers[0].path}: {config.model_type} is an encoder-decoder, which is not supported; use a causal model"
        )
    amend(config, headers)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    model, info = AutoModelForCausalLM.from_pretrained(
        **source, config=config, dtype=torch.float32, output_loading_info=True
    )
    _check_weights(headers, model, info["missing_keys"])
    # transformers 5 refuses to save a model that still carries its GGUF quantisation: move the weights into a
    # fresh model of the same shape.
    config = model.config
    del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(folder)


def _refuse(headers: Sequence[Header]) -> None:
    """Raise BackboneError where the file is no language model, or only a part of one."""
    first = headers[0]
    kind, part_count = first.values.get("general.type", "model"), first.values.get("split.count", 1)
    if kind != "model":
        raise BackboneError(f"{first.path}: holds no model (general.type is {kind!r}); give the file of the model")
    if not isinstance(first.values.get("general.architecture"), str):
        raise BackboneError(f"{first.path}: names no architecture (general.architecture); download it again")
    if len(headers) == 1 and part_count > 1:
        raise BackboneError(
            f"{first.path}: is one of {part_count} parts, whose names end in -00001-of-{part_count:05}.gguf and so on; "
            "give all of them their names again"
        )
    if first.own("attention.causal") is False:
        raise BackboneError(f"{first.path}: reads in both directions, which is not read from GGUF; {_INSTEAD}")


def _check_space(headers: Sequence[Header], folder: Path) -> None:
    """Raise BackboneError where the disk is too full for 4 bytes a weight (and for joining the parts)."""
    wanted = sum(4 * tensor.count for header in headers for tensor in header.tensors)
    if len(headers) > 1:
        wanted += sum(tensor.size for header in headers for tensor in header.tensors)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise BackboneError(
            f"{headers[0].path}: in float32 it needs {wanted / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB are free "
            "in the cache; free some, or set CUECRAFT_CACHE to a folder that has them"
        )


def _check_weights(headers: Sequence[Header], model: Any, missing: Sequence[str]) -> None:
    """Raise BackboneError where the model lacks weights, or the file has some that the model takes no notice of."""
    name, kind = headers[0].path, headers[0].architecture
    if missing:
        raise BackboneError(
            f"{name}: has no weights for {min(missing)!r} ({len(missing)} missing), which {kind} of transformers asks "
            f"for; download it again, or {_INSTEAD}"
        )
    taken = sum({tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}.values())
    given = [tensor for header in headers for tensor in header.tensors if not tensor.name.startswith("rope_f")]
    count = sum(tensor.count for tensor in given)
    if model.config.tie_word_embeddings:  # some converters write the shared matrix twice
        count -= sum(tensor.count for tensor in given if tensor.name == "output.weight")
    if count != taken:
        raise BackboneError(
            f"{name}: has {count:,} weights, and {kind} of transformers takes {taken:,}, so the model would answer "
            f"otherwise; {_INSTEAD}"
        )


@contextmanager
def _one_line(header: Header) -> Iterator[None]:
    """Say in one line what transformers raises for a file that it does not read."""
    try:
        yield
    except BackboneError:
        raise
    except Exception as error:  # transformers raises whatever it likes
        if isinstance(error, OSError) and error.errno is not None:  # of the disk: said where the cache is written
            raise
        raise _refused(header, error) from error


def _refused(header: Header, error: Exception) -> BackboneError:
    from transformers import __version__

    reason = " ".join(str(error).split()).replace(os.sep.join(("", "model.gguf")), "")[:200] or type(error).__name__
    if "not supported yet" in reason and "rchitecture" in reason:
        what = f"its architecture is {header.architecture!r}, which transformers {__version__} does not read from GGUF"
    elif isinstance(error, MemoryError):
        what = "does not fit into memory in float32"
    else:
        what = f"transformers {__version__} cannot read it ({type(error).__name__}: {reason})"
    return BackboneError(f"{header.path}: {what}; {_INSTEAD}")
