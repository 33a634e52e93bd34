"""Every command as it is meant, and with hostile values and files: exit code 0, 1 or 2, and never a traceback."""

import contextlib
import io
import json
import os
import random
import re
import shlex
import shutil
import sys
import warnings

import pytest
import typer

pytest.importorskip("orjson")
pytest.importorskip("peft")
pytest.importorskip("pyarrow")
pytest.importorskip("cuecraft.serving.http.server")

import pyarrow as arrow
from pyarrow import parquet

from bulk import X, Y
from conftest import LABELS, LM_TEMPLATE, TEXTS
from cuecraft import PromptClassifier, cli
from cuecraft.core.assets import DataAsset
from cuecraft.export.commands import ExportRequest, run_export
from cuecraft.runs import load_recipe, run_recipe
from cuecraft.serving import command as serving
from cuecraft.serving.http import server
from recipes import write_recipe

WORDS = [
    *(
        "",
        " ",
        "-",
        "--",
        "=",
        "a=",
        "=a",
        "a=b",
        "positive=good",
        "a=b,c",
        "epochs=1",
        "tune.epochs=x",
        "@",
        "%",
        "{",
        "[1",
    ),
    *("{text}", "{prompt}{text}", "{text}{prompt: it was}{mask}", "{prompt", "{}", "{0}", "text", "label", "nowhere"),
    *(
        "0",
        "1",
        "2",
        "-1",
        "1.5",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "99999999999999999999",
        "0x10",
        "1_000",
        "\u0661",
        "true",
    ),
    *(
        "0,1",
        "0,,1",
        "1,1",
        "1%",
        "101%",
        "None",
        "null",
        "caf\udce9",
        "\ufeff",
        "\u202e",
        "a\tb",
        "a\nb",
        "\U0001f600",
    ),
    *(
        "x" * 300,
        "x/" * 3000,
        "~",
        "*",
        "[a-",
        "**/*",
        ".",
        "..",
        "zero-shot",
        "all",
        "hybrid",
        "demo:",
        "demo:x",
        "hub/x",
    ),
    *("https://127.0.0.1:9/v1", "http://[", "file:///x", "cpu", "cuda:7", "float32", "onnx", "safetensors", "parquet"),
    *("causal", "masked", "sequence", "auto", "text: [", "127.0.0.1", "::1", "https://a.example", "--help", "-h"),
]
CONTENTS = {
    "empty": b"",
    "blank": b"\n \n\n",
    "nul": b"text,label\n\0,a\n",
    "junk": bytes(range(256)),
    "utf16": "text,label\na,b\n".encode("utf-16"),
    "latin": "text,label\né,a\nb,c\n".encode("latin-1"),
    "twice": b"text,label,text\na,b,c\nd,e,f\n",
    "ragged": b'text,label\n"a,b\nc\nd,e,f,g\n',
    "headless": b",\n,\n",
    "deep": b'{"text":' * 3000,
    "arrays": b"[" * 100_000,
    "numbers": b'{"text": 1e999, "label": NaN}\n{"text": -0, "label": 1' + b"0" * 5000 + b"}\n",
    "halves": b'{"text": "\\ud800", "label": "a"}\n{"text": "b", "label": "c"}\n',
    "lists": b'[{"text": ["a"], "label": {"b": 1}}]\n',
    "one": b'{"text": "a", "label": "b"}\n',
    "null": b'{"text": null, "label": null}\nnull\n',
    "yaml": b"a: &a [b]\nc: [*a, *a]\n? [d]\n: e\n",
    "tagged": b"!!python/object/apply:os.system ['true']\n",
    "recipe": b"version: 1\nname: x\ndata: {train: nowhere.csv}\nmodel: {name: nowhere}\ntune: {method: full}\n",
    "ending": b"text: a: b\n\t- x\n",
    "dates": b"version: 2024-01-01\ndata: 2024-01-01\n",
    "rules": b"rules:\n- {id: x, pattern: '(', severity: 9}\n",
    "tokens": b"client a b\nadmin \xff\n",
}
SUFFIXES = [".csv", ".jsonl", ".json", ".parquet", ".yaml", ".txt", ".csv.gz", ".npy", ""]
FIRST = "{prompt: it was}{text} now{mask}"
#: Command lines that end with exit code 0, for each command. Words in capitals name files and folders of `place`.
LINES = {
    "classify": [
        "TUNED ROWS --out made --field text --keep label --option readers=0",
        "TUNED CSV --out made --template '{text} {label}' --output parquet --option readers=0 --json",
        "TUNED PARQUET --out made --field text --option readers=0",
        "TUNED TXT --out made --option readers=0",
    ],
    "demo": ["--shots 2 --test-size 2 --out made"],
    "compare": ["--task ROWS --model MODEL --shots 2 --seeds 1 --methods zero-shot --test-size 4 --out made --json"],
    "run": ["RECIPE tune.calibration=none --out made --json"],
    "verify": ["RUN --exact"],
    "serve": ["x=TUNED SOFT --port 0 --tokens TOKENS --keep made"],
    "tune": [
        "CSV --shots 2 --test PARQUET --test-size 4 --model MODEL --method prompt-tuning --option epochs=1"
        " --time-limit 20 --seed 3 --label-words negative=bad --label-words positive=good --out made",
        "ROWS --dev CSV --model MODEL --method zero-shot --max-tokens 60 --out made --json",
        "TXT --unlabeled --classes negative,positive --model MODEL --option candidates=2 --option mutations=1"
        " --time-limit 20 --out made",
    ],
    "words": ["ROWS --dev CSV --model MODEL --words 1 --candidates 9 --shots 2"],
    "advise": ["CSV --model MODEL --time-limit 1 --labelled-out made.jsonl"],
    "multitask": ["--task a=ROWS --task b=CSV --dev a=CSV --test b=PARQUET --model MODEL --option epochs=1 --out made"],
    "mix": ["LORA OTHER --weights 0.5,0.5 --out made"],
    "predict": ["TUNED --file CSV --json", "SOFT 'a joy' 'a bore'", "RUN --file PARQUET --text-column text"],
    "show": ["TUNED", "RUN --json"],
    "export": ["SOFT --out made --json", "TUNED --format safetensors --out made"],
    "import": ["PEFT --model MODEL --out made --json"],
    "guard check": ["--file ROWS --text-column text --artifact TUNED --attack-class positive --threshold 1"],
    "guard eval": [
        "ROWS --attack-label negative --artifact TUNED --attack-class negative --json",
        "CSV --attack-label positive --rules RULES",
    ],
    "guard data": ["--out made"],
    "recipe ls": ["--json"],
    "recipe show": ["hybrid"],
    "recipe cp": ["RECIPE made.yaml"],
    "recipe check": ["RECIPE seed=4", "hybrid --no-data --json"],
    "recipe schema": [""],
    "runs ls": ["RUNS"],
    "runs diff": ["RUN RUN", "RUN AGAIN --json"],
}
#: More of them, which take seconds each; these run under `slow` alone.
SLOW_LINES = {"export": ["TUNED --format onnx --texts TXT --min-agreement 0 --out made"]}
#: Parameters that name what is written: they never get a path of `place`, which all the examples share.
WRITTEN = ("out", "keep", "labelled_out", "checkpoints", "target")
TARGETS = ["made/too", ".", "\udcff", "x" * 300, "", "/dev/null/x", "here.txt"]
#: Hostile lines for each command in the default suite, about half a second each; and under `slow`.
FEW, MANY = 1, 150


def commands():
    """Return the words and the parameters of every command that there is."""
    found = {}

    def walk(command, words):
        if hasattr(command, "commands"):
            for name, own in command.commands.items():
                walk(own, (*words, name))
        else:
            found[" ".join(words)] = command.params

    walk(typer.main.get_command(cli.app), ())
    return found


COMMANDS = commands()


def write_rows(folder):
    """Write the same labelled texts in every format; return the files by name."""
    rows = [{"text": f"{text} {n}", "label": LABELS[label]} for n in range(2) for text, label in TEXTS]
    found = {name: folder / f"good.{name.lower()}" for name in ("CSV", "PARQUET", "TXT")}
    found["ROWS"] = folder / "good.jsonl"
    found["ROWS"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    found["CSV"].write_text("text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows))
    found["TXT"].write_text("".join(row["text"] + "\n" for row in rows))
    parquet.write_table(arrow.Table.from_pylist(rows), found["PARQUET"])
    (folder / "demo.csv").write_text(
        "text,label,source\n"
        + "".join(f'"{row["text"]}",{LABELS.index(row["label"])},rotten_tomatoes\n' for row in rows)
    )
    return found


@pytest.fixture(scope="module")
def place(causal_folder, tmp_path_factory):
    """Files and folders that are well, by name; and those of a folder that are hostile."""
    folder, bad = tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("bad")
    good = write_rows(folder) | {"MODEL": causal_folder}
    for name, method, template, options in (
        ("TUNED", "zero-shot", LM_TEMPLATE, {}),
        ("SOFT", "prompt-tuning", FIRST, {"epochs": 1}),
        ("LORA", "lora", LM_TEMPLATE, {"epochs": 4, "learning_rate": 0.02}),
    ):
        good[name] = folder / name.lower()
        PromptClassifier(str(causal_folder), method, template=template, method_options=options).fit(X, Y).save(
            good[name]
        )
    good["PEFT"] = folder / "adapter"
    run_export({"soft": good["SOFT"]}, good["PEFT"], ExportRequest())
    good["OTHER"] = shutil.copytree(good["LORA"], folder / "other")
    good["RECIPE"] = write_recipe("zero-shot", folder / "recipe", causal_folder)
    good["RUNS"] = folder / "runs"
    for name in ("RUN", "AGAIN"):
        good[name] = good["RUNS"] / name.lower()
        run_recipe(load_recipe(good["RECIPE"]), good[name])
    good["TOKENS"], good["RULES"] = folder / "tokens.txt", folder / "rules.yaml"
    good["TOKENS"].write_text("client someone " + "a1" * 20 + "\n")
    good["RULES"].write_text("rules:\n- {id: x, pattern: bore, severity: high, reason: bores, examples: [a bore]}\n")
    for number, (name, content) in enumerate(CONTENTS.items()):
        for suffix in {".jsonl", ".csv", ".yaml", SUFFIXES[number % len(SUFFIXES)]}:
            (bad / f"{name}{suffix}").write_bytes(content)
    (bad / "folder.csv").mkdir()
    (bad / "loop").symlink_to("loop")
    return {name: str(path) for name, path in good.items()}, [str(path) for path in sorted(bad.iterdir())]


@pytest.fixture
def sandbox(place, monkeypatch, tmp_path):
    """Keep commands from serving, from models other than the tiny one, from other processes and the network."""
    good, _ = place

    def stop(service, *ignored):
        service.engine.close()

    def run_here(path, target, surroundings):
        run_recipe(load_recipe(path / "recipe.yaml"), target)

    monkeypatch.setattr(server, "run", stop)
    monkeypatch.setattr(serving, "run_cluster", lambda *ignored: None)
    monkeypatch.setattr("cuecraft.runs.verifying._run_again", run_here)
    # Every model and data set of the demo is the tiny one, and the demo itself has few methods.
    data = os.path.join(os.path.dirname(good["ROWS"]), "demo.csv")
    monkeypatch.setattr(
        "cuecraft.core.assets._installed",
        lambda name, asset: type(tmp_path)(data if isinstance(asset, DataAsset) else good["MODEL"]),
    )
    quick = ("zero-shot", "zero-shot", {}), ("prompt-tuning", "prompt-tuning", {"epochs": 1})
    monkeypatch.setattr("cuecraft.study.compare.demo.METHODS", quick)
    monkeypatch.setattr("cuecraft.study.compare.demo_packages.missing_packages", list)
    monkeypatch.setattr("cuecraft.study.compare.demo_packages.install_packages", lambda: None)
    monkeypatch.setattr("webbrowser.open", lambda address: True)
    monkeypatch.setattr("cuecraft.study.compare.comparison.render_report", lambda document: "<!doctype html>")
    monkeypatch.setenv("CUECRAFT_DATA", str(tmp_path / "no-data"))
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def run_main(words, stdin, folder):
    """Run the command line as a process would; return exit code and stderr."""
    deep = folder / "a" / "b" / "c"
    deep.mkdir(parents=True, exist_ok=True)
    before = os.getcwd()
    os.chdir(deep)
    out, err = io.StringIO(), io.StringIO()
    plain = sys.argv, sys.stdin
    sys.argv, sys.stdin = ["cuecraft", *words], io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    code = "a traceback"
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as stopped:
                code = stopped.code or 0
    finally:
        sys.argv, sys.stdin = plain
        os.chdir(before)
        shutil.rmtree(folder / "a", ignore_errors=True)
    return code, err.getvalue()


def filled(name, line, good):
    """Return the words of a line of a command, with paths in the place of their names."""

    def path_of(word):
        key, equals, path = word.rpartition("=")
        return f"{key}{equals}{good.get(path, path)}"

    return [*name.split(), *map(path_of, shlex.split(line))]


def damaged_bytes(content, suffix, chance):
    """Return the content of a file with one thing wrong in it, or another content."""
    kind, at = chance.random(), chance.randrange(len(content) + 1)
    if kind < 0.15:
        return chance.choice(list(CONTENTS.values()))
    if kind < 0.3:
        return content[:at]
    if kind < 0.45:
        return content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :]
    if suffix in (".parquet", ".safetensors"):
        return content[:at] + content[at + chance.randrange(1, 9) :]
    lines = content.splitlines(keepends=True) or [b""]
    if kind < 0.55:
        del lines[chance.randrange(len(lines))]
        return b"".join(lines)
    found = list(re.finditer(rb"[\w.-]+", content)) or [re.match(b"", content)]
    word = chance.choice(found)
    other = chance.choice(WORDS).encode("utf-8", "surrogateescape")
    return content[: word.start()] + other + content[word.end() :]


def damaged(path, folder, chance):
    """Return a copy of a file or folder in which one file is damaged, or missing."""
    made = folder / f"damaged-{chance.randrange(10**9)}"
    made.mkdir()
    copy = made / os.path.basename(path)
    if os.path.isdir(path):
        shutil.copytree(path, copy)
        file = chance.choice(sorted(own for own in copy.rglob("*") if own.is_file()))
        if chance.random() < 0.15:
            file.unlink()
            return str(copy)
    else:
        file = copy
        shutil.copy(path, copy)
    file.write_bytes(damaged_bytes(file.read_bytes(), file.suffix, chance))
    return str(copy)


def change(words, name, chance, place, folder):
    """Change one value, option or file of the words of a command, in place."""
    good, bad = place
    begin, kind = len(name.split()), chance.random()
    parameters = {option: own for own in COMMANDS[name] for option in own.opts}

    def hostile(parameter=None):
        if parameter is not None and parameter.name in WRITTEN:
            return chance.choice(TARGETS)
        return chance.choice(chance.choice([WORDS, WORDS, bad, list(good.values())]))

    values = [at for at in range(begin, len(words)) if not words[at].startswith("--")]
    options = [own for own in COMMANDS[name] if own.param_type_name == "option" and own.name != "help"]
    if values and kind < 0.6:
        at = chance.choice(values)
        key, equals, path = words[at].rpartition("=")
        is_written = parameters.get(words[at - 1]) if at > begin else None
        if path in good.values() and chance.random() < 0.7:
            words[at] = f"{key}{equals}{damaged(path, folder, chance)}"
        elif words[at].startswith("made"):
            words[at] = chance.choice(TARGETS)
        else:
            words[at] = (f"{key}=" if equals and chance.random() < 0.5 else "") + hostile(is_written)
    elif options and kind < 0.9:
        own = chance.choice(options)
        words += [own.opts[0]] if own.is_flag else [own.opts[0], hostile(own)]
    elif len(words) > begin:
        del words[chance.randrange(begin, len(words))]


def check(name, line, seed, place, sandbox):
    chance = random.Random(f"{name} {line} {seed}")
    words = filled(name, line, place[0])
    for _ in range(chance.choice([1, 1, 2])):
        change(words, name, chance, place, sandbox)
    stdin = chance.choice([*CONTENTS.values(), b"good\nbad\n"])
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [shutil.rmtree(own) for own in sandbox.glob("damaged-*")])
        code, err = run_main(words, stdin, sandbox)
        assert code in (0, 1, 2), (words, code, err)
        assert "Traceback" not in err, (words, err)


def runs_as_it_is(name, line, place, sandbox):
    code, err = run_main(filled(name, line, place[0]), b"good\nbad\n", sandbox)
    assert code == 0, err


def pairs(lines):
    return [(name, line) for name, own in lines.items() for line in own]


def test_every_command_has_a_line():
    assert set(LINES) == set(COMMANDS)
    assert all(LINES.values())


@pytest.mark.parametrize(("name", "line"), pairs(LINES))
def test_a_command_does_what_it_is_meant_to_do(name, line, place, sandbox):
    runs_as_it_is(name, line, place, sandbox)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "line"), pairs(SLOW_LINES))
def test_a_slow_command_does_what_it_is_meant_to_do(name, line, place, sandbox):
    runs_as_it_is(name, line, place, sandbox)


@pytest.mark.parametrize("line", ["RECIPE tune.calibration=none --out \udcff", "RECIPE --out \udcff/x"])
def test_a_run_in_a_folder_that_is_not_utf8_ends_without_a_traceback(line, place, sandbox):
    code, err = run_main(filled("run", line, place[0]), b"", sandbox)
    assert code in (0, 2), err
    assert code == 0 or err.strip().splitlines()[-1].startswith("error: "), err


@pytest.mark.parametrize(
    "contents",
    [
        pytest.param((b"[" * 100_000, b"{}", b"\xff"), id="deep, empty or no text"),
        pytest.param((b'{"a":' * 100_000, b"[]", b"1"), id="deeper, a list or a number", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ("show TUNED", "TUNED"),
        ("predict SOFT text", "SOFT"),
        ("predict TUNED text --model MODEL", "MODEL"),
        ("classify TUNED TXT --out made --option readers=0", "TUNED"),
        ("mix LORA OTHER --weights 1,1 --out made", "OTHER"),
        ("import PEFT --model MODEL --out made", "PEFT"),
        ("verify RUN", "RUN"),
        ("runs ls RUNS", "RUNS"),
        ("runs diff RUN AGAIN", "AGAIN"),
        ("serve x=TUNED --port 0", "TUNED"),
    ],
)
def test_json_that_is_no_such_document_ends_without_a_traceback(line, folder, contents, place, sandbox):
    good, _ = place
    for content in contents:
        copy = shutil.copytree(good[folder], sandbox / "copy")
        for file in sorted(copy.rglob("*.json")):
            kept = file.read_bytes()
            file.write_bytes(content)
            code, err = run_main(filled("", line, good | {folder: str(copy)}), b"", sandbox)
            assert code in (0, 1, 2), (file.name, content[:9], err)
            file.write_bytes(kept)
        shutil.rmtree(copy)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_no_command_ends_with_a_traceback(name, place, sandbox):
    for seed in range(FEW):
        check(name, LINES[name][seed % len(LINES[name])], seed, place, sandbox)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(COMMANDS))
def test_no_command_ends_with_a_traceback_at_length(name, place, sandbox):
    lines = [*LINES[name], *SLOW_LINES.get(name, [])]
    for seed in range(FEW, MANY):
        check(name, lines[seed % len(lines)], seed, place, sandbox)
