"""Choice without labels: selectors and agreement against slow loops, calibrations, the pool and the search."""

import itertools
import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import cohen_kappa_score

from conftest import LABELS, LM_TEMPLATE, TEXTS, records, tiny_problem
from cuecraft import PromptClassifier
from cuecraft.backbone.rendering import Renderer
from cuecraft.data import Record
from cuecraft.errors import CuecraftWarning, DataError, LabelWordError, MethodError
from cuecraft.method import label_context
from cuecraft.prompts import HardPrompt, calibration
from cuecraft.prompts.calibration import dividing_offsets, matching_offsets
from cuecraft.search.label_free import LabelFreeSearch, Selector, TaskType, class_shares
from cuecraft.search.label_free.agreement import Agreement, agreement_of, distrust, pairwise_kappa
from cuecraft.search.label_free.pool import guess_task_type, read_cues, shipped_cues, tokenised
from cuecraft.search.label_free.selectors import (
    consensus,
    global_entropy,
    local_entropy,
    mutual_information,
    pseudo_label_agreement,
    pseudo_labels,
    recalibrated,
)
from cuecraft.search.vocabulary import allowed_tokens
from cuecraft.task import Example, Verbalizer
from cuecraft.tune.prepare import label_free_problem, label_free_task
from cuecraft.untuned import CONTENT_FREE

WORDS = {"negative": "bad", "positive": "good"}
TEXT_ONLY = [text for text, _ in TEXTS]


@st.composite
def tensors(draw):
    """Logits `[T, X, Y]` and shares `[Y]`."""
    prompts, texts, classes = (draw(st.integers(low, 6)) for low in (1, 1, 2))
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    logits = generator.normal(size=(prompts, texts, classes)) * draw(st.sampled_from([0.1, 1.0, 6.0]))
    return torch.tensor(logits), torch.tensor(generator.dirichlet(np.full(classes, 5.0)))


def slow_mutual_information(p, prior):
    classes = len(prior)
    return [math.log(classes) - entropy(row.mean(0), prior) - np.mean([entropy(x) for x in row]) for row in p]


def slow_global_entropy(p, prior):
    shares = [[np.mean([x.argmax() == c for x in row]) for c in range(len(prior))] for row in p]
    return [math.log(len(prior)) - entropy(share, prior) for share in shares]


@given(tensors())
@settings(deadline=None, max_examples=60)
def test_selectors_are_their_formulas_in_slow_loops(found):
    logits, prior = found
    p = logits.softmax(-1)
    plain, shares = p.numpy(), prior.numpy()
    uniform = torch.full_like(prior, 1 / len(prior))
    assert mutual_information(p, prior).numpy() == pytest.approx(slow_mutual_information(plain, shares), abs=1e-9)
    sorensen = [entropy(row.mean(0)) - np.mean([entropy(x) for x in row]) for row in plain]
    assert mutual_information(p, uniform).numpy() == pytest.approx(sorensen, abs=1e-9)
    assert global_entropy(p, prior).numpy() == pytest.approx(slow_global_entropy(plain, shares), abs=1e-9)
    assert local_entropy(p).numpy() == pytest.approx([np.mean([entropy(x) for x in row]) for row in plain], abs=1e-9)
    labels = torch.tensor([n % len(prior) for n in range(p.shape[1])])
    agreement = [np.mean([x.argmax() == c for x, c in zip(row, labels.tolist(), strict=True)]) for row in plain]
    assert pseudo_label_agreement(p, labels).numpy() == pytest.approx(agreement)
    half = np.array(agreement) >= sorted(agreement)[(len(agreement) - 1) // 2]
    information = mutual_information(p, prior).numpy()
    order = sorted(range(len(p)), key=lambda t: (not half[t], -information[t]))
    assert consensus(p, prior, labels).argsort(descending=True, stable=True).tolist() == order
    assert consensus(p, prior, labels).numpy()[half] == pytest.approx(information[half])


def slow_kappa(one, other, classes):
    if len({*one, *other}) == 1:
        return 0.0
    return cohen_kappa_score(one, other, labels=list(range(classes)))


@given(tensors())
@settings(deadline=None, max_examples=60)
def test_agreement_is_the_mean_of_cohens_kappa_over_pairs(found):
    logits, prior = found
    answers = logits.argmax(-1).tolist()
    expected = np.array([[slow_kappa(one, other, len(prior)) for other in answers] for one in answers])
    p = logits.softmax(-1)
    assert pairwise_kappa(p).numpy() == pytest.approx(expected, abs=1e-9)


@given(tensors())
@settings(deadline=None, max_examples=60)
def test_agreement_is_of_the_half_that_agrees_most_and_of_the_chosen_with_all(found):
    logits, prior = found
    if len(logits) < 2:
        assert agreement_of(logits, prior, 0) is None
        return
    chosen, means, lowest = len(logits) - 1, [], []
    for shares in (prior, torch.full_like(prior, 1 / len(prior))):
        p = recalibrated(logits, matching_offsets(logits, shares))
        answers, labels = p.argmax(-1).tolist(), pseudo_labels(p, shares).tolist()
        right = [sum(a == b for a, b in zip(row, labels, strict=True)) for row in answers]
        half = [row for row, count in zip(answers, right, strict=True) if count >= sorted(right)[(len(right) - 1) // 2]]
        means.append(np.mean([slow_kappa(*pair, len(prior)) for pair in itertools.combinations(half, 2)]))
        lowest += [slow_kappa(answers[chosen], row, len(prior)) for n, row in enumerate(answers) if n != chosen]
    found = agreement_of(logits, prior, chosen)
    assert found.mean == pytest.approx(max(means), abs=1e-9)
    assert found.lowest == pytest.approx(min(lowest), abs=1e-9)


@given(tensors(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_order_of_prompts_texts_and_classes_means_nothing(found, random):
    logits, prior = found
    orders = [random.sample(range(size), size) for size in logits.shape]
    other = logits[orders[0]][:, orders[1]][..., orders[2]]
    for offsets in (dividing_offsets, matching_offsets):
        p = recalibrated(logits, offsets(logits, prior))
        q = recalibrated(other, offsets(other, prior[orders[2]]))
        assert torch.allclose(q, p[orders[0]][:, orders[1]][..., orders[2]], atol=1e-6)
    p, q, shuffled = logits.softmax(-1), other.softmax(-1), prior[orders[2]]
    for selector in (mutual_information, global_entropy):
        assert torch.allclose(selector(q, shuffled), selector(p, prior)[orders[0]])
    assert torch.allclose(local_entropy(q), local_entropy(p)[orders[0]])
    labels = pseudo_labels(p, prior)[orders[1]]
    joined = p.log().sum(0)
    top = (joined + matching_offsets(joined, prior))[orders[1]].topk(2).values
    for place, label in enumerate(pseudo_labels(q, shuffled).tolist()):
        assert orders[2][label] == labels[place] or float(top[place, 0] - top[place, 1]) < 1e-6


@given(tensors())
@settings(deadline=None, max_examples=40)
def test_dividing_by_the_marginal_is_the_formula_and_matching_is_its_fixed_point(found):
    logits, prior = found
    p = logits.softmax(-1).numpy()
    for t, row in enumerate(p):
        divided = row / (row.mean(0) / prior.numpy())
        expected = divided / divided.sum(1, keepdims=True)
        assert recalibrated(logits, dividing_offsets(logits, prior))[t].numpy() == pytest.approx(expected, abs=1e-9)
        assert calibration.batch(logits[t]).bias == pytest.approx(dividing_offsets(logits)[t].tolist())
    matched = recalibrated(logits, matching_offsets(logits, prior))
    assert torch.allclose(matched.mean(1), prior.expand(len(logits), -1), atol=1e-5)
    again = dividing_offsets(logits + matching_offsets(logits, prior).unsqueeze(1), prior)
    assert float(again.abs().max()) < 1e-4


def planted(classes, seed, strengths, shares=None):
    """Logits of prompts that know the truth more or less, each with a liking of its own for some class."""
    generator = np.random.default_rng(seed)
    truth = generator.choice(classes, size=300, p=shares)
    signal = np.eye(classes)[truth]
    noise = generator.normal(size=(len(strengths), 300, classes))
    liking = generator.normal(size=(len(strengths), 1, classes)) * 2
    return torch.tensor(np.array(strengths)[:, None, None] * signal + noise + liking), torch.tensor(truth)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("place", [0, 3, 11])
def test_the_one_prompt_that_knows_is_found_among_those_that_know_a_little(classes, place):
    strengths = [0.6] * 12
    strengths[place] = 3.0
    logits, truth = planted(classes, place, strengths)
    prior = torch.full((classes,), 1 / classes, dtype=torch.float64)
    p = recalibrated(logits, dividing_offsets(logits, prior))
    agreement = pseudo_label_agreement(p, pseudo_labels(p, prior))
    accuracy = (p.argmax(-1) == truth).double().mean(1)
    assert int(accuracy.argmax()) == place
    assert int(agreement.argmax()) == place
    assert int(consensus(p, prior, pseudo_labels(p, prior)).argmax()) == place


def test_with_the_true_shares_pseudo_labels_of_skewed_classes_are_better():
    shares = [0.9, 0.1]
    logits, truth = planted(2, 5, [1.0] * 15, shares)
    right = {}
    for name, prior in (("equal", [0.5, 0.5]), ("true", shares)):
        prior = torch.tensor(prior, dtype=torch.float64)
        p = recalibrated(logits, matching_offsets(logits, prior))
        right[name] = float((pseudo_labels(p, prior) == truth).double().mean())
    assert right["true"] > right["equal"] + 0.1


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.9, 0.1], [1 / 6] * 6], ids=str)
def test_agreement_is_zero_of_chance_and_one_of_copies_and_rises_with_what_prompts_know(shares):
    # As many prompts that know nothing as there are others: they are not in the half that is looked at.
    strengths = {"chance": [0.0] * 12, "a little": [1.0] * 12, "much": [6.0] * 12, "half": [6.0] * 7 + [0.0] * 6}
    logits = {name: planted(len(shares), 1, own, shares)[0] for name, own in strengths.items()}
    prior = torch.tensor(shares, dtype=torch.float64)
    found = {name: agreement_of(own, prior, 0).mean for name, own in logits.items()}
    assert found["chance"] == pytest.approx(0, abs=0.06)
    assert 0.06 < found["a little"] < 0.4
    assert found["half"] > 0.8
    assert found["much"] > 0.8
    copies = logits["chance"][:1].expand(5, -1, -1)
    assert agreement_of(copies, prior, 2) == Agreement(pytest.approx(1), pytest.approx(1))
    assert agreement_of(torch.zeros(3, 9, len(shares), dtype=torch.float64), prior, 0) == Agreement(0, 0)


def test_one_prompt_with_swapped_classes_lowers_the_lowest_agreement_alone():
    logits, _ = planted(2, 1, [6.0] * 12)
    prior = torch.tensor([0.5, 0.5], dtype=torch.float64)
    swapped = torch.cat([logits, logits[:1].flip(-1)])
    found = agreement_of(swapped, prior, 3)
    assert found.mean > 0.8
    assert found.lowest < -0.8
    assert "classes swapped" in distrust(found)
    assert distrust(agreement_of(logits, prior, 3)) is None


def test_unsure_prompts_agree_about_rare_classes_though_all_predict_the_common_one():
    # A liking of a class that all texts have in common, and one noise for all prompts with little of their own.
    generator = np.random.default_rng(3)
    common = generator.normal(size=(1, 200, 2)) * 0.2
    logits = torch.tensor(common + generator.normal(size=(10, 200, 2)) * 0.05)
    prior = torch.tensor([0.95, 0.05], dtype=torch.float64)
    assert recalibrated(logits, matching_offsets(logits, prior)).argmax(-1).unique().tolist() == [0]
    assert agreement_of(logits, prior, 0).mean > 0.7


def test_distrust_ends_above_half_and_begins_again_with_swapped_classes():
    assert "mean kappa 0.50, not above 0.50" in distrust(Agreement(0.5, 0.5))
    assert "mean kappa -0.10" in distrust(Agreement(-0.1, -0.9))
    assert "classes swapped (kappa -0.50): do not trust this choice" in distrust(Agreement(0.9, -0.5))
    assert "only one cue was read" in distrust(None)
    for agreement in (None, Agreement(0.2, 0), Agreement(0.9, -1)):
        assert "label 16 texts of each class or more" in distrust(agreement)
        assert "--method auto" in distrust(agreement)
    assert distrust(Agreement(0.501, -0.499)) is None


def test_a_prompt_that_always_answers_alike_has_no_mutual_information_however_sure_it_is():
    p = torch.tensor([[[1.0, 0.0]] * 4, [[0.9, 0.1], [0.1, 0.9]] * 2], dtype=torch.float64)
    scores = mutual_information(p, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert float(scores[0]) == pytest.approx(0)
    assert float(scores[1]) > 0.3


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
    problems = [plain, *(replace(plain, train=replace(plain.train, labels=found)) for found in (labels, 1 - labels))]
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
    assert isinstance(loaded.prompt_, HardPrompt)
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
    assert not problem.train.is_labelled
    assert tiny_problem(causal).train.is_labelled
