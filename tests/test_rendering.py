"""From examples to token ids, against layouts written by hand and a token-at-a-time truncation."""

import copy
import itertools
import re
import warnings
from contextlib import nullcontext

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from conftest import LABELS, WORDS, examples
from cuecraft.core.errors import CuecraftWarning, LabelWordError, PromptError, TemplateError
from cuecraft.task import Example, Task, Template, Verbalizer
from cuecraft.task.rendering import HeadKind, Pieces, Renderer

CAUSAL, MASKED, SEQUENCE = HeadKind.CAUSAL, HeadKind.MASKED, HeadKind.SEQUENCE

# What stands before and after the tuned tokens: literals, special tokens, and fields as (prefix, name).
TEXT, NEXT_TEXT, TITLE, NEXT_TITLE = ("", "text"), (" ", "text"), ("", "title"), (" ", "title")
LAYOUTS = [
    (CAUSAL, "A: {title}\nB: {text}{prompt: it was}{mask}", ["A:", NEXT_TITLE, "\nB:", NEXT_TEXT], []),
    (CAUSAL, "{prompt}{text} / {title}\nIt is{mask}.", [], [TEXT, " /", NEXT_TITLE, "\nIt is"]),
    (CAUSAL, "{title} {prompt: is} {text} so{mask}", [TITLE], [NEXT_TEXT, " so"]),
    (MASKED, "{title}: {text}{prompt} {mask}.", ["[CLS]", TITLE, ":", NEXT_TEXT], ["[MASK]", ".", "[SEP]"]),
    (MASKED, "it {mask}. {prompt}{title} {text}", ["[CLS]", "it", "[MASK]", "."], [TITLE, NEXT_TEXT, "[SEP]"]),
    (SEQUENCE, "{prompt}{text} of {title}", ["[CLS]"], [TEXT, " of", NEXT_TITLE, "[SEP]"]),
]
by_layout = pytest.mark.parametrize(("head", "source", "before", "after"), LAYOUTS)


@pytest.fixture(scope="session")
def tokenizers(byte_tokenizer, word_tokenizer):
    return {CAUSAL: byte_tokenizer, MASKED: word_tokenizer, SEQUENCE: word_tokenizer}


def renderer(tokenizer, source, head, words=None, max_positions=None, **options):
    return Renderer(
        tokenizer, Task(Template(source), Verbalizer.from_labels(LABELS, words), **options), head, max_positions
    )


def render_one(tokenizer, source, head, **fields):
    return renderer(tokenizer, source, head).render([Example(fields)])[0]


def plain_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def laid_out(tokenizer, side, fields):
    ids = []
    for part in side:
        if isinstance(part, tuple):
            ids += fields[part]
        else:
            ids += tokenizer(part, add_special_tokens=False)["input_ids"]
    return tuple(ids)


def field_ids(tokenizer, sides, values):
    slots = dict.fromkeys(part for part in sides if isinstance(part, tuple))
    return {(prefix, name): plain_ids(tokenizer, prefix + values[name]) for prefix, name in slots}


@by_layout
@pytest.mark.parametrize("text", ["the film is good", "A bore,\nthen: joy! ", "日本 🎬 é", "</s>[MASK][SEP]<pad>[PAD]"])
def test_pieces_join_separately_tokenised_parts(tokenizers, head, source, before, after, text):
    tokenizer = tokenizers[head]
    values = {"text": text, "title": "war and love"}
    fields = field_ids(tokenizer, before + after, values)
    pieces = render_one(tokenizer, source, head, **values)
    assert pieces.before == laid_out(tokenizer, before, fields)
    assert pieces.after == laid_out(tokenizer, after, fields)
    assert len(pieces) == len(pieces.before) + len(pieces.after)
    if head is MASKED:
        assert (*pieces.before, *pieces.after)[pieces.answer] == tokenizer.mask_token_id


def test_text_does_not_depend_on_what_stands_beside_it(byte_tokenizer):
    glued = render_one(byte_tokenizer, "bright{text}{prompt}{mask}", CAUSAL, text="ness")
    literal = byte_tokenizer("bright")["input_ids"]
    assert list(glued.before) == literal + byte_tokenizer("ness")["input_ids"]


def test_space_of_the_template_replaces_those_before_the_text(byte_tokenizer):
    one, other = (
        render_one(byte_tokenizer, "a: {text}{prompt}{mask}", CAUSAL, text=text) for text in ("good", "  \n good")
    )
    assert one == other
    assert byte_tokenizer.decode(one.before) == "a: good"
    bare = render_one(byte_tokenizer, "{text}{prompt}{mask}", CAUSAL, text="  good")
    assert byte_tokenizer.decode(bare.before) == "  good"


@pytest.mark.parametrize(
    ("head", "special"), [(CAUSAL, ["<s>", "</s>", "<pad>"]), (MASKED, ["[MASK]", "[SEP]", "[PAD]"])]
)
def test_special_tokens_are_honoured_in_the_template_only(tokenizers, head, special):
    tokenizer = tokenizers[head]
    for name in special:
        made = renderer(tokenizer, f"{{text}}{name} {{prompt:it {name}}}{{mask}}", head)
        (spelled,) = made.render([Example({"text": f"a {name} b{name}"})])
        (plain,) = made.render([Example({"text": "a b"})])
        special_id = tokenizer.convert_tokens_to_ids(name)
        assert special_id in plain.before
        assert (*spelled.before, *spelled.after).count(special_id) == (*plain.before, *plain.after).count(special_id)
        assert made.prompt_ids[-1] == special_id
        assert tokenizer(name, add_special_tokens=False)["input_ids"] == [special_id]


def test_special_token_in_a_text_keeps_its_characters(byte_tokenizer):
    pieces = render_one(byte_tokenizer, "{text}{prompt}{mask}", CAUSAL, text="a </s> b<s>")
    assert byte_tokenizer.decode(pieces.before, skip_special_tokens=True) == "a </s> b<s>"


def test_causal_input_starts_as_the_tokenizer_starts_one_but_does_not_end(byte_tokenizer):
    tokenizer = copy.deepcopy(byte_tokenizer)
    marks = [("<s>", 1), ("</s>", 2)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=marks)
    assert tokenizer("the")["input_ids"] == [1, *byte_tokenizer("the")["input_ids"], 2]
    pieces = render_one(tokenizer, "{text}{prompt} is{mask}", CAUSAL, text="the film")
    assert pieces.before == (1, *plain_ids(tokenizer, "the film"))
    assert pieces.after == tuple(plain_ids(tokenizer, " is"))
    pieces = render_one(tokenizer, "{prompt}{text}", SEQUENCE, text="the film")
    assert (pieces.before, pieces.after[-1]) == ((1,), 2)


def test_prompt_ids_are_the_words_of_the_slot(byte_tokenizer):
    assert renderer(byte_tokenizer, "{text}{prompt}{mask}", CAUSAL).prompt_ids == ()
    made = renderer(byte_tokenizer, "{text} {prompt:it was}{mask}", CAUSAL)
    assert made.prompt_ids == tuple(byte_tokenizer(" it was")["input_ids"])


def token_by_token(lengths, room, last):
    """Drop one token at a time from the longest field, of several the first or the last."""
    lengths = list(lengths)
    while sum(lengths) > room:
        order = range(len(lengths))[::-1] if last else range(len(lengths))
        lengths[max(order, key=lambda i: lengths[i])] -= 1
    return lengths


words_of = st.lists(st.sampled_from([*WORDS, "</s>", "日本", "film's"]), min_size=1, max_size=30).map(" ".join)


@by_layout
@examples(60)
@given(data=st.data())
def test_inputs_fit_and_only_the_longest_fields_are_cut(tokenizers, head, source, before, after, data):
    tokenizer = tokenizers[head]
    examples = data.draw(st.lists(st.fixed_dictionaries({"text": words_of, "title": words_of}), min_size=1, max_size=3))
    reserve = data.draw(st.integers(1, 10))
    max_tokens = data.draw(st.integers(2 * reserve, 2 * reserve + 50))
    words = {"negative": "bad", "positive": ["never cold or dull" if head is CAUSAL else "good"]}
    answer = len(plain_ids(tokenizer, " never cold or dull")) - 1 if head is CAUSAL else 0
    fixed = len(laid_out(tokenizer, [part for part in before + after if isinstance(part, str)], {}))
    made = renderer(tokenizer, source, head, words, max_tokens=max_tokens, reserve=reserve)
    reserve = max(reserve, len(made.prompt_ids))  # the template's own words fit in any case
    room = max_tokens - fixed - answer - reserve
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if room < 1:
            with pytest.raises(PromptError, match=f"of {max_tokens} tokens"):
                made.render([Example(values) for values in examples])
            return
        rendered = made.render([Example(values) for values in examples])
    made.check_length(rendered, reserve)
    cut = 0
    for values, pieces in zip(examples, rendered, strict=True):
        fields = field_ids(tokenizer, before + after, values)
        lengths = [len(ids) for ids in fields.values()]
        assert len(pieces) + answer + reserve <= max_tokens
        cut += sum(lengths) > room
        allowed = []
        for last in (False, True):
            kept = dict(zip(fields, token_by_token(lengths, room, last), strict=True))
            short = {slot: ids[: kept[slot]] for slot, ids in fields.items()}
            allowed.append((laid_out(tokenizer, before, short), laid_out(tokenizer, after, short)))
        assert (pieces.before, pieces.after) in allowed
        if head is MASKED:
            assert (*pieces.before, *pieces.after)[pieces.answer] == tokenizer.mask_token_id
    messages = [str(warning.message) for warning in caught if warning.category is CuecraftWarning]
    assert [message.split(" texts")[0] for message in messages] == ([f"{cut} of {len(examples)}"] if cut else [])


def test_field_used_twice_is_counted_twice(byte_tokenizer):
    made = renderer(byte_tokenizer, "{text}{text}{prompt}{mask}", CAUSAL, max_tokens=40, reserve=8)
    with pytest.warns(CuecraftWarning):
        (pieces,) = made.render([Example({"text": "the film " * 40})])
    assert len(pieces) + 8 <= 40


def test_all_of_reserve_is_kept_for_the_prompt(byte_tokenizer):
    made = renderer(byte_tokenizer, "{text}{prompt}{mask}", CAUSAL, max_tokens=40, reserve=32)
    with pytest.warns(CuecraftWarning):
        rendered = made.render([Example({"text": "the film " * 40})])
    made.check_length(rendered, 32)


def test_short_field_stays_whole_beside_a_long_one(word_tokenizer):
    made = renderer(word_tokenizer, "{title}{prompt}{text}", SEQUENCE, max_tokens=20, reserve=4)
    with pytest.warns(CuecraftWarning, match=r"^1 of 3 texts were cut at the end to fit 20 tokens \(4 of them kept"):
        rendered = made.render([Example({"title": "love story", "text": "the " * n}) for n in (12, 13, 1)])
    assert [len(pieces.before) - 1 for pieces in rendered] == [2, 2, 2]
    assert [len(pieces.after) - 1 for pieces in rendered] == [12, 12, 1]


@pytest.mark.parametrize(("positions", "max_tokens"), [(40, None), (None, 40), (40, 50), (50, 40)])
def test_the_smaller_limit_counts(word_tokenizer, positions, max_tokens):
    made = renderer(word_tokenizer, "{text}{prompt}", SEQUENCE, None, positions, max_tokens=max_tokens, reserve=8)
    with pytest.warns(CuecraftWarning, match="to fit 40 tokens"):
        (pieces,) = made.render([Example({"text": "the " * 60})])
    assert len(pieces) == 32


def test_without_a_limit_nothing_is_cut(word_tokenizer):
    made = renderer(word_tokenizer, "{text}{prompt}", SEQUENCE)
    assert len(made.render([Example({"text": "the " * 3000})])[0]) == 3002
    made.check_length([Pieces((1,) * 9000, ())], 1000)
    assert made.render([]) == []


@pytest.mark.parametrize("words", [None, {"negative": "bad", "positive": "never cold"}])
def test_prompt_that_makes_an_input_too_long_is_refused(byte_tokenizer, words):
    made = renderer(byte_tokenizer, "{text}{prompt}{mask}", CAUSAL, words, 50)
    answer = max(len(ids) for word in made.label_ids for ids in word) - 1
    pieces = [Pieces((5,) * 20, (5,) * 4), Pieces((5,) * 3, ())]
    made.check_length(pieces, 26 - answer)
    with pytest.raises(
        PromptError, match=rf"makes an input of 51, but 50 fit; shorten the prompt to {26 - answer} "
    ) as e:
        made.check_length(pieces, 27 - answer)
    assert len(str(e.value).splitlines()) == 1


TEMPLATE_ERRORS = [
    (CAUSAL, "{text}{prompt}", "has no {mask}"),
    (CAUSAL, "{text}{prompt}{mask} indeed", "goes on after {mask}"),
    (CAUSAL, "{prompt}{mask}{text}", "goes on after {mask}"),
    (CAUSAL, "{text}{mask}{prompt}", "goes on after {mask}"),
    (MASKED, "{text}{prompt}", "has no {mask}"),
    (SEQUENCE, "{text}{prompt}{mask}", "has {mask}"),
]


@pytest.mark.parametrize(("head", "source", "says"), TEMPLATE_ERRORS)
def test_template_that_does_not_fit_the_head_is_refused(tokenizers, head, source, says):
    with pytest.raises(TemplateError) as caught:
        renderer(tokenizers[head], source, head)
    assert says in str(caught.value)
    assert repr(source) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("source", "space"), [("{text}{prompt}{mask}", " "), ("{text}{prompt}\n{mask}.\n", "")])
def test_label_words_are_tokenised_with_the_space_that_stands_before_them(byte_tokenizer, source, space):
    words = {"negative": ["never", "never good"], "positive": ["bright"]}
    made = renderer(byte_tokenizer, source, CAUSAL, words)
    ids = [[tuple(byte_tokenizer(space + word)["input_ids"]) for word in words[label]] for label in LABELS]
    assert [list(of_class) for of_class in made.label_ids] == ids
    assert renderer(byte_tokenizer, "{text}{prompt}", SEQUENCE, words).label_ids == ()


@pytest.mark.parametrize(
    ("head", "words", "says"),
    [
        (MASKED, {"negative": "bad", "positive": "never good"}, "label word 'never good' is 2 tokens (never good)"),
        (MASKED, {"negative": "bad", "positive": "日本"}, "label word '日本' is not in this tokenizer's vocabulary"),
        (MASKED, {"negative": "good", "positive": "Good"}, "'negative' and 'positive' have label words"),
        (CAUSAL, {"negative": "never good", "positive": "never"}, "one as the beginning of the other"),
        (CAUSAL, {"negative": "never", "positive": ["good", "never good"]}, "one as the beginning of the other"),
    ],
)
def test_label_word_that_cannot_be_scored_is_refused(tokenizers, head, words, says):
    with pytest.raises(LabelWordError) as caught:
        renderer(tokenizers[head], "{text}{prompt}{mask}", head, words)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@given(st.data())
@examples(20)
def test_rendering_together_is_rendering_alone(word_tokenizer, data):
    examples = [Example({"text": text}) for text in data.draw(st.lists(words_of, min_size=2, max_size=5))]
    assume(len({example.fields["text"] for example in examples}) > 1)
    made = renderer(word_tokenizer, "{text}{prompt}{mask}", MASKED)
    assert made.render(examples) == [made.render([example])[0] for example in examples]


def test_a_tokenizer_that_writes_its_own_space_gets_no_second_one():
    """SentencePiece in its older form: `good` and ` good` would be one token and two."""
    words = ["▁good", "▁bad", "▁it", "▁is", "▁a", "▁", "<unk>"]
    raw = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    made = renderer(tokenizer, "it is {text}{prompt} is{mask}", CAUSAL, {"negative": "bad", "positive": "good"})
    assert made.label_ids == (((1,),), ((0,),))
    assert made.render([Example({"text": "a"})])[0].before == (2, 3, 4)


@pytest.mark.parametrize("head", [CAUSAL, MASKED])
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Ġgreat", "great"),
        ("▁great", "great"),
        ("##ing", "ing"),
        ("great</w>", "great"),
        ("Ġnever Ġgood", "never good"),
        ("▁never▁good", "never good"),
        ("po ##sitive", "positive"),
        ("po@@ sitive", "positive"),
        ("ĠÃ©tÃ©", "été"),  # bytes, as a byte-level vocabulary prints them
        ("Ġgroß", "groß"),
        ("Ċgreat", "great"),
        ("ĊĊgreat", "great"),
        ("ĊĠgreat", "great"),
        ("ĉgreat", "great"),
        ("greatĊ", "great"),
        ("greatĠ", "great"),
        ("great▁", "great"),
        ("great Ġ", "great"),
        ("Ġ good", "good"),
        ("▁ good", "good"),
        ("C##", "C"),
        ("<0x67>ood", "good"),
        ("d<0xC3><0xA9>but", "début"),
    ],
)
def test_a_label_word_or_prompt_written_as_a_list_of_tokens_is_refused_with_what_to_write(
    tokenizers, head, written, meant
):
    words = {"negative": "bad", "positive": ["good", written]}
    with pytest.raises(LabelWordError, match=re.escape(f"{written!r} is a token")) as caught:
        renderer(tokenizers[head], "{text}{prompt}{mask}", head, words)
    assert str(caught.value).endswith(f"write {meant!r}")
    with pytest.raises(TemplateError) as caught:
        renderer(tokenizers[head], f"{{text}}{{prompt: {written}}}{{mask}}", head)
    assert str(caught.value).endswith(f"write {meant!r}")


@pytest.mark.parametrize("head", [CAUSAL, MASKED])
@pytest.mark.parametrize("word", ["Ġ", "▁", "##", "Ċ", "ĉ", "ĊĊ", "Ġ Ġ", "▁▁", "<0x0A>", "<0x20>"])
def test_a_mark_alone_is_no_label_word(tokenizers, head, word):
    with pytest.raises(LabelWordError, match=r"is a token .* so give a word$"):
        renderer(tokenizers[head], "{text}{prompt}{mask}", head, {"negative": "bad", "positive": word})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Ã©tÃ©", "été"),
        ("voilÃł", "voilà"),
        ("Äłgreat", "great"),
        ("un Ã©tÃ©", "un été"),
        ("æĹ¥æľ¬", "日本"),
        ("Ċpositive", "positive"),
    ],
)
def test_bytes_as_a_byte_level_vocabulary_prints_them_are_refused(byte_tokenizer, written, meant):
    with pytest.raises(LabelWordError, match=f"is a token .* write '{meant}'$"):
        renderer(byte_tokenizer, "{text}{prompt}{mask}", CAUSAL, {"negative": "bad", "positive": written})
    with pytest.raises(TemplateError, match=f"write '{meant}'$"):
        renderer(byte_tokenizer, f"{{text}}{{prompt: {written}}}{{mask}}", CAUSAL)


LETTERS = [
    "Ċavetta",
    "ĉevalo",
    "Ĉiu",
    "feliĉ",
    "Ç\u0131kar",
    "été",
    "Größe",
    "naïve",
    "Łódź",
    "ñandú",
    "Ça",
    "日本",
    "Привет",
]


@pytest.mark.parametrize(
    "word", ["C#", "F#", "#", "#tag", "Ġorġ", "Ħaż-Żebbuġ", "a_b", "x@@y", "0x0A", "<br>", *LETTERS]
)
def test_words_that_only_look_like_printed_tokens_are_taken(byte_tokenizer, word):
    made = renderer(byte_tokenizer, "## Text: {text}{prompt: it}{mask}", CAUSAL, {"negative": "bad", "positive": word})
    assert made.label_ids[1] == (tuple(byte_tokenizer(f" {word}")["input_ids"]),)


def test_a_word_that_the_tokenizer_itself_writes_with_a_mark_is_taken():
    words = ["▁good", "▁bad", "▁Ġganti", "▁it", "▁a", "▁", "<unk>"]
    raw = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    own = {"negative": "Ġganti", "positive": "▁good"}  # a word of the vocabulary; and read as `good` is
    made = renderer(tokenizer, "{text}{prompt:▁it}{mask}", CAUSAL, own)
    assert made.label_ids == (((2,),), ((0,),))
    assert made.prompt_ids == (3,)


def test_many_label_words_are_told_apart_as_pairs_would_be(byte_tokenizer):
    """Against all pairs: words that are alike, or of which one begins as another, in any order of the classes."""
    words = ["good", "goodness", "bad", "badly", "war", "love"]
    names = [f"class {n}" for n in range(4)]
    for order in itertools.permutations(words, 4):
        task = Task(
            Template("{text}{prompt: it is}{mask}"),
            Verbalizer.from_labels(names, dict(zip(names, order, strict=True))),
        )
        ids = [byte_tokenizer(" " + word, add_special_tokens=False)["input_ids"] for word in order]
        clash = any(a != b and b[: len(a)] == a for a, b in itertools.product(ids, ids))
        with pytest.raises(LabelWordError, match="beginning of the other") if clash else nullcontext():
            Renderer(byte_tokenizer, task, HeadKind.CAUSAL, None)
