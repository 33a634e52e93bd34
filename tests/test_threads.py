"""Threads that share a backbone, a classifier or a readout: each answer is the one that a thread alone gets."""

import copy
import itertools
import pickle
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from conftest import TEXTS, make_causal, make_examples, make_masked, make_task
from cuecraft import PromptClassifier
from cuecraft.artifact import DeepCue, HardPrompt, PrefixPrompt, SoftPrompt
from cuecraft.backbone import ClassHead, load_backbone
from cuecraft.backbone.columns import columns_of
from cuecraft.backbone.hooks import gradient_checkpointing, passing
from cuecraft.backbone.likelihood import next_word_log_probabilities
from cuecraft.backbone.load import _load
from cuecraft.backbone.query import Query
from cuecraft.data.texts import as_records
from cuecraft.methods.problem import label_context
from cuecraft.task.rendering import HeadKind
from cuecraft.task.token_text import special_ids

TRAIN = ["a good film", "the plot is bad", "great actors", "a bore from start to finish"]
LABELS = ["good", "bad", "good", "bad"]
WORDS = {"good": ["good", "a joy"], "bad": ["bad", "an awful bore"]}  # of several tokens: normalisers are kept
ONE_WORD = {"good": "good", "bad": "bad"}


def texts_with(tokenizer, count):
    """Return texts of many lengths that hold special tokens, which have to stay text."""
    special = [token for token in tokenizer.all_special_tokens if token != tokenizer.unk_token]
    parts = itertools.cycle(["a good film", "the plot", "great", "never dull", "bad from start to finish"])
    return [" ".join(itertools.islice(parts, 1 + n % 4)) + special[n % len(special)] + "joy" for n in range(count)]


def together(*works):
    """Run works in threads that begin at once and take turns as often as Python can; return what they return."""
    found, errors = [None] * len(works), []
    barrier = threading.Barrier(len(works))

    def run(number, work):
        try:
            barrier.wait()
            found[number] = work()
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=run, args=pair) for pair in enumerate(works)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors, errors
    return found


def fitted(backbone, method, words=None, **options):
    classifier = PromptClassifier(backbone, method, label_words=words, method_options=options, seed=3)
    return classifier.fit(TRAIN, LABELS, dev=(TRAIN, LABELS))


def answering(classifier, texts, rounds, alone):
    """Return what asks for texts, some at a time, and returns the greatest distance to the answers of one alone."""

    def work():
        worst = 0.0
        for step in range(rounds):
            start, count = step * 7 % len(texts), 1 + step % 5
            own = [(start + n) % len(texts) for n in range(count)]
            found = classifier.predict_proba([texts[n] for n in own])
            worst = max(worst, float(np.abs(found - alone[own]).max()))
        return worst

    return work


def swarm(backbone, classifiers, folder, rounds, threads):
    """Ask classifiers over one backbone from threads, while others load prompts and read features and words."""
    texts = texts_with(backbone.tokenizer, 40)
    alone = [classifier.predict_proba(texts) for classifier in classifiers]
    classifiers[0].save(folder)
    works = [
        answering(classifiers[n % len(classifiers)], texts, rounds, alone[n % len(classifiers)]) for n in range(threads)
    ]
    done = threading.Event()
    left = [threads]
    lock = threading.Lock()

    def counted(work):
        try:
            return work()
        finally:
            with lock:
                left[0] -= 1
                if not left[0]:
                    done.set()

    task = classifiers[0].task_
    data = label_context(backbone, task, task.examples(as_records(texts[:6])))
    features = backbone.features(data.context, HardPrompt((5, 6))).detach()

    def loading():
        worst, times = 0.0, 0
        while not done.is_set() or not times:
            loaded = PromptClassifier.load(folder, model=backbone)
            worst = max(worst, float(np.abs(loaded.predict_proba(texts[:3]) - alone[0][:3]).max()))
            times += 1
        return worst

    def reading():
        worst, times = 0.0, 0
        while not done.is_set() or not times:
            found = backbone.features(data.context, HardPrompt((5, 6))).detach()
            worst = max(worst, float((found - features).abs().max()))
            if backbone.head_kind is not HeadKind.SEQUENCE:
                next_word_log_probabilities(backbone, data.context, HardPrompt((5, 6)))
            special_ids(backbone.tokenizer)
            times += 1
        return worst

    found = together(*(lambda work=work: counted(work) for work in works), loading, reading)
    assert max(found) <= 1e-6, found


@pytest.fixture
def shared(request, byte_tokenizer, word_tokenizer, sequence):
    """A backbone of its own for each kind, so that no other test has put its tokenizer into a state."""
    if request.param == "causal":
        backbone = load_backbone((make_causal(byte_tokenizer), byte_tokenizer))
        return backbone, [fitted(backbone, "zero-shot", WORDS), fitted(backbone, "prefix-tuning", WORDS, epochs=1)]
    if request.param == "masked":
        backbone = load_backbone((make_masked(word_tokenizer), word_tokenizer))
        return backbone, [
            fitted(backbone, "zero-shot", ONE_WORD),
            fitted(backbone, "prefix-tuning", ONE_WORD, epochs=1),
        ]
    return sequence, [fitted(sequence, "deep-cue", epochs=1), fitted(sequence, "prefix-tuning", epochs=1)]


KINDS = ["causal", "masked", "sequence"]


@pytest.mark.parametrize("shared", KINDS, indirect=True)
def test_threads_over_one_backbone_get_the_answers_of_one_alone(shared, tmp_path):
    swarm(*shared, tmp_path / "prompt", rounds=40, threads=4)


@pytest.mark.slow
@pytest.mark.parametrize("shared", KINDS, indirect=True)
def test_eight_threads_get_2000_answers_each(shared, tmp_path):
    swarm(*shared, tmp_path / "prompt", rounds=670, threads=8)  # 1 to 5 texts a round, 3 on average


def test_two_passes_under_way_keep_what_they_read_apart(causal):
    """Columns that two threads share: the second pass is made between the first one's pass and its scores."""
    options = (((70,), (80, 90)), ((75,), (81, 91)))
    columns = columns_of(causal.model, Query("options", options), None)
    hidden = [
        torch.randn(1, 1 + len(columns.beginnings), causal.hidden_size, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 2)
    ]
    expected = [columns.scores(*columns.logits(own)) for own in hidden]
    first, second = (columns.logits(own) for own in hidden)
    assert torch.equal(columns.scores(*first), expected[0])
    assert torch.equal(columns.scores(*second), expected[1])
    assert not torch.allclose(*expected)


@pytest.mark.parametrize("kind", KINDS)
def test_passes_meet_in_the_middle_of_the_model_and_nothing_waits(kind, request):
    """Eight threads are in the first layer at once, each with its own texts and prompt; a copy is made meanwhile."""
    backbone = request.getfixturevalue(kind)
    task = make_task("{prompt}{text}" if kind == "sequence" else "{text}{prompt}{mask}")
    prompts = [prompt for seed in range(2) for prompt in prompts_of_all_kinds(backbone, seed)]
    contexts = [backbone.context(make_examples(TEXTS[n:] + TEXTS[:1]), task) for n in range(len(prompts))]
    pairs = list(zip(contexts, prompts, strict=True))
    alone = [backbone.class_logits(*pair) for pair in pairs]
    meeting = threading.Barrier(len(prompts), action=lambda: copies.append(copy.deepcopy(backbone.model)), timeout=60)
    copies, met = [], threading.local()

    def meet(module, args):
        if not getattr(met, "is_done", False):
            met.is_done = True
            meeting.wait()

    handle = backbone.layers[0].register_forward_pre_hook(meet)
    try:
        found = together(*(lambda pair=pair: backbone.class_logits(*pair) for pair in pairs))
    finally:
        handle.remove()
    for own, expected in zip(found, alone, strict=True):
        assert torch.allclose(own, expected, atol=1e-6)
    ids = torch.tensor([[5, 6, 7]])
    first, other = (model(input_ids=ids)[0] for model in (backbone.model, copies[0].apply(without_hooks)))
    assert torch.equal(first, other)


def without_hooks(module):
    module._forward_pre_hooks.clear()


def prompts_of_all_kinds(backbone, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator) / 3  # noqa: E731
    head = ClassHead(draw(2, backbone.hidden_size), draw(2)) if backbone.head_kind is HeadKind.SEQUENCE else None
    words = HardPrompt((5 + seed, 6), head)
    yield words
    yield SoftPrompt(draw(2, backbone.hidden_size), head)
    yield DeepCue(words, draw(*backbone.offsets_shape(2)))
    yield PrefixPrompt(words, draw(*backbone.states_shape(3)))


@pytest.mark.parametrize("kind", KINDS)
def test_layers_computed_again_in_another_thread_belong_to_their_pass(kind, request):
    """Backward passes run in a thread of their own, as on a GPU, while another pass is under way there."""
    backbone = request.getfixturevalue(kind)
    task = make_task("{prompt}{text}" if kind == "sequence" else "{text}{prompt}{mask}")
    context = backbone.context(make_examples(), task)
    *_, prefix = prompts_of_all_kinds(backbone, 0)
    states = prefix.states.clone().requires_grad_()
    given = replace(prefix, states=states)
    (plain,) = torch.autograd.grad(backbone.class_logits(context, given)[:, 0].sum(), [states])
    with gradient_checkpointing():
        loss = backbone.class_logits(context, given)[:, 0].sum()

    def backward():
        with passing(change=lambda layer, hidden: hidden * 0):
            return torch.autograd.grad(loss, [states])[0]

    assert torch.allclose(*together(backward), plain, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_computed_again_for_each_backward_pass(kind, request):
    backbone = request.getfixturevalue(kind)
    task = make_task("{prompt}{text}" if kind == "sequence" else "{text}{prompt}{mask}")
    context = backbone.context(make_examples(), task)
    _, soft, _, _ = prompts_of_all_kinds(backbone, 0)
    vectors = soft.tokens.clone().requires_grad_()
    with gradient_checkpointing():
        loss = backbone.class_logits(context, replace(soft, tokens=vectors))[:, 0].sum()
    first, second = (torch.autograd.grad(loss, [vectors], retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_model_in_memory_is_not_changed_by_its_backbone(byte_tokenizer):
    model = make_causal(byte_tokenizer)
    classes = {name: type(module) for name, module in model.named_modules()}
    backbone = load_backbone((model, byte_tokenizer))
    with passing(change=lambda layer, hidden: hidden * 0):
        assert not torch.equal(model(torch.tensor([[5, 6]])).logits, backbone.model(torch.tensor([[5, 6]])).logits)
    assert {name: type(module) for name, module in model.named_modules()} == classes


def test_a_hosted_model_in_a_pickle_is_hosted_still(causal):
    ids = torch.tensor([[5, 6]])
    again = pickle.loads(pickle.dumps(causal.model))
    assert torch.equal(again(ids).logits, causal.model(ids).logits)
    with passing(change=lambda layer, hidden: hidden + layer):
        assert torch.equal(again(ids).logits, causal.model(ids).logits)


def test_layers_of_a_model_that_accelerate_has_placed_are_reached(byte_tokenizer):
    hooks = pytest.importorskip("accelerate.hooks")
    plain = make_causal(byte_tokenizer)
    placed = copy.deepcopy(plain).eval().requires_grad_(False)
    for module in list(placed.modules()):
        hooks.add_hook_to_module(module, hooks.AlignDevicesHook("cpu"))
    found, backbone = (load_backbone((model, byte_tokenizer)) for model in (placed, plain))
    assert found.model is placed
    for prompt in prompts_of_all_kinds(backbone, 0):
        own, expected = (
            one.class_logits(one.context(make_examples(), make_task()), prompt) for one in (found, backbone)
        )
        assert torch.allclose(own, expected, atol=1e-6)


def test_loads_at_once_leave_the_notices_of_transformers_as_they_were(causal_folder, monkeypatch):
    """The first load ends while the second one is under way, which then must not keep what the first had set."""
    second_began, first_ended = threading.Event(), threading.Event()
    numbers = itertools.count()
    read = AutoTokenizer.from_pretrained

    def reading(*args, **kwargs):
        if next(numbers):
            second_began.set()
            first_ended.wait(0.3)  # does not end before where the second one holds the lock
        else:
            second_began.wait(0.2)  # never comes where loads wait for each other
        return read(*args, **kwargs)

    def first():
        load_backbone(causal_folder)
        first_ended.set()

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", reading)
    _load.cache_clear()
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_warning()
    logging.enable_progress_bar()
    try:
        together(first, lambda: load_backbone(causal_folder, "sequence"))
        assert logging.get_verbosity() == logging.WARNING
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(verbosity)
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()


def test_texts_are_read_by_a_tokenizer_whose_state_no_other_call_changes(causal):
    """Literals may hold special tokens and texts may not: neither call changes the other's tokenizer."""
    text = "good</s>film"
    plain = causal.text_tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert causal.tokenizer.eos_token_id not in plain
    causal.tokenizer(text, add_special_tokens=False)
    assert causal.text_tokenizer.backend_tokenizer.encode_special_tokens
    assert not causal.tokenizer.backend_tokenizer.encode_special_tokens
    assert causal.text_tokenizer.backend_tokenizer is not causal.tokenizer.backend_tokenizer
