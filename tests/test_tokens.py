"""Labels of words: alignment with any tokenizer, tags and spans, scores of seqeval, rows of data."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from conftest import DATA, WORDS, examples
from cuecraft.core.errors import (
    CuecraftWarning,
    DataError,
    LabelWordError,
)
from cuecraft.data import Record, read_records
from cuecraft.task import Example
from cuecraft.task.alignment import UNREAD, first_tokens, words_of, words_within
from cuecraft.task.answers import AnswerColumns, answer_space, answers_document
from cuecraft.task.answers.chains import Chain, best_tags, chain_weights, counted
from cuecraft.task.answers.tokens import TokenLabels, TokenOptions
from cuecraft.task.token_text import text_ids, text_places
from token_labels import LABELLED, SPACE, rows_of, values_of

SLOTS = DATA / "answers" / "nluplusplus" / "banking"
IN_ROWS = TokenLabels.in_rows(AnswerColumns("spans"))


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


#: How often tags of some texts follow each other, -1 in front of them; a text of two films, one of a long mood.
FOLLOWED = counted([(1, 2, 0, 1, 2), (0, 3, 4, 4), (0, 0, 0)])


def rated(probabilities, tags, followed):
    """The product of the tags' probabilities and of how often each follows the other, written out; 0 if it cannot."""
    if not is_possible(tags):
        return 0.0
    found, size = 1.0, probabilities.shape[-1]
    shares = [0.5 + sum(count for _, own, count in followed if own == tag) for tag in range(size)]
    for row, (before, tag) in zip(probabilities, zip((-1, *tags), tags, strict=False), strict=True):
        found *= row[tag]
        if followed:
            share = shares[tag] / sum(shares)
            behind = sum(count for own, _, count in followed if own == before)
            pair = sum(count for one, other, count in followed if (one, other) == (before, tag))
            found *= ((pair + 5 * share) / (behind + 5) / share) ** 0.75
    return found


@pytest.mark.parametrize("followed", [(), FOLLOWED], ids=["possible", "counted"])
def test_the_likeliest_tags_are_those_of_brute_force(followed):
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(5), (30, 5))
    read = random.random((30, 5)) > 0.2
    paths = best_tags(probabilities * read[..., None], chain_weights(5, followed))
    for own, known, path in zip(probabilities, read, paths, strict=True):
        assert (path[~known] == -1).all()
        own = own[known]
        best = max(itertools.product(range(5), repeat=len(own)), key=lambda tags: rated(own, tags, followed))
        assert path[known].tolist() == list(best)


@pytest.mark.parametrize("followed", [(), FOLLOWED], ids=["possible", "counted"])
def test_probabilities_of_tags_and_spans_are_those_of_brute_force(followed):
    random = np.random.default_rng(1)
    probabilities = random.dirichlet(np.ones(5), 5)
    probabilities[2] = 0  # was not read
    chain, own = Chain(probabilities, chain_weights(5, followed)), probabilities[[0, 1, 3, 4]]
    table = {tags: rated(own, tags, followed) for tags in itertools.product(range(5), repeat=4)}
    total = sum(table.values())
    assert chain.probability([1, 2, -1, 0, 3]) == pytest.approx(table[1, 2, 0, 3] / total)
    whole = sum(value for tags, value in table.items() if tags[1:3] == (3, 4) and tags[3] != 4)
    assert chain.of_span(1, 3, [0, 3, -1, 4, 0]) == pytest.approx(whole / total)
    last = sum(value for tags, value in table.items() if tags[3] == 1)
    assert chain.of_span(4, 4, [0, 0, -1, 0, 1]) == pytest.approx(last / total)
    assert Chain(np.zeros((3, 5)), chain_weights(5, followed)).probability([-1, -1, -1]) == 1


def test_counts_of_the_training_texts_change_what_is_decided():
    rows = rows_of()
    space = TokenLabels.of(rows, TokenOptions(), None)
    tags = [space.gold(row).tags for row in rows]
    pairs = [pair for own in tags for pair in zip((-1, *own), own, strict=False)]
    assert space.followed == tuple((*pair, pairs.count(pair)) for pair in sorted(set(pairs)))
    # Each word by itself is a span's beginning as likely as not; a film of two words is what was seen.
    doubtful = np.array([[0.48, 0.52, 0, 0, 0], [0.1, 0.46, 0.44, 0, 0], [0.9, 0.1, 0, 0, 0]])
    seen = TokenLabels(("film", "mood"), followed=counted([(1, 2, 0)] * 20))
    text = [Example({"text": "the film ends"})]
    assert [own["text"] for own in SPACE.decide(doubtful.reshape(1, -1), text)[0].value] == ["the", "film"]
    assert [own["text"] for own in seen.decide(doubtful.reshape(1, -1), text)[0].value] == ["the film"]


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


def test_confidences_are_those_of_the_tags_that_are_shown():
    golds, values = values_of(LABELLED)
    probabilities = SPACE.probabilities(values.numpy()).reshape(len(LABELLED), -1, 5)
    for own, gold, table in zip(decisions_of(values, LABELLED), golds.values, probabilities, strict=True):
        tags = [["O", "B-film", "I-film", "B-mood", "I-mood"].index(tag) for tag in bio(own.value, gold.words)]
        chain = Chain(table, SPACE.weights)
        assert own.confidence == pytest.approx(chain.probability(tags))
        for one, (name, confidence) in zip(own.value, own.options.items(), strict=True):
            words = words_within(gold.words, one["start"], one["end"])
            assert name == f"{one['label']} {one['start']}-{one['end']}"
            assert confidence == pytest.approx(chain.of_span(words[0], words[-1], tags))


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


def test_an_answer_space_of_before_reads_the_last_layer_and_has_no_counts():
    now = TokenLabels.of(rows_of(), TokenOptions(), None)
    document = json.loads(json.dumps(answers_document(now)))
    assert answer_space(document) == now
    before = answer_space({name: document[name] for name in ("kind", "labels", "field")})
    assert (before.reading, before.followed) == ("word", ())
    assert np.array_equal(before.weights, chain_weights(5, ()))
    with pytest.raises(DataError, match="none of the 5 tags"):
        replace(SPACE, followed=((0, 5, 1),))


def test_the_labels_are_those_of_the_training_rows_or_given():
    rows = rows_of()
    found = TokenLabels.of(rows, TokenOptions(), None)
    assert (found.labels, found.field) == (("film", "mood"), "text")
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
