"""Choice without labels: the pool of cues and the search."""

import itertools
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import LABELS, LM_TEMPLATE, TEXTS, golds_of, records, tiny_problem
from cuecraft import PromptClassifier
from cuecraft.core.errors import CuecraftWarning, DataError, LabelWordError, MethodError
from cuecraft.data import Record
from cuecraft.methods.prepare import label_free_problem, label_free_task
from cuecraft.methods.problem import label_context
from cuecraft.methods.search.label_free import LabelFreeSearch, Selector, TaskType, class_shares
from cuecraft.methods.search.label_free.answers import Agreement, pseudo_label_agreement, pseudo_labels
from cuecraft.methods.search.label_free.pool import guess_task_type, read_cues, shipped_cues, tokenised
from cuecraft.methods.search.vocabulary import allowed_tokens
from cuecraft.methods.untuned import CONTENT_FREE
from cuecraft.task import Example, Verbalizer
from cuecraft.task.rendering import Renderer
from test_label_free_selectors import slow_kappa, slow_mutual_information

WORDS = {"negative": "bad", "positive": "good"}
TEXT_ONLY = [text for text, _ in TEXTS]
TYPES = [kind for kind in TaskType if kind is not TaskType.AUTO]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("tokenizer", ["byte_tokenizer", "word_tokenizer"])
def test_every_type_has_two_dozen_cues_that_differ_in_their_tokens(kind, tokenizer, request):
    verbalizer = Verbalizer.from_labels(["good", "bad", "dull"])
    cues = shipped_cues(kind, verbalizer, 0, 0)
    assert len(tokenised(request.getfixturevalue(tokenizer), cues)) >= 24
    for cue in shipped_cues(kind, verbalizer, 1000, 0):
        assert not set("[]|{}") & set(cue)
        assert cue[0] in " \n"
        assert cue == cue.rstrip()
    assert any("good, bad, dull" in cue for cue in cues)
    assert any("good, bad or dull" in cue for cue in cues)


def test_variants_are_new_drawn_by_seed_and_as_many_as_asked():
    verbalizer = Verbalizer.from_labels(LABELS)
    plain = shipped_cues(TaskType.SENTIMENT, verbalizer, 0, 0)
    drawn = [shipped_cues(TaskType.SENTIMENT, verbalizer, 8, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for cues in drawn:
        assert cues[: len(plain)] == plain
        assert len(set(cues)) == len(cues) == len(plain) + 8


@pytest.mark.parametrize(
    ("labels", "words", "kind"),
    [
        (["negative", "positive"], None, "sentiment"),
        (["0", "1"], {"0": "terrible", "1": "great"}, "sentiment"),
        (["world", "sports", "business", "gardening"], None, "topic"),
        (["human", "location", "number", "other"], None, "question"),
        (["normal", "anomaly"], None, "log"),
        (["ham", "spam"], None, "safety"),
        (["refund_request", "cancel_order", "other"], None, "intent"),
        (["alpha", "beta", "gamma"], None, "general"),
        (["positive", "alpha", "beta"], None, "general"),
    ],
)
def test_the_type_is_guessed_from_label_words(labels, words, kind):
    assert guess_task_type(Verbalizer.from_labels(labels, words)) == kind


def test_cues_of_a_file(tmp_path):
    path = tmp_path / "cues.txt"
    path.write_text("It was\n\n\\nVerdict: \n  two spaces\n")
    assert read_cues(path) == [" It was", "\nVerdict:", "  two spaces"]
    path.write_text("\n \n")
    with pytest.raises(DataError, match="holds no cue"):
        read_cues(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not readable as UTF-8"):
        read_cues(path)
    with pytest.raises(DataError, match="no such file"):
        read_cues(tmp_path / "nowhere.txt")


def problem_of(backbone, texts=TEXT_ONLY, template=LM_TEMPLATE, **options):
    rows = [Record({"text": text}) for text in texts]
    task = label_free_task(backbone, rows, LABELS, template, WORDS, prompt_length=90)
    return label_free_problem(backbone, task, rows, **options)


@pytest.fixture(scope="module", params=["causal", "masked"])
def searched(request):
    backbone = request.getfixturevalue(request.param)
    template = LM_TEMPLATE if request.param == "causal" else LM_TEMPLATE + "."
    problem = problem_of(backbone, template=template)
    return problem, LabelFreeSearch(prior=(0.7, 0.3)).fit(problem)


def test_the_leaderboard_holds_true_scores_and_its_first_cue_is_the_outcome(searched):
    problem, outcome = searched
    rows = outcome.leaderboard
    prior = torch.tensor([0.7, 0.3], dtype=torch.float64)
    p = []
    for row in rows:
        # Each cue read alone, and its calibration as an artifact applies it.
        fresh = label_context(problem.backbone, problem.task, [Example({"text": text}) for text in TEXT_ONLY])
        p.append(row.candidate.logits(problem.backbone, fresh.context).double().softmax(-1))
        assert row.candidate.prompt.text(problem.backbone.tokenizer) == row.cue
    p = torch.stack(p).detach()
    scores = {name: [row.scores[name] for row in rows] for name in rows[0].scores}
    assert set(scores) == set(Selector)
    assert scores["mutual-information"] == pytest.approx(slow_mutual_information(p.numpy(), prior.numpy()), abs=1e-4)
    agreement = pseudo_label_agreement(p, pseudo_labels(p, prior))
    assert scores["pseudo-labels"] == pytest.approx(agreement.tolist())
    middle = sorted(scores["pseudo-labels"])[(len(rows) - 1) // 2]
    agreeing = [row for row in rows if row.scores["pseudo-labels"] >= middle]
    assert outcome.leaderboard[0].scores["mutual-information"] == max(r.scores["mutual-information"] for r in agreeing)
    assert list(rows[: len(agreeing)]) == agreeing
    assert [row.rank for row in rows] == list(range(1, len(rows) + 1))
    assert scores["consensus"] == sorted(scores["consensus"], reverse=True)
    assert outcome.best is rows[0].candidate
    assert len(rows) >= 24
    assert problem.initial_ids in [row.token_ids for row in rows]
    assert outcome.start.prompt.token_ids == problem.initial_ids
    assert json.loads(json.dumps(outcome.trace, allow_nan=False)) == outcome.trace


def test_cues_of_a_model_that_knows_nothing_are_not_to_be_trusted(causal):
    problem = problem_of(causal)
    with pytest.warns(CuecraftWarning, match="agree little .* do not trust this choice; label 16 texts") as heard:
        outcome = LabelFreeSearch().fit(problem)
    assert len(heard) == 1
    middle = sorted(row.scores["pseudo-labels"] for row in outcome.leaderboard)[(len(outcome.leaderboard) - 1) // 2]
    half = [row.candidate for row in outcome.leaderboard if row.scores["pseudo-labels"] >= middle]
    answers = [candidate.logits(causal, problem.train.context).argmax(-1).tolist() for candidate in half]
    kappas = [slow_kappa(one, other, 2) for one, other in itertools.combinations(answers, 2)]
    assert outcome.agreement.mean == pytest.approx(np.mean(kappas), abs=1e-9)
    chosen, *others = [
        row.candidate.logits(causal, problem.train.context).argmax(-1).tolist() for row in outcome.leaderboard
    ]
    assert outcome.agreement.lowest == pytest.approx(min(slow_kappa(chosen, row, 2) for row in others), abs=1e-9)
    own = outcome.agreement
    assert outcome.figures == {"cue_agreement": own.mean, "lowest_cue_agreement": own.lowest}
    assert f"mean kappa {own.mean:.2f}" in str(heard[0].message)
    other = LabelFreeSearch(calibration="none", mutations=1).fit(problem)
    assert other.agreement.mean == outcome.agreement.mean


def test_cues_that_agree_raise_no_warning(causal, agreeing):
    with warnings.catch_warnings():
        warnings.simplefilter("error", CuecraftWarning)
        outcome = LabelFreeSearch().fit(problem_of(causal))
    assert outcome.agreement == Agreement(pytest.approx(1), pytest.approx(1))


def test_labels_are_not_read(causal):
    plain = problem_of(causal)
    labels = torch.tensor([0, 1] * 4)
    problems = [
        plain,
        *(replace(plain, train=replace(plain.train, golds=golds_of(found))) for found in (labels, 1 - labels)),
    ]
    traces = [LabelFreeSearch(mutations=2).fit(problem).trace for problem in problems]
    assert traces[0] == traces[1] == traces[2]


@pytest.mark.parametrize("kind", ["contextual", "pmi"])
def test_content_free_calibrations_make_the_content_free_answer_the_prior(causal, kind):
    problem = problem_of(causal)
    outcome = LabelFreeSearch(calibration=kind, prior=(0.8, 0.2)).fit(problem)
    texts = CONTENT_FREE if kind == "contextual" else ["text"]
    context = causal.context([Example({"text": text}) for text in texts], problem.task)
    for row in outcome.leaderboard[:5]:
        plain = causal.class_logits(context, row.candidate.prompt).detach().double().softmax(-1).mean(0)
        shifted = plain.log() + torch.tensor(row.candidate.calibration.bias)
        assert shifted.softmax(-1).tolist() == pytest.approx([0.8, 0.2], abs=1e-5)


def test_no_calibration_and_perplexity(causal):
    outcome = LabelFreeSearch(calibration="none", selector="perplexity").fit(problem_of(causal))
    assert outcome.best.calibration.bias == (0.0, 0.0)
    # The likelihood of the first cue's tokens behind each text, from plain passes over the whole vocabulary.
    ids = outcome.leaderboard[0].token_ids
    found = []
    for text in TEXT_ONLY:
        before = causal.tokenizer(text)["input_ids"]
        logits = causal.model(torch.tensor([[*before, *ids]])).logits[0].double().log_softmax(-1)
        found += [float(logits[len(before) + n - 1, token]) for n, token in enumerate(ids)]
    assert outcome.leaderboard[0].scores["perplexity"] == pytest.approx(-np.exp(-np.mean(found)), rel=1e-4)


def test_a_template_without_words_still_has_its_untuned_prompt(causal):
    outcome = LabelFreeSearch().fit(problem_of(causal, template="{text}{prompt}{mask}"))
    row = next(row for row in outcome.leaderboard if not row.token_ids)
    assert row.scores["perplexity"] is None
    assert outcome.start.prompt.token_ids == ()


def test_own_cues_are_tried_beside_the_shipped_ones(causal, tmp_path):
    (tmp_path / "cues.txt").write_text("was it good or bad\n")
    search = LabelFreeSearch(pool_file=tmp_path / "cues.txt", variants=0)
    plain = LabelFreeSearch(variants=0).fit(problem_of(causal)).leaderboard
    found = search.fit(problem_of(causal)).leaderboard
    assert {row.cue for row in found} - {row.cue for row in plain} == {" was it good or bad"}
    (tmp_path / "cues.txt").write_text("Ġit Ġwas\n")
    with pytest.raises(DataError, match=r"cue 'Ġit Ġwas' is tokens .* write 'it was'"):
        search.fit(problem_of(causal))


@pytest.mark.parametrize("selector", ["mutual-information", "consensus"])
def test_mutations_are_single_allowed_swaps_kept_where_the_score_rises(causal, selector):
    problem = problem_of(causal)
    plain = LabelFreeSearch(selector=selector, variants=0).fit(problem)
    outcome = LabelFreeSearch(selector=selector, variants=0, mutations=8, candidates=12).fit(problem)
    events = [event for event in outcome.trace if event["phase"] == "label-free-mutation"]
    assert len(events) == 8
    accepted = [event for event in events if event["accepted"]]
    assert accepted, "no swap was kept, so this test shows nothing"
    new = [row for row in outcome.leaderboard if row.token_ids not in {r.token_ids for r in plain.leaderboard}]
    assert len(new) == 1
    origin = plain.leaderboard[0].token_ids
    changed = [n for n, (a, b) in enumerate(zip(origin, new[0].token_ids, strict=True)) if a != b]
    assert set(changed) <= {event["position"] for event in accepted}
    assert changed
    allowed = allowed_tokens(causal, problem.task)
    assert all(allowed[new[0].token_ids[n]] for n in changed)
    if selector == "mutual-information":
        assert outcome.best is new[0].candidate
        assert new[0].scores[selector] > plain.leaderboard[0].scores[selector]
    again = LabelFreeSearch(selector=selector, variants=0, mutations=8, candidates=12).fit(problem)
    assert again.trace == outcome.trace


def test_no_mutation_is_kept_whose_text_gives_other_tokens(causal, monkeypatch):
    monkeypatch.setattr(Renderer, "gives_back", lambda self, prompts: [False] * len(prompts))
    search = LabelFreeSearch(selector="mutual-information", variants=0, mutations=8, candidates=12)
    outcome = search.fit(problem_of(causal))
    assert [row.token_ids for row in outcome.leaderboard] == [
        row.token_ids for row in search.model_copy(update={"mutations": 0}).fit(problem_of(causal)).leaderboard
    ]


def test_the_search_stops_in_time_with_the_texts_read_so_far(causal):
    texts = [f"{a} {b}" for a, b in itertools.product(TEXT_ONLY, repeat=2)] + TEXT_ONLY * 3
    heard = []
    problem = replace(problem_of(causal, texts, report=heard.append), out_of_time=lambda reserve=0.0: True)
    outcome = LabelFreeSearch(variants=0, mutations=3).fit(problem)
    assert outcome.texts == 64 < len(texts)
    assert [(event["step"], event["total"]) for event in heard] == [(64, len(texts))]
    whole = LabelFreeSearch(variants=0).fit(problem_of(causal, texts[:64]))
    assert outcome.leaderboard[0].cue == whole.leaderboard[0].cue


def test_a_sequence_backbone_is_refused(sequence):
    with pytest.raises(MethodError, match="needs a causal or masked language model"):
        PromptClassifier(sequence, template="{prompt}{text}").fit_unlabeled(TEXT_ONLY, LABELS)


def test_shares_by_class_or_in_order():
    assert class_shares({"b": 0.25, "a": 0.75}, ["a", "b"]) == (0.75, 0.25)
    assert class_shares({1: 0.25, 0: 0.75}, ["0", "1"]) == (0.75, 0.25)
    assert class_shares([0.5, 0.5], ["a", "b"]) == (0.5, 0.5)
    with pytest.raises(DataError, match="names class 'c'"):
        class_shares({"a": 0.5, "c": 0.5}, ["a", "b"])
    with pytest.raises(DataError, match="no share for class 'b'"):
        class_shares({"a": 1.0}, ["a", "b"])


def test_the_classifier_without_labels(causal, tmp_path):
    with pytest.raises(LabelWordError, match="label word '##ing' is a token"):
        PromptClassifier(causal, label_words={1: "##ing", 0: "bad"}).fit_unlabeled(TEXT_ONLY)
    classifier = PromptClassifier(causal, label_words={1: "good", 0: "bad"}, template=LM_TEMPLATE, seed=3)
    classifier.set_params(method_options={"max_texts": 6, "calibration": "matched"})
    found = classifier.fit_unlabeled(TEXT_ONLY, prior={0: 0.25, 1: 0.75})
    assert found is classifier
    assert classifier.classes_.tolist() == [1, 0]
    assert classifier.outcome_.texts == 6
    manifest = classifier.artifact_.manifest
    assert manifest.method == "label-free"
    assert manifest.metrics == classifier.outcome_.figures
    assert set(manifest.metrics) == {"cue_agreement", "lowest_cue_agreement"}
    assert {name: entry.rows for name, entry in manifest.data.items()} == {"unlabelled": 6}
    assert manifest.method_options["prior"] == [0.75, 0.25]
    classifier.save(tmp_path / "artifact")
    loaded = PromptClassifier.load(tmp_path / "artifact", causal)
    assert np.array_equal(loaded.predict_proba(TEXT_ONLY), classifier.predict_proba(TEXT_ONLY))
    assert loaded.prompt_.kind == "hard"
    truth = [label for _, label in TEXTS]
    assert classifier.accuracies(TEXT_ONLY, truth)["tuned"] == classifier.score(TEXT_ONLY, truth)


def test_matched_probabilities_of_the_texts_that_chose_have_the_prior_as_their_mean(causal):
    options = {"calibration": "matched"}
    classifier = PromptClassifier(causal, label_words=WORDS, template=LM_TEMPLATE, method_options=options)
    classifier.fit_unlabeled(TEXT_ONLY, prior=[0.9, 0.1])
    assert classifier.predict_proba(TEXT_ONLY).mean(0).tolist() == pytest.approx([0.9, 0.1], abs=1e-4)


def test_labelled_records_lose_their_labels(causal):
    task = label_free_task(causal, records(), LABELS, LM_TEMPLATE, WORDS)
    problem = label_free_problem(causal, task, records())
    assert problem.train.labels.tolist() == [-1] * 8
    assert not problem.train.golds.are_known
    assert tiny_problem(causal).train.golds.are_known
