"""What a start takes: help, and one text answered, against what loading the model alone takes.

    python benchmarks/startup.py [--rounds 5] [--write]

Three processes take turns, so that a busy machine slows all of them alike: `cuecraft --help`; importing torch and
transformers and loading SmolLM2-135M and its tokenizer from the converted folder; and `cuecraft predict` of one text
with an artifact over that model. Each round is after one that warms the caches of the disk. Reported are medians of
seconds on the clock and of CPU time, and the median over rounds of the ratio of the last two within a round. The last
line is one JSON object; --write keeps it in benchmarks/results/startup.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, write_result

MODEL = "demo:smollm2-135m"
TEXT = "a joy from start to finish"
LOAD = """
import sys, torch, transformers
transformers.utils.logging.disable_progress_bar()
transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
transformers.AutoTokenizer.from_pretrained(sys.argv[1])
"""
IMPORT = "import torch, transformers"


def prepared(folder: Path) -> str:
    """Write an artifact over the model; return the folder that the model was converted to."""
    from cuecraft import PromptClassifier
    from cuecraft.core.assets import model_folder

    texts = ["a joy", "a bore", "warm and bright", "dull and cold"]
    PromptClassifier(MODEL, "zero-shot").fit(texts, ["positive", "negative"] * 2).save(folder)
    return str(model_folder(MODEL))


def measured(command: list[str]) -> tuple[float, float]:
    """Return the seconds of a process on the clock, and of CPU time over its threads."""
    begun, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - begun, os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return seconds, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        artifact = Path(scratch, "artifact")
        converted = prepared(artifact)
        commands = {
            "help": ["-m", "cuecraft", "--help"],
            "import torch, transformers": ["-c", IMPORT],
            "load the model": ["-c", LOAD, converted],
            "predict one text": ["-m", "cuecraft", "predict", str(artifact), TEXT],
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for number in range(asked.rounds + 1):
            for name, command in commands.items():
                times = measured(command)
                if number:  # the first round warms the caches
                    found[name].append(times)
                    print(f"round {number}: {name}: {times[0]:.2f} s, {times[1]:.2f} s of CPU", flush=True)
    rows = {
        name: {
            "seconds": round(statistics.median(own[0] for own in times), 3),
            "cpu_seconds": round(statistics.median(own[1] for own in times), 3),
            "all": [[round(value, 3) for value in own] for own in times],
        }
        for name, times in found.items()
    }
    pairs = list(zip(found["predict one text"], found["load the model"], strict=True))
    ratios = {
        name: round(statistics.median(predict[n] / load[n] for predict, load in pairs), 3)
        for n, name in enumerate(("seconds", "cpu_seconds"))
    }
    result = {"model": MODEL, "rounds": asked.rounds, "rows": rows, "predict_over_load": ratios, "machine": machine()}
    if asked.write:
        write_result("startup.json", result)
    else:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
