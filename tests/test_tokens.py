"""Labels of words: alignment with any tokenizer, tags and spans, scores of seqeval, reading at first tokens."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from conftest import DATA, LM_TEMPLATE, WORDS, examples
from cuecraft.artifact import DeepCue, HardPrompt, PrefixPrompt, SoftPrompt, load_artifact
from cuecraft.artifact.predictor import Predictor
from cuecraft.backbone import Budget, ClassHead
from cuecraft.backbone.encoder import Pooling
from cuecraft.core.checkpoints import Checkpoints, Keeping
from cuecraft.core.errors import (
    BackboneError,
    CuecraftWarning,
    DataError,
    LabelWordError,
    MethodError,
    TemplateError,
)
from cuecraft.data import Record, read_records
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.objectives import Golds, objective_of
from cuecraft.methods.prepare import make_problem
from cuecraft.methods.registry import METHODS, make_method
from cuecraft.serving.artifacts import Shelf
from cuecraft.serving.engine import Engine
from cuecraft.task import Example, Task, Template
from cuecraft.task.alignment import CUT, UNREAD, first_tokens, words_of, words_within
from cuecraft.task.answers import AnswerColumns
from cuecraft.task.answers.tokens import TokenLabels, TokenOptions, best_tags
from cuecraft.task.token_text import text_ids, text_places

SPACE = TokenLabels(("film", "mood"))
SLOTS = DATA / "answers" / "nluplusplus" / "banking"
IN_ROWS = TokenLabels.in_rows(AnswerColumns("spans"))
#: Texts of the tiny tokenizers' words, and spans (label, first word, last word).
LABELLED = [
    ("a joy from start to finish", [("mood", 1, 1)]),
    ("the film is a bore", [("film", 0, 1), ("mood", 4, 4)]),
    ("the story of love and war is warm, bright and good", [("film", 0, 5), ("mood", 7, 7), ("mood", 9, 9)]),
    ("again and again", []),
    ("great actors in a dull plot!", [("mood", 0, 0), ("mood", 4, 4), ("film", 5, 5)]),
    ("start to finish", []),
    ("the plot", [("film", 0, 1)]),
    ("it was never good; this story was cold", [("mood", 3, 3), ("film", 5, 6), ("mood", 8, 8)]),
]


def spans_of(text, labelled):
    words = words_of(text)
    return tuple((label, words[first][0], words[last][1]) for label, first, last in labelled)


def rows_of(labelled=LABELLED):
    return [Record({"text": text}, spans_of(text, own)) for text, own in labelled]


TASK = Task(Template("{prompt}{text}"), SPACE)


def problem_of(backbone, task=TASK, **options):
    rows = rows_of()
    return make_problem(backbone, task, rows, rows, **options)


# Words, and the first token of each.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("at 5pm, John's", ["at", "5pm", ",", "John", "'", "s"]),
        ("  £3,000.50\tor so\n", ["£", "3", ",", "000", ".", "50", "or", "so"]),
        ("cafe\u0301 \u00e9t\u00e9", ["cafe\u0301", "\u00e9t\u00e9"]),
        ("co\u00adop \u200bx\u200b", ["co\u00adop", "x"]),
        ("\u6771\u4eac\u3068NY", ["\u6771", "\u4eac", "\u3068", "NY"]),
        ("\u0e01\u0e33\u0e25\u0e31\u0e07", ["\u0e01", "\u0e33", "\u0e25\u0e31", "\u0e07"]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 a", ["\u0939\u093f\u0928\u094d\u0926\u0940", "a"]),
        ("a_b [SEP] </s>", ["a", "_", "b", "[", "SEP", "]", "<", "/", "s", ">"]),
        ("\U0001f600\ufe0f ok", ["\U0001f600\ufe0f", "ok"]),
        ("", []),
        (" \u200b\t", []),
    ],
)
def test_words_are_runs_of_letters_and_other_characters(text, words):
    assert [text[start:stop] for start, stop in words_of(text)] == words


def metaspace_tokenizer():
    """A Unigram tokenizer with SentencePiece's marks of spaces, and a normalizer that joins and drops characters."""
    pieces = [("<unk>", 0.0), ("\u2581", -3.0), ("<s>", -9.0), ("</s>", -9.0)]
    pieces += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz.,:;!?'-[]</>\u6771\u4eac"]
    pieces += [("\u2581" + word, -4.0) for word in WORDS] + [("\u6771\u4eac", -4.0), ("ing", -4.0), (".,", -4.0)]
    raw = Tokenizer(models.Unigram(pieces, unk_id=0))
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("q", "")])
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def tokenizers_of(word_tokenizer, byte_tokenizer):
    return {"wordpiece": word_tokenizer, "bytes": byte_tokenizer, "metaspace": metaspace_tokenizer()}


def reference_first_tokens(words, tokens):
    """Of each word the first token, in order, that covers some of it and no word before has."""
    found, taken = [], set()
    for start, stop in words:
        own = [n for n, (a, b) in enumerate(tokens) if a < b and a < stop and b > start and n not in taken]
        own = [n for n in own if not taken or n > max(taken)]
        found.append(own[0] if own else UNREAD)
        taken |= set(own[:1])
    return found


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "metaspace"])
@examples(60)
@given(
    text=st.text(alphabet="aQbe \u0130\u00e9\ufb01\u6771\u4eac\u200b\u0301.,'-[]</s>\t\U0001f600\u00df1", max_size=24)
)
def test_first_tokens_of_any_text(kind, text, tokenizers_of):
    tokenizer = tokenizers_of[kind]
    words, places = words_of(text), text_places(tokenizer, text)
    assert len(places) == len(text_ids(tokenizer, [text])[0])
    found = first_tokens(words, places)
    assert found == reference_first_tokens(words, places)
    read = [own for own in found if own != UNREAD]
    assert read == sorted(set(read))
    for (start, stop), own in zip(words, found, strict=True):
        assert own == UNREAD or (places[own][0] < stop and places[own][1] > start)


def test_first_tokens_of_what_tokenizers_do_to_texts(tokenizers_of):
    def pieces(kind, text):
        tokenizer = tokenizers_of[kind]
        found = first_tokens(words_of(text), text_places(tokenizer, text))
        tokens = tokenizer.convert_ids_to_tokens(text_ids(tokenizer, [text])[0])
        return [None if own == UNREAD else tokens[own] for own in found]

    # lower-cased, accents taken off, and words in parts
    assert pieces("wordpiece", "The F\u0130LM, zest!") == ["the", "film", ",", "z", "!"]
    assert pieces("metaspace", "The F\u0130LM, zest!") == ["\u2581the", "f", ",", "z", "!"]
    # special tokens that a text spells stay text
    assert pieces("wordpiece", "a [SEP] b") == ["a", "[UNK]", "s", "[UNK]", "b"]
    # bytes: a word's token begins with the space before it; a character of several bytes has several tokens
    assert pieces("bytes", "the film") == ["t", "\u0120film"]
    assert pieces("bytes", "\u6771\u4eac") == ["\u00e6", "\u00e4"]
    # two words in one token: the first has it, unless another token stands before it
    assert pieces("metaspace", "film .,") == ["\u2581film", ".,", None]
    assert pieces("metaspace", "\u6771\u4eac") == ["\u2581", "\u6771\u4eac"]
    # a word whose only character vanishes, and letters that become two
    assert pieces("metaspace", "\ufb01lm q story") == ["\u2581film", None, "\u2581story"]


# Tags, spans, and the likeliest of them.


@examples(60)
@given(data=st.data())
def test_spans_at_words_come_back_exactly(data):
    text = data.draw(st.text(alphabet="ab \u00e9\u6771.'\u200b\t", min_size=1, max_size=20))
    words = words_of(text)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(words)), max_size=6)))
    spans = tuple(
        (data.draw(st.sampled_from(SPACE.labels)), words[first][0], words[stop - 1][1])
        for first, stop in itertools.pairwise(cuts)
        if data.draw(st.booleans())
    )
    gold = SPACE.gold(Record({"text": text}, spans))
    assert gold.exact == len(spans)
    assert tuple(span for _, _, span in SPACE.spans(gold.tags, words)) == spans == SPACE.label(gold)


def test_a_span_that_begins_within_a_word_has_the_whole_word():
    gold = SPACE.gold(Record({"text": "a dull5 plot"}, (("mood", 2, 6), ("film", 6, 7))))
    assert gold.tags == (0, 3, 0)  # the word's first span has it
    assert gold.spans == (("mood", 2, 6), ("film", 6, 7))
    assert gold.exact == 0


def test_words_that_were_not_read_follow_those_around_them():
    words = [(0, 3), (3, 4), (4, 7), (8, 11), (12, 13)]
    assert [own for _, _, own in SPACE.spans([1, -1, 2, 0, 0], words)] == [("film", 0, 7)]
    assert [own for _, _, own in SPACE.spans([1, -1, 0, 3, -1], words)] == [("film", 0, 4), ("mood", 8, 11)]
    assert [own for _, _, own in SPACE.spans([1, -1, -1, -1, 2], words)] == [("film", 0, 13)]
    assert SPACE.spans([-1, -1, 0, 0, 0], words) == []


def is_possible(tags):
    return all(tag == 0 or tag % 2 or before in (tag - 1, tag) for before, tag in itertools.pairwise([0, *tags]))


def test_the_likeliest_tags_are_those_of_brute_force():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(5), (30, 5))
    read = random.random((30, 5)) > 0.2
    paths = best_tags(probabilities * read[..., None])
    for own, known, path in zip(np.log(probabilities), read, paths, strict=True):
        assert (path[~known] == -1).all()
        rows = np.flatnonzero(known)
        possible = [tags for tags in itertools.product(range(5), repeat=len(rows)) if is_possible(tags)]
        best = max(possible, key=lambda tags: sum(own[row, tag] for row, tag in zip(rows, tags, strict=True)))
        assert path[known].tolist() == list(best)


def values_of(labelled, seed=0, noise=3.0):
    """Values of texts whose likeliest tags are mostly the right ones."""
    golds = [SPACE.gold(row) for row in rows_of(labelled)]
    width = max(len(gold.tags) for gold in golds)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(golds), width, SPACE.head_rows, generator=generator, dtype=torch.float64)
    for row, gold in enumerate(golds):
        for word, tag in enumerate(gold.tags):
            values[row, word, tag] += noise
        values[row, len(gold.tags) :] = -torch.inf
    return Golds(objective_of(SPACE), tuple(golds)), values.flatten(1)


def decisions_of(values, labelled):
    texts = [Example({"text": text}) for text, _ in labelled]
    return SPACE.decide(SPACE.probabilities(values.numpy()), texts)


def entities(tags):
    """Spans of words of BIO tags, by a loop of its own."""
    found, start = [], None
    for word, tag in enumerate([*tags, "O"]):
        if start is not None and not (tag.startswith("I-") and tag[2:] == tags[start][2:]):
            found.append((tags[start][2:], start, word))
            start = None
        if tag.startswith("B-"):
            start = word
    return set(found)


def bio(gold_or_decision, words):
    spans = [(one["label"], one["start"], one["end"]) for one in gold_or_decision]
    tags = ["O"] * len(words)
    for label, start, stop in spans:
        own = words_within(words, start, stop)
        for number, word in enumerate(own):
            tags[word] = f"{'I' if number else 'B'}-{label}"
    return tags


def tag_lists(seed):
    golds, values = values_of(LABELLED, seed, noise=2.0)
    decisions = decisions_of(values, LABELLED)
    there = [bio([{"label": a, "start": b, "end": c} for a, b, c in gold.spans], gold.words) for gold in golds.values]
    found = [bio(own.value, gold.words) for own, gold in zip(decisions, golds.values, strict=True)]
    return SPACE.measure(decisions, golds.values), there, found


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_brute_force(seed):
    measured, there, found = tag_lists(seed)
    pairs = [(entities(one), entities(other)) for one, other in zip(there, found, strict=True)]

    def f1(parts):
        right, made, known = (sum(len(own) for own in part) for part in zip(*parts, strict=True))
        return 2 * right / (made + known) if made + known else 1.0

    def counted(label=None):
        return [tuple({e for e in part if label in (None, e[0])} for part in (a & b, b, a)) for a, b in pairs]

    assert measured["entity_f1"] == pytest.approx(f1(counted()))
    assert measured["text_f1"] == pytest.approx(np.mean([f1([own]) for own in counted()]))
    assert measured["macro_f1"] == pytest.approx(np.mean([f1(counted(label)) for label in SPACE.labels]))
    assert 0.2 < measured["entity_f1"] < 1.0


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_seqeval(seed):
    metrics = pytest.importorskip("seqeval.metrics", reason="pip install seqeval")
    measured, there, found = tag_lists(seed)
    assert measured["entity_f1"] == pytest.approx(metrics.f1_score(there, found))
    assert measured["entity_precision"] == pytest.approx(metrics.precision_score(there, found))
    assert measured["entity_recall"] == pytest.approx(metrics.recall_score(there, found))
    assert measured["macro_f1"] == pytest.approx(metrics.f1_score(there, found, average="macro"))


def test_a_text_without_spans_in_which_none_are_found_is_right():
    golds, values = values_of([LABELLED[3], LABELLED[5]], noise=50.0)
    assert golds.scores(values).primary.tolist() == [1.0, 1.0]
    assert SPACE.measure(decisions_of(values, [LABELLED[3], LABELLED[5]]), golds.values)["entity_f1"] == 0.0


def test_confidences_are_probabilities_of_tags():
    golds, values = values_of(LABELLED)
    probabilities = SPACE.probabilities(values.numpy()).reshape(len(LABELLED), -1, 5)
    for own, gold, table in zip(decisions_of(values, LABELLED), golds.values, probabilities, strict=True):
        tags = [["O", "B-film", "I-film", "B-mood", "I-mood"].index(tag) for tag in bio(own.value, gold.words)]
        shares = [table[word, tag] for word, tag in enumerate(tags)]
        assert own.confidence == pytest.approx(np.prod(shares))
        for one, (name, confidence) in zip(own.value, own.options.items(), strict=True):
            words = words_within(gold.words, one["start"], one["end"])
            behind = table[words[-1] + 1, 2 + 2 * SPACE.labels.index(one["label"])] if words[-1] + 1 < len(tags) else 0
            assert name == f"{one['label']} {one['start']}-{one['end']}"
            assert confidence == pytest.approx(np.prod([shares[word] for word in words]) * (1 - behind))


def test_strata_hold_the_rarest_label():
    space = TokenLabels(("a", "b", "c"))

    def gold(*labels):
        text = " ".join("x" * len(labels)) or "x"
        return space.gold(Record({"text": text}, tuple((own, 2 * n, 2 * n + 1) for n, own in enumerate(labels))))

    golds = [gold()] * 6 + [gold("a")] * 9 + [gold("a", "b")] * 5 + [gold("b")] * 2
    assert space.strata(golds) == [0] * 6 + [1] * 9 + [2] * 7
    few = [*golds, gold("c"), gold("c")]  # two alone go with the largest
    assert space.strata(few) == [0] * 6 + [1] * 9 + [2] * 7 + [1, 1]
    assert space.strata([gold("a")] * 8 + [gold()]) == [1] * 9
    assert space.strata([gold("a"), None]) == [0, 0]


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


def head_of(backbone, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = SPACE.head_rows
    return ClassHead(
        torch.randn(rows, backbone.hidden_size, generator=generator), torch.randn(rows, generator=generator)
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
            hidden = backbone.model(torch.tensor([ids])).last_hidden_state[0]
        first = 1 + len(cue) + len(before)
        places = [
            first + next(n for n, (start, stop) in enumerate(encoded["offset_mapping"]) if start < b and stop > a)
            for a, b in words_of(text)
        ]
        found.append((hidden[places] @ head.weight.T + head.bias).flatten())
    return found


@pytest.mark.parametrize("source", ["{prompt}{text}", "{prompt}say:{text}"])
@pytest.mark.parametrize("tokens", [30, 10**6])
@torch.no_grad()
def test_values_equal_the_plain_forward(sequence, source, tokens, monkeypatch):
    monkeypatch.setattr(sequence, "budget", Budget(tokens=tokens, bytes=2**30))
    task, head, cue = Task(Template(source), SPACE), head_of(sequence), (20, 21, 22)
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


# Spans and tags in data.


def read(row, where="a.jsonl line 1", **columns):
    return TokenLabels.read(where, row, AnswerColumns(**columns))[0]


def test_spans_and_tags_are_read_alike():
    text = "Jo Smiths in Berlin"
    expected = (("PER", 0, 9), ("LOC", 13, 19))
    words = text.split()
    tags = ["B-PER", "I-PER", "O", "B-LOC"]
    mappings = [{"label": label, "start": start, "end": stop, "more": 1} for label, start, stop in expected]
    for row in (
        {"text": text, "spans": mappings},
        {"text": text, "spans": [list(own) for own in expected]},
        {"text": text, "spans": json.dumps(mappings)},
        {"text": text, "tags": tags},
        {"text": text, "tags": " ".join(tags)},
        {"tokens": words, "ner_tags": tags},
        {"words": words, "text": text, "tags": tags},
        {"text": words, "tags": tags},
        {"text": text, "label": mappings},
    ):
        assert read(row) == expected
    assert read({"text": text, "mine": mappings}, label="mine") == expected
    assert read({"text": text, "spans": []}) == ()
    assert read({"tokens": ["a", "b"], "text": "a  b", "tags": ["O", "I-x"]}) == (("x", 3, 4),)


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        (["B-a", "I-a", "B-a", "O"], [("a", 0, 3), ("a", 4, 5)]),
        (["I-a", "I-a", "I-b", "O"], [("a", 0, 3), ("b", 4, 5)]),
        (["B-a", "E-a", "S-a", "O"], [("a", 0, 3), ("a", 4, 5)]),
        (["B-a", "L-a", "I-a", "U-b"], [("a", 0, 3), ("a", 4, 5), ("b", 6, 7)]),
        (["O", "B-a-b", "I-a-b", "O"], [("a-b", 2, 5)]),
    ],
)
def test_tags_of_other_schemes_are_read(tags, spans):
    assert read({"tokens": list("wxyz"), "tags": tags}) == tuple(spans)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a b", "tags": ["O"]}, "a.jsonl line 1: 'tags' has 1 tags for 2 words; give one for each"),
        ({"text": "a b", "tags": ["O", "PER"]}, "has the tag 'PER'; give O, or B- or I- and a label"),
        ({"tags": ["O"]}, "no column has their words"),
        ({"tokens": ["a", "c"], "text": "a b", "tags": ["O", "O"]}, "tags of the word 'c', which is not in the text"),
        ({"text": "a b", "spans": [{"label": "x", "start": 0}]}, "a span has no 'end'"),
        ({"text": "a b", "spans": [{"label": "x", "start": 0, "end": 1.5}]}, "give whole numbers of characters"),
        ({"text": "a b", "spans": [{"label": "x", "start": "0", "end": 1}]}, "give whole numbers of characters"),
        ({"text": "a b", "spans": [{"label": "", "start": 0, "end": 1}]}, "a span has the label ''; give a name"),
        ({"text": "a b", "spans": [["x", 0]]}, "is no span; give label, start and end in characters"),
        ({"text": "a b", "spans": "[{"}, "'spans' is no JSON"),
        ({"text": "a b", "spans": "[" * 100_000}, "'spans' is no JSON"),
        ({"text": "a", "tags": "9" * 5000}, f"has the tag '{'9' * 40}'; give O"),
        ({"text": "a b", "spans": np.array(3)}, "'spans' is ndarray, not a list of spans or tags"),
        ({"text": "a b", "spans": {"label": "x"}}, "'spans' is dict, not a list of spans or tags"),
        ({"text": "a b", "spans": 3}, "'spans' is int, not a list of spans or tags"),
        ({"text": "a b", "spans": None}, "'spans' is missing; give a list, empty where the text has no spans"),
        ({"text": "a b"}, "no column 'spans'"),
    ],
)
def test_rows_that_cannot_be_read_are_named_in_one_line(row, message):
    with pytest.raises(DataError, match=r"a\.jsonl line 1") as caught:
        read(row)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_labels_are_those_of_the_training_rows_or_given():
    rows = rows_of()
    assert TokenLabels.of(rows, TokenOptions(), None) == TokenLabels(("film", "mood"), "text")
    assert TokenLabels.of(rows, TokenOptions(labels=("mood", "film", "x")), None).labels == ("mood", "film", "x")
    with pytest.raises(DataError, match="no text has a labelled span"):
        TokenLabels.of(rows_of([LABELLED[3]]), TokenOptions(), None)
    with pytest.raises(DataError, match="label 'film', which is not one of"):
        TokenLabels.of(rows, TokenOptions(labels=("mood",)), None)
    with pytest.raises(LabelWordError, match="without label words"):
        TokenLabels.of(rows, TokenOptions(), {"film": "film"})
    with pytest.warns(CuecraftWarning, match="1 of 14 spans begin or end within a word"):
        TokenLabels.of([*rows, Record({"text": "films"}, (("film", 0, 4),))], TokenOptions(), None)


@pytest.mark.skipif(not SLOTS.is_dir(), reason=f"benchmark data is not at {SLOTS}; set CUECRAFT_DATA")
def test_spans_of_a_real_task_come_back_from_the_words_that_have_tokens(word_tokenizer):
    rows = [row for split in ("train", "dev") for row in read_records(SLOTS / f"{split}.jsonl", ("text",), IN_ROWS)]
    space = TokenLabels.of(rows, TokenOptions(), None)
    assert len(space.labels) == 13
    for row in rows:
        gold = space.gold(row)
        assert tuple(own for _, _, own in space.spans(gold.tags, gold.words)) == gold.spans
        # "40\u20ac" is two words and one unknown token.
        tokens = first_tokens(gold.words, text_places(word_tokenizer, row.fields["text"]))
        tags = [UNREAD if own == UNREAD else tag for tag, own in zip(gold.tags, tokens, strict=True)]
        assert tuple(own for _, _, own in space.spans(tags, gold.words)) == gold.spans
