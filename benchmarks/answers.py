"""Answers beyond one label, next to the baselines of each kind; writes benchmarks/results/answers/ and answers.json.

    python benchmarks/answers.py [--parts pairs,sets] [--tasks cb] [--seeds 1] [--methods auto,lora] [--models minilm]

Every cell (part, task, seed, model, method) is a file of its own that is kept and reused, so that the whole can be
gathered over several starts; a deleted file is made again. Test rows are for reporting only.

- `pairs`: FewGLUE (Schick and Schuetze, 2021, arXiv 2009.07118): CB, RTE, WiC, and COPA, whose rows bring options.
  32 examples to learn from and 32 to choose by; the test rows are the dev set of SuperGLUE. Patterns and label words
  are close to those of the paper; the answer stands at the end, where a causal model gives it.
- `sets`: the intents of NLU++ (banking), a set of labels for each request.
- `stars`: SST-5 as five numbers, and as five plain labels whose number is the answer.
- `banking`: 77 intents, 5 or 10 examples of each to learn from and as many to choose by; all 3,080 test rows.
  `logreg` is scikit-learn's logistic regression on embeddings of the sentence encoder, `setfit` SetFit on it; both
  learn from train and dev together, as `auto` does.
- `reject`: 57 of the 77 intents, 5 examples of each; requests with ten of the others are of no class in the test rows
  (Larson et al., 2019, D19-1131, measure so). `nothing-seen` has no example of what is to be rejected; `others-seen`
  has those of the last ten intents, none of which is in the test rows.

Facts are in `answers_facts.py`, slots in `answers_slots.py`. `seconds` are those of `fit` with reading, without the
loading of the model.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DATA, RESULTS, kept, machine, write_result
from peers import SETFIT_OPTIONS, setfit_missing, setfit_model, setfit_probabilities, setfit_train

from cuecraft import PromptClassifier, load_backbone
from cuecraft.core.assets import model_folder
from cuecraft.data.texts import as_records
from cuecraft.task.rendering import HeadKind

MODELS = {"smollm2": "demo:smollm2-135m", "minilm": "demo:minilm"}
ANSWERS = DATA.parent / "answers"
CELLS = RESULTS / "answers"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        folder: under the data; `{seed}` stands for the seed.
        fields: columns of text.
        label: column of the answer.
        options: column of the options that each row brings; None for none.
        test: its test rows, under the data.
        seeds: whose examples there are.
        asked: further arguments of `PromptClassifier` by model; those under "" are for all.
    """

    folder: str
    fields: tuple[str, ...]
    label: str
    test: str
    options: str | None = None
    seeds: tuple[int, ...] = (0,)
    asked: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def rows(self, seed: int, split: str) -> list[Row]:
        """Return the rows of train, dev or test."""
        path = ANSWERS / (self.test if split == "test" else f"{self.folder.format(seed=seed)}/{split}.jsonl")
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def texts(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Return the texts of rows, with their options."""
        names = [*self.fields, *([self.options] if self.options else [])]
        return [{name: row[name] for name in names} for row in rows]

    def labels(self, rows: Sequence[Row]) -> list[Any]:
        """Return the right answers of rows."""
        return [row[self.label] for row in rows]


#: Label of texts of no class.
NONE = "none of these"


@dataclass(frozen=True)
class HeldOut(Task):
    """Intents of which twenty, drawn with the seed, are no class: ten in the test rows alone, ten never there.

    Args:
        has_others: whether the ten that are not in the test rows are examples of no class; otherwise they are left out.
    """

    has_others: bool = False

    def rows(self, seed: int, split: str) -> list[Row]:
        """Return the rows of train, dev or test."""
        found = super().rows(seed, split)
        drawn = random.Random(seed).sample(sorted({row[self.label] for row in super().rows(seed, "train")}), 20)
        none, left_out = (drawn[:10], drawn[10:]) if split == "test" else (drawn[10:], drawn[:10])
        if split != "test" and not self.has_others:
            none, left_out = [], drawn
        kept_rows = [row for row in found if row[self.label] not in left_out]
        return [row | {self.label: NONE} if row[self.label] in none else row for row in kept_rows]


def _pairs() -> dict[str, Task]:
    """Return the tasks of FewGLUE."""
    ask = '"{hypothesis}"?{prompt: Yes or no?}\nAnswer:{mask}'
    cb = {"template": "{premise}\n" + ask.replace("Yes or no", "Yes, no or maybe")}
    cb["label_words"] = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}  # type: ignore[assignment]
    rte = {"template": "{premise}\n" + ask, "label_words": {"entailment": "yes", "not_entailment": "no"}}
    wic = '"{sentence1}" / "{sentence2}" Does "{word}" have the same sense in both?{prompt: Yes or no?}\nAnswer:{mask}'
    copa = {"template": "{premise} What was the {question} of this?{prompt:\nAnswer:}{mask}", "answers": "choices"}
    found = {}
    for name, fields, asked in (
        ("cb", ("premise", "hypothesis"), {"": cb}),
        ("rte", ("premise", "hypothesis"), {"": rte}),
        ("wic", ("word", "sentence1", "sentence2"), {"": {"template": wic, "label_words": {"yes": "yes", "no": "no"}}}),
        ("copa", ("premise", "question"), {"": copa}),
    ):
        folder = f"fewglue/{name}"
        own = ("choices", "answer") if name == "copa" else (None, "label")
        found[name] = Task(folder, fields, own[1], f"{folder}/test.jsonl", own[0], (0,), asked)
    return found


STARS = {"1": "terrible", "2": "bad", "3": "okay", "4": "good", "5": "great"}


def _banking(shots: int) -> Task:
    folder = f"banking77/{shots}shot/seed-{{seed}}"
    return Task(folder, ("text",), "label", "banking77/test.jsonl", None, (1, 2, 3))


@dataclass(frozen=True)
class Way:
    """What is run in a cell.

    Args:
        method: its name, or that of a baseline.
        options: of the method.
        models: on which it is run.
        is_pooled: whether train and dev are given together, for the method to divide.
        asked: further arguments of `PromptClassifier`.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ("smollm2",)
    is_pooled: bool = False
    asked: Mapping[str, Any] = field(default_factory=dict)


UNTUNED = {"untuned": Way("zero-shot"), "calibrated": Way("zero-shot", {"calibration": "fitted"})}
TUNED = {
    "deep-cue": Way("deep-cue"),
    "lora": Way("lora"),
    "full": Way("full"),
    "auto": Way("auto"),
}
BOTH = ("smollm2", "minilm")
HEADS = {
    "linear-probe": Way("linear-probe", models=BOTH),
    "deep-cue": Way("deep-cue", models=BOTH),
    "lora": Way("lora", models=BOTH),
    "full": Way("full", models=BOTH),
    "auto": Way("auto", models=BOTH),
}
LOGREG = {"logreg": Way("logreg", models=("minilm",), is_pooled=True)}
PLAIN = {"answers": "labels", "label_words": STARS}


@dataclass(frozen=True)
class Part:
    """Tasks of one kind, and what is run on them."""

    tasks: Mapping[str, Task]
    ways: Mapping[str, Way]


PARTS = {
    "pairs": Part(_pairs(), UNTUNED | {"in-context": Way("in-context", {"shots": 4})} | TUNED),
    "sets": Part(
        {
            "intents": Task(
                "nluplusplus/banking",
                ("text",),
                "labels",
                "nluplusplus/banking/test.jsonl",
            )
        },
        LOGREG | HEADS,
    ),
    "stars": Part(
        {"sst-5": Task("sst-5/seed-{seed}", ("text",), "stars", "sst-5/test.jsonl", None, (13, 21))},
        {
            f"{kind}-{name}": Way(way.method, way.options, asked=asked)
            for kind, asked in (
                ("ordinal", {"answers": {"kind": "ordinal"}, "label_words": STARS}),
                ("labels", PLAIN),
            )
            for name, way in {"calibrated": UNTUNED["calibrated"], "deep-cue": TUNED["deep-cue"]}.items()
        },
    ),
    "banking": Part(
        {f"{shots}-shot": _banking(shots) for shots in (5, 10)},
        LOGREG
        | {
            "setfit": Way("setfit", models=("minilm",), is_pooled=True),
            "auto": Way("auto", models=BOTH, is_pooled=True),
        },
    ),
    "reject": Part(
        {
            name: HeldOut(
                "banking77/5shot/seed-{seed}",
                ("text",),
                "label",
                "banking77/test.jsonl",
                None,
                (1, 2, 3),
                {"": {"answers": {"kind": "open-set", "reject": NONE}}},
                has_others,
            )
            for name, has_others in (("nothing-seen", False), ("others-seen", True))
        },
        {
            "logreg": Way("thresholded", models=("minilm",)),
            "linear-probe": Way("linear-probe", models=("minilm",)),
            "deep-cue": Way("deep-cue", models=("minilm",)),
            "auto": Way("auto", models=("minilm",), is_pooled=True),
        },
    ),
}


@dataclass(frozen=True)
class Cell:
    """One method on one task with one seed's examples and one model."""

    part: str
    name: str
    seed: int
    model: str
    way: str

    @property
    def task(self) -> Task:
        return PARTS[self.part].tasks[self.name]

    @property
    def path(self) -> Path:
        return CELLS / f"{self.part}-{self.name}-{self.seed}-{self.model}-{self.way}.json"

    def run(self) -> dict[str, Any]:
        """Return the result."""
        about = {"part": self.part, "task": self.name, "seed": self.seed, "model": self.model, "name": self.way}
        way = PARTS[self.part].ways[self.way]
        train, dev, test = (self.task.rows(self.seed, split) for split in ("train", "dev", "test"))
        if way.method in BASELINES:
            return about | BASELINES[way.method](self, train, dev, test)
        return about | tuned(self, way, train, dev, test)


@cache
def backbone_of(model: str) -> Any:
    """Load a model once: no method changes it."""
    return load_backbone(MODELS[model])


def tuned(cell: Cell, way: Way, train: list[Row], dev: list[Row], test: list[Row]) -> dict[str, Any]:
    """Fit a classifier and measure its answers."""
    task = cell.task
    asked = {**task.asked.get("", {}), **task.asked.get(cell.model, {}), **way.asked}
    if cell.part == "sets":  # an intent has no example in train
        names = sorted({name for row in (*train, *dev) for name in row[task.label]})
        asked["answers"] = {"kind": "multilabel", "classes": names}
    if backbone_of(cell.model).head_kind is HeadKind.SEQUENCE:
        asked = {name: value for name, value in asked.items() if name not in ("template", "label_words")}
    asked |= {"method_options": dict(way.options), "seed": cell.seed, "local_files_only": True}
    classifier = PromptClassifier(backbone_of(cell.model), way.method, **asked)
    given, held_out = (train + dev, None) if way.is_pooled else (train, (task.texts(dev), task.labels(dev)))
    begun = time.perf_counter()
    classifier.fit(task.texts(given), task.labels(given), dev=held_out)
    seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    space, fields = classifier.predictor_.answers, classifier.task_.template.field_names
    records = as_records(task.texts(test), task.labels(test), fields, type(space).in_rows())
    examples = classifier.task_.examples(records)
    decisions = classifier.predictor_.decide(examples)
    outcome, metrics = classifier.outcome_, space.measure(decisions, [example.gold for example in examples])
    if cell.part == "stars" and space.kind == "labels":
        metrics |= of_numbers([float(own.value) for own in decisions], [float(gold) for gold in task.labels(test)])
    return {
        "metrics": metrics,
        "seconds": round(seconds, 1),
        "test_seconds": round(time.perf_counter() - begun, 1),
        "tuned": outcome.is_tuned,
        "template": classifier.artifact_.manifest.task.template,
        "verdict": outcome.verdict.document() if outcome.verdict else None,
        "tried": classifier.leaderboard(),
        "options": classifier.artifact_.manifest.method_options,
        "predictions": [own.value for own in decisions],
    }


def of_numbers(found: Sequence[float], golds: Sequence[float]) -> dict[str, float]:
    """Return how far numbers are from the right ones, by SciPy and scikit-learn."""
    from scipy.stats import spearmanr
    from sklearn.metrics import cohen_kappa_score, mean_absolute_error

    return {
        "mean_absolute_error": float(mean_absolute_error(golds, found)),
        "spearman": float(spearmanr(golds, found).statistic),
        "quadratic_weighted_kappa": float(cohen_kappa_score(golds, found, weights="quadratic")),
    }


@torch.no_grad()
def embeddings(texts: Sequence[str]) -> np.ndarray:
    """Return the sentence encoder's embeddings `[B, d]`: means of hidden states, of length 1 (plain transformers)."""
    from transformers import AutoModel, AutoTokenizer

    folder = model_folder(MODELS["minilm"])
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    found = []
    for start in range(0, len(texts), 64):
        batch = tokenizer(list(texts[start : start + 64]), padding=True, truncation=True, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        found.append(torch.nn.functional.normalize(mean, dim=-1))
    return torch.cat(found).numpy()


def logreg(cell: Cell, train: list[Row], dev: list[Row], test: list[Row]) -> dict[str, Any]:
    """Return what scikit-learn's logistic regression on embeddings gives, one for each label where answers are sets."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.preprocessing import MultiLabelBinarizer

    texts, labels, gold = ([*map(own, rows)] for own, rows in (
        (lambda row: row["text"], [*train, *dev]), (lambda row: row[cell.task.label], [*train, *dev]),
        (lambda row: row[cell.task.label], test),
    ))  # fmt: skip
    begun = time.perf_counter()
    vectors, model = embeddings(texts), LogisticRegression(C=10.0, max_iter=2000)
    if cell.part == "sets":
        binarizer = MultiLabelBinarizer().fit(labels)
        fitted = OneVsRestClassifier(model).fit(vectors, binarizer.transform(labels))
    else:
        fitted = model.fit(vectors, labels)
    seconds = time.perf_counter() - begun
    found = fitted.predict(embeddings([row["text"] for row in test]))
    if cell.part == "sets":
        truth = binarizer.transform(gold)
        metrics = {f"{name}_f1": float(f1_score(truth, found, average=own, zero_division=0)) for name, own in (
            ("example", "samples"), ("micro", "micro"), ("macro", "macro"))}  # fmt: skip
        return {"metrics": metrics, "seconds": round(seconds, 1)}
    macro = float(f1_score(gold, found, average="macro"))
    return {
        "metrics": {"accuracy": float(accuracy_score(gold, found)), "macro_f1": macro},
        "seconds": round(seconds, 1),
    }


def thresholded(cell: Cell, train: list[Row], dev: list[Row], test: list[Row]) -> dict[str, Any]:
    """Return what a logistic regression on embeddings gives with a threshold on the likeliest class.

    Texts of no class are one more class of it, where there are any, and no threshold is needed. Otherwise the threshold
    leaves 95% of the dev set answered.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    begun = time.perf_counter()
    model = LogisticRegression(C=10.0, max_iter=2000)
    model.fit(embeddings([row["text"] for row in train]), [row[cell.task.label] for row in train])
    classes, is_class = list(model.classes_), np.array([name != NONE for name in model.classes_])
    vectors = embeddings([row["text"] for row in dev])
    least = 0.0 if NONE in classes else float(np.quantile(model.predict_proba(vectors).max(-1), 0.05, method="lower"))
    seconds = time.perf_counter() - begun
    shares = model.predict_proba(embeddings([row["text"] for row in test]))
    found = np.where(shares.max(-1) < least, NONE, np.array(classes)[shares.argmax(-1)])
    gold = np.array([row[cell.task.label] for row in test])
    right, is_out = found == gold, gold == NONE
    metrics = {
        "accuracy": float(right.mean()),
        "in_scope_accuracy": float(right[~is_out].mean()),
        "out_of_scope_recall": float(right[is_out].mean()),
        "auroc": float(roc_auc_score(is_out, 1 - shares[:, is_class].max(-1))),
    }
    return {"metrics": metrics, "seconds": round(seconds, 1)}


def setfit(cell: Cell, train: list[Row], dev: list[Row], test: list[Row]) -> dict[str, Any]:
    """Return what SetFit gives on the examples of train and dev together."""
    train = [*train, *dev]
    labels = sorted({row["label"] for row in train})
    model = setfit_model(model_folder(MODELS["minilm"]))
    begun = time.perf_counter()
    numbers = [labels.index(row["label"]) for row in train]
    setfit_train(model, [row["text"] for row in train], numbers, cell.seed)
    seconds = time.perf_counter() - begun
    found = setfit_probabilities(model, [row["text"] for row in test]).argmax(-1).tolist()
    hits = [labels[own] == row["label"] for own, row in zip(found, test, strict=True)]
    return {"metrics": {"accuracy": float(np.mean(hits))}, "seconds": round(seconds, 1), "options": SETFIT_OPTIONS}


BASELINES: dict[str, Callable[[Cell, list[Row], list[Row], list[Row]], dict[str, Any]]] = {
    "logreg": logreg,
    "thresholded": thresholded,
    "setfit": setfit,
}


def asked_for(asked: argparse.Namespace) -> Iterator[Cell]:
    """Yield the cells that are asked for and can be run here."""
    for part, own in PARTS.items():
        for name, task in own.tasks.items():
            for way, run in own.ways.items():
                for model in run.models:
                    for seed in task.seeds:
                        chosen = {"parts": part, "tasks": name, "methods": way, "models": model, "seeds": str(seed)}
                        if all(
                            not getattr(asked, key) or value in getattr(asked, key) for key, value in chosen.items()
                        ):
                            yield Cell(part, name, seed, model, way)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("parts", "tasks", "seeds", "methods", "models"):
        parser.add_argument(f"--{name}", type=lambda text: text.split(","), help="commas between; by default all")
    parser.add_argument("--busy", action="store_true", help="other work runs meanwhile: its seconds are not to be used")
    asked = parser.parse_args()
    if not ANSWERS.is_dir():
        raise SystemExit(f"benchmark data is not at {ANSWERS}; set CUECRAFT_DATA. Nothing was run.")
    for cell in asked_for(asked):
        if cell.way == "setfit" and (missing := setfit_missing()):
            print(f"{cell.path.stem}: left out ({missing})", flush=True)
            continue
        kept(cell.path, asked.busy, cell.run)
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(CELLS.glob("*.json"))]
    kept_names = ("part", "task", "seed", "model", "name", "metrics", "seconds")
    rows = [{name: cell[name] for name in kept_names} | {"busy": cell["beside_other_work"]} for cell in cells]
    write_result("answers.json", {"cells": rows, "machine": machine()})


if __name__ == "__main__":
    main()
