"""The command `export` for graphs and tensors, and what `predict` and `serve` say of exported folders."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from cuecraft import PromptClassifier
from cuecraft.export import graph
from serving import X, Y


@pytest.fixture
def tuned(run, causal_folder, tmp_path):
    template = "{text}{prompt: it was}{mask}"
    PromptClassifier(str(causal_folder), "zero-shot", template=template).fit(X, Y).save(tmp_path / "tuned")
    return tmp_path / "tuned"


@pytest.fixture(scope="module")
def written():
    """The graph of what `tuned` makes."""
    return []


@pytest.fixture(autouse=True)
def traced_once(written, monkeypatch):
    """Trace the graph once: all exports here are of the same artifact."""

    def write_graph(folded, folder):
        if not written:
            written.append(graph.write_graph(folded, folder).read_bytes())
        (folder / graph.GRAPH).write_bytes(written[0])
        return folder / graph.GRAPH

    monkeypatch.setattr("cuecraft.export.folder.write_graph", write_graph)


def test_export_predict_and_export_again(run, tuned, tmp_path):
    code, out, err = run("export", "tuned", "--format", "onnx", "--out", "graph", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["files"] == ["example.mjs", "example.py", "manifest.json", "model.onnx", "tokenizer.json"]
    assert (document["format"], document["precision"], document["agreement"]["labels"]) == ("onnx", "fp32", 1.0)
    found = [json.loads(run("predict", folder, *X, "--json")[1])["predictions"] for folder in ("tuned", "graph")]
    shares = [[list(own["probabilities"].values()) for own in rows] for rows in found]
    assert np.abs(np.subtract(*shares)).max() < 1e-4
    code, out, _ = run("export", "tuned", "--format", "onnx", "--out", "graph")  # replaces what it wrote
    assert code == 0
    assert "of the labels of" in out
    for words, message in (
        (("predict", "graph", "a", "--model", "demo:minilm"), "leave --model out"),
        (("predict", "graph", "a", "--dtype", "float16"), "leave --dtype out"),
        (("predict", "graph", "a", "--device", "tensorrt"), "TensorrtExecutionProvider"),
        (("serve", "graph", "tuned"), "give them apart"),
        (("serve", "graph", "--keep", "kept"), "leave --keep out"),
        (("serve", "graph", "--backend", "ray"), "leave --backend ray out"),
        (("show", "graph"), "is no artifact, but an exported graph"),
        (("export", "graph", "--format", "onnx", "--out", "again"), "is no artifact, but an exported graph"),
        (
            ("export", "tuned", "--format", "onnx", "--out", "again", "--dtype", "float16"),
            "leave --device and --dtype out",
        ),
        (("export", "tuned", "--format", "onnx", "--out", "x" * 300), "is no folder (File name too long)"),
    ):
        code, _, err = run(*words)
        assert code == 2, err
        assert message in err
        assert err.strip().splitlines()[-1].startswith("error: ")
    (tmp_path / "graph" / "model.onnx").write_bytes(b"no graph")
    code, _, err = run("predict", "graph", "a")
    assert code == 2
    assert "model.onnx is damaged" in err


def test_classify_takes_an_exported_folder_without_torch(run, tuned, tmp_path):
    pytest.importorskip("orjson")
    assert run("export", "tuned", "--format", "onnx", "--out", "graph")[0] == 0
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in X))
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None, sklearn=None); from cuecraft.cli import main; "
    )
    words = ("classify", "graph", "rows.jsonl", "--out", "answers", "--field", "text")
    done = subprocess.run([sys.executable, "-c", code + "main()", *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for path in sorted((tmp_path / "answers").glob("part-*.jsonl")) for line in path.open()]
    expected = json.loads(run("predict", "tuned", *X, "--json")[1])["predictions"]
    for line, own in zip(lines, expected, strict=True):
        row = json.loads(line)
        assert row["probability"] == pytest.approx(own["probabilities"][row["label"]], abs=1e-4)
        assert row["probability"] >= 0.5 - 1e-4
    code, _, err = run("classify", "graph", "tuned", "rows.jsonl", "--out", "both", "--field", "text")
    assert code == 2
    assert "give them apart" in err


def test_safetensors_hold_the_prompt(run, tuned, tmp_path):
    code, out, err = run("export", "tuned", "--format", "safetensors", "--out", "prompt", "--json")
    assert code == 0, err
    assert json.loads(out)["files"] == ["prompt.json", "prompt.safetensors"]
    beside = json.loads((tmp_path / "prompt" / "prompt.json").read_text())
    vectors = load_file(tmp_path / "prompt" / "prompt.safetensors")["vectors"]
    assert vectors.shape == (beside["manifest"]["prompt"]["length"], 32)
    assert (beside["prompt_in"], beside["prompt_at"]) == ("closing", 0)


def test_mistakes_end_with_code_2_and_write_nothing(run, tuned, causal_folder, word_tokenizer, tmp_path):
    (tmp_path / "few.txt").write_text("a joy\na bore\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    graph = ("export", "tuned", "--format", "onnx", "--out")
    for words, message in (
        (("export", "tuned", "--format", "gguf", "--out", "x"), "option 'format'"),
        (("export", "tuned", "--precision", "int8", "--out", "x"), "--precision int8 is for graphs"),
        ((*graph, "x", "--precision", "int8"), "give unlabelled ones of the task: --texts FILE"),
        ((*graph, "x", "--precision", "int8", "--texts", "few.txt"), "2 texts are too few"),
        ((*graph, "other"), "exists and was not exported by cuecraft"),
        ((*graph, "tuned"), "exists and was not exported by cuecraft"),
        (("export", "nowhere", "--format", "onnx", "--out", "x"), "no artifact here"),
        ((*graph, "x", "--texts", "nowhere.txt"), "nowhere.txt"),
    ):
        code, out, err = run(*words)
        assert (code, out) == (2, ""), err
        assert message in err
        assert err.strip().splitlines()[-1].startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_artifact_of_another_backbone_is_refused(run, tuned, byte_tokenizer, tmp_path):
    from conftest import make_causal

    make_causal(byte_tokenizer, "gpt2").save_pretrained(tmp_path / "gpt2")
    byte_tokenizer.save_pretrained(tmp_path / "gpt2")
    code, _, err = run("export", "tuned", "--format", "onnx", "--out", "x", "--model", "gpt2")
    assert code == 2
    assert "the prompt was made for" in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("words", [("predict", "nowhere", "a"), ("predict", "tuned", "a"), ("serve", "nowhere")])
def test_without_torch_one_line_says_what_is_lacking(words, tuned, tmp_path):
    code = "import sys; sys.modules.update(torch=None, transformers=None); from cuecraft.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "no exported graph that can be read, and anything else needs PyTorch" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
