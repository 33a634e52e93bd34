"""Selectors and calibrations for the choice without labels, tried on data that no comparison reports on.

    python benchmarks/label_free_study.py

Tasks: 360 sentences of sst2-full's training file that are in no split of the benchmark, with three pairs of label
words; and first paragraphs of docstrings of Python's standard library, 70 for each of five subjects. Some texts of each
class choose, drawn 20 times; all others test. `ratio` is the chosen cue's accuracy over that of the best cue of the
pool with the same calibration, mean over the draws. `skewed` draws a fifth as many texts of the class `positive`, with
its true share given. Result: benchmarks/results/label_free_study.json. The docstrings are those of the Python that runs
this.
"""

from __future__ import annotations

import importlib
import inspect
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from common import DATA, machine, require_data, write_result
from label_free import CALIBRATIONS, MODEL, ask, report, task_of
from torch import Tensor

from cuecraft.backbone import AnyBackbone, load_backbone
from cuecraft.core.seeding import numpy_generator
from cuecraft.data import Record, read_records, subsample
from cuecraft.methods.prepare import label_free_problem
from cuecraft.methods.search.label_free.answers import Answers

DRAWS = 20
PAIRS = (("negative", "positive"), ("bad", "good"), ("terrible", "great"))
SUBJECTS = {
    "mathematics": "math statistics fractions decimal cmath random numbers",
    "network": "socket http.client urllib.request urllib.parse smtplib ftplib ssl email.message imaplib ipaddress",
    "files": "os os.path shutil pathlib tempfile zipfile tarfile glob fileinput",
    "time": "datetime time calendar zoneinfo sched",
    "text": "re string textwrap difflib codecs unicodedata html html.parser gettext",
}


@dataclass(frozen=True)
class Pool:
    """What all cues answer to the texts of a task, and the truth `[X]`."""

    answers: Answers
    truth: Tensor
    cues: list[str]

    @property
    def classes(self) -> int:
        return self.answers.logits.shape[-1]


def sentences() -> list[Record]:
    used = {record.fields["text"] for path in (DATA / "sst-2").rglob("*.jsonl") for record in read_records(path)}
    rows = read_records(DATA.parent / "sst2-full" / "train.jsonl")
    return subsample([record for record in rows if record.fields["text"] not in used], 360, 5)


def docstrings() -> list[Record]:
    found = []
    for subject, names in SUBJECTS.items():
        texts = sorted({text for name in names.split() for text in paragraphs(name)})
        found += subsample([Record({"text": text}, subject) for text in texts], 70, 0)
    return found


def paragraphs(name: str) -> Iterator[str]:
    """Yield the first paragraphs of docstrings of a module, of 5 to 45 words."""
    module = importlib.import_module(name)
    own = [value for key, value in vars(module).items() if not key.startswith("_") and not inspect.ismodule(value)]
    parts = [value for kind in own if inspect.isclass(kind) for key, value in vars(kind).items() if key[0] != "_"]
    for thing in (module, *own, *parts):
        text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
        if callable(thing) and 5 <= len(text.split()) <= 45:
            yield text


def read(backbone: AnyBackbone, records: Sequence[Record], labels: Sequence[str]) -> Pool:
    task = task_of(backbone, records, labels)
    answers = ask(label_free_problem(backbone, task, records))
    truth = torch.tensor([labels.index(str(record.label)) for record in records])
    return Pool(answers, truth, [backbone.tokenizer.decode(list(ids)) for ids in answers.prompts])


def study(pool: Pool, counts: Sequence[int], prior: Sequence[float], tested: Sequence[int] | None) -> dict[str, Any]:
    """Return the means over draws of `counts` texts of each class; `tested` others of each, or all others."""
    rows: list[dict[str, Any]] = []
    for draw in range(DRAWS):
        chosen, others = [], []
        for label, count in enumerate(counts):
            own = torch.nonzero(pool.truth == label).flatten().numpy()
            order = numpy_generator(draw, f"study/{label}").permutation(own).tolist()
            chosen += order[:count]
            others += order[count : None if tested is None else count + tested[label]]
        answers = replace(pool.answers, logits=pool.answers.logits[:, chosen])
        test, truth = pool.answers.logits[:, others], pool.truth[others]
        rows.append(report(answers, test, truth, torch.tensor(prior).double(), pool.cues))
    found: dict[str, Any] = {}
    for kind in CALIBRATIONS:
        own_rows = [row[kind] for row in rows]
        found[kind] = {key: round(statistics.mean(row[key] for row in own_rows), 4) for key in ("best", "median")}
        for measure in ("ratio", "macro_f1"):
            found[kind][measure] = {
                name: round(statistics.mean(row["chosen"][name][measure] for row in own_rows), 4)
                for name in own_rows[0]["chosen"]
            }
    return found


def main() -> None:
    require_data()
    backbone = load_backbone(MODEL)
    results = {}
    pool = read(backbone, docstrings(), list(SUBJECTS))
    for count in (16, 40):
        results[f"docstrings, {count} a class"] = study(pool, [count] * 5, [0.2] * 5, None)
    records = sentences()
    for pair in PAIRS:
        named = [Record(record.fields, pair[record.label == "positive"]) for record in records]
        pool = read(backbone, named, pair)
        name = "/".join(pair)
        for count in (32, 80):
            results[f"sentences, {name}, {count} a class"] = study(pool, [count] * 2, [0.5] * 2, None)
        results[f"sentences, {name}, skewed"] = study(pool, [80, 16], [80 / 96, 16 / 96], [80, 16])
    write_result("label_free_study.json", {"model": MODEL, "results": results, "machine": machine()})


if __name__ == "__main__":
    main()
