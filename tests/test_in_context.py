"""Labelled examples in front of every text; the oracle is the model's own forward pass over the whole text."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bulk import artifact as written
from bulk import classify, messages, rows_of, write_jsonl
from conftest import LABELS, TEXTS, make_examples, make_task, records
from cuecraft import PromptClassifier
from cuecraft.artifact import DeepCue, HardPrompt, PrefixPrompt, SoftPrompt, calibration, load_artifact
from cuecraft.artifact.predictor import PromptEnsemble
from cuecraft.core.errors import ArtifactError, CuecraftWarning, DataError, MethodError, PromptError, TemplateError
from cuecraft.data import Record
from cuecraft.export.peft_export import require_prompt_first
from cuecraft.methods import make_method
from cuecraft.methods.prepare import make_problem
from cuecraft.serving.artifacts import ServedPrompt
from cuecraft.serving.registry import decide_mixed
from cuecraft.task import Example, Shot
from serving import FIRST, X, Y, classifiers
from tiny_backbones import CAUSAL, SHORT, assert_close, builder, random_states

SHOTS = (Shot((("text", "a joy"),), 1), Shot((("text", "a bore again"),), 0), Shot((("text", "warm"),), 1))
CAUSAL_TEXT = "{} it was"
MASKED = "{text}{prompt: it was}{mask}."
BEHIND = CAUSAL_TEXT + " {}\n\n"


@pytest.fixture(scope="session")
def build(byte_tokenizer, word_tokenizer):
    return builder(byte_tokenizer, word_tokenizer)


def shown(task, written_as):
    """The examples of a task as one string."""
    labels = task.verbalizer.labels
    return "".join(written_as.format(dict(shot.fields)["text"], labels[shot.gold]) for shot in task.shots)


def log_shares(scores):
    return torch.stack([torch.stack(own) for own in scores]).double().log_softmax(-1)


@torch.no_grad()
def plain_causal(backbone, texts):
    """Log-probabilities of the label words behind whole texts, one forward pass for each word."""
    found = []
    for text in texts:
        own = []
        for label in LABELS:
            before, word = (backbone.tokenizer(part).input_ids for part in (text, f" {label}"))
            logits = backbone.model(input_ids=torch.tensor([before + word])).logits[0].double().log_softmax(-1)
            own.append(sum(logits[len(before) - 1 + n, token] for n, token in enumerate(word)))
        found.append(own)
    return log_shares(found)


@torch.no_grad()
def plain_masked(backbone, texts):
    """Logits of the label words at the mask of whole texts."""
    found = []
    for text in texts:
        inputs = backbone.tokenizer(text, return_tensors="pt")
        at = inputs.input_ids[0].tolist().index(backbone.tokenizer.mask_token_id)
        logits = backbone.model(**inputs).logits[0, at].double()
        found.append([logits[backbone.tokenizer.convert_tokens_to_ids(label)] for label in LABELS])
    return log_shares(found)


def found_by(backbone, task, texts, keep_bytes=None):
    context = backbone.context([Example({"text": text}) for text in texts], task, keep_bytes)
    with torch.no_grad():
        return backbone.class_logits(context, HardPrompt(context.renderer.prompt_ids)).double().log_softmax(-1)


@pytest.mark.parametrize("keep_bytes", [None, 0])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_model_answers_as_in_a_plain_pass_over_everything(name, keep_bytes, build):
    backbone, task, texts = build(name), make_task(shots=SHOTS, reserve=6), [text for text, _ in SHORT]
    whole = [shown(task, BEHIND) + CAUSAL_TEXT.format(text) for text in texts]
    found = found_by(backbone, task, texts, keep_bytes)
    assert_close(found, plain_causal(backbone, whole), 1e-4)
    assert (found - found_by(backbone, make_task(), texts)).abs().max() > 1e-3  # the examples change something


def test_a_masked_model_answers_as_in_a_plain_pass_over_everything(masked):
    task = make_task(MASKED, shots=SHOTS)
    whole = [shown(task, "{} it was {}.\n\n") + f"{text} it was [MASK]." for text in X]
    found = found_by(masked, task, X)
    assert_close(found, plain_masked(masked, whole), 1e-4)
    assert (found - found_by(masked, make_task(MASKED), X)).abs().max() > 1e-3


def random_prompts(backbone):
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(2, backbone.hidden_size, generator=generator)
    offsets = torch.randn(len(backbone.layers), 2, backbone.hidden_size, generator=generator)
    words = HardPrompt((300, 301))
    return [words, SoftPrompt(vectors), DeepCue(words, offsets), PrefixPrompt(words, random_states(backbone, 2))]


LONG = {"negative": ["a bore", "cold"], "positive": ["a film of joy", "warm"]}


@pytest.mark.parametrize("words", [None, LONG])
@pytest.mark.parametrize("template", ["{text}{prompt: it was}{mask}", FIRST, "so: {text}\n{prompt}is{mask}"])
def test_what_is_read_once_changes_no_answer(template, words, causal, monkeypatch):
    backbone, task, examples = causal, make_task(template, words, shots=SHOTS), make_examples(SHORT)
    for prompt in random_prompts(backbone):
        with torch.no_grad():
            once = [backbone.class_logits(backbone.context(examples, task, keep), prompt) for keep in (None, 0)]
            with monkeypatch.context() as patch:
                patch.setattr(type(backbone), "_shared_opening", lambda self, renderer: None)
                context = backbone.context(examples, task)
                assert context.opening is None
                whole = backbone.class_logits(context, prompt)
        for own in once:
            assert_close(own, whole, 1e-4)


def test_a_causal_model_reads_the_examples_once_for_all_texts(causal):
    task = make_task(shots=SHOTS)
    shared, read = len(causal.renderer(task).shared_ids), []
    hook = causal.model.get_input_embeddings().register_forward_hook(
        lambda module, given, out: read.append(given[0].numel())
    )
    try:
        found_by(causal, task, [text for text in X if len(text) < 30], keep_bytes=0)
        several = sum(read)
        read.clear()
        found_by(causal, make_task(), [text for text in X if len(text) < 30], keep_bytes=0)
    finally:
        hook.remove()
    assert several - sum(read) == shared


def test_braces_and_special_tokens_in_examples_stay_text(causal, masked):
    for backbone, template in ((causal, "{text}{prompt: it was}{mask}"), (masked, MASKED)):
        hostile = f"{{text}} {{prompt}} }}{{ {' '.join(backbone.tokenizer.all_special_tokens)} {{mask}}"
        task = make_task(template, shots=(Shot((("text", hostile),), 0),))
        renderer = backbone.renderer(task)
        special = set(backbone.tokenizer.all_special_ids) - {backbone.tokenizer.unk_token_id}
        start = 1 if backbone is masked else 0  # [CLS]
        assert not special & set(renderer.shared_ids[start:])
        piece = renderer.render(make_examples()[:1])[0]
        plain = backbone.renderer(make_task(template)).render(make_examples()[:1])[0]
        assert piece.before == renderer.shared_ids + plain.before[start:]
        assert piece.after == plain.after
        assert task.template.source == template
        assert task.template.field_names == ("text",)


def test_examples_of_no_class_or_without_a_field_are_refused():
    with pytest.raises(DataError, match="class number 2"):
        make_task(shots=(Shot((("text", "a joy"),), 2),))
    with pytest.raises(TemplateError, match="names field 'text', but example 1 in the prompt has 'title'"):
        make_task(shots=(Shot((("title", "a joy"),), 1),))


def fitted(backbone, **options):
    return make_method("in-context", {"shots": 2, **options}).fit(
        make_problem(backbone, make_task(), records(), records(), seed=1)
    )


def test_choice_follows_the_seed_and_takes_the_training_examples_of_each_class_in_turn(causal):
    def chosen(seed, shots=4):
        problem = make_problem(causal, make_task(), records(TEXTS[:6]), records(TEXTS[6:]), seed=seed)
        return make_method("in-context", {"shots": shots}).fit(problem).best.reader.task.shots

    for seed in range(4):
        own = chosen(seed)
        assert sorted(shot.gold for shot in own) == [0, 0, 1, 1]
        assert {(shot.fields[0][1], shot.gold) for shot in own} <= set(TEXTS[:6])
        assert len(set(own)) == 4
        assert own == chosen(seed)
    assert len({chosen(seed) for seed in range(4)}) > 1
    assert len({tuple(shot.gold for shot in chosen(seed)) for seed in range(8)}) > 1  # order, too


@pytest.mark.parametrize("kind", ["none", "contextual", "batch", "fitted"])
def test_answers_are_calibrated_without_the_examples_in_the_prompt(kind, causal):
    best = fitted(causal, calibration=kind).best
    task = best.reader.task
    own = {shot.fields[0][1] for shot in task.shots}
    others = [(text, label) for text, label in TEXTS if text not in own]
    assert len(others) == 6
    whole = [shown(task, BEHIND) + CAUSAL_TEXT.format(text) for text, _ in others]
    logits = plain_causal(causal, whole)
    empty = plain_causal(causal, [shown(task, BEHIND) + CAUSAL_TEXT.format(text) for text in ("N/A", "[MASK]", "...")])
    expected = {
        "none": calibration.Calibration.none(2),
        "contextual": calibration.contextual(empty),
        "batch": calibration.batch(logits),
        "fitted": calibration.fitted(logits, torch.tensor([label for _, label in others])),
    }[kind]
    answers = best.logits(causal, causal.context(make_examples(others), make_task())).double().softmax(-1)
    assert_close(answers, expected.apply(logits).softmax(-1), 1e-4)


def test_too_few_examples_are_told_with_what_to_give(causal):
    with pytest.raises(MethodError, match=r"8 training examples, one of them for calibration=fitted; .* shots=7"):
        fitted(causal, shots=8)
    with pytest.raises(MethodError, match=r"there are 8 training examples; give more, or shots=8"):
        fitted(causal, shots=9, calibration="none")


@pytest.mark.filterwarnings("ignore:.* texts were cut")
def test_examples_that_do_not_fit_are_refused_with_how_many_would(causal):
    def fit(shots, **limits):
        problem = make_problem(causal, make_task(**limits), records(), records(), seed=1)
        return make_method("in-context", {"shots": shots}).fit(problem)

    with pytest.raises(PromptError, match=r"7 examples .* do not fit into 100 tokens .* so give shots=\d$") as caught:
        fit(7, max_tokens=100)
    count = int(str(caught.value)[-1])
    assert 0 < count < 7
    assert len(fit(count, max_tokens=100).best.reader.task.shots) == count
    with pytest.raises(PromptError, match=f"{count + 1} examples .* {count} would fit"):
        fit(count + 1, max_tokens=100)
    with pytest.raises(PromptError, match="none would fit; give shorter ones"):
        fit(2, max_tokens=40)


def test_texts_behind_examples_are_cut_and_the_examples_are_not(causal):
    task = make_task(shots=SHOTS, max_tokens=90)
    renderer = causal.renderer(task)
    with pytest.warns(CuecraftWarning, match="1 of 1 texts were cut"):
        piece = renderer.render([Example({"text": "a joy " * 200})])[0]
    assert piece.before[: len(renderer.shared_ids)] == renderer.shared_ids
    assert len(piece.before) == 90 - 32 - renderer._answer_length()
    with pytest.raises(PromptError, match=r"the template with 3 examples takes .* give fewer examples"):
        causal.renderer(replace(task, max_tokens=50)).render(make_examples())


def in_context(backbone, **parts):
    options = {"method_options": {"shots": 2}, "seed": 3, **parts}
    return PromptClassifier(backbone, "in-context", **options).fit(X, Y, dev=(X, Y))


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_the_artifact_holds_all_that_is_needed(kind, request, tmp_path):
    backbone = request.getfixturevalue(kind)
    own = in_context(backbone, template=MASKED if kind == "masked" else None)
    expected = own.predict_proba(X)
    own.save(tmp_path / "own")
    again = PromptClassifier.load(tmp_path / "own", backbone)
    assert len(again.task_.shots) == 2
    assert np.abs(again.predict_proba(X) - expected).max() < 1e-5
    manifest = json.loads((tmp_path / "own" / "manifest.json").read_text())
    assert [shot["label"] for shot in manifest["task"]["shots"]] == [LABELS[s.gold] for s in again.task_.shots]
    assert "2 labelled examples" in (tmp_path / "own" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_a_server_answers_in_batches_mixed_with_other_prompts(kind, request):
    backbone = request.getfixturevalue(kind)
    templates = {"behind": MASKED if kind == "masked" else "{text}{prompt: it was}{mask}", "first": FIRST}
    known = {name: in_context(backbone, template=template) for name, template in templates.items()}
    known |= {name: classifiers(backbone)[name] for name in ("hard", "deep", "soft-first")}
    served = {name: ServedPrompt.over(backbone, name, [own.artifact_]) for name, own in known.items()}
    asked = [(name, text) for text in X for name in known]
    rows = []
    for name, text in asked:
        example = served[name].example({"text": text})
        rows.append((served[name], example, served[name].members[0].ready.renderer.render([example])[0]))
    found = [list(decision.options.values()) for decision in decide_mixed(rows)]
    expected = {name: own.predict_proba(X) for name, own in known.items()}
    for (name, text), probabilities in zip(asked, found, strict=True):
        assert np.abs(expected[name][X.index(text)] - probabilities).max() < 1e-4, (name, text)


def test_a_served_prompt_has_read_its_examples(causal):
    own = in_context(causal)
    ready = causal.ready(own.artifact_.prompt, own.artifact_.task)
    assert ready.shared.shape[3] == len(ready.renderer.shared_ids) > 0
    assert causal.ready(own.artifact_.prompt, make_task()).shared is None


def test_bulk_answers_are_those_of_the_classifier(causal_folder, tmp_path):
    own = written(causal_folder, tmp_path / "prompt", "in-context", shots=2)
    texts = messages(30)
    classify(tmp_path / "prompt", write_jsonl(tmp_path / "in.jsonl", texts), tmp_path / "out")
    labels = [row["label"] for row in rows_of(tmp_path / "out")]
    assert labels == own.predict(texts).tolist()


@pytest.mark.parametrize("kind", ["causal", pytest.param("masked", marks=pytest.mark.slow)])
def test_an_exported_graph_answers_as_the_classifier(kind, request, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from cuecraft.export import GraphRequest, export_graph
    from cuecraft.export.runtime import ExportedClassifier

    if kind == "causal":  # with the slow tests, one graph is traced
        request.getfixturevalue("untraced")
    backbone = request.getfixturevalue(kind)
    own = in_context(backbone, template=MASKED if kind == "masked" else None)
    wanted = GraphRequest("onnx", "fp32", "cut", [Record({"text": text}) for text in X], 0.99)
    export_graph({"own": own.artifact_}, backbone, tmp_path / "out", wanted)
    assert np.abs(ExportedClassifier.load(tmp_path / "out").predict_proba(X) - own.predict_proba(X)).max() < 1e-4


def test_seeds_with_examples_of_their_own_answer_together(causal, tmp_path):
    members = [in_context(causal, seed=seed) for seed in (1, 2)]
    assert len({own.outcome_.best.reader.task.shots for own in members}) == 2
    mean = np.mean([own.predict_proba(X) for own in members], axis=0)
    for seed, own in enumerate(members):
        own.save(tmp_path / f"seed-{seed}")
    assert np.abs(PromptEnsemble.load(tmp_path, causal).predict_proba(X) - mean).max() < 1e-5
    with pytest.raises(ArtifactError, match="the same examples"):
        ServedPrompt.over(causal, "both", [load_artifact(tmp_path / f"seed-{seed}") for seed in (0, 1)])


def test_peft_has_no_place_for_examples(causal):
    with pytest.raises(ArtifactError, match="3 labelled examples stand before the prompt"):
        require_prompt_first(causal, make_task(FIRST, shots=SHOTS))


def test_the_command_line_tunes_and_predicts(command, causal_folder, tmp_path):
    lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in zip(X, Y, strict=True))
    (tmp_path / "train.jsonl").write_text(lines)
    options = ("--model", causal_folder, "--method", "in-context", "--option", "shots=2", "--out", "own")
    code, _, err = command("tune", "train.jsonl", *options)
    assert code == 0, err
    code, out, err = command("predict", "own", "a joy", "--json")
    assert code == 0, err
    assert json.loads(out)["predictions"][0]["label"] in LABELS
    code, _, err = command("tune", "train.jsonl", *options[:4], "--option", "shots=9", "--out", "other")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: in-context is to put 9 examples in the prompt, and there are 6")
