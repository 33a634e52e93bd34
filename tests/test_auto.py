"""`auto` as a whole: the guard, the time limit, resuming, the command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from conftest import LABELS, TEXTS, make_task, records, tiny_problem
from cuecraft import PromptClassifier
from cuecraft.evidence import Evidence, Tried
from cuecraft.method import CalibrationKind, Candidate, Outcome
from cuecraft.prompts import Calibration, HardPrompt, load_artifact
from cuecraft.search import AutoPrompt
from cuecraft.search.folds import stratified_folds
from cuecraft.search.label_words import LabelWordSearch
from cuecraft.seeding import derived_seed
from cuecraft.tune import make_method
from cuecraft.tune.auto import choice, plans
from cuecraft.tune.auto import untrained as untrained_module
from cuecraft.tune.auto.plans import PLANS, Plan, Preset, Schedule, configurations
from cuecraft.tune.auto.starts import GivenWords, OtherWords, SearchedPrompt, SearchedWords, Words
from cuecraft.tune.auto.untrained import Untrained
from cuecraft.tune.finish import make_artifact
from cuecraft.tune.held_out import HeldOut
from cuecraft.tune.prepare import make_problem
from cuecraft.tune.soup import average
from cuecraft.untuned import starting_point

plain = LabelWordSearch.search
TINY = Plan(
    folds=2,
    cues=2,
    searches_words=False,
    heads=(0.1, 1.0),
    penalties=(0.1, 1.0),
    first_order=1,
    deep=(Schedule(0.1, 4),),
    soft=(Schedule(0.02, 4),),
    alone=False,
    longer=2,
    otherwise=Schedule(0.1, 4),
    examples=64,
)


@pytest.fixture
def tiny_plans(monkeypatch):
    monkeypatch.setattr(choice, "PLANS", dict.fromkeys(Preset, TINY))


def auto(**options):
    return make_method("auto", options)


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
    assert {row.rows for row in full} == {len(TEXTS)}
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


def climbed(monkeypatch):
    """Remember each ladder of the choice, and the runs that it returned."""
    seen = []
    climb = Ladder.climb

    def climbing(self, *rest):
        runs = climb(self, *rest)
        seen.append((self, runs))
        return runs

    monkeypatch.setattr(Ladder, "climb", climbing)
    return seen


def chosen(ladder, runs, outcome):
    """Return the run that the verdict speaks of."""
    return next(run for run in runs if ladder.tried(run).loss == outcome.verdict.evidence.loss)


def refitted(problem, run, start, members):
    """Train from a start on all examples, as the choice does in the end."""
    whole = replace(problem, train=problem.pool, dev=None)
    seeds = [derived_seed(problem.seed, f"refit/{number}") for number in range(members)]
    found = run.configuration.trained([(replace(whole, seed=seed), start) for seed in seeds])
    return [one.candidate for one in found]


def start_of(problem, run):
    """Return a run's starting words, calibrated on all examples."""
    whole = replace(problem, train=problem.pool, dev=None)
    return starting_point(whole, run.configuration.start.token_ids, CalibrationKind.FITTED)


@pytest.mark.parametrize("members", [0, 2])
def test_what_ships_is_the_average_of_all_trainings_of_the_choice(members, causal, tiny_plans, monkeypatch):
    """Those on the folds, and on all examples as many as there is time for."""
    seen = climbed(monkeypatch)
    monkeypatch.setattr(Ladder, "members_in_time", lambda self, run, most: members)
    problem = tiny_problem(causal)
    outcome = auto().fit(problem)
    assert outcome.verdict.ships == "tuned"
    ((ladder, runs),) = seen
    run = chosen(ladder, runs, outcome)
    assert len(run.candidates) == TINY.folds
    start = start_of(problem, run)
    found = [*refitted(problem, run, start, members), *run.candidates]
    assert len(found) == TINY.folds + members
    mean = torch.stack([candidate.prompt.offsets for candidate in found]).mean(0)
    share = ladder_module.SHARES[ladder.share(run)]
    assert torch.allclose(outcome.best.prompt.offsets, share * mean, atol=1e-6)
    assert outcome.best.calibration == start.calibration.then(ladder.plain_answers(run).calibration())
    assert {event["refit"] for event in outcome.trace if "refit" in event} == set(range(members))
    assert outcome.words.prompt.token_ids == start.prompt.token_ids


def test_trainings_from_words_of_each_folds_own_are_no_part_of_the_average(causal, tiny_plans, monkeypatch):
    """Label words that each fold found for itself cannot be averaged."""
    seen = climbed(monkeypatch)
    monkeypatch.setattr(Words, "is_fixed", False)
    problem = tiny_problem(causal)
    outcome = auto().fit(problem)
    assert outcome.verdict.ships == "tuned"
    ((ladder, runs),) = seen
    run = chosen(ladder, runs, outcome)
    again = refitted(problem, run, start_of(problem, run), TINY.members)
    mean = torch.stack([refit.prompt.offsets for refit in again]).mean(0)
    share = ladder_module.SHARES[ladder.share(run)]
    assert torch.allclose(outcome.best.prompt.offsets, share * mean, atol=1e-6)
    monkeypatch.setattr(Ladder, "members_in_time", lambda self, run, most: 0)
    outcome = auto().fit(problem)
    ladder, runs = seen[1]
    run = chosen(ladder, runs, outcome)
    assert torch.equal(outcome.best.prompt.offsets, ladder.best_of_folds(run).prompt.offsets)


def test_trainings_from_class_heads_of_each_folds_own_are_no_part_of_the_average(sequence, tiny_plans, monkeypatch):
    monkeypatch.setattr(Evidence, "is_better", True)  # whatever the folds say
    seen = climbed(monkeypatch)
    problem = tiny_problem(sequence)
    outcome = auto().fit(problem)
    assert outcome.verdict.ships == "tuned"
    ((ladder, runs),) = seen
    run = runs[0]
    whole = replace(problem, train=problem.pool, dev=None)
    start = run.configuration.start.candidate(whole)
    assert start.prompt.head is not None
    expected = ladder.moved(run, start, average(refitted(problem, run, start, TINY.members))).prompt
    assert torch.allclose(outcome.best.prompt.head.weight, expected.head.weight, atol=1e-6)


def test_where_the_trainings_on_folds_are_too_far_apart_the_others_are_averaged(causal, tiny_plans, monkeypatch):
    seen = climbed(monkeypatch)
    monkeypatch.setattr(choice, "is_barrier_free", lambda backbone, members, *rest: len(members) <= TINY.members)
    problem = tiny_problem(causal)
    outcome = auto().fit(problem)
    assert outcome.verdict.ships == "tuned"
    ((ladder, runs),) = seen
    run = chosen(ladder, runs, outcome)
    start = start_of(problem, run)
    expected = ladder.moved(run, start, average(refitted(problem, run, start, TINY.members)))
    assert not outcome.best.others
    assert torch.allclose(outcome.best.prompt.offsets, expected.prompt.offsets, atol=1e-6)


@pytest.mark.parametrize(("most", "in_time"), [(8, True), (3, True), (1, True), (8, False), (1, False)])
def test_what_cannot_be_averaged_answers_together(most, in_time, causal, tiny_plans, monkeypatch):
    """Trainings on all examples first, then the folds' best ones; calibrated as one, probabilities averaged."""
    seen = climbed(monkeypatch)
    monkeypatch.setattr(choice, "is_barrier_free", lambda *rest: False)
    members = TINY.members if in_time else 0
    monkeypatch.setattr(Ladder, "members_in_time", lambda self, run, most: members)
    problem = tiny_problem(causal)
    outcome = auto(prompts=most).fit(problem)
    assert outcome.verdict.ships == "tuned"
    ((ladder, runs),) = seen
    run = chosen(ladder, runs, outcome)
    start = start_of(problem, run)
    labels, share = problem.pool.labels, ladder.share(run)
    losses = [
        float(functional.nll_loss(answers[share], labels[list(fold.held_out)]))
        for answers, fold in zip(run.answers, ladder._folds, strict=True)
    ]
    assert len(set(losses)) == len(losses)
    best_first = [run.candidates[number] for number in sorted(range(len(losses)), key=losses.__getitem__)]
    parts = [*refitted(problem, run, start, members), *best_first][:most]
    expected = [ladder.moved(run, start, part).prompt for part in parts]
    assert len(outcome.best.prompts) == len(expected)
    for found, own in zip(outcome.best.prompts, expected, strict=True):
        assert torch.allclose(found.offsets, own.offsets, atol=1e-6)
    context = problem.dev.context
    apart = [outcome.best.calibration.apply(causal.class_logits(context, prompt)).softmax(-1) for prompt in expected]
    answered = outcome.best.logits(causal, context).softmax(-1)
    assert torch.allclose(answered, torch.stack(apart).mean(0), atol=1e-5)


def test_a_training_on_all_examples_that_diverges_is_no_part_of_the_average(causal, tiny_plans, monkeypatch):
    trained = ladder_module.Configuration.trained

    def training(self, parts):
        found = trained(self, parts)
        if parts and len(parts[0][0].train) == len(TEXTS):
            first = found[0].candidate
            prompt = replace(first.prompt, offsets=first.prompt.offsets * torch.nan)
            found = [found[0]._replace(candidate=replace(first, prompt=prompt)), *found[1:]]
        return found

    monkeypatch.setattr(ladder_module.Configuration, "trained", training)
    outcome = auto().fit(tiny_problem(causal))
    assert outcome.verdict.ships == "tuned"
    assert outcome.best.prompt.offsets.isfinite().all()


def test_starts_know_whether_they_are_the_same_for_all_examples():
    search = SearchedWords(LabelWordSearch(), (1,))
    assert Words("own", GivenWords(), (1,), differs=False).is_fixed
    assert not Words("own", search, (1,), differs=True).is_fixed
    assert not SearchedPrompt("search", GivenWords(), (1,), AutoPrompt()).is_fixed


def test_other_label_words_are_taken_only_where_they_are_clearly_better(causal, monkeypatch):
    problem = tiny_problem(causal)
    folds = stratified_folds(problem.pool.labels, 2, 0)
    untrained = Untrained(problem, problem.pool, folds, replace(TINY, searches_words=True, cues=0))
    held = HeldOut(torch.full((8, 2), 0.5).log(), problem.pool.labels, (4, 4))

    def found(right):
        said = torch.full((8, 2), 1 - right).scatter(1, held.labels[:, None], right)
        said[0] = torch.tensor([0.45, 0.55])  # where all differ by the same, there is nothing to judge by
        return replace(held, log_probs=said.log())

    def fixed(*losses):
        answers = iter(losses)
        monkeypatch.setattr(Untrained, "_held_out", lambda self, start: next(answers))
        return [start.is_fixed for start in untrained.starts()]

    other = {"negative": ("cold",), "positive": ("warm",)}
    monkeypatch.setattr(LabelWordSearch, "search", lambda self, own, *ids: replace(plain(self, own, *ids), words=other))
    assert fixed(held, found(0.9)) == [False]
    lucky = found(0.9)
    lucky.log_probs[1:] = held.log_probs[1:] - 0.01  # one example makes all the difference
    assert lucky.score.loss < held.score.loss
    assert fixed(held, lucky) == [True]


def test_one_example_of_a_class_is_too_few_to_check_on(causal, tiny_plans):
    rows = records([TEXTS[0], TEXTS[1], TEXTS[3]])
    outcome = auto().fit(make_problem(causal, make_task(), rows))
    assert not outcome.is_tuned
    assert "two different texts of each class" in outcome.verdict.reason
    assert outcome.best.calibration == Calibration.none(2)  # an unchecked one could make things worse


def test_copies_of_one_text_are_too_few_to_check_on(causal, tiny_plans):
    rows = records([TEXTS[0], TEXTS[2], *[TEXTS[1]] * 5])
    outcome = auto().fit(make_problem(causal, make_task(), rows))
    assert not outcome.is_tuned
    assert "two different texts of each class" in outcome.verdict.reason


def test_what_was_measured_on_fewer_examples_ranks_behind_and_sets_no_mark(causal, tiny_plans, monkeypatch):
    marks, plain_judge = [], choice.judge
    monkeypatch.setattr(untrained_module, "_SCREENED", 4)
    monkeypatch.setattr(choice, "judge", lambda *asked: marks.append(asked[2]) or plain_judge(*asked))
    tried = auto().fit(tiny_problem(causal)).tried
    assert {row.rows for row in tried if row.name.startswith("words ")} == {4}
    assert [row.rows for row in tried] == sorted((row.rows for row in tried), reverse=True)
    assert marks == [max(row.accuracy for row in tried if row.rows == len(TEXTS))]


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
    assert {"name", "loss", "accuracy", "sd", "folds", "rows", "seconds"} == set(rows[0])
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
    assert {"name", "loss", "accuracy", "sd", "folds", "rows", "seconds"} == set(document["leaderboard"][0])
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


@pytest.mark.parametrize("searches_words", [False, True])
def test_label_words_auto_searches_without_the_held_out_labels_whatever_the_preset(causal, monkeypatch, searches_words):
    seen = []
    monkeypatch.setattr(choice, "PLANS", dict.fromkeys(Preset, replace(TINY, searches_words=searches_words)))
    monkeypatch.setattr(LabelWordSearch, "search", lambda self, own, *ids: seen.append(own) or plain(self, own, *ids))
    texts, labels = [text for text, _ in TEXTS], [LABELS[label] for _, label in TEXTS]
    PromptClassifier(causal, "auto", template="{text}{prompt: it was}{mask}", label_words="auto").fit(texts, labels)
    assert seen
    assert all(problem.dev is None and len(problem.train) < len(TEXTS) for problem in seen)


@pytest.mark.slow
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
