"""README and the pages of docs/: sizes, links, figures from result files, commands that parse, generated references."""

import ast
import dataclasses
import importlib
import json
import re
import shlex
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import BertModel
from typer.main import get_command

from conftest import LABELS, TEXTS, make_examples, make_task, tiny_problem
from cuecraft import PromptClassifier
from cuecraft.artifact import HardPrompt, load_artifact
from cuecraft.artifact.predictor import Predictor
from cuecraft.backbone import Pooling
from cuecraft.cli import app
from cuecraft.cli.help import COMMANDS
from cuecraft.core.assets import model_folder
from cuecraft.core.errors import AssetError, DataError
from cuecraft.methods.fit import make_artifact
from cuecraft.methods.problem import label_context
from cuecraft.runs.answers import asked_of
from cuecraft.runs.tune import checked_splits, read_splits
from cuecraft.task.answers import ANSWERS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
OTHERS = [ROOT / name for name in ("README.md", "README.vi.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
OTHERS += [ROOT / "examples" / "README.md", ROOT / "deploy" / "README.md"]
TRANSLATED = {"README.md": "README.vi.md", "docs/start.md": "docs/start.vi.md"}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def name_of(path):
    return str(path.relative_to(ROOT))


def made_pages():
    """Pages that docs/hooks/pages.py makes of the repository's files; read without MkDocs, which may not be there."""
    tree = ast.parse((ROOT / "docs" / "hooks" / "pages.py").read_text(encoding="utf-8"))
    values = [n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "MADE"]
    return ast.literal_eval(values[0])


def blocks(path, kind):
    return [text for language, text in BLOCK.findall(path.read_text(encoding="utf-8")) if language == kind]


@pytest.mark.parametrize(("page", "most"), [("README.md", 8_000), ("docs/architecture.md", 10_000)])
def test_pages_that_are_read_first_stay_short(page, most):
    assert (ROOT / page).stat().st_size <= most


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("tables")


def test_tables_are_those_of_the_result_files(tables, capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_every_table_of_a_result_file_is_on_a_page(tables):
    found = tables.all_tables()
    marks = {m for page in [*PAGES, *OTHERS] for m in re.findall(r"<!-- table: ([\w-]+) -->", page.read_text("utf-8"))}
    assert marks == set(found)
    assert all(found.values())
    text = "<!-- table: a -->\n| x |\n| --- |\n| old |\n\nbehind"
    assert tables.filled(text, {"a": ["| 1 |", "| 2 |"]}) == text.replace("| old |", "| 1 |\n| 2 |")
    for wrong in ("<!-- table: b -->\n| x |\n| --- |\n", "<!-- table: a -->\nno table"):
        with pytest.raises(ValueError, match=r"no table|a mark has no"):
            tables.filled(wrong, {"a": []})


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name_of)
def test_what_a_page_links_to_is_there(page):
    made = {ROOT / "docs" / own for own in made_pages().values()}
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            path = (page.parent / target).resolve()
            assert path.exists() or path in made, f"links to {target}"


def test_every_page_is_in_the_navigation_once():
    def pages(entry):
        if isinstance(entry, str):
            yield entry
        for child in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            yield from pages(child)

    named = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert sorted(named) == sorted(
        [str(page.relative_to(ROOT / "docs")) for page in PAGES] + list(made_pages().values())
    )


def command_lines(page):
    """The lines of a page's bash blocks that are commands of ours, comments cut off."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if "cuecraft " in line else []
            while words:
                end = next((at for at, word in enumerate(words) if word in ("&&", "||", "|", "(", ")")), len(words))
                if words[0] == "cuecraft":
                    yield words[1:end]
                words = words[end + 1 :]


def parse(words):
    """Parse a command line as the program does, without running it."""
    command, name = get_command(app), "cuecraft"
    while hasattr(command, "commands"):
        assert words, f"{name}: a command is missing"
        assert words[0] in command.commands, f"{name} has no command {words[0]}"
        command, name, words = command.commands[words[0]], words[0], words[1:]
    command.make_context(name, list(words))


@pytest.mark.parametrize("page", [page for page in [*PAGES, *OTHERS] if list(command_lines(page))], ids=name_of)
def test_commands_of_a_page_parse(page):
    for words in command_lines(page):
        try:
            parse(words)
        except Exception as error:
            pytest.fail(f"cuecraft {shlex.join(words)}: {error}")


class AskedFor(Exception):  # noqa: N818 - it is no error
    """What a command would run."""


def request_of(words, monkeypatch):
    """Return what a line of `tune` asks for, and its files; it is not run."""

    def asked(spec, files, started):
        raise AskedFor(spec, files)

    monkeypatch.setattr("cuecraft.runs.run_tune", asked)
    with pytest.raises(AskedFor) as found:
        app(words, standalone_mode=False)
    return found.value.args


def answer_of(kind, column, number):
    """Return the answer of a row of a kind of answers, by its columns; None stands for labels."""
    return {
        "multilabel": {column: ["a"] if number % 2 else []},
        "tokens": {column: [{"label": "a", "start": 0, "end": 4}] if number % 2 else []},
        "cloze": {"answer": f"word{number % 2}"},
        "choices": {"choices": ["a", "b"], "answer": number % 2},
    }.get(kind, {column: number % 2})


def splits_of(words, monkeypatch, folder):
    """Return train, dev and test rows of a line of `tune`, where each of its files has 100 rows of two classes."""
    (folder / "corpus.jsonl").write_text('{"text": "a joy"}\n')  # which a page names
    monkeypatch.chdir(folder)
    spec, files = request_of(words, monkeypatch)
    answers = spec.task.answers
    kind = answers if isinstance(answers, str) else getattr(answers, "kind", None)
    rows = [
        dict.fromkeys(spec.data.text_columns, f"text {n}") | answer_of(kind, spec.data.label_column or "label", n)
        for n in range(200)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {name: str(data) for name in ("train", "dev", "test") if getattr(spec.data, name)}
    reading = dataclasses.replace(files.reading, delimiter=None)
    spec = spec.model_copy(update={"data": spec.data.model_copy(update=given)})
    return read_splits(spec, asked_of(spec, reading), reading)


LINES = [(name_of(page), words) for page in [*PAGES, *OTHERS] for words in command_lines(page)]
LINES += [("--help", shlex.split(line)[1:]) for line, _ in COMMANDS["tune"].examples]
TUNED = [(page, words) for page, words in LINES if words[0] == "tune" and "--unlabeled" not in words]


@pytest.mark.parametrize(("page", "words"), TUNED, ids=[f"{page}-{n}" for n, (page, _) in enumerate(TUNED)])
def test_rows_are_left_for_what_a_line_of_tune_asks_for(page, words, monkeypatch, tmp_path):
    train, _, test = splits_of(words, monkeypatch, tmp_path)
    assert train
    assert test or not {"--test-size", "--test"} & set(words)


HERE = re.compile(r"^cat > (\S+) <<'END'\n(.*?)^END$", re.M | re.S)
PASTED = [(page, words) for page, words in TUNED if page in ("docs/answers.md", "docs/cloze.md", "docs/tokens.md")]


@pytest.mark.parametrize(("page", "words"), PASTED, ids=[f"{page}-{n}" for n, (page, _) in enumerate(PASTED)])
def test_rows_that_a_page_prints_are_what_its_lines_of_tune_read(page, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / page, "bash"):
        for name, text in HERE.findall(block):
            Path(name).write_text(text)
    spec, files = request_of(words, monkeypatch)
    asked = asked_of(spec, files.reading)
    train, dev, _ = checked_splits(spec, asked, files.reading)  # which also says whether all answers can be learnt
    assert (len(train) > 5, dev is None) == (True, spec.data.dev is None)
    kinds = {"intents": {"labels", "open-set"}, "copa": {"choices"}, "requests": {"multilabel"}, "reviews": {"ordinal"}}
    kinds |= {"capitals": {"cloze"}, "facts": {"cloze"}, "slots": {"tokens"}, "train": {"tokens"}}
    assert asked.kind in kinds[Path(spec.data.train).stem]


def test_the_page_of_answers_has_the_columns_of_every_kind():
    page = (ROOT / "docs" / "answers.md").read_text("utf-8")
    table = page[page.index("| kind | answer |") :].split("\n\n")[0]
    rows = re.findall(r"^\| `([\w-]+)` \|[^|]*\|([^|]*)\|", table, re.M)
    assert {kind for kind, _ in rows} == set(ANSWERS)
    for kind, cell in rows:
        assert {*ANSWERS[kind].columns, *(["choices"] * ANSWERS[kind].brings_options)} <= set(
            re.findall(r"`(\w+)`", cell)
        )


def test_a_test_set_without_rows_left_for_it_is_found(monkeypatch, tmp_path):
    with pytest.raises(DataError, match="test_size= needs"):
        splits_of(["tune", "reviews.csv", "--test-size", "200"], monkeypatch, tmp_path)


def test_a_command_that_is_wrong_does_not_parse():
    parse(["predict", "runs/demo", "a text"])
    for wrong in (["predict"], ["tune", "a.csv", "--no-such-option"], ["no-such-command"], ["recipe"]):
        with pytest.raises(Exception):  # noqa: B017 - what Typer raises depends on its version
            parse(wrong)


def test_targets_extras_and_scripts_that_pages_name_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for page in [*PAGES, *OTHERS]:
        text = page.read_text(encoding="utf-8")
        code = "\n".join([*blocks(page, "bash"), *re.findall(r"`([^`\n]+)`", text)])
        for target in re.findall(r"^make (?:PYTHON=\S+ )?([a-z][\w-]*)", code, re.M):
            assert re.search(rf"^{target}:", makefile, re.M), f"{name_of(page)}: make {target}"
        for names in re.findall(r"cuecraft\[([\w,-]+)\]", text):
            assert set(names.split(",")) <= set(extras), f"{name_of(page)}: {names}"
        if page.name != "CHANGELOG.md":
            for script in re.findall(r"\b((?:benchmarks|examples)/[a-z_]+\.(?:py|ipynb))", text):
                assert (ROOT / script).exists(), f"{name_of(page)}: {script}"


@pytest.mark.parametrize("page", [page for page in [*PAGES, *OTHERS] if blocks(page, "python")], ids=name_of)
def test_python_of_a_page_compiles_and_imports_what_is_there(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("cuecraft"):
                module = __import__(node.module, fromlist=["*"])
                assert not [own.name for own in node.names if not hasattr(module, own.name)]


def of_page(name, monkeypatch):
    """Run the file on the page about extending that has a class, and return that class."""
    (block,) = [own for own in blocks(ROOT / "docs" / "extending.md", "python") if f"class {name}(" in own]
    module = types.ModuleType(name.lower())
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(block, "extending.md", "exec", dont_inherit=True), module.__dict__)
    return getattr(module, name)


def test_the_method_of_the_page_on_extending_finds_a_prompt(causal, monkeypatch):
    outcome = of_page("RandomWords", monkeypatch)(tries=3).fit(tiny_problem(causal))
    assert len(outcome.trace) == 4


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_the_prompt_of_the_page_on_extending_is_tuned_and_stored(kind, request, monkeypatch, tmp_path):
    backbone = request.getfixturevalue(kind)
    problem, method = tiny_problem(backbone), of_page("LevelCue", monkeypatch)(epochs=4)
    outcome = method.fit(problem)
    assert outcome.is_tuned
    offsets = outcome.best.prompt.offsets
    assert float(offsets.abs().max()) > 0
    assert torch.equal(offsets[0], offsets[-1])
    artifact = make_artifact(problem, outcome, method)
    artifact.save(tmp_path / "level")
    examples = list(problem.train.context.examples)
    found = Predictor.of(load_artifact(tmp_path / "level"), backbone).probabilities(examples)
    with torch.no_grad():
        expected = outcome.best.logits(backbone, problem.train.context).softmax(-1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_backbone_family_of_the_page_on_extending_reads_as_its_model_and_is_tuned(sequence, monkeypatch, tmp_path):
    model = BertModel(sequence.model.config).eval()
    model.load_state_dict(sequence.model.state_dict())
    kind = of_page("MaxPooled", monkeypatch)
    backbone = kind(model, sequence.tokenizer, "max-pooled", lambda: "0" * 64, Pooling.MEAN)
    backbone.check()
    context = label_context(backbone, make_task("{text}{prompt: it was}"), make_examples()).context
    prompt = HardPrompt((11, 12))
    with torch.no_grad():
        found = backbone.features(context, prompt)
        for row, piece in zip(found, context.pieces, strict=True):
            ids = torch.tensor([[*piece.before, 11, 12, *piece.after]])
            hidden = model(input_ids=ids).last_hidden_state[0]
            kept = [n for n in range(ids.shape[1]) if not 0 <= n - len(piece.before) < 2]
            torch.testing.assert_close(row, hidden[kept].amax(0), atol=1e-5, rtol=1e-4)
    texts, labels = [text for text, _ in TEXTS], [LABELS[label] for _, label in TEXTS]
    fitted = PromptClassifier(backbone, "prompt-tuning", method_options={"epochs": 2}).fit(texts, labels)
    fitted.save(tmp_path / "tuned")
    loaded = PromptClassifier.load(tmp_path / "tuned", model=backbone)
    np.testing.assert_allclose(loaded.predict_proba(texts), fitted.predict_proba(texts), atol=1e-6)


@pytest.mark.slow
def test_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    try:
        model_folder("demo:smollm2-135m")
    except AssetError:
        pytest.skip("the demo packages are not installed")
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(ROOT / "README.md", "python")
    exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "runs" / "mood" / "manifest.json").exists()
    assert capsys.readouterr().out.startswith("[[")


def skeleton(path):
    """Headings by level, table marks, and the lines of bash and Python blocks without comments."""
    lines, block = [], None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            block = line[3:] if block is None else None
            lines.append(line)
        elif block in ("bash", "python") and not line.lstrip().startswith("#"):
            lines.append(line.split("  #")[0].rstrip())
        elif block is None and line.startswith("#"):
            lines.append("#" * (len(line) - len(line.lstrip("#"))))
        elif line.startswith(("<!-- table", "- ")):
            lines.append(line[:10])
    return [line[:2] if line.startswith("- ") else line for line in lines]


@pytest.mark.parametrize(("english", "vietnamese"), TRANSLATED.items(), ids=TRANSLATED)
def test_translations_are_in_step(english, vietnamese):
    assert skeleton(ROOT / english) == skeleton(ROOT / vietnamese)
    links = [re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text(encoding="utf-8")) for page in (english, vietnamese)]
    first, second = ([own.replace(".vi.md", ".md") for own in found] for found in links)
    assert first == second


def test_the_command_reference_has_every_command_and_option(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    from commands import command_names, command_reference

    text = command_reference(app)
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")}
    found = dict(command_names(get_command(app)))
    assert len(found) > 20
    for name, command in found.items():
        own = sections.get(name.partition(" ")[2]) or sections["## " + name.partition(" ")[2]]
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert all(f"`{flag}" in own or f" {flag}" in own for flag in parameter.opts), (
                    f"{name}: {parameter.opts}"
                )


def test_the_schema_reference_has_every_method_and_its_options(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    from schema import schema_reference

    from cuecraft.methods import METHODS
    from cuecraft.runs import json_schema

    text = schema_reference(json_schema())
    for name, method in METHODS.items():
        section = text.partition(f"### `{name}` ")[2].partition("\n### ")[0]
        assert all(f"| `{field}` |" in section for field in method.model_fields), name
    for target in re.findall(r"\]\(#([\w-]+)\)", text):
        assert f"{{: #{target} }}" in text or target == "methods-and-their-options", target


def test_the_http_reference_has_every_field(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    from schema import model_reference

    from cuecraft.serving.http.wire import AnswerDocument, ClassifyRequest, ClassifyResponse

    models = {model.__name__: model.model_json_schema() for model in (ClassifyRequest, ClassifyResponse)}
    text = model_reference(models)
    for model in (ClassifyRequest, ClassifyResponse, AnswerDocument):
        section = text.partition(f"### {model.__name__} ")[2].partition("\n### ")[0]
        assert all(f"| `{field}` |" in section for field in model.model_fields), model
