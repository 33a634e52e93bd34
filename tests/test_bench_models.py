"""The benchmark of models that users have (benchmarks/models.py): what is run, kept, measured and summed up."""

import importlib
import json
from pathlib import Path

import pytest

from conftest import LABELS, TEXTS
from cuecraft import PromptClassifier


@pytest.fixture
def models(monkeypatch, tmp_path):
    """Import the benchmark, over a small data folder of its own."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    found, accuracy, common = (importlib.import_module(name) for name in ("models", "accuracy", "common"))
    rows = [{"text": text, "label": LABELS[label]} for text, label in TEXTS]
    for task in found.TASKS:
        (tmp_path / "data" / task / "seed-13").mkdir(parents=True)
        for name in ("seed-13/train", "seed-13/dev", "test"):
            lines = "".join(json.dumps(row | {"text": f"{row['text']} {name[-5:]}"}) + "\n" for row in rows)
            (tmp_path / "data" / task / f"{name}.jsonl").write_text(lines)
    for module in (accuracy, common):
        monkeypatch.setattr(module, "DATA", tmp_path / "data")
    return found


@pytest.fixture
def tiny(models, monkeypatch, causal, sequence):
    """The benchmark with tiny models, and without SetFit, which is in an environment of its own."""
    monkeypatch.setattr(models, "backbone_of", lambda name: sequence if name == models.SENTENCE_MODEL else causal)
    monkeypatch.setattr(models, "setfit_missing", lambda: "setfit is left out: it is not installed")
    return models


def smoke(models, tmp_path, *words):
    models.main(["--smoke", "--out", str(tmp_path / "out"), "--tasks", "sst-2", *words])
    return json.loads((tmp_path / "out" / models.RESULT).read_text())["parts"]


def test_examples_in_the_prompt_are_measured_and_cells_are_kept(tiny, tmp_path, monkeypatch):
    found = smoke(tiny, tmp_path, "--parts", "in-context")["in-context"]["ways"]
    assert list(found) == list(tiny.IN_CONTEXT)
    for name, row in found.items():
        own = row["tasks"]["sst-2"]
        assert own["seed"] == [13], name
        assert 0 <= own["accuracy"][0] == row["mean"] <= 1
        assert min(*own["texts_per_second"], *own["seconds_of_one"], *own["bytes_stored"]) > 0
    assert (
        found["in-context-16-nearest"]["options"] | {"shots": 2, "choice": "nearest"}
        == (found["in-context-16-nearest"]["options"])
    )
    assert found["deep-cue-4-shots"]["options"]["shots"] == 2
    monkeypatch.setattr(tiny, "run_cell", lambda *given: pytest.fail("a cell that is there was made again"))
    assert smoke(tiny, tmp_path, "--parts", "in-context")["in-context"]["ways"] == found


def test_encoders_learn_of_all_examples_and_what_is_not_there_is_left_out(tiny, tmp_path, monkeypatch, capsys):
    given = []
    fit = PromptClassifier.fit

    def watched(self, texts, labels, dev=None):
        given.append((len(texts), dev))
        return fit(self, texts, labels, dev)

    monkeypatch.setattr(PromptClassifier, "fit", watched)
    found = smoke(tiny, tmp_path, "--parts", "encoders", "--methods", "linear-probe,setfit", "--seeds", "13")
    assert list(found["encoders"]["ways"]) == ["linear-probe"]
    assert given == [(16, None)]
    assert "encoders, setfit: left out (setfit is left out: it is not installed)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["plain-deep-cue", "auto"])
def test_forms_of_the_task_are_measured(tiny, name, tmp_path):
    row = smoke(tiny, tmp_path, "--parts", "chat", "--methods", name)["chat"]["ways"][name]
    assert row["runs"] == 1
    if name == "auto":
        assert row["tasks"]["sst-2"]["choice"][0]["template"].startswith("{text}")


def test_a_form_that_cannot_be_taken_is_left_out(models):
    assert "no unheard_of" in models.Way("zero-shot", form={"unheard_of": True}).missing()
    assert "unknown method" in models.Way("unheard-of").missing()
    assert models.Way("zero-shot").missing() is None


def test_every_method_answers_over_a_gguf_file_as_over_its_folder(tiny, byte_tokenizer, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    import gguf_writing

    monkeypatch.setenv("CUECRAFT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "own.gguf"
    gguf_writing.write_gguf(path, gguf_writing.tiny("llama", byte_tokenizer), byte_tokenizer)
    ways = smoke(tiny, tmp_path, "--parts", "gguf", "--gguf", str(path))["gguf"]["ways"]
    assert len(ways) == 7
    assert list(ways) == list(tiny.SEVEN)
    assert all(row["tasks"]["sst-2"]["same_bits_from_the_folder"] == [True] for row in ways.values())


def test_the_lead_over_another_is_taken_over_runs_that_both_have(models):
    def cell(name, seed, accuracy):
        return {"name": name, "task": "trec", "seed": seed, "accuracy": accuracy}

    cells = [cell("setfit", 13, 0.5), cell("setfit", 21, 0.75), cell("auto", 13, 0.625), cell("auto", 21, 0.5)]
    cells += [cell("lora", 13, 0.25), cell("lora", 42, 1.0), cell("full", 42, 1.0)]
    assert models.ahead(cells, "setfit") == {
        "auto": {"runs": 2, "mean": -0.0625, "least": -0.25},
        "lora": {"runs": 1, "mean": -0.25, "least": -0.25},
    }


def test_a_way_is_summed_up_over_several_seeds_of_one_task(models):
    cell = {
        "task": "a",
        "options": {},
        "beside_other_work": False,
        "template": "{text}{prompt}{mask}",
        "verdict": {"ships": "tuned"},
    }
    cells = [cell | {"seed": seed, "accuracy": accuracy, "seconds": 1.0} for seed, accuracy in ((1, 0.5), (2, 0.75))]
    found = models.way_row(cells)
    assert (found["runs"], found["mean"]) == (2, 0.625)
    assert found["tasks"]["a"]["seed"] == [1, 2]
    assert found["tasks"]["a"]["accuracy"] == [0.5, 0.75]
    assert len(found["tasks"]["a"]["choice"]) == 2


def test_a_smoke_run_never_writes_into_the_results(models, capsys):
    with pytest.raises(SystemExit):
        models.main(["--smoke"])
    assert "give another folder with --out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        models.main(["--parts", "unheard-of"])
    assert "unheard-of is unknown" in capsys.readouterr().err
