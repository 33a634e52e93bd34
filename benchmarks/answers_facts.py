"""Facts as cloze answers: AutoPrompt's experiment on six relations of T-REx; cells in benchmarks/results/answers/.

    python benchmarks/answers_facts.py [--relations P36,P19] [--models bert,smollm2] [--methods deep-cue] [--seeds 0]
        [--rows 20] [--busy]

The subject of a fact is given and its object is asked for, in the whole vocabulary (Petroni et al., 2019, arXiv
1909.01066; Shin et al., 2020, arXiv 2010.15980, section 5). Every cell (relation, seed, model, method) is a file of its
own that is kept and reused, as those of answers.py, which gathers them; a deleted file is made again. Up to 200 facts
of each relation to learn from, 100 to choose by, up to 400 to test; test rows are for reporting only.

- `majority` answers with the ten objects that are most frequent in train and dev.
- `pattern` is the relation's hand-written pattern (ParaRel), untuned; all others start from it.
- `searched-words` is AutoPrompt with five trigger tokens, `tuned-vectors` prompt tuning, `deep-cue` a deep cue.
- `random-deep-cue`, `random-vectors` and `random-words` do the same to a model of the same architecture with random
  weights, which knows no facts: what they reach, the examples tell and not the model (Zhong et al., 2021, arXiv
  2104.05240). The last two are run on the small model alone.

Objects of train and dev are kept out of searched prompts. `seconds` are those of `fit` with reading, without the
loading of the model. With --rows, so many rows of each split are used and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from answers import ANSWERS, CELLS
from common import kept

from cuecraft.artifact.predictor import Predictor
from cuecraft.backbone import load_backbone
from cuecraft.data import Record, read_records
from cuecraft.methods import make_method
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.prepare import make_problem, make_task
from cuecraft.task import Decision
from cuecraft.task.answers.cloze import Cloze, ClozeOptions

FACTS = ANSWERS / "facts"
MODELS = {"bert": "demo:bert-tiny-mlm", "smollm2": "demo:smollm2-135m"}
RELATIONS = ("P17", "P19", "P36", "P101", "P103", "P138")


@dataclass(frozen=True)
class Way:
    """A method with its options, the models that it is run on, and whether their weights are random."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    is_random: bool = False
    models: tuple[str, ...] = tuple(MODELS)


_WORDS = {"prompt_length": 5, "calibration": "none"}
TUNED = {
    "words": Way("autoprompt", _WORDS),
    "vectors": Way("prompt-tuning", {"calibration": "none"}),
    "deep-cue": Way("deep-cue", {"calibration": "none"}),
}
WAYS = {
    "majority": Way("majority"),
    "pattern": Way("zero-shot"),
    "searched-words": TUNED["words"],
    "tuned-vectors": TUNED["vectors"],
    "deep-cue": TUNED["deep-cue"],
    "random-words": Way("autoprompt", _WORDS, is_random=True, models=("bert",)),
    "random-vectors": Way("prompt-tuning", TUNED["vectors"].options, is_random=True, models=("bert",)),
    "random-deep-cue": Way("deep-cue", TUNED["deep-cue"].options, is_random=True),
}


def pattern_template(relation: str) -> str:
    """Return a relation's hand-written pattern as a template: what stands between subject and object is the prompt."""
    lines = (FACTS / "patterns.jsonl").read_text(encoding="utf-8").splitlines()
    written = {row["relation"]: row["pattern"] for row in map(json.loads, lines)}[relation]
    before, rest = written.split("[X]")
    between, after = rest.split("[Y]")
    return f"{before}{{subject}}{{prompt:{between.rstrip()}}}{{mask}}{after.strip()}"


@cache
def backbone_of(model: str, is_random: bool) -> Any:
    """Load a model once, or make one of the same architecture with random weights (seed 0)."""
    found = load_backbone(MODELS[model])
    return random_weights(found) if is_random else found


def random_weights(backbone: Any) -> Any:
    """Return a backbone of the same architecture and tokenizer with the weights that transformers starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = type(backbone.model)(backbone.model.config)
    return load_backbone((model.eval(), backbone.tokenizer), backbone.head_kind)


@dataclass(frozen=True)
class Cell:
    """One method on one relation with one seed and one model.

    Args:
        relation: of T-REx.
        seed: of the method.
        model: a key of `MODELS`.
        way: a key of `WAYS`.
        rows: of each split, at most; None for all.
    """

    relation: str
    seed: int
    model: str
    way: str
    rows: int | None = None

    @property
    def path(self) -> Path:
        return CELLS / f"facts-{self.relation}-{self.seed}-{self.model}-{self.way}.json"

    def records(self, split: str) -> list[Record]:
        return read_records(FACTS / self.relation / f"{split}.jsonl", ["subject"], Cloze.in_rows())[: self.rows]

    def run(self) -> dict[str, Any]:
        """Return the result."""
        about = {"part": "facts", "task": self.relation, "seed": self.seed, "model": self.model, "name": self.way}
        train, dev, test = (self.records(split) for split in ("train", "dev", "test"))
        found = majority if self.way == "majority" else tuned
        return about | found(self, train, dev, test)


def majority(cell: Cell, train: Sequence[Record], dev: Sequence[Record], test: Sequence[Record]) -> dict[str, Any]:
    """Return what the most frequent objects of train and dev give, in this order."""
    space = Cloze()
    counts = Counter(answer for record in (*train, *dev) for answer in space.answers(space.gold(record)))
    shares = {answer: count / counts.total() for answer, count in counts.most_common(space.top)}
    decisions = [space.decided(shares)] * len(test)
    return _measured(space, decisions, test) | {"seconds": 0.0}


def tuned(cell: Cell, train: Sequence[Record], dev: Sequence[Record], test: Sequence[Record]) -> dict[str, Any]:
    """Tune a prompt and measure its answers."""
    way = WAYS[cell.way]
    backbone = backbone_of(cell.model, way.is_random)
    task = make_task(backbone, train, pattern_template(cell.relation), answers=ClozeOptions())
    begun = time.perf_counter()
    problem = make_problem(backbone, task, train, dev, seed=cell.seed)
    method = make_method(way.method, dict(way.options))
    outcome = method.fit(problem)
    artifact = make_artifact(problem, outcome, method)
    seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    decisions = Predictor.of(artifact, backbone).decide(artifact.task.examples(test))
    prompt = outcome.best.prompt
    return _measured(problem.task.answers, decisions, test) | {
        "seconds": round(seconds, 1),
        "test_seconds": round(time.perf_counter() - begun, 1),
        "tuned": outcome.is_tuned,
        "template": artifact.manifest.task.template,
        "prompt": prompt.text(backbone.tokenizer) if prompt.kind == "hard" else None,
        "metrics_of_run": dict(artifact.manifest.metrics),
        "options": artifact.manifest.method_options,
    }


def _measured(space: Any, decisions: Sequence[Decision], test: Sequence[Record]) -> dict[str, Any]:
    golds = [space.gold(record) for record in test]
    return {"metrics": space.measure(decisions, golds), "predictions": [own.value for own in decisions]}


def asked_for(asked: argparse.Namespace) -> Iterator[Cell]:
    """Yield the cells that are asked for; what does not depend on model or seed is one cell."""
    for relation in asked.relations:
        for way in asked.methods:
            own = [model for model in asked.models if model in WAYS[way].models]
            models = own[:1] if way == "majority" else own
            for model in models:
                seeds = asked.seeds[:1] if way in ("majority", "pattern") else asked.seeds
                for seed in seeds:
                    yield Cell(relation, int(seed), model, way, asked.rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, known in (("relations", RELATIONS), ("models", tuple(MODELS)), ("methods", tuple(WAYS)), ("seeds", "0")):
        parser.add_argument(f"--{name}", type=lambda text: text.split(","), default=list(known), help="commas between")
    parser.add_argument("--rows", type=int, help="rows of each split, to try it; nothing is written then")
    parser.add_argument("--busy", action="store_true", help="other work runs meanwhile: its seconds are not to be used")
    asked = parser.parse_args()
    if not FACTS.is_dir():
        raise SystemExit(f"benchmark data is not at {FACTS}; set CUECRAFT_DATA. Nothing was run.")
    for cell in asked_for(asked):
        if asked.rows is not None:
            found = cell.run()
            print(
                json.dumps(
                    {name: found.get(name) for name in ("task", "model", "name", "metrics", "seconds", "prompt")}
                )
            )
        else:
            kept(cell.path, asked.busy, cell.run)


if __name__ == "__main__":
    main()
