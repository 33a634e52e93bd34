"""Numbers in a range: soft targets, metrics as scikit-learn's, intervals and their coverage, reading, tuning."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score, mean_absolute_error

from conftest import TEXTS
from cuecraft.core.errors import DataError, MethodError
from cuecraft.data import Record, read_records
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.objectives import Golds, objective_of
from cuecraft.methods.prepare import make_problem, make_task
from cuecraft.methods.registry import make_method
from cuecraft.task.answers import AnswerColumns, Verbalizer, asked_answers
from cuecraft.task.answers.ordinal import Ordinal, OrdinalOptions

NUMBERS = (1.0, 2.0, 3.0, 5.0)
SPACE = Ordinal(NUMBERS, (("one",), ("two",), ("three",), ("five",)))


def drawn(count, seed=0):
    """Return numbers, and values whose probabilities are those that the numbers were drawn by."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, 4)) * 1.5
    shares = SPACE.probabilities(values)
    return [float(random.choice(NUMBERS, p=own)) for own in shares], torch.tensor(values)


def test_the_loss_of_an_option_is_that_of_a_label_and_between_two_that_of_their_mix():
    golds, values = drawn(30)
    labels = Golds(objective_of(Verbalizer.from_labels(["a", "b", "c", "d"])), tuple(map(NUMBERS.index, golds)))
    own = objective_of(SPACE)
    assert torch.allclose(own.losses(values, golds), labels.losses(values))
    low, high = own.losses(values, [3.0] * 30), own.losses(values, [5.0] * 30)
    assert torch.allclose(own.losses(values, [4.5] * 30), 0.25 * low + 0.75 * high)
    assert np.allclose(SPACE.shares([1.2, 4.5, 5.0]) @ NUMBERS, [1.2, 4.5, 5.0])


def test_metrics_are_those_of_scikit_learn_and_scipy():
    golds, values = drawn(80)
    decisions = SPACE.decide(SPACE.probabilities(values.numpy()), [None] * 80)
    found = np.array([own.value for own in decisions])
    assert np.allclose(found, values.softmax(-1).numpy() @ NUMBERS)
    rounded = [min(range(4), key=lambda n, own=own: abs(NUMBERS[n] - own)) for own in found]
    error = mean_absolute_error(golds, found)
    inside = [own.interval[0] <= gold <= own.interval[1] for own, gold in zip(decisions, golds, strict=True)]
    assert SPACE.measure(decisions, golds) == pytest.approx(
        {
            "neg_mean_absolute_error": -error,
            "mean_absolute_error": error,
            "spearman": spearmanr(golds, found).statistic,
            "quadratic_weighted_kappa": cohen_kappa_score(
                [NUMBERS.index(own) for own in golds], rounded, weights="quadratic", labels=range(4)
            ),
            "interval_coverage": np.mean(inside),
        }
    )
    for decision, place in zip(decisions, rounded, strict=True):
        assert decision.confidence == list(decision.options.values())[place]
    alike = SPACE.measure(SPACE.decide(np.full((3, 4), 0.25), [None] * 3), [2.0, 2.0, 2.0])
    assert (alike["spearman"], alike["quadratic_weighted_kappa"]) == (0.0, 0.0)


def test_the_middle_of_a_distribution_is_where_what_is_outside_is_small_enough():
    shares = np.array([[0.1, 0.4, 0.4, 0.1], [0.09, 0.5, 0.32, 0.09], [0.0, 0.0, 1.0, 0.0], [0.7, 0.05, 0.05, 0.2]])
    assert SPACE.intervals(shares).tolist() == [[2, 3], [2, 3], [3, 3], [1, 5]]
    narrow = Ordinal(NUMBERS, SPACE.words, 0.5)
    assert narrow.intervals(shares).tolist() == [[2, 3], [2, 3], [3, 3], [1, 2]]
    wider = Ordinal(NUMBERS, SPACE.words, 0.5, 0.75)
    assert wider.intervals(shares)[1].tolist() == [1.25, 3.75]
    assert wider.intervals(shares)[0, 0] == 1.25
    assert Ordinal(NUMBERS, SPACE.words, 0.5, -2.0).intervals(shares)[2].tolist() == [3, 3]  # the answer is in it


@pytest.mark.parametrize("sharper", [0.3, 1.0, 4.0])
def test_margins_of_held_out_answers_keep_the_coverage_that_is_promised(sharper):
    """However wrong the probabilities are: averaged over many draws of held-out texts and others."""
    covered = []
    for seed in range(200):
        golds, values = drawn(60, seed)
        golds, values = np.array(golds) + np.random.default_rng(seed).normal(size=60).clip(-2, 2), values * sharper
        golds = golds.clip(1, 5)
        decided = objective_of(SPACE).decided(values[:40], golds[:40].tolist())
        assert decided.undecided == SPACE
        found = decided.intervals(decided.probabilities(values[40:].numpy()))
        covered.append(((found[:, 0] <= golds[40:]) & (golds[40:] <= found[:, 1])).mean())
    error = np.std(covered) / np.sqrt(len(covered))
    assert np.mean(covered) > SPACE.coverage - 3 * error
    plain = SPACE.intervals(SPACE.probabilities(values[40:].numpy()))
    assert decided.margin > 0 or (plain[:, 1] - plain[:, 0]).mean() >= (found[:, 1] - found[:, 0]).mean()


@pytest.mark.parametrize("percent", [50, 55, 70, 80, 90, 95])
def test_the_margin_is_the_smallest_that_the_theorem_allows(percent):
    """That of rank ``ceil((n + 1) coverage)``, by whole numbers: 100 * .55 is more than 55 in floating point."""
    space = Ordinal((0.0, 1000.0), (("low",), ("high",)), percent / 100)
    for count in (19, 99, 179, 199, 219):
        golds = np.random.default_rng(count).permutation(count).astype(float).tolist()
        decided = objective_of(space).decided(torch.tensor([[50.0, -50.0]]).expand(count, 2).double(), golds)
        assert decided.margin == sorted(golds)[-(-(count + 1) * percent // 100) - 1]


def test_too_few_held_out_answers_lead_to_the_whole_range():
    golds, values = drawn(3)
    decided = objective_of(SPACE).decided(values, golds)
    assert decided.intervals(decided.probabilities(values.numpy())).tolist() == [[1, 5]] * 3


def test_the_head_is_a_multinomial_regression_with_rows_for_numbers_that_no_text_has():
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 5))
    golds = [float(NUMBERS[n]) for n in random.choice([0, 1, 3], size=40)]
    head = objective_of(SPACE).fitted_head(torch.tensor(features), golds)
    model = LogisticRegression(max_iter=1000).fit(features, golds)
    assert np.allclose(head.weight[[0, 1, 3]], model.coef_, atol=1e-4)
    assert np.allclose(head.weight[2], (2 * model.coef_[1] + model.coef_[2]) / 3, atol=1e-4)
    between = (2 * model.intercept_[1] + model.intercept_[2]) / 3
    assert float(head.bias[2]) == pytest.approx(between - np.log(41), abs=1e-4)
    with pytest.raises(MethodError, match="all texts have the same number"):
        objective_of(SPACE).fitted_head(torch.tensor(features), [2.0] * 40)


def test_numbers_are_read_of_numbers_and_strings(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label,stars\nx,good,4\ny,bad,1.5\n")
    assert [record.label for record in read_records(path, label_column=Ordinal.in_rows())] == [4.0, 1.5]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"text": "x", "mine": 4}, {"text": "y", "mine": -1e3}])))
    named = Ordinal.in_rows(AnswerColumns("mine"))
    assert [record.label for record in read_records(path, label_column=named)] == [4.0, -1000.0]


@pytest.mark.parametrize("value", ["four", "nan", float("inf"), True, [1], "9" * 400])
def test_what_is_no_number_is_refused_in_one_line(value):
    with pytest.raises(DataError, match=r"^row 1: column 'stars'.* is no number; give one, such as 3\.5$") as error:
        Ordinal.read("row 1", {"stars": value}, AnswerColumns())
    assert len(str(error.value)) < 120


@pytest.mark.parametrize("value", [None, " ", float("nan")])
def test_a_missing_number_is_refused(value):
    with pytest.raises(DataError, match="row 1: column 'stars': the number is missing; give one or remove the row"):
        Ordinal.read("row 1", {"stars": value}, AnswerColumns())


def records(numbers):
    return [Record({"text": str(row)}, float(number)) for row, number in enumerate(numbers)]


def test_the_space_has_each_of_a_few_numbers_or_those_asked_for():
    assert Ordinal.of(records([3, 1, 1.5]), OrdinalOptions(), None) == Ordinal(
        (1.0, 1.5, 3.0), (("1",), ("1.5",), ("3",))
    )
    worded = Ordinal.of(records([2, 1]), OrdinalOptions(), {"1": ["bad", "awful"], "2": "good"})
    assert worded.words == (("bad", "awful"), ("good",))
    for values in ("good:5,bad:1,so-so:3", {"bad": 1, "good": 5, "so-so": 3}):
        asked = asked_answers({"kind": "ordinal", "values": values, "coverage": 0.9})
        assert Ordinal.of(records([4]), asked, None) == Ordinal((1.0, 3.0, 5.0), (("bad",), ("so-so",), ("good",)), 0.9)
    wide = Ordinal.of(records([2, 3]), asked_answers({"kind": "ordinal", "range": "1,5"}), None)
    assert wide.numbers == (1.0, 2.0, 3.0, 5.0)
    with pytest.raises(DataError, match="only one number"):
        Ordinal.of(records([2, 2]), OrdinalOptions(), None)


def test_many_numbers_become_quantiles_with_words_that_expect_the_number():
    numbers = np.random.default_rng(0).exponential(size=200) * 10
    found = Ordinal.of(records(numbers), OrdinalOptions(), None)
    assert found.numbers == pytest.approx(np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1]))
    assert [word for (word,) in found.words] == ["lowest", "low", "medium", "high", "highest"]
    assert np.allclose(found.shares(numbers.tolist()) @ found.numbers, numbers)
    ties = Ordinal.of(records([0.0] * 150 + list(range(1, 51))), OrdinalOptions(), None)
    assert ties.numbers[0] == 0.0
    assert ties.words[0] == ("lowest",)
    ranged = Ordinal.of(records(numbers), OrdinalOptions(range=(-5.0, 500.0)), None)
    assert (ranged.numbers[0], ranged.numbers[-1]) == (-5.0, 500.0)
    assert ranged.numbers[1:-1] == found.numbers[1:-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"range": "5,1"}, "give the least number of the range and then a greater one"),
        ({"values": "bad:1,good:1"}, "give each label word a number of its own"),
        ({"values": "bad:1"}, "option 'values'"),
        ({"values": "bad,good"}, "option 'values.bad'"),
        ({"values": "bad:1,good:nan"}, "give each label word a number"),
        ({"coverage": "1.2"}, "option 'coverage'"),
    ],
)
def test_options_that_cannot_be_used_are_refused_in_one_line(options, message):
    with pytest.raises(MethodError, match=message) as error:
        asked_answers({"kind": "ordinal", **options})
    assert "\n" not in str(error.value)


def test_numbers_outside_of_the_range_are_refused_in_one_line():
    with pytest.raises(
        DataError, match=r"the number 5\.5 is not in the range 1 to 5; fix it, or give the answers a wider"
    ):
        SPACE.gold(Record({}, 5.5))
    with pytest.raises(DataError, match="the number 7 is not in the range 1 to 5; fix it"):
        Ordinal.of(records([2, 7]), OrdinalOptions(range=(1.0, 5.0)), None)
    with pytest.raises(DataError, match=r"numbers 2, 1 do not ascend"):
        Ordinal((2.0, 1.0), (("a",), ("b",)))


def test_strata_are_near_numbers_and_none_is_too_small():
    golds = [1.0] * 10 + [2.0] * 3 + [2.9] * 2 + [3.0] * 9 + [5.0] * 12
    strata = SPACE.strata(golds)
    assert strata == [0] * 10 + [2] * 14 + [3] * 12 or strata == [0] * 13 + [2] * 11 + [3] * 12
    assert min(map(strata.count, strata)) >= 5


STARS = (5.0, 1.0, 4.0, 2.0, 5.0, 1.0, 4.0, 2.0)


@pytest.mark.parametrize("method", ["linear-probe", "deep-cue", "lora", "auto", "contrastive", "in-context"])
@pytest.mark.parametrize("backbone", ["causal", "sequence"])
def test_methods_learn_numbers(method, backbone, request):
    own = [Record({"text": text}, number) for (text, _), number in zip(TEXTS, STARS, strict=True)]
    model = request.getfixturevalue(backbone)
    asked = OrdinalOptions(values={"bad": 1, "dull": 2, "good": 4, "great": 5})
    problem = make_problem(model, make_task(model, own, answers=asked), own, own, seed=0)
    options = {"auto": {"preset": "fast"}, "in-context": {"shots": 2}, "linear-probe": {}}.get(method, {"epochs": 3})
    made = make_method(method, options)
    if method == "in-context" and backbone == "sequence":
        with pytest.raises(MethodError):
            made.fit(problem)
        return
    artifact = make_artifact(problem, made.fit(problem), made)
    assert artifact.task.answers.undecided == problem.task.answers
    name = next(iter(name for name in artifact.manifest.metrics if name.endswith("neg_mean_absolute_error")))
    assert -4 <= artifact.manifest.metrics[name] <= 0


def test_numbers_that_differ_in_late_digits_stay_apart():
    found = Ordinal.of(records([1234567.0, 1234568.0, 0.1]), OrdinalOptions(), None)
    assert list(found.options) == ["0.1", "1234567", "1234568"]
    assert found.classes == ("0.1", "1234567", "1234568")


@pytest.mark.parametrize(
    "numbers", [(1234567890123.0, 1234567890124.0), (1.0, 1.0000000000001, 2.0), (-1e15, 1 - 1e15)]
)
def test_numbers_that_differ_behind_the_twelfth_digit_stay_apart(numbers):
    found = Ordinal.of(records(list(numbers)), OrdinalOptions(), None)
    assert tuple(map(float, found.options)) == numbers
    assert found.decide(np.eye(found.size), [None] * found.size)[1].value == numbers[1]
