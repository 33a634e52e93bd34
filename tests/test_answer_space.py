"""Answer spaces: the contract that every registered kind keeps, and the one of the page on extending."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.nn import functional

from conftest import TEXTS
from cuecraft.artifact import Calibration, load_artifact
from cuecraft.artifact.calibration import PLAIN_FIT
from cuecraft.artifact.predictor import Predictor
from cuecraft.backbone import ClassHead
from cuecraft.core.errors import ArtifactError, DataError, MethodError
from cuecraft.core.scores import readable
from cuecraft.data import Record, k_shot_split
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.objectives import OBJECTIVES, Golds, Objective, objective_of
from cuecraft.methods.prepare import make_problem
from cuecraft.methods.registry import make_method
from cuecraft.serving.artifacts import ServedPrompt, Shelf
from cuecraft.serving.engine import Engine
from cuecraft.task import AnswerSpace, Decision, Task, Template, Verbalizer
from cuecraft.task.alignment import words_of
from cuecraft.task.answers import ANSWERS, answer_space, answers_document
from cuecraft.task.answers.choices import Choices
from cuecraft.task.answers.cloze import Cloze
from cuecraft.task.answers.multilabel import Multilabel
from cuecraft.task.answers.open_set import OpenSet
from cuecraft.task.answers.ordinal import Ordinal
from cuecraft.task.answers.tokens import TokenLabels
from serving import answered
from test_docs import of_page

TEMPLATE = "{text}{prompt: it was}{mask}"
#: One of each kind, registered or of a fixture here, and labels of eight texts.
CASES = {
    "sets": lambda: (
        Sets(("good", "dull", "great")),
        ("good", "dull", "good+great", "", "good", "dull+great", "great", "good+dull"),
    ),
    "labels": lambda: (
        Verbalizer(("no", "so-so", "yes"), (("bad",), ("dull", "cold"), ("great",)), (0, 1, 2)),
        ("yes", "no", "so-so", "yes", "no", "no", "yes", "so-so"),
    ),
    "open-set": lambda: (
        OpenSet(("bad", "cold", "joy"), (("bad",), ("dull", "cold"), ("great",)), "none", least=0.45),
        ("joy", "bad", "cold", "joy", "none", "bad", "joy", "cold"),
    ),
    "choices": lambda: (Choices("token"), (0, 1, 2, 0, 1, 1, 0, 2)),
    "multilabel": lambda: (
        Multilabel(("bad", "cold", "joy"), (("bad",), ("dull", "cold"), ("great",)), (1, 2, 3), (0.5, 0.3, 0.6)),
        (("bad",), ("cold",), ("bad", "joy"), (), ("bad",), ("cold", "joy"), ("joy",), ("bad", "cold")),
    ),
    "ordinal": lambda: (
        Ordinal((1.0, 2.0, 4.0), (("bad",), ("dull", "cold"), ("great",)), 0.7, 0.25),
        (4.0, 1.0, 2.5, 4.0, 1.0, 1.0, 3.5, 2.0),
    ),
    "cloze": lambda: (
        Cloze("candidates", ("good", "dull", "great"), seen=("good", "dull", "great")),
        ("good", ("dull", "great"), "dull", "good", "great", "dull", ("good", "great"), "great"),
    ),
    "ratings": lambda: (
        ANSWERS["ratings"](("bad", "dull", "great"), (1.0, 2.0, 4.0)),
        (4.0, 1.0, 2.0, 4.0, 1.0, 1.0, 4.0, 2.0),
    ),
    "tokens": lambda: (
        TokenLabels(("film", "mood")),
        (
            (("mood", 2, 5),),
            (("mood", 2, 6), ("mood", 18, 28)),
            (),
            (("film", 0, 8),),
            (),
            (),
            (("mood", 0, 4), ("film", 5, 11)),
            (),
        ),
    ),
}
#: What texts bring to choose among, of kinds where they do.
OPTIONS = (
    ("good", "bad"),
    ("great", "dull", "it was"),
    ("bad", "good", "a joy to see"),
    ("cold", "warm", "great"),
    ("good", "great"),
    ("bad", "it was"),
    ("great", "bad"),
    ("warm", "a joy", "awful"),
)


@dataclass(frozen=True)
class Sets(AnswerSpace):
    """Any of some words; a gold is the set of those that are right."""

    kind: ClassVar[str] = "sets"
    primary: ClassVar[str] = "example_accuracy"
    calibrations: ClassVar[tuple[str, ...]] = ("none", "fitted")

    words: tuple[str, ...]

    @classmethod
    def read(cls, where, row, columns):
        return row[columns.label_in(row, cls.columns)], ()

    @classmethod
    def of(cls, records, asked, label_words):
        return cls(tuple(sorted({word for record in records for word in record.label.split("+")} - {""})))

    @property
    def options(self):
        return {word: (word,) for word in self.words}

    def gold(self, record):
        found = frozenset(filter(None, record.label.split("+")))
        if not found <= set(self.words):
            raise DataError(f"label {record.label!r} is not of {self.words}")
        return found

    def label(self, gold):
        return "+".join(word for word in self.words if word in gold)

    def strata(self, golds):
        rarest = sorted(range(len(self.words)), key=lambda n: sum(self.words[n] in gold for gold in golds))
        return [next((n for n in rarest if self.words[n] in gold), 0) for gold in golds]

    def probabilities(self, values):
        return 1 / (1 + np.exp(-values))

    def decide(self, probabilities, examples):
        rows = [dict(zip(self.words, row, strict=True)) for row in probabilities.tolist()]
        return [
            Decision([word for word in row if row[word] >= 0.5], min(max(p, 1 - p) for p in row.values()), row)
            for row in rows
        ]

    def measure(self, decisions, golds):
        hits = [
            [(word in own.value) == (word in gold) for word in self.words]
            for own, gold in zip(decisions, golds, strict=True)
        ]
        return {self.primary: float(np.mean(hits))}


class SetObjective(Objective):
    """Binary losses, summed over the words; a threshold for each is a bias."""

    def _truth(self, values, golds):
        rows = [[float(word in gold) for word in self.answers.words] for gold in golds]
        return torch.tensor(rows, dtype=values.dtype, device=values.device).expand(values.shape)

    def losses(self, values, golds):
        return functional.binary_cross_entropy_with_logits(values, self._truth(values, golds), reduction="none").sum(-1)

    def scores(self, values, golds):
        return ((values >= 0) == (self._truth(values, golds) > 0.5)).to(values).mean(-1)

    def normalised(self, values):
        return values.double()

    def mixed(self, values, shares=None):
        shares = torch.ones(len(values), dtype=values.dtype) if shares is None else shares
        mean = (values.sigmoid() * (shares / shares.sum())[:, None, None]).sum(0)
        return mean.logit()

    def _minimal(self, values, golds, make):
        parameters = torch.zeros(1 + self.answers.size, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            loss = self.losses(make(parameters, values.double()), golds).mean() + 0.01 * parameters.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        return parameters.detach()

    def fitted(self, values, golds, weights=None):
        found = self._minimal(values, golds, lambda p, v: p[0].exp() * v + p[1:])
        return Calibration(tuple(found[1:].tolist()), float(found[0].exp()))

    def tempered(self, values, golds):
        found = self._minimal(values, golds, lambda p, v: p[0].exp() * v)
        return Calibration((0.0,) * self.answers.size, float(found[0].exp()))

    def fitted_head(self, features, golds, fit=PLAIN_FIT):
        truth = self._truth(features[:, :1].expand(-1, self.answers.size), golds)
        weight = torch.zeros(self.answers.size, features.shape[1] + 1, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=50)

        def closure():
            optimizer.zero_grad()
            loss = functional.binary_cross_entropy_with_logits(features @ weight[:, :-1].T + weight[:, -1], truth)
            (loss + 0.01 / fit.inverse_penalty * weight.square().sum()).backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        return ClassHead(weight[:, :-1].detach(), weight[:, -1].detach(), fit.scale)


@pytest.fixture
def ratings(monkeypatch):
    """The answer space of the page, registered by its one file."""
    for registry in (ANSWERS, OBJECTIVES):
        monkeypatch.setitem(registry, "ratings", None)  # taken back afterwards
    of_page("Ratings", monkeypatch)


@pytest.fixture
def sets(monkeypatch):
    monkeypatch.setitem(ANSWERS, "sets", Sets)
    monkeypatch.setitem(OBJECTIVES, "sets", SetObjective)


@pytest.fixture(params=CASES)
def case(request):
    if request.param not in ANSWERS:
        request.getfixturevalue(request.param)
    return CASES[request.param]()


def values_for(space, count, prompts=()):
    """Random values; where texts bring options, or have tags for each word, minus infinity behind their own."""
    own = [len(options) for options in OPTIONS[:count]]
    if space.at == "words":
        own = [space.head_rows * len(words_of(text)) for text, _ in TEXTS[:count]]
    values = 2 * torch.randn(*prompts, count, space.size or max(own), generator=torch.Generator().manual_seed(1))
    for row, size in enumerate(own if not space.size else ()):
        values[..., row, size:] = -torch.inf
    return values


def golds_in(space, labels):
    return Golds(objective_of(space), tuple(space.gold(record) for record in records(labels, space)))


def records(labels, space=None):
    options = OPTIONS if space is not None and space.brings_options else [()] * len(labels)
    rows = zip(TEXTS, labels, options, strict=False)
    return [Record({"text": text}, label, options=own) for (text, _), label, own in rows]


def asked(record):
    """A record as a client sends it."""
    return {**record.fields, "choices": record.options} if record.options else dict(record.fields)


def examples(space, labels):
    return Task(Template(TEMPLATE), space).examples(records(labels, space))


def names_in(space, row, decision):
    """Names of the options that a decision has probabilities of."""
    if space.at == "words":
        return [f"{one['label']} {one['start']}-{one['end']}" for one in decision.value]
    return list(map(str, space.classes)) if space.size else list(OPTIONS[row])


@pytest.fixture
def reader(case, request):
    """The backbone that reads the texts, and the template."""
    if case[0].at == "words":
        return request.getfixturevalue("sequence"), "{prompt}{text}"
    return request.getfixturevalue("causal"), TEMPLATE


def test_every_registered_kind_has_a_case_here():
    assert set(ANSWERS) <= set(CASES)
    assert set(ANSWERS) == set(OBJECTIVES)


def test_losses_are_differentiable_and_those_of_each_example_alone(case):
    space, labels = case
    golds = golds_in(space, labels)
    values = values_for(space, len(labels)).requires_grad_()
    losses = golds.losses(values)
    assert losses.shape == (len(labels),)
    (gradient,) = torch.autograd.grad(losses.sum(), values)
    assert bool(gradient.isfinite().all())
    assert bool((gradient.abs().sum(1) > 0).all())
    alone = [golds.select([row]).losses(values[[row]]) for row in range(len(labels))]
    assert torch.equal(losses, torch.cat(alone))
    several = values_for(space, len(labels), (5,))
    assert torch.equal(golds.losses(several), torch.stack([golds.losses(own) for own in several]))
    assert torch.equal(golds.scores(several).primary, torch.stack([golds.scores(own).primary for own in several]))


def test_a_smaller_loss_is_a_step_along_the_gradient(case):
    space, labels = case
    golds, values = golds_in(space, labels), values_for(space, len(labels)).double().requires_grad_()
    (gradient,) = torch.autograd.grad(golds.losses(values).sum(), values)
    moved = golds.losses(values.detach() - 1e-3 * gradient)
    assert bool((moved < golds.losses(values)).all())


def test_primary_scores_are_those_of_its_decisions(case):
    space, labels = case
    golds, values = golds_in(space, labels), values_for(space, len(labels)).double()
    decisions = space.decide(space.probabilities(values.numpy()), examples(space, labels))
    measured = space.measure(decisions, golds.values)
    assert next(iter(measured)) == space.primary
    assert measured[space.primary] == pytest.approx(golds.scores(values).mean.primary)
    for row, decision in enumerate(decisions):
        assert list(decision.options) == names_in(space, row, decision)
        assert 0 <= decision.confidence <= 1


def test_prompts_answer_together_in_training_as_they_do_afterwards(case):
    space, labels = case
    several, shares = values_for(space, len(labels), (3,)).double(), torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    objective = objective_of(space)
    for weights in (None, shares):
        own = np.average(space.probabilities(several.numpy()), axis=0, weights=weights)
        assert np.allclose(space.probabilities(objective.mixed(several, weights).numpy()), own)
    assert np.allclose(
        space.probabilities(objective.normalised(several[0]).numpy()), space.probabilities(several[0].numpy())
    )


def test_calibrations_lower_the_loss(case):
    space, labels = case
    golds, values = golds_in(space, labels), 5 * values_for(space, len(labels)).double()
    before = float(golds.losses(values).mean())
    for found in (golds.fitted(values), golds.tempered(values)):
        assert float(golds.losses(found.apply(values)).mean()) < before
        assert np.array_equal(found.apply(values.numpy()), found.apply(values).numpy())
    assert torch.equal(golds.objective.plain().apply(values), values)


def test_gradients_of_prompts_together_are_numbers_where_texts_have_other_options():
    """Each text alone, without the places of options that it does not have, is the oracle."""
    values = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    absent = torch.tensor([[False] * 4, [False, False, True, True]])
    objective = objective_of(Choices())
    for shares in (None, torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)):
        found = objective.mixed(values.masked_fill(absent, -torch.inf), shares)
        plain = [objective.mixed(values[:, :1], shares)[0], objective.mixed(values[:, 1:, :2], shares)[0]]
        assert torch.equal(found[1, 2:], torch.full((2,), -torch.inf, dtype=torch.float64))
        for own, expected in zip(found.split(1), plain, strict=True):
            own = own[0, : len(expected)]
            assert torch.allclose(own, expected)
            (gradient,) = torch.autograd.grad(own[0], values, retain_graph=True)
            assert torch.allclose(gradient, torch.autograd.grad(expected[0], values, retain_graph=True)[0])


WORDS = [["a"], ["b", "c"]]
NAN, INFINITE = float("nan"), float("inf")
FOLLOWED = [[0, 1], [0, 1, 2, 3], [-2, 0, 1], [0, 5, 1], [0, -1, 1], [0, 1, 0], [0, 1, 1.5], [0, 1, NAN]]
#: Of each kind a document that can be read, and by field values that cannot stand there.
DAMAGED = {
    "labels": (
        {"labels": ["x", "y"], "words": WORDS, "classes": [0, 1]},
        {
            "labels": [None, 3, [], ["x"], ["x", "x"], ["x", 4], ["x", "y", "z"]],
            "words": [
                None,
                "ab",
                [],
                [["a"]],
                [["a"], []],
                [["a"], ["a"]],
                [["a"], [" "]],
                [["a"], [3]],
                [*WORDS, ["d"]],
            ],
            "classes": [None, 3, [0], [0, 1, 2], [[], 1]],
        },
    ),
    "open-set": (
        {"labels": ["x", "y"], "words": WORDS, "reject": "none", "keep": 0.9, "least": 0.4},
        {
            "labels": [None, 3, [], ["x"], ["x", "x"], ["x", 4], ["x", "none"]],
            "words": [None, "ab", [], [["a"]], [["a"], []], [["a"], ["a"]], [*WORDS, ["d"]]],
            "reject": [3, ["none"], "x"],
            "keep": [None, "most", [], 0, -0.1, 1.1, NAN, INFINITE],
            "least": [None, "some", [], -0.1, 1.5, NAN, -INFINITE],
        },
    ),
    "choices": (
        {"scoring": "sum", "content_free": "N/A", "shown": "text"},
        {
            "scoring": [None, 3, "best"],
            "content_free": [None, 3, "", " "],
            "shown": [None, 0, "both"],
        },
    ),
    "tokens": (
        {"labels": ["x", "y"], "field": "text", "followed": [[-1, 0, 3], [0, 1, 2]], "reading": "context"},
        {
            "labels": [None, 3, [], ["x", "x"], ["x", 4], ["x", ""]],
            "field": [None, 3, []],
            "followed": [
                None,
                3,
                [3],
                [[0, 1]],
                [[0, 1, 2, 3]],
                [[-2, 0, 1]],
                [[0, 5, 1]],
                [[0, 1, -1]],
                [[0, 1, NAN]],
            ],
            "reading": [None, 3, "sentence"],
        },
    ),
    "multilabel": (
        {"labels": ["x", "y"], "words": WORDS, "classes": [0, 1], "thresholds": [0.5, 0.1]},
        {
            "labels": [None, 3, [], ["x"], ["x", "x"], ["x", 4]],
            "words": [None, "ab", [], [["a"]], [["a"], []], [["a"], ["a"]], [*WORDS, ["d"]]],
            "classes": [None, 3, [0], [0, 1, 2], [[], 1]],
            "thresholds": [None, 0.5, [0.5], [0.5, "x"], [0.5, 1.2], [-0.1, 0.5], [0.5, NAN], [0.5, INFINITE]],
        },
    ),
    "ordinal": (
        {"numbers": [1, 2], "words": WORDS, "coverage": 0.8, "margin": -0.1},
        {
            "numbers": [None, 3, [], [1], [2, 1], [1, 1], [1, "x"], [1, NAN], [1, INFINITE], [-INFINITE, 1], [1, 2, 3]],
            "words": [None, "ab", [], [["a"]], [["a"], []], [["a"], ["a"]], [*WORDS, ["d"]]],
            "coverage": [None, "most", 0, 1, -0.1, 1.5, NAN],
            "margin": [None, "some", [], NAN, INFINITE, -INFINITE],
        },
    ),
    "cloze": (
        {"among": "candidates", "candidates": ["x", "y"], "seen": ["x"], "tokens": 2, "top": 3},
        {
            "among": [None, 3, "words", "vocabulary", "options"],
            "candidates": [None, 3, [], ["x"], ["x", "x"], ["x", " "], ["x", 4]],
            "seen": [None, 3, [4], [""]],
            "tokens": [None, "two", 0, -1, 1.5, NAN],
            "top": [None, "two", 0, -1, 1.5, INFINITE],
        },
    ),
}


def test_damage_is_tried_in_each_field_of_each_kind():
    assert set(DAMAGED) == set(ANSWERS) - {"sets", "places"}
    for kind, (whole, fields) in DAMAGED.items():
        assert list(whole) == list(fields) == list(answers_document(answer_space({"kind": kind, **whole})))[1:]


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_field_of_a_manifest_is_one_line(kind, tmp_path):
    """Out of its range, of another type, more or fewer than there are options, missing, or one that is not there."""
    whole, fields = DAMAGED[kind]
    raw = (Path(__file__).parent / "artifacts" / "schema-8-labels" / "manifest.json").read_text(encoding="utf-8")
    cases = [{**whole, name: value} for name, values in fields.items() for value in values]
    cases += [{**whole, "unknown": 1}]
    for number, case in enumerate(cases):
        document = json.loads(raw)
        document["task"]["answers"] = {"kind": kind, **case}
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps(document))
        with pytest.raises(ArtifactError) as found:
            load_artifact(folder)
        assert "is damaged" in str(found.value), case
        assert "\n" not in str(found.value), case


@pytest.mark.parametrize("document", [None, "labels", ["labels"], 3])
def test_a_document_that_is_no_object_is_no_answer_space(document):
    with pytest.raises(ValueError, match="object"):
        answer_space(document)


def test_it_is_what_its_document_says_and_labels_are_what_golds_say(case):
    space, labels = case
    again = answer_space(json.loads(json.dumps(answers_document(space))))
    assert again == space
    assert [type(own) for own in again.classes] == [type(own) for own in space.classes]
    golds = golds_in(space, labels)
    assert tuple(space.label(gold) for gold in golds.values) == labels
    assert len(set(golds.strata)) > 1 or space.brings_options
    assert all(isinstance(own, int) for own in golds.strata)
    with pytest.raises(DataError, match="'nonsense'"):
        space.gold(replace(records(labels, space)[0], label="nonsense"))


def test_it_is_tuned_saved_loaded_and_served_as_it_predicts(case, reader, tmp_path):
    (space, labels), (backbone, template) = case, reader
    task, rows = Task(Template(template), space), records(labels, space)
    problem = make_problem(backbone, task, rows, rows, seed=0)
    method = make_method("deep-cue", {"epochs": 6, "learning_rate": 0.1})
    outcome = method.fit(problem)
    assert outcome.is_tuned
    assert f"dev_{space.tuning_score}" in outcome.trace[-1]
    artifact = make_artifact(problem, outcome, method)
    artifact.save(tmp_path / "own")
    loaded = load_artifact(tmp_path / "own")
    assert loaded.task.undecided == task.undecided
    space, own = loaded.task.answers, task.examples(rows)
    predictor = Predictor.of(loaded, backbone)
    decisions = predictor.decide(own)
    assert space.measure(decisions, [example.gold for example in own])[space.primary] == pytest.approx(
        loaded.manifest.metrics[f"dev_{space.tuning_score}"], abs=1e-5
    )
    with torch.no_grad():
        values = outcome.best.logits(backbone, problem.train.context)
    expected = space.probabilities(values.double().numpy())
    assert np.allclose(predictor.probabilities(own), expected, atol=1e-5)
    if space.size:
        served = ServedPrompt.over(backbone, "own", [loaded])
        assert np.allclose(answered(served, [text for text, _ in TEXTS]), expected, atol=1e-5)
    shelf = Shelf(backbone)
    shelf.put("own", [loaded])
    engine = Engine(shelf)
    answers = engine.ask([asked(record) for record in rows], ["own"])
    engine.close()
    for answer, decision, example in zip(answers, decisions, own, strict=True):
        assert answer.decision.options == pytest.approx(dict(decision.options), abs=1e-5)
        if space.at == "words":
            assert answer.decision.value == decision.value
        else:
            again = space.decide(np.array([answer.probabilities]), [example])
            assert again[0].value == answer.decision.value
    assert shelf.get("own").describe()["classes"] == list(space.classes)


@pytest.mark.parametrize("kind", ["ratings", "sets", "multilabel", "ordinal"])
@pytest.mark.parametrize("method", ["autoprompt", "linear-probe", "zero-shot"])
def test_methods_of_other_families_take_answers_that_they_do_not_know(method, kind, request, causal):
    if kind not in ANSWERS:
        request.getfixturevalue(kind)
    space, labels = CASES[kind]()
    options = {"autoprompt": {"steps": 2, "candidates": 4}}.get(method, {})
    problem = make_problem(causal, Task(Template(TEMPLATE), space), records(labels), records(labels))
    found = make_method(method, options).fit(problem)
    assert f"train_{space.primary}" in found.trace[0]


@pytest.mark.parametrize("kind", ["ratings", "sets", "multilabel", "ordinal"])
def test_auto_chooses_by_the_score_of_the_space(kind, request, causal):
    if kind not in ANSWERS:
        request.getfixturevalue(kind)
    space, labels = CASES[kind]()
    problem = make_problem(causal, Task(Template(TEMPLATE), space), records(labels), records(labels))
    outcome = make_method("auto", {"preset": "fast", "chat": "keep"}).fit(problem)
    assert outcome.verdict is not None
    assert readable(space.primary, 0.0)[0] in outcome.verdict.reason
    assert f"dev_{space.primary}" in outcome.trace[0]
    names = {"name", "loss", space.primary, "sd", "folds", "rows", "seconds"}
    assert all(set(row.document()) == names for row in outcome.tried)


@pytest.mark.parametrize("kind", ANSWERS)
def test_too_few_shots_name_answers_and_no_numbers_of_groups(kind):
    """A group of labels is a class; of others its number says nothing to a user."""
    space, labels = CASES[kind]()
    golds = [space.gold(record) for record in records(labels, space)]
    groups, titles = space.groups(golds), space.group_titles(golds)
    assert set(titles) == set(groups)
    with pytest.raises(DataError, match=r"has . examples, but") as caught:
        k_shot_split(records(labels, space), 5, 0, groups=groups, titles=titles)
    message = str(caught.value)
    assert message.startswith("class '") == (kind in ("labels", "open-set"))
    if len(set(groups)) == 1:
        assert message.startswith("the data has 8 examples")
    else:
        assert any(repr(space.label(gold))[:40] in message for gold in golds)


def test_options_that_rows_bring_are_minus_infinity_behind_their_own():
    """What an answer space of choices relies on: padding has no part in losses, mixtures and decisions."""
    space = Verbalizer.from_labels(["a", "b", "c"])
    golds, values = (
        golds_in(space, ("a", "b")),
        torch.tensor([[1.0, 2.0, -torch.inf], [0.5, 1.5, 2.5]]).requires_grad_(),
    )
    (gradient,) = torch.autograd.grad(golds.losses(Calibration((), 0.5).apply(values)).sum(), values)
    alone = golds.select([0]).losses(0.5 * values[:1, :2])
    assert torch.allclose(golds.losses(0.5 * values)[:1], alone)
    assert float(gradient[0, 2]) == 0
    assert bool(gradient.isfinite().all())
    assert space.probabilities(values.detach().double().numpy())[0, 2] == 0


def test_what_needs_labels_says_so_in_one_line(ratings, causal):
    space, labels = CASES["ratings"]()
    task = Task(Template(TEMPLATE), space)
    with pytest.raises(MethodError, match="classes with label words"):
        task.verbalizer  # noqa: B018
    problem = make_problem(causal, task, records(labels), records(labels))
    with pytest.raises(MethodError, match="examples in front of a text"):
        make_method("in-context", {"shots": 2}).fit(problem)
