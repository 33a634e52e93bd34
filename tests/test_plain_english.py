"""Pages, help, errors, docstrings, comments: words that were replaced do not come back; modules that they name exist.

The glossary (docs/glossary.md) has the words that are used instead. A word here is one with a plainer one of the same
meaning: images for parts of the program (room, floor), litotes (not untrue), and idioms that a reader with English as a
second language does not know.
"""

import ast
import functools
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
    r"houses?": "structure",
    r"shel(?:f|ves)": "prompts, collection; the class is `Shelf`",
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

#: Modules whose strings are keys of results that were stored before.
KEYS = ("bits.py",)

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
    found = [*(ROOT / "src").rglob("*.py"), *(ROOT / "docs").rglob("*.py")]
    found += [path for folder in ("benchmarks", "examples", "scripts") for path in (ROOT / folder).glob("*.py")]
    return sorted(path for path in found if path.name not in KEYS)


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


#: Folders of the project with files that prose names.
FOLDERS = ("src", "tests", "benchmarks", "examples", "scripts", "docs", "deploy")
#: Files and folders in prose that are not of the project.
NOT_OURS = {
    "NAME.py": "any example",
    "convert_hf_to_gguf.py": "of llama.cpp",
    "docs/gguf.md": "of ggml",
    "example.py": "of an exported folder",
    "injection/": "of the benchmark data",
    "known/": "of the user's cache",
    "own.py": "made by a test",
    "shared/data/": "the benchmark data",
}
#: Packages that were renamed or joined with others: a dotted name in backticks does not begin with one.
GONE = set("bulk classic compare display guard interop prompts recipe runtime search serve tune".split())
#: Dotted names of options, of keys of a manifest or of files, with a package's name in front.
NOT_MODULES = re.compile(
    r"guard\.(?:attack|detectors|mode|prompt|rules|threshold)$|search\.steps$"
    r"|task\.(?:chat|shots|template)$|tune\.(?:epochs|learning_rate)$"
    r"|\w+\.(?:csv|html|json|jsonl|md|npz|py|safetensors|toml|txt|yaml)$"
)
NOT_NAMES = {"cuecraft.json": "a file", "cuecraft.history": "a key of a browser's storage", "cuecraft.pth": "a file"}
QUOTED = re.compile(r"`+([^`\n]+)`+")


@functools.cache
def endings_of_paths():
    """Return the paths of the project's files and folders, and all ends of these: `a/b.py` has the end `b.py`."""
    files = [*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    files += (ROOT / "recipes").glob("*")  # a link
    found = {"."}
    for path in files:
        if path.is_file() and "__pycache__" not in path.parts:  # folders that hold no more than bytecode are left out
            parts = path.relative_to(ROOT).parts
            ends = range(1, len(parts) + 1)
            found |= {"/".join(parts[start:end]) for end in ends for start in range(end)}
    return found


@functools.cache
def names_of(module):
    """Return the names that a module defines, imports or loads on first use; None where there is no such module."""
    path = ROOT.joinpath("src", *module)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.is_file():
        return None
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and path.name == "__init__.py":
            found.add(node.value)
    return found


def is_there(dotted):
    """Return whether a dotted name is that of a module, or of what one has."""
    parts = tuple(dotted.split("."))
    end = max(end for end in range(1, len(parts) + 1) if names_of(parts[:end]) is not None)
    return end == len(parts) or parts[end] in names_of(parts[:end])


def gone(text):
    """Yield the references of a text to modules, files and folders that do not exist, each with its line."""
    packages = {path.name for path in (ROOT / "src" / "cuecraft").iterdir() if (path / "__init__.py").is_file()}
    for number, line in enumerate(text.splitlines(), 1):
        paths = set(re.findall(r"(?<![\w/.-])[\w./-]*\w+\.py\b", line))
        dotted = set(re.findall(r"\bcuecraft(?:\.[A-Za-z]\w*)+", line))
        for word in (word for code in QUOTED.findall(line) for word in code.split()):
            if re.fullmatch(r"[a-z][\w-]*(?:/[\w-]+)*/(?:[\w.-]+\.(?:js|py|toml|yaml|yml))?", word):
                paths.add(word)
            name = re.match(r"[\w.]*", word).group(0).strip(".")
            if "." in name and name.split(".")[0] in packages | GONE and not NOT_MODULES.match(name):
                dotted.add(f"cuecraft.{name}")
        for path in sorted(paths):
            named = path.lstrip("./")
            if named.rstrip("/") not in endings_of_paths() and not {named, Path(named).name} & set(NOT_OURS):
                yield f"{number}: {path}"
        yield from (f"{number}: {name}" for name in sorted(dotted) if name not in NOT_NAMES and not is_there(name))


def files_that_name_modules():
    found = [ROOT / name for name in ("CHANGELOG.md", "README.vi.md", "pyproject.toml")] + pages()
    found += sorted([*(ROOT / "docs").rglob("*.vi.md"), *(ROOT / "deploy").iterdir()])
    found += [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    made_up = {"test_architecture.py", "test_plain_english.py"}
    return [path for path in found if path.name not in made_up]


@pytest.mark.parametrize(
    "folder",
    sorted({path.parent for path in files_that_name_modules()}),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_modules_files_and_folders_that_prose_names_exist(folder):
    wrong = []
    for path in files_that_name_modules():
        if path.parent == folder:
            text = path.read_text(encoding="utf-8")
            found = gone(prose_of(text) if path.suffix == ".py" else text)
            wrong += [f"{path.relative_to(ROOT)}:{line}" for line in found]
    assert not wrong, "\n".join(wrong)


def test_references_to_what_is_gone_are_found():
    for text in (
        "see `serve/http/page/answers.js`",
        "a module in `tune/`",
        "as in lines.py",
        "`task/no_such.py` has it",
        "`serve.shelf` has those of artifacts",
        "import_path: cuecraft.serve.cluster:build",
        "`cuecraft.methods.registry.NO_SUCH`",
    ):
        assert list(gone(text)), text
    for text in (
        "`cuecraft.methods.registry`, `cuecraft.PromptClassifier.fit` and `methods.evidence.Tried`",
        "`methods/search/`, `layout.py`, `tune.epochs`, `runs/demo` and `pytest.raises`",
    ):
        assert not list(gone(text)), text
