"""One benchmark task on the backbone, and the settings that all speed benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from common import DATA

from cuecraft.artifact import Calibration, Prompt, SoftPrompt
from cuecraft.backbone import CausalBackbone, load_backbone
from cuecraft.data import read_records, subsample
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.prepare import make_task
from cuecraft.methods.problem import Labelled, label_context
from cuecraft.task import Example, Task

MODEL = "demo:smollm2-135m"
CUE = "\nIn one word, this is it"  # eight tokens
LENGTH = 8
CANDIDATES = 24
FIRST_CANDIDATE = 1000
TASKS = ("sst-2", "agnews")
ENCODERS = ("demo:minilm", "demo:bert-tiny-mlm")
PREDICTED = {"sst-2": 128, "agnews": 128}  # test texts of the prediction runs
MEMORY_LENGTHS = (64, 256, 1024)
MEMORY_TEXTS = 4
CURVE_LENGTHS = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Bench:
    """One task on the backbone."""

    name: str
    backbone: CausalBackbone
    task: Task
    train: Labelled
    examples: list[Example]
    test: list[Example]
    cue: tuple[int, ...]
    rounds: int

    @classmethod
    def of(cls, name: str, count: int) -> Bench:
        backbone = load_backbone(MODEL)
        assert isinstance(backbone, CausalBackbone)
        train = read_records(DATA / name / "seed-13" / "train.jsonl")
        test = subsample(read_records(DATA / name / "test.jsonl"), PREDICTED[name], 0)
        task = make_task(backbone, train, "{text}{prompt}{mask}")
        examples = task.examples(train)
        cue = tuple(backbone.tokenizer(CUE, add_special_tokens=False)["input_ids"])
        assert len(cue) == LENGTH
        data = label_context(backbone, task, examples)
        return cls(name, backbone, task, data, examples, task.examples(test), cue, count)

    @property
    def classes(self) -> int:
        return self.task.verbalizer.num_classes

    def plain(self, prompt: Prompt) -> Candidate:
        return Candidate(prompt, Calibration.none(self.classes))

    def soft(self, length: int = LENGTH) -> Prompt:
        ids = torch.tensor(self.cue[-length:])
        noise = torch.randn(length, self.backbone.hidden_size, generator=torch.Generator().manual_seed(length))
        return SoftPrompt(self.backbone.embed(ids) + 0.01 * noise)
