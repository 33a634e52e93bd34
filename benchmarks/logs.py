"""Anomalous lines of a supercomputer's log, few-shot by time order, next to rules and TF-IDF; one result file.

    make bench-logs
    python benchmarks/logs.py [--methods zero-shot,deep-cue] [--seeds 1,2,3]

Data: CUECRAFT_DATA/logs/bgl-1k.jsonl, 1,000 lines of Blue Gene/L in time order. The first 300 lines are what a person
has labelled; the other 700, all later, are the test and choose nothing. The first 300 hold 45 anomalies, which is
enough for 16 of each class to train on and 16 others of each to choose by, drawn again for each seed. What learns from
all 300 holds out a quarter of them to choose by. What has nothing to choose (TF-IDF with default settings) learns from
train and dev together. Template, label words and options are the defaults; no line of the test was read before.

Two texts are tried: the message, and `level component message`. The list of keywords is general knowledge of logs, not
read off these. Scores: macro-F1 of the answers, and average precision of the anomaly's probability (of the number of
keywords; of yes or no for the level). All are given again for messages that are not among the first 300 lines, as they
stand and with their numbers masked. Each cell is written once it is measured, and reused; result:
benchmarks/results/logs.json.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import DATA, machine, read_result, write_result
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support
from sklearn.pipeline import make_pipeline

from cuecraft.backbone import AnyBackbone, load_backbone
from cuecraft.core.deadline import Deadline
from cuecraft.core.storage import digest
from cuecraft.data import Record, fingerprint, k_shot_split
from cuecraft.methods import make_method
from cuecraft.methods.prepare import make_problem, make_task
from cuecraft.methods.problem import Labelled, label_context
from cuecraft.task import Task
from cuecraft.task.answers.labels import LabelOptions

RESULT = "logs.json"
FILE = DATA.parent / "logs" / "bgl-1k.jsonl"
MODEL = "demo:smollm2-135m"
FIRST, SHOTS, SEEDS = 300, 16, (1, 2, 3)
LABELS = ("anomaly", "normal")
TEXTS = {"message": ("message",), "level component message": ("level", "component", "message")}
SUBSETS = ("all", "unseen", "unseen_masked")
AUTO_SECONDS = 600

KEYWORDS = re.compile(
    r"\b(error|fail|fatal|panic|exception|critical|severe|emergency|alert|abort|crash|corrupt|invalid|illegal|denied|"
    r"refused|rejected|unable|cannot|could not|timeout|timed out|time-?out|lost|dead|died|kill|terminat|segfault|"
    r"segmentation fault|out of memory|overflow|unreachable|unrecoverable|uncorrectable|not responding)",
    re.IGNORECASE,
)
BAD_LEVELS = ("FATAL", "FAILURE", "SEVERE")


@dataclass(frozen=True)
class Row:
    """A row of the table: which method, with what options, learning from what."""

    method: str
    options: Mapping[str, Any]
    learns_from: str  # "nothing", "few" or "all"

    @property
    def seeds_matter(self) -> bool:
        return self.learns_from == "few" or self.method == "deep-cue"


ROWS = {
    "level rule": Row("level", {}, "nothing"),
    "keyword rules": Row("keywords", {}, "nothing"),
    "tf-idf + LR, few": Row("tf-idf", {}, "few"),
    "tf-idf + LR, all 300": Row("tf-idf", {}, "all"),
    "zero-shot": Row("zero-shot", {}, "nothing"),
    "zero-shot, calibrated": Row("zero-shot", {"calibration": "fitted"}, "few"),
    "deep-cue": Row("deep-cue", {}, "few"),
    "auto, good": Row("auto", {"preset": "good"}, "few"),
    "deep-cue, all 300": Row("deep-cue", {}, "all"),
}


class Log:
    """The log, its parts, and what is read of it once for all methods."""

    def __init__(self) -> None:
        if not FILE.is_file():
            raise SystemExit(f"the log is not at {FILE}; set CUECRAFT_DATA. Nothing was run.")
        self.rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
        self.first, self.test = self.rows[:FIRST], self.rows[FIRST:]
        self.truth = np.array([row["label"] == "anomaly" for row in self.test])
        seen = {row["message"] for row in self.first}
        masked = {mask(row["message"]) for row in self.first}
        self.subsets = {
            "all": np.ones(len(self.test), dtype=bool),
            "unseen": np.array([row["message"] not in seen for row in self.test]),
            "unseen_masked": np.array([mask(row["message"]) not in masked for row in self.test]),
        }
        self._backbone: AnyBackbone | None = None
        self._read: tuple[str, Labelled] | None = None

    @property
    def backbone(self) -> AnyBackbone:
        if self._backbone is None:
            self._backbone = load_backbone(MODEL)
        return self._backbone

    def records(self, rows: Sequence[Mapping[str, str]], text: str) -> list[Record]:
        return [Record({"text": " ".join(row[name] for name in TEXTS[text])}, row["label"]) for row in rows]

    def shots(self, text: str, seed: int) -> tuple[list[Record], list[Record]]:
        split = k_shot_split(self.records(self.first, text), SHOTS, seed)
        return split.train, split.dev

    def read_test(self, text: str, task: Task) -> Labelled:
        """Return the test rows, read once for all methods that answer through the frozen model."""
        if self._read is None or self._read[0] != text:
            self._read = None  # gives its memory back first
            self._read = (text, label_context(self.backbone, task, task.examples(self.records(self.test, text))))
        return self._read[1]

    def counts(self) -> dict[str, Any]:
        anomalies = [row["message"] for row in self.first if row["label"] == "anomaly"]
        parts = {
            name: {"rows": int(chosen.sum()), "anomalies": int(self.truth[chosen].sum())}
            for name, chosen in self.subsets.items()
        }
        return {
            "sha256": fingerprint(self.records(self.rows, "message")),
            "first": {"rows": FIRST, "anomalies": len(anomalies), "distinct_anomalies": len(set(anomalies))},
            "test": parts,
            "test_messages_in_first": len(self.test) - parts["unseen"]["rows"],
            "test_messages_in_first_masked": len(self.test) - parts["unseen_masked"]["rows"],
        }


def mask(message: str) -> str:
    """Return a message with its numbers, hexadecimal ones included, written as one sign."""
    return re.sub(r"0x[0-9a-f]+|\b[0-9a-f]*\d[0-9a-f]*\b", "#", message.lower())


def rule_scores(kind: str, log: Log, text: str) -> NDArray[np.float64]:
    """Return the score `[N]` of each test row: above 0.5 is an anomaly."""
    if kind == "level":
        return np.array([float(row["level"] in BAD_LEVELS) for row in log.test])
    found = [len({hit.lower() for hit in KEYWORDS.findall(r.fields["text"])}) for r in log.records(log.test, text)]
    return np.array(found, dtype=np.float64)


def tf_idf_scores(train: Sequence[Record], test: Sequence[Record]) -> NDArray[np.float64]:
    """Return the probability `[N]` of an anomaly, of words and pairs of words with logistic regression."""
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=1000)
    ).fit([record.fields["text"] for record in train], [record.label == "anomaly" for record in train])
    found: NDArray[np.float64] = model.predict_proba([record.fields["text"] for record in test])[:, 1]
    return found


def tuned_scores(row: Row, log: Log, text: str, seed: int) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Return the probability `[N]` of an anomaly by a method of cuecraft, and what was found."""
    train, dev = log.shots(text, seed)
    if row.learns_from == "all":
        train, dev = log.records(log.first, text), None
    backbone = log.backbone
    task = make_task(backbone, train, answers=LabelOptions(classes=tuple(LABELS)))
    limit = AUTO_SECONDS if row.method == "auto" else None
    problem = make_problem(backbone, task, train, dev, seed=seed, deadline=Deadline(limit))
    outcome = make_method(row.method, row.options).fit(problem)
    with torch.no_grad():
        logits = outcome.best.logits(backbone, log.read_test(text, task).context)
    found = logits.double().softmax(-1)[:, LABELS.index("anomaly")].cpu().numpy()
    return found, {"tuned": outcome.is_tuned, "template": task.template.source}


def measure(scores: NDArray[np.float64], log: Log) -> dict[str, dict[str, float | None]]:
    """Return macro-F1, average precision and the anomaly's own figures, on each part of the test."""
    found = {}
    for name, chosen in log.subsets.items():
        truth, score = log.truth[chosen], scores[chosen]
        said = score > 0.5
        precision, recall, f1, _ = precision_recall_fscore_support(truth, said, average="binary", zero_division=0)
        found[name] = {
            "macro_f1": float(f1_score(truth, said, labels=[False, True], average="macro", zero_division=0)),
            "average_precision": float(average_precision_score(truth, score)) if truth.any() else None,
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "accuracy": float((truth == said).mean()),
        }
    return found


def run_cell(row: Row, log: Log, text: str, seed: int) -> dict[str, Any]:
    """Measure one row with one text and seed."""
    begun = time.perf_counter()
    details: dict[str, Any] = {}
    if row.method == "tf-idf":
        few, dev = log.shots(text, seed)
        train = log.records(log.first, text) if row.learns_from == "all" else few + dev
        scores = tf_idf_scores(train, log.records(log.test, text))
    elif row.method in ("level", "keywords"):
        scores = rule_scores(row.method, log, text)
    else:
        scores, details = tuned_scores(row, log, text, seed)
    return {**measure(scores, log), **details, "seconds": round(time.perf_counter() - begun, 1)}


def summary(cells: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and standard deviation over the seeds for each row and text."""
    found = []
    for text in TEXTS:
        for name in ROWS:
            own = [cell for cell in cells.values() if (cell["row"], cell["text"]) == (name, text)]
            line: dict[str, Any] = {"text": text, "row": name, "seeds": len(own)}
            for subset in SUBSETS:
                for figure in ("macro_f1", "average_precision"):
                    values = [cell[subset][figure] for cell in own if cell[subset][figure] is not None]
                    sd = round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None
                    line[f"{subset}.{figure}"] = (
                        {"mean": round(float(np.mean(values)), 4), "sd": sd} if values else None
                    )
            found += [line] if own else []
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(dict.fromkeys(row.method for row in ROWS.values())))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    options = parser.parse_args()
    log = Log()
    cells: dict[str, dict[str, Any]] = dict(read_result(RESULT).get("cells", {}))
    chosen = options.methods.split(",")
    rows = {name: row for name, row in ROWS.items() if row.method in chosen}
    seeds = [int(seed) for seed in options.seeds.split(",")]
    plan = [
        (text, name, seed)
        for text in TEXTS
        for name, row in rows.items()
        for seed in (seeds if row.seeds_matter else SEEDS[:1])
    ]
    plan.sort(key=lambda cell: ROWS[cell[1]].learns_from == "all")  # the longest last
    for text, name, seed in plan:
        row = ROWS[name]
        settings = {"row": name, "method": row.method, "options": dict(row.options), "from": row.learns_from}
        key = digest({**settings, "text": text, "seed": seed, "model": MODEL, "first": FIRST, "shots": SHOTS})[:16]
        if key in cells:
            continue
        cells[key] = {"row": name, "text": text, "seed": seed, **run_cell(row, log, text, seed)}
        cells[key]["machine"] = machine()
        print(f"{name}, {text}, seed {seed}: {cells[key]['all']}, {cells[key]['seconds']} s", flush=True)
        write_result(RESULT, {"summary": summary(cells), "data": log.counts(), "model": MODEL, "cells": cells})
    write_result(RESULT, {"summary": summary(cells), "data": log.counts(), "model": MODEL, "cells": cells})


if __name__ == "__main__":
    main()
