"""Cloze answers: any word, or one of some candidates, next to plain forward passes over the whole vocabulary."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from conftest import TEXTS, make_masked
from cuecraft.artifact import HardPrompt, SoftPrompt, load_artifact
from cuecraft.artifact.predictor import Predictor
from cuecraft.backbone import load_backbone, words
from cuecraft.core.errors import DataError, MethodError
from cuecraft.data import Record
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.prepare import make_problem
from cuecraft.methods.problem import label_context
from cuecraft.methods.registry import make_method
from cuecraft.methods.search.vocabulary import allowed_tokens
from cuecraft.serving.artifacts import Shelf
from cuecraft.serving.engine import Engine, EngineOptions
from cuecraft.task import Example, Task, Template
from cuecraft.task.answers.cloze import Cloze

LM = "{text}{prompt: it was}{mask}"
#: Right answers of eight texts: words of one token and of several, one or more of them.
ANSWERS = ("joy", ("bore", "dull"), "warmth", "cold", ("love", "lovely"), "bad", ("joyful", "warm", "great"), "boring")
#: The same where a mask has to hold them.
MASKED = ("joy", ("bore", "dull"), "warm", "cold", ("love", "story"), "bad", ("joy", "warm", "great"), "dull")
MLM = "{text}{prompt: it was}{mask}."


def rows(answers=ANSWERS):
    return [Record({"text": text}, answer) for (text, _), answer in zip(TEXTS, answers, strict=True)]


def all_of(answer):
    return (answer,) if isinstance(answer, str) else answer


@pytest.fixture(scope="module")
def encoder(word_tokenizer):
    return load_backbone((make_masked(word_tokenizer), word_tokenizer))


def log_p(model, ids):
    """Log-probabilities `[L, V]` after each token of one input, in float64."""
    with torch.no_grad():
        return model(torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)


def plain_causal(backbone, piece, cue, ids):
    """The log-probability of an answer of one token or more behind one text."""
    before = [*piece.before, *cue, *piece.after]
    found = log_p(backbone.model, [*before, *ids])
    return float(sum(found[len(before) - 1 + n, token] for n, token in enumerate(ids)))


def plain_masked(backbone, piece, cue):
    """The log-probabilities `[V]` at the mask of one text."""
    ids = [*piece.before, *cue, *piece.after]
    return log_p(backbone.model, ids)[ids.index(backbone.tokenizer.mask_token_id)]


@pytest.mark.parametrize("template", [LM, "{prompt: it was}{text}{mask}", "{text}{prompt}\nit was{mask}"])
@pytest.mark.parametrize("keep", [None, 0])
def test_right_answers_of_a_causal_model_have_their_plain_probabilities(causal, template, keep):
    task = Task(Template(template), Cloze())
    context = causal.context(task.examples(rows()), task, keep_bytes=keep)
    prompt = HardPrompt(context.renderer.prompt_ids)
    with torch.no_grad():
        values = causal.class_logits(context, prompt)
    assert values.shape == (8, 3)
    sizes = set()
    starts = causal.vocabulary(context.renderer).words.starts
    for piece, answer, own in zip(context.pieces, ANSWERS, values, strict=True):
        ids = causal.tokenizer([" " + word for word in all_of(answer)])["input_ids"]
        sizes |= set(map(len, ids))
        logs = [plain_causal(causal, piece, prompt.token_ids, tokens) for tokens in ids]
        first = log_p(causal.model, [*piece.before, *prompt.token_ids, *piece.after])[-1]
        firsts = {tokens[0] for tokens in ids}
        assert float(own[0]) == pytest.approx(float(torch.tensor(logs).logsumexp(0)), abs=1e-4)
        assert float(own[1]) == pytest.approx(max(float(first[token]) for token in firsts), abs=1e-4)
        assert float(own[2]) == pytest.approx(max(float(first[n]) for n in starts if n not in firsts), abs=1e-4)
    assert min(sizes) == 1
    assert max(sizes) > 2, "answers of one token alone show less than they could"


def test_right_answers_of_a_masked_model_have_their_plain_probabilities_in_one_pass(encoder, monkeypatch):
    task = Task(Template(MLM), Cloze())
    context = encoder.context(task.examples(rows(MASKED)), task)
    prompt = HardPrompt(context.renderer.prompt_ids)
    passes = []
    forward = type(encoder)._forward
    monkeypatch.setattr(type(encoder), "_forward", lambda self, plan: passes.append(plan) or forward(self, plan))
    with torch.no_grad():
        values = encoder.class_logits(context, prompt)
    assert len(passes) == 1, "the answer slot is read once, whatever the right answers are"
    whole = encoder.vocabulary(context.renderer).words.whole
    assert "joy" in whole.values()
    assert not {"[MASK]", ".", "##a", "[PAD]"} & {encoder.tokenizer.convert_ids_to_tokens(n) for n in whole}
    for piece, answer, own in zip(context.pieces, MASKED, values, strict=True):
        plain = plain_masked(encoder, piece, prompt.token_ids)
        right = encoder.tokenizer.convert_tokens_to_ids(list(all_of(answer)))
        others = [n for n in whole if n not in right]
        expected = [plain[right].logsumexp(0), plain[right].max(), plain[others].max()]
        assert torch.allclose(own.double(), torch.stack(expected), atol=1e-4)


def test_losses_have_the_gradient_of_a_plain_pass(causal):
    task = Task(Template(LM), Cloze())
    data = label_context(causal, task, task.examples(rows()))
    start = causal.embed(torch.tensor(data.context.renderer.prompt_ids)).detach()
    own, plain = start.clone().requires_grad_(), start.clone().requires_grad_()
    losses = data.golds.losses(causal.class_logits(data.context, SoftPrompt(own)))
    total = 0.0
    for piece, answer in zip(data.context.pieces, ANSWERS, strict=True):
        logs = []
        for ids in causal.tokenizer([" " + word for word in all_of(answer)])["input_ids"]:
            before, behind = causal.embed(torch.tensor(piece.before)), causal.embed(torch.tensor(ids))
            inputs = torch.cat([before, plain, behind])[None]
            found = causal.model(inputs_embeds=inputs).logits[0].log_softmax(-1)
            first = len(before) + len(plain) - 1
            logs.append(sum(found[first + n, token] for n, token in enumerate(ids)))
        total = total - torch.stack(logs).logsumexp(0)
    assert float(losses.detach().sum()) == pytest.approx(float(total.detach()), abs=1e-3)
    (found,), (expected,) = torch.autograd.grad(losses.sum(), own), torch.autograd.grad(total, plain)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()) + 1e-6)


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_swaps_have_the_values_of_their_prompts(kind, request):
    backbone = request.getfixturevalue(kind)
    task = Task(Template(LM if kind == "causal" else MLM), Cloze())
    context = backbone.context(task.examples(rows(ANSWERS if kind == "causal" else MASKED)), task)
    prompt = HardPrompt(context.renderer.prompt_ids)
    swaps = [(0, 40), (1, 41), (1, 42)]
    found = backbone.score_swaps(context, prompt, swaps)
    assert found.shape == (3, 8, 3)
    with torch.no_grad():
        alone = [backbone.class_logits(context, prompt.swapped(*swap)) for swap in swaps]
        together = backbone.class_logits_many(context, [prompt.swapped(*swap) for swap in swaps])
        each = torch.cat([backbone.class_logits(context.select([row]), prompt.swapped(*swaps[1])) for row in range(8)])
    assert torch.allclose(found, torch.stack(alone), atol=1e-4)
    assert torch.allclose(together, torch.stack(alone), atol=1e-4)
    assert torch.allclose(each, alone[1], atol=1e-4)


def decided(backbone, answers, template, records):
    """The answers of the template's own words to texts without labels."""
    task = Task(Template(template), answers)
    problem = make_problem(backbone, task, records)
    outcome = make_method("zero-shot", {"calibration": "none"}).fit(problem)
    artifact = make_artifact(problem, outcome, make_method("zero-shot", {}))
    predictor = Predictor.of(artifact, backbone)
    texts = [Example(dict(record.fields)) for record in records]
    return predictor.decide(texts), backbone.context(texts, artifact.task), outcome.best.prompt.token_ids


def test_the_best_words_of_a_masked_model_are_those_of_its_vocabulary(encoder):
    decisions, context, cue = decided(encoder, Cloze(top=4), MLM, rows(MASKED))
    names = encoder.tokenizer.convert_ids_to_tokens(range(len(encoder.tokenizer)))
    whole = [n for n, name in enumerate(names) if name.isalpha()]  # neither pieces, special tokens nor punctuation
    for decision, piece in zip(decisions, context.pieces, strict=True):
        plain = plain_masked(encoder, piece, cue).exp()
        best = sorted(whole, key=lambda n: -float(plain[n]))[:4]
        assert list(decision.options) == [names[n] for n in best]
        assert decision.value == names[best[0]]
        assert np.allclose(list(decision.options.values()), plain[best].tolist(), atol=1e-5)


def brute_force(backbone, piece, cue, limit):
    """The probability of each word of `limit` tokens at most behind one text: its tokens', and that it ends there."""
    before, tokenizer = [*piece.before, *cue, *piece.after], backbone.tokenizer
    names = tokenizer.batch_decode([[n] for n in range(len(tokenizer))])
    starts = [n for n, name in enumerate(names) if name[:1] == " " and name[1:].isalnum()]
    goes_on = [n for n, name in enumerate(names) if name[:1].isalnum() or name[:1] == "\ufffd"]
    found, paths = {}, [((), 0.0)]
    for size in range(limit + 1):
        words = {path: tokenizer.decode(list(path))[1:] for path, _ in paths}
        whole = {path for path, name in words.items() if path and name.isalnum() and ids_of(tokenizer, name) == path}
        read = paths if size < limit else [own for own in paths if own[0] in whole]
        longer = []
        for first in range(0, len(read), 512):  # inputs of one length, which need no padding
            some = read[first : first + 512]
            with torch.no_grad():
                inputs = torch.tensor([[*before, *path] for path, _ in some])
                rows = backbone.model(inputs).logits[:, -1].double().log_softmax(-1)
            for (path, log), logs in zip(some, rows, strict=True):
                if path in whole:
                    found[words[path]] = float((log + logs).exp().sum() - (log + logs[goes_on]).exp().sum())
                longer += [((*path, n), log + float(logs[n])) for n in (goes_on if path else starts)]
        paths = longer
    return found


def ids_of(tokenizer, name):
    return tuple(tokenizer(" " + name)["input_ids"])


def test_the_best_words_of_a_causal_model_are_found_among_all(causal, monkeypatch):
    records = rows()[:2]
    monkeypatch.setattr(words, "_BEAM", 10**6)
    decisions, context, cue = decided(causal, Cloze(tokens=2, top=40), LM, records)
    sizes = set()
    for decision, piece in zip(decisions, context.pieces, strict=True):
        expected = brute_force(causal, piece, cue, 2)
        best = sorted(expected, key=lambda name: -expected[name])[:40]
        assert list(decision.options) == best
        assert np.allclose(list(decision.options.values()), [expected[name] for name in best], atol=1e-6)
        sizes |= {len(causal.tokenizer(" " + name)["input_ids"]) for name in best}
    assert sizes >= {1, 2}, "words of two tokens are nowhere among the best, so the search is not shown"


def test_a_beam_finds_likely_words(causal):
    """What a beam loses are words whose beginnings are unlikely: the best are not."""
    (decision,), context, cue = decided(causal, Cloze(tokens=2, top=1), LM, rows()[:1])
    expected = brute_force(causal, context.pieces[0], cue, 2)
    assert decision.value == max(expected, key=lambda name: expected[name])
    assert decision.confidence == pytest.approx(max(expected.values()), abs=1e-6)


def test_no_word_at_all_is_no_answer(causal):
    """Where all beginnings of a text lead to pieces of words, there is nothing to name."""
    words = causal.vocabulary(causal.context([Example({"text": "fine"})], Task(Template(LM), Cloze())).renderer).words
    assert words.named([]) == []
    assert words.named([(5,), causal.tokenizer(" joy")["input_ids"]]) == ["", "joy"]
    assert words.named([(5,)]) == [""]
    nothing = Cloze().decided({})
    assert (nothing.value, nothing.confidence) == ("", 0.0)
    assert Cloze().measure([nothing], [("joy",)])["mean_reciprocal_rank"] == 0


def test_one_token_for_each_answer_is_the_best_word_at_the_slot(causal):
    decisions, context, cue = decided(causal, Cloze(tokens=1, top=3), LM, rows())
    names = causal.tokenizer.batch_decode([[n] for n in range(len(causal.tokenizer))])
    whole = [n for n, name in enumerate(names) if name[:1] == " " and name[1:].isalnum()]
    for decision, piece in zip(decisions, context.pieces, strict=True):
        plain = log_p(causal.model, [*piece.before, *cue, *piece.after])[-1].exp()
        assert list(decision.options) == [names[n][1:] for n in sorted(whole, key=lambda n: -float(plain[n]))[:3]]


def test_candidates_of_several_tokens_have_their_plain_probabilities(causal):
    names = ("joy", "warmth", "cold", "boring story", "lovely")
    task = Task(Template(LM), Cloze("candidates", names))
    answers = ("joy", ("warmth", "cold"), "boring story", "lovely", "cold", "joy", "warmth", ("joy", "lovely"))
    data = label_context(causal, task, task.examples(rows(answers)))
    prompt = HardPrompt(data.context.renderer.prompt_ids)
    with torch.no_grad():
        values = causal.class_logits(data.context, prompt)
    losses = data.golds.losses(values)
    ids = causal.tokenizer([" " + name for name in names])["input_ids"]
    for row, (piece, answer) in enumerate(zip(data.context.pieces, answers, strict=True)):
        logs = [plain_causal(causal, piece, prompt.token_ids, own) for own in ids]
        expected = torch.tensor(logs).log_softmax(-1)
        assert torch.allclose(values[row].log_softmax(-1), expected, atol=1e-4)
        right = [names.index(own) for own in all_of(answer)]
        assert float(losses[row]) == pytest.approx(-float(expected[right].logsumexp(0)), abs=1e-4)
        assert float(data.scores(values).primary[row]) == float(int(expected.argmax()) in right)


OPTIONS = {
    "autoprompt": {"steps": 2, "candidates": 4},
    "prompt-tuning": {"epochs": 3, "learning_rate": 0.1},
    "p-tuning": {"epochs": 2, "encoder_width": 8},
    "prefix-tuning": {"epochs": 2, "encoder_width": 8},
    "deep-cue": {"epochs": 3, "learning_rate": 0.1},
    "lora": {"epochs": 2, "learning_rate": 0.01},
    "full": {"epochs": 2, "learning_rate": 0.001},
    "in-context": {"shots": 2},
    "zero-shot": {},
}
SPACES = {
    "vocabulary": lambda: Cloze(tokens=2),
    "candidates": lambda: Cloze("candidates", tuple(dict.fromkeys(own for given in MASKED for own in all_of(given)))),
}


def problem_of(backbone, space):
    kind = LM if backbone.head_kind == "causal" else MLM
    others = [Record({"text": f"again {own.fields['text']}"}, own.label) for own in rows(MASKED)]
    return make_problem(backbone, Task(Template(kind), space), rows(MASKED), others, seed=0)


@pytest.mark.parametrize("among", SPACES)
@pytest.mark.parametrize("method", OPTIONS)
def test_methods_are_tuned_saved_loaded_and_answer(method, among, causal, tmp_path):
    problem = problem_of(causal, SPACES[among]())
    made = make_method(method, OPTIONS[method])
    outcome = made.fit(problem)
    measure = {"vocabulary": "first_token_precision_at_1", "candidates": "precision_at_1"}[among]
    scores = {key for event in outcome.trace for key in event if "precision" in key}
    assert scores == {f"train_{measure}", f"dev_{measure}"}, "a score has the name of what it measures"
    artifact = make_artifact(problem, outcome, made)
    assert set(artifact.manifest.metrics) == scores
    artifact.save(tmp_path / "own")
    loaded = load_artifact(tmp_path / "own")
    assert loaded.task == artifact.task
    assert set(loaded.task.answers.seen) == {own for given in MASKED for own in all_of(given)}
    examples = loaded.task.examples(rows(MASKED))
    decisions, again = (Predictor.of(own, causal).decide(examples) for own in (artifact, loaded))
    assert [own.value for own in decisions] == [own.value for own in again]
    measured = loaded.task.answers.measure(decisions, [example.gold for example in examples])
    if among == "candidates":
        assert measured["precision_at_1"] == pytest.approx(loaded.manifest.metrics["train_precision_at_1"])


def test_training_scores_of_a_masked_model_are_those_of_its_answers(encoder):
    problem = problem_of(encoder, Cloze())
    method = make_method("prompt-tuning", OPTIONS["prompt-tuning"])
    outcome = method.fit(problem)
    artifact = make_artifact(problem, outcome, method)
    examples = artifact.task.examples(rows(MASKED))
    decisions = Predictor.of(artifact, encoder).decide(examples)
    found = artifact.task.answers.measure(decisions, [example.gold for example in examples])
    first_tokens = artifact.manifest.metrics["train_first_token_precision_at_1"]
    assert found["precision_at_1"] == pytest.approx(first_tokens), "a mask holds one token"


@pytest.mark.parametrize("among", SPACES)
def test_auto_chooses_and_says_what_it_leaves_out(among, causal):
    outcome = make_method("auto", {"preset": "fast", "chat": "keep"}).fit(problem_of(causal, SPACES[among]()))
    assert outcome.verdict is not None
    assert ("first token precision@1" in outcome.verdict.reason) is (among == "vocabulary")
    assert "precision@1" in outcome.verdict.reason
    refused = [row["reason"] for row in outcome.trace if "reason" in row and row.get("phase") == "refused"]
    assert any("class head" in reason for reason in refused)


@pytest.mark.parametrize("method", ["linear-probe", "first-order", "contrastive"])
def test_what_needs_classes_says_so_in_one_line(method, causal):
    with pytest.raises(MethodError) as caught:
        make_method(method, {}).fit(problem_of(causal, Cloze()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["autoprompt", "deep-cue"])
def test_a_stopped_run_goes_on_with_the_same_bits(method, causal, tmp_path):
    from test_checkpoints import KilledError, kept

    def fitted(problem):
        return make_method(method, OPTIONS[method]).fit(problem)

    whole = fitted(problem_of(causal, Cloze()))
    seen = []

    def report(event):
        seen.append(event)
        if len(seen) == 3:
            raise KilledError

    problem = replace(problem_of(causal, Cloze()), checkpoints=kept(tmp_path))
    with pytest.raises(KilledError):
        fitted(replace(problem, report=report))
    again = fitted(problem)
    assert again.trace == whole.trace
    for own, other in zip(again.best.prompts, whole.best.prompts, strict=True):
        assert torch.equal(own.vectors(causal.embed), other.vectors(causal.embed))


def test_no_searched_prompt_may_hold_an_answer_or_a_piece_of_one(causal, encoder):
    problem = make_problem(causal, Task(Template(LM), Cloze()), rows()[:4], rows()[4:])
    allowed = allowed_tokens(causal, problem.task)
    names = [own for given in ANSWERS for own in all_of(given)]
    ids = causal.tokenizer([" " + name for name in names])["input_ids"]
    assert max(map(len, ids)) > 1
    assert not any(bool(allowed[token]) for own in ids for token in own)
    without = allowed_tokens(causal, Task(Template(LM), Cloze()))
    assert int(allowed.sum()) < int(without.sum())
    masked = allowed_tokens(encoder, problem_of(encoder, Cloze()).task)
    tokens = encoder.tokenizer.convert_tokens_to_ids([own for given in MASKED for own in all_of(given)])
    assert not bool(masked[tokens].any())


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_served_is_predicted_for_prompts_that_share_batches(kind, request):
    backbone, expected = request.getfixturevalue(kind), {}
    shelf = Shelf(backbone)
    for among, space in SPACES.items():
        method = make_method("deep-cue", OPTIONS["deep-cue"])
        problem = problem_of(backbone, space())
        artifact = make_artifact(problem, method.fit(problem), method)
        shelf.put(among, [artifact])
        predictor = Predictor.of(artifact, backbone)
        # A server never knows the right answer.
        expected[among] = predictor.decide(predictor.examples([text for text, _ in TEXTS]))
    engine = Engine(shelf, EngineOptions(max_wait_ms=200))
    answers = engine.ask([{"text": text} for text, _ in TEXTS], list(SPACES))
    engine.close()
    for number, (text, among) in enumerate(product(range(len(TEXTS)), SPACES)):
        found, own = answers[number].decision, expected[among][text]
        assert (found.value, list(found.options)) == (own.value, list(own.options))
        assert found.options == pytest.approx(dict(own.options), abs=1e-5)


def test_any_word_has_no_probabilities_of_options(causal):
    problem = problem_of(causal, Cloze())
    method = make_method("zero-shot", {})
    artifact = make_artifact(problem, method.fit(problem), method)
    with pytest.raises(MethodError, match="any word may be the answer") as caught:
        Predictor.of(artifact, causal).predict_proba([text for text, _ in TEXTS])
    assert "\n" not in str(caught.value)


def test_rows_bring_options_of_their_own(causal, tmp_path):
    options = [("joy", "bore"), ("bore", "dull", "warm story"), *[("joy", "cold", "bad")] * 6]
    answers = ("joy", ("bore", "dull"), "cold", "joy", "bad", "bad", ("joy", "cold"), "cold")
    records = [replace(record, options=own) for record, own in zip(rows(answers), options, strict=True)]
    problem = make_problem(causal, Task(Template(LM), Cloze("options")), records, records)
    method = make_method("deep-cue", OPTIONS["deep-cue"])
    artifact = make_artifact(problem, method.fit(problem), method)
    artifact.save(tmp_path / "own")
    loaded = load_artifact(tmp_path / "own")
    assert loaded.task == artifact.task
    decisions = Predictor.of(loaded, causal).decide(loaded.task.examples(records))
    assert [set(own.options) for own in decisions] == [set(own) for own in options]
    found = loaded.task.answers.measure(decisions, [loaded.task.answers.gold(record) for record in records])
    assert found["precision_at_1"] == pytest.approx(loaded.manifest.metrics["train_precision_at_1"])
    with pytest.raises(DataError, match="row 1: answer 'love' is not one of the 2 options of its row"):
        loaded.task.examples([replace(records[0], label="love")])
    with pytest.raises(DataError, match="'joy'; give each text two at least"):
        Predictor.of(loaded, causal).decide([Example({"text": "fine"}, options=("joy",))])


def test_a_prompt_for_right_answers_that_no_one_knows_is_refused(causal):
    task = Task(Template(LM), Cloze())
    context = causal.context([Example({"text": "fine"})], task)
    with pytest.raises(DataError, match="text 1 has no right answer"):
        causal.class_logits(context, HardPrompt((40,)))


def test_a_mask_holds_one_token_and_the_row_that_needs_more_is_named(encoder, causal, sequence):
    records = [*rows(MASKED)[:2], Record({"text": "a war story"}, "warlord", row=7)]
    names = tuple(dict.fromkeys(own for given in MASKED for own in all_of(given)))
    for space in (Cloze(), Cloze("candidates", (*names, "warlord"))):
        with pytest.raises(
            DataError, match=r"row 7: answer 'warlord' is \d tokens \(.*##.*\), but a masked LM"
        ) as caught:
            make_problem(encoder, Task(Template(MLM), space), records, rows(MASKED)[3:])
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="row 1: answer '日' is not in this tokenizer's vocabulary"):
        make_problem(encoder, Task(Template(MLM), Cloze()), [Record({"text": "joy"}, "日"), *records[:2]])
    aliases = [Record({"text": "a war story"}, ("warlord", "war")), *records[:2]]
    assert make_problem(encoder, Task(Template(MLM), Cloze()), aliases, records[:2]).dev is not None
    with pytest.raises(MethodError, match="has only features"):
        make_problem(sequence, Task(Template("{prompt}{text}"), Cloze()), records[:2], records[:2])


def test_an_uncased_tokenizer_answers_in_the_case_of_the_data(encoder):
    records = [Record({"text": text}, "Joy" if n % 2 else "Warm") for n, (text, _) in enumerate(TEXTS)]
    task = Task(Template(MLM), Cloze(top=200))
    problem = make_problem(encoder, task, records)
    outcome = make_method("zero-shot", {}).fit(problem)
    artifact = make_artifact(problem, outcome, make_method("zero-shot", {}))
    for decision in Predictor.of(artifact, encoder).decide([Example(dict(record.fields)) for record in records]):
        assert {"Joy", "Warm"} <= set(decision.options)
        assert not {"joy", "warm"} & set(decision.options)
