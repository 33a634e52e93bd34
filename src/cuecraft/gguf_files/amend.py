"""What a GGUF file says of a model and transformers leaves at its defaults, put into the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import Any

import numpy as np

from cuecraft.errors import BackboneError
from cuecraft.gguf_files.header import Header

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
