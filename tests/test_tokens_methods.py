"""Methods on labels of words: models that are refused, reading at first tokens, heads, gradients, resuming."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from conftest import LM_TEMPLATE
from cuecraft.artifact import DeepCue, HardPrompt, PrefixPrompt, SoftPrompt, load_artifact
from cuecraft.artifact.predictor import Predictor
from cuecraft.backbone import Budget, ClassHead
from cuecraft.backbone.columns import in_context
from cuecraft.backbone.encoder import Pooling
from cuecraft.core.checkpoints import Checkpoints, Keeping
from cuecraft.core.errors import (
    BackboneError,
    CuecraftWarning,
    DataError,
    MethodError,
    TemplateError,
)
from cuecraft.data import Record
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.objectives import Golds, objective_of
from cuecraft.methods.registry import METHODS, make_method
from cuecraft.serving.artifacts import Shelf
from cuecraft.serving.engine import Engine
from cuecraft.task import Task, Template
from cuecraft.task.alignment import CUT, words_of
from cuecraft.task.answers.tokens import TokenLabels
from token_labels import LABELLED, SPACE, TASK, problem_of, rows_of, values_of

# What cannot be read.


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([("film", 0, 3), ("mood", 2, 5)], "the span 2 to 5 of label 'mood' overlaps the span 0 to 3 of label 'film'"),
        ([("film", 4, 40)], "the span 4 to 40 of label 'film' is not within the text, which has 8 characters"),
        ([("film", -1, 2)], "the span -1 to 2 of label 'film' is not within the text"),
        ([("film", 2, 2)], "the span 2 to 2 of label 'film' has no characters"),
        ([("film", 5, 3)], "the span 5 to 3 of label 'film' has no characters"),
        ([("film", 3, 4)], "the span 3 to 4 of label 'film' has no word in it"),
        ([("actor", 0, 3)], "label 'actor', which is not one of the task's"),
        ("film", "label 'film' is no list of spans"),
        ([("film", 0)], "is no list of spans"),
    ],
)
def test_spans_that_cannot_be_are_named_in_one_line(spans, message):
    with pytest.raises(DataError, match=message) as caught:
        TASK.examples([Record({"text": "the plot"}, spans)])
    assert str(caught.value).startswith("row 1: ")
    assert "\n" not in str(caught.value)


def test_no_labels_at_all_are_refused():
    with pytest.raises(DataError, match="no text has a labelled span"):
        TokenLabels(())


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_language_heads_are_refused(kind, request):
    backbone = request.getfixturevalue(kind)
    task = Task(Template(LM_TEMPLATE), SPACE)
    with pytest.raises(BackboneError, match="a causal model has not read what stands behind a word") as caught:
        backbone.context(task.examples(rows_of()), task)
    assert "head=sequence" in str(caught.value)


def test_decoders_are_refused(sequence, monkeypatch):
    monkeypatch.setattr(sequence, "pooling", Pooling.LAST)
    with pytest.raises(BackboneError, match="is a decoder, which has not read what stands behind a word"):
        sequence.renderer(TASK)


def test_a_slow_tokenizer_is_refused(sequence, monkeypatch):
    class Slow:
        is_fast = False

    monkeypatch.setattr(sequence, "tokenizer", Slow())
    with pytest.raises(BackboneError, match="does not say where its tokens stand"):
        sequence.renderer(TASK)


def test_an_answer_slot_is_refused(sequence):
    with pytest.raises(TemplateError, match=r"remove \{mask\}"):
        sequence.renderer(Task(Template("{prompt}{text}{mask}"), SPACE))


def test_the_field_of_several_has_to_be_named(sequence):
    template = Template("{prompt}{title}: {text}")
    with pytest.raises(DataError, match="name the field"):
        sequence.renderer(Task(template, SPACE))
    sequence.renderer(Task(template, TokenLabels(SPACE.labels, "text")))


# Reading: a plain forward pass is the oracle.


def head_of(backbone, seed=0, words=1):
    generator = torch.Generator().manual_seed(seed)
    rows = SPACE.head_rows
    return ClassHead(
        torch.randn(rows, words * backbone.hidden_size, generator=generator), torch.randn(rows, generator=generator)
    )


def plain_values(backbone, task, records, cue, head):
    """Return values of each text: one text a pass, its whole ids, hidden states at first tokens, times the head."""
    tokenizer, found = backbone.tokenizer, []
    for record in records:
        text = record.fields["text"]
        front = "" if task.template.source == "{prompt}{text}" else "say:"
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        before = tokenizer(front, add_special_tokens=False)["input_ids"]
        ids = [tokenizer.cls_token_id, *cue, *before, *encoded["input_ids"], tokenizer.sep_token_id]
        with torch.no_grad():
            layers = backbone.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1:]
        first = 1 + len(cue) + len(before)
        places = [
            first + next(n for n, (start, stop) in enumerate(encoded["offset_mapping"]) if start < b and stop > a)
            for a, b in words_of(text)
        ]
        if task.answers.reading == "word":
            read = layers[-1][0, places]
        else:
            own = torch.stack(
                [layer[0, places] / layer[0, places].pow(2).mean(-1, keepdim=True).sqrt() for layer in layers]
            )
            own = torch.cat([torch.zeros(1, own.shape[-1]), own.mean(0), torch.zeros(1, own.shape[-1])])
            read = torch.cat([own[1:-1], own[:-2], own[2:]], dim=-1)
        found.append((read @ head.weight.T + head.bias).flatten())
    return found


@pytest.mark.parametrize("source", ["{prompt}{text}", "{prompt}say:{text}"])
@pytest.mark.parametrize("tokens", [30, 10**6])
@pytest.mark.parametrize("reading", ["word", "context"])
@torch.no_grad()
def test_values_equal_the_plain_forward(sequence, source, tokens, reading, monkeypatch):
    monkeypatch.setattr(sequence, "budget", Budget(tokens=tokens, bytes=2**30))
    task = Task(Template(source), replace(SPACE, reading=reading))
    head, cue = head_of(sequence, words=3 if reading == "context" else 1), (20, 21, 22)
    context = sequence.context(task.examples(rows_of()), task)
    expected = plain_values(sequence, task, rows_of(), cue, head)
    prompt = HardPrompt(cue, head)
    found = sequence.class_logits(context, prompt)
    features = sequence.features(context, prompt)
    by_head = objective_of(SPACE).by_head(features, head)
    mixed = sequence.mixed_logits([(sequence.ready(prompt, task), piece) for piece in context.pieces])
    assert found.shape == (len(expected), max(map(len, expected)))
    for row, own in enumerate(expected):
        assert torch.allclose(found[row, : len(own)], own, atol=1e-5)
        assert bool(found[row, len(own) :].isneginf().all())
        assert torch.allclose(by_head[row, : len(own)], own, atol=1e-5)
        assert torch.allclose(mixed[row], own, atol=1e-5)
    assert torch.equal(by_head.isneginf(), found.isneginf())
    twice = sequence.class_logits_each(
        [(context.select([0, 1, 2]), prompt), (context.select([3, 4]), HardPrompt((30,), head))]
    )
    assert torch.allclose(twice[0][:, : len(expected[0])][0], expected[0], atol=1e-5)
    alone = plain_values(sequence, task, rows_of()[3:5], (30,), head)
    assert torch.allclose(twice[1][1, : len(alone[1])], alone[1], atol=1e-5)


@torch.no_grad()
def test_prompts_of_every_kind_are_read_at_words(sequence):
    """Deep cues and prefixes of zeros or real words are the prompts that they stand for."""
    head, cue = head_of(sequence), (20, 21, 22)
    context = sequence.context(TASK.examples(rows_of()), TASK)
    plain = sequence.class_logits(context, HardPrompt(cue, head))
    vectors = sequence.embed(torch.tensor(cue))
    deep = DeepCue(HardPrompt(cue, head), torch.zeros(sequence.offsets_shape(3)))
    moved = DeepCue(HardPrompt(cue, head), torch.full(sequence.offsets_shape(3), 0.1))
    prefixed = PrefixPrompt(HardPrompt(cue, head), torch.randn(sequence.states_shape(2)))
    for prompt in (SoftPrompt(vectors, head), deep):
        assert torch.allclose(sequence.class_logits(context, prompt), plain, atol=1e-5)
    for prompt in (moved, prefixed):
        found = sequence.class_logits(context, prompt)
        assert torch.equal(found.isneginf(), plain.isneginf())
        assert float((found - plain)[~plain.isneginf()].abs().max()) > 1e-3
        together = sequence.class_logits_many(context, [prompt, HardPrompt(cue, head)])
        assert torch.allclose(together[0], found, atol=1e-5)
        rows = [(sequence.ready(prompt, TASK), piece) for piece in context.pieces]
        for own, row in zip(sequence.mixed_logits(rows), found, strict=True):
            assert torch.allclose(own, row[: len(own)], atol=1e-5)


@torch.no_grad()
def test_rows_of_labels_and_of_tokens_share_a_batch(sequence):
    from conftest import make_examples, make_task

    other = make_task("{prompt}{text}")
    labels = HardPrompt((20,), ClassHead(torch.randn(2, 32), torch.randn(2)))
    pieces = sequence.context(make_examples(), other).pieces
    own = sequence.context(TASK.examples(rows_of()), TASK)
    prompt = HardPrompt((21, 22), head_of(sequence))
    rows = [
        row
        for pair in zip(
            [(sequence.ready(labels, other), piece) for piece in pieces],
            [(sequence.ready(prompt, TASK), piece) for piece in own.pieces],
            strict=True,
        )
        for row in pair
    ]
    found = sequence.mixed_logits(rows)
    expected = sequence.class_logits(sequence.context(make_examples(), other), labels)
    values = sequence.class_logits(own, prompt)
    for row in range(len(pieces)):
        assert torch.allclose(found[2 * row], expected[row], atol=1e-5)
        assert torch.allclose(found[2 * row + 1], values[row, : len(found[2 * row + 1])], atol=1e-5)


@torch.no_grad()
def test_words_that_are_read_in_two_ways_share_a_batch(sequence):
    """As where an artifact of before, whose task says nothing of the reading, is served with one of today."""
    tasks = {own: replace(TASK, answers=replace(SPACE, reading=own)) for own in ("word", "context")}
    prompts = {own: HardPrompt((20,), head_of(sequence, words=1 + 2 * (own == "context"))) for own in tasks}
    pieces = {own: sequence.context(task.examples(rows_of()), task).pieces for own, task in tasks.items()}
    rows = [(sequence.ready(prompts[own], tasks[own]), pieces[own][n]) for n in range(3) for own in tasks]
    found = iter(sequence.mixed_logits(rows))
    for n in range(3):
        for own, task in tasks.items():
            (expected,) = plain_values(sequence, task, [rows_of()[n]], (20,), prompts[own].head)
            assert torch.allclose(next(found), expected, atol=1e-5)


@torch.no_grad()
def test_neighbours_that_were_not_read_are_zeros():
    features = torch.arange(1.0, 11).view(1, 5, 2)
    features[0, 1], features[0, 4] = -torch.inf, torch.inf
    found = in_context(features)[0]
    assert found[0].tolist() == [1, 2, 0, 0, 0, 0]
    assert found[2].tolist() == [5, 6, 0, 0, 7, 8]
    assert found[3].tolist() == [7, 8, 5, 6, 0, 0]
    assert bool(found[1, :2].isneginf().all())
    assert bool(found[4, :2].isposinf().all())


def test_layers_that_do_not_show_what_they_give_are_refused(sequence, monkeypatch):
    task = replace(TASK, answers=replace(SPACE, reading="context"))
    context = sequence.context(task.examples(rows_of()), task)
    layer = sequence.layers[-1]
    monkeypatch.setattr(layer, "forward", lambda hidden, *args, **kwargs: hidden)
    with pytest.raises(BackboneError, match="reading: word"):
        sequence.features(context, HardPrompt((20,)))


def test_words_that_are_cut_off_are_not_read(sequence):
    task = Task(Template("{prompt}{text}"), SPACE, max_tokens=12, reserve=4)
    with pytest.warns(CuecraftWarning, match="were cut at the end"):
        context = sequence.context(task.examples(rows_of()), task)
    for piece, (text, _) in zip(context.pieces, LABELLED, strict=True):
        assert len(piece.words) == len(words_of(text))
        assert piece.words[: 12 - 4 - 2] == tuple(range(1, 1 + min(6, len(piece.words))))
        assert set(piece.words[6:]) <= {CUT}
    prompt = HardPrompt((20,), head_of(sequence))
    golds = Golds(objective_of(SPACE), tuple(SPACE.gold(row) for row in rows_of()))
    with torch.no_grad():
        values = sequence.class_logits(context, prompt)
    assert bool(golds.losses(values).isfinite().all())
    long = golds.select([2]).losses(values[[2]])
    table = values[2].view(-1, 5)[:6]
    assert torch.allclose(long[0], functional.cross_entropy(table, torch.tensor(golds.values[2].tags[:6])))
    for own, (text, _) in zip(decided(values), LABELLED, strict=True):
        assert all(one["end"] <= words_of(text)[min(5, len(words_of(text)) - 1)][1] for one in own.value)


def decided(values):
    return SPACE.decide(SPACE.probabilities(values.double().numpy()), TASK.examples(rows_of()))


def test_losses_are_means_over_words_and_their_gradient_is_the_numeric_one():
    golds, values = values_of(LABELLED)
    expected = []
    for row, gold in enumerate(golds.values):
        table = values[row].view(-1, 5)[: len(gold.tags)]
        expected.append(functional.cross_entropy(table, torch.tensor(gold.tags)))
    assert torch.allclose(golds.losses(values), torch.stack(expected))
    known = ~values.isneginf()

    def losses(own):
        return golds.losses(torch.full_like(values, -torch.inf).masked_scatter(known, own))

    assert torch.autograd.gradcheck(losses, values[known].clone().requires_grad_())


def test_gradients_at_a_deep_cue_are_numeric_ones(sequence):
    """Through model, slots, head and loss, in float64."""
    import copy

    backbone = sequence.twin(copy.deepcopy(sequence.model).double(), "double")
    context = backbone.context(TASK.examples(rows_of()), TASK)
    golds = Golds(objective_of(SPACE), tuple(SPACE.gold(row) for row in rows_of()))
    head = head_of(backbone)
    head = ClassHead(head.weight.double(), head.bias.double())
    offsets = (0.1 * torch.randn(backbone.offsets_shape(2), generator=torch.Generator().manual_seed(0))).double()

    def loss(offsets):
        return golds.losses(backbone.class_logits(context, DeepCue(HardPrompt((20, 21), head), offsets))).mean()

    offsets.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(offsets), offsets)
    for place in ((0, 0, 3), (1, 1, 7), (0, 1, 20)):
        step = torch.zeros_like(offsets)
        step[place] = 1e-5
        with torch.no_grad():
            slope = (loss(offsets + step) - loss(offsets - step)) / 2e-5
        assert float(slope) == pytest.approx(float(gradient[place]), rel=1e-5, abs=1e-9)


def test_a_head_is_the_logistic_regression_of_the_words(sequence):
    """Those of a text weigh together as much as a text; a tag without examples has half an example's probability."""
    from sklearn.linear_model import LogisticRegression

    problem = problem_of(sequence)
    with torch.no_grad():
        features = sequence.features(problem.train.context, HardPrompt((20,)))
    head = problem.train.fitted_head(features, 0.5)
    rows, tags, weights = [], [], []
    for own, gold in zip(features, problem.train.golds.values, strict=True):
        rows += [*own[: len(gold.tags)].numpy()]
        tags += gold.tags
        weights += [1 / len(gold.tags)] * len(gold.tags)
    model = LogisticRegression(C=0.5, max_iter=1000).fit(np.array(rows, np.float64), tags, sample_weight=weights)
    known = sorted(set(tags))
    assert 4 not in known  # no mood goes on over two words
    logits = torch.tensor(np.array(rows)) @ head.weight.T + head.bias
    found = logits[:, known].softmax(-1).numpy()
    assert np.allclose(found, model.predict_proba(np.array(rows, np.float64)), atol=2e-3)
    without = logits[:, known].logsumexp(-1)
    assert float((logits[:, 4] - without).exp().sum()) == pytest.approx(0.5, rel=1e-3)


def test_a_head_of_texts_without_spans_says_nothing_else(sequence):
    problem = problem_of(sequence)
    some = problem.train.select([3, 5])
    head = some.fitted_head(sequence.features(some.context, HardPrompt((20,))))
    assert head.weight.abs().max() == 0
    assert head.bias.argmax() == 0


# Methods.

TRAINED = {
    "linear-probe": {},
    "deep-cue": {"epochs": 6, "learning_rate": 0.1},
    "prompt-tuning": {"epochs": 6, "learning_rate": 0.1},
    "p-tuning": {"epochs": 6, "encoder": "mlp", "encoder_width": 8, "encoder_learning_rate": 0.01},
    "prefix-tuning": {"epochs": 6, "encoder_width": 8, "encoder_learning_rate": 0.01},
    "p-tuning-v2": {"epochs": 6, "learning_rate": 0.1},
    "lora": {"epochs": 6, "learning_rate": 0.01},
    "lora-prompt": {"epochs": 6, "learning_rate": 0.01},
    "full": {"epochs": 6, "learning_rate": 0.001},
    "soup": {"members": 2, "deep.epochs": 4},
    "autoprompt": {"steps": 2, "candidates": 4, "prompt_length": 3},
    "hybrid": {"search.steps": 2, "search.candidates": 4, "tune.epochs": 3},
    "straight-through": {"steps": 3, "prompt_length": 3},
}


@pytest.mark.parametrize("name", TRAINED)
def test_methods_tune_save_and_serve_labels_of_words(name, sequence, tmp_path):
    problem = problem_of(sequence)
    method = make_method(name, TRAINED[name])
    outcome = method.fit(problem)
    losses = [event["train_loss"] for event in outcome.trace if "train_loss" in event]
    assert min(losses) < losses[0] or len(losses) < 3
    artifact = make_artifact(problem, outcome, method)
    artifact.save(tmp_path / "own")
    loaded = load_artifact(tmp_path / "own")
    assert loaded.task == TASK
    examples = TASK.examples(rows_of())
    predictor = Predictor.of(loaded, sequence)
    decisions = predictor.decide(examples)
    measured = SPACE.measure(decisions, [example.gold for example in examples])
    assert measured["text_f1"] == pytest.approx(loaded.manifest.metrics["dev_text_f1"])
    shelf = Shelf(sequence)
    shelf.put("own", [loaded])
    engine = Engine(shelf)
    answers = engine.ask([dict(row.fields) for row in rows_of()], ["own"])
    engine.close()
    for answer, decision in zip(answers, decisions, strict=True):
        assert answer.decision.value == decision.value
        assert answer.decision.confidence == pytest.approx(decision.confidence, abs=1e-5)
        assert answer.decision.options == pytest.approx(dict(decision.options), abs=1e-5)
        assert json.loads(json.dumps(decision.value)) == decision.value
    assert shelf.get("own").describe()["classes"] == list(SPACE.labels)


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(TRAINED) - {"auto", "embedding-probe"}))
def test_other_methods_are_refused_in_one_line(name, sequence):
    with pytest.raises(MethodError) as caught:
        make_method(name).fit(problem_of(sequence))
    assert "\n" not in str(caught.value)


def test_auto_compares_probes_and_deep_prompts_on_folds(sequence):
    problem = problem_of(sequence)
    outcome = make_method("auto", {"preset": "fast"}).fit(problem)
    assert outcome.verdict is not None
    assert "text f1" in outcome.verdict.reason
    names = " ".join(row.name for row in outcome.tried)
    assert "class head" in names
    assert "deep-cue" in names


def test_prompts_answer_with_the_mean_of_their_words_probabilities(sequence, tmp_path):
    problem = problem_of(sequence)
    made = []
    for seed in range(2):
        method = make_method("prompt-tuning", {"epochs": 4, "learning_rate": 0.3, "init": "random", "prompt_length": 2})
        outcome = method.fit(replace(problem, seed=seed, dev=None))
        made.append(make_artifact(problem, outcome, method))
    one, other = (Predictor.of(artifact, sequence) for artifact in made)
    together = Predictor.together([one, other])
    examples = TASK.examples(rows_of())
    mean = (one.probabilities(examples) + other.probabilities(examples)) / 2
    assert np.allclose(together.probabilities(examples), mean)
    assert float(np.abs(one.probabilities(examples) - other.probabilities(examples)).max()) > 1e-3
    shelf = Shelf(sequence)
    shelf.put("both", made)
    engine = Engine(shelf)
    answers = engine.ask([dict(row.fields) for row in rows_of()], ["both"])
    engine.close()
    for answer, decision in zip(answers, together.decide(examples), strict=True):
        assert answer.decision.value == decision.value
        assert answer.decision.confidence == pytest.approx(decision.confidence, abs=1e-5)


class KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("name", ["deep-cue", "full"])
def test_killed_and_resumed_gives_the_same_bits(name, sequence, tmp_path):
    def artifact_of(folder=None, stop=None):
        seen = []

        def report(event):
            seen.append(event)
            if len(seen) == stop:
                raise KilledError

        kept = Checkpoints(Keeping(folder, seconds=0.0), "key") if folder else None
        problem = replace(problem_of(sequence, report=report), checkpoints=kept)
        method = make_method(name, TRAINED[name] | {"batch_size": 3})
        return make_artifact(problem, method.fit(problem), method), len(seen)

    whole, events = artifact_of()
    with pytest.raises(KilledError):
        artifact_of(tmp_path / "state", events // 2)
    resumed, again = artifact_of(tmp_path / "state")
    assert again < events
    assert resumed.save(tmp_path / "b") == whole.save(tmp_path / "a")
