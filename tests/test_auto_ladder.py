"""`auto`: trainings on folds, and successive halving over them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import tiny_problem
from cuecraft.checkpoints import Checkpoints, Keeping
from cuecraft.errors import MethodError
from cuecraft.method import CalibrationKind, Labelled, Selection
from cuecraft.search.folds import Fold, stratified_folds
from cuecraft.seeding import derived_seed
from cuecraft.tune import held_out as folds_module
from cuecraft.tune.auto import ladder as ladder_module
from cuecraft.tune.held_out import HeldOut, LastEpoch, fold_problem, log_probabilities
from cuecraft.tune.auto.ladder import Configuration, Ladder, Run
from cuecraft.tune.auto.plans import PLANS, Preset, configurations
from cuecraft.tune.auto.starts import GivenWords, SearchedPrompt, Words
from cuecraft.tune.deep_cue import OffsetTraining
from cuecraft.tune.prompt_tuning import EmbeddingTraining
from cuecraft.tune.soup import part_of_the_way
from cuecraft.untuned import starting_point


def ladder_of(backbone, folds=2, **options):
    problem = tiny_problem(backbone, **options)
    pool = problem.pool
    return Ladder(problem, pool, stratified_folds(pool.labels, folds, 0)), problem


def deep(problem, rate=0.1, epochs=4):
    training = OffsetTraining(learning_rate=rate, epochs=epochs, schedule="linear")
    return Configuration(Words("own", GivenWords(), problem.initial_ids, differs=False), training)


def test_held_out_labels_do_not_touch_the_training(causal):
    """Another label of a held-out example changes what is measured, and not what is learnt."""
    ladder, problem = ladder_of(causal)
    pool, folds = ladder._pool, ladder._folds
    flipped = pool.labels.clone()
    flipped[folds[0].held_out] = 1 - flipped[folds[0].held_out]
    other = Ladder(problem, Labelled(pool.context, flipped), folds)
    first, second = ladder.climb([deep(problem)], (1,))[0], other.climb([deep(problem)], (1,))[0]
    for one, two in zip(first.answers[0], second.answers[0], strict=True):
        assert torch.equal(one, two)
    assert [event for event in ladder.trace if event["fold"] == 0] == [e for e in other.trace if e["fold"] == 0]
    assert ladder._at(first, 0, 1).score != other._at(second, 0, 1).score


def test_answers_to_held_out_examples_are_those_of_a_training_without_them(causal):
    ladder, problem = ladder_of(causal)
    run = ladder.climb([deep(problem)], (1,))[0]
    for number, (*_, found) in enumerate(run.answers):
        own = fold_problem(problem, ladder._pool, ladder._folds, number)
        alone = replace(own, dev=None)
        start = starting_point(alone, problem.initial_ids, CalibrationKind.FITTED)
        selection = LastEpoch(alone)
        OffsetTraining(learning_rate=0.1, epochs=4, schedule="linear").refine(alone, start, selection)
        with torch.no_grad():
            expected = selection.best.logits(causal, own.dev.context).double().log_softmax(-1)
        assert torch.equal(found, expected)


def test_trainings_side_by_side_are_those_of_each_alone(causal):
    ladder, problem = ladder_of(causal, folds=4)
    run = ladder.climb([deep(problem)], (1,))[0]
    assert len(run.candidates) == 4
    for number, found in enumerate(run.candidates):
        own = replace(fold_problem(problem, ladder._pool, ladder._folds, number), dev=None)
        start = starting_point(own, problem.initial_ids, CalibrationKind.FITTED)
        alone = LastEpoch(own)
        OffsetTraining(learning_rate=0.1, epochs=4, schedule="linear").refine(own, start, alone)
        assert torch.allclose(found.prompt.offsets, alone.best.prompt.offsets, atol=1e-6)
        assert alone.best.prompt.offsets.abs().max() > 1e-3


def test_the_last_epoch_is_kept_and_not_the_best(causal):
    problem = replace(tiny_problem(causal), dev=None)
    start = starting_point(problem, problem.initial_ids, CalibrationKind.FITTED)
    best, last = Selection(problem), LastEpoch(problem)
    wild = OffsetTraining(learning_rate=30.0, epochs=5)
    wild.refine(problem, start, best)
    wild.refine(problem, start, last)
    assert [e["train_loss"] for e in last.trace] == [e["train_loss"] for e in best.trace]
    assert last.best_score.loss == last.trace[-1]["train_loss"]
    assert last.best_score.loss > best.best_score.loss


def test_a_linear_schedule_ends_at_zero(causal):
    """One epoch of one batch at the full rate, then one at half of it: computed by hand with AdamW."""
    problem = replace(tiny_problem(causal), dev=None)
    start = starting_point(problem, problem.initial_ids, CalibrationKind.FITTED)
    options = OffsetTraining(learning_rate=0.1, epochs=2, schedule="linear", batch_size=8, gradient_clip=1e9)
    found = LastEpoch(problem)
    options.refine(problem, start, found)
    trainable = options.trainable(problem, start)
    groups = trainable.groups()
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    rate = groups[0]["lr"]
    for share in (1.0, 0.5):
        optimizer.param_groups[0]["lr"] = rate * share
        optimizer.zero_grad()
        logits = trainable.candidate().logits(causal, problem.train.context)
        torch.nn.functional.cross_entropy(logits, problem.train.labels).backward()
        optimizer.step()
    expected = trainable.snapshot().prompt.offsets
    assert torch.allclose(found.best.prompt.offsets, expected, atol=1e-6)


def answers_of(losses):
    """Log-probabilities of two classes whose log-loss on class 0 is given."""
    return torch.tensor([[-loss, float(np.log1p(-np.exp(-loss)))] for loss in losses], dtype=torch.float64)


class Plain(Ladder):
    """Without the calibration afterwards, so that the losses are the given ones."""

    def answers(self, run, folds=None):
        return self._at(run, 0, folds)


def test_the_most_promising_run_within_one_standard_error_is_taken():
    folds = [Fold([], [0, 1]), Fold([], [2, 3])]
    ladder = Plain(SimpleNamespace(seed=0), Labelled(None, torch.zeros(4, dtype=torch.long)), folds)

    def run(*losses):
        return Run(None, [[answers_of(losses[:2])], [answers_of(losses[2:])]])

    near, far = run(0.50, 0.30, 0.50, 0.30), run(0.70, 0.60, 0.72, 0.60)
    best = run(0.40, 0.38, 0.42, 0.36)  # 0.01 less than `near` on average, by differences of +-0.1
    assert ladder._ranked([near, best])[0] is near
    assert ladder._ranked([far, best])[0] is best
    assert ladder._ranked([best, near])[0] is best
    ladder._rounds = 2
    one_fold = Run(None, [[answers_of((0.1, 0.1))]])
    assert ladder._ranked([one_fold, best])[0] is best


def test_nothing_is_dropped_on_a_handful_of_examples(causal):
    ladder, problem = ladder_of(causal)
    runs = ladder.climb([deep(problem, rate) for rate in (1e-6, 0.1, 0.03)], (1,))
    assert [len(run.answers) for run in runs] == [2, 2, 2]


def test_where_the_time_ends_the_most_promising_one_was_tried_on_all_folds(causal):
    ladder, problem = ladder_of(causal, folds=4)
    runs = ladder.climb([deep(problem)], (1,))
    steps = len(runs[0].answers)
    assert steps == 4
    looks = []
    ladder, problem = ladder_of(causal, folds=4)
    counting = replace(problem, out_of_time=lambda reserve=0.0: looks.append(1) or len(looks) > 60)
    ladder = Ladder(counting, ladder._pool, ladder._folds)
    runs = ladder.climb([deep(problem), deep(problem, 0.03, 64)], (1,))
    assert len(looks) > 60
    assert [len(run.answers) for run in runs] == [4]
    assert runs[0].configuration.training.learning_rate == 0.1


@pytest.mark.parametrize(("left", "members"), [(19, 0), (20, 2), (21, 3), (27, 3), (28, 4), (1000, 4)])
def test_as_many_trainings_on_all_examples_as_there_is_time_for(left, members, causal):
    """One takes 10 s on a fold, beside others 3.4 s; on twice as many examples twice as long, and 1.3 for safety."""
    ladder, problem = ladder_of(causal)
    ladder = Ladder(replace(problem, out_of_time=lambda reserve=0.0: reserve > 1.3 * left), ladder._pool, ladder._folds)
    assert ladder.members_in_time(Run(deep(problem), alone=10.0, each=3.4), 4) == members


def test_what_was_seen_on_few_examples_does_not_displace_what_was_seen_on_many():
    folds = [Fold([], [2 * n, 2 * n + 1]) for n in range(20)]
    ladder = Plain(SimpleNamespace(seed=0), Labelled(None, torch.zeros(40, dtype=torch.long)), folds)
    tried = Run(None, [[answers_of((0.5, 0.51))]] * 20)
    lucky, good = (Run(None, [[answers_of((0.1, 0.11))]] * count) for count in (15, 16))
    assert ladder._ranked([tried, lucky])[0] is tried
    assert ladder._ranked([tried, good])[0] is good  # 32 examples
    assert ladder._ranked([Run(None, [[answers_of((0.5, 0.51))]] * 3), lucky])[0] is lucky


def test_a_configuration_that_the_backbone_refuses_is_passed_over(causal, monkeypatch):
    ladder, problem = ladder_of(causal)
    refine = OffsetTraining.refine_side_by_side

    asked = []

    def refusing(self, *rest):
        asked.append(self.learning_rate)
        if self.learning_rate == 0.5:
            raise MethodError("not here")
        refine(self, *rest)

    monkeypatch.setattr(OffsetTraining, "refine_side_by_side", refusing)
    runs = ladder.climb([deep(problem, 0.5), deep(problem), deep(problem, 0.03)], (3,))
    assert sorted(run.configuration.training.learning_rate for run in runs) == [0.03, 0.1]
    assert all(len(run.answers) == 2 for run in runs)
    asked.clear()
    runs = ladder.climb([deep(problem), deep(problem, 0.5)], (2,))
    assert [run.configuration.training.learning_rate for run in runs] == [0.1]
    assert asked[-1] == 0.5
    assert "not here" in ladder.refusal


def test_a_plan_tries_the_best_start_with_every_schedule_and_others_with_the_first():
    starts = [Words(name, GivenWords(), ids, name != "a") for name, ids in (("a", (1, 2)), ("b", (3,)), ("c", (4,)))]
    found = configurations(PLANS[Preset.BEST], starts, (8, 9))
    names = [(one.training.name, one.training.learning_rate, one.training.epochs, one.start.name) for one in found]
    assert names[:2] == [("deep-cue", 0.03, 16, "a"), ("deep-cue", 0.1, 8, "a")]
    assert ("deep-cue", 0.03, 16, "b") in names
    assert ("prompt-tuning", 0.005, 16, "a") in names
    longer = next(one.start for one in found if "longer" in one.start.name)
    assert longer.token_ids == (8, 9, 8, 9, 8, 9, 1, 2)
    assert isinstance(found[-1].start, SearchedPrompt)
    assert all(one.training.schedule == "linear" for one in found)


def test_words_that_differ_are_tried_without_training_too():
    other = Words("b", GivenWords(), (3,), differs=True)
    assert configurations(PLANS[Preset.FAST], [other], (8,))[-1] == Configuration(other, None)


@pytest.mark.parametrize("left", [3.5, 100.0])
def test_what_is_refused_on_a_later_fold_is_dropped_with_its_answers(left, causal, monkeypatch):
    """Its answers to one fold must not be taken for those to another."""
    ladder, problem = ladder_of(causal, folds=4)
    refine = OffsetTraining.refine_side_by_side
    calls = []

    def refusing(self, parts):
        if self.learning_rate == 0.5:
            calls.append(len(parts))
            if len(calls) == 2:
                raise MethodError("not here")
        refine(self, parts)

    monkeypatch.setattr(OffsetTraining, "refine_side_by_side", refusing)
    monkeypatch.setattr(Ladder, "_seconds", lambda self, run, trainings: trainings)
    ladder = Ladder(replace(problem, out_of_time=lambda reserve=0.0: reserve > left), ladder._pool, ladder._folds)
    runs = ladder.climb([deep(problem, 0.5), deep(problem)], (2,))
    assert calls == ([1, 1] if left < 4 else [1, 3])
    assert [run.configuration.training.learning_rate for run in runs] == [0.1]


@pytest.mark.parametrize("fault", ["refused", "not finite"])
def test_averages_that_come_to_nothing_leave_the_answers_as_they_were(fault, causal, monkeypatch):
    ladder, problem = ladder_of(causal)
    plain = ladder.climb([deep(problem)], (1,))[0]
    trained = Configuration.trained

    def faulty(self, parts):
        found = trained(self, parts)
        if len(parts) < 4:
            return found
        if fault == "refused":
            raise MethodError("not here")
        prompts = [replace(own.candidate.prompt, offsets=own.candidate.prompt.offsets * torch.nan) for own in found]
        return [
            own._replace(candidate=replace(own.candidate, prompt=prompt), events=[])
            for own, prompt in zip(found, prompts, strict=True)
        ]

    monkeypatch.setattr(Configuration, "trained", faulty)
    run = ladder.climb([deep(problem)], (1,), members=3)[0]
    for one, other in zip(plain.answers, run.answers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_does_not_fit_is_passed_over_for_what_does(causal, monkeypatch):
    ladder, problem = ladder_of(causal)
    monkeypatch.setattr(Ladder, "_seconds", lambda self, run, trainings: float(run.configuration.size))
    limited = replace(problem, out_of_time=lambda reserve=0.0: reserve > 50)
    ladder = Ladder(limited, ladder._pool, ladder._folds)
    runs = ladder.climb([deep(problem), deep(problem, 0.03, 64), deep(problem, 0.05)], (3,))
    assert sorted(run.configuration.training.learning_rate for run in runs) == [0.05, 0.1]


def test_how_long_trainings_take_is_known_from_one_that_was_alone(causal):
    ladder, problem = ladder_of(causal)
    first, other = Run(deep(problem, epochs=4)), Run(deep(problem, epochs=8))
    assert ladder._seconds(first, 3) == 0.0
    ladder._note_seconds(first, 10.0, 1)
    assert ladder._seconds(other, 1) == 20.0
    ladder._note_seconds(first, 12.0, 3)
    assert ladder._seconds(first, 1) == 10.0  # alone it takes longer than its share of three
    assert ladder._seconds(first, 3) == 12.0
    assert ladder._seconds(other, 1) == 20.0
    assert ladder._seconds(other, 4) == 32.0
    ladder._note_seconds(other, 30.0, 3)
    assert ladder._seconds(other, 1) == 20.0
    assert ladder._seconds(other, 4) == 40.0


def test_a_training_that_diverges_is_refused(causal, monkeypatch):
    ladder, problem = ladder_of(causal)
    plain = ladder_module.log_probabilities
    calls = []

    def sometimes(own, candidate):
        calls.append(1)
        found = plain(own, candidate)
        return found * torch.nan if len(calls) == 1 else found

    monkeypatch.setattr(ladder_module, "log_probabilities", sometimes)
    runs = ladder.climb([deep(problem), deep(problem, 0.03)], (2,))
    assert [run.configuration.training.learning_rate for run in runs] == [0.03]
    assert "diverged" in ladder.refusal


def shared_ladder(untuned=None):
    folds = [Fold([], [0, 1]), Fold([], [2, 3])]
    return Ladder(SimpleNamespace(seed=0), Labelled(None, torch.zeros(4, dtype=torch.long)), folds, untuned)


def test_the_farthest_share_of_the_way_that_is_not_clearly_worse_is_taken(monkeypatch):
    monkeypatch.setattr(HeldOut, "recalibrated", lambda answers, seed: answers)
    ladder = shared_ladder()
    near, mid, far = (answers_of(hits) for hits in ((0.6, 0.62), (0.3, 0.31), (0.5, 0.51)))
    run = Run(None, [[near, mid, far], [near, mid, far]])
    assert ladder.share(run) == ladder.share(run, 1) == 1  # the farthest is clearly worse
    assert torch.equal(ladder.plain_answers(run).log_probs, torch.cat([mid, mid]))
    doubtful = answers_of((0.05, 0.7))  # worse on average, by every other example
    assert ladder.share(Run(None, [[near, mid, doubtful], [near, mid, doubtful]])) == 2


@pytest.mark.parametrize("training", [OffsetTraining(epochs=2), EmbeddingTraining(epochs=2)])
@pytest.mark.parametrize("kind", ["causal", "sequence"])
def test_a_part_of_the_way_lies_between_start_and_end(training, kind, request):
    backbone = request.getfixturevalue(kind)
    problem = replace(tiny_problem(backbone, "{prompt: it was}{text}" if kind == "sequence" else None), dev=None)
    start = starting_point(problem, problem.initial_ids, CalibrationKind.FITTED)
    selection = LastEpoch(problem)
    training.refine(problem, start, selection)
    context = problem.train.context
    with torch.no_grad():
        first, last = start.logits(backbone, context), selection.best.logits(backbone, context)
        none, half, all_of_it = (
            part_of_the_way(start, selection.best, share, backbone.embed) for share in (0.0, 0.5, 1.0)
        )
        assert torch.allclose(none.logits(backbone, context), first, atol=1e-5)
        assert torch.equal(all_of_it.logits(backbone, context), last)
    trained = selection.best.prompt
    if isinstance(training, EmbeddingTraining):
        middle = (start.prompt.vectors(backbone.embed) + trained.embeddings) / 2
        assert torch.allclose(half.prompt.embeddings, middle, atol=1e-6)
    else:
        assert torch.allclose(half.prompt.offsets, trained.offsets / 2, atol=1e-7)
    if kind == "sequence":
        assert torch.allclose(half.prompt.head.weight, (start.prompt.head.weight + trained.head.weight) / 2, atol=1e-6)


def test_the_folds_that_did_best_come_first():
    folds = [Fold([], [0, 1]), Fold([], [2, 3]), Fold([], [4, 5])]
    ladder = Ladder(SimpleNamespace(seed=0), Labelled(None, torch.zeros(6, dtype=torch.long)), folds)
    run = Run(None, [[answers_of(losses)] for losses in ((0.5, 0.4), (0.9, 0.3), (0.2, 0.5))])
    assert ladder.by_held_out_loss(run) == [2, 0, 1]  # of means .35, .45, .6
    run = Run(SimpleNamespace(training=None), run.answers, [None] * 3, ["first", "second", "third"])
    assert ladder.best_of_folds(run) == "third"


def test_a_stop_in_mid_round_compares_on_the_folds_that_all_have(monkeypatch):
    monkeypatch.setattr(ladder_module, "_ENOUGH", 2)
    folds = [Fold([], [0, 1]), Fold([], [2, 3])]
    ladder = Plain(SimpleNamespace(seed=0), Labelled(None, torch.zeros(4, dtype=torch.long)), folds)
    ladder._rounds = 1
    bad = Run(None, [[answers_of((0.9, 0.8))], [answers_of((0.1, 0.1))]])
    good = Run(None, [[answers_of((0.2, 0.3))]])
    assert ladder._ranked([bad, good])[0] is good


def test_a_share_that_is_no_better_than_the_untuned_prompt_is_not_taken(monkeypatch):
    monkeypatch.setattr(HeldOut, "recalibrated", lambda answers, seed: answers)
    untuned = HeldOut(answers_of((0.5, 0.5, 0.5, 0.5)), torch.zeros(4, dtype=torch.long), (2, 2))
    ladder = shared_ladder(untuned)
    wrong_once, all_right = answers_of((0.001, 0.7)), answers_of((0.45, 0.46))
    assert ladder.share(Run(None, [[all_right, wrong_once]] * 2)) == 0
    assert ladder.share(Run(None, [[wrong_once, answers_of((0.002, 0.6995))]] * 2)) == 1  # where none is, as ever


def test_what_is_left_answers_by_the_average_of_several_trainings(causal):
    ladder, problem = ladder_of(causal)
    other, _ = ladder_of(causal)
    one = other.climb([deep(problem)], (1,))[0]
    run = ladder.climb([deep(problem)], (1,), members=2)[0]
    for number in range(2):
        own = ladder._fold(run, number)
        start = run.configuration.start.candidate(own)
        (again,) = run.configuration.trained([(replace(own, seed=derived_seed(own.seed, "member/1")), start)])
        mean = (one.candidates[number].prompt.offsets + again.candidate.prompt.offsets) / 2
        assert torch.allclose(run.candidates[number].prompt.offsets, mean, atol=1e-6)
        expected = log_probabilities(own, part_of_the_way(start, run.candidates[number], 0.5, causal.embed))
        assert torch.allclose(run.answers[number][1], expected, atol=1e-5)


def test_a_training_that_goes_on_has_taken_the_seconds_of_the_run_that_was_stopped_too(causal, tmp_path, monkeypatch):
    """The clock stands still but for the epochs: ten seconds each, of a training and of a step on the way to it."""
    clock = [0.0]
    seen = LastEpoch.see

    def see(self, *args, **details):
        clock[0] += 10.0
        return seen(self, *args, **details)

    monkeypatch.setattr(folds_module.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(LastEpoch, "see", see)
    problem = tiny_problem(causal)
    runs = []
    for _ in range(2):
        kept = replace(problem, checkpoints=Checkpoints(Keeping(tmp_path), "key"))
        ladder = Ladder(kept, problem.pool, stratified_folds(problem.pool.labels, 2, 0))
        runs += ladder.climb([deep(problem)], (1,), members=2)
    assert clock[0] == (2 + 2) * (1 + 4) * 10.0  # two folds, two members, step 0 and four epochs: once only
    first, resumed = runs
    assert first.alone == 50.0
    assert (resumed.alone, resumed.each, resumed.seconds) == (first.alone, first.each, first.seconds)


def test_averages_that_are_clearly_worse_leave_the_answers_as_they_were(causal, monkeypatch):
    ladder, problem = ladder_of(causal)
    plain = ladder.climb([deep(problem)], (1,))[0]
    monkeypatch.setattr(Ladder, "_are_no_worse", lambda *_: False)
    run = ladder.climb([deep(problem)], (1,), members=2)[0]
    for one, other in zip(plain.answers, run.answers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    for one, other in zip(plain.candidates, run.candidates, strict=True):
        assert torch.equal(one.prompt.offsets, other.prompt.offsets)


def test_clearly_worse_is_by_more_than_a_standard_error(monkeypatch):
    monkeypatch.setattr(HeldOut, "recalibrated", lambda answers, seed: answers)
    ladder, run = shared_ladder(), Run(None, [[answers_of((0.3, 0.4))]] * 2)
    assert ladder._are_no_worse([[answers_of((0.2, 0.3))]] * 2, run)
    assert ladder._are_no_worse([[answers_of((0.2, 0.52))]] * 2, run)
    assert not ladder._are_no_worse([[answers_of((0.4, 0.52))]] * 2, run)
