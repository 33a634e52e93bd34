"""Peak memory, step time, latency and queries per second on a GPU: discrete, prompt, prefix and full fine-tuning.

    make bench-gpu

Two configurations with random weights, of the size of BERT-base (masked) and of a 1B decoder (causal): time and memory
do not depend on what the weights are. Nothing is downloaded. Without a GPU it says so and leaves without a result;
`--device cpu --tiny` tries the script itself. Result: benchmarks/results/gpu.json, with the device's name.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from common import machine, write_result
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from cuecraft.backbone import AnyBackbone, load_backbone
from cuecraft.data import Record
from cuecraft.methods import make_method
from cuecraft.methods.candidate import Candidate, fresh_logits
from cuecraft.methods.prepare import make_problem, make_task
from cuecraft.study.compare.trial import peak_memory

WORDS = 4000
LENGTH = 64  # words of a text
EPOCHS = 3
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("autoprompt", {"steps": 4, "candidates": 24}),
    ("prompt-tuning", {"epochs": EPOCHS, "patience": EPOCHS}),
    ("prefix-tuning", {"epochs": EPOCHS, "patience": EPOCHS}),
    ("deep-cue", {"epochs": EPOCHS, "patience": EPOCHS}),
    ("lora", {"epochs": EPOCHS, "patience": EPOCHS}),
    ("full", {"epochs": EPOCHS, "patience": EPOCHS}),
)


@dataclass(frozen=True)
class Shape:
    """A configuration to measure."""

    name: str
    config: PretrainedConfig
    template: str


def shapes(vocabulary: int, is_tiny: bool) -> list[Shape]:
    """Return the configurations; tiny ones try the script."""
    size = {"vocab_size": max(vocabulary, 1000 if is_tiny else 32000), "pad_token_id": 0}
    bert: dict[str, Any] = {}
    llama: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    llama |= {"num_attention_heads": 32, "num_key_value_heads": 8}
    if is_tiny:
        bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        llama = bert | {"num_key_value_heads": 2}
    masked, causal = "{text}{prompt: w1 w2 w3 w4}{mask}.", "{text}{prompt: w1 w2 w3 w4}{mask}"
    return [
        Shape("bert-base", BertConfig(**size, **bert), masked),
        Shape("llama-1b", LlamaConfig(**size, **llama, bos_token_id=1, eos_token_id=2), causal),
    ]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a word, made here."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    words = [*special, ".", *(f"w{n}" for n in range(WORDS)), "good", "bad"]
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", **names)


def make_records(count: int) -> list[Record]:
    """Return texts of random words, of two classes."""
    ids = torch.randint(WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    return [Record({"text": " ".join(f"w{n}" for n in row)}, ("good", "bad")[n % 2]) for n, row in enumerate(ids)]


def make_backbone(shape: Shape, tokenizer: PreTrainedTokenizerFast, device: str, dtype: torch.dtype) -> AnyBackbone:
    """Return a backbone with random weights on the device."""
    kind = AutoModelForMaskedLM if isinstance(shape.config, BertConfig) else AutoModelForCausalLM
    torch.manual_seed(0)
    with torch.device(device):
        model = kind.from_config(shape.config, dtype=dtype)
    return load_backbone((model.to(device), tokenizer))


def wait(device: str) -> None:
    """Wait until the GPU has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(run: Callable[[], object], device: str, count: int) -> list[float]:
    """Return seconds of `count` calls, after one that warms up."""
    found = []
    for number in range(count + 1):
        wait(device)
        begun = time.perf_counter()
        run()
        wait(device)
        if number:
            found.append(time.perf_counter() - begun)
    return found


def measure(backbone: AnyBackbone, shape: Shape, device: str, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return a row for each method."""
    task = make_task(backbone, records[:32], shape.template, {"good": "good", "bad": "bad"})
    fresh = task.examples(records[32:])
    rows = []
    for name, options in METHODS:
        # Labels are random: without a dev set the trained candidate is kept, not the untuned one.
        problem = replace(make_problem(backbone, task, records[:32], records[32:64]), dev=None)
        wait(device)
        begun = time.perf_counter()
        with peak_memory(backbone.device) as memory:
            outcome = make_method(name, options).fit(problem)
            wait(device)
        seconds = time.perf_counter() - begun
        best: Candidate = outcome.best
        single = timed(lambda best=best: fresh_logits(backbone, task, [best], fresh[:1]), device, 20)
        many = timed(lambda best=best: fresh_logits(backbone, task, [best], fresh), device, 3)
        rows.append(
            {
                "configuration": shape.name,
                "method": name,
                "seconds": round(seconds, 3),
                "seconds_per_step": round(seconds / max(1, sum("train_loss" in event for event in outcome.trace)), 4),
                "peak_bytes": memory.peak,
                "latency_p50_ms": round(1000 * statistics.median(single), 2),
                "queries_per_second": round(len(fresh) / statistics.median(many), 1),
                "tuned": outcome.is_tuned,
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny configurations; writes no result")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU here: nothing was measured (benchmarks/gpu.py needs one)")
        return
    tokenizer = make_tokenizer()
    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    records = make_records(64 + (32 if options.tiny else 448))
    rows = []
    for shape in shapes(len(tokenizer), options.tiny):
        backbone = make_backbone(shape, tokenizer, options.device, dtype)
        rows += measure(backbone, shape, options.device, records)
        del backbone
    if not options.tiny:
        settings = {"words": LENGTH, "train": 32, "dtype": str(dtype), "methods": [list(entry) for entry in METHODS]}
        write_result("gpu.json", {"rows": rows, "settings": settings, "machine": machine()})


if __name__ == "__main__":
    main()
