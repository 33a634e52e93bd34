"""The command line: documents on stdout, notes on stderr, exit codes."""

import gzip
import json
import shutil
import warnings
from importlib.metadata import version

import pytest

from conftest import LABELS, TEXTS

ROWS = [{"text": text, "label": LABELS[label]} for text, label in TEXTS]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS * 3))
    return path


@pytest.fixture
def artifact(run, data, causal_folder):
    code, _, _ = run("tune", data, "--model", causal_folder, "--method", "prompt-tuning", "--option", "epochs=2")
    assert code == 0
    return "runs/prompt-tuning-0"


def test_the_version_is_shown(run):
    assert run("--version") == (0, f"cuecraft {version('cuecraft')}\n", "")
    assert "Automated prompt tuning" in run("--help")[1]


def test_tune_prints_one_document(run, data, causal_folder, tmp_path):
    code, out, err = run(
        *("tune", data, "--dev", data, "--test", data, "--test-size", 10, "--model", causal_folder, "--json"),
        *(
            "--method",
            "hybrid",
            "--option",
            "search.steps=2",
            "--option",
            "tune.epochs=2",
            "--out",
            "kept",
            "--seed",
            3,
        ),
    )
    assert code == 0
    document = json.loads(out)
    assert document["method"] == "hybrid"
    assert document["artifact"] == "kept"
    assert document["seconds"] > 0
    wanted = {"train_accuracy", "dev_accuracy", "test_accuracy", "untuned_test_accuracy"}
    assert wanted <= set(document["metrics"])
    assert all(0 <= document["metrics"][name] <= 1 for name in wanted)
    assert document["test_rows"] == 10
    assert "hybrid" in err
    assert (tmp_path / "kept" / "manifest.json").is_file()


def test_tune_draws_shots_and_tests_on_the_rest(run, data, causal_folder):
    code, out, _ = run(
        *("tune", data, "--model", causal_folder, "--method", "zero-shot", "--shots", 2, "--test-size", 6, "--json")
    )
    assert code == 0
    assert json.loads(out)["test_rows"] == 6
    manifest = json.loads(run("show", "runs/zero-shot-0", "--json")[1])
    assert manifest["data"]["train"]["rows"] == 4
    assert manifest["data"]["dev"]["rows"] == 4


def test_tune_without_json_prints_a_table(run, data, causal_folder):
    code, out, _ = run("tune", data, "--model", causal_folder, "--method", "zero-shot")
    assert code == 0
    assert "train accuracy" in out
    assert "not measured: no test rows" in out
    assert "macro f1" not in out
    code, out, _ = run("tune", data, "--model", causal_folder, "--method", "zero-shot", "--test", data)
    assert code == 0
    assert "not measured" not in out
    assert "macro f1" in out


def test_predict_takes_arguments_stdin_and_files(run, artifact, tmp_path):
    import io

    texts = [text for text, _ in TEXTS[:3]]
    code, out, _ = run("predict", artifact, *texts, "--json")
    assert code == 0
    found = json.loads(out)["predictions"]
    assert [p["text"] for p in found] == texts
    for prediction in found:
        assert set(prediction["probabilities"]) == set(LABELS)
        assert sum(prediction["probabilities"].values()) == pytest.approx(1)
        assert prediction["label"] == max(prediction["probabilities"], key=prediction["probabilities"].get)
    lines = "\n".join(texts) + "\n\n"
    (tmp_path / "texts.txt").write_text(lines)
    (tmp_path / "texts.csv").write_text("review\n" + "\n".join(f'"{text}"' for text in texts))
    for words, stdin in [
        (("--json",), io.StringIO(lines)),
        (("--file", "texts.txt", "--json"), None),
        (("--file", "texts.csv", "--text-column", "review", "--json"), None),
    ]:
        assert json.loads(run("predict", artifact, *words, stdin=stdin)[1])["predictions"] == found


def test_predict_reads_the_same_bytes_alike_from_stdin_and_files(run, artifact, tmp_path):
    import io

    content = "\ufeffa joy\r\nđủ dấu\r\n\r\n".encode()
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "a.TXT.gz").write_bytes(gzip.compress(content))
    found = json.loads(run("predict", artifact, "a joy", "đủ dấu", "--json")[1])["predictions"]
    for words in (("--file", "a.txt"), ("--file", "a.TXT.gz"), ()):
        stdin = None if words else io.TextIOWrapper(io.BytesIO(content))
        assert json.loads(run("predict", artifact, *words, "--json", stdin=stdin)[1])["predictions"] == found


WRITTEN = {
    "a.CSV": (lambda rows: "text,label\n" + "".join(f"{row['text']!a},{row['label']}\n" for row in rows), ()),
    "a.csv.gz": (
        lambda rows: gzip.compress(("text;label\n" + "".join(f"{r['text']};{r['label']}\n" for r in rows)).encode()),
        ("--delimiter", ";"),
    ),
    "a.ndjson": (lambda rows: "".join(json.dumps(row) + "\n" for row in rows), ()),
    "a.json": (lambda rows: "".join(json.dumps(row) + "\n" for row in rows), ()),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_tune_predict_and_advise_read_what_classify_reads(run, artifact, causal_folder, tmp_path, name):
    write_rows, words = WRITTEN[name]
    rows = [row for row in ROWS if "'" not in row["text"] and "," not in row["text"]]
    content = write_rows(rows)
    content = (
        content if isinstance(content, bytes) else content.replace("'", '"').encode() if "CSV" in name else content
    )
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    texts = [row["text"] for row in rows]
    found = json.loads(run("predict", artifact, "--file", name, *words, "--json")[1])["predictions"]
    assert [own["text"] for own in found] == texts
    where = ("--model", causal_folder, *words)
    code, out, err = run("tune", name, "--test", name, "--method", "zero-shot", *where, "--json")
    assert (code, json.loads(out)["test_rows"]) == (0, len(rows)), err
    code, out, err = run("advise", name, "--label-column", "label", "--time-limit", 1, *where, "--json")
    assert code == 0, err
    code, out, err = run("classify", artifact, name, *words, "--field", "text", "--out", "labelled", "--json")
    assert (code, json.loads(out)["classified"]) == (0, len(rows)), err


def test_bad_rows_are_left_out_of_tune_and_predict_and_named(run, artifact, causal_folder, tmp_path):
    rows = [*ROWS * 2, {"text": " ", "label": "positive"}, {"text": "no label"}, *ROWS[:1]]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", [{"text": "", "label": "positive"}, *ROWS])
    words = ("tune", "train.jsonl", "--test", "test.jsonl", "--method", "zero-shot", "--model", causal_folder, "--json")
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "train.jsonl line 17: 'text' is empty" in err
    for seeds in ((), ("--seeds", "0,1", "--out", "both")):
        code, out, err = run(*words, "--skip-bad-rows", *seeds)
        assert code == 0, err
        skipped = json.loads(out)["skipped_rows"]
        assert skipped["count"] == 3
        assert [(row["source"], row["row"]) for row in skipped["rows"]] == [
            ("train.jsonl", 17),
            ("train.jsonl", 18),
            ("test.jsonl", 1),
        ]
        assert "train.jsonl: 2 bad rows left out (row 17, 18)" in " ".join(err.split())
    assert "skipped_rows" not in json.loads(run("predict", artifact, "fine", "--json")[1])
    code, out, err = run("predict", artifact, "--file", "test.jsonl", "--skip-bad-rows", "--json")
    document = json.loads(out)
    assert len(document["predictions"]) == len(ROWS)
    assert [row["row"] for row in document["skipped_rows"]["rows"]] == [1]
    document = json.loads(run("predict", artifact, "fine", " ", "--skip-bad-rows", "--json")[1])
    assert [own["text"] for own in document["predictions"]] == ["fine"]
    assert document["skipped_rows"]["count"] == 1


def test_a_label_outside_is_named_by_the_number_of_its_row_in_the_file(run, causal_folder, tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "dev.jsonl", [{"text": ""}, *ROWS, {"text": "a", "label": "mixed"}])
    words = ("--dev", "dev.jsonl", "--skip-bad-rows", "--model", causal_folder)
    code, _, err = run("tune", "train.jsonl", *words)
    assert code == 2
    assert f"dev.jsonl row {len(ROWS) + 2}: label 'mixed'" in err


def test_predict_and_show_for_people(run, artifact):
    code, out, _ = run("predict", artifact, "a joy")
    assert code == 0
    assert "a joy" in out
    code, out, _ = run("show", artifact)
    assert code == 0
    assert "prompt-tuning" in out


def test_label_words_and_newlines_in_templates(run, data, causal_folder):
    words = ("--label-words", "negative=bad,awful", "--label-words", "positive=good")
    template = ("--template", r"{text}{prompt:\nit was}{mask}")
    assert run("tune", data, "--model", causal_folder, "--method", "zero-shot", *words, *template)[0] == 0
    manifest = json.loads(run("show", "runs/zero-shot-0", "--json")[1])
    assert manifest["task"]["answers"]["words"] == [["bad", "awful"], ["good"]]
    assert manifest["task"]["template"] == "{text}{prompt:\nit was}{mask}"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


BAD = {
    "address to write": (["tune", "train.jsonl", "--out", "s3://bucket/x"], "is an address"),
    "address to answer": (["predict", "https://huggingface.co/gpt2", "a"], "is an address"),
    "address to show": (["show", "https://huggingface.co/gpt2"], "is an address"),
    "address to export": (["export", "x=https://huggingface.co/gpt2", "--out", "x"], "is an address"),
    "address to import": (["import", "https://huggingface.co/gpt2", "--out", "x"], "is an address"),
    "address to classify": (["classify", "https://huggingface.co/gpt2", "train.jsonl", "--out", "x"], "is an address"),
    "address of a job": (["classify", "taken", "train.jsonl", "--out", "s3://bucket/x"], "is an address"),
    "no such file": (["tune", "nowhere.jsonl"], "no such file"),
    "empty": (["tune", "empty.jsonl"], "no rows"),
    "one class": (["tune", "one.jsonl"], "only one class"),
    "missing column": (["tune", "train.jsonl", "--text-column", "body"], "no column 'body'"),
    "missing label column": (["tune", "train.jsonl", "--label-column", "y"], "no column 'y'"),
    "no labels": (["tune", "unlabelled.jsonl"], "no column 'label'"),
    "empty label": (["tune", "null.jsonl"], "label column 'label' is empty"),
    "NaN text": (["tune", "nan.jsonl"], "line 1: 'text' is missing"),
    "label outside the verbalizer": (["tune", "train.jsonl", "--dev", "odd.jsonl"], "'mixed' is not one of"),
    "no mask": (["tune", "train.jsonl", "--template", "{text}{prompt}"], "no {mask}"),
    "unknown field": (
        ["tune", "two.jsonl", "--text-column", "a", "--text-column", "b", "--template", "{c}{prompt}{mask}"],
        "field 'c'",
    ),
    "unknown method": (["tune", "train.jsonl", "--method", "magic"], "unknown method"),
    "unknown option": (["tune", "train.jsonl", "--option", "speed=9"], "no option 'speed'"),
    "option without value": (["tune", "train.jsonl", "--option", "epochs"], "not NAME=VALUE"),
    "cue too long": (
        ["tune", "train.jsonl", "--method", "prompt-tuning", "--option", "prompt_length=500"],
        "of 128 tokens and 500",
    ),
    "unknown demo model": (["tune", "train.jsonl", "--model", "demo:gpt5"], "no such demo asset"),
    "unknown model": (["tune", "train.jsonl", "--model", "./nowhere"], "there is no such folder"),
    "unknown head": (["tune", "train.jsonl", "--head", "giant"], "--head: input should be 'causal', 'masked' or"),
    "colliding words": (
        ["tune", "train.jsonl", "--label-words", "negative=ok", "--label-words", "positive=ok"],
        "stands for both",
    ),
    "label outside in the test file": (
        ["tune", "train.jsonl", "--test", "odd.jsonl"],
        "odd.jsonl row 1: label 'mixed'",
    ),
    "field that is no name": (["tune", "odd-name.jsonl", "--text-column", "prompt"], "column 'prompt' cannot be"),
    "label that is a list": (["tune", "list.jsonl"], "list.jsonl line 1: the label is a list ([1])"),
    "column twice": (["tune", "twice.csv"], "two columns are called 'text'"),
    "address": (["tune", "https://a.org/b.csv"], "is an address"),
    "delimiter": (["tune", "train.jsonl", "--delimiter", ";;"], "the delimiter ';;' cannot be used"),
    "more values than columns": (["tune", "commas.csv"], "line 2: more values than columns"),
    "nothing left to test on": (["tune", "train.jsonl", "--shots", "6", "--test-size", "9"], "leaves no rows"),
    "part and value": (
        ["tune", "train.jsonl", "--option", "search=1", "--option", "search.steps=2"],
        "give one of them",
    ),
    "no real device": (["tune", "train.jsonl", "--device", "meta"], "device 'meta' cannot be used"),
    "too many shots": (["tune", "train.jsonl", "--shots", "99"], "lower the shots"),
    "test size of nothing": (["tune", "train.jsonl", "--test-size", "9"], "--test-size needs"),
    "target in the way": (["tune", "train.jsonl", "--out", "taken"], "is no artifact"),
    "no artifact": (["predict", "nowhere", "text"], "no artifact here"),
    "show nothing": (["show", "taken"], "no artifact here"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_mistakes_cost_one_line_and_exit_code_two(run, tmp_path, causal_folder, name):
    words, what = BAD[name]
    write(tmp_path / "train.jsonl", ROWS * 3)
    write(tmp_path / "empty.jsonl", [])
    write(tmp_path / "one.jsonl", [row for row in ROWS if row["label"] == "positive"])
    write(tmp_path / "unlabelled.jsonl", [{"text": "a"}])
    write(tmp_path / "null.jsonl", [{"text": "a", "label": None}])
    write(tmp_path / "nan.jsonl", [{"text": float("nan"), "label": "positive"}])
    write(tmp_path / "odd.jsonl", [{"text": "a", "label": "mixed"}])
    write(tmp_path / "two.jsonl", [{"a": "x", "b": "y", "label": label} for label in LABELS])
    write(tmp_path / "odd-name.jsonl", [{"prompt": "x", "label": label} for label in LABELS])
    write(tmp_path / "list.jsonl", [{"text": "a", "label": [1]}])
    (tmp_path / "twice.csv").write_text("text,label,text\na,positive,b\n")
    (tmp_path / "commas.csv").write_text("text,label\nI liked it, really,positive\n")
    (tmp_path / "taken").mkdir()
    before = sorted(path.name for path in tmp_path.rglob("*"))
    if words[0] == "tune" and "--model" not in words:
        words = [*words, "--model", str(causal_folder)]
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert what in errors[0]
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_changed_backbone_is_refused_by_predict(run, data, causal_folder, tmp_path):
    model = shutil.copytree(causal_folder, tmp_path / "model")
    assert run("tune", data, "--model", model, "--method", "zero-shot")[0] == 0
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    from cuecraft.backbone import load

    load._load.cache_clear()
    code, _, err = run("predict", "runs/zero-shot-0", "text")
    assert code == 2
    assert "use the same weights" in err


def test_usage_errors_and_help(run):
    assert run("tune")[0] == 2
    assert run("nonsense")[0] == 2
    code, out, _ = run("--help")
    assert code == 0
    for command in ("tune", "predict", "show", "demo"):
        assert command in out


def test_no_text_on_stdin_is_a_mistake(run, artifact):
    import io

    code, _, err = run("predict", artifact, stdin=io.StringIO("\n"))
    assert code == 2
    assert "no text to classify" in err


def test_cut_texts_are_told_on_stderr(run, tmp_path, causal_folder):
    long = [{"text": row["text"] * 9, "label": row["label"]} for row in ROWS]
    data = write(tmp_path / "long.jsonl", long)
    words = ("--method", "zero-shot", "--max-tokens", 40, "--json")
    with warnings.catch_warnings():
        code, out, err = run("tune", data, "--model", causal_folder, *words)
    assert code == 0
    json.loads(out)
    assert "were cut at the end" in err


def test_a_class_name_may_hold_an_equals_sign_and_words_add_up(run, tmp_path, causal_folder):
    rows = [{"text": row["text"], "label": {"negative": "a=b", "positive": "c"}[row["label"]]} for row in ROWS]
    data = write(tmp_path / "odd.jsonl", rows)
    words = ("--label-words", "a=b=bad", "--label-words", "a=b=awful", "--label-words", "c=good")
    assert run("tune", data, "--model", causal_folder, "--method", "zero-shot", *words)[0] == 0
    manifest = json.loads(run("show", "runs/zero-shot-0", "--json")[1])
    assert manifest["task"]["answers"]["words"] == [["bad", "awful"], ["good"]]


def test_texts_with_odd_line_separators_stay_whole(run, artifact, tmp_path):
    (tmp_path / "odd.txt").write_text("one\u2028line\x85here\n", encoding="utf-8")
    predictions = json.loads(run("predict", artifact, "--file", "odd.txt", "--json")[1])["predictions"]
    assert [p["text"] for p in predictions] == ["one\u2028line\x85here"]


def test_a_blank_argument_is_a_mistake_not_a_gap(run, artifact):
    code, _, err = run("predict", artifact, "fine", " ")
    assert code == 2
    assert "row 2: 'text' is empty" in err


def test_texts_that_look_like_markup_are_shown_as_they_are(run, artifact):
    code, out, _ = run("predict", artifact, "[bold]great[/bold] [/]")
    assert code == 0
    assert "[bold]great[/bold] [/]" in out
