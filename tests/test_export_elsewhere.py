"""Exported folders where PyTorch is not: a virtual environment of its own, and Node."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from conftest import WORDS
from serving import classifiers
from test_export import exported

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
#: 200 texts of one to 40 words, each once.
TEXTS = [" ".join(WORDS[(3 * n + k * (1 + n % 5)) % len(WORDS)] for k in range(1 + n % 40)) for n in range(200)]
ASKED = """
import json, sys
import numpy as np
from cuecraft.export.runtime import ExportedClassifier

texts, found = json.load(open(sys.argv[1])), {}
for folder in sys.argv[2:]:
    classifier = ExportedClassifier.load(folder)
    parts = [texts[:1], texts[1:4], texts[4:40], texts[40:]]
    found[folder] = [classifier.predict_proba(texts).tolist(), np.concatenate(
        [classifier.predict_proba(part) for part in parts]).tolist()]
assert not {"torch", "transformers"} & set(sys.modules)
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A fresh virtual environment with what deploy/no-torch.txt names, and this package."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    done = subprocess.run([*pip, "-r", str(ROOT / "deploy" / "no-torch.txt")], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"packages cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    own = tmp_path_factory.mktemp("source") / "cuecraft"
    for part in ("src", "pyproject.toml", "README.md", "LICENSE"):
        take = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        own.mkdir(exist_ok=True)
        take(ROOT / part, own / part)
    subprocess.run([*pip, "--no-deps", str(own)], check=True)
    listed = subprocess.run([str(python), "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "torch" not in listed
    assert "transformers" not in listed
    return folder / "bin"


@pytest.mark.parametrize("head", ["causal", "masked", "sequence"])
def test_every_kind_of_prompt_answers_in_an_environment_without_torch(head, environment, request, tmp_path):
    own = classifiers(request.getfixturevalue(head))
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(TEXTS))
    for name, classifier in own.items():
        exported(classifier, tmp_path / name)
    folders = [str(tmp_path / name) for name in own]
    command = [str(environment / "python"), "-c", ASKED, str(texts), *folders]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=clean, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name, classifier in own.items():
        expected = classifier.predict_proba(TEXTS)
        for shares in found[str(tmp_path / name)]:
            assert np.abs(np.array(shares) - expected).max() < 1e-4, name


def test_the_command_predicts_in_an_environment_without_torch(environment, causal, tmp_path):
    classifier = classifiers(causal)["soft"]
    exported(classifier, tmp_path / "graph")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(environment / "cuecraft"), "predict", "graph", *TEXTS[:9], "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=clean, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    rows = [list(own["probabilities"].values()) for own in json.loads(done.stdout)["predictions"]]
    assert np.abs(np.array(rows) - classifier.predict_proba(TEXTS[:9])).max() < 1e-4


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A folder with onnxruntime-node and a tokenizer from npm."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no Node")
    folder = tmp_path_factory.mktemp("node")
    # Its install script fetches GPU libraries; the CPU's come with the package.
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "onnxruntime-node", "@huggingface/tokenizers"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("npm does not reach its registry")
    return folder


@pytest.mark.parametrize("head", ["causal", "masked", "sequence"])
def test_the_javascript_example_answers_as_the_classifier(head, node, request):
    classifier = classifiers(request.getfixturevalue(head))["soft"]
    exported(classifier, node / f"my {head}")
    for text in ("a joy from start to finish", "a [MASK] joy <s> </s>"):  # what looks like a special token is text
        command = ["node", str(node / f"my {head}" / "example.mjs"), text]
        told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=node).stdout
        found = [float(share) for share in re.findall(r": ([\d.e-]+)", told)]
        assert found == pytest.approx(classifier.predict_proba([text])[0].tolist(), abs=1e-4)
