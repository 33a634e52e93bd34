"""What a busy neighbour costs: a deep cue alone and next to one busy process; writes benchmarks/results/busy.json.

    python benchmarks/busy.py [--rounds 3] [--epochs 3]

Threads of OpenMP that wait by spinning hold a core that another process could use, and that the thread they wait for
could use too. `import cuecraft` has them sleep (OMP_WAIT_POLICY=PASSIVE), unless the variable is set. Each run is a
process of its own, as the policy is read when torch loads; the policies take turns. Seconds are those of training
alone, after loading and reading.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

from common import machine, require_data, write_result

POLICIES = {"spinning": "ACTIVE", "library default": "", "passive": "PASSIVE"}
TASK, SEED = "sst-2", 13


def train(epochs: int) -> None:
    """Train a deep cue and print the seconds of it; what a child process does."""
    import time

    from common import DATA

    from cuecraft.backbone import load_backbone
    from cuecraft.data import read_records
    from cuecraft.methods import make_method
    from cuecraft.methods.prepare import make_problem, make_task

    folder = DATA / TASK / f"seed-{SEED}"
    train, dev = (read_records(folder / f"{part}.jsonl") for part in ("train", "dev"))
    backbone = load_backbone("demo:smollm2-135m")
    problem = make_problem(backbone, make_task(backbone, train), train, dev, seed=SEED)
    begun = time.perf_counter()
    make_method("deep-cue", {"epochs": epochs, "patience": epochs}).fit(problem)
    print(json.dumps({"seconds": time.perf_counter() - begun}))


def measured(policy: str, epochs: int, neighbours: int) -> float:
    """Return the seconds of one training next to so many busy processes."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    # Where torch loads before cuecraft and the variable is not set, torch does what it does by itself.
    here = os.path.dirname(__file__)
    run = f"import sys, torch, runpy; sys.path.insert(0, {here!r}); runpy.run_path({__file__!r}, run_name='__main__')"
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
    try:
        command = [sys.executable, "-c", run, "--child", "--epochs", str(epochs)]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--child", action="store_true")
    asked = parser.parse_args()
    require_data()
    if asked.child:
        train(asked.epochs)
        return
    found: dict[tuple[str, int], list[float]] = {(name, n): [] for name in POLICIES for n in (0, 1)}
    for number in range(asked.rounds):
        for name, n in found:
            found[name, n].append(measured(POLICIES[name], asked.epochs, n))
            print(f"round {number + 1}: {name}, {n} busy: {found[name, n][-1]:.1f} s", flush=True)
    rows = {}
    for name in POLICIES:
        alone, busy = (statistics.median(found[name, n]) for n in (0, 1))
        rows[name] = {"alone_s": round(alone, 2), "busy_s": round(busy, 2), "ratio": round(busy / alone, 2)}
    write_result("busy.json", {"machine": machine(), "epochs": asked.epochs, "rounds": asked.rounds, "policies": rows})


if __name__ == "__main__":
    main()
