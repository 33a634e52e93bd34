"""`auto` when its time ends: what it begins, what ships, what it leaves on disk."""

import math
from dataclasses import replace

import pytest

from auto_parts import (
    KINDS,
    ONE,
    TINY,
    assert_same_prompt,
    auto,
    by_hand,
    deep,
    planned,
    trainings_of,
)
from conftest import TEXTS, tiny_problem
from cuecraft.backbone import CausalBackbone
from cuecraft.core.checkpoints import Checkpoints, Keeping
from cuecraft.core.deadline import OutOfTimeError
from cuecraft.core.errors import StoppedError
from cuecraft.methods.auto import crossfit
from cuecraft.methods.auto.choice import _Choice
from cuecraft.methods.auto.contenders import FirstOrderCue
from cuecraft.methods.auto.crossfit import SHARES, CrossFit, Latest
from cuecraft.methods.auto.untrained import Untrained
from cuecraft.methods.evidence import Evidence
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.prepare import with_checkpoints
from cuecraft.methods.problem import score
from cuecraft.methods.search import AutoPrompt
from cuecraft.methods.search.label_words import LabelWordSearch
from cuecraft.methods.train.deep import OffsetTraining

EVERYTHING = replace(TINY, alone=True, longer=2)


@pytest.fixture
def everything(monkeypatch):
    """Every kind of contender, and a search that is soon over."""
    planned(monkeypatch, EVERYTHING)
    steps = AutoPrompt(steps=2, candidates=3)
    monkeypatch.setattr("cuecraft.methods.auto.plans.AutoPrompt", lambda: steps)


class Clock:
    """Time that passes with every look, between steps and within passes; what is over stays over."""

    def __init__(self, looks):
        self.looks = looks

    def __call__(self, reserve=0.0):
        self.looks -= 1
        return self.looks < 0

    def on(self, problem):
        return replace(problem, out_of_time=self, is_over=self)


def assert_sound(outcome, problem):
    """Whatever was done, what ships is there, says why, and answers."""
    verdict = outcome.verdict
    assert verdict.reason
    assert outcome.is_tuned == (verdict.ships == "tuned")
    assert outcome.trace[-1] == {"phase": "verdict", **verdict.document()}
    if outcome.is_tuned:
        evidence = verdict.evidence
        assert evidence.is_better
        assert (outcome.held_out.loss, outcome.held_out.primary) == (evidence.loss, evidence.accuracy)
        assert any(row.loss == pytest.approx(evidence.loss) for row in outcome.tried)
    assert all(math.isfinite(row.loss) and row.rows > 0 for row in outcome.tried)
    found = score(problem.backbone, outcome.best, problem.pool)
    assert math.isfinite(found.loss)
    if not outcome.best.is_cut:
        make_artifact(problem, outcome, auto())


def looks_of(problem):
    """Return how many looks at the clock all of it takes."""
    clock = Clock(10**9)
    auto().fit(clock.on(problem))
    return 10**9 - clock.looks


def test_it_stops_cleanly_whenever_the_time_ends(causal, everything):
    problem = tiny_problem(causal)
    looks = looks_of(problem)
    for fifths in range(6):
        assert_sound(auto().fit(Clock(looks * fifths // 5).on(problem)), problem)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_it_stops_cleanly_at_every_look_at_the_clock(kind, everything, request):
    problem = tiny_problem(request.getfixturevalue(kind))
    for looks in range(looks_of(problem)):
        assert_sound(auto().fit(Clock(looks).on(problem)), problem)


def test_before_anything_is_measured_the_untuned_prompt_ships(causal, everything):
    outcome = auto().fit(Clock(0).on(tiny_problem(causal)))
    assert outcome.best.is_cut
    assert "before the untuned prompt was measured" in outcome.verdict.reason
    assert outcome.tried == ()


class Watch:
    """A clock that goes on by what is done: a second for every example that is read or trained on."""

    def __init__(self, limit, monkeypatch):
        self.now, self.limit = 0.0, limit
        plain = CausalBackbone.read

        def scored(backbone, context, *rest, **named):
            self.now += len(context)
            return plain(backbone, context, *rest, **named)

        monkeypatch.setattr(CausalBackbone, "read", scored)
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def __call__(self, reserve=0.0):
        return self.now + reserve >= self.limit


@pytest.mark.parametrize("limit", [20, 40, 90, 150, 300, 500, 800])
def test_nothing_long_is_begun_after_the_limit(limit, causal, everything, monkeypatch):
    """An epoch or a pass over all eight examples takes 8 s at most, four starting words that are read together 32 s."""
    problem = tiny_problem(causal)
    watch = Watch(limit, monkeypatch)
    auto().fit(replace(problem, out_of_time=watch))
    assert watch.now <= limit + 40


@pytest.mark.parametrize("limit", [20, 40, 90, 150, 300, 500, 800])
def test_passes_end_with_the_limit(limit, causal, everything, monkeypatch):
    problem = tiny_problem(causal)
    watch = Watch(limit, monkeypatch)
    auto().fit(replace(problem, out_of_time=watch, is_over=watch))
    assert watch.now <= limit + 16


def seconds(trainings, configuration, passes):
    """Return what trainings of so many epochs take in all, answers included, for a pace of a second a token."""
    length, epochs = len(configuration.first.token_ids), configuration.training.epochs
    return crossfit._SURPRISES * length * (crossfit.PASSES * passes * epochs + len(SHARES))


@pytest.mark.parametrize(("folds", "most", "passes"), [(2, 8, 1), (4, 8, 3), (2, 1, 2), (4, 3, 4)])
def test_epochs_are_as_many_as_there_is_time_for(folds, most, passes, causal):
    """Trainings without each of F folds take F - 1 passes an epoch, and one more where another on all follows."""
    problem = tiny_problem(causal)
    for epochs in range(1, 7):
        takes = seconds(None, deep(problem, epochs=epochs), passes)
        for left, expected in ((takes - 0.1, epochs - 1), (takes + 0.1, epochs)):
            limited = replace(problem, out_of_time=lambda reserve=0.0, left=left: reserve > left)
            configuration = trainings_of(limited, folds, most, pace=1.0)._in_time(deep(problem, epochs=6))
            assert (configuration.training.epochs if configuration else 0) == expected


@pytest.mark.parametrize("training", KINDS)
def test_a_shortened_training_is_one_of_so_many_epochs(training, causal, monkeypatch):
    """Its learning rate falls to zero over them."""
    monkeypatch.setattr(crossfit, "SHARES", (1.0,))
    problem = tiny_problem(causal)
    configuration = KINDS[training](problem, epochs=5)
    left = seconds(None, configuration.shortened(3), 1) + 0.1
    limited = replace(problem, out_of_time=lambda reserve=0.0: reserve > left)
    trainings = trainings_of(limited, pace=1.0)
    found = trainings.cross_fit(configuration)
    assert " x 3, own" in found.name
    for candidate, fold in zip(found.candidates, trainings._folds, strict=True):
        expected, _ = by_hand(KINDS[training](problem, epochs=3), causal, problem.pool.select(fold.train))
        assert_same_prompt(candidate.prompt, expected)


def test_where_there_is_no_time_for_an_epoch_nothing_is_begun(causal, monkeypatch):
    problem, begun = tiny_problem(causal), []
    monkeypatch.setattr(crossfit.Configuration, "trained", lambda self, parts: begun.append(parts))
    left = seconds(None, deep(problem, epochs=1), 1) - 0.1
    limited = replace(problem, out_of_time=lambda reserve=0.0: reserve > left)
    assert trainings_of(limited, pace=1.0).cross_fit(deep(problem)) is None
    assert not begun


def test_what_does_not_fit_is_passed_over_for_what_does(causal, monkeypatch):
    """The longer prompt takes more time than there is."""
    planned(monkeypatch, replace(ONE, alone=True, longer=40))
    problem = tiny_problem(causal)
    monkeypatch.setattr(Untrained, "pace", property(lambda self: 1.0, lambda self, value: None), raising=False)
    left = seconds(None, deep(problem, epochs=4), 1) + 0.1
    for limit, count in ((left, 2), (1e9, 3)):
        limited = replace(problem, out_of_time=lambda reserve=0.0, limit=limit: reserve > limit)
        assert sum(row.name.startswith("deep-cue") for row in auto().fit(limited).tried) == count


def watched(monkeypatch, rows):
    """Return the epochs as they are seen of trainings on so many examples, 0 for what is there before the first."""
    seen, plain = [], Latest.see

    def see(self, candidate, train, event, dev=None):
        if len(self.problem.train) == rows:
            seen.append(event.step)
        return plain(self, candidate, train, event, dev)

    monkeypatch.setattr(Latest, "see", see)
    return seen


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_training_that_is_cut_competes_with_its_last_whole_epoch(epochs, causal, monkeypatch):
    monkeypatch.setattr(crossfit, "SHARES", (1.0,))
    seen = watched(monkeypatch, 4)
    problem = replace(tiny_problem(causal), out_of_time=lambda reserve=0.0: epochs in seen)
    trainings, configuration = trainings_of(problem), deep(problem)
    found = trainings.cross_fit(configuration)
    assert seen == [step for step in range(epochs + 1) for _ in range(2)]
    for candidate, fold in zip(found.candidates, trainings._folds, strict=True):
        expected, _ = by_hand(configuration, causal, problem.pool.select(fold.train), epochs=epochs)
        assert_same_prompt(candidate.prompt, expected)


def test_a_training_that_is_cut_leaves_time_for_its_answers(causal, monkeypatch):
    """Epochs take 28 s where 5 s are expected, and the answers of three shares to eight texts 24 s."""
    problem = tiny_problem(causal)
    watch, plain = Watch(126, monkeypatch), Latest.see

    def see(self, candidate, train, event, dev=None):
        watch.now += 10.0 if event.step else 0.0
        return plain(self, candidate, train, event, dev)

    monkeypatch.setattr(crossfit, "PASSES", 0.5)
    monkeypatch.setattr(Latest, "see", see)
    limited = replace(problem, out_of_time=watch, is_over=watch)
    with limited.in_time():
        found = trainings_of(limited, pace=4.0).cross_fit(deep(problem))
    assert found.configuration.training.epochs == 4
    assert max(event["step"] for event in found.trainings._trace) == 3
    assert 100 < watch.now < 126


@pytest.mark.parametrize("shares_passes", [True, False])
def test_a_training_that_is_cut_in_its_first_epoch_does_not_compete(shares_passes, causal, monkeypatch):
    """What was not trained has no place under the name of a training."""
    monkeypatch.setattr(CausalBackbone, "share_passes", lambda self, parts: shares_passes)
    seen = watched(monkeypatch, 4)
    problem = replace(tiny_problem(causal), out_of_time=lambda reserve=0.0: bool(seen))
    assert trainings_of(problem).cross_fit(deep(problem)) is None
    assert seen == [0, 0]


@pytest.mark.parametrize("cut", [0, 2, 4])
def test_a_training_on_all_examples_that_is_cut_gives_way_to_one_that_was_checked(cut, causal, monkeypatch):
    monkeypatch.setattr(crossfit, "SHARES", (1.0,))
    seen = watched(monkeypatch, 8)
    problem = replace(tiny_problem(causal), out_of_time=lambda reserve=0.0: cut in seen)
    found = trainings_of(problem, most=1).cross_fit(deep(problem, epochs=4))
    made = found.made()
    assert seen == list(range(cut + 1))
    if cut < 4:
        assert made is None
        shipped = found.shipped(problem.in_time)
        assert shipped.prompt is found.candidates[0].prompt
        assert shipped.calibration == found.candidates[0].calibration.then(found.held_out.calibration())
    else:
        assert_same_prompt(made.prompt, by_hand(found.configuration, causal, problem.pool)[0])


@pytest.mark.parametrize("contender", [CrossFit, FirstOrderCue])
def test_where_the_time_ends_after_what_ships_is_made_it_ships(contender, causal, monkeypatch):
    """Only the words that it began with were not calibrated any more."""
    planned(monkeypatch, ONE if contender is CrossFit else replace(ONE, deep=(), first_order=1, heads=()))
    monkeypatch.setattr(Evidence, "is_better", True)
    problem = tiny_problem(causal)
    whole = auto().fit(problem)

    def ended(self):
        raise OutOfTimeError

    monkeypatch.setattr(contender, "words", ended)
    outcome = auto().fit(problem)
    assert outcome.verdict == whole.verdict
    assert outcome.words is None
    assert whole.words is not None
    assert outcome.best.calibrations == whole.best.calibrations
    assert len(outcome.best.prompts) == len(whole.best.prompts)
    for one, other in zip(outcome.best.prompts, whole.best.prompts, strict=True):
        assert_same_prompt(one, other, 0.0)


@pytest.mark.parametrize("contender", [CrossFit, FirstOrderCue])
def test_where_the_time_ends_while_it_is_made_what_was_checked_ships(contender, causal, monkeypatch):
    """The prompt that did not see the first fold; or the fit to all examples, which is there with its check."""
    planned(monkeypatch, ONE if contender is CrossFit else replace(ONE, deep=(), first_order=1, heads=()))
    monkeypatch.setattr(Evidence, "is_better", True)

    def ended(self):
        raise OutOfTimeError

    contenders, plain = [], _Choice._add
    monkeypatch.setattr(_Choice, "_add", lambda self, one: contenders.append(one) or plain(self, one))
    monkeypatch.setattr(contender, "made", ended)
    outcome = auto().fit(tiny_problem(causal))
    (found,) = contenders
    assert outcome.verdict.ships == "tuned"
    assert outcome.best.prompt is (found.candidates[0] if contender is CrossFit else found.fitted).prompt
    assert outcome.best.others == ()


@pytest.mark.parametrize("kind", ["causal", pytest.param("sequence", marks=pytest.mark.slow)])
def test_stopped_at_any_moment_and_resumed_it_gives_the_same_bits(kind, everything, request, tmp_path):
    problem = tiny_problem(request.getfixturevalue(kind))
    method = auto()
    whole = make_artifact(problem, method.fit(problem), method)
    bits = whole.save(tmp_path / "whole")
    looks = Clock(10**9)
    method.fit(with_checkpoints(problem, Keeping(tmp_path / "all", seconds=0.0, stop=looks), "key"))
    total = 10**9 - looks.looks
    for number, share in enumerate((0.5, 0.95)):
        folder = tmp_path / str(number)
        stop = Clock(round(share * total))
        with pytest.raises(StoppedError):
            method.fit(with_checkpoints(problem, Keeping(folder, seconds=0.0, stop=stop), "key"))
        heard = []
        again = replace(problem, report=heard.append)
        outcome = method.fit(with_checkpoints(again, Keeping(folder, seconds=0.0), "key"))
        resumed = make_artifact(problem, outcome, method)
        assert resumed.save(tmp_path / f"resumed-{number}") == bits
        assert list(resumed.trace) == list(whole.trace)
        if share > 0.9:
            assert len(heard) < len(whole.trace) / 2  # it went on, and did not begin anew


def test_a_run_that_was_cut_does_not_lend_its_trainings_to_another(causal, everything, tmp_path):
    """What a cut run left on disk is used again only for the same training of the same rows."""
    problem = tiny_problem(causal)
    looks, alone = looks_of(problem), auto().fit(problem)
    for share in (0.5, 0.8):
        folder = tmp_path / str(share)

        def kept(folder=folder):
            return replace(problem, checkpoints=Checkpoints(Keeping(folder, seconds=0.0), "key"))

        auto().fit(Clock(round(share * looks)).on(kept()))
        assert share < 0.5 or any(folder.rglob("*.safetensors"))
        again = auto().fit(kept())
        assert again.verdict == alone.verdict
        assert again.trace == alone.trace
        for one, other in zip(again.best.prompts, alone.best.prompts, strict=True):
            assert_same_prompt(one, other, 0.0)


def test_a_run_with_fewer_epochs_does_not_lend_its_trainings_to_one_with_more(causal, tmp_path):
    problem = tiny_problem(causal)
    kept = Checkpoints(Keeping(tmp_path, seconds=0.0), "key")
    left = seconds(None, deep(problem, epochs=2), 1) + 0.1
    limited = replace(problem, out_of_time=lambda reserve=0.0: reserve > left, checkpoints=kept)
    short = trainings_of(limited, pace=1.0).cross_fit(deep(problem))
    assert short.configuration.training.epochs == 2
    again = trainings_of(replace(problem, checkpoints=Checkpoints(Keeping(tmp_path), "key"))).cross_fit(deep(problem))
    alone = trainings_of(problem).cross_fit(deep(problem))
    for one, other in zip(again.candidates, alone.candidates, strict=True):
        assert_same_prompt(one.prompt, other.prompt, 0.0)


def test_trainings_on_folds_do_not_lend_their_states_to_one_on_all_examples(causal, tmp_path):
    problem = tiny_problem(causal)
    kept = replace(problem, checkpoints=Checkpoints(Keeping(tmp_path, seconds=0.0), "key"))
    for _ in range(2):  # trained, then as it is on disk
        found = trainings_of(kept, most=1).cross_fit(deep(problem))
        expected, _ = by_hand(found.configuration, causal, problem.pool, found.share)
        assert_same_prompt(found.made().prompt, expected)


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

    planned(monkeypatch, replace(ONE, searches_words=True))
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
