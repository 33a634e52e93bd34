"""Templates: pieces, spaces at the seams, escapes, and the mistakes that are refused."""

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import examples
from cuecraft.core.errors import TemplateError
from cuecraft.task import Field, Literal, MaskSlot, PromptSlot, Template

PIECES = {
    "{text}{prompt}": (Field("text"), PromptSlot()),
    "Review: {text}{prompt}": (Literal("Review:"), Field("text", " "), PromptSlot()),
    "Review:{text}{prompt}": (Literal("Review:"), Field("text"), PromptSlot()),
    "Review:  {text}{prompt}": (Literal("Review: "), Field("text", " "), PromptSlot()),
    " {text}{prompt}": (Field("text", " "), PromptSlot()),
    "{text} and {title}{prompt}": (Field("text"), Literal(" and"), Field("title", " "), PromptSlot()),
    "{text} {title}{prompt}": (Field("text"), Field("title", " "), PromptSlot()),
    "{text}{prompt: it was}{mask}": (Field("text"), PromptSlot(" it was"), MaskSlot(" ")),
    "{text} {prompt:it was}{mask}": (Field("text"), PromptSlot(" it was"), MaskSlot(" ")),
    "{text} {prompt: it was}{mask}": (Field("text"), PromptSlot(" it was"), MaskSlot(" ")),
    "{text} {prompt}{mask}": (Field("text"), PromptSlot(), MaskSlot(" ")),
    "{text}{prompt:\nSentiment:}{mask}": (Field("text"), PromptSlot("\nSentiment:"), MaskSlot(" ")),
    "{text}{prompt:a:b!r[0]}{mask}": (Field("text"), PromptSlot("a:b!r[0]"), MaskSlot(" ")),
    "{text}{prompt:}{mask}": (Field("text"), PromptSlot(), MaskSlot(" ")),
    "{text}{prompt}\nIt was {mask}.": (Field("text"), PromptSlot(), Literal("\nIt was"), MaskSlot(" "), Literal(".")),
    "{prompt}{text} ": (PromptSlot(), Field("text"), Literal(" ")),
    "{{{text}}} {prompt}": (Literal("{"), Field("text"), Literal("}"), PromptSlot()),
    "{{x}}: {text}{prompt}": (Literal("{x}:"), Field("text", " "), PromptSlot()),
    "{{{{ {text}}}}}{prompt}": (Literal("{{"), Field("text", " "), Literal("}}"), PromptSlot()),
    "{a b-c.2}{prompt}": (Field("a b-c.2"), PromptSlot()),
    "{Prompt}{prompt}{Mask}": (Field("Prompt"), PromptSlot(), Field("Mask")),
}


@pytest.mark.parametrize("source", PIECES)
def test_pieces(source):
    assert Template(source).pieces == PIECES[source]


@pytest.mark.parametrize(
    ("before", "prefix"),
    [
        ("{text}", " "),
        ("{text} ", " "),
        ("{text}:", " "),
        ("{text}\n", ""),
        ("{text}\t", ""),
        ("{text}(", ""),
        ("{text}[", ""),
        ('{text}"', ""),
        ("{text}“", ""),
        ("{text})", " "),
        ("{text}]", " "),
        ("{text}”", " "),
        ("{text}\n.", " "),
        ("\n{text}", " "),
        ("{text}(\n", ""),
        ("({text})(", ""),
    ],
)
def test_answer_prefix(before, prefix):
    (slot,) = (piece for piece in Template(before + "{mask}{prompt}").pieces if isinstance(piece, MaskSlot))
    assert slot.prefix == prefix


@pytest.mark.parametrize(
    ("source", "prefix"),
    [
        ("{mask}{text}{prompt}", ""),
        (" {mask}{text}{prompt}", ""),
        ("{text}\n{prompt}{mask}", ""),
        ("{text}\n{prompt:Sentiment:}{mask}", " "),
        ("{text}{prompt:\n}{mask}", ""),
        ("{text}{prompt: (}{mask}", ""),
        ("({prompt}{text}{mask}", " "),
    ],
)
def test_answer_prefix_looks_through_an_empty_prompt(source, prefix):
    (slot,) = (piece for piece in Template(source).pieces if isinstance(piece, MaskSlot))
    assert slot.prefix == prefix


def test_space_at_the_end_of_the_prompt_words_is_not_doubled():
    written = in_full(Template("{text}{prompt: it was }{mask}"), {"text": "x"}, "good")
    assert written == "x it was good"


ERRORS = {
    "": "has 0 {prompt} slots",
    "{text}": "has 0 {prompt} slots",
    "{text}{{prompt}}": "has 0 {prompt} slots",
    "{text}{prompt}{prompt: was}": "has 2 {prompt} slots",
    "{text}{prompt}{mask} {mask}": "has 2 {mask} slots",
    "words{prompt}{mask}": "has no field",
    "{{text}}{prompt}": "has no field",
    "{text}{prompt": "does not parse",
    "{text{prompt}": "does not parse",
    "{text}}{prompt}": "does not parse",
    "text}{prompt}": "does not parse",
    "{text}{prompt}{": "does not parse",
    "{text!r}{prompt}": "has a conversion in {text!r}",
    "{text}{prompt!s}": "has a conversion in {prompt!s}",
    "{text}{prompt}{mask!a}": "has a conversion in {mask!a}",
    "{text:>10}{prompt}": "has a format in {text:>10}",
    "{text}{prompt}{mask:x}": "has a format in {mask:x}",
    "{text}{prompt:a {title} b}": "has a slot inside {prompt:...}",
    "{}{prompt}": "has a slot {}",
    "{text}{}{prompt}": "has a slot {}",
    "{0}{prompt}": "has a slot {0}",
    "{ text}{prompt}": "has a slot { text}",
    "{text[0]}{prompt}": "has a slot {text[0]}",
    "{-}{prompt}": "has a slot {-}",
}


@pytest.mark.parametrize("lines", ["", "\nand more\r\n"])
@pytest.mark.parametrize("source", ERRORS)
def test_refused_in_one_line(source, lines):
    source = lines + source
    with pytest.raises(TemplateError, match=re.escape(ERRORS[source.removeprefix(lines)])) as caught:
        Template(source)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert repr(source) in message


def test_field_names_are_in_order_of_first_use():
    assert Template("{title}{prompt}{text} {title}").field_names == ("title", "text")


def test_prompt_text_and_mask():
    template = Template("{text}{prompt: it was}{mask}")
    assert template.prompt_text == " it was"
    assert template.has_mask
    assert Template("{prompt}{text}").prompt_text == ""
    assert not Template("{prompt}{text}").has_mask


VALUES = {"text": "warm", "title": "War"}


class Between:
    """Formats as its format specification (or a fixed word) between two marks."""

    def __init__(self, marks, word=""):
        self.marks = marks
        self.word = word

    def __format__(self, spec):
        return self.marks[0] + (spec or self.word) + self.marks[1:]


def in_full(template, values, word):
    text = ""
    for piece in template.pieces:
        match piece:
            case Literal(part) | PromptSlot(part):
                text += part
            case Field(name, prefix):
                text += prefix + values[name]
            case MaskSlot(prefix):
                text += prefix + word
    return text


def by_str_format(source, values, word):
    """Python's own formatting, then the three things that may happen to spaces at {prompt} and {mask}."""
    text = source.format(prompt=Between("\1\3"), mask=Between("\2", word), **values)
    text = re.sub(" \1(?=[ \3])", "\1", text)  # one before a prompt without words, or whose words bring their own
    text = text.replace(" \2", "\2")  # one before the answer belongs to the answer,
    text = text.replace("\1", "").replace("\3", "")
    text = re.sub('(^|[\n\t(["“])\2', r"\1", text)  # which has none at the start of a line, bracket or quotation
    return text.replace("\2", " ")  # and exactly one anywhere else


@st.composite
def sources(draw):
    literal = st.text(alphabet='ab  \n\t.:([")“{}!', max_size=5)
    words = st.text(alphabet='ab  \n:(!"[', max_size=5).filter(lambda text: not text.endswith(" "))
    slots = draw(st.lists(st.sampled_from(["{text}", "{title}"]), min_size=1, max_size=3))
    given_words = draw(words)
    slots.append(f"{{prompt:{given_words}}}" if given_words or draw(st.booleans()) else "{prompt}")
    slots += ["{mask}"] * draw(st.integers(0, 1))
    parts = [part for slot in draw(st.permutations(slots)) for part in (draw(literal), slot)] + [draw(literal)]
    return "".join(part if part in slots else part.replace("{", "{{").replace("}", "}}") for part in parts)


@examples(400)
@example("A  {prompt}{mask}{text}")
@example("{text}( {mask}{prompt: a}")
@given(sources())
def test_filled_pieces_equal_str_format_but_for_spaces_at_the_slots(source):
    assert in_full(Template(source), VALUES, "good") == by_str_format(source, VALUES, "good")


@examples(200)
@given(sources())
def test_no_literal_ends_in_a_space_that_the_next_piece_could_carry(source):
    pieces = Template(source).pieces
    assert "" not in [piece.text for piece in pieces if isinstance(piece, Literal)]
    for piece, following in pairwise(pieces):
        assert not (isinstance(piece, Literal) and isinstance(following, Literal))
        if isinstance(piece, Literal) and isinstance(following, Field) and piece.text.endswith(" "):
            assert following.prefix == " "


SLOT_TEXT = st.text(st.characters(exclude_characters="{}", codec="utf-8"), max_size=12)


@given(sources(), SLOT_TEXT)
def test_other_words_in_the_prompt_slot_leave_literals_and_fields_as_they_are(source, text):
    template = Template(source)
    found = template.with_prompt(text)
    assert found.field_names == template.field_names
    assert found.prompt_text.strip(" ") == text.strip(" ")
    assert found.with_prompt(text) == found
    written = [p.text.strip(" ") for p in found.pieces if isinstance(p, Literal)]
    assert "".join(written) == "".join(p.text.strip(" ") for p in template.pieces if isinstance(p, Literal))


def test_the_prompt_slot_takes_what_is_written_into_it():
    template = Template("{{{text}}} {prompt: it was}{mask}.")
    assert template.with_prompt(" a:b!r").source == "{{{text}}} {prompt: a:b!r}{mask}."
    assert template.with_prompt("\nso").prompt_text == " \nso", "the space before the slot goes into it, as always"
    assert template.with_prompt(template.prompt_text).pieces == template.pieces
    for text in ("{text}", "a}", "{"):
        with pytest.raises(TemplateError, match="has braces"):
            template.with_prompt(text)
