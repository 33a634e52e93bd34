"""`auto`: folds, successive halving, the guard, the time limit."""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import LABELS, TEXTS, make_task, records, tiny_problem
from cuecraft import PromptClassifier
from cuecraft.backbone import CausalBackbone
from cuecraft.checkpoints import Checkpoints
from cuecraft.errors import MethodError
from cuecraft.evidence import Tried
from cuecraft.method import CalibrationKind, Candidate, Labelled, Outcome, Selection, score, starting_point
from cuecraft.prompts import Calibration, HardPrompt, calibration, load_artifact
from cuecraft.search.folds import Fold, stratified_folds
from cuecraft.search.label_words import LabelWordSearch
from cuecraft.tune import make_method
from cuecraft.tune.auto import choice, plans
from cuecraft.tune.auto import ladder as ladder_module
from cuecraft.tune.auto.folds import HeldOut, LastEpoch, fold_problem, untuned_answers
from cuecraft.tune.auto.ladder import Configuration, Ladder, Run
from cuecraft.tune.auto.plans import PLANS, Plan, Preset, Recipe, configurations
from cuecraft.tune.auto.starts import GivenWords, OtherWords, SearchedPrompt, Words
from cuecraft.tune.auto.untrained import Untrained
from cuecraft.tune.deep_cue import OffsetTraining
from cuecraft.tune.finish import make_artifact
from cuecraft.tune.prepare import make_problem
from cuecraft.tune.prompt_tuning import EmbeddingTraining
from cuecraft.tune.soup import part_of_the_way

plain = LabelWordSearch.search
TINY = Plan(
    folds=2,
    cues=2,
    searches_words=False,
    deep=(Recipe(0.1, 4), Recipe(0.03, 4)),
    soft=(Recipe(0.02, 4),),
    starts=2,
    longer=2,
    searches_prompts=False,
    keep=(2, 1),
    members=2,
    examples=64,
)


@pytest.fixture
def tiny_plans(monkeypatch):
    monkeypatch.setattr(choice, "PLANS", dict.fromkeys(Preset, TINY))


def auto(**options):
    return make_method("auto", options)


# Folds


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=6, max_size=60), st.integers(2, 5), st.integers(0, 9))
def test_folds_are_a_stratified_partition(labels, count, seed):
    folds = stratified_folds(torch.tensor(labels), count, seed)
    rarest = min(labels.count(label) for label in set(labels))
    if rarest < 2:
        assert folds == []
        return
    assert len(folds) == min(count, rarest)
    held = sorted(row for fold in folds for row in fold.held_out)
    assert held == list(range(len(labels)))
    for fold, label in itertools.product(folds, set(labels)):
        own = [labels[row] for row in fold.held_out].count(label)
        assert abs(own - labels.count(label) / len(folds)) < 1
        assert sorted((*fold.train, *fold.held_out)) == list(range(len(labels)))


@pytest.mark.parametrize("kind", list(CalibrationKind))
def test_untuned_answers_are_those_of_a_fit_on_each_fold_alone(kind, causal):
    problem = tiny_problem(causal)
    pool = problem.pool
    folds = stratified_folds(pool.labels, 2, 0)
    ids = problem.initial_ids
    found = untuned_answers(problem, pool, [HardPrompt(ids[:1]), HardPrompt(ids)], folds)(1, kind)
    expected = []
    for number, _ in enumerate(folds):
        own = fold_problem(problem, pool, folds, number)
        candidate = starting_point(replace(own, dev=None), ids, kind)
        with torch.no_grad():
            expected.append(candidate.logits(causal, own.dev.context).double().log_softmax(-1))
    assert torch.allclose(found.log_probs, torch.cat(expected), atol=1e-5)
    assert found.labels.tolist() == [int(pool.labels[row]) for fold in folds for row in fold.held_out]


def test_untuned_answers_of_a_class_head_are_those_of_a_fit_on_each_fold_alone(sequence):
    problem = tiny_problem(sequence)
    pool = problem.pool
    folds = stratified_folds(pool.labels, 2, 0)
    found = untuned_answers(problem, pool, [HardPrompt(())], folds)(0, CalibrationKind.NONE)
    expected = []
    for number, _ in enumerate(folds):
        own = fold_problem(problem, pool, folds, number)
        with torch.no_grad():
            expected.append(starting_point(own, (), CalibrationKind.NONE).logits(sequence, own.dev.context).double())
    assert torch.allclose(found.log_probs, torch.cat(expected).log_softmax(-1), atol=1e-5)


def test_joined_examples_have_the_logits_of_each_part(causal):
    problem = tiny_problem(causal)
    prompt = HardPrompt(problem.initial_ids)
    with torch.no_grad():
        whole = causal.class_logits(problem.pool.context, prompt)
        parts = [causal.class_logits(part.context, prompt) for part in (problem.train, problem.dev)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-5)


# The ladder


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


def test_recalibrated_answers_are_each_calibrated_by_the_others():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1] * 12)
    sure = 6 * torch.randn(24, 2, generator=generator, dtype=torch.float64)
    sure[range(24), labels] += 2.0
    found = HeldOut(sure.log_softmax(-1), labels, (12, 12))
    again = found.recalibrated(3)
    for fold in stratified_folds(labels, 4, 3):
        own = calibration.fitted(found.log_probs[fold.train], labels[fold.train])
        expected = own.apply(found.log_probs[fold.held_out]).log_softmax(-1)
        assert torch.allclose(again.log_probs[fold.held_out], expected)
    assert again.score.loss < found.score.loss


@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4), st.floats(0.1, 4), st.floats(0.1, 4))
def test_calibrations_one_after_the_other_are_one(bias, first_scale, second_scale):
    first, second = Calibration(tuple(bias[:2]), first_scale), Calibration(tuple(bias[2:]), second_scale)
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.1]], dtype=torch.float64)
    assert torch.allclose(first.then(second).apply(logits), second.apply(first.apply(logits)))


def test_nothing_is_dropped_on_a_handful_of_examples(causal):
    ladder, problem = ladder_of(causal)
    runs = ladder.climb([deep(problem, rate) for rate in (1e-6, 0.1, 0.03)], (1,))
    assert [len(run.answers) for run in runs] == [2, 2, 2]


def test_halving_keeps_the_better_ones(causal, monkeypatch):
    monkeypatch.setattr(ladder_module, "_ENOUGH", 4)
    ladder, problem = ladder_of(causal)
    runs = ladder.climb([deep(problem, rate) for rate in (1e-6, 0.1, 0.03)], (1,))
    assert [len(run.answers) for run in runs] == [2, 1, 1]
    first = [ladder.answers(run, 1).score.loss for run in runs]
    assert first[0] == min(first)


def test_a_configuration_that_the_backbone_refuses_is_passed_over(causal, monkeypatch):
    ladder, problem = ladder_of(causal)
    refine = OffsetTraining.refine

    def refusing(self, *rest):
        if self.learning_rate == 0.5:
            raise MethodError("not here")
        refine(self, *rest)

    monkeypatch.setattr(OffsetTraining, "refine", refusing)
    runs = ladder.climb([deep(problem, 0.5), deep(problem)], (2,))
    assert [run.configuration.training.learning_rate for run in runs] == [0.1]
    assert "not here" in ladder.refusal


def test_a_plan_tries_the_best_start_with_every_recipe_and_others_with_the_first():
    starts = [Words(name, GivenWords(), ids, name != "a") for name, ids in (("a", (1, 2)), ("b", (3,)), ("c", (4,)))]
    found = configurations(PLANS[Preset.BEST], starts, (8, 9))
    names = [(one.training.name, one.training.learning_rate, one.training.epochs, one.start.name) for one in found]
    assert names[:2] == [("deep-cue", 0.1, 8, "a"), ("deep-cue", 0.03, 8, "a")]
    assert ("deep-cue", 0.1, 8, "b") in names
    assert ("prompt-tuning", 0.005, 16, "a") in names
    longer = next(one.start for one in found if "longer" in one.start.name)
    assert longer.token_ids == (8, 9, 8, 9, 8, 9, 1, 2)
    assert isinstance(found[-1].start, SearchedPrompt)
    assert all(one.training.schedule == "linear" for one in found)


def test_words_that_differ_are_tried_without_training_too():
    other = Words("b", GivenWords(), (3,), differs=True)
    assert configurations(PLANS[Preset.FAST], [other], (8,))[-1] == Configuration(other, None)


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


def test_the_share_of_the_way_is_the_one_of_least_loss_over_the_folds():
    folds = [Fold([], [0, 1]), Fold([], [2, 3])]
    ladder = Ladder(SimpleNamespace(seed=0), Labelled(None, torch.zeros(4, dtype=torch.long)), folds)
    near, mid, far = (answers_of((loss, loss)) for loss in (0.6, 0.3, 0.5))
    run = Run(None, [[near, mid, far], [near, mid, answers_of((0.2, 0.2))]])
    assert ladder.share(run) == 1
    assert ladder.share(run, 1) == 1
    assert torch.equal(ladder.plain_answers(run).log_probs, torch.cat([mid, mid]))
    assert ladder.share(Run(None, [[near, far], [near, answers_of((0.2, 0.2))]])) == 1


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


def test_a_stop_in_mid_round_compares_on_the_folds_that_all_have():
    folds = [Fold([], [0, 1]), Fold([], [2, 3])]
    ladder = Plain(SimpleNamespace(seed=0), Labelled(None, torch.zeros(4, dtype=torch.long)), folds)
    ladder._rounds = 1
    bad = Run(None, [[answers_of((0.9, 0.8))], [answers_of((0.1, 0.1))]])
    good = Run(None, [[answers_of((0.2, 0.3))]])
    assert ladder._ranked([bad, good])[0] is good


def test_copies_of_a_text_stay_in_one_fold():
    labels = torch.tensor([0, 1] * 10)
    texts = [f"text {n // 4}" for n in range(20)]
    for fold in stratified_folds(labels, 4, 0, texts):
        assert not {texts[row] for row in fold.train} & {texts[row] for row in fold.held_out}
    apart = [f"text {n}" for n in range(20)]
    assert stratified_folds(labels, 4, 0, apart) == stratified_folds(labels, 4, 0)


# The method


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_it_ships_the_better_prompt_of_the_two(kind, tiny_plans, request):
    problem = tiny_problem(request.getfixturevalue(kind))
    outcome = auto().fit(problem)
    evidence = outcome.verdict.evidence
    assert outcome.verdict.ships == ("tuned" if evidence.is_better else "untuned")
    assert outcome.is_tuned == evidence.is_better
    assert evidence.rows == len(TEXTS)
    assert outcome.held_out.accuracy == (evidence.accuracy if evidence.is_better else evidence.untuned_accuracy)
    assert outcome.trace[-1]["phase"] == "verdict"
    full = [row for row in outcome.tried if row.folds == 2]
    assert full == sorted(full, key=lambda row: row.loss)
    assert all(isinstance(row, Tried) and row.seconds >= 0 for row in outcome.tried)


def test_without_signal_nothing_is_learnt_and_none_is_claimed(causal, tiny_plans):
    """Texts alike under both labels: the least log-loss there is, is that of a coin."""
    rows = [record for text, _ in TEXTS[:4] for record in records([(text, 0), (text, 1)])]
    outcome = auto().fit(make_problem(causal, make_task(), rows, rows))
    assert outcome.verdict.evidence.loss >= np.log(2) - 0.01
    assert "(strong" not in outcome.verdict.reason
    assert "(good" not in outcome.verdict.reason


def test_a_training_that_makes_things_worse_does_not_ship(causal, tiny_plans, monkeypatch):
    """Whatever is trained is surely wrong: the guard must see it."""
    answers = Ladder.answers

    def wrong(self, run, folds=None):
        found = answers(self, run, folds)
        said = torch.full_like(found.log_probs, 0.99).scatter(1, found.labels[:, None], 0.01)
        return replace(found, log_probs=said.log())

    problem = tiny_problem(causal)
    honest = auto().fit(problem)
    assert honest.verdict.ships == "tuned"
    monkeypatch.setattr(Ladder, "answers", wrong)
    assert auto().fit(problem).verdict.ships == "untuned"


def test_the_choice_is_made_again_on_all_examples(causal, tiny_plans):
    outcome = auto().fit(tiny_problem(causal))
    assert outcome.verdict.ships == "tuned"
    refits = {event["refit"] for event in outcome.trace if "refit" in event}
    assert refits == {0, 1}
    assert outcome.words is not None
    assert isinstance(outcome.words.prompt, HardPrompt)


def test_one_example_of_a_class_is_too_few_to_check_on(causal, tiny_plans):
    rows = records([TEXTS[0], TEXTS[1], TEXTS[3]])
    outcome = auto().fit(make_problem(causal, make_task(), rows))
    assert not outcome.is_tuned
    assert "one example only" in outcome.verdict.reason


def test_the_same_seed_gives_the_same_bits_and_another_one_others(causal, tiny_plans, tmp_path):
    def made(seed):
        problem = tiny_problem(causal, seed=seed)
        return make_artifact(problem, auto().fit(problem), auto()).save(tmp_path / f"{seed}")

    assert made(3) == made(3)
    assert made(3) != made(4)


def test_the_artifact_says_what_was_held_out_and_not_what_was_learnt_from(causal, tiny_plans, tmp_path):
    problem = tiny_problem(causal)
    outcome = auto().fit(problem)
    artifact = make_artifact(problem, outcome, auto())
    assert "dev_accuracy" not in artifact.manifest.metrics
    assert artifact.manifest.metrics["held_out_accuracy"] == outcome.held_out.accuracy


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


def test_other_label_words_reach_the_artifact(causal, causal_folder, tmp_path):
    """A prompt found with other label words answers the same from its artifact."""
    problem = tiny_problem(causal)
    task = replace(problem.task, verbalizer=make_task(words={"negative": "bad", "positive": "good"}).verbalizer)
    candidate = starting_point(problem, problem.initial_ids, CalibrationKind.NONE)
    other = replace(candidate, reader=OtherWords(causal, task))
    outcome = replace(auto_outcome(problem), best=other)
    folder = tmp_path / "words"
    make_artifact(problem, outcome, auto()).save(folder)
    assert load_artifact(folder).task.verbalizer.words == (("bad",), ("good",))
    loaded = PromptClassifier.of(load_artifact(folder), causal)
    texts = [text for text, _ in TEXTS]
    with torch.no_grad():
        expected = other.logits(causal, problem.pool.context).double().softmax(-1).numpy()
        plain = candidate.logits(causal, problem.pool.context).double().softmax(-1).numpy()
    assert np.allclose(loaded.predict_proba(texts), expected, atol=1e-5)
    assert not np.allclose(plain, expected, atol=1e-3)


def auto_outcome(problem):
    start = Candidate(HardPrompt(problem.initial_ids), starting_point(problem, (), CalibrationKind.NONE).calibration)
    return Outcome(start, start, [])


def test_the_classifier_has_a_leaderboard(causal, tiny_plans):
    texts, labels = [text for text, _ in TEXTS], [LABELS[label] for _, label in TEXTS]
    classifier = PromptClassifier(causal, "auto", template="{text}{prompt: it was}{mask}").fit(texts, labels)
    rows = classifier.leaderboard()
    assert {"name", "loss", "accuracy", "sd", "folds", "seconds"} == set(rows[0])
    assert any(row["name"] == "zero-shot" for row in rows)


def test_hand_written_words_are_tried_only_where_they_lead_to_the_answer(causal):
    for template, leads in (
        ("{text}{prompt: it was}{mask}", True),
        ("{prompt:it was}{text}{mask}", False),
        ("{text}{prompt: it was} then:{mask}", False),
    ):
        problem = tiny_problem(causal, template)
        pool = problem.pool
        found = Untrained(problem, pool, stratified_folds(pool.labels, 2, 0), PLANS[Preset.FAST]).starts()
        assert (len(found) > 1) == leads


def test_presets_try_more_and_more():
    sizes = [len(configurations(PLANS[preset], [Words("a", GivenWords(), (1,), False)], (2,))) for preset in Preset]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3
    assert plans.PLANS[Preset.FAST].members < plans.PLANS[Preset.GOOD].members < plans.PLANS[Preset.BEST].members


def written(path):
    lines = [json.dumps({"text": text, "label": LABELS[label]}) for text, label in TEXTS]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_the_command_prints_what_was_tried_and_the_verdict(run, causal_folder, tmp_path, tiny_plans):
    data = written(tmp_path / "rows.jsonl")
    common = ("tune", data, "--model", causal_folder, "--method", "auto", "--preset", "fast", "--time-limit", 60)
    code, out, _ = run(*common, "--template", "{text}{prompt: it was}{mask}", "--out", "runs/a", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["verdict"]["ships"] == ("tuned" if document["tuned"] else "untuned")
    assert {"name", "loss", "accuracy", "sd", "folds", "seconds"} == set(document["leaderboard"][0])
    assert load_artifact(tmp_path / "runs" / "a").manifest.method_options["preset"] == "fast"
    code, out, _ = run(*common, "--out", "runs/b")
    assert code == 0
    assert "tried on held-out folds" in out
    assert "prompt ships: " in out
    code, out, _ = run("predict", "runs/a", "a joy", "--json")
    assert code == 0


def test_a_preset_of_a_method_that_has_none_is_refused(run, causal_folder, tmp_path):
    data = written(tmp_path / "rows.jsonl")
    code, _, err = run("tune", data, "--model", causal_folder, "--method", "deep-cue", "--preset", "fast")
    assert code == 2
    assert "no option 'preset'" in err


def test_the_users_own_label_words_are_kept_unless_asked_otherwise(causal, monkeypatch):
    searched = []
    monkeypatch.setattr(
        LabelWordSearch, "search", lambda self, own, *ids: searched.append(own) or plain(self, own, *ids)
    )
    monkeypatch.setattr(choice, "PLANS", dict.fromkeys(Preset, replace(TINY, searches_words=True)))
    words = {"negative": "bad", "positive": "good"}
    given_words = make_problem(causal, make_task(words=words), records(TEXTS[:5]), records(TEXTS[5:]))
    auto().fit(given_words)
    assert not searched
    auto(label_words="search").fit(given_words)
    assert searched
    searched.clear()
    auto(label_words="keep").fit(tiny_problem(causal))
    assert not searched
    auto().fit(tiny_problem(causal))
    # Once for each fold, from the training part alone.
    assert 1 <= len(searched) <= 3
    assert all(problem.dev is None for problem in searched)
    assert {len(problem.train) for problem in searched} <= {4, 8}


def test_label_words_auto_does_not_show_the_held_out_labels_to_the_search(causal, tiny_plans, monkeypatch):
    seen = []
    monkeypatch.setattr(LabelWordSearch, "search", lambda self, own, *ids: seen.append(own) or plain(self, own, *ids))
    texts, labels = [text for text, _ in TEXTS], [LABELS[label] for _, label in TEXTS]
    PromptClassifier(causal, "auto", template="{text}{prompt: it was}{mask}", label_words="auto").fit(texts, labels)
    assert all(len(problem.train) < len(TEXTS) for problem in seen)


class Watch:
    """A clock that goes on by what is done: a second for every example that is read or trained on."""

    def __init__(self, limit, monkeypatch):
        self.now, self.limit, self.late = 0.0, limit, 0.0
        plain = CausalBackbone._score_together

        def scored(backbone, context, *rest):
            self.now += len(context)
            return plain(backbone, context, *rest)

        monkeypatch.setattr(CausalBackbone, "_score_together", scored)

    def __call__(self, reserve=0.0):
        return self.now + reserve >= self.limit


@pytest.mark.parametrize("limit", [40, 90, 150, 300, 500, 800])
def test_nothing_long_is_begun_after_the_limit(limit, causal, tiny_plans, monkeypatch):
    """An epoch or a pass over all eight examples takes 8 s at most; guard and metrics look at each once more."""
    watch = Watch(limit, monkeypatch)
    monkeypatch.setattr(ladder_module.time, "perf_counter", lambda: watch.now)
    auto().fit(replace(tiny_problem(causal), out_of_time=watch))
    assert watch.now <= limit + 40


@pytest.mark.parametrize("looks", [21, 34, 55])
def test_a_run_that_was_cut_does_not_lend_its_trainings_to_another(looks, causal, tiny_plans, tmp_path):
    """What a cut run left on disk is used again only for the same training of the same rows."""
    problem = replace(tiny_problem(causal), checkpoints=Checkpoints(tmp_path, "key"))
    auto().fit(replace(problem, out_of_time=Clock(looks)))
    again = auto().fit(replace(problem, checkpoints=Checkpoints(tmp_path, "key")))
    alone = auto().fit(tiny_problem(causal))
    assert again.verdict == alone.verdict
    assert again.trace == alone.trace


def test_labels_of_chance_are_seldom_called_good_evidence(causal, tiny_plans):
    """Random labels: what ships is the luck of the folds, and the verdict must seldom call it good or strong."""
    called = 0
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randperm(8, generator=generator) % 2
        rows = records([(text, int(label)) for (text, _), label in zip(TEXTS, labels, strict=True)])
        verdict = auto().fit(make_problem(causal, make_task(), rows, rows[:0] or None, seed=seed)).verdict
        called += any(word in verdict.reason for word in ("(strong", "(good"))
    assert called <= 2
