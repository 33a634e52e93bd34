"""Words that were replaced by plain technical English do not come back: pages, help, errors, docstrings, comments.

The glossary (docs/glossary.md) has the words that are used instead. A word here is one with a plainer one of the same
meaning: images for parts of the program (room, floor), litotes (not untrue), and idioms that a reader with English as a
second language does not know.
"""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INSTEAD = {
    r"told": "given, reported, printed; a progress callback is called with events",
    r"tells? (?:whether|how|what|which|of|that|the|it|them|apart)": "return, say, show, distinguish",
    r"mend(?:s|ed|ing)?": "fix",
    r"beside": "next to, in addition to, compared with",
    r"rooms?": "package, module; space, capacity",
    r"floors?": "layer; minimum",
    r"whoever|whosoever": "the user, the caller",
    r"nobody": "no user, no caller; or say who",
    r"anew": "again",
    r"kin": "related, similar",
    r"front door": "interface",
    r"(?:hung|hangs?|hanging) up": "disconnected",
    r"under way": "in progress",
    r"not (?:un(?:like|known|usual|common|true|seen|able|fair|happy|necessary|certain|clear|reasonable)\w*|without|in(?:valid|correct|frequent)\w*)": "say it without two negations",  # noqa: E501
    r"no (?:small|little|mean) \w+": "say how large",
}
WORDS = re.compile(rf"\b(?:{'|'.join(INSTEAD)})\b", re.I)

#: Code in backticks, and the name of an argument in front of its description.
ALLOWED = re.compile(r"`[^`\n]*`|^\s*\w+: ")


def found_in(text):
    """Yield each line of a text with a word of the list, code in backticks left out."""
    for number, line in enumerate(text.splitlines(), 1):
        if match := WORDS.search(ALLOWED.sub(" ", line)):
            yield f"{number}: {match.group(0)!r} in {line.strip()[:100]!r}"


def without_code(markdown):
    """Return a page without its blocks of code but for their comments, and as many lines."""
    lines, is_code = [], False
    for line in markdown.splitlines():
        is_fence = line.lstrip().startswith("```")
        is_code ^= is_fence
        lines.append(("" if "#" not in line else line.partition("#")[2]) if is_code or is_fence else line)
    return "\n".join(lines)


def prose_of(source):
    """Return the comments and the strings with spaces of a module, each on its line."""
    lines = [""] * (source.count("\n") + 2)
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in kinds and " " in token.string.strip("# \"'"):
            text = re.sub(r"\{[^{}]*\}", "", token.string)  # values that are filled in
            for offset, line in enumerate(text.split("\n")):
                lines[token.start[0] + offset - 1] += " " + line
    return "\n".join(lines)


def pages():
    named = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "mkdocs.yml")
    found = [ROOT / name for name in named]
    found += sorted(
        [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md"), *(ROOT / "deploy").glob("*.md")]
    )
    return [page for page in found if not page.name.endswith(".vi.md")]


def modules():
    return sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "examples").glob("*.py"), *(ROOT / "docs").rglob("*.py")])


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_are_in_plain_english(page):
    text = page.read_text(encoding="utf-8")
    assert not list(found_in(without_code(text) if page.suffix == ".md" else text))


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in modules()}), ids=lambda path: str(path.relative_to(ROOT))
)
def test_help_errors_and_docstrings_are_in_plain_english(folder):
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in modules()
        if path.parent == folder
        for line in found_in(prose_of(path.read_text(encoding="utf-8")))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_list_finds_what_it_should_and_nothing_else():
    source = '"""One can mend it."""\nbeside = {"room": 1}  # what stands beside it\ntext = f"{beside} of {beside}"\n'
    assert [line.partition(":")[0] for line in found_in(prose_of(source))] == ["1", "2"]
    for text in ("recommend", "a mushroom", "the floor() of `room`", "not under 5", "not until then", "besides"):
        assert not [line for line in found_in(text) if "floor" not in line]
    assert list(found_in("It is not unlike a room."))
    page = "`beside`\n```python\nbeside = 1  # nobody\n```\ntext"
    assert [line.partition(":")[0] for line in found_in(without_code(page))] == ["3"]
