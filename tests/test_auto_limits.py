"""`auto` when its time ends: what it begins, what ships, what it leaves on disk."""

from dataclasses import replace

import pytest

from conftest import TEXTS, tiny_problem
from cuecraft.backbone import CausalBackbone
from cuecraft.checkpoints import Checkpoints, Keeping
from cuecraft.evidence import Evidence
from cuecraft.method import score
from cuecraft.search.label_words import LabelWordSearch
from cuecraft.tune.auto import choice
from cuecraft.tune.auto import ladder as ladder_module
from cuecraft.tune.auto.plans import Preset
from cuecraft.tune.auto.untrained import Untrained
from cuecraft.tune.deep_cue import OffsetTraining
from test_auto import TINY, auto


@pytest.fixture
def tiny_plans(monkeypatch):
    monkeypatch.setattr(choice, "PLANS", dict.fromkeys(Preset, TINY))


class Clock:
    """Seconds that pass with every look."""

    def __init__(self, looks):
        self.looks = looks

    def __call__(self, reserve=0.0):
        self.looks -= 1
        return self.looks < 0


@pytest.mark.parametrize("looks", [0, 1, 2, 3, 5, 8, 13, 21, 34])
def test_it_stops_cleanly_whenever_the_time_ends(looks, causal, tiny_plans):
    problem = replace(tiny_problem(causal), out_of_time=Clock(looks))
    outcome = auto().fit(problem)
    assert outcome.verdict.reason
    assert outcome.is_tuned == (outcome.verdict.ships == "tuned")
    if outcome.is_tuned:
        assert outcome.verdict.evidence.is_better
    score(causal, outcome.best, problem.train)


@pytest.mark.parametrize("done", [0, 1])
def test_words_that_are_clearly_better_are_there_where_no_training_saw_all_folds(done, causal, tiny_plans, monkeypatch):
    plain, begun = OffsetTraining.refine_side_by_side, []

    def refine(self, parts):
        begun.append(True)
        if len(begun) <= done:
            plain(self, parts)

    monkeypatch.setattr(ladder_module, "_ENOUGH", 2)  # so that one fold could do
    monkeypatch.setattr(Untrained, "_is_clear", lambda self, found, own, among: found is not own)
    monkeypatch.setattr(OffsetTraining, "refine_side_by_side", refine)
    outcome = auto().fit(tiny_problem(causal))
    evidence = outcome.verdict.evidence
    assert len(begun) > done
    assert evidence.rows == len(TEXTS)
    assert outcome.verdict.ships == ("tuned" if evidence.is_better else "untuned")
    words = [row for row in outcome.tried if row.name.startswith("'")]
    assert [(row.folds, row.loss) for row in words] == [(2, evidence.loss)]
    assert sum(row.name.startswith("deep-cue") for row in outcome.tried) == done


class Watch:
    """A clock that goes on by what is done: a second for every example that is read or trained on."""

    def __init__(self, limit, monkeypatch):
        self.now, self.limit, self.late = 0.0, limit, 0.0
        plain = CausalBackbone._score

        def scored(backbone, context, *rest, **named):
            self.now += len(context)
            return plain(backbone, context, *rest, **named)

        monkeypatch.setattr(CausalBackbone, "_score", scored)

    def __call__(self, reserve=0.0):
        return self.now + reserve >= self.limit


@pytest.mark.parametrize("limit", [40, 90, 150, 300, 500, 800])
def test_nothing_long_is_begun_after_the_limit(limit, causal, tiny_plans, monkeypatch):
    """An epoch or a pass over all eight examples takes 8 s at most; guard and metrics look at each once more."""
    watch = Watch(limit, monkeypatch)
    monkeypatch.setattr(ladder_module.time, "perf_counter", lambda: watch.now)
    auto().fit(replace(tiny_problem(causal), out_of_time=watch))
    assert watch.now <= limit + 40


@pytest.mark.parametrize(
    "looks", [21, pytest.param(34, marks=pytest.mark.slow), pytest.param(55, marks=pytest.mark.slow)]
)
def test_a_run_that_was_cut_does_not_lend_its_trainings_to_another(looks, causal, tiny_plans, tmp_path):
    """What a cut run left on disk is used again only for the same training of the same rows."""
    problem = replace(tiny_problem(causal), checkpoints=Checkpoints(Keeping(tmp_path), "key"))
    auto().fit(replace(problem, out_of_time=Clock(looks)))
    again = auto().fit(replace(problem, checkpoints=Checkpoints(Keeping(tmp_path), "key")))
    alone = auto().fit(tiny_problem(causal))
    assert again.verdict == alone.verdict
    assert again.trace == alone.trace


@pytest.mark.parametrize("finds", [True, False])
def test_searched_label_words_are_those_of_all_examples_found_before_the_time_ends(finds, causal, monkeypatch):
    """On folds each has its own; what ships is found in all examples, or nothing of the kind ships."""
    plain, held = LabelWordSearch.search, []
    other = {"negative": ("cold",), "positive": ("warm",)}

    def search(self, own, *ids):
        found = plain(self, own, *ids)
        is_whole = len(own.train) == len(TEXTS)
        return replace(found, words=other if not held and (finds or not is_whole) else found.words)

    def ended(self, parts):
        held.append(True)

    monkeypatch.setattr(choice, "PLANS", dict.fromkeys(Preset, replace(TINY, searches_words=True)))
    monkeypatch.setattr(LabelWordSearch, "search", search)
    monkeypatch.setattr(Untrained, "_is_clear", lambda self, found, own, among: among == 1)
    monkeypatch.setattr(Evidence, "is_better", True)
    monkeypatch.setattr(OffsetTraining, "refine_side_by_side", ended)
    problem = replace(tiny_problem(causal), out_of_time=lambda reserve=0.0: bool(held))
    outcome = auto().fit(problem)
    assert held
    assert outcome.is_tuned == finds
    if finds:
        assert outcome.best.reader.task.verbalizer.words == (("cold",), ("warm",))
