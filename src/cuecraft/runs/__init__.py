"""What the commands do: files in, artifacts and JSON-ready documents out. Nothing is printed here."""

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
