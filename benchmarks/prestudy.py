"""Learning rates of the trained methods and baselines, tried on the dev set of one split, before any comparison.

    make prestudy

Every method gets the same rule: 30 epochs at most, batches of 16, stopped when dev loss has not fallen for 8 epochs,
the best epoch kept. What is tried is the size of its steps (and where a prefix starts). The split is none that a
comparison reports on: 16 examples of each class to train on and as many for dev, drawn with seed 100 from the SST-2
sentences that are in no split of the benchmark. docs/architecture.md says which defaults follow from it. Result:
benchmarks/results/prestudy.json; each setting is written as soon as it is measured. Its seconds were measured next to
other work.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from common import DATA, machine, read_result, require_data, write_result

from cuecraft.backbone import load_backbone
from cuecraft.data import k_shot_split, read_records
from cuecraft.methods import make_method
from cuecraft.methods.prepare import make_problem, make_task
from cuecraft.methods.problem import score

MODEL, TASK, SEED = "demo:smollm2-135m", "sst-2", 100
GRID: dict[str, list[dict[str, Any]]] = {
    "prompt-tuning": [{"learning_rate": rate} for rate in (0.005, 0.02, 0.08)],
    "p-tuning": [
        {"encoder": encoder, "encoder_learning_rate": rate} for encoder in ("lstm", "mlp") for rate in (1e-3, 3e-3)
    ],
    "prefix-tuning": [
        *({"init": "text", "encoder_learning_rate": rate} for rate in (3e-4, 1e-3, 3e-3)),
        {"init": "random", "encoder_learning_rate": 1e-3},
    ],
    "p-tuning-v2": [
        *({"init": "text", "learning_rate": rate} for rate in (0.005, 0.02, 0.1)),
        *({"init": "random", "learning_rate": rate} for rate in (0.02, 0.1)),
    ],
    "deep-cue": [{"learning_rate": rate} for rate in (0.03, 0.1, 0.3)],
    "lora": [{"learning_rate": rate} for rate in (1e-4, 5e-4, 2e-3)],
    "lora-prompt": [{"prompt_learning_rate": rate} for rate in (0.005, 0.02)],
    "full": [{"learning_rate": rate} for rate in (1e-5, 3e-5, 1e-4)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(GRID))
    options = parser.parse_args()
    require_data()
    backbone = load_backbone(MODEL)
    used = {record.fields["text"] for path in (DATA / TASK).rglob("*.jsonl") for record in read_records(path)}
    free = [
        record
        for record in read_records(DATA.parent / "sst2-full" / "train.jsonl")
        if record.fields["text"] not in used
    ]
    train, dev, _ = k_shot_split(free, 16, SEED)
    problem = make_problem(backbone, make_task(backbone, train), train, dev, seed=SEED)
    assert problem.dev is not None
    rows = dict(read_result("prestudy.json").get("rows", {}))
    for name in options.methods.split(","):
        rows[name] = []
        for chosen in GRID[name]:
            begun = time.perf_counter()
            outcome = make_method(name, chosen).fit(problem)
            trained = [event for event in outcome.trace if event["phase"] == name]
            best = min(trained, key=lambda event: event["dev_loss"])
            rows[name].append(
                {
                    "options": chosen,
                    "dev_loss": best["dev_loss"],
                    "dev_accuracy": score(backbone, outcome.best, problem.dev).primary,
                    "first_dev_loss": trained[0]["dev_loss"],
                    "best_epoch": best["step"],
                    "epochs": trained[-1]["step"],
                    "seconds": round(time.perf_counter() - begun, 1),
                }
            )
            write_result(
                "prestudy.json", {"rows": rows, "task": TASK, "seed": SEED, "model": MODEL, "machine": machine()}
            )


if __name__ == "__main__":
    main()
