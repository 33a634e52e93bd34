"""Answer spaces: the contract that every registered kind keeps, and the one of the page on extending."""

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.nn import functional

from conftest import TEXTS
from cuecraft.artifact import Calibration, HardPrompt, load_artifact
from cuecraft.artifact.predictor import Predictor
from cuecraft.backbone import ClassHead, FeatureScale
from cuecraft.core.errors import DataError, MethodError
from cuecraft.data import Record
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.objectives import OBJECTIVES, Golds, Objective, objective_of
from cuecraft.methods.objectives.labels import LabelObjective
from cuecraft.methods.prepare import make_problem
from cuecraft.methods.registry import make_method
from cuecraft.serving.artifacts import ServedPrompt, Shelf
from cuecraft.serving.engine import Engine
from cuecraft.task import AnswerSpace, Decision, Task, Template, Verbalizer
from cuecraft.task.answers import ANSWERS, answer_space, answers_document, softmax
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
    "ratings": lambda: (
        ANSWERS["ratings"](("bad", "dull", "great"), (1.0, 2.0, 4.0)),
        (4.0, 1.0, 2.0, 4.0, 1.0, 1.0, 4.0, 2.0),
    ),
}


@dataclass(frozen=True)
class Choices(AnswerSpace):
    """One of a text's own options, which stand in a field of it; a gold is the place of the right one."""

    kind: ClassVar[str] = "choices"
    primary: ClassVar[str] = "accuracy"
    calibrations: ClassVar[tuple[str, ...]] = ("none", "fitted")

    field: str

    @classmethod
    def read(cls, where, row, columns):
        return row[columns.label_in(row, cls.columns)], ()

    @classmethod
    def of(cls, records, asked, label_words):
        return cls("among")

    @property
    def options(self):
        return {}

    def options_of(self, example):
        return {word: (word,) for word in example.fields[self.field].split("|")}

    def gold(self, record):
        return record.fields[self.field].split("|").index(record.label)

    def label(self, gold):
        return gold

    def strata(self, golds):
        return [0] * len(golds)

    def probabilities(self, values):
        return softmax(values)

    def decide(self, probabilities, examples):
        found = []
        for row, example in zip(probabilities, examples, strict=True):
            shares = dict(zip(self.options_of(example), row.tolist(), strict=False))
            best = max(shares, key=shares.get)
            found.append(Decision(best, shares[best], shares))
        return found

    def measure(self, decisions, golds):
        pairs = zip(decisions, golds, strict=True)
        return {"accuracy": float(np.mean([list(own.options).index(own.value) == gold for own, gold in pairs]))}


class ChoiceObjective(LabelObjective):
    """Cross-entropy of the right option; a calibration is a scale alone."""

    def _classes(self, values, golds):
        return torch.tensor(golds, device=values.device)

    def tempered(self, values, golds):
        return replace(super().tempered(values, golds), bias=())

    def fitted(self, values, golds, weights=None):
        return self.tempered(values, golds)


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

    def fitted_head(self, features, golds, inverse_penalty=1.0, weights=None, scale=FeatureScale.PLAIN):
        truth = self._truth(features[:, :1].expand(-1, self.answers.size), golds)
        weight = torch.zeros(self.answers.size, features.shape[1] + 1, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=50)

        def closure():
            optimizer.zero_grad()
            loss = functional.binary_cross_entropy_with_logits(features @ weight[:, :-1].T + weight[:, -1], truth)
            (loss + 0.01 / inverse_penalty * weight.square().sum()).backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        return ClassHead(weight[:, :-1].detach(), weight[:, -1].detach(), scale)


CHOICES = (
    "good|bad",
    "great|dull|it was",
    "bad|good",
    "cold|warm|great",
    "good|great",
    "bad|it was",
    "great|bad",
    "warm|a joy",
)


@pytest.fixture
def choices(monkeypatch):
    monkeypatch.setitem(ANSWERS, "choices", Choices)
    monkeypatch.setitem(OBJECTIVES, "choices", ChoiceObjective)
    return [
        Record({"text": text, "among": among}, among.split("|")[row % 2])
        for row, ((text, _), among) in enumerate(zip(TEXTS, CHOICES, strict=True))
    ]


def test_texts_bring_options_of_their_own(choices, causal, tmp_path):
    """Read as a plain loop over options reads them; tuned, calibrated, halved, stored and served."""
    task = Task(Template("{text}{prompt: it was}{mask}"), Choices("among"))
    problem = make_problem(causal, task, choices, choices)
    context = problem.train.context
    prompt = HardPrompt(context.renderer.prompt_ids)
    with torch.no_grad():
        values = causal.class_logits(context, prompt)
        alone = [causal.class_logits(context.select([row]), prompt)[0] for row in range(len(context))]
    for row, (own, example, piece) in enumerate(zip(values, context.examples, context.pieces, strict=True)):
        options = list(task.answers.options_of(example))
        expected = []
        for ids in context.renderer.answer_ids(options):
            tokens = torch.tensor([[*piece.before, *prompt.token_ids, *piece.after, *ids]])
            with torch.no_grad():
                log_p = causal.model(tokens).logits[0].log_softmax(-1)
            first = tokens.shape[1] - len(ids)
            expected.append(float(sum(log_p[first + n - 1, token] for n, token in enumerate(ids))))
        expected = torch.tensor(expected).log_softmax(-1)
        assert torch.allclose(own[: len(options)].log_softmax(-1), expected, atol=1e-4)
        assert bool((own[len(options) :] == -torch.inf).all())
        assert torch.allclose(alone[row], own[: len(options)], atol=1e-5)
    with pytest.raises(
        MethodError, match="calibration=batch does not go with answers of kind choices; give none, fitted"
    ):
        make_method("zero-shot", {"calibration": "batch"}).fit(problem)
    for name, options in (
        ("deep-cue", {"epochs": 4, "learning_rate": 0.1, "batch_size": 3}),
        ("autoprompt", {"steps": 2, "candidates": 4, "scoring": "halving"}),
    ):
        method = make_method(name, options)
        outcome = method.fit(problem)
        artifact = make_artifact(problem, outcome, method)
        artifact.save(tmp_path / name)
        loaded = load_artifact(tmp_path / name)
        assert loaded.task == task
        assert loaded.calibration.bias == ()
        examples = task.examples(choices)
        decisions = Predictor.of(loaded, causal).decide(examples)
        assert [set(own.options) for own in decisions] == [set(among.split("|")) for among in CHOICES]
        shelf = Shelf(causal)
        shelf.put("own", [loaded])
        engine = Engine(shelf)
        answers = engine.ask([dict(record.fields) for record in choices], ["own"])
        engine.close()
        for answer, decision in zip(answers, decisions, strict=True):
            assert answer.decision.options == pytest.approx(dict(decision.options), abs=1e-5)
            assert sum(answer.probabilities) == pytest.approx(1)


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
    return 2 * torch.randn(*prompts, count, space.size, generator=torch.Generator().manual_seed(1))


def golds_in(space, labels):
    return Golds(objective_of(space), tuple(space.gold(Record({}, label)) for label in labels))


def records(labels):
    return [Record({"text": text}, label) for (text, _), label in zip(TEXTS, labels, strict=True)]


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
    decisions = space.decide(space.probabilities(values.numpy()), [None] * len(labels))
    measured = space.measure(decisions, golds.values)
    assert next(iter(measured)) == space.primary
    assert measured[space.primary] == pytest.approx(golds.scores(values).mean.primary)
    for decision in decisions:
        assert list(decision.options) == list(map(str, space.classes))
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


def test_it_is_what_its_document_says_and_labels_are_what_golds_say(case):
    space, labels = case
    again = answer_space(json.loads(json.dumps(answers_document(space))))
    assert again == space
    assert [type(own) for own in again.classes] == [type(own) for own in space.classes]
    golds = golds_in(space, labels)
    assert tuple(space.label(gold) for gold in golds.values) == labels
    assert len(set(golds.strata)) > 1
    assert all(isinstance(own, int) for own in golds.strata)
    with pytest.raises(DataError, match="'nonsense'"):
        space.gold(Record({}, "nonsense"))


def test_it_is_tuned_saved_loaded_and_served_as_it_predicts(case, causal, tmp_path):
    space, labels = case
    task, rows = Task(Template(TEMPLATE), space), records(labels)
    problem = make_problem(causal, task, rows, rows, seed=0)
    method = make_method("deep-cue", {"epochs": 6, "learning_rate": 0.1})
    outcome = method.fit(problem)
    assert outcome.is_tuned
    assert f"dev_{space.primary}" in outcome.trace[-1]
    artifact = make_artifact(problem, outcome, method)
    artifact.save(tmp_path / "own")
    loaded = load_artifact(tmp_path / "own")
    assert loaded.task == task
    examples = task.examples(rows)
    predictor = Predictor.of(loaded, causal)
    decisions = predictor.decide(examples)
    assert space.measure(decisions, [example.gold for example in examples])[space.primary] == pytest.approx(
        loaded.manifest.metrics[f"dev_{space.primary}"], abs=1e-5
    )
    with torch.no_grad():
        values = outcome.best.logits(causal, problem.train.context)
    expected = space.probabilities(values.double().numpy())
    assert np.allclose(predictor.probabilities(examples), expected, atol=1e-5)
    served = ServedPrompt.over(causal, "own", [loaded])
    assert np.allclose(answered(served, [text for text, _ in TEXTS]), expected, atol=1e-5)
    shelf = Shelf(causal)
    shelf.put("own", [loaded])
    engine = Engine(shelf)
    answers = engine.ask([{"text": text} for text, _ in TEXTS], ["own"])
    engine.close()
    for answer, decision in zip(answers, decisions, strict=True):
        assert answer.decision.options == pytest.approx(dict(decision.options), abs=1e-5)
        again = space.decide(np.array([answer.probabilities]), [None])
        assert again[0].value == answer.decision.value
    assert shelf.get("own").describe()["classes"] == list(space.classes)


@pytest.mark.parametrize("kind", ["ratings", "sets"])
@pytest.mark.parametrize("method", ["autoprompt", "linear-probe", "zero-shot"])
def test_methods_of_other_families_take_answers_that_they_do_not_know(method, kind, request, causal):
    request.getfixturevalue(kind)
    space, labels = CASES[kind]()
    options = {"autoprompt": {"steps": 2, "candidates": 4}}.get(method, {})
    problem = make_problem(causal, Task(Template(TEMPLATE), space), records(labels), records(labels))
    found = make_method(method, options).fit(problem)
    assert f"train_{space.primary}" in found.trace[0]


@pytest.mark.parametrize("kind", ["ratings", "sets"])
def test_auto_chooses_by_the_score_of_the_space(kind, request, causal):
    request.getfixturevalue(kind)
    space, labels = CASES[kind]()
    problem = make_problem(causal, Task(Template(TEMPLATE), space), records(labels), records(labels))
    outcome = make_method("auto", {"preset": "fast", "chat": "keep"}).fit(problem)
    assert outcome.verdict is not None
    assert space.primary in outcome.verdict.reason
    assert f"dev_{space.primary}" in outcome.trace[0]


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
