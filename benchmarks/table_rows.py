"""Rows of the tables that come from result files, one function for each table or for those of one file."""

from __future__ import annotations

import math
from typing import Any

from common import RESULTS, read_result


def share(value: float, places: int = 3) -> str:
    """Return a share without its leading zero, as papers print it."""
    return f"{value:.{places}f}".replace("0.", ".", 1)


TASKS = {"sst-2": "SST-2", "agnews": "AG News", "trec": "TREC"}
SEEDS = (13, 21, 42)

#: Methods of the table in README, as it names them.
OVERVIEW = {
    "auto": "`auto` (default)",
    "auto-fast": "`auto`, preset `fast`",
    "deep-cue": "`deep-cue`",
    "lora": "LoRA",
    "full": "full fine-tuning",
    "setfit": "SetFit (another model)",
    "contrastive": "`contrastive`",
    "peft-prompt-tuning": "PEFT prompt tuning",
    "linear-probe": "linear probe",
    "calibrated": "untuned, calibrated",
    "untuned": "untuned",
}


def overview_rows() -> list[str]:
    """Return a row for each method that was measured: accuracy and seconds on each task, the best mean first.

    ``~`` marks seconds of which some were measured next to other work, ``-`` a task that was not measured with every
    seed; such a row comes last, without a mean.
    """
    methods = read_result("accuracy.json")["methods"]
    rows = []
    for key, name in OVERVIEW.items():
        if key not in methods:
            continue
        cells, means = [], []
        for task in TASKS:
            own = methods[key]["tasks"].get(task, {"accuracy": []})
            if len(own["accuracy"]) < len(SEEDS):
                cells += ["-", "-"]
                continue
            means.append(own["mean"])
            seconds = methods[key]["seconds"][task]
            is_busy = any(_was_busy(f"{task}-{seed}-{key}") for seed in SEEDS)
            cells += [share(own["mean"]), f"{'~' if is_busy else ''}{sum(seconds) / len(seconds):.0f}"]
        mean = sum(means) / len(means) if len(means) == len(TASKS) else None
        if means:
            rows.append((mean or 0.0, f"| {name} | {'-' if mean is None else share(mean)} | {' | '.join(cells)} |"))
    return [row for _, row in sorted(rows, key=lambda item: item[0], reverse=True)]


def _was_busy(cell: str) -> bool:
    path = RESULTS / "accuracy" / f"{cell}.json"
    return not path.exists() or bool(read_result(f"accuracy/{cell}.json")["beside_other_work"])


def accuracy_rows() -> list[str]:
    """Return a row for each method that `auto` is compared with, on three tasks and three seeds, the best first."""
    found = read_result("accuracy.json")
    ahead = found["asked"]["ahead_of"]
    rows = []
    whole = {name: row for name, row in found["methods"].items() if row["runs"] == 3 * len(TASKS)}
    for name, row in sorted(whole.items(), key=lambda item: item[1]["mean"], reverse=True):
        tasks = [row["tasks"][task] for task in TASKS]
        cells = [share(row["mean"]), *(f"{share(task['mean'])} ± {share(task['sd'])}" for task in tasks)]
        behind = share(ahead[name]["mean"]) if name in ahead else "-"
        rows.append(f"| `{name}` | {' | '.join(cells)} | {share(row['mean_sd_over_seeds'])} | {behind} |")
    return rows


def auto_rows() -> list[str]:
    """Return a row for each run of `auto`: what it reached, its own untuned and calibrated prompt, what shipped."""
    rows = []
    for task, name in TASKS.items():
        for seed in SEEDS:
            own = read_result(f"accuracy/{task}-{seed}-auto.json")
            ships = "tuned" if own["tuned"] else "untuned"
            cells = [share(own["accuracy"]), share(own["own_untuned_accuracy"]), ships, f"{own['seconds']:,.0f}"]
            rows.append(f"| {name}, {seed} | {' | '.join(cells)} |")
    return rows


def label_free_rows() -> list[str]:
    """Return a row for each task where a prompt was chosen without labels."""
    found = read_result("label_free.json")["summary"]
    rows = []
    for task, name in TASKS.items():
        own = found[task]
        chosen = own["selectors"]["consensus"]
        cells = [own["best"], own["median"], own["untuned"], chosen["accuracy"]]
        rows.append(f"| {name} | {' | '.join(share(value) for value in cells)} | {share(chosen['ratio'], 2)} |")
    return rows


#: Names of tasks in the result file, and on the page.
TRUST = {
    **TASKS,
    "docstrings": "docstrings by subject",
    "sst-2, a fifth positive, true shares": "SST-2, a fifth positive, shares given",
    "sst-2, a fifth positive, equal shares": "SST-2, a fifth positive, shares not given",
    "sst-5": "SST-5",
    "cb": "CB",
    "rte": "RTE",
    "wic": "WiC",
    "sst-2, terrible/great": "SST-2, words terrible, great *",
    "banking77, five intents": "Banking77, five intents *",
    "log lines": "log lines *",
}


def trust_rows() -> list[str]:
    """Return a row for each task whose cues were asked how far they agree."""
    found = read_result("label_free_trust.json")
    rows = []
    for task, own in (found["tasks"] | found["later"]).items():
        agreements = sorted({share(value, 2) for value in (min(own["agreements"]), max(own["agreements"]))})
        cells = [f"{own['texts']}", f"{own['classes']}", " to ".join(agreements), share(own["lowest"], 2)]
        cells.append(f"{own['warns']} of {own['seeds']}")
        cells += [share(own[name]) for name in ("own_words", "chosen", "best")] + [share(own["ratio"], 2)]
        cells.append(share(own["test_ratio"], 2) if "test_ratio" in own else "-")
        rows.append(f"| {TRUST[task]} | {' | '.join(cells)} |")
    return rows


def log_rows() -> list[str]:
    """Return a row for each method on log lines and each text that it was given."""
    rows = []
    for own in read_result("logs.json")["summary"]:
        cells = [f"{own['seeds']}"]
        for figure in ("all.macro_f1", "all.average_precision", "unseen_masked.macro_f1"):
            sd = own[figure]["sd"]
            cells.append(share(own[figure]["mean"]) + (f" ± {share(sd)}" if sd is not None else ""))
        rows.append(f"| {own['row']} | {own['text']} | {' | '.join(cells)} |")
    return rows


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
    for task, how in (("sst-2", "joint"), ("agnews", "joint"), ("trec", "added")):
        keys = (f"{task}, calibrated", f"{task}, deep-cue alone", f"{task}, {how}")
        found.append(f"| {TASKS[task]}, {how} | {' | '.join(share(rows[key]['test_accuracy']) for key in keys)} |")
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


MODELS = {"demo:minilm": "22M, encoder", "demo:smollm2-135m": "135M, causal"}
QUERIES, PLANNED_SHARE = 10_000, 0.6  # a second; of a replica's rate


def capacity_tables() -> dict[str, list[str]]:
    """Return what was measured of each demo backbone, and how many replicas answer 10,000 queries a second."""
    found = read_result("serve.json")
    measured, planned = [], []
    for name, kind in MODELS.items():
        own = found[name]
        http, ray = own["http"], own["ray"]
        rates, late = http["texts_per_second"], http["at_half"]
        cells = [
            f"{own['mean_tokens']:.0f}",
            f"{rates['engine']:.0f}",
            f"{rates['http']:.0f}",
            f"{ray['texts_per_second']['ray']:.0f} ({ray['ray_to_local']:.2f} of local)",
            f"{late['p50_ms']:.0f} / {late['p99_ms']:.0f}",
            f"{http['memory_mb']:.0f}",
        ]
        measured.append(f"| `{name}` ({kind}) | {' | '.join(cells)} |")
        replicas = math.ceil(QUERIES / (rates["http"] * PLANNED_SHARE))
        cells = [
            f"{rates['http']:.0f}",
            f"{rates['http'] * PLANNED_SHARE:.0f}",
            f"{replicas:,}",
            f"{2 * replicas:,}",
            f"{replicas * http['memory_mb'] / 1024:,.0f} GiB",
        ]
        planned.append(f"| `{name}` | {' | '.join(cells)} |")
    return {"capacity": measured, "replicas": planned}


def overload_rows() -> list[str]:
    """Return a row for each demo backbone under four times what it can answer."""
    rows = []
    for name, found in read_result("serve.json").items():
        own = found.get("overload")
        if own is None:
            continue
        statuses = ", ".join(f"{status}: {count:,}" for status, count in own["statuses"].items())
        memory = own["memory_mb"]
        cells = [
            f"{own['reached_per_second']:.0f}",
            f"{own['sent_per_second']:.0f}",
            f"{own['requests_per_second']:.0f}",
            statuses,
            f"{own['deadline_ms']:,}",
            f"{own['p99_ms']:,.0f} / {own['p100_ms']:,.0f}",
            f"{own['refused_p50_ms']:.0f} / {own['refused_p99_ms']:.0f}",
            f"{memory['first quarter']:.0f} / {memory['last quarter']:.0f}",
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return rows


def flip_rows() -> list[str]:
    """Return a row for each method and template whose labels were attacked."""
    names = {
        "untuned": "untuned, calibrated",
        "discrete": "`autoprompt`",
        "soft": "`prompt-tuning`",
        "deep": "`deep-cue`",
        "lora": "`lora`",
        "full": "full fine-tuning",
    }
    found = read_result("label_flip.json")["found"]
    return [
        f"| {name} | {template} | {' | '.join(share(x, 2) for x in (own['accuracy'], *own['flips'].values()))} |"
        for key, name in names.items()
        for template, rows in found.items()
        if (own := rows.get(key))
    ]


def _told(rows: dict[str, Any], *levels: str) -> list[str]:
    return [f"{share(rows[level]['recall'])} / {share(rows[level]['false_positives'])}" for level in levels]


def guard_tables() -> dict[str, list[str]]:
    """Return the tables of the guard: rules, tricks, detectors on three kinds of texts, folds and cost."""
    found = read_result("guard.json")
    told, tricks = found["rules"]["told"], found["rules"]["tricks"]
    rules = [
        f"| {name} | {' | '.join(_rules_cells(told[key]))} |" for key, name in (("rules", "ours"), ("pyatr", "`pyatr`"))
    ]
    by_detectors, by_trick = found.get("folds", {}).get("tricks", {}), []
    for trick, own in tricks.items():
        columns = own | by_detectors.get(trick, {})
        cells = [share(columns[name]) for name in TRICK_COLUMNS if name in columns]
        by_trick.append(f"| {trick} | {' | '.join(cells)} |")
    held = {name: own for name, own in found.get("heldout", {}).items() if name not in ("rows", "machine")}
    detectors, ordinary = [], []
    for name, own in held.items():
        detectors += [
            f"| {name}, {texts} | {' | '.join(_told(own[texts], '0.5', *LEVELS))} |"
            for texts in ("held out", "injection")
        ]
        levels = [share(own["ordinary"][level]) for level in ("0.5", *LEVELS[:2])]
        ordinary.append(f"| {name}, ordinary | {' | '.join(levels)} |")
    folds = [
        f"| {name} | {' | '.join(_told(own, '0.5', *LEVELS[2:]))} |"
        for name, own in found.get("folds", {}).get("told", {}).items()
    ]
    names = {"label": "the label itself", "rules": "rules", "rules and deep cue": "rules and deep cue"}
    cost = [f"| {name} | {found['cost']['milliseconds'][key]:.1f} |" for key, name in names.items()]
    return {
        "guard-rules": rules,
        "guard-tricks": by_trick,
        "guard-detectors": detectors,
        "guard-ordinary": ordinary,
        "guard-folds": folds,
        "guard-cost": cost,
    }


LEVELS = ("ordinary 1%", "ordinary 3%", "own 1%", "own 3%")
TRICK_COLUMNS = (
    "rules, not normalised",
    "rules",
    "pyatr",
    "deep cue, not normalised",
    "deep cue",
    "rules and deep cue",
)


def _rules_cells(own: dict[str, Any]) -> list[str]:
    sets = ("bastioncorpus", "injection", "ordinary")
    recalls = [share(own[name]["recall"]) for name in sets[:2]]
    return [*recalls, *(share(own[name]["false_positives"]) for name in sets)]


def _audited(own: dict[str, Any]) -> str:
    """Return how many of an audit agreed, and from which share on the truth lies."""
    return f"{own['agreed']} of {own['rows']} (from {share(own['interval'][0])})" if own["rows"] else "-"


def bulk_tables() -> dict[str, list[str]]:
    """Return the tables of ways to classify a small file, of the bare engine, and of sizes of a large file."""
    found = read_result("bulk.json")
    modes = [
        f"| {name} | {own['rows_per_second']:.1f} | {own['mb_per_second']:.4f} | {own['computed']:,} | "
        f"{share(own['rows_that_agree_with_plain'])} |"
        for name in ("plain", "exact", "template", "cascade")
        if (own := found["modes"].get(name))
    ]
    bare = found["bare"]
    rates = [f"{bare[f'{name}_rows_per_second']:.2f}" for name in ("plain", "engine", "backbone")]
    ratios = [share(bare["plain_to_engine"]), share(bare["plain_to_backbone"])]
    sizes = []
    for own in (found["memory"], found["big"]):
        cells = [
            f"{own['megabytes']:,}",
            f"{own['read']:,}",
            f"{own['quarantined']:,}",
            f"{own['computed']:,}",
            f"{own['taught']:,}",
            f"{own['whole_seconds']:.0f}",
            f"{own['rows_per_second']:,.0f}",
            f"{own['mb_per_second']:.2f}",
            f"{own['peak_mib']:,.0f}",
            _audited(own["agreement"]["template"]),
            _audited(own["agreement"]["cascade"]),
        ]
        sizes.append(f"| {' | '.join(cells)} |")
    return {"bulk-modes": modes, "bulk-bare": [f"| {' | '.join([*rates, *ratios])} |"], "bulk-sizes": sizes}


GRAPHS = {
    "pytorch": "PyTorch, float32",
    "onnx-fp32": "ONNX Runtime, float32",
    "onnx-int8": "ONNX Runtime, int8",
    "openvino-fp32": "OpenVINO, float32",
    "openvino-int8": "OpenVINO, int8",
}
WAYS = {
    "own graph, one": "one prompt, its own graph",
    "one graph, one": "one prompt of the graph of eight",
    "own graphs, all": "all eight, a graph each",
    "one graph, all": "all eight, one graph",
    "pytorch, all": "all eight, PyTorch",
}


def export_tables() -> dict[str, list[str]]:
    """Return the tables of graphs, of what int8 was tried as, and of prompts that share a graph."""
    found, rows, ways, several = read_result("export.json"), [], [], []
    for model, own in found.items():
        graphs = own.get("graphs", {})
        for graph, name in GRAPHS.items():
            if (row := graphs.get(graph)) is None:
                continue
            cells = [
                f"{row['bytes'] / 1e6:,.0f}",
                f"{row['load_seconds']:.1f}",
                f"{row['p50_ms']:.0f} / {row['p95_ms']:.0f}",
                f"{row['texts_per_second']:.1f}",
                f"{row['to_pytorch']:.2f}",
                share(row["agreement"]),
            ]
            rows.append(f"| `{model}`, {name} | {' | '.join(cells)} |")
    for model, own in found.items():
        for graph in ("onnx-int8", "openvino-int8"):
            row = own.get("graphs", {}).get(graph, {"tried": []})
            for tried in row["tried"]:
                is_taken = tried["recipe"] == row["recipe"]
                cells = [tried["recipe"] + (" *" if is_taken else ""), share(tried["labels"])]
                ways.append(f"| `{model}`, {graph.partition('-')[0]} | {' | '.join(cells)} |")
        if "several" in own:
            several += [
                f"| {name} | {own['several']['one text at a time'][way]:.2f} | {own['several']['16 texts'][way]:.2f} |"
                for way, name in WAYS.items()
            ]
    return {"export-graphs": rows, "export-int8": ways, "export-several": several}


def speed_rows() -> list[str]:
    """Return a row for each pair of runs whose times were compared."""
    found = read_result("speed.json")
    rows = {
        "search": "candidate swap scored, cue of 8 tokens | one full forward for each candidate, as AutoPrompt's "
        "published code",
        "tune": "epoch of `prompt-tuning`, 8 vectors | PEFT `PROMPT_TUNING`",
        "deep_cue": "epoch of `deep-cue`, 8 positions | PEFT `PREFIX_TUNING`",
        "predict": "fresh texts classified, 8 tuned vectors | PEFT",
        "overhead": "fresh texts classified, 8 tuned vectors | the bare model, with 8 words in their place",
        "many": "16 prompts of 4 tokens over fresh texts | one such prompt",
        "many_8": "16 prompts of 8 tokens over fresh texts | one such prompt",
    }
    is_faster = ("search", "tune", "deep_cue", "predict")
    return [
        f"| {text} | "
        + " | ".join(
            f"{found[key][task]:.1f} times as fast" if key in is_faster else f"{found[key][task]:.2f} times the cost"
            for task in ("sst-2", "agnews")
        )
        + " |"
        for key, text in rows.items()
    ]


def weights_rows() -> list[str]:
    """Return a row for each method that was compared with LoRA and full fine-tuning, on two tasks."""
    names = {
        "zero-shot": "calibrated, untuned",
        "prompt-tuning": "`prompt-tuning`",
        "deep-cue": "`deep-cue`",
        "lora": "LoRA (PEFT, rank 8)",
        "full": "full fine-tuning",
    }
    found = {(row["task"], row["method"]): row for row in read_result("deep_cue.json")["rows"]}
    rows = []
    for key, name in names.items():
        cells = []
        for task in ("sst-2", "agnews"):
            own = found[task, key]
            low, high = own["interval_95"]
            cells += [f"{share(own['test_accuracy'])} ({share(low)} to {share(high)})", f"{own['seconds']:.0f}"]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows
