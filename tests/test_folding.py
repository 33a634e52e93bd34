"""One module from token ids to probabilities: the oracle is each prompt alone, in the backbone's own pass."""

import pytest
import torch

from conftest import TEXTS, make_examples, make_task
from cuecraft.backbone import CausalBackbone, ClassHead, SequenceBackbone
from cuecraft.errors import TemplateError
from cuecraft.export.folding import fold
from cuecraft.prompts import Calibration, HardPrompt
from cuecraft.task import Template
from test_mixed import KINDS, alone, draw, prompt_of, tasks_of

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
        own = ClassHead(draw(classes, backbone.hidden_size, seed=seed), draw(classes)) if needs_head else None
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
