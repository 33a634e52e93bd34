"""Options that texts bring: scores against a plain loop of transformers, passes, methods, and what cannot be used."""

from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.model_selection import StratifiedKFold

from conftest import TEXTS, make_causal
from cuecraft.artifact import DeepCue, HardPrompt, PrefixPrompt, SoftPrompt, load_artifact
from cuecraft.artifact.predictor import Predictor
from cuecraft.backbone import load_backbone
from cuecraft.core.checkpoints import Keeping
from cuecraft.core.errors import CuecraftError, DataError, LabelWordError, MethodError, StoppedError
from cuecraft.core.seeding import derived_seed
from cuecraft.data import Record
from cuecraft.methods.auto.plans import PLANS, Preset
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.prepare import make_problem, make_task, with_checkpoints
from cuecraft.methods.problem import label_context, score
from cuecraft.methods.registry import make_method
from cuecraft.serving.artifacts import Shelf
from cuecraft.serving.engine import Engine
from cuecraft.task import Decision, Task, Template
from cuecraft.task.answers import AnswerColumns
from cuecraft.task.answers.choices import ChoiceOptions, Choices

TEMPLATE = "{text}{prompt: it was}{mask}"
#: Two to four options, one token to many; one begins another, and one stands at two texts.
OPTIONS = (
    ("good", "bad"),
    ("great to see", "dull", "great"),
    ("a joy", "a joy to see and to hear", "a bore"),
    ("cold", "warm", "great", "neither one nor the other"),
    ("good", "great"),
    ("bad", "it was"),
    ("great", "bad"),
    ("warm", "a joy"),
)
PLACES = (0, 2, 1, 3, 1, 0, 1, 0)
ROWS = [
    Record({"text": text}, place, options=own) for (text, _), own, place in zip(TEXTS, OPTIONS, PLACES, strict=True)
]
SCORINGS = ("sum", "token", "pmi")


def task_of(scoring="sum", template=TEMPLATE):
    return Task(Template(template), Choices(scoring))


def context_of(backbone, scoring="sum", template=TEMPLATE, **options):
    task = task_of(scoring, template)
    return backbone.context(task.examples(ROWS), task, **options)


def log_likelihood(backbone, vectors, ids):
    """The log-probability of each id, one plain pass behind the vectors of all that stands before."""
    embed = backbone.model.get_input_embeddings()
    whole = torch.cat([vectors, embed(torch.tensor(ids, dtype=torch.long))])
    log_p = backbone.model(inputs_embeds=whole[None]).logits[0].double().log_softmax(-1)
    return [log_p[len(vectors) - 1 + n, token] for n, token in enumerate(ids)]


def plain_scores(backbone, context, vectors, scoring):
    """A plain loop over texts and options, without padding, kept keys and values, or trees."""
    embed = backbone.model.get_input_embeddings()
    renderer = context.renderer
    (empty,) = renderer.render([replace(context.examples[0], fields={"text": "N/A"})])

    def summed(piece, ids):
        before = torch.cat([embed(torch.tensor(piece.before, dtype=torch.long)), vectors])
        return log_likelihood(backbone, torch.cat([before, embed(torch.tensor(piece.after, dtype=torch.long))]), ids)

    rows = []
    for example, piece in zip(context.examples, context.pieces, strict=True):
        row = []
        for option in example.options:
            ids = backbone.tokenizer(" " + option, add_special_tokens=False)["input_ids"]
            steps = torch.stack(summed(piece, ids))
            own = steps.mean() if scoring == "token" else steps.sum()
            row.append(own - torch.stack(summed(empty, ids)).sum() if scoring == "pmi" else own)
        rows.append(torch.stack(row))
    return rows


def agree(found, expected, tolerance=1e-4):
    """Compare values up to a constant of each row; behind its own options a row has minus infinity."""
    for own, plain in zip(found, expected, strict=True):
        assert torch.allclose(own[: len(plain)].double().log_softmax(-1), plain.log_softmax(-1), atol=tolerance)
        assert bool((own[len(plain) :] == -torch.inf).all())


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_scores_are_those_of_a_plain_loop(scoring, kind, byte_tokenizer):
    """Kept texts and texts read anew, behind and before the prompt; alone, several together, swapped and served."""
    backbone = load_backbone((make_causal(byte_tokenizer, kind), byte_tokenizer), "causal")
    for template in (TEMPLATE, "{prompt:Say}{text} so{mask}"):
        for kept in (None, 0):
            context = context_of(backbone, scoring, template, keep_bytes=kept)
            prompt = HardPrompt((300, 301, 302))
            vectors = backbone.embed(torch.tensor(prompt.token_ids))
            with torch.no_grad():
                expected = plain_scores(backbone, context, vectors, scoring)
                agree(backbone.class_logits(context, prompt), expected)
                rows = [
                    backbone.ready_for(backbone.ready(prompt, context.renderer.task), example)
                    for example in context.examples
                ]
                agree(backbone.mixed_logits(list(zip(rows, context.pieces, strict=True))), expected)
                for row in range(len(context)):
                    agree(backbone.class_logits(context.select([row]), prompt), expected[row : row + 1])
                swapped = HardPrompt((300, 305, 302))
                others = plain_scores(backbone, context, backbone.embed(torch.tensor(swapped.token_ids)), scoring)
                both = backbone.class_logits_many(context, [prompt, swapped])
                agree(both[0], expected)
                agree(both[1], others)
                for found, wanted in zip(
                    backbone.score_swaps(context, prompt, [(1, 305), (0, 300)]), (others, expected), strict=True
                ):
                    agree(found, wanted)
                parts = [(context.select([0, 1, 2]), prompt), (context.select([3, 4]), swapped)]
                first, second = backbone.class_logits_each(parts)
                agree(first, expected[:3])
                agree(second, others[3:5])


@pytest.mark.parametrize("scoring", SCORINGS)
def test_gradients_are_those_of_a_plain_loop(scoring, causal):
    context = context_of(causal, scoring)
    golds = torch.tensor(PLACES)
    vectors = causal.embed(torch.tensor([300, 301])).clone().requires_grad_()
    losses = torch.nn.functional.cross_entropy(causal.class_logits(context, SoftPrompt(vectors)), golds)
    (found,) = torch.autograd.grad(losses, vectors)
    rows = plain_scores(causal, context, vectors, scoring)
    plain = torch.stack([-row.log_softmax(-1)[gold] for row, gold in zip(rows, PLACES, strict=True)]).mean()
    (expected,) = torch.autograd.grad(plain, vectors)
    assert float(losses.detach()) == pytest.approx(float(plain.detach()), abs=1e-5)
    assert torch.allclose(found, expected.to(found), atol=1e-5)


@pytest.mark.parametrize("kind", ["deep", "prefix"])
def test_prompts_of_each_kind_answer_alone_as_together(kind, causal):
    generator = torch.Generator().manual_seed(0)
    base = HardPrompt((300, 301))
    if kind == "deep":
        prompt = DeepCue(base, 0.3 * torch.randn(causal.offsets_shape(2), generator=generator))
    else:
        prompt = PrefixPrompt(base, 0.3 * torch.randn(causal.states_shape(3), generator=generator))
    context = context_of(causal, "pmi")
    ready = causal.ready(prompt, context.renderer.task)
    with torch.no_grad():
        together = causal.class_logits(context, prompt)
        served = causal.mixed_logits(
            [(causal.ready_for(ready, own), piece) for own, piece in zip(context.examples, context.pieces, strict=True)]
        )
        plain = causal.class_logits(context, base)
    assert not torch.allclose(together[:, :2], plain[:, :2], atol=1e-2)
    for row, own in enumerate(together):
        count = len(OPTIONS[row])
        alone = causal.class_logits(context.select([row]), prompt)[0].detach()
        for other in (alone[:count], served[row]):
            assert torch.allclose(own[:count].log_softmax(-1), other.log_softmax(-1), atol=1e-5)


def test_texts_whose_options_differ_share_a_pass(causal, monkeypatch):
    context = context_of(causal)
    passes = Counter()
    plain = causal.run
    monkeypatch.setattr(causal, "run", lambda plan, columns: passes.update(["pass"]) or plain(plan, columns))
    causal.class_logits(context, HardPrompt((300,)))
    assert passes["pass"] == 1


def test_one_option_may_begin_another(causal):
    """Both are scored as they are: the longer one never has more than the shorter by the sum."""
    context = context_of(causal)
    values = causal.class_logits(context, HardPrompt((300, 301))).detach()
    assert float(values[1, 2]) > float(values[1, 0])
    assert float(values[2, 0]) > float(values[2, 1])
    by_token = causal.class_logits(context_of(causal, "token"), HardPrompt((300, 301))).detach()
    assert bool(by_token[:, :2].isfinite().all())


def test_one_token_options_work_on_a_masked_model_and_longer_ones_are_refused(masked):
    prompt, embed = HardPrompt((60, 61)), masked.model.get_input_embeddings()
    own = (("dull", "great", "bad"), ("bad", "good"))
    rows = [Record({"text": text}, 1, options=own[n % 2]) for n, (text, _) in enumerate(TEXTS)]

    def log_p(piece):
        ids = torch.tensor([[*piece.before, *prompt.token_ids, *piece.after]])
        at = piece.answer + (2 if piece.answer >= len(piece.before) else 0)
        return masked.model(inputs_embeds=embed(ids)).logits[0, at].double().log_softmax(-1)

    for scoring in SCORINGS:
        task = task_of(scoring)
        context = masked.context(task.examples(rows), task)
        (empty,) = context.renderer.render([replace(context.examples[0], fields={"text": "N/A"})])
        with torch.no_grad():
            found = masked.class_logits(context, prompt)
            for row, (record, piece) in enumerate(zip(rows, context.pieces, strict=True)):
                ids = [masked.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in record.options]
                expected = log_p(piece)[ids] - (log_p(empty)[ids] if scoring == "pmi" else 0)
                agree(found[row : row + 1], [expected])
    task = task_of()
    with pytest.raises(LabelWordError, match="text 2: options 'Good' and 'good' are written alike"):
        masked.context(task.examples([rows[0], Record({"text": "x"}, 0, options=("Good", "good"))]), task)
    with pytest.raises(LabelWordError, match=r"text 2: option 'a joy' is 2 tokens .*, but a masked LM fills one"):
        masked.context(task.examples([rows[0], Record({"text": "x"}, 0, options=("a joy", "bad"))]), task)


def test_class_heads_and_models_without_words_are_refused(causal, sequence):
    problem = make_problem(causal, task_of(), ROWS, ROWS)
    with pytest.raises(MethodError, match="option that all texts share, and answers of kind choices have none"):
        make_method("linear-probe").fit(problem)
    with pytest.raises(LabelWordError, match=r"choices .* this model has no language head; use a causal"):
        make_problem(sequence, Task(Template("{prompt}{text}"), Choices("sum")), ROWS, ROWS)


def cross_fitted(backbone, scoring):
    """The loss of the untuned prompt on held-out rows, each with the temperature of the others, by scipy alone."""
    context = context_of(backbone, scoring)
    with torch.no_grad():
        rows = [
            own.numpy()
            for own in plain_scores(
                backbone, context, backbone.embed(torch.tensor(context.renderer.prompt_ids)), scoring
            )
        ]

    def losses(numbers, log_scale):
        found = []
        for number in numbers:
            z = np.exp(log_scale) * rows[number]
            found.append(np.log(np.exp(z - z.max()).sum()) + z.max() - z[PLACES[number]])
        return np.array(found)

    def fitted(numbers):
        def objective(log_scale):
            return losses(numbers, log_scale).mean() + log_scale**2 / (2 * len(numbers))

        return minimize_scalar(objective, bounds=(-5, 5), method="bounded", options={"xatol": 1e-6}).x

    folds = StratifiedKFold(8, shuffle=True, random_state=derived_seed(0, "folds") % 2**32)
    found = [losses(held, fitted(train)) for train, held in folds.split(rows, [0] * len(rows))]
    return float(np.concatenate(found).mean())


def test_scoring_is_chosen_once_by_held_out_loss(causal):
    losses = {scoring: cross_fitted(causal, scoring) for scoring in SCORINGS}
    problem = make_problem(causal, task_of("auto"), ROWS[:5], ROWS[5:], seed=0)
    assert problem.task.answers.scoring == min(losses, key=losses.get)
    assert problem.train.context.renderer.task == problem.task == problem.dev.context.renderer.task
    assert len({round(own, 6) for own in losses.values()}) == 3
    given = make_problem(causal, task_of("token"), ROWS[:5], ROWS[5:])
    assert given.task.answers.scoring == "token"


METHODS = {
    "zero-shot": {"calibration": "fitted"},
    "in-context": {"shots": 2},
    "deep-cue": {"epochs": 3, "learning_rate": 0.1, "batch_size": 3},
    "prompt-tuning": {"epochs": 3, "learning_rate": 0.1},
    "prefix-tuning": {"epochs": 3, "encoder_learning_rate": 0.01},
    "lora": {"epochs": 3, "learning_rate": 0.01},
    "full": {"epochs": 3, "learning_rate": 0.001},
    "autoprompt": {"steps": 2, "candidates": 4},
}
RARER = {"prompt-tuning", "prefix-tuning", "full", "in-context"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in RARER else ()) for n in METHODS])
def test_methods_take_choices_and_serve_what_they_predict(name, causal, tmp_path):
    problem = make_problem(causal, task_of("pmi" if name in ("deep-cue", "lora") else "token"), ROWS, ROWS)
    method = make_method(name, METHODS[name])
    outcome = method.fit(problem)
    artifact = make_artifact(problem, outcome, method)
    artifact.save(tmp_path / "own")
    loaded = load_artifact(tmp_path / "own")
    assert loaded.task == artifact.task
    assert loaded.calibration.bias == ()
    examples = problem.task.examples(ROWS)
    decisions = Predictor.of(loaded, causal).decide(examples)
    measured = problem.task.answers.measure(decisions, PLACES)
    best = score(causal, outcome.best, label_context(causal, problem.task, examples))
    assert measured["accuracy"] == pytest.approx(best.primary)
    shelf = Shelf(causal)
    shelf.put("own", [loaded])
    engine = Engine(shelf)
    answers = engine.ask([{"text": row.fields["text"], "choices": row.options} for row in ROWS], ["own"])
    engine.close()
    for answer, decision, row in zip(answers, decisions, ROWS, strict=True):
        assert tuple(answer.decision.options) == row.options
        assert answer.decision.options == pytest.approx(dict(decision.options), abs=1e-5)
        assert answer.decision.value == decision.value
        assert sum(answer.probabilities) == pytest.approx(1)


@pytest.mark.parametrize("preset", ["fast", pytest.param("good", marks=pytest.mark.slow)])
def test_auto_takes_choices(preset, causal):
    problem = make_problem(causal, task_of("auto"), ROWS, ROWS)
    outcome = make_method("auto", {"preset": preset, "chat": "keep"}).fit(problem)
    assert outcome.verdict is not None
    assert "accuracy" in outcome.verdict.reason
    assert len(outcome.tried) > 1


@pytest.mark.parametrize("tokens", [100_000, 12_000, 500])
def test_a_fast_choice_trains_as_many_epochs_as_its_tokens_allow(tokens, causal, monkeypatch):
    """Of kept texts a pass reads prompt and options; an epoch costs 3.5 passes, and three answer in the end."""
    monkeypatch.setitem(PLANS, Preset.FAST, replace(PLANS[Preset.FAST], tokens=tokens))
    problem = make_problem(causal, task_of("sum"), ROWS, ROWS)
    outcome = make_method("auto", {"preset": "fast", "chat": "keep"}).fit(problem)
    tokenizer = partial(causal.tokenizer, add_special_tokens=False)
    options = sum(len(tokenizer(f" {own}").input_ids) for row in ROWS for own in row.options)
    read = len(ROWS) * len(problem.initial_ids) + options
    allowed = [epochs for epochs in range(2, 9) if 2 * read * (3.5 * epochs + 3) <= tokens]
    steps = [event["step"] for event in outcome.trace if event.get("fold") == 0 and "configuration" in event]
    assert max(steps, default=0) == max(allowed, default=0)
    assert {event["fold"] for event in outcome.trace if "fold" in event} == ({0, 1} if allowed else set())
    assert ("give preset=good" in outcome.verdict.reason) is (not allowed)


def test_a_calibration_of_classes_is_refused(causal):
    problem = make_problem(causal, task_of(), ROWS, ROWS)
    with pytest.raises(
        MethodError, match="calibration=batch does not go with answers of kind choices; give none, fitted"
    ):
        make_method("zero-shot", {"calibration": "batch"}).fit(problem)
    with pytest.raises(MethodError, match="answers of kind choices have none"):
        make_method("first-order").fit(problem)


def test_ranks_are_measured():
    own = dict(zip("abcd", (0.1, 0.4, 0.4, 0.1), strict=True))
    decisions = [Decision(1, 0.4, own)] * 4
    measured = Choices("sum").measure(decisions, [0, 1, 2, 3])
    assert list(measured) == ["accuracy", "mean_reciprocal_rank"]
    assert measured["accuracy"] == 0.25
    assert measured["mean_reciprocal_rank"] == pytest.approx((1 / 3 + 1 + 1 / 2 + 1 / 4) / 4)


def test_answers_are_shown_as_the_data_has_them(causal):
    by_text = [replace(row, label=row.options[row.label]) for row in ROWS]
    for rows, shown in ((ROWS, "place"), (by_text, "text")):
        task = make_task(causal, rows, TEMPLATE, answers=ChoiceOptions(scoring="sum"))
        assert task.answers.shown == shown
        assert [example.gold for example in task.examples(rows)] == list(PLACES)
        decisions = task.answers.decide(np.eye(4)[:1], task.examples(rows)[3:4])
        assert decisions[0].value == (0 if shown == "place" else "cold")


CSV = AnswerColumns(separator="|")
GOOD = {
    "a place": ({"choices": ["a", "b c"], "answer": 1}, AnswerColumns(), (1, ("a", "b c"))),
    "a text": ({"choices": [" a ", "b"], "answer": "b "}, AnswerColumns(), ("b", ("a", "b"))),
    "numbers": ({"choices": [3, 1], "answer": 1}, AnswerColumns(), (1, ("3", "1"))),
    "a place as CSV has it": ({"choices": "a|b|c", "answer": "2"}, CSV, (2, ("a", "b", "c"))),
    "JSON in CSV": ({"choices": '["a", "b|c"]', "answer": "0"}, AnswerColumns(), (0, ("a", "b|c"))),
    "a text before a place": ({"choices": "1|0", "answer": "0"}, CSV, ("0", ("1", "0"))),
    "other columns": ({"ways": ["a", "b"], "right": 0}, AnswerColumns("right", "ways"), (0, ("a", "b"))),
    "an array": ({"choices": np.array(["a", "b"]), "label": np.int64(1)}, AnswerColumns(), (1, ("a", "b"))),
    "a number of a table": ({"choices": ["a", "b"], "label": 1.0}, AnswerColumns(), (1, ("a", "b"))),
}


@pytest.mark.parametrize("name", GOOD)
def test_rows_are_read(name):
    row, columns, expected = GOOD[name]
    assert Choices.read("f.jsonl row 3", row, columns) == expected


BAD = {
    "no options": (
        {"answer": 0},
        "no column 'choices' with the options; give each row a list of them",
    ),
    "none": ({"choices": None, "answer": 0}, "'choices' is None, and no list of options; give a list"),
    "a string": ({"choices": "a, b", "answer": 0}, "no list of options; give a list, or say what separates"),
    "broken JSON": ({"choices": '["a"', "answer": 0}, "'choices' is no list of JSON; fix it"),
    "deep JSON": ({"choices": "[" * 100_000, "answer": 0}, "'choices' is no list of JSON; fix it"),
    "a place of many digits": (
        {"choices": ["a", "b"], "answer": "9" * 5000},
        "answer '9+[.]{3} in 'answer' is none of",
    ),
    "a great place": ({"choices": ["a", "b"], "answer": 9**9999}, "answer a number of too many digits in 'answer' is"),
    "a great number": (
        {"choices": [9**9999, "b"], "answer": 0},
        "option 1 in 'choices' is a number of too many digits",
    ),
    "empty list": ({"choices": [], "answer": 0}, "no option in 'choices'; give at least two"),
    "one option": ({"choices": ["a"], "answer": 0}, "only one option in 'choices'; give at least two"),
    "two alike": (
        {"choices": ["a", "b", " a"], "answer": 0},
        r"options 1 and 3 in 'choices' are alike \('a'\); remove",
    ),
    "an empty one": ({"choices": ["a", " "], "answer": 0}, "option 2 in 'choices' is empty; give it a text, or remove"),
    "no text": ({"choices": ["a", ["b"]], "answer": 0}, r"option 2 in 'choices' is \['b'\]; give a text"),
    "outside": ({"choices": ["a", "b"], "answer": 2}, "answer 2 in 'answer' is none of its 2 options; give the place"),
    "before": ({"choices": ["a", "b"], "answer": -1}, "answer -1 in 'answer' is none of its 2 options; give the place"),
    "another text": ({"choices": ["a", "b"], "answer": "c"}, "answer 'c' in 'answer' is none of its 2 options"),
    "a truth value": ({"choices": ["a", "b"], "answer": True}, "answer True in 'answer' is none of its 2 options"),
    "no answer": ({"choices": ["a", "b"], "answer": ""}, "no answer in 'answer'; give the place .* or its text"),
    "no column": ({"choices": ["a", "b"]}, "no answer in 'answer'; give the place .* or its text"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_one_line_that_names_file_and_row(name):
    row, message = BAD[name]
    with pytest.raises(DataError, match=message) as caught:
        Choices.read("f.jsonl row 3", row, AnswerColumns())
    assert str(caught.value).startswith("f.jsonl row 3: ")
    assert "\n" not in str(caught.value)


def test_what_does_not_go_with_choices_says_so(causal):
    with pytest.raises(LabelWordError, match="label words do not go with choices"):
        Choices.of(ROWS, ChoiceOptions(), {"good": "fine"})
    with pytest.raises(DataError, match="row 2 brings no options"):
        Choices.of([ROWS[0], Record({"text": "x"}, 0)], ChoiceOptions(), None)
    with pytest.raises(DataError, match="content_free is empty"):
        Choices("pmi", " ")
    task = task_of()
    with pytest.raises(CuecraftError, match="text 1: no option in 'choices'; give at least two"):
        causal.context(task.examples([Record({"text": "x"})]), task)


@pytest.mark.parametrize("name", ["deep-cue", pytest.param("autoprompt", marks=pytest.mark.slow)])
def test_stopped_and_resumed_gives_the_same_bits(name, causal, tmp_path):
    """The scoring, which is left open, is chosen again as before."""

    def found(folder, **more):
        problem = make_problem(causal, task_of("auto"), ROWS, ROWS)
        method = make_method(name, METHODS[name])
        problem = with_checkpoints(problem, Keeping(tmp_path / folder, seconds=3600, **more), "key")
        return make_artifact(problem, method.fit(problem), method)

    whole = found("whole").save(tmp_path / "a")
    times = iter([False] * 3)
    with pytest.raises(StoppedError):
        found("stopped", stop=lambda: next(times, True))
    assert any((tmp_path / "stopped").iterdir())
    assert found("stopped").save(tmp_path / "b") == whole
