"""One module from token ids to probabilities: the oracle is each prompt alone, in the backbone's own pass."""

import pytest
import torch

from conftest import TEXTS, lively, make_causal, make_examples, make_task
from cuecraft.artifact import Calibration, HardPrompt
from cuecraft.backbone import CausalBackbone, ClassHead, FeatureScale, SequenceBackbone, load_backbone
from cuecraft.core.errors import ExportError, TemplateError
from cuecraft.export.folding import FoldedSeveral, check_together, fold
from cuecraft.task import Template
from test_families import family
from test_mixed import FIRST, KINDS, LAST, alone, draw, prompt_of, tasks_of, three_classes

LONG = [("the film is a joy and then it was love " * 2, 1), ("joy", 1)]
CALIBRATION = Calibration((0.3, -0.1, 0.2), 0.8)


def laid_out(frame, pieces, is_left):
    """Ids and mask of a batch, written out row by row."""
    texts = [frame.inner(own) for own in pieces]
    ids, mask = torch.zeros(2, len(texts), max(map(len, texts)), dtype=torch.long)
    for row, own in enumerate(texts):
        start = ids.shape[1] - len(own) if is_left else 0
        ids[row, start : start + len(own)] = torch.tensor(own)
        mask[row, start : start + len(own)] = 1
    return ids, mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["causal", "masked", "sequence"])
def test_a_folded_prompt_answers_as_it_does_alone(head, kind, request):
    backbone = request.getfixturevalue(head)
    examples = [text for text, _ in [*TEXTS, *LONG]]
    for number, task in enumerate(tasks_of(backbone)):
        seed, classes = number + KINDS.index(kind), task.verbalizer.num_classes
        needs_head = kind == "head" or isinstance(backbone, SequenceBackbone)
        weight, scale = draw(classes, backbone.hidden_size, seed=seed), tuple(FeatureScale)[number % 2]
        own = ClassHead(weight, draw(classes), scale) if needs_head else None
        prompt = prompt_of(kind, backbone, seed, own)
        calibration = Calibration(CALIBRATION.bias[:classes], CALIBRATION.scale)
        ready = backbone.ready(prompt, task)
        folded, frame = fold(backbone, ready, calibration), ready.renderer.frame()
        pieces = ready.renderer.render(make_examples([(text, 0) for text in examples]))
        expected = torch.stack([alone(backbone, task, prompt, text) for text in examples])
        expected = calibration.apply(expected).softmax(-1)
        sides = [True, False] if isinstance(backbone, CausalBackbone) and frame.closing else [head == "causal"]
        for is_left in sides:
            with torch.no_grad():
                ids, mask = laid_out(frame, pieces, is_left)
                assert torch.allclose(folded(ids, mask), expected, atol=2e-5), (task.template.source, is_left)
                one = laid_out(frame, pieces[:1], is_left)
                assert torch.allclose(folded(*one), expected[:1], atol=2e-5)


def test_a_prompt_between_two_fields_has_no_place_in_a_graph(causal):
    task = make_task("{a}{prompt} and {b}{mask}")
    ready = causal.ready(HardPrompt((5, 6)), task)
    with pytest.raises(TemplateError, match="between two fields"):
        fold(causal, ready, Calibration.none(2))


@pytest.mark.parametrize("source", ["{a} and {b}{prompt: it was}{mask}", "{prompt: say}{a} and {b} so{mask}"])
def test_several_fields_keep_what_stands_between_them(causal, source):
    renderer = causal.renderer(make_task(source))
    frame = renderer.frame()
    pieces = renderer.render([make_examples([("x", 0)])[0].__class__({"a": "a joy", "b": "a bore"})])[0]
    between = tuple(causal.tokenizer(" and", add_special_tokens=False)["input_ids"])
    fields = [tuple(causal.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("a joy", " a bore")]
    assert frame.inner(pieces) == fields[0] + between + fields[1]
    assert [own.name for own in frame.span if not isinstance(own, tuple)] == ["a", "b"]
    assert Template(source).field_names == ("a", "b")


def together(backbone, kinds):
    """Prompts of some kinds for tasks of two and of three classes whose templates begin alike."""
    templates = ("Say: {text}{prompt: it was}{mask}", "Say: {text}{prompt} so{mask}")
    found = []
    for number, kind in enumerate(kinds):
        task = three_classes(templates[number % 2]) if number % 3 == 1 else make_task(templates[number % 2])
        found.append((task, prompt_of(kind, backbone, number)))
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt-neox", "opt"])
@pytest.mark.parametrize("kinds", [("hard", "soft"), ("soft", "deep", "hard", "deep")])
def test_several_folded_prompts_answer_as_each_alone(name, kinds, byte_tokenizer):
    model = make_causal(byte_tokenizer, name) if name in ("llama", "gpt2") else lively(family(name, byte_tokenizer))
    backbone = load_backbone((model, byte_tokenizer))
    own = together(backbone, kinds)
    ready = [backbone.ready(prompt, task) for task, prompt in own]
    check_together(backbone, {str(number): one for number, one in enumerate(ready)})
    calibrations = [
        Calibration(CALIBRATION.bias[: one.num_options], CALIBRATION.scale + n) for n, one in enumerate(ready)
    ]
    folded = FoldedSeveral(backbone, list(zip(ready, calibrations, strict=True)))
    texts = [text for text, _ in [*TEXTS, *LONG]]
    pieces = ready[0].renderer.render(make_examples([(text, 0) for text in texts]))
    expected = []
    for (task, prompt), calibration in zip(own, calibrations, strict=True):
        logits = torch.stack([alone(backbone, task, prompt, text) for text in texts])
        expected.append(calibration.apply(logits).softmax(-1))
    last = len(own) - 1
    for asked in ([0], [last], [1, 0], list(range(len(own)))):
        for is_left in (True, False):
            with torch.no_grad():
                found = folded(*laid_out(ready[0].renderer.frame(), pieces, is_left), torch.tensor(asked))
            for column, number in enumerate(asked):
                classes = expected[number].shape[1]
                assert torch.allclose(found[:, column, :classes], expected[number], atol=2e-5), (asked, number)
                assert not found[:, column, classes:].any()


def test_prompts_that_cannot_be_branches_of_one_text_are_refused(causal, byte_tokenizer):
    def refused(backbone, prompt, task, message):
        own = {"own": backbone.ready(HardPrompt((5, 6)), make_task(LAST)), "other": backbone.ready(prompt, task)}
        with pytest.raises(ExportError, match=message):
            check_together(backbone, own)

    head = ClassHead(draw(2, causal.hidden_size), draw(2))
    refused(causal, prompt_of("prefix", causal, 1), make_task(LAST), "'other' is a prefix of keys and values")
    refused(causal, HardPrompt((5, 6), head), make_task(LAST), "'other' answers by a class head")
    long_words = {"negative": ("a bore",), "positive": ("a joy",)}
    refused(causal, HardPrompt((5, 6)), make_task(LAST, long_words), "by label words of several tokens")
    refused(causal, HardPrompt((5, 6)), make_task(FIRST), "'other' stands before the text")
    refused(causal, HardPrompt(()), make_task("{text}{prompt}{mask}"), "'other' has nothing behind the text")
    counting = load_backbone((lively(family("gpt-neo", byte_tokenizer)), byte_tokenizer))
    refused(counting, HardPrompt((5, 6)), make_task(LAST), "masks by the number of tokens")
