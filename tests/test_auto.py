"""`auto` as a whole: the guard, the time limit, resuming, the command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from auto_parts import ONE, TINY, assert_same_prompt, auto, by_hand, crossfitted, planned, probabilities
from conftest import LABELS, TEXTS, make_task, records, tiny_problem
from cuecraft import PromptClassifier
from cuecraft.artifact import Calibration, HardPrompt, load_artifact
from cuecraft.cli.display.results import _print_tried
from cuecraft.methods.auto import choice
from cuecraft.methods.auto import untrained as untrained_module
from cuecraft.methods.auto.starts import OtherWords
from cuecraft.methods.auto.untrained import Untrained
from cuecraft.methods.candidate import Candidate
from cuecraft.methods.evidence import Evidence, Tried
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.held_out import HeldOut, stratified_folds
from cuecraft.methods.prepare import make_problem
from cuecraft.methods.problem import CalibrationKind, Outcome
from cuecraft.methods.search.label_words import LabelWordSearch
from cuecraft.methods.untuned import starting_point

FITTED = CalibrationKind.FITTED
plain = LabelWordSearch.search


@pytest.fixture
def tiny_plans(monkeypatch):
    planned(monkeypatch, TINY)


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_it_ships_the_better_prompt_of_the_two(kind, tiny_plans, request):
    problem = tiny_problem(request.getfixturevalue(kind))
    outcome = auto().fit(problem)
    evidence = outcome.verdict.evidence
    assert outcome.verdict.ships == ("tuned" if evidence.is_better else "untuned")
    assert outcome.is_tuned == evidence.is_better
    assert evidence.rows == len(TEXTS)
    assert outcome.held_out.primary == (evidence.accuracy if evidence.is_better else evidence.untuned_accuracy)
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


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_what_ships_are_the_prompts_of_the_folds_with_one_temperature(kind, monkeypatch, request):
    """Probabilities are the plain mean of what each prompt answers; the temperature is that of held-out answers."""
    planned(monkeypatch, replace(ONE, folds=4))
    monkeypatch.setattr(Evidence, "is_better", True)  # whatever the folds say
    contenders = crossfitted(monkeypatch)
    problem = tiny_problem(request.getfixturevalue(kind))
    outcome = auto().fit(problem)
    ((contender,), best) = contenders, outcome.best
    held = contender.held_out
    scales = np.exp(np.linspace(-4, 4, 8001))
    rows = torch.arange(len(held.golds.classes))
    losses = [
        -float((scale * held.values).log_softmax(-1)[rows, held.golds.classes].mean()) + np.log(scale) ** 2 / 16
        for scale in scales
    ]
    temperature = scales[np.argmin(losses)]
    assert [id(prompt) for prompt in best.prompts] == [id(one.prompt) for one in contender.candidates]
    calibrations = []
    for found, one in zip(best.calibrations, contender.candidates, strict=True):
        own = one.calibration
        calibrations.append(Calibration(tuple(temperature * bias for bias in own.bias), temperature * own.scale))
        assert found.scale == pytest.approx(calibrations[-1].scale, rel=2e-3)
        assert found.bias == pytest.approx(calibrations[-1].bias, rel=2e-3)
    context = problem.pool.context
    expected = probabilities(problem.backbone, context, best.prompts, calibrations)
    with torch.no_grad():
        answered = best.logits(problem.backbone, context).double().softmax(-1)
    assert torch.allclose(answered, expected, atol=2e-3)
    own = outcome.words
    assert own.prompt.token_ids == problem.initial_ids
    assert own.calibration == starting_point(contender.trainings.whole, own.prompt.token_ids, FITTED).calibration


def test_only_one_prompt_ships_where_one_may(causal, monkeypatch):
    """It is trained once, on all examples."""
    planned(monkeypatch, ONE)
    monkeypatch.setattr(Evidence, "is_better", True)
    contenders = crossfitted(monkeypatch)
    problem = tiny_problem(causal)
    outcome = auto(prompts=1).fit(problem)
    (contender,) = contenders
    expected, _ = by_hand(contender.configuration, causal, problem.pool, contender.share)
    assert outcome.best.others == ()
    assert_same_prompt(outcome.best.prompt, expected)
    refits = [event for event in outcome.trace if "refit" in event]
    assert [event["step"] for event in refits] == list(range(5))
    folds = [event["fold"] for event in outcome.trace if "fold" in event]
    assert sorted(set(folds)) == [0, 1]


def test_other_label_words_are_taken_only_where_they_are_clearly_better(causal, monkeypatch):
    problem = tiny_problem(causal)
    folds = stratified_folds(problem.pool.labels, 2, 0)
    untrained = Untrained(problem, problem.pool, folds, replace(TINY, searches_words=True, cues=0))
    held = HeldOut(torch.full((8, 2), 0.5).log(), problem.pool.golds, (4, 4))

    def found(right):
        said = torch.full((8, 2), 1 - right).scatter(1, held.golds.classes[:, None], right)
        said[0] = torch.tensor([0.45, 0.55])  # where all differ by the same, there is nothing to judge by
        return replace(held, values=said.log())

    def own_task(*losses):
        answers = iter(losses)
        monkeypatch.setattr(Untrained, "held_out", lambda self, start: next(answers))
        return [start.has_own_task for start in untrained.starts()]

    other = {"negative": ("cold",), "positive": ("warm",)}
    monkeypatch.setattr(LabelWordSearch, "search", lambda self, own, *ids: replace(plain(self, own, *ids), words=other))
    assert own_task(held, found(0.9)) == [False]
    lucky = found(0.9)
    lucky.values[1:] = held.values[1:] - 0.01  # one example makes all the difference
    assert lucky.score.loss < held.score.loss
    assert own_task(held, lucky) == [True]


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
    marks, plain_judge, plain_starts = [], choice.judge, Untrained.starts
    lucky = Tried("words lucky", 0.01, 1.0, None, 2, 4, 0.1)

    def starts(self):
        found = plain_starts(self)
        self.tried.append(lucky)
        return found

    monkeypatch.setattr(untrained_module, "_SCREENED", 4)
    monkeypatch.setattr(Untrained, "starts", starts)
    monkeypatch.setattr(choice, "judge", lambda *asked: marks.append(asked[2]) or plain_judge(*asked))
    tried = auto().fit(tiny_problem(causal)).tried
    assert {row.rows for row in tried if row.name.startswith("words ")} == {4}
    assert [row.rows for row in tried] == sorted((row.rows for row in tried), reverse=True)
    assert marks == [max(row.score for row in tried if row.rows == len(TEXTS))]
    assert marks[0] < lucky.score


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
    assert artifact.manifest.metrics["held_out_accuracy"] == outcome.held_out.primary


def test_other_label_words_reach_the_artifact(causal, causal_folder, tmp_path):
    """A prompt found with other label words answers the same from its artifact."""
    problem = tiny_problem(causal)
    task = replace(problem.task, answers=make_task(words={"negative": "bad", "positive": "good"}).verbalizer)
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
        found = Untrained(problem, pool, stratified_folds(pool.labels, 2, 0), TINY).starts()
        assert (len(found) > 1) == leads


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


@pytest.mark.parametrize(
    ("key", "value", "name"), [("micro_f1", 0.375, "micro f1"), ("neg_mean_absolute_error", -0.375, "absolute error")]
)
def test_a_leaderboard_is_printed_with_the_name_of_its_score(key, value, name, capsys):
    _print_tried([{"name": "words", "loss": 0.5, key: value, "sd": None, "folds": 2, "rows": 8, "seconds": 1.0}])
    printed = " ".join(capsys.readouterr().out.split())
    assert name in printed
    assert " 0.375" in printed


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
    planned(monkeypatch, replace(TINY, searches_words=True))
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
    planned(monkeypatch, replace(TINY, searches_words=searches_words))
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
