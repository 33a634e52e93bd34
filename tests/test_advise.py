"""Advice: planted data is found, rules hold at their borders, and the document says what was measured."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import LABELS, TEXTS, make_task
from cuecraft.artifact import Calibration, HardPrompt, calibration
from cuecraft.core.errors import CuecraftWarning, DataError
from cuecraft.data import Record
from cuecraft.methods.candidate import Candidate, fresh_logits
from cuecraft.methods.registry import make_method
from cuecraft.study.advise.document import MeasuredScores, facts_of
from cuecraft.study.advise.endpoint import Reference
from cuecraft.study.advise.measure import (
    LIMIT,
    Accuracy,
    MethodWork,
    Sizes,
    accuracy,
    calibrated_accuracy,
    expected,
    read_sample,
    stratified_order,
)
from cuecraft.study.advise.rules import CHECKS, FITS, Check, Facts, Worth, findings, fitting, worth
from cuecraft.study.advise.survey import measure_lengths, survey
from cuecraft.task.rendering import HeadKind


def record(text, label=None):
    return Record({"text": text}, label)


def rows(*pairs):
    return [record(text, label) for text, label in pairs]


# What the data shows


def test_planted_duplicates_contradictions_and_balance():
    data = rows(
        *(("a joy", "up"), ("a  JOY ", "up"), ("a joy", "down"), ("bore", "down"), ("bore", "down"), ("other", None)),
        *(("bore", None), ("last", "up"), ("a joy", None)),
    )
    found = survey(data)
    assert (found.rows, found.labelled, found.unlabelled) == (9, 6, 3)
    assert dict(found.classes) == {"down": 3, "up": 3}
    assert found.duplicates == 5  # a joy 3 more, bore 2 more
    assert [one.rows for one in found.contradictions] == [(1, 2, 3)]
    assert dict(found.contradictions[0].labels) == {"up": 2, "down": 1}
    assert found.ceiling == pytest.approx(5 / 6)
    assert found.majority == 0.5


def test_labels_per_class_are_the_harmonic_mean_and_zero_with_an_empty_class():
    found = survey(rows(*[("a", "x")] * 3, *[("b", "y")] * 12))
    assert found.labels_per_class == pytest.approx(2 / (1 / 3 + 1 / 12))
    assert survey(rows(("a", "x"), ("b", "y")), ["x", "y", "z"]).labels_per_class == 0


@pytest.mark.parametrize(
    ("data", "classes", "says"),
    [
        (rows(("a", None)), None, "no row has a label"),
        (rows(("a", "x"), ("b", None)), None, r"only one class \(x\)"),
        (rows(("a", "x"), ("b", "q")), ["x", "y"], "row 2: label 'q'"),
        (rows(("a", None)), ["x", "x"], "only one class"),
    ],
)
def test_classes_that_are_not_known(data, classes, says):
    with pytest.raises(DataError, match=says):
        survey(data, classes)


# Lengths


def test_lengths_are_the_tokenizer_s_own_and_long_texts_are_counted(masked):
    texts = ["good", "a joy from start to finish", "bad " * 100, "dull " * 200]
    task = make_task(max_tokens=64)
    found = measure_lengths(masked, task, [record(text) for text in texts])
    counted = [len(masked.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    assert counted == [1, 6, 100, 200]
    assert (found.median, found.longest) == (np.median(counted), 200)
    assert found.p95 == pytest.approx(np.quantile(counted, 0.95))
    assert found.limit == 64
    # [CLS] [SEP] [MASK] and 32 places for the prompt
    assert found.capacity == 64 - 3 - 32
    assert (found.cut, found.cut_share) == (2, 0.5)
    assert found.mean == (1 + 6 + 2 * found.capacity) / 4


def test_lengths_cut_as_many_texts_as_a_run_does(causal):
    task = make_task(max_tokens=70)
    texts = [" ".join(["story"] * n) for n in range(1, 60, 3)]
    found = measure_lengths(causal, task, [record(text) for text in texts])
    with pytest.warns(CuecraftWarning, match=f"{found.cut} of {len(texts)} texts were cut"):
        causal.context(task.examples([record(text) for text in texts]), task)


# Measuring


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(0, 3))
def test_every_beginning_of_the_order_is_stratified(labels, seed):
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    for size in range(1, len(labels) + 1):
        for label in set(labels):
            share = labels.count(label) / len(labels) * size
            assert abs(sum(labels[row] == label for row in order[:size]) - share) <= 1 + 0.5 * len(set(labels))


def test_large_beginnings_have_each_class_to_within_one():
    labels = ["a"] * 900 + ["b"] * 90 + ["c"] * 10
    order = stratified_order(labels)
    for size in (100, 500, 1000):
        counts = [sum(labels[row] == name for row in order[:size]) for name in "abc"]
        assert all(abs(found - size * share) <= 1 for found, share in zip(counts, (0.9, 0.09, 0.01), strict=True))


class Clock:
    """A clock that a read of n texts moves by `each` seconds a text."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def slow(causal, monkeypatch):
    """Reads that take a tenth of a second a text, by their own clock."""
    from cuecraft.study.advise import measure

    clock = Clock()
    real = measure.fresh_logits

    def read(backbone, task, candidates, examples):
        clock.now += 0.1 * len(examples)
        return real(backbone, task, candidates, examples)

    monkeypatch.setattr(measure, "fresh_logits", read)
    return clock


def test_the_sample_is_fitted_to_the_time(causal, slow):
    data = [record(*TEXTS[n % 8][:1], LABELS[n % 2]) for n in range(200)]
    found = read_sample(causal, make_task(), data, 5.0, clock=slow)
    assert len(found.rows) == 50
    assert slow.now == pytest.approx(5.0)
    labels = [data[row].label for row in found.rows]
    assert abs(labels.count("positive") - 25) <= 1
    tokens = [
        len(causal.tokenizer(data[row].fields["text"], add_special_tokens=False)["input_ids"]) + 2 for row in found.rows
    ]
    assert found.tokens_per_second == pytest.approx(sum(tokens[4:]) / 4.6, rel=1e-6)


def test_little_time_reads_a_few_all_the_same_and_much_time_reads_all(causal, slow):
    data = [record(text, LABELS[label]) for text, label in TEXTS]
    assert len(read_sample(causal, make_task(), data, 0.01, clock=slow).rows) == 4
    assert len(read_sample(causal, make_task(), data, 1000.0, clock=slow).rows) == 8
    assert LIMIT >= 1000


def test_the_sample_s_answers_are_the_untuned_prompt_s(causal):
    task = make_task()
    data = [record(text, LABELS[label]) for text, label in TEXTS]
    found = read_sample(causal, task, data, 1000.0)
    untuned = Candidate(HardPrompt(causal.renderer(task).prompt_ids), Calibration.none(2))
    expected_logits = fresh_logits(causal, task, [untuned], task.examples(data))[0]
    torch.testing.assert_close(found.logits, expected_logits[list(found.rows)], rtol=1e-4, atol=1e-4)


def test_accuracies_by_hand():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    found = accuracy(logits, torch.tensor([0, 0, 0]))
    assert (found.hits, found.value) == (2, pytest.approx(2 / 3))
    assert found.interval == pytest.approx((0.2077, 0.9385), abs=1e-4)  # Wilson, by hand


def test_calibration_mends_an_offset():
    labels = torch.arange(200) % 2
    logits = torch.nn.functional.one_hot(labels, 2) * 2.0 + torch.tensor([0.0, 5.0])
    assert accuracy(logits, labels).value == 0.5
    assert calibrated_accuracy(logits, labels).value == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_a_calibrated_accuracy_is_not_flattered(seed):
    """Fitted to all four the threshold falls between 0.5 and 2; without its own label 0.5 is answered wrongly."""
    margins, labels = torch.tensor([-2.0, 0.5, 2.0, 4.0]), torch.tensor([0, 0, 1, 1])
    logits = torch.stack([-margins / 2, margins / 2], dim=1)
    assert accuracy(calibration.fitted(logits, labels).apply(logits), labels).value == 1.0
    assert calibrated_accuracy(logits, labels, seed).value == 0.75


def test_no_calibrated_accuracy_without_two_rows_of_each_class():
    assert calibrated_accuracy(torch.randn(3, 2), torch.tensor([0, 0, 1])) is None
    assert calibrated_accuracy(torch.randn(3, 2), torch.tensor([0, 0, 0])) is None


# Costs

SIZES = Sizes(
    rows=100,
    pool=1000,
    tokens=40.0,
    cue=8,
    tokens_per_second=400.0,
    weights=4_000_000,
    parameters=1_000_000,
    kept_bytes=1000,
    kept_limit=10**9,
    cue_bytes=50_000,
    row_bytes=400_000,
)


@pytest.mark.parametrize(
    ("work", "seconds", "memory"),
    [
        (MethodWork.READ, 100 * 40 / 400, 4_000_000 + 100 * 40 * 1000),
        (MethodWork.POOL, 512 * (40 + 40 * 8) / 400, 4_000_000 + 512 * 40 * 1000),
        (MethodWork.CUE, 10 + 10 * (75 * 2 + 25) * 8 / 400, 4_000_000 + 4_000_000 + 32 * 50_000),
        (MethodWork.ADAPTER, 10 * (75 * 3 + 25) * 40 / 400, 4_000_000 + 32 * 400_000),
        (MethodWork.WEIGHTS, 10 * (75 * 3 + 25) * 40 / 400, 4_000_000 + 32 * 400_000 + 20_000_000),
        (MethodWork.SEARCH, 600, 4_000_000 + 4_000_000 + 128 * 50_000),
    ],
)
def test_costs_by_hand(work, seconds, memory):
    found = expected(work, SIZES, epochs=10, time_limit=600 if work is MethodWork.SEARCH else None)
    assert (found.seconds, found.bytes) == (pytest.approx(seconds), memory)


def test_sizes_follow_where_the_texts_stand(causal, masked):
    data = [record("good " * 10)]

    def sizes(backbone, template):
        task = make_task(template)
        return Sizes.of(backbone, task, measure_lengths(backbone, task, data), 100.0, 10, 10)

    first = sizes(causal, "{text}{prompt: it was}{mask}")
    behind = sizes(causal, "{prompt: it was}{text}{mask}")
    assert first.cue == len(causal.tokenizer(" it was", add_special_tokens=False)["input_ids"])
    assert first.kept_bytes == 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads that share, width, float32
    assert (behind.cue, behind.kept_bytes) == (math.ceil(behind.tokens), 0)
    assert sizes(masked, "{text}{prompt: it was}{mask}").kept_bytes == 0
    assert first.weights == 4 * first.parameters == sum(p.nbytes for p in causal.model.parameters())


# Rules


@pytest.mark.parametrize(
    ("labels", "head", "names"),
    [
        (0, HeadKind.CAUSAL, ["label-free"]),
        (0, HeadKind.SEQUENCE, []),
        (1, HeadKind.CAUSAL, ["calibration", "label words"]),
        (8, HeadKind.MASKED, ["calibration", "label words"]),
        (8, HeadKind.SEQUENCE, ["linear-probe"]),
        (8.99, HeadKind.CAUSAL, ["calibration", "label words"]),
        (9, HeadKind.CAUSAL, ["auto", "deep-cue"]),
        (16, HeadKind.CAUSAL, ["auto", "deep-cue"]),
        (32, HeadKind.SEQUENCE, ["auto", "deep-cue", "linear-probe"]),
        (99.9, HeadKind.CAUSAL, ["auto", "deep-cue"]),
        (100, HeadKind.CAUSAL, ["auto, longer", "deep-cue", "lora"]),
        (999, HeadKind.MASKED, ["auto, longer", "deep-cue", "lora"]),
        (1000, HeadKind.CAUSAL, ["lora", "full"]),
        (10**6, HeadKind.SEQUENCE, ["lora", "full"]),
    ],
)
def test_methods_at_their_borders(labels, head, names):
    assert [fit.name for fit in fitting(labels, head)] == names


@given(st.floats(0, 1e6), st.sampled_from([HeadKind.CAUSAL, HeadKind.MASKED]))
def test_a_model_with_words_always_has_a_method(labels, head):
    assert fitting(labels, head) or 0 < labels < 1


def test_commands_of_the_table_name_methods_and_options_that_exist():
    for fit in FITS:
        if "--method" in fit.command:
            words = list(fit.command)
            options = dict(words[n + 1].split("=") for n, word in enumerate(words) if word == "--option")
            if "--preset" in words:
                options["preset"] = words[words.index("--preset") + 1]
            made = make_method(words[words.index("--method") + 1], options)
            assert fit.epochs == getattr(made, "epochs", fit.epochs) or not options
        if fit.time_limit is not None:
            assert fit.command[fit.command.index("--time-limit") + 1] == str(fit.time_limit)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.figure)
def test_checks_at_their_borders(check: Check):
    below = math.nextafter(check.least, -math.inf)
    other = {} if check.figure == "capacity" else {"capacity": 7.0}
    found = findings(Facts(**{check.figure: check.least}, **other))
    assert [one["figure"] for one in found] == [check.figure]
    assert "None" not in found[0]["says"]
    assert "{" not in found[0]["says"]
    assert findings(Facts(**{check.figure: below}, **other)) == []


def test_nothing_known_finds_nothing():
    assert findings(Facts()) == []


@pytest.mark.parametrize(
    ("interval", "majority", "ceiling", "verdict"),
    [
        (None, 0.5, 1.0, Worth.UNKNOWN),
        ((0.85, 0.95), 0.5, 1.0, Worth.UNLIKELY),
        ((0.84, 0.95), 0.5, 1.0, Worth.LIKELY),
        ((0.90, 0.949), 0.5, 1.0, Worth.LIKELY),
        ((0.90, 0.949), 0.5, 0.94, Worth.UNLIKELY),
        ((0.60, 0.86), 0.5, 1.0, Worth.UNCLEAR),
        ((0.50, 1.00), 0.5, 1.0, Worth.UNCLEAR),
        ((0.60, 0.80), 0.5, 1.0, Worth.LIKELY),
        ((0.94, 0.96), 0.9, 1.0, Worth.LIKELY),
        ((0.975, 0.991), 0.9, 1.0, Worth.UNLIKELY),
        ((0.975, 0.989), 0.9, 1.0, Worth.LIKELY),
    ],
)
def test_whether_tuning_is_worth_it(interval, majority, ceiling, verdict):
    assert worth(interval, majority, ceiling)[0] is verdict


def test_figures_of_scores_by_hand(causal):
    found = survey(rows(*[("a", "negative")] * 60, *[("b", "positive")] * 40))
    task = make_task()
    lengths = measure_lengths(causal, task, [record("good")])
    scores = MeasuredScores(Accuracy(40, 100), Accuracy(80, 100), Reference(Accuracy(95, 100), 0, 1.0, None))
    facts = facts_of(causal, task, found, lengths, {"negative": [1, 3], "positive": [2]}, scores)

    def wilson(share):
        middle, half = share + 1.96**2 / 200, 1.96 * math.sqrt(share * (1 - share) / 100 + 1.96**2 / 40000)
        return (middle - half) / (1 + 1.96**2 / 100), (middle + half) / (1 + 1.96**2 / 100)

    assert facts.below_majority == pytest.approx(0.6 - wilson(0.4)[1])
    assert facts.calibration_gain == pytest.approx(min(0.8 - wilson(0.4)[1], wilson(0.8)[0] - 0.6))
    assert facts.endpoint_lead == pytest.approx(wilson(0.95)[0] - wilson(0.8)[1])
    assert (facts.long_words, facts.imbalance, facts.scarce_classes, facts.duplicate_share) == (1, 1.5, 0, 0.98)
