"""Every example runs, on a tiny model and few rows; the defaults, on the demo model, in the slow tests."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from conftest import LABELS, TEXTS
from cuecraft.core.assets import model_folder
from cuecraft.core.errors import AssetError

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
TINY = {
    "discrete": ("--iterations", "2"),
    "prefix_tuning_loop": ("--epochs", "2"),
    "hybrid": ("--steps", "2", "--epochs", "2"),
    "multitask": ("--epochs", "1"),
    "comparison": ("--methods", "zero-shot,prefix-tuning", "--seeds", "1,2", "--test-size", "4"),
}
SHOWN = {
    "discrete": "best prompt: ",
    "prefix_tuning_loop": "epoch 2: loss",
    "hybrid": "saved runs/example-hybrid, hash ",
    "multitask": "topics: PEFT alone ",
    "comparison": "least dev loss: ",
}


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run an example in an empty folder; return what it prints."""
    monkeypatch.chdir(tmp_path)

    def example(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return example


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs(name, run, causal_folder, tmp_path):
    if name == "multitask":
        pytest.importorskip("peft")
    data = tmp_path / "data.jsonl"
    rows = [{"text": f"{text} {n}", "label": LABELS[label]} for n in range(4) for text, label in TEXTS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = run(name, "--model", causal_folder, "--data", data, "--shots", 4, *TINY[name])
    assert SHOWN[name] in out


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs_as_it_is(name, run):
    try:
        model_folder("demo:smollm2-135m")
    except AssetError:
        pytest.skip("the demo packages are not installed")
    assert SHOWN[name].replace("epoch 2", "epoch 6") in run(name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_short_and_says_what_one_sees_and_how_long_it_takes(name):
    source = (EXAMPLES / f"{name}.py").read_text()
    assert source.count("\n") <= 70
    docstring = source.split('"""')[1]
    assert "One sees" in docstring
    assert "seconds" in docstring or "minutes" in docstring
    assert f"`{name}.py`" in (EXAMPLES / "README.md").read_text()


def test_the_notebook_is_short_and_its_outputs_too():
    path = EXAMPLES / "quickstart.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(cells) <= 12
    assert path.stat().st_size <= 60_000
    assert all(output.get("name") != "stderr" for cell in code for output in cell["outputs"])
    for cell in code:
        compile("".join(cell["source"]), path.name, "exec")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="pip install 'cuecraft[notebook]'")
    nbclient = pytest.importorskip("nbclient", reason="pip install 'cuecraft[notebook]'")
    pytest.importorskip("ipykernel", reason="pip install 'cuecraft[notebook]'")
    try:
        model_folder("demo:smollm2-135m")
    except AssetError:
        pytest.skip("the demo packages are not installed")
    book = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        book, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    shown = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert "tuned: accuracy" in "".join(output.get("text", "") for output in shown)
    assert (tmp_path / "runs" / "quickstart" / "manifest.json").exists()
