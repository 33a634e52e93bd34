"""Rows of one pass, each with a prompt of its own: class logits are those of each prompt alone."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import TEXTS, examples, make_causal, make_examples, make_task
from cuecraft.artifact import DeepCue, HardPrompt, PrefixPrompt, SoftPrompt
from cuecraft.backbone import Budget, ClassHead, MaskedBackbone, SequenceBackbone, columns, load_backbone
from cuecraft.core.errors import PromptError
from cuecraft.task import Task, Template, Verbalizer

LAST, WORDLESS, FIRST = "{text}{prompt: it was}{mask}", "{text}{prompt}{mask}", "{prompt}{text} so{mask}"
KINDS = ("hard", "soft", "deep", "prefix", "head")


def draw(*shape, seed=0):
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompt_of(kind, backbone, seed, head=None):
    base = HardPrompt(tuple(range(5 + seed, 7 + seed + seed % 3)), head)
    if kind == "soft":
        return SoftPrompt(draw(2 + seed % 2, backbone.hidden_size, seed=seed), head)
    if kind == "deep":
        return DeepCue(base, draw(*backbone.offsets_shape(len(base)), seed=seed))
    if kind == "prefix":
        return PrefixPrompt(base, draw(*backbone.states_shape(1 + seed % 2), seed=seed))
    return base


def three_classes(template):
    return Task(Template(template), Verbalizer(("a", "b", "c"), (("bad",), ("good", "great"), ("warm",))))


def tasks_of(backbone):
    """Prompts after the text, with words or without, and before it; label words of one token and of several."""
    if isinstance(backbone, SequenceBackbone):
        return [make_task("{prompt: it was}{text}"), make_task("{text}{prompt}"), three_classes("Say: {prompt}{text}")]
    if isinstance(backbone, MaskedBackbone):
        return [make_task(LAST), make_task(FIRST), three_classes(WORDLESS)]
    long_words = {"negative": ("a bore",), "positive": ("a joy", "the film of joy")}
    tasks = [make_task(LAST), make_task(FIRST), make_task(FIRST, long_words), make_task(WORDLESS, long_words)]
    return [*tasks, three_classes("Say: {prompt: is}{text} so{mask}"), three_classes(LAST)]


def alone(backbone, task, prompt, text):
    context = backbone.context(make_examples([(text, 0)]), task)
    return backbone.class_logits(context, prompt)[0]


def served(backbone, rows):
    ready = {}
    found = []
    for task, prompt, text in rows:
        own = ready.setdefault((id(task), id(prompt)), backbone.ready(prompt, task))
        found.append((own, own.renderer.render(make_examples([(text, 0)]))[0]))
    return backbone.mixed_logits(found)


@pytest.fixture(scope="module", params=["causal", "masked", "sequence"])
def stock(request):
    """A backbone with prompts of all kinds for several tasks."""
    backbone = request.getfixturevalue(request.param)
    found = []
    for number, task in enumerate(tasks_of(backbone)):
        for kind in KINDS:
            seed, classes = number + KINDS.index(kind), task.verbalizer.num_classes
            needs_head = kind == "head" or isinstance(backbone, SequenceBackbone)
            head = ClassHead(draw(classes, backbone.hidden_size, seed=seed), draw(classes)) if needs_head else None
            found.append((task, prompt_of(kind, backbone, seed, head)))
    return backbone, found


@examples(40)
@given(data=st.data())
def test_each_row_has_the_logits_of_its_prompt_alone(stock, data):
    backbone, prompts = stock
    chosen = data.draw(
        st.lists(
            st.tuples(st.sampled_from(prompts), st.sampled_from([text for text, _ in TEXTS])), min_size=1, max_size=9
        )
    )
    rows = [(task, prompt, text) for (task, prompt), text in chosen]
    found = served(backbone, rows)
    for row, own in zip(rows, found, strict=True):
        expected = alone(backbone, *row)
        assert own.shape == expected.shape
        assert torch.allclose(own, expected, atol=2e-5)


def passes_of(causal, monkeypatch):
    """Note the shape `[b, N]` of each pass."""
    shapes = []
    plain = causal._forward
    monkeypatch.setattr(causal, "_forward", lambda plan: shapes.append(plan.inputs.shape[:2]) or plain(plan))
    return shapes


def test_prompts_over_one_text_are_branches_of_one_row(causal, monkeypatch):
    shapes = passes_of(causal, monkeypatch)
    task, text, other = make_task(LAST), TEXTS[0][0], TEXTS[1][0]
    prompts = [prompt_of(kind, causal, 1) for kind in ("hard", "soft", "deep")]
    rows = [(task, prompt, text) for prompt in prompts] + [(task, prompts[0], other)]
    found = served(causal, rows)
    tokens = len(causal.tokenizer(text)["input_ids"]) + sum(map(len, prompts))
    assert shapes == [(2, tokens)]
    for row, own in zip(rows, found, strict=True):
        assert torch.allclose(own, alone(causal, *row), atol=2e-5)


def test_a_prompt_of_no_tokens_answers_at_the_end_of_the_text_that_it_shares(causal, monkeypatch):
    """Behind another prompt in the same row, the token before its place is that prompt's, not the text's."""
    shapes = passes_of(causal, monkeypatch)
    task = make_task(WORDLESS)
    rows = [(task, prompt, TEXTS[0][0]) for prompt in (prompt_of("soft", causal, 1), HardPrompt(()))]
    found = served(causal, rows)
    assert [count for count, _ in shapes] == [1]
    for row, own in zip(rows, found, strict=True):
        assert torch.allclose(own, alone(causal, *row), atol=2e-5)


def test_too_many_prompts_over_one_text_stand_in_rows_of_their_own(causal, monkeypatch):
    text, tasks = TEXTS[0][0], (make_task(LAST), make_task(WORDLESS))
    rows = [(task, prompt_of(kind, causal, 1), text) for task in tasks for kind in ("hard", "soft", "deep")]
    rows += [(tasks[1], HardPrompt(()), text)]
    monkeypatch.setattr(causal, "budget", Budget(tokens=1536, bytes=2**30, tree=8))
    shapes = passes_of(causal, monkeypatch)
    found = served(causal, rows)
    assert sum(count for count, _ in shapes) == len(rows)
    for row, own in zip(rows, found, strict=True):
        assert torch.allclose(own, alone(causal, *row), atol=2e-5)


def test_a_prompt_before_the_text_is_read_when_it_is_made_ready(causal, monkeypatch):
    prompt = prompt_of("soft", causal, 0)
    ready = causal.ready(prompt, make_task(FIRST))
    assert not len(ready.vectors)
    assert ready.opening.shape[3] == len(prompt)
    shapes = passes_of(causal, monkeypatch)
    piece = ready.renderer.render(make_examples(TEXTS[:1]))[0]
    causal.mixed_logits([(ready, piece)])
    assert shapes == [(1, len(piece.after))]


@pytest.mark.parametrize("kind", ["soft", "deep", "prefix"])
@pytest.mark.parametrize("backbone", ["causal", "masked", "sequence"])
def test_gradients_of_rows_are_those_of_each_prompt_alone(backbone, kind, request):
    """Two prompts over two texts each, of which one is the same."""
    backbone = request.getfixturevalue(backbone)
    task = tasks_of(backbone)[0 if kind == "prefix" or not isinstance(backbone, SequenceBackbone) else 1]
    name = {"soft": "tokens", "deep": "offsets", "prefix": "states"}[kind]
    head = ClassHead(draw(2, backbone.hidden_size), draw(2)) if isinstance(backbone, SequenceBackbone) else None
    prompts = [prompt_of(kind, backbone, seed, head) for seed in (1, 2)]
    leaves = [getattr(prompt, name).clone().requires_grad_() for prompt in prompts]
    prompts = [replace(prompt, **{name: leaf}) for prompt, leaf in zip(prompts, leaves, strict=True)]
    texts = [TEXTS[0][0], TEXTS[1][0]], [TEXTS[0][0], TEXTS[2][0]]
    rows = [(task, prompt, text) for prompt, own in zip(prompts, texts, strict=True) for text in own]
    ready = {id(prompt): backbone.ready(prompt, task) for prompt in prompts}
    pieces = [ready[id(own)].renderer.render(make_examples([(text, 0)]))[0] for _, own, text in rows]
    together = backbone.read_rows([(ready[id(own)], piece) for (_, own, _), piece in zip(rows, pieces, strict=True)])
    apart = [alone(backbone, *row) for row in rows]
    found, expected = (torch.autograd.grad(sum(own[0] for own in logits), leaves) for logits in (together, apart))
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 1e-4
        assert torch.allclose(one, other, atol=1e-5)


def test_a_small_budget_changes_no_logits(stock, monkeypatch):
    backbone, prompts = stock
    rows = [(task, prompt, text) for (task, prompt), (text, _) in zip(prompts, TEXTS * 3, strict=False)]
    expected = served(backbone, rows)
    monkeypatch.setattr(backbone, "budget", Budget(tokens=16, bytes=2**30))
    for own, other in zip(served(backbone, rows), expected, strict=True):
        assert torch.allclose(own, other, atol=2e-5)


@pytest.mark.parametrize("template", [LAST, FIRST])
def test_a_row_that_is_too_long_is_refused(causal, template):
    ready = causal.ready(HardPrompt(tuple(range(5, 131))), make_task(template))
    piece = ready.renderer.render(make_examples(TEXTS[:1]))[0]
    with pytest.raises(PromptError, match="but 128 fit"):
        causal.mixed_logits([(ready, piece)])


def test_a_prefix_needs_a_token_behind_it(causal):
    with pytest.raises(PromptError, match="nothing stands between the prefix"):
        causal.ready(PrefixPrompt(HardPrompt(()), draw(*causal.states_shape(2))), make_task(WORDLESS))


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_other_architectures_too(kind, byte_tokenizer):
    backbone = load_backbone((make_causal(byte_tokenizer, kind), byte_tokenizer))
    rows = [
        (make_task(template), prompt_of(name, backbone, 1), text)
        for template in (LAST, FIRST)
        for name in KINDS[:4]
        for text, _ in TEXTS[:2]
    ]
    for row, own in zip(rows, served(backbone, rows), strict=True):
        assert torch.allclose(own, alone(backbone, *row), atol=2e-5)


def test_a_model_with_an_ordinary_cache_only(causal, monkeypatch):
    monkeypatch.setattr(causal, "_shares_context", False)
    rows = [(make_task(template), prompt_of("soft", causal, 1), TEXTS[0][0]) for template in (LAST, LAST, FIRST)]
    for row, own in zip(rows, served(causal, rows), strict=True):
        assert torch.allclose(own, alone(causal, *row), atol=2e-5)


def test_how_options_of_texts_are_read_is_kept_of_few():
    """Texts that bring options never end where a server answers."""
    for token in range(columns._OPTIONS_KEPT + 10):
        columns._steps((((token,), (token, 1)),))
    assert columns._steps.cache_info().currsize == columns._OPTIONS_KEPT
