"""Whether a choice without labels says by itself that it is not to be trusted; one result file.

    make bench-label-free
    python benchmarks/label_free_trust.py

For each task: how far the cues agree about its unlabelled texts (`cuecraft.methods.search.label_free.answers`), whether
`cuecraft tune --unlabeled` warns, and what the chosen cue, the template's own words and the best cue of the pool reach
on the same texts. Labels are read for these accuracies alone, and no test row is read: `test_ratio` is label_free.py's.
Texts are those of train and dev. Tasks: those of label_free.py with its seeds; SST-5, RTE, CB and WiC; first paragraphs
of docstrings by subject (label_free_study.py), 20 each; SST-2's texts of all seeds with so many positive ones that they
are a fifth, equal shares and true ones given.

How agreement is measured, and its limit, were chosen with the figures of these tasks at hand. `later` tasks were read
once they were fixed: SST-2 with other label words; five intents of Banking77, named in one word; log lines, 32 a class.
The log lines are why `lowest` is looked at too: of that, no other task is a reason to warn. `fewer`: the share of 40
draws of so many texts (of seed 13) in which the choice warns.

Result: benchmarks/results/label_free_trust.json.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import DATA, machine, read_result, require_data, write_result
from label_free import MODEL, SEARCH, SEEDS, TASKS, ask, task_of
from label_free_study import docstrings
from torch import Tensor

from cuecraft.artifact.calibration import matching_offsets
from cuecraft.backbone import AnyBackbone, load_backbone
from cuecraft.core.seeding import numpy_generator
from cuecraft.data import Record, read_records
from cuecraft.methods.prepare import label_free_problem
from cuecraft.methods.search.label_free import selector_scores
from cuecraft.methods.search.label_free.answers import ENOUGH, Answers, agreement_of, distrust, pseudo_labels

ANSWERS = DATA.parent / "answers"
PAIRS = {
    "rte": ("premise", "hypothesis"),
    "cb": ("premise", "hypothesis"),
    "wic": ("word", "sentence1", "sentence2"),
}
INTENTS = {
    "lost_or_stolen_card": "lost",
    "exchange_rate": "exchange",
    "age_limit": "age",
    "change_pin": "password",
    "atm_support": "machine",
}
RARE, RARE_SHARE = "positive", 0.2
FEWER, DRAWS = (16, 32, 64), 40
Asked = tuple[Answers, Tensor]


def both(folder: Path, columns: Sequence[str] = ("text",)) -> list[Record]:
    """Return the rows of train and dev."""
    return [row for part in ("train", "dev") for row in read_records(folder / f"{part}.jsonl", columns)]


def some(records: Sequence[Record], count: int) -> list[Record]:
    """Return the first rows of each class, in their order."""
    seen: Counter[str | None] = Counter()
    kept = []
    for record in records:
        seen[record.label] += 1
        if seen[record.label] <= count:
            kept.append(record)
    return kept


def renamed(records: Sequence[Record], words: dict[str, str]) -> list[Record]:
    """Return the rows of some classes, under their words."""
    return [Record(row.fields, words[str(row.label)]) for row in records if row.label in words]


def tasks() -> dict[str, Callable[[], list[Record]]]:
    """Return what reads the texts of each task."""
    found: dict[str, Callable[[], list[Record]]] = {}
    for task in TASKS:
        for seed in SEEDS:
            found[f"{task}, {seed}"] = lambda task=task, seed=seed: both(DATA / task / f"seed-{seed}")  # type: ignore[misc]
    found["sst-5"] = lambda: both(ANSWERS / "sst-5" / "seed-13")
    for task, columns in PAIRS.items():
        found[task] = lambda task=task, columns=columns: both(ANSWERS / "fewglue" / task, columns)  # type: ignore[misc]
    found["docstrings"] = lambda: some(docstrings(), 20)
    return found


def later() -> dict[str, Callable[[], list[Record]]]:
    """Return the same for the tasks that were read once the measure and its limit were fixed."""
    logs = DATA.parent / "logs" / "bgl-1k.jsonl"
    words = {"negative": "terrible", "positive": "great"}
    return {
        "sst-2, terrible/great": lambda: renamed(both(DATA / "sst-2" / "seed-13"), words),
        "banking77, five intents": lambda: renamed(both(ANSWERS / "banking77" / "10shot" / "seed-1"), INTENTS),
        "log lines": lambda: some(
            [Record({"text": r.fields["message"]}, r.label) for r in read_records(logs, ("message",))], 32
        ),
    }


def asked(backbone: AnyBackbone, records: Sequence[Record]) -> Asked:
    """Return what all cues answer to the texts, not calibrated, and the classes `[X]`."""
    labels = sorted({str(record.label) for record in records})
    answers = ask(label_free_problem(backbone, task_of(backbone, records, labels), records))
    return answers, torch.tensor([labels.index(str(record.label)) for record in records])


def row(answers: Answers, truth: Tensor, prior: Sequence[float] | None = None) -> dict[str, Any]:
    """Return the agreement of the cues, and what they reach; the chosen cue is that of the defaults."""
    classes = answers.logits.shape[-1]
    shares = torch.tensor(prior or [1 / classes] * classes, dtype=torch.float64)
    own = replace(answers, offsets=matching_offsets(answers.logits, shares))
    p = own.probabilities
    chosen = int(selector_scores(own, shares, pseudo_labels(p, shares))[SEARCH.selector].argmax())
    accuracy = (p.argmax(-1) == truth).double().mean(1)
    agreement = agreement_of(answers.logits, shares, chosen)
    assert agreement is not None
    return {
        "texts": len(truth),
        "classes": classes,
        "agreement": agreement.mean,
        "lowest": agreement.lowest,
        "warns": distrust(agreement) is not None,
        "own_words": float(accuracy[0]),
        "chosen": float(accuracy[chosen]),
        "best": float(accuracy.max()),
        "ratio": float(accuracy[chosen] / accuracy.max()),
    }


def skewed(parts: Sequence[Asked]) -> dict[str, Any]:
    """Return the rows of SST-2 with few positive texts: `parts` are what was asked of each seed's texts."""
    logits, truth = torch.cat([own.logits for own, _ in parts], 1), torch.cat([classes for _, classes in parts])
    common, rare = (torch.nonzero(truth == number).flatten() for number in (0, 1))
    kept = torch.cat([common, rare[: round(len(common) * RARE_SHARE / (1 - RARE_SHARE))]])
    answers = replace(parts[0][0], logits=logits[:, kept])
    priors = {"equal shares": None, "true shares": (1 - RARE_SHARE, RARE_SHARE)}
    return {name: row(answers, truth[kept], prior) for name, prior in priors.items()}


def fewer(answers: Answers) -> dict[str, float]:
    """Return the share of draws of some of the texts in which the choice warns, by the number of texts."""
    texts = answers.logits.shape[1]
    found = {}
    for count in (count for count in FEWER if count < texts):
        warns = []
        for draw in range(DRAWS):
            kept = numpy_generator(draw, "fewer texts").permutation(texts)[:count]
            part = replace(answers, logits=answers.logits[:, kept])
            warns.append(row(part, torch.zeros(count))["warns"])
        found[str(count)] = statistics.mean(warns)
    return found


def mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the means over seeds, the agreement of each, and how many warn."""
    keys = ("agreement", "own_words", "chosen", "best", "ratio")
    found: dict[str, Any] = {key: statistics.mean(own[key] for own in rows) for key in keys}
    return found | {
        "texts": rows[0]["texts"],
        "classes": rows[0]["classes"],
        "agreements": [own["agreement"] for own in rows],
        "lowest": min(own["lowest"] for own in rows),
        "warns": sum(own["warns"] for own in rows),
        "seeds": len(rows),
    }


def main() -> None:
    require_data()
    backbone = load_backbone(MODEL)
    parts = {name: asked(backbone, read()) for name, read in tasks().items()}
    rows = {name: row(*part) for name, part in parts.items()}
    found = {task: mean([rows[f"{task}, {seed}"] for seed in SEEDS]) for task in TASKS}
    tested = read_result("label_free.json")["summary"]
    for task in TASKS:
        found[task]["test_ratio"] = tested[task]["selectors"][SEARCH.selector]["ratio"]
    found |= {name: mean([own]) for name, own in rows.items() if "," not in name}
    few = skewed([parts[f"sst-2, {seed}"] for seed in SEEDS])
    found |= {f"sst-2, a fifth {RARE}, {name}": mean([own]) for name, own in few.items()}
    unseen = {name: mean([row(*asked(backbone, read()))]) for name, read in later().items()}
    drawn = {task: fewer(parts[f"{task}, {SEEDS[0]}"][0]) for task in TASKS}
    settings = {"model": MODEL, "limit": ENOUGH, "selector": SEARCH.selector, "seeds": SEEDS}
    write_result(
        "label_free_trust.json",
        {"settings": settings, "tasks": found, "later": unseen, "fewer": drawn, "machine": machine()},
    )


if __name__ == "__main__":
    main()
