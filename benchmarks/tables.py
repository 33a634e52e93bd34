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


if __name__ == "__main__":
    print("\n".join([*compare_rows(), "", *multitask_rows()]))
