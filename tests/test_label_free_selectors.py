"""Choice without labels: selectors and agreement against slow loops, and calibrations of what prompts answer."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import cohen_kappa_score

from conftest import examples
from cuecraft.artifact import calibration
from cuecraft.artifact.calibration import dividing_offsets, matching_offsets
from cuecraft.methods.search.label_free.answers import (
    Agreement,
    agreement_of,
    consensus,
    distrust,
    global_entropy,
    local_entropy,
    mutual_information,
    pairwise_kappa,
    pseudo_label_agreement,
    pseudo_labels,
    recalibrated,
)


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
@examples(60)
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
@examples(60)
def test_agreement_is_the_mean_of_cohens_kappa_over_pairs(found):
    logits, prior = found
    answers = logits.argmax(-1).tolist()
    expected = np.array([[slow_kappa(one, other, len(prior)) for other in answers] for one in answers])
    p = logits.softmax(-1)
    assert pairwise_kappa(p).numpy() == pytest.approx(expected, abs=1e-9)


@given(tensors())
@examples(60)
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
@examples(40)
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
@examples(40)
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
        assert "the method auto" in distrust(agreement)
    assert distrust(Agreement(0.501, -0.499)) is None


def test_a_prompt_that_always_answers_alike_has_no_mutual_information_however_sure_it_is():
    p = torch.tensor([[[1.0, 0.0]] * 4, [[0.9, 0.1], [0.1, 0.9]] * 2], dtype=torch.float64)
    scores = mutual_information(p, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert float(scores[0]) == pytest.approx(0)
    assert float(scores[1]) > 0.3
