"""Speed and memory next to what people use today; writes benchmarks/results/speed.json and docs/speed.svg.

    python benchmarks/speed.py [--only search,tune,...] [--rounds 5]

Everything runs in one process, on one backbone (demo:smollm2-135m) and the 16-shot splits of seed 13; the runs that are
compared take turns, and medians over the rounds after a warm-up are reported. Ratios are theirs / ours unless said
otherwise in METHOD. The last line of the output is the result as one JSON object.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from checks import differences, memory, trajectory
from common import ROOT, machine, read_result, require_data, write_result
from tasks import ENCODERS, TASKS, Bench
from timings import curve, encoder, many, nanogcg, predict, roof, search, tune

METHOD = {
    "search": "seconds per candidate scored on all training texts, cue of 8 tokens: one full forward with full logits "
    "(batches of 32, as published AutoPrompt) / packed; packed is the mean over swap positions 1 and 6, which is the "
    "mean over all eight; contexts are read once before (`context_seconds`, `break_even_candidates` in details)",
    "nanogcg": "seconds per candidate on the longest training text alone: nanogcg's candidate loss / packed; without "
    "its prefix cache, which fails on transformers 5",
    "tune": "seconds of one epoch, 8 soft tokens, batches of 16: PEFT PROMPT_TUNING / prompt-tuning; ours works "
    "on contexts read once before",
    "deep_cue": "the same: PEFT PREFIX_TUNING with 8 tokens / deep-cue with 8",
    "predict": "seconds for fresh test texts, tokenising included: PEFT model with 8 soft tokens / ours with 8",
    "overhead": "ours with 8 soft tokens / bare model on the same texts with the cue's 8 words, sorted, last position "
    "only, label words only",
    "overhead_text_only": "the same / bare model on the texts without any cue",
    "many": "16 prompts of 4 tokens on fresh texts / one of them",
    "many_8": "16 prompts of 8 tokens on fresh texts / one of them",
    "memory": "peak bytes of one training step on 4 texts: PEFT PROMPT_TUNING / prompt-tuning; ours "
    "reads its contexts within the measured step",
    "encoder": "seconds of one search step of 24 swaps: plain loop (one forward each, full logits) / sorted batches, "
    "successive halving",
    "roof": "FLOP/s of packed scoring / FLOP/s of a float32 matmul of 3072 x 3072",
    "max_logit_diff": "greatest difference of a class logit from the plain forward, over all fast paths",
}


PER_TASK: dict[str, Callable[[Bench], dict]] = {  # type: ignore[type-arg]
    "search": search,
    "tune": lambda bench: tune(bench, "prompt-tuning"),
    "deep_cue": lambda bench: tune(bench, "deep-cue"),
    "predict": predict,
    "many": many,
    "roof": roof,
    "diff": differences,
    "encoder": encoder,
    "trajectory": trajectory,
}
ON_SST2 = {"nanogcg": nanogcg, "memory": memory, "curve": curve}


def plot(points: dict[str, list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "cuecraft"  # the same picture gives the same bytes
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for name, label in (("plain", "one full forward per candidate"), ("packed", "packed over kept contexts")):
        axes.plot(points["tokens"], [value / 8 * 1000 for value in points[name]], marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(points["tokens"], [str(tokens) for tokens in points["tokens"]])
    axes.set_xlabel("tokens of the text")
    axes.set_ylabel("ms per candidate and text")
    where = f"{torch.get_num_threads()} threads of a CPU"
    axes.set_title(f"Scoring a swap: SmolLM2-135M, {where}, 24 candidates, cue of 8", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parts = (*PER_TASK, *ON_SST2)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(parts), help="parts to run; the others keep their figures, if any")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    require_data()
    chosen = options.only.split(",")
    if unknown := set(chosen) - set(parts):
        raise SystemExit(f"unknown parts {', '.join(sorted(unknown))}; choose from {', '.join(parts)}")
    old, here = read_result("speed.json"), machine()
    details: dict[str, dict] = old.get("details", {}) | {name: {} for name in chosen}  # type: ignore[type-arg]
    for task in TASKS:
        bench = Bench.of(task, options.rounds)
        for name in chosen:
            if name in PER_TASK:
                details[name][task] = PER_TASK[name](bench)
                print(name, task, details[name][task], flush=True)
            elif task == "sst-2":
                details[name] = ON_SST2[name](bench)
                print(name, details[name], flush=True)
    if set(details) == set(parts):
        whole = old.get("machine", {})
        measured = old.get("measured") or dict.fromkeys(parts, f"{whole.get('commit')} {whole.get('date')}")
        measured |= dict.fromkeys(chosen, f"{here['commit']} {here['date']}")
        plot(details["curve"], ROOT / "docs" / "speed.svg")
        write_result("speed.json", _result(details) | {"method": METHOD, "measured": measured, "machine": here})


def _result(details: dict[str, dict]) -> dict[str, object]:  # type: ignore[type-arg]
    def ratio(part: str, key: str = "ratio") -> dict[str, float]:
        return {task: round(details[part][task][key], 3) for task in TASKS}

    return {
        "search": ratio("search"),
        "tune": ratio("tune"),
        "deep_cue": ratio("deep_cue"),
        "predict": ratio("predict"),
        "overhead": ratio("predict", "overhead"),
        "overhead_text_only": ratio("predict", "overhead_text_only"),
        "many": ratio("many", "ratio_4"),
        "many_8": ratio("many", "ratio_8"),
        "memory": {length: round(found["ratio"], 2) for length, found in details["memory"].items()},
        "nanogcg": details["nanogcg"]["ratio"] if isinstance(details["nanogcg"], dict) else details["nanogcg"],
        "roof": ratio("roof"),
        "encoder": {
            model: {task: round(details["encoder"][task][model]["ratio"], 2) for task in TASKS} for model in ENCODERS
        },
        "max_logit_diff": {task: _worst(details, task) for task in TASKS},
        "trajectory": details["trajectory"],
        "details": details,
    }


def _worst(details: dict[str, dict], task: str) -> float:  # type: ignore[type-arg]
    encoders = [details["encoder"][task][model]["max_logit_diff"] for model in ENCODERS]
    return max(*details["diff"][task].values(), *encoders)


if __name__ == "__main__":
    main()
