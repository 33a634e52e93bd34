"""`cuecraft compare` on a tiny model: what is kept, what is run again, what is refused, and the documents."""

import json
import os
import re
import signal
import sys
from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
import yaml

from conftest import LABELS, TEXTS
from cuecraft.core.errors import MethodError
from cuecraft.methods import METHODS
from cuecraft.methods.problem import CalibrationKind, Method
from cuecraft.study.compare import comparison, config
from cuecraft.study.compare.config import CompareConfig, contenders, load_config, read_splits
from cuecraft.study.compare.schema import Cell, Comparison
from cuecraft.study.compare.trial import answer_speed, repeat_trial, run_trial

ROWS = [{"text": text, "label": LABELS[label]} for text, label in TEXTS]
QUICK = [
    {"name": "searched", "method": "autoprompt", "options": {"steps": 2, "candidates": 3}},
    {"name": "tuned", "method": "prompt-tuning", "options": {"epochs": 2}},
]
NAMES = ["zero-shot", "calibrated", "searched", "tuned"]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def task(tmp_path, monkeypatch, causal_folder):
    """A folder of splits for two seeds, and settings for it in compare.yaml; the current folder is theirs."""
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        write(tmp_path / "films" / f"seed-{seed}" / "train.jsonl", ROWS[seed:] + ROWS[:seed])
        write(tmp_path / "films" / f"seed-{seed}" / "dev.jsonl", ROWS)
    write(tmp_path / "films" / "test.jsonl", [{**row, "text": f"{row['text']} {n}"} for n in range(2) for row in ROWS])
    settings = {"task": "films", "seeds": [1, 2], "model": str(causal_folder), "methods": QUICK, "test_size": 12}
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


@pytest.fixture
def run(run):
    return lambda *words: run("compare", *words)


def test_bad_rows_are_left_out_and_other_delimiters_read(run, tmp_path, causal_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = ["text;label", ";positive", *(f"{text} {n};{LABELS[label]}" for n in range(2) for text, label in TEXTS)]
    (tmp_path / "films.csv").write_text("\n".join(lines) + "\n")
    words = ("--task", "films.csv", "--delimiter", ";", "--shots", 2, "--seeds", 1, "--methods", "zero-shot")
    words = (*words, "--model", causal_folder, "--json")
    code, _, err = run(*words)
    assert (code, "films.csv line 2: 'text' is empty" in err) == (2, True)
    code, out, err = run(*words, "--skip-bad-rows")
    assert code == 0, err
    skipped = json.loads(out)["skipped_rows"]
    assert (skipped["count"], skipped["rows"][0]["row"]) == (1, 1)
    assert "1 bad row left out (row 1)" in " ".join(err.split())


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the drawing out, where a test is not about it."""
    monkeypatch.setattr(comparison, "render_report", lambda document: "<!doctype html>")


@pytest.fixture
def counted(monkeypatch):
    """Count the cells that are run, by method and seed.

    What they hold is made once, and once for each number of test texts: it is not what these tests are about.
    """
    seen, trials, repeats, speeds = Counter(), {}, {}, []

    def counting(name, method, problem, test):
        seen[name, problem.seed] += 1
        key = (name, problem.seed, len(test))
        if key not in trials:
            trials[key] = run_trial(name, method, problem, test)
        return trials[key]

    def repeating(trial, *rest):
        if id(trial) not in repeats:
            repeats[id(trial)] = repeat_trial(trial, *rest)
        return repeats[id(trial)]

    def answering(answer, rows):
        speeds.extend([] if speeds else [answer_speed(answer, rows)])
        return speeds[0]

    monkeypatch.setattr(comparison, "run_trial", counting)
    monkeypatch.setattr(comparison, "repeat_trial", repeating)
    monkeypatch.setattr(comparison, "answer_speed", answering)
    return seen


def stamps(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (folder / "cells").iterdir()}


OUT = "runs/compare-films"


def test_a_comparison_leaves_a_table_a_document_and_a_report(task, run):
    code, out, err = run("--config", "compare.yaml")
    assert code == 0
    for name in NAMES:
        assert name in out
    assert f"{OUT}/report.html" in out
    assert "tuned, seed 2" in err
    text = (task / OUT / "compare.json").read_text()
    document = Comparison.model_validate_json(text)
    assert document.model_dump_json() + "\n" == text
    assert [row.name for row in document.rows] == NAMES
    assert len(document.cells) == 8
    assert document.test.rows == len(document.truth) == 12
    truth = np.array(document.truth)
    for row in document.rows:
        cells = [cell for cell in document.cells if cell.name == row.name]
        hits = [(np.array(cell.predictions) == truth).mean() for cell in cells]
        assert [cell.test.score for cell in cells] == pytest.approx(hits)
        assert row.score.mean == pytest.approx(np.mean(hits))
        assert row.score.sd == pytest.approx(np.std(hits, ddof=1))
        assert row.score.low <= row.score.mean <= row.score.high
        assert row.dev_loss == pytest.approx(np.mean([cell.dev.loss for cell in cells]))
        assert np.sum(row.confusion) == 24
        assert np.trace(row.confusion) == sum(hits) * 12
        assert row.reproducible.same
        assert row.reproducible.steps >= 1
        assert row.latency_p50_ms <= row.latency_p95_ms
    assert document.untuned == "zero-shot"
    assert document.best == min(document.rows, key=lambda row: row.dev_loss).name
    untuned = document.rows[0]
    assert untuned.versus_untuned is None
    tuned = document.rows[-1]
    assert tuned.versus_untuned.mean == pytest.approx(tuned.score.mean - untuned.score.mean)
    check_report((task / OUT / "report.html").read_text(), document)


def check_report(html, document):
    """The page stands alone, shows every method, and its figures are text, named, and in the page's colours."""
    references = set(re.findall(r"https?://[^\s\"'<>)]+", html))
    assert references <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"<script|<link|@import|\bsrc=|url\((?!#)", html)
    figures = re.findall(r"<svg .*?</svg>", html, re.DOTALL)
    # Accuracy and time, confusion and reliability of each, curves of two methods, a search, words of one at most.
    assert 2 + 4 + 4 + 2 + 1 <= len(figures) <= 2 + 4 + 4 + 2 + 2
    for svg in figures:
        assert re.match(r'<svg role="img" aria-label="[^"]{20,}"', svg)
        assert "<text" in svg
        assert not re.search(r"#01010\d|DejaVu|mathdefault|<metadata", svg)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    assert targets <= set(ids)
    for row in document.rows:
        assert html.count(f'<th scope="row">{row.name}') >= 2
    for cell in document.cells:
        assert f"{cell.test.score:.3f}" in html
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def test_finished_cells_are_kept_and_the_rest_is_run(task, run, counted, undrawn, monkeypatch):
    real = comparison.run_trial

    def stop_at_the_sixth(*parts):
        if sum(counted.values()) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*parts)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(comparison, "run_trial", stop_at_the_sixth)
    code, out, err = run("--config", "compare.yaml")
    assert code == 130
    assert out == ""
    assert "the same command goes on where it stopped" in err
    assert signal.getsignal(signal.SIGTERM) is before
    done = stamps(task / OUT)
    assert len(done) == 5
    assert not (task / OUT / "compare.json").exists()

    monkeypatch.setattr(comparison, "run_trial", real)
    first = Counter(counted)
    code, out, _ = run("--config", "compare.yaml", "--json")
    assert code == 0
    assert set((counted - first).values()) == {1}
    assert sum((counted - first).values()) == 3
    after = stamps(task / OUT)
    assert {name: after[name] for name in done} == done
    assert len(after) == 8
    document = json.loads(out)
    assert document == json.loads((task / OUT / "compare.json").read_text())
    assert document["kept_cells"] == 5


def test_what_changed_is_run_again_and_nothing_else(task, run, counted, undrawn):
    assert run("--config", "compare.yaml")[0] == 0
    settings = yaml.safe_load((task / "compare.yaml").read_text())

    def rerun(*words, **changes):
        (task / "compare.yaml").write_text(yaml.safe_dump(settings | changes))
        counted.clear()
        assert run("--config", "compare.yaml", *words)[0] == 0
        return set(counted)

    assert rerun() == set()
    other = [QUICK[0], {**QUICK[1], "options": {"epochs": 3}}]
    assert rerun(methods=other) == {("tuned", 1), ("tuned", 2)}
    # A further method, whose prompt is longer, leaves the finished cells as they are.
    prefix = {"name": "prefix", "method": "p-tuning-v2", "options": {"epochs": 1}}
    assert rerun(methods=[*other, prefix]) == {("prefix", 1), ("prefix", 2)}
    assert rerun(methods=other) == set()
    # Alone, the second seed's cells must carry the comparison with a second run, which those of the first had.
    assert rerun(methods=other, seeds=[2]) == {(name, 2) for name in NAMES}
    write(task / "films" / "seed-2" / "dev.jsonl", ROWS[:-1])
    assert rerun(methods=other) == {(name, 2) for name in NAMES}
    assert len(rerun("--test-size", 11, methods=other)) == 8
    assert len(rerun("--test-size", 11, "--template", "{text}{prompt: is}{mask}", methods=other)) == 8


def test_texts_are_read_once_for_all_methods(task, run, undrawn, monkeypatch):
    read = []
    whole, part = comparison.label_context, comparison.make_problem
    monkeypatch.setattr(comparison, "label_context", lambda b, t, e: read.append(("test", len(e))) or whole(b, t, e))
    monkeypatch.setattr(comparison, "make_problem", lambda *a, **k: read.append(("seed", k["seed"])) or part(*a, **k))
    words = ("--config", "compare.yaml", "--methods", "zero-shot")  # which is two: it is calibrated, too
    assert run(*words)[0] == 0
    assert sorted(read) == [("seed", 1), ("seed", 2), ("test", 12)]
    assert run(*words)[0] == 0
    assert len(read) == 3, "nothing is read where every cell is kept"


def test_a_damaged_cell_is_run_again_with_a_warning(task, run, counted, undrawn):
    assert run("--config", "compare.yaml")[0] == 0
    path = task / OUT / "cells" / "tuned-seed-2.json"
    whole = path.read_text()
    for damage in (whole[: len(whole) // 2], "", "[]", whole.replace('"macro_f1"', '"micro_f1"')):
        path.write_text(damage)
        counted.clear()
        code, _, err = run("--config", "compare.yaml")
        assert code == 0
        assert "tuned-seed-2.json: is damaged; the cell is run again" in err
        assert set(counted) == {("tuned", 2)}
        assert Cell.model_validate_json(path.read_text()).name == "tuned"


class Never(Method):
    """Goes with no backbone."""

    name: ClassVar[str] = "never"

    def fit(self, problem):
        raise MethodError("never goes with nothing; use another method")


def test_under_all_a_method_may_refuse_and_by_name_it_is_a_mistake(task, run, undrawn, monkeypatch):
    monkeypatch.setitem(METHODS, "never", Never)
    monkeypatch.setattr(config, "METHODS", {name: METHODS[name] for name in ("zero-shot", "never")})
    code, out, _ = run("--config", "compare.yaml", "--methods", "all")
    assert code == 0
    assert "never refused: never goes with nothing" in out
    document = Comparison.model_validate_json((task / OUT / "compare.json").read_text())
    assert [row.name for row in document.rows] == ["zero-shot", "calibrated", "never"]
    assert document.rows[-1].refused.startswith("never goes with nothing")
    assert document.rows[-1].score is None


def test_a_method_named_that_does_not_go_with_the_backbone_is_a_mistake(task, run, undrawn, monkeypatch):
    monkeypatch.setitem(METHODS, "never", Never)
    code, _, err = run("--config", "compare.yaml", "--methods", "never")
    assert code == 2
    assert "error: never goes with nothing" in err
    assert not (task / OUT / "compare.json").exists()


def test_a_backbone_without_words_is_compared_with_its_first_method(task, run, undrawn):
    code, out, _ = run("--config", "compare.yaml", "--head", "sequence", "--json")
    assert code == 0
    document = json.loads(out)
    assert [row["name"] for row in document["rows"]] == ["searched", "tuned"]
    assert document["untuned"] == "searched"


def test_the_reference_of_a_backbone_without_words_is_the_linear_probe():
    from cuecraft.study.compare.report import untuned_name

    assert untuned_name({"deep-cue": [], "linear-probe": []}) == "linear-probe"
    assert untuned_name({"deep-cue": [], "linear-probe": [], "zero-shot": []}) == "zero-shot"


def test_without_the_extra_there_is_no_report_and_one_warning(task, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (task / OUT / "cells").mkdir(parents=True)
    (task / OUT / "report.html").write_text("of an earlier run")
    code, out, err = run("--config", "compare.yaml", "--methods", "zero-shot", "--seeds", 1)
    assert code == 0
    assert err.count("pip install 'cuecraft[report]'") == 1
    assert (task / OUT / "compare.json").is_file()
    assert not (task / OUT / "report.html").exists()
    assert "zero-shot" in out


def test_cut_texts_are_told_when_they_are_read_and_not_for_each_query(task, run, undrawn):
    for path in [*task.glob("films/seed-1/*.jsonl"), task / "films" / "test.jsonl"]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        write(path, [{**row, "text": row["text"] * 9} for row in rows])
    code, _, err = run("--config", "compare.yaml", "--methods", "zero-shot", "--seeds", 1, "--max-tokens", 60)
    assert code == 0
    assert err.count("were cut at the end") == 2  # train and dev, of which the same is said, and test


def test_shots_are_drawn_for_each_seed_and_tested_on_what_none_drew(task):
    rows = [{"text": f"{row['text']} {n}", "label": row["label"]} for n in range(5) for row in ROWS]
    write(task / "rows.jsonl", rows + rows[:3])  # copies of a training text must not be tested on
    found = read_splits(CompareConfig(task="rows.jsonl", shots=2, seeds=[1, 2, 3]))
    used = {record.fields["text"] for split in found.seeds.values() for record in (*split.train, *split.dev)}
    assert {len(split.train) for split in found.seeds.values()} == {4}
    assert not used & {record.fields["text"] for record in found.test}
    assert used | {record.fields["text"] for record in found.test} == {row["text"] for row in rows}
    small = read_splits(CompareConfig(task="rows.jsonl", shots=2, seeds=[1, 2, 3], test_size=5))
    assert len(small.test) == 5


BAD = {
    "no task": ([], "no task; give --task"),
    "no seeds": (["--task", "films", "--seeds", ","], "no seeds"),
    "seed twice": (["--task", "films", "--seeds", "1,2,1"], "a seed is named twice"),
    "seed that is no number": (["--task", "films", "--seeds", "1,x"], "seeds.1: input should be a valid integer"),
    "no such seed": (["--task", "films", "--seeds", "1,7"], "seed-7: no such folder; the seeds there are 1, 2"),
    "no such task": (["--task", "nowhere"], "nowhere: no folder of splits"),
    "shots of a folder": (["--task", "films", "--seeds", "1", "--shots", "2"], "holds splits of its own"),
    "no method": (["--task", "films", "--methods", " "], "no methods; give all"),
    "unknown method": (["--task", "films", "--seeds", "1", "--methods", "magic"], "unknown method 'magic'"),
    "method twice": (["--task", "films", "--methods", "hybrid,hybrid"], "'hybrid' is named twice"),
    "no test rows": (["--task", "films", "--test-size", "0"], "test_size: input should be greater than or equal to 1"),
    "one class": (["--task", "single", "--seeds", "1"], "only one class"),
    "a class that a seed lacks": (["--task", "lame", "--seeds", "1,2"], "seed 2: no training example of class"),
    "unknown class in test": (["--task", "odd", "--seeds", "1"], "odd/test.jsonl row 1: label 'mixed' is not one of"),
    "nothing left to test on": (["--task", "rows.jsonl", "--shots", "2", "--seeds", "1"], "leaves no rows to test on"),
    "no YAML": (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
    "bad YAML": (["--config", "bad.yaml"], "bad.yaml line 3: not valid YAML"),
    "YAML of another shape": (["--config", "list.yaml"], "settings are 'key: value' lines"),
    "unknown key": (["--config", "extra.yaml"], "extra.yaml line 2: unknown key 'sedes'; the keys are "),
    "unknown key of a method": (
        ["--config", "entry.yaml"],
        "unknown key 'methods.0.speed'; the keys are name, method, options",
    ),
    "unknown option": (["--config", "option.yaml"], "method hybrid has no option 'speed'"),
    "name that misleads": (["--config", "name.yaml"], "'zero-shot' is the name of a method as it comes"),
    "name that is a path": (["--config", "path.yaml"], "cannot name a file"),
    "folder in the way": (
        ["--task", "films", "--seeds", "1", "--out", "taken"],
        "exists and is no comparison's folder",
    ),
    "file in the way": (["--task", "films", "--seeds", "1", "--out", "bad.yaml"], "is no comparison's folder"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_mistakes_cost_one_line_and_exit_code_two(task, run, causal_folder, name):
    words, what = BAD[name]
    write(task / "single" / "seed-1" / "train.jsonl", [row for row in ROWS if row["label"] == "positive"])
    write(task / "single" / "seed-1" / "dev.jsonl", ROWS[:1])
    write(task / "single" / "test.jsonl", ROWS[:1])
    for seed, rows in ((1, ROWS), (2, [row for row in ROWS if row["label"] == "positive"])):
        write(task / "lame" / f"seed-{seed}" / "train.jsonl", rows)
        write(task / "lame" / f"seed-{seed}" / "dev.jsonl", ROWS)
    write(task / "lame" / "test.jsonl", ROWS)
    for part in ("train", "dev"):
        write(task / "odd" / "seed-1" / f"{part}.jsonl", ROWS)
    write(task / "odd" / "test.jsonl", [{"text": "a", "label": "mixed"}])
    write(task / "rows.jsonl", ROWS)
    (task / "bad.yaml").write_text("task: films\nseeds: [1\n")
    (task / "list.yaml").write_text("- films\n")
    (task / "extra.yaml").write_text("task: films\nsedes: [1]\n")
    entries = {
        "entry": {"name": "a", "speed": 9},
        "option": {"name": "a", "method": "hybrid", "options": {"speed": 9}},
        "name": {"name": "zero-shot", "method": "hybrid"},
        "path": {"name": "../a", "method": "hybrid"},
    }
    for file, entry in entries.items():
        (task / f"{file}.yaml").write_text(yaml.safe_dump({"task": "films", "seeds": [1], "methods": [entry]}))
    (task / "taken").mkdir()
    (task / "taken" / "notes.txt").write_text("mine")
    before = sorted(task.rglob("*"))
    code, out, err = run(*words, "--model", causal_folder)
    assert code == 2
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert what in errors[0]
    assert sorted(task.rglob("*")) == before


def test_flags_replace_keys_and_every_key_has_a_description(task):
    found = load_config(task / "compare.yaml", {"seeds": "5,6", "test_size": None, "methods": "all"})
    assert found.seeds == [5, 6]
    assert found.test_size == 12
    assert found.methods == "all"
    assert str(found.folder) == OUT
    for model in (CompareConfig, config.MethodEntry):
        assert all(entry.description for entry in model.model_fields.values())


def test_all_is_every_method_after_the_untuned_ones():
    found = contenders(CompareConfig(task="films"))
    assert [contender.name for contender in found] == ["zero-shot", "calibrated", *list(METHODS)[1:]]
    assert all(contender.may_refuse for contender in found)
    assert found[1].method.calibration is CalibrationKind.FITTED
