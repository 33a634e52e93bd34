"""Comparisons of answers that are no labels: scores by name, documents that read back, and the plots of each kind."""

import json
import re

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from conftest import TEXTS
from cuecraft.core.errors import MethodError
from cuecraft.data import Record
from cuecraft.methods import make_method
from cuecraft.methods.prepare import make_task
from cuecraft.study.compare.answer_plots import figures_by_panel, most_confused
from cuecraft.study.compare.comparison import Folder, _Run
from cuecraft.study.compare.config import ComparedMethod, Split, Splits, load_config
from cuecraft.study.compare.figures import expected_calibration_error, figures_of
from cuecraft.study.compare.formats import text_tables
from cuecraft.study.compare.report import render_report
from cuecraft.study.compare.schema import Comparison, Row, ScoreEntry
from cuecraft.task import Decision, Example, Verbalizer
from cuecraft.task.answers import asked_answers
from cuecraft.task.answers.choices import ChoiceOptions, Choices
from cuecraft.task.answers.cloze import ClozeOptions
from cuecraft.task.answers.multilabel import Multilabel, MultilabelOptions
from cuecraft.task.answers.ordinal import Ordinal, OrdinalOptions

SETS = (("bad",), ("bad", "long"), (), ("long",), ("bad",), (), ("bad", "long"), ("long",))
NUMBERS = (5.0, 1.0, 4.0, 2.0, 5.0, 1.0, 4.0, 2.0)
OPTIONS = (("good", "bad"), ("great", "dull", "it was"), ("bad", "good", "a joy"), ("cold", "warm"))


def compared(backbone, asked, labels, folder, options=((),) * 8):
    """Run a comparison of a few methods on eight texts and two seeds; return its document and page."""
    records = [
        Record({"text": text}, label, options=own) for (text, _), label, own in zip(TEXTS, labels, options, strict=True)
    ]
    task = make_task(backbone, records, answers=asked)
    splits = Splits({seed: Split(records, records) for seed in (1, 2)}, records, ())
    methods = [("zero-shot", {}), ("linear-probe", {}), ("deep-cue", {"epochs": 2})]
    if isinstance(asked, ChoiceOptions | ClozeOptions):
        methods = [methods[0], methods[2]]
    named = [ComparedMethod(name, make_method(name, own)) for name, own in methods]
    place = Folder(folder / "compared")
    run = _Run(place, backbone, task, splits, named, lambda name: lambda event: None)
    with place.locked():
        run.run_cells()
        document = run.document("films")
    assert Comparison.model_validate_json(document.model_dump_json()) == document
    check_keys(json.loads(document.model_dump_json()), task.answers)
    return document, render_report(document)


def check_keys(document, answers):
    """Check that keys of scores name the metric: a score of tuning, or of the answers to test rows."""
    tuned, tested = answers.tuning_score, answers.primary
    for row in document["rows"]:
        assert row[tested] == row["measures"][tested]
        assert not {"score", "measure"} & set(row)
    for cell in document["cells"]:
        assert (set(cell["dev"]), set(cell["test"])) == ({"loss", tuned}, {"loss", tested})
        for step in cell["steps"]:
            assert {f"train_{tuned}", f"dev_{tuned}"} <= set(step)
            assert {key for key in step if key.endswith("accuracy")} <= {f"train_{tuned}", f"dev_{tuned}"}


def test_documents_with_accuracy_for_all_kinds_can_be_read():
    assert ScoreEntry.model_validate({"loss": 1.5, "accuracy": 0.5}) == ScoreEntry(loss=1.5, score=0.5)
    assert ScoreEntry.model_validate({"loss": 1.5, "spearman": 0.5}).measure == "spearman"
    with pytest.raises(ValueError, match="extra"):
        ScoreEntry.model_validate({"loss": 1.5, "accuracy": 0.5, "spearman": 0.5})


def headings(html):
    return re.findall(r"<h2 id=\"([^\"]+)\"", html)


def test_sets_are_compared_by_their_f1_with_precision_recall_and_reliability(causal, tmp_path):
    document, html = compared(causal, MultilabelOptions(), SETS, tmp_path)
    assert (document.task.answers, document.task.primary) == ("multilabel", "example_f1")
    assert document.truth == [list(own) for own in SETS]
    for row in document.rows:
        assert list(row.measures) == ["example_f1", "micro_f1", "macro_f1", "exact_match"]
        assert (row.macro_f1, row.confusion) == (None, None)
        cells = [cell for cell in document.cells if cell.name == row.name]
        for cell in cells:
            found, truth = (
                np.array([[name in own for name in ("bad", "long")] for own in rows])
                for rows in (cell.predictions, SETS)
            )
            assert np.mean(cell.primary) == pytest.approx(f1_score(truth, found, average="samples", zero_division=1))
            assert cell.measures["micro_f1"] == pytest.approx(f1_score(truth, found, average="micro"))
            assert cell.test.score == pytest.approx(np.mean(cell.primary))
        assert row.score.mean == pytest.approx(np.mean([cell.primary for cell in cells]))
        assert row.score.low <= row.score.mean <= row.score.high
        assert row.measures["micro_f1"].mean == pytest.approx(np.mean([cell.measures["micro_f1"] for cell in cells]))
    probe, cue = document.rows[1:]
    assert cue.versus_untuned.mean == pytest.approx(cue.score.mean - document.rows[0].score.mean)
    assert [panel.name for panel, _ in figures_by_panel(document)] == ["precision", "reliability"]
    assert {"precision", "reliability"} <= set(headings(html))
    assert "confusion" not in headings(html)
    assert "test example F1" in html
    assert f"{probe.measures['exact_match'].mean:.3f}" in html
    reached, _ = text_tables(document)
    assert reached.header[:4] == ("method", "example f1", "sd", "95%")
    assert {len(row) for row in reached.rows} == {len(reached.header)}
    steps = next(cell for cell in document.cells if cell.name == "deep-cue").steps
    assert all(step.dev_score is not None for step in steps)


def test_numbers_are_compared_by_their_error_with_a_histogram_of_errors(causal, tmp_path):
    document, html = compared(
        causal, OrdinalOptions(values={"bad": 1, "dull": 2, "good": 4, "great": 5}), NUMBERS, tmp_path
    )
    assert document.task.primary == "neg_mean_absolute_error"
    assert document.truth == list(NUMBERS)
    for cell in document.cells:
        errors = np.array(cell.predictions) - NUMBERS
        assert cell.primary == pytest.approx((-abs(errors)).tolist())
        counts = cell.figures.errors
        assert sum(own.count for own in counts) == 8
        assert sum(own.count for own in counts if own.low <= errors[0] < own.high) >= 1
        assert (counts[0].low, counts[-1].high) == (-4, 4)
    assert [panel.name for panel, _ in figures_by_panel(document)] == ["errors", "reliability"]
    assert "test minus mean absolute error" in html


def test_choices_are_compared_with_the_ranks_of_the_right_ones(causal, tmp_path):
    places = (0, 2, 1, 1) * 2
    document, html = compared(causal, ChoiceOptions(scoring="sum"), places, tmp_path, OPTIONS * 2)
    assert document.task.primary == "accuracy"
    for cell in document.cells:
        ranks = cell.figures.ranks
        assert sum(ranks.values()) == 8
        assert ranks["1"] / 8 == cell.test.score
        assert sum(n / int(rank) for rank, n in ranks.items() if n) / 8 == pytest.approx(
            cell.measures["mean_reciprocal_rank"]
        )
    assert [panel.name for panel, _ in figures_by_panel(document)] == ["ranks", "reliability"]
    assert "ranks" in headings(html)


@pytest.mark.parametrize("asked", [ClozeOptions(tokens=2), ClozeOptions(candidates=("seen",))])
def test_words_are_compared_by_the_ranks_of_the_right_ones_among_those_found(causal, asked, tmp_path):
    words = ("joy", ("bore", "dull"), "warm", "cold", "story", "bad", ("joy", "great"), "dull")
    document, html = compared(causal, asked, words, tmp_path)
    assert (document.task.answers, document.task.primary) == ("cloze", "precision_at_1")
    right = [(own,) if isinstance(own, str) else own for own in words]
    for cell in document.cells:
        hits = [value in own for value, own in zip(cell.predictions, right, strict=True)]
        assert cell.primary == [float(own) for own in hits]
        assert cell.test.score == cell.measures["precision_at_1"] == np.mean(hits)
        assert cell.figures.ranks["1"] == sum(hits)
    assert [panel.name for panel, _ in figures_by_panel(document)] == ["ranks", "reliability"]
    assert "test precision at 1" in html


def test_reliability_is_by_tenths_of_the_probability():
    space = Verbalizer.from_labels(["a", "b"])
    shares = np.array([[0.9, 0.1], [0.95, 0.05], [0.4, 0.6], [0.0, 1.0]])
    decisions = space.decide(shares, [Example({})] * 4)
    bands = figures_of(space, decisions, shares, [0, 1, 1, 1], [1.0, 0.0, 1.0, 1.0]).reliability
    assert [(own.count, own.observed) for own in bands] == [(1, 1.0), (3, pytest.approx(2 / 3))]
    assert [own.expected for own in bands] == pytest.approx([0.6, 2.85 / 3])
    assert expected_calibration_error(bands) == pytest.approx((0.4 + 3 * (2.85 - 2) / 3) / 4)


def test_precision_and_recall_are_scikit_learns():
    space = Multilabel(("a", "b"), (("a",), ("b",)), thresholds=(0.3, 0.7))
    random = np.random.default_rng(0)
    shares, truth = random.random((40, 2)), random.random((40, 2)) < 0.4
    golds = [tuple(np.flatnonzero(row).tolist()) for row in truth]
    decisions = space.decide(shares, [Example({})] * 40)
    curve = figures_of(space, decisions, shares, golds, [0.5] * 40).precision_recall
    assert curve.average_precision == pytest.approx(average_precision_score(truth.ravel(), shares.ravel()))
    found = shares >= (0.3, 0.7)
    assert curve.decided_precision == pytest.approx((found & truth).sum() / found.sum())
    assert curve.decided_recall == pytest.approx((found & truth).sum() / truth.sum())
    assert (curve.recall[0], curve.recall[-1]) == (1.0, 0.0)


def test_errors_and_ranks_of_a_few_answers():
    space = Ordinal((0.0, 1.0), (("a",), ("b",)))
    decisions = space.decide(np.array([[1.0, 0.0], [0.5, 0.5]]), [Example({})] * 2)
    errors = figures_of(space, decisions, np.array([[1.0, 0.0], [0.5, 0.5]]), [1.0, 0.5], [-1.0, 0.0]).errors
    assert [own.count for own in errors] == [1, *[0] * 7, 1, *[0] * 8]
    own = [Decision(0, 0.6, {"x": 0.6, "y": 0.4}), Decision(0, 0.6, {"x": 0.6, "y": 0.4})]
    ranks = figures_of(Choices(), own, np.zeros((2, 2)), [0, 1], [1.0, 0.0]).ranks
    assert (ranks["1"], ranks["2"], sum(ranks.values())) == (1, 1, 2)


def test_the_most_confused_classes_are_those_with_the_most_mistakes():
    names = [f"class {n}" for n in range(14)]
    counts = (5 * np.eye(14)).astype(int)
    counts[3, 7], counts[0, 1] = 5, 2
    row = Row(name="x", method="x", confusion=counts.tolist())
    assert most_confused(row, names) == [
        ("class 3", "class 7", 5, 0.5),
        ("class 0", "class 1", 2, pytest.approx(2 / 7)),
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of splits of sets: two seeds, and a label that dev alone has."""
    monkeypatch.chdir(tmp_path)

    def put(name, labels):
        path = tmp_path / "films" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"text": text, "labels": list(own)} for (text, _), own in zip(TEXTS, labels, strict=True)]
        path.write_text("\n".join(map(json.dumps, rows)))

    for seed in (1, 2):
        put(f"seed-{seed}/train.jsonl", SETS)
        put(f"seed-{seed}/dev.jsonl", [("new",), *SETS[1:]])
    put("test.jsonl", SETS)
    return put


def test_the_kind_of_answers_is_read_of_the_files(folder, causal_folder, run):
    command = ("compare", "--task", "films", "--seeds", "1,2", "--methods", "zero-shot,linear-probe")
    code, out, err = run(*command, "--model", causal_folder, "--json")
    assert code == 0
    document = Comparison.model_validate_json(out)
    assert (document.task.answers, document.task.labels) == ("multilabel", ["bad", "long", "new"])
    assert "answers are taken to be of kind multilabel" in err
    named = {row.name: row.measures["micro_f1"].mean for row in document.rows}
    assert named.keys() == {"zero-shot", "calibrated", "linear-probe"}


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([("other",), *SETS[1:]], (), "films/test.jsonl row 1: label 'other' is not one of the task's 3 classes"),
        (SETS, ("--answers", "ordinal"), "no column 'number'; the columns are 'text', 'labels'"),
        (SETS, ("--answers", "sets"), "unknown kind of answers 'sets'"),
    ],
)
def test_answers_that_do_not_fit_are_refused_before_a_model_is_loaded(labels, options, message, folder, run):
    folder("test.jsonl", labels)
    code, out, err = run("compare", "--task", "films", "--seeds", "1,2", "--model", "none", *options)
    assert (code, out) == (2, "")
    assert message in err.replace("\n", " ")
    assert "taken to be" not in err


def test_options_of_answers_are_those_of_the_file_and_of_the_command(tmp_path):
    path = tmp_path / "films.yaml"
    path.write_text("task: films\nanswers: {kind: ordinal, coverage: 0.5}\n")
    found = load_config(path, {"answer_option": {"range": "1,5"}})
    assert asked_answers(found.answers) == OrdinalOptions(range=(1, 5), coverage=0.5)
    assert load_config(None, {"task": "films", "answer_option": {"scoring": "sum"}}).answers == {"scoring": "sum"}
    with pytest.raises(MethodError, match="scoring"):
        load_config(path, {"answer_option": {"scoring": "sum"}})


def test_compare_takes_options_of_answers(folder, run):
    words = ("--seeds", "1", "--model", "none", "--answer-option", "classes=bad,long")
    code, out, err = run("compare", "--task", "films", *words)
    assert (code, out) == (2, "")
    assert "films/seed-1/dev.jsonl row 1: label 'new' is not one of the task's 2 classes" in err.replace("\n", " ")
