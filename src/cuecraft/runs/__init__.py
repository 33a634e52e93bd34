"""What the commands do: files in, artifacts and JSON-ready documents out. Nothing is printed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuecraft.lazy import loaded_on_use

if TYPE_CHECKING:
    from cuecraft.runs.families import run_mix, run_multitask
    from cuecraft.runs.predicting import predict_records, read_texts
    from cuecraft.runs.requests import MultitaskRequest, TuneRequest, WordsRequest
    from cuecraft.runs.tune import run_tune
    from cuecraft.runs.words import run_words

__all__ = [
    "MultitaskRequest",
    "TuneRequest",
    "WordsRequest",
    "predict_records",
    "read_texts",
    "run_mix",
    "run_multitask",
    "run_tune",
    "run_words",
]

# Loaded on first use: an exported folder answers without PyTorch.
_HOMES = {
    **dict.fromkeys(("run_mix", "run_multitask"), "families"),
    **dict.fromkeys(("predict_records", "read_texts"), "predicting"),
    **dict.fromkeys(("MultitaskRequest", "TuneRequest", "WordsRequest"), "requests"),
    "run_tune": "tune",
    "run_words": "words",
}

__getattr__ = loaded_on_use(__name__, _HOMES)
