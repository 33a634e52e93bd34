"""Print the tables of the README that come from result files: `python benchmarks/tables.py`."""

from __future__ import annotations

from typing import Any

from common import read_result


def share(value: float) -> str:
    """Return a share without its leading zero, as papers print it."""
    return f"{value:.3f}".replace("0.", ".", 1)


def compare_rows() -> list[str]:
    """Return a row for each method of the comparison on SST-2."""
    document = read_result("compare_sst-2.json")
    rows = []
    for row in document["rows"]:
        accuracy, difference = row["accuracy"], row["versus_untuned"]
        name = "calibrated" if row["name"] == "calibrated" else f"`{row['name']}`"
        change = "-" if difference is None else ("+" if difference["mean"] >= 0 else "") + share(difference["mean"])
        cells = [
            name + (" *" if row["name"] == document["best"] else ""),
            share(accuracy["mean"]),
            share(accuracy["sd"]),
            f"{share(accuracy['low'])} to {share(accuracy['high'])}",
            change,
            f"{row['train_seconds']:.0f}",
            f"{row['latency_p50_ms']:.0f}",
            f"{row['tuned_parameters']:,}",
            f"{row['stored_bytes']:,}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def multitask_rows() -> list[str]:
    """Return a row for each task of the family that shares offsets."""
    rows: dict[str, Any] = read_result("multitask_offsets.json")["rows"]
    found = []
    for task, name, how in (("sst-2", "SST-2", "joint"), ("agnews", "AG News", "joint"), ("trec", "TREC", "added")):
        keys = (f"{task}, calibrated", f"{task}, deep-cue alone", f"{task}, {how}")
        found.append(f"| {name}, {how} | {' | '.join(share(rows[key]['test_accuracy']) for key in keys)} |")
    return found


def serve_rows() -> list[str]:
    """Return a row for each figure of serving, of both demo backbones."""
    found = read_result("serve.json")
    models = [found["demo:minilm"], found["demo:smollm2-135m"]]
    rows = {
        "texts a second, engine in its own process": [f"{m['http']['texts_per_second']['engine']:.0f}" for m in models],
        "texts a second over HTTP, one a request": [f"{m['http']['texts_per_second']['http']:.0f}" for m in models],
        "the same over the engine": [f"{m['http']['http_to_engine']:.2f}" for m in models],
        "16 prompts of four kinds in each batch, over one": [f"{m['engine']['mixed_to_one']:.2f}" for m in models],
        "one text under 8 prompts, over one prompt (seconds)": [
            f"{m['engine']['eight_prompts_to_one']:.2f}" for m in models
        ],
        "times PEFT behind FastAPI, one request a pass": [f"{m['http']['ahead_of']['peft']:.2f}" for m in models],
        "times a Transformers pipeline server": [f"{m['http']['ahead_of']['pipeline']:.2f}" for m in models],
        "p50 / p99 at half of the rate, ms": [
            f"{m['http']['at_half']['p50_ms']:.0f} / {m['http']['at_half']['p99_ms']:.0f}" for m in models
        ],
        "Ray, one replica, over no Ray": [f"{m['ray']['ray_to_local']:.2f}" for m in models],
        "seconds until it answers": [f"{m['http']['start_seconds']:.0f}" for m in models],
    }
    return [f"| {name} | {' | '.join(values)} |" for name, values in rows.items()]


if __name__ == "__main__":
    print("\n".join([*compare_rows(), "", *multitask_rows(), "", *serve_rows()]))
