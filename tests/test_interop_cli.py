"""The commands `export` and `import`."""

import json

import pytest

from conftest import LABELS, TEXTS

pytest.importorskip("peft")

FIRST = "{prompt: it was}{text} now{mask}"


@pytest.fixture
def artifact(run, causal_folder, tmp_path):
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps({"text": text, "label": LABELS[n]}) + "\n" for text, n in TEXTS * 3))
    model = ("--model", causal_folder, "--method", "prompt-tuning", "--option", "epochs=2", "--template", FIRST)
    code, _, err = run("tune", data, *model, "--out", "tuned")
    assert code == 0, err
    return "tuned"


def test_export_and_import_give_the_artifact_back(run, artifact, causal_folder):
    code, out, _ = run("export", artifact, "--format", "peft", "--out", "adapter", "--json")
    assert code == 0
    assert json.loads(out) == {
        "artifacts": {"tuned": "tuned"},
        "format": "peft",
        "folder": "adapter",
        "files": ["adapter_config.json", "adapter_model.safetensors", "cuecraft.json"],
    }
    code, out, _ = run("import", "adapter", "--model", causal_folder, "--out", "again", "--json")
    assert code == 0
    hashes = [json.loads(run("show", name, "--json")[1])["artifact_sha256"] for name in ("tuned", "again")]
    assert hashes == [json.loads(out)["artifact_sha256"]] * 2


def test_import_takes_template_and_words(run, artifact, causal_folder, tmp_path):
    assert run("export", artifact, "--out", "adapter")[:2] == (0, "adapter written\n")
    (tmp_path / "adapter" / "cuecraft.json").unlink()
    begin = ("import", "adapter", "--model", causal_folder)
    template = ("--template", "{prompt}{text}\\nIt was{mask}")
    words = ("--label-words", "no=bad,cold", "--label-words", "yes=warm")
    assert run(*begin, *template, *words, "--out", "words")[:2] == (0, "words written\n")
    task = json.loads(run("show", "words", "--json")[1])["task"]
    assert task["template"] == "{prompt}{text}\nIt was{mask}"
    assert (task["answers"]["classes"], task["answers"]["words"]) == (["no", "yes"], [["bad", "cold"], ["warm"]])
    assert run(*begin, *template, "--classes", "cold, warm", "--out", "names")[0] == 0
    assert json.loads(run("show", "names", "--json")[1])["task"]["answers"]["words"] == [["cold"], ["warm"]]
    code, out, _ = run("predict", "names", "a warm story", "--json")
    assert code == 0
    assert set(json.loads(out)["predictions"][0]["probabilities"]) == {"cold", "warm"}

    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "someone/else"}))
    other = (*begin, *template, *words, "--out", "other")
    code, _, err = run(*other)
    assert (code, err.count("\n")) == (2, 1)
    assert "was trained on someone/else" in err
    assert not (tmp_path / "other").exists()
    code, _, err = run(*other, "--any-base")
    assert code == 0
    assert "its answers mean nothing" in err
    assert "Warning: the adapter was trained on someone/else" in (tmp_path / "other" / "README.md").read_text()


def test_mistakes_end_with_code_2_and_write_nothing(run, artifact, causal_folder, tmp_path):
    code, out, err = run("export", artifact, "--format", "tflite", "--out", "adapter")
    assert (code, out) == (2, "")
    assert "format" in err
    code, _, err = run("export", artifact, "--out", "tuned")
    assert code == 2
    assert "exists and was not exported by cuecraft" in err
    assert run("export", artifact, "--out", "adapter")[0] == 0
    code, _, err = run(
        "import", "adapter", "--model", causal_folder, "--template", "{text}{prompt}{mask}", "--out", "x"
    )
    assert code == 2
    assert "PEFT puts virtual tokens first" in err
    code, _, err = run("import", "adapter", "--model", causal_folder, "--out", "adapter")
    assert code == 2
    assert "exists and is no artifact" in err
    code, _, err = run("import", "nowhere", "--model", causal_folder, "--out", "x")
    assert code == 2
    assert "no PEFT adapter here" in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "train.jsonl", "tuned"]
