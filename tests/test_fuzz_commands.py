"""Every command with hostile values and files: exit code 0, 1 or 2, and never a traceback."""

import contextlib
import io
import json
import os
import random
import shutil
import sys
import warnings

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bulk import artifact
from conftest import LABELS, TEXTS
from cuecraft import cli
from cuecraft.errors import AssetError
from cuecraft.serve import command as serving
from cuecraft.serve.http import server

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
#: A second for each command in the default suite; more of the same under `slow`.
FEW, MANY = 8, 150


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


@pytest.fixture(scope="module")
def place(causal_folder, tmp_path_factory):
    """A folder with hostile files, and with some that are well; returns the values that name them."""
    folder = tmp_path_factory.mktemp("fuzz")
    for number, (name, content) in enumerate(CONTENTS.items()):
        for suffix in {".jsonl", ".csv", ".yaml", SUFFIXES[number % len(SUFFIXES)]}:
            (folder / f"{name}{suffix}").write_bytes(content)
    rows = [json.dumps({"text": text, "label": LABELS[label]}) for text, label in TEXTS * 2]
    (folder / "good.jsonl").write_text("\n".join(rows))
    artifact(causal_folder, folder / "tuned")
    for name, content in CONTENTS.items():
        if name in ("empty", "junk", "deep", "lists", "one", "halves"):
            for file in ("manifest.json", "prompt.safetensors"):
                broken = folder / f"broken-{name}-{file[0]}"
                shutil.copytree(folder / "tuned", broken)
                (broken / file).write_bytes(content)
            model = folder / f"model-{name}"
            shutil.copytree(causal_folder, model)
            (model / "config.json").write_bytes(content)
            adapter = folder / f"adapter-{name}"
            adapter.mkdir()
            (adapter / "adapter_config.json").write_bytes(content)
            export = folder / f"export-{name}"
            export.mkdir()
            (export / "export.json").write_bytes(content)
    (folder / "folder.csv").mkdir()
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "unused-pipe")
    os.remove(folder / "unused-pipe")
    good = [str(folder / "good.jsonl"), str(folder / "tuned"), f"x={folder / 'tuned'}", str(causal_folder)]
    return folder, [str(path) for path in sorted(folder.iterdir())], good


@pytest.fixture
def sandbox(place, monkeypatch, tmp_path):
    """Keep commands from serving, from models beside the tiny one, and from the network."""

    def absent(name):
        raise AssetError(f"{name}: is not installed here")

    def stop(service, *ignored):
        service.engine.close()

    monkeypatch.setattr("cuecraft.assets.model_folder", absent)
    monkeypatch.setattr("cuecraft.backbone.load.model_folder", absent, raising=False)
    monkeypatch.setattr(server, "run", stop)
    monkeypatch.setattr(serving, "run_cluster", lambda *ignored: None)
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


def hostile(name, chance, place):
    """Return the words of a command line for a command."""
    folder, files, good = place
    words = name.split()
    rows, prompt = str(folder / "good.jsonl"), str(folder / "tuned")
    fitting = dict.fromkeys(["train", "dev", "test", "data", "file", "vocab_from"], rows)
    fitting |= {"artifact": prompt, "artifacts": prompt, "task": f"x={rows}", "method": "prompt-tuning"}
    fitting |= {"folder": prompt, "recipe": "hybrid", "option": "epochs=1", "time_limit": "1", "shots": "2"}

    def value(own=""):
        kind = chance.random()
        if own in fitting and kind < 0.7:
            return fitting[own]
        return chance.choice(files if kind < 0.3 else good if kind < 0.5 else WORDS)

    for parameter in COMMANDS[name]:
        if parameter.param_type_name == "argument" and parameter.name == "arguments":
            words += [prompt, rows] if chance.random() < 0.7 else [value(), value()]
        elif parameter.param_type_name == "argument":
            count = chance.choice([1, 1, 1, 2, 0] if parameter.nargs == -1 else [1])
            words += [value(parameter.name) for _ in range(count)]
        elif parameter.name == "model":
            words += ["--model", good[-1] if chance.random() < 0.8 else value()]
        elif parameter.name in ("out", "keep", "labelled_out", "checkpoints"):
            if parameter.required or chance.random() < 0.2:
                words += [
                    parameter.opts[0],
                    chance.choice(["made", "made/too", ".", "\udcff", "x" * 300, files[0], ""]),
                ]
        elif parameter.name == "help" or chance.random() > (0.95 if parameter.required else 0.12):
            continue
        else:
            words += [parameter.opts[0]] if parameter.is_flag else [parameter.opts[0], value(parameter.name)]
    return words


def check(name, seed, place, sandbox):
    chance = random.Random(seed)
    words = hostile(name, chance, place)
    stdin = chance.choice([*CONTENTS.values(), b"good\nbad\n"])
    code, err = run_main(words, stdin, sandbox)
    assert code in (0, 1, 2), (words, code, err)
    assert "Traceback" not in err, (words, err)


KEPT = {"deadline": None, "derandomize": True, "database": None}
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.mark.parametrize("name", list(COMMANDS))
@settings(max_examples=FEW, suppress_health_check=CHECKS, **KEPT)
@given(seed=st.integers(0, 2**32))
def test_no_command_ends_with_a_traceback(name, seed, place, sandbox):
    check(name, seed, place, sandbox)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(COMMANDS))
@settings(max_examples=MANY, suppress_health_check=CHECKS, **KEPT)
@given(seed=st.integers(0, 2**32))
def test_no_command_ends_with_a_traceback_at_length(name, seed, place, sandbox):
    check(name, seed, place, sandbox)
