"""Labels of words: the slots of NLU++ (banking) on a sentence encoder; writes cells to benchmarks/results/answers/.

    python benchmarks/answers_slots.py [--seeds 0,1] [--methods deep-cue,lora] [--rows 40]

Every cell (seed, method) is a file of its own that is kept and reused; a deleted file is made again. 209 requests to
learn from, 205 to choose by (NLU++, Casanueva et al., NAACL 2022, arXiv 2204.13021); the 1,032 test rows are for
reporting only. Entity F1 is over all spans of the test rows, exact in label and characters (seqeval's conventions).

- `nothing`: no span is ever found.
- `linear-probe`: logistic regression on the frozen encoder's hidden states of words.
- `deep-cue`, `p-tuning-v2`: deep prompts, as offsets at tokens in front of the text, and as keys and values.
- `lora`, `full`: the encoder's weights.
- `auto`: what it chooses on folds of train and dev together.

`seconds` are those of `fit` with reading, without the test rows. `--rows` takes the first rows of each split and keeps
no file, to try it out. `--busy` notes in a cell that other work ran meanwhile, so that its seconds are not to be used.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common import DATA, RESULTS, kept

from cuecraft import load_backbone
from cuecraft.artifact.predictor import Predictor
from cuecraft.data import Record, read_records
from cuecraft.methods.fit import answering_model, make_artifact
from cuecraft.methods.prepare import make_problem, make_task
from cuecraft.methods.registry import make_method
from cuecraft.task import Decision
from cuecraft.task.answers import AnswerColumns
from cuecraft.task.answers.tokens import TokenLabels, TokenOptions

MODEL = "demo:minilm"
SLOTS = DATA.parent / "answers" / "nluplusplus" / "banking"
CELLS = RESULTS / "answers"
SEEDS = (0, 1, 2)
#: Options were chosen on train and dev (docs/tokens.md).
METHODS: dict[str, Mapping[str, Any]] = {
    "nothing": {},
    "linear-probe": {},
    "deep-cue": {},
    "p-tuning-v2": {},
    "lora": {},
    "full": {},
    "auto": {},
}
FIXED = ("nothing", "linear-probe")  # the same with every seed


@cache
def backbone() -> Any:
    """Load the model once: no method changes it."""
    return load_backbone(MODEL)


def rows(split: str, most: int | None = None) -> list[Record]:
    """Return the first rows of a split."""
    return read_records(SLOTS / f"{split}.jsonl", label_column=TokenLabels.in_rows(AnswerColumns("spans")))[:most]


@dataclass(frozen=True)
class Cell:
    """One method with one seed.

    Args:
        method: its name.
        seed: of the training.
        most: rows of each split; None for all.
    """

    method: str
    seed: int
    most: int | None = None

    @property
    def path(self) -> Path:
        return CELLS / f"slots-nluplusplus-{self.seed}-minilm-{self.method}.json"

    def run(self) -> dict[str, Any]:
        """Return the result."""
        train, dev, test = (rows(split, self.most) for split in ("train", "dev", "test"))
        about = {"part": "slots", "task": "nluplusplus", "seed": self.seed, "model": "minilm", "name": self.method}
        task = make_task(backbone(), train, answers=TokenOptions())
        golds = [example.gold for example in task.examples(test)]
        if self.method == "nothing":
            return about | {"metrics": task.answers.measure([Decision([], 1.0, {})] * len(test), golds), "seconds": 0.0}
        method = make_method(self.method, METHODS[self.method])
        begun = time.perf_counter()
        problem = make_problem(backbone(), task, train, dev, seed=self.seed)
        outcome = method.fit(problem)
        seconds = time.perf_counter() - begun
        artifact = make_artifact(problem, outcome, method)
        begun = time.perf_counter()
        predictor = Predictor.of(artifact, answering_model(backbone(), outcome.best))
        decisions = predictor.decide(predictor.task.examples(test))
        return about | {
            "metrics": task.answers.measure(decisions, golds),
            "dev": dict(artifact.manifest.metrics),
            "seconds": round(seconds, 1),
            "test_seconds": round(time.perf_counter() - begun, 1),
            "tuned": outcome.is_tuned,
            "epochs": max((int(event.get("step", 0)) for event in outcome.trace), default=0),
            "verdict": outcome.verdict.document() if outcome.verdict else None,
            "options": artifact.manifest.method_options,
            "predictions": [own.value for own in decisions],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rows", type=int, help="rows of each split, to try it out; nothing is kept")
    parser.add_argument("--busy", action="store_true", help="other work runs meanwhile: its seconds are not to be used")
    asked = parser.parse_args()
    if not SLOTS.is_dir():
        raise SystemExit(f"benchmark data is not at {SLOTS}; set CUECRAFT_DATA. Nothing was run.")
    for method in asked.methods.split(","):
        for seed in map(int, asked.seeds.split(",")[:1] if method in FIXED else asked.seeds.split(",")):
            cell = Cell(method, seed, asked.rows)
            if asked.rows is None:
                kept(cell.path, asked.busy, cell.run)
            else:
                found = cell.run()
                print(json.dumps({name: found[name] for name in ("name", "seed", "metrics", "seconds")}), flush=True)


if __name__ == "__main__":
    main()
