"""Threads that share a backbone, a classifier or a readout: each answer is the one that a thread alone gets."""

import itertools
import sys
import threading

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from conftest import make_causal, make_masked
from cuecraft import PromptClassifier
from cuecraft.artifact import HardPrompt
from cuecraft.backbone import load_backbone
from cuecraft.backbone.columns import FeatureReadout, LabelReadout
from cuecraft.backbone.hooks import entering
from cuecraft.backbone.likelihood import next_word_log_probabilities
from cuecraft.backbone.load import _load
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
    """A readout that two threads share: the second pass is made between the first one's pass and its scores."""
    ids = ((((70,), (80, 90)), ((75,), (81, 91))),)
    reads = LabelReadout(causal.model, ids[0])
    slots = torch.arange(1 + len(reads.beginnings))[None]

    def one_pass(seed):
        hidden = torch.randn(1, 8, causal.hidden_size, generator=torch.Generator().manual_seed(seed))
        with reads.reading(slots) as scores:
            logits = causal.model.lm_head(hidden)
        return scores, logits

    expected = [scores(logits) for scores, logits in (one_pass(1), one_pass(2))]
    first, second = one_pass(1), one_pass(2)
    assert torch.equal(first[0](first[1]), expected[0])
    assert torch.equal(second[0](second[1]), expected[1])
    features = FeatureReadout(causal.model)
    kept = []
    for seed in (1, 2):
        hidden = torch.full((1, 8, causal.hidden_size), float(seed))
        with features.reading(slots[:, :1]) as scores:
            kept.append((scores, causal.model.lm_head(hidden)))
    assert [float(scores(logits).mean()) for scores, logits in kept] == [1.0, 2.0]


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
def test_a_model_that_has_a_pass_under_way_is_copied_after_it(kind, request):
    backbone = request.getfixturevalue(kind)
    loaded = []
    loading = threading.Thread(
        target=lambda: loaded.append(load_backbone((backbone.model, backbone.tokenizer), backbone.head_kind))
    )
    with entering(backbone.layers, lambda layer, hidden: hidden):
        loading.start()
        loading.join(0.2)  # long enough for a copy that does not wait
        assert not loaded
    loading.join()
    assert not any(module._forward_pre_hooks for module in loaded[0].model.modules())


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
