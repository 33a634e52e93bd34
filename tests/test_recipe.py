"""Recipes: keys, overrides, variables, errors with file, line and key; what ships."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from conftest import DATA, examples
from cuecraft.cli.display.runs import print_run
from cuecraft.core.errors import RecipeError
from cuecraft.core.yaml_files import Settings, parse_yaml
from cuecraft.runs import check_recipe, json_schema, load_recipe, recipe_path, run_recipe, shipped_names
from cuecraft.runs.guard import write_guard_data
from cuecraft.runs.reading import check_settings, shown_keys, to_yaml
from cuecraft.runs.spec import JOBS, KINDS
from recipes import JOBS as JOB_NAMES
from recipes import TUNED, settings, write_recipe

ROOT = Path(__file__).parents[1]
SHIPPED = shipped_names()
WORD = st.text(min_size=1) | st.text("${}a", min_size=1)


def read(values, **given):
    return check_settings(Settings("r.yaml", values, {}, given))


def test_every_method_can_be_written_and_read_again(tmp_path):
    for name in JOB_NAMES:
        asked = read(settings(name, tmp_path, "tiny"))
        again = check_settings(parse_yaml(to_yaml(asked), "again", RecipeError))
        assert shown_keys(again) == shown_keys(asked)
    assert set(TUNED) == set(KINDS)


def test_overrides_are_yaml_at_a_dotted_key(tmp_path):
    path = write_recipe("hybrid", tmp_path, "tiny")
    template = "task.template={text}{prompt: it # was}{mask}"
    assert load_recipe(path, [template]).task.template == "{text}{prompt: it # was}{mask}"  # no YAML
    assert load_recipe(path, ["description=a # b"]).description == "a # b"
    assert load_recipe(path, ["description='a' # b"]).description == "a"
    words = ["tune.tune.learning_rate=0.003", "tune.search.vocabulary.stop_words=[a, b]", "data.test_size=2", "seed=7"]
    found = load_recipe(path, [*words, "expect.metrics.test_accuracy=0.5", "data.dev=null", "description="])
    assert found.tune.tune.learning_rate == 0.003
    assert found.tune.search.vocabulary.stop_words == ("a", "b")
    assert (found.data.test_size, found.seed, found.data.dev, found.description) == (2, 7, None, "")
    assert found.expect.metrics == {"test_accuracy": 0.5}
    assert found.tune.search.steps == TUNED["hybrid"]["search"]["steps"]  # what was not named stays


def test_variables_are_put_in_where_they_are_declared(tmp_path, monkeypatch):
    monkeypatch.setenv("FROM_OUTSIDE", "/far")
    monkeypatch.delenv("NOT_SET", raising=False)
    values = settings("deep-cue", tmp_path, "${FROM_OUTSIDE}/model")
    values["env"] = {"FROM_OUTSIDE": None, "NOT_SET": "near"}
    values["data"]["test"] = "${NOT_SET}/a/${FROM_OUTSIDE}"
    values["task"]["template"] = "$${text} {text}{prompt: it was}{mask}"
    found = read(values)
    assert found.model.name == "/far/model"
    assert found.data.test == "near/a//far"
    assert found.task.template == "${text} {text}{prompt: it was}{mask}"
    # What is kept of a run has them put in, and reads the same without any variable.
    monkeypatch.delenv("FROM_OUTSIDE")
    again = check_settings(parse_yaml(to_yaml(found), "again", RecipeError))
    assert shown_keys(again) == shown_keys(found)


@examples(30)
@given(st.dictionaries(WORD, st.lists(WORD, min_size=1), min_size=2, max_size=3))
def test_any_label_words_survive_the_way_to_yaml_and_back(words):
    values = settings("deep-cue", Path("x"), "tiny")
    values["task"] = {
        "label_words": {label: [word.replace("${", "$${") for word in own] for label, own in words.items()}
    }
    found = read(values)
    again = check_settings(parse_yaml(to_yaml(found), "again", RecipeError))
    assert again.task.label_words == found.task.label_words


BAD = {
    "unknown key": ({"sed": 1}, [], r"r.yaml line \d+: unknown key 'sed'; the keys are name, description, env"),
    "unknown key inside": (
        {"data": {"tran": "x"}},
        [],
        r"line \d+: unknown key 'data.tran'; the keys are train,",
    ),
    "unknown option": (
        {"tune": {"method": "deep-cue", "lr": 1}},
        [],
        r"r.yaml line \d+: unknown key 'tune.lr'; the keys are epochs, batch_size",
    ),
    "unknown option of a part": (
        {"tune": {"method": "hybrid", "tune": {"lr": 1}}},
        [],
        r"r.yaml line \d+: unknown key 'tune.tune.lr'; the keys are epochs",
    ),
    "override of an unknown key": ({}, ["tune.lr=0.1"], r"override tune.lr=0.1: unknown key 'tune.lr'"),
    "wrong type": ({"seed": "many"}, [], r"r.yaml line \d+: seed: input should be a valid integer.*got 'many'"),
    "wrong type inside": ({"data": {"train": ["x"]}}, [], r"line \d+: data.train: input should be a valid string"),
    "out of range": (
        {"tune": {"method": "deep-cue", "learning_rate": -1}},
        [],
        r"r.yaml line \d+: tune.learning_rate: input should be greater than 0 \(got -1\)",
    ),
    "override out of range": ({}, ["tune.epochs=0"], r"override tune.epochs=0: tune.epochs: input should be greater"),
    "unknown method": (
        {"tune": {"method": "magic"}},
        [],
        r"tune.method: 'magic' is unknown; choose zero-shot",
    ),
    "no method": ({"tune": {"epochs": 3}}, [], r"r.yaml line \d+: tune.method: is missing; give it; choose zero-shot"),
    "missing key": ({"data": {"dev": "x"}}, [], r"r.yaml line \d+: data.train is missing; give it"),
    "unknown job": ({"job": "bake"}, [], r"r.yaml line \d+: job: 'bake' is unknown; choose tune, multitask, compare"),
    "undeclared variable": (
        {"model": {"name": "${HIDDEN}"}},
        [],
        r"r.yaml line \d+: model.name: \$\{HIDDEN\} is not declared; add 'env: \{HIDDEN: null\}'",
    ),
    "variable not set": (
        {"env": {"HIDDEN_ONE": None}, "model": {"name": "${HIDDEN_ONE}"}},
        [],
        r"model.name: the environment variable HIDDEN_ONE is not set; set it, or give it under env",
    ),
    "env no mapping": ({"env": ["A"]}, [], r"r.yaml line \d+: env: write NAME"),
    "override without value": ({}, ["seed"], r"'seed' is not KEY=VALUE"),
    "override through a value": ({}, ["seed.x=1"], r"override seed.x=1: seed has a value and no keys in it"),
    "override no YAML": ({}, ["seed=["], r"override seed=\[: seed: input should be a valid integer.*got '\['"),
    "template": (
        {"task": {"template": "{text} {mask}"}},
        [],
        r"r.yaml line \d+: task.template: template '.text. .mask.' has 0 .prompt. slots; write exactly one",
    ),
    "seed too large": ({"seed": 2**70}, [], r"line \d+: seed: input should be less than"),
    "seed twice": ({"seeds": [1, 1]}, [], r"line \d+: seeds: a seed is named twice; name each once"),
    "number type": ({"model": {"name": "x", "dtype": "float99"}}, [], r"line \d+: model.dtype: input should be 'auto'"),
    "no methods": (
        {"job": "compare", "data": {"task": "x"}, "methods": [], "tune": ..., "task": ...},
        [],
        r"line \d+: methods: list should have at least 1 item",
    ),
    "task that is no folder's name": (
        {
            "job": "multitask",
            "tasks": {"..": {"train": "x"}, "b": {"train": "y"}},
            "tune": ...,
            "task": ...,
            "data": ...,
        },
        [],
        r"line \d+: tasks: '..' cannot name a folder",
    ),
    "a value that two options forbid": (
        {"tune": {"method": "p-tuning", "learning_rate": 0.5}},
        [],
        r"r.yaml line \d+: tune: learning_rate has no effect here",
    ),
    "name that is no folder's": ({"name": "../up"}, [], r"r.yaml line \d+: name: cannot name a folder"),
    "one of several shapes": (
        {"job": "compare", "data": {"task": "x"}, "methods": [{"name": "a", "speed": 1}], "tune": ..., "task": ...},
        [],
        r"r.yaml line \d+: unknown key 'methods.0.speed'; the keys are name, method, options",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_told_with_file_line_and_key(name, run, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    change, overrides, what = BAD[name]
    values = settings("deep-cue", tmp_path, "tiny")
    del values["checkpoint"]
    values = {key: value for key, value in {**values, **change}.items() if value is not ...}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run("run", "r.yaml", *overrides)
    assert (code, out) == (2, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(what, errors[0]), errors[0]
    assert sorted(tmp_path.rglob("*")) == before
    line = re.search(r"line (\d+)", errors[0])
    if line and "override" not in errors[0]:
        key = re.search(r"'?([\w.]+)'?(?:: | is missing|; the keys)", errors[0].split(f"line {line[1]}: ")[1])[1]
        written = (tmp_path / "r.yaml").read_text().splitlines()[int(line[1]) - 1]
        assert any(part in written for part in key.split("."))  # the line has the key, or what it would stand in


FILES = {
    "twice": ("seed: 1\nname: a\nseed: 2\n", "r.yaml line 3: seed is given twice; keep one"),
    "twice inside": ("data:\n  train: a\n  train: b\n", "r.yaml line 3: data.train is given twice"),
    "no text as key": ("task:\n  label_words:\n    yes: [yes]\n", "r.yaml line 3: the key 'yes' is read as no text"),
    "no mapping": ("- a\n", "r.yaml: a YAML list, but settings are"),
    "empty": ("", "r.yaml: a YAML NoneType"),
    "broken": ("a: [1\n", "r.yaml line 2: not valid YAML"),
    "tag that runs code": ("a: !!python/object/apply:os.system ['x']\n", "not valid YAML"),
    "control character": ("a: \x07\n", "not valid YAML"),
    "no date": ("a: 2020-99-99\n", "not valid YAML"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_recipes(name, tmp_path):
    text, what = FILES[name]
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert what in str(error.value)
    assert str(error.value).count("r.yaml") == 1
    with pytest.raises(RecipeError, match="no such file; check the path"):
        load_recipe(tmp_path / "none.yaml")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not readable as UTF-8"):
        load_recipe(path)


def kinds_of(kind, seen):
    if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in seen:
        seen.add(kind)
        for option in kind.model_fields.values():
            for inner in (option.annotation, *getattr(option.annotation, "__args__", ())):
                kinds_of(inner, seen)
    return seen


def test_every_key_is_documented_and_no_other_is_taken():
    kinds = set().union(*(kinds_of(kind, set()) for kind in JOBS.values()))
    assert len(kinds) > 8
    for kind in kinds:
        assert kind.model_config["extra"] == "forbid", kind
        for name, option in kind.model_fields.items():
            assert option.description, f"{kind.__name__}.{name}"


def test_the_schema_takes_what_we_take(tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    checker = jsonschema.Draft202012Validator(json_schema())
    for name in JOB_NAMES:
        checker.validate(settings(name, tmp_path, "tiny"))
    for path in (recipe_path(name) for name in SHIPPED):
        checker.validate(yaml.safe_load(path.read_text()))
    assert not checker.is_valid(settings("deep-cue", tmp_path, "tiny") | {"sed": 1})
    wrong = settings("deep-cue", tmp_path, "tiny")
    wrong["tune"]["lr"] = 1
    assert not checker.is_valid(wrong)


NAMES = (
    "bert-base-hub choices-copa demo facts-capitals guard-detector hybrid label-free log-anomaly multitask "
    "prefix-vs-lora-vs-full questions-16shot sentiment-16shot sets-banking slots-banking stars topics-16shot"
).split()


def test_the_shipped_ones_are_there():
    assert SHIPPED == NAMES
    for name in SHIPPED:
        path = ROOT / "recipes" / f"{name}.yaml"
        assert path.resolve() == recipe_path(name).resolve()
        first, *_ = path.read_text().splitlines()
        assert first == f"# cuecraft run {name}" or first.startswith(f"# cuecraft run {name} "), first
        assert load_recipe(path).name == name


#: Recipes that expect no figures.
UNMEASURED = ("bert-base-hub", "guard-detector")


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_passes_the_check(name, monkeypatch, tmp_path):
    found = load_recipe(recipe_path(name))
    needs_data = "CUECRAFT_DATA" in found.env
    if needs_data:
        monkeypatch.setenv("CUECRAFT_DATA", str(DATA))
    if "GUARD_DATA" in found.env:
        write_guard_data(tmp_path)
        monkeypatch.setenv("GUARD_DATA", str(tmp_path))
    with_data = DATA.is_dir() or not needs_data
    document = check_recipe(name, [], with_data=with_data)
    assert bool(document["data"]) == with_data
    if name not in UNMEASURED:
        expect = found.expect
        assert expect is not None
        assert expect.metrics
        assert expect.seconds
        assert expect.memory_mib


SHORT = {
    "tune": ["data.test_size=8"],
    "multitask": ["data.test_size=8", "multitask.epochs=1"],
    "compare": ["data.test_size=8", "seeds=[13]"],
}
SHORTER = {
    "demo": ["tune.epochs=1"],
    "guard-detector": ["tune.epochs=1"],
    "sentiment-16shot": ["tune.epochs=1"],
    "topics-16shot": ["tune.epochs=1"],
    "questions-16shot": ["tune.epochs=1"],
    "log-anomaly": ["tune.epochs=1"],
    "hybrid": ["tune.search.steps=1", "tune.search.candidates=4", "tune.tune.epochs=1"],
    "label-free": ["tune.variants=0", "tune.max_texts=16"],
    "prefix-vs-lora-vs-full": ["methods=[p-tuning-v2, lora]"],
    "choices-copa": ["tune.epochs=1"],
    "facts-capitals": ["tune.epochs=1", "data.first=16"],
    "sets-banking": ["tune.epochs=1"],
    "slots-banking": ["tune.epochs=1"],
    "stars": ["tune.epochs=1", "data.shots=1"],
}
#: Answers at words need a model that reads a text in both directions.
ENCODERS = ("slots-banking",)
#: Trains three methods; and those that differ from "demo" and "log-anomaly" in their data, which the check reads.
LONG, ALIKE = ("prefix-vs-lora-vs-full",), ("sentiment-16shot", "topics-16shot", "questions-16shot")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in LONG or name in ALIKE else name
        for name in NAMES
        if name != "bert-base-hub"
    ],
)
def test_every_offline_one_runs_in_a_shortened_form(name, causal_folder, sequence, tmp_path, monkeypatch):
    """With a tiny model in place of the real one; its answers mean nothing."""
    if name in ENCODERS:
        causal_folder = tmp_path / "encoder"
        sequence.model.save_pretrained(causal_folder)
        sequence.tokenizer.save_pretrained(causal_folder)
    path = recipe_path(name)
    job = load_recipe(path).job
    if "CUECRAFT_DATA" in load_recipe(path).env:
        if not DATA.is_dir():
            pytest.skip(f"benchmark data is not at {DATA}; set CUECRAFT_DATA")
        monkeypatch.setenv("CUECRAFT_DATA", str(DATA))
    if "GUARD_DATA" in load_recipe(path).env:
        write_guard_data(tmp_path / "guard-data")
        monkeypatch.setenv("GUARD_DATA", str(tmp_path / "guard-data"))
    model = [f"model.name={causal_folder}", "threads=1"]
    asked = load_recipe(path, [*SHORT[job], *SHORTER.get(name, ()), *model])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *a, **b: None)  # long texts are cut for the tiny model
        finished = run_recipe(asked, tmp_path / "run")
    assert finished.record.status == "finished"
    assert finished.record.artifacts
    assert finished.record.as_expected is None  # its figures are not of this
    assert json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]


def test_commands_of_recipes(run, tmp_path):
    code, out, _ = run("recipe", "ls", "--json")
    assert code == 0
    assert [row["name"] for row in json.loads(out)["recipes"]] == NAMES
    code, out, _ = run("recipe", "show", "demo")
    assert out == recipe_path("demo").read_text()
    code, out, _ = run("recipe", "cp", "demo", "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == recipe_path("demo").read_text()
    code, _, err = run("recipe", "cp", "demo", "mine.yaml")
    assert code == 2
    assert "mine.yaml: exists; name another file, or remove it" in err
    code, _, err = run("recipe", "show", "nothing")
    assert code == 2
    assert "nothing: no file, and no shipped recipe; there are bert-base-hub, choices-copa, demo" in err
    code, out, _ = run("recipe", "schema")
    assert json.loads(out) == json_schema()


def test_errors_of_a_run_are_shown_once_and_without_their_minus(capsys):
    record = {"name": "r", "status": "finished", "seconds": 1.0, "sessions": 1, "peak_bytes": None, "folder": "runs/r"}
    metrics = {"test_neg_mean_absolute_error": -0.75, "test_mean_absolute_error": 0.75, "test_spearman": 0.5}
    expect = {"metrics": {"test_mean_absolute_error": 0.76, "test_f1": 0.4}, "tolerance": 0.02}
    expect |= {"seconds": 9.0, "memory_mib": None}
    print_run(record | {"metrics": metrics, "artifacts": {}, "as_expected": None}, expect)
    plain = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "test mean absolute error 0.750 0.760 ± 0.020" in plain
    assert plain.count("mean absolute error") == 1
    assert "-0.75" not in plain
    assert "test spearman 0.500" in plain
    assert "test f1 none 0.400" in plain


def test_a_missing_file_names_the_variable_that_it_is_taken_from(run, monkeypatch):
    monkeypatch.setenv("CUECRAFT_DATA", "/nowhere")
    code, _, err = run("recipe", "check", "log-anomaly")
    assert code == 2
    assert "/nowhere/logs/bgl-1k.jsonl: no such file" in err
    assert "the recipe takes CUECRAFT_DATA=/nowhere from the environment" in err


CHECKS = {
    "label words": (["task.label_words={positive: [good]}"], "no label words for class 'negative'"),
    "unlabelled": (["tune={method: label-free}"], "data.dev has no meaning with tune.method label-free"),
    "first": (["data.first=5", "data.test=null"], "data.first 5 leaves no row of"),
    "classes": (["task.classes=[a, b]"], "task.classes and tune.prior go with tune.method label-free"),
    "model folder": (["model.name=./nowhere"], "model.name: ./nowhere is no folder of a model, and no GGUF file"),
    "demo model": (["model.name=demo:none"], "demo:none: no such demo asset"),
    "data": (["data.train=none.jsonl"], "none.jsonl"),
    "column": (["data.text_columns=[body]"], "body"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_check_tells_what_cannot_be_run(name, run, tmp_path, causal_folder):
    write_recipe("deep-cue", tmp_path, causal_folder)
    code, _, _ = run("recipe", "check", "deep-cue.yaml")
    assert code == 0
    overrides, what = CHECKS[name]
    code, _, err = run("recipe", "check", "deep-cue.yaml", *overrides)
    assert code == 2
    assert what in err
