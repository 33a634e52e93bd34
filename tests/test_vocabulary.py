"""Vocabulary control: filters against marks and brute force, corpora against offsets, prompts of allowed words only."""

import hashlib
import json
import re
import unicodedata
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from conftest import CORPUS, LABELS, LM_TEMPLATE, TEXTS, WORDS, examples, make_task, tiny_problem
from cuecraft.core.errors import DataError, MethodError
from cuecraft.data import stream_texts
from cuecraft.methods import make_method
from cuecraft.methods.prepare import run_key
from cuecraft.methods.search import AutoPrompt
from cuecraft.methods.search import vocabulary as filters
from cuecraft.methods.search.space import SearchSpace, filled_ids
from cuecraft.methods.search.vocabulary import (
    SCRIPTS,
    TokenFilter,
    Tokens,
    VocabularyOptions,
    corpus_counts,
    make_vocabulary,
    no_capitals,
    script,
    whole_words,
    without_words,
)
from cuecraft.task.words import is_word, words_of
from test_readers import write

# In domain words alone: what the corpus filter has to keep, and `love` but once.
DOMAIN = ["The film was a joy, a warm joy (great story)", "great film; warm actors, bright plot", "a joy: love wins"]


def piece_tokenizer():
    """Unigram pieces with ``▁`` where a word begins, as SentencePiece writes them."""
    words = sorted({f"▁{word}" for word in WORDS} | set("abcdefghijklmnopqrstuvwxyz▁,.") | {"ing", "▁w", "or"})
    raw = Tokenizer(models.Unigram([("<unk>", -99.0), *((w, -4.0 if w[1:] in WORDS else -9.0) for w in words)], 0))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    raw.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")


def vocabulary_of(tokenizer):
    count = len(tokenizer)
    return Tokens(tokenizer, count + 5, tuple(tokenizer.batch_decode([[n] for n in range(count)])))


@pytest.fixture(scope="module")
def tokenizers_by_kind(byte_tokenizer, word_tokenizer):
    return {"byte": byte_tokenizer, "word": word_tokenizer, "piece": piece_tokenizer()}


KINDS = ("byte", "word", "piece")
MARKS = {"byte": re.compile("Ġ([a-z]+)"), "word": re.compile("([a-z]+)"), "piece": re.compile("▁([a-z]+)")}


@pytest.mark.parametrize("kind", KINDS)
def test_whole_words_are_those_that_the_tokenizers_own_mark_tells(kind, tokenizers_by_kind):
    tokenizer = tokenizers_by_kind[kind]
    mask = whole_words(vocabulary_of(tokenizer)).mask
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    # A token of a trained byte-level vocabulary may be one that merges never end with.
    marked = {
        n
        for n, name in enumerate(names)
        if (found := MARKS[kind].fullmatch(name))
        and tokenizer(f"the {found[1]} the", add_special_tokens=False)["input_ids"][-2] == n
    }
    assert set(torch.nonzero(mask).flatten().tolist()) == marked
    assert len(marked) > 30
    assert len(marked) < len(names)
    assert not mask[len(tokenizer) :].any()


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("ascii", "film 42 , it's", "é ở привет 电影 … “"),
        ("latin", "film phở naïve o\u0301 42 , ắ Straße", "привет φ 电影 映画 ؟ कि 🎬 。"),
        ("cyrillic", "привет їжак 42 .", "film é 电影 φ"),
        ("greek", "φως ἀρχή 7", "film привет"),
        ("han", "电影 好 42 。", "film 映画の カ 한국 привет"),
        ("arabic", "فيلم ، 42", "film 电影 שלום"),
        ("hebrew", "שלום", "فيلم film"),
        ("devanagari", "हिन्दी । 42", "film 电影 বাংলা"),
        ("hiragana", "ひらがな", "カタカナ 映画 film"),
        ("katakana", "カタカナ ー", "ひらがな 映画"),
        ("japanese", "映画の カタカナ 。", "film 한국"),
        ("hangul", "한국어 42", "映画 film"),
        ("thai", "ภาษาไทย", "film ລາວ"),
    ],
)
def test_scripts(name, inside, outside):
    texts = (*inside.split(), *outside.split())
    mask = script(Tokens(None, len(texts), texts), name).mask
    assert dict(zip(texts, mask.tolist(), strict=True)) == {text: text in inside.split() for text in texts}
    assert name in SCRIPTS


def test_capitals_and_stop_words():
    texts = (" film", " Film", "ÉTÉ", "été", "ǅ", "##ing", "42", "straße")
    tokens = Tokens(None, len(texts), texts)
    assert no_capitals(tokens).mask.tolist() == [True, False, False, True, False, True, True, True]
    kept = without_words(tokens, ["FILM", "ing", "strasse"]).mask.tolist()
    assert kept == [False, False, True, True, True, False, True, False]


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=5))
def test_filters_compose_and_each_is_counted(masks):
    parts = [TokenFilter(str(n), torch.tensor(mask)) for n, mask in enumerate(masks)]
    whole = parts[0]
    for part in parts[1:]:
        whole &= part
    columns = list(zip(*masks, strict=True))
    assert whole.mask.tolist() == [all(column) for column in columns]
    left = [sum(all(column[: n + 1]) for column in columns) for n in range(len(masks))]
    assert whole.report() == [{"filter": str(n), "tokens": count} for n, count in enumerate(left)]


LETTERS = st.text(st.sampled_from("ab'Z09 _-,\u2019éở\u0301\u200dहिन्दी电影のไทยй\n"), max_size=40)


@given(LETTERS | st.text(max_size=30))
def test_words_hold_every_letter_and_digit_of_a_text_once_and_in_order(text):
    def is_letter(char):
        return char.isalnum() or unicodedata.category(char)[0] == "M"

    words = list(words_of(text))
    assert [c for c in "".join(words) if is_letter(c)] == [c for c in text if is_letter(c)]
    assert all(is_word(word) for word in words)
    assert all(not re.search(r"[\s_,-]", word) for word in words)


@given(st.text(st.sampled_from("aZ0' _-.\t"), max_size=30))
def test_words_of_plain_text_do_not_depend_on_what_stands_beside(text):
    assert [*words_of(text), "é"] == list(words_of(f"{text} é")), "ASCII text is read by a pattern of its own"


@pytest.mark.parametrize("kind", KINDS)
@examples(25)
@given(data=st.data())
def test_corpus_counts_are_those_of_tokens_that_span_a_word(kind, tokenizers_by_kind, data):
    """The oracle tokenises the whole text and looks at offsets; words stand behind spaces there."""
    tokenizer = tokenizers_by_kind[kind]
    vocabulary = [*WORDS, "filming", "goods", "abc", "goodbad"]
    texts = data.draw(st.lists(st.lists(st.sampled_from(vocabulary), max_size=12).map(" ".join), max_size=6))
    expected = Counter()
    for text in texts:
        line = f"it {text} it"  # as every text of the corpus: the first word of a text may be written otherwise
        spans = {found.span() for found in re.finditer(r"[a-z]+", line)}
        encoded = tokenizer(line, add_special_tokens=False, return_offsets_mapping=True)
        pairs = list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
        lead = len(tokenizer("it", add_special_tokens=False)["input_ids"])
        for token, (begin, end) in pairs[lead:]:
            begin += len(line[begin:end]) - len(line[begin:end].lstrip())
            if (begin, end) in spans:
                expected[token] += 1
        it = tokenizer("the it the", add_special_tokens=False)["input_ids"][-2]
        expected[it] -= 1
    found = corpus_counts(vocabulary_of(tokenizer), iter(texts))
    assert {n: count for n, count in enumerate(found.tolist()) if count} == {n: c for n, c in expected.items() if c}


@pytest.mark.parametrize("kind", KINDS)
def test_counts_do_not_depend_on_how_often_they_are_credited(kind, tokenizers_by_kind, monkeypatch):
    tokens = vocabulary_of(tokenizers_by_kind[kind])
    once = corpus_counts(tokens, CORPUS)
    monkeypatch.setattr(filters, "_DISTINCT", 3)
    assert torch.equal(corpus_counts(tokens, CORPUS), once)
    assert once.sum() > 1000


def test_a_word_counts_wherever_it_stands_and_pieces_of_words_do_not(byte_tokenizer):
    tokens = vocabulary_of(byte_tokenizer)
    found = corpus_counts(tokens, ["film", "(film), a-film: film!", "films filming Film don't"])
    token = byte_tokenizer(" film")["input_ids"][0]
    assert found[token] == 4
    assert found[byte_tokenizer("t")["input_ids"][0]] == 0
    assert found.sum() == 4 + 1, "only `film` and `a` are words of one token"


def test_an_uncased_tokenizer_counts_both_cases_together(word_tokenizer):
    found = corpus_counts(vocabulary_of(word_tokenizer), ["Film film FILM", "unknownword"])
    assert found[word_tokenizer.convert_tokens_to_ids("film")] == 3


def test_in_a_script_without_spaces_the_tokenizer_cuts_the_words():
    names = ["[UNK]", "it", "film", "电", "影", "好", "##ing"]
    raw = Tokenizer(models.WordPiece({name: n for n, name in enumerate(names)}, unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokens = vocabulary_of(PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]"))
    found = corpus_counts(tokens, ["电影很好film", "电。 film"])
    assert dict(zip(names[1:], found[1 : len(names)].tolist(), strict=True)) == {
        **{"it": 0, "film": 2, "电": 2, "影": 1, "好": 1, "##ing": 0}
    }
    assert [names[n] for n in torch.nonzero(whole_words(tokens).mask).flatten()] == names[1:-1]


# Corpora as files.


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "domain.txt"
    path.write_text("\n".join(DOMAIN) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet", "txt"])
def test_a_corpus_of_each_format_gives_the_same_counts(suffix, causal, tmp_path):
    path = tmp_path / f"domain.{suffix}"
    if suffix == "txt":
        path.write_text("\r\n".join([*DOMAIN, "", "  "]), encoding="utf-8")
    else:
        write(path, [{"message": text, "n": "1"} for text in [*DOMAIN, " "]])
    assert list(stream_texts(path, "message")) == DOMAIN
    options = VocabularyOptions(corpus=path, corpus_column="message", min_count=2)
    found = make_vocabulary(causal, make_task(), options)
    expected = {word for word, count in Counter(re.findall(r"[A-Za-z]+", " ".join(DOMAIN))).items() if count > 1}
    shown = [causal.tokenizer.decode([n]) for n in torch.nonzero(found.mask).flatten().tolist()]
    single = {word for word in expected if len(causal.tokenizer(f" {word}")["input_ids"]) == 1}
    assert sorted(shown) == sorted(f" {word}" for word in single)
    assert single >= {"film", "joy", "warm", "great", "a"}
    assert found.report()[-1] == {"filter": f"at least 2 times in domain.{suffix}", "tokens": len(single)}


def test_a_corpus_is_read_piece_by_piece(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text('{"text": "a film"}\n{"text": "two"}\nno JSON\n')
    texts = stream_texts(path)
    assert [next(texts), next(texts)] == ["a film", "two"]
    with pytest.raises(DataError, match=r"long.jsonl line 3: not valid JSON"):
        next(texts)


def test_answers_stay_out_whatever_the_corpus_says(causal, tmp_path):
    path = tmp_path / "leak.txt"
    path.write_text("good good good bad bad bad film film film joy joy joy")
    task = make_task(words={"negative": "bad", "positive": "good"})
    found = make_vocabulary(causal, task, VocabularyOptions(corpus=path))
    shown = {causal.tokenizer.decode([n]) for n in torch.nonzero(found.mask).flatten().tolist()}
    assert shown == {" film", " joy"}
    task = make_task(words={"negative": "bad_film", "positive": "great"})
    found = make_vocabulary(causal, task, VocabularyOptions(corpus=path))
    shown = {causal.tokenizer.decode([n]) for n in torch.nonzero(found.mask).flatten().tolist()}
    assert shown == {" good", " joy"}


def test_too_small_a_vocabulary_says_which_filter_left_how_many(causal, corpus):
    with pytest.raises(MethodError, match="leave 0 tokens") as caught:
        make_vocabulary(causal, make_task(), VocabularyOptions(script="thai", whole_words=True))
    message = str(caught.value)
    whole = make_vocabulary(causal, make_task(), VocabularyOptions(whole_words=True)).report()
    assert "\n" not in message
    assert ", ".join(f"{row['filter']} {row['tokens']}" for row in whole) + ", script thai 0" in message
    with pytest.raises(MethodError, match=r"at least 99 times in domain.txt 0\)"):
        AutoPrompt(vocabulary={"corpus": corpus, "min_count": 99}).fit(tiny_problem(causal))


# Options and a run's identity.


def test_a_run_is_known_by_the_corpus_content(causal, corpus, tmp_path):
    problem = tiny_problem(causal)

    def key():
        return run_key(problem, make_method("autoprompt", {"vocabulary.corpus": str(corpus)}))

    options = make_method("autoprompt", {"vocabulary.corpus": str(corpus)}).model_dump(mode="json")
    assert json.loads(json.dumps(options))["vocabulary"]["corpus"] == str(corpus)
    assert make_method("autoprompt", options).model_dump(mode="json") == options
    twin = tmp_path / "twin.txt"
    twin.write_bytes(corpus.read_bytes())
    assert VocabularyOptions(corpus=twin).corpus_sha256 == options["vocabulary"]["corpus_sha256"]
    before = key()
    assert key() == before
    corpus.write_text(corpus.read_text() + "another line\n")
    assert key() != before
    with pytest.raises(DataError, match=r"is not the corpus of the hash"):
        make_method("autoprompt", options)


def test_a_stop_list_is_recorded_word_by_word(tmp_path):
    path = tmp_path / "stop.txt"
    path.write_text("the\n of \n\nthe\n")
    method = make_method("straight-through", {"vocabulary.stop_words": f"is,@{path}"})
    assert method.vocabulary.stop_words == ("is", "the", "of")
    assert make_method("straight-through", method.model_dump(mode="json")) == method


@pytest.mark.parametrize(
    ("options", "kind", "what"),
    [
        ({"vocabulary.script": "elvish"}, MethodError, "script 'elvish' is unknown; choose ascii, arabic"),
        ({"vocabulary.corpus": "/nowhere/x.txt"}, DataError, "/nowhere/x.txt: the corpus cannot be read"),
        ({"vocabulary.min_count": 9}, MethodError, "min_count says how to read a corpus, and none is given"),
        ({"vocabulary.corpus_column": "x"}, MethodError, "corpus_column says how to read"),
        ({"vocabulary.stop_words": "@words.csv"}, MethodError, "stop list words.csv is no .txt file"),
        ({"vocabulary.stop_words": "@nowhere.txt"}, DataError, "nowhere.txt: no such file"),
        ({"vocabulary.min_count": 0}, MethodError, "greater than or equal to 1"),
    ],
)
def test_mistakes_are_told_in_one_line(options, kind, what):
    with pytest.raises(kind) as caught:
        make_method("autoprompt", options)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


# Searches.


def nearest_allowed(backbone, allowed, ids):
    """Brute force: each disallowed token's nearest allowed one."""
    matrix = backbone.embedding_matrix().double()
    found = []
    for token in ids:
        distance = (matrix - matrix[token]).square().sum(1).masked_fill(~allowed, torch.inf)
        found.append(token if allowed[token] else int(distance.argmin()))
    return tuple(found)


SEARCHES = [
    ("autoprompt", {"steps": 8, "candidates": 6}),
    ("autoprompt", {"steps": 4, "candidates": 6, "positions": "all", "prompt_length": 4, "scoring": "exact"}),
    ("straight-through", {"steps": 10, "learning_rate": 1.0, "prompt_length": 3}),
    ("hybrid", {"search.steps": 4, "search.candidates": 6, "tune.epochs": 1}),
]


@pytest.mark.parametrize("kind", ["causal", "masked", "sequence"])
@pytest.mark.parametrize(("name", "options"), SEARCHES)
def test_prompts_are_of_allowed_words_only(name, options, kind, corpus, request):
    backbone = request.getfixturevalue(kind)
    template = "{prompt: it was}{text}" if kind == "sequence" else LM_TEMPLATE
    problem = tiny_problem(backbone, template)
    part = "search." if name == "hybrid" else ""
    chosen = {"corpus": corpus, "min_count": 1, "stop_words": ["warm"]}
    method = make_method(name, {**options, **{f"{part}vocabulary.{key}": value for key, value in chosen.items()}})
    outcome = method.fit(problem)
    allowed = make_vocabulary(backbone, problem.task, VocabularyOptions(**chosen)).mask
    words = {word.casefold() for word in re.findall(r"[A-Za-z]+", " ".join(DOMAIN))} - {"warm"}
    # `it was` is not in the corpus, or not all of it: the search begins from other words, the user's still compete.
    assert not allowed[list(problem.initial_ids)].all()
    found = [event["token_ids"] for event in outcome.trace if event["phase"] != "handover" and "token_ids" in event]
    if name != "straight-through":
        assert tuple(found.pop(0)) == problem.initial_ids
        length = options.get("prompt_length")
        assert tuple(found[0]) == nearest_allowed(backbone, allowed, filled_ids(problem, length))
    assert len(found) > 1 or kind == "sequence", "nothing was tried, so this test shows nothing"
    for ids in found:
        assert allowed[ids].all()
        assert {word.casefold() for word in backbone.tokenizer.decode(ids).split()} <= words
    best = (outcome.words or outcome.best).prompt
    assert best.kind == "hard"
    assert outcome.is_tuned or best.token_ids == problem.initial_ids


def test_a_search_may_begin_at_other_words(causal):
    problem = tiny_problem(causal)
    ids = tuple(causal.tokenizer(" warm story")["input_ids"])
    trace = AutoPrompt(steps=3, candidates=6).from_words(problem, ids).trace
    begun = [tuple(event["token_ids"]) for event in trace if event["step"] == 0]
    assert begun == [problem.initial_ids, ids]
    accepted = next(event for event in trace if event.get("accepted"))
    assert sum(a != b for a, b in zip(accepted["token_ids"], ids, strict=True)) == 1


@pytest.mark.parametrize("name", ["autoprompt", "straight-through"])
def test_the_counts_are_told_once_at_the_beginning(name, causal):
    problem = tiny_problem(causal)
    trace = make_method(name, {"steps": 2}).fit(problem).trace
    assert trace[0]["vocabulary"] == make_vocabulary(causal, problem.task).report()
    assert [row["filter"] for row in trace[0]["vocabulary"]] == ["vocabulary", "printable", "no label words"]
    assert not any("vocabulary" in event for event in trace[1:])


def test_the_users_own_words_stay_where_no_filter_was_asked_for(causal):
    problem = tiny_problem(causal, "{text}{prompt:\nit was}{mask}")
    newline = problem.initial_ids[0]
    assert not make_vocabulary(causal, problem.task).mask[newline]
    free = SearchSpace.of(problem, VocabularyOptions(), round_trip=True)
    assert free.start(problem.initial_ids) == problem.initial_ids
    closed = SearchSpace.of(problem, VocabularyOptions(lowercase=True), round_trip=True)
    assert closed.start(problem.initial_ids)[0] != newline


# The command line.


@pytest.fixture
def train(tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [{"text": text, "label": LABELS[label]} for text, label in TEXTS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    return path


@pytest.mark.parametrize(("method", "part"), [("autoprompt", ""), ("straight-through", ""), ("hybrid", "search.")])
def test_vocab_from_sets_the_searchs_corpus_and_the_counts_are_printed(method, part, run, train, corpus, causal_folder):
    options = [f"{part}steps=2", f"{part}vocabulary.min_count=1"] + (["tune.epochs=1"] if method == "hybrid" else [])
    flags = [word for option in options for word in ("--option", option)]
    command = ("tune", train, "--model", causal_folder, "--method", method, "--vocab-from", corpus, *flags)
    code, out, err = run(*command, "--json")
    assert code == 0, err
    vocabulary = json.loads(out)["vocabulary"]
    assert [row["filter"] for row in vocabulary][-1] == "at least 1 times in domain.txt"
    assert 2 < vocabulary[-1]["tokens"] < vocabulary[0]["tokens"] / 5
    found = json.loads(run("show", f"runs/{method}-0", "--json")[1])["method_options"]
    found = found["search"] if part else found
    assert found["vocabulary"]["corpus"] == str(corpus)
    assert found["vocabulary"]["corpus_sha256"] == hashlib.sha256(corpus.read_bytes()).hexdigest()
    code, out, _ = run(*command)
    assert code == 0
    assert f"{vocabulary[-1]['tokens']} at least 1 times in domain.txt" in out


def test_vocab_from_is_refused_where_nothing_would_read_it(run, train, corpus, causal_folder):
    command = ("tune", train, "--model", causal_folder, "--vocab-from", corpus)
    code, _, err = run(*command, "--method", "prompt-tuning")
    assert code == 2
    assert "--vocab-from goes with methods that search for words (autoprompt, straight-through, hybrid" in err
    code, _, err = run(*command, "--method", "autoprompt", "--option", "vocabulary.corpus=x.txt")
    assert code == 2
    assert "both name a corpus" in err
    code, _, err = run("tune", train, "--method", "autoprompt", "--vocab-from", "nowhere.txt")
    assert code == 2
    assert "nowhere.txt: the corpus cannot be read" in err
    code, out, _ = run("tune", train, "--model", causal_folder, "--method", "zero-shot", "--json")
    assert code == 0
    assert json.loads(out)["vocabulary"] is None
