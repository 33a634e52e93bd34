"""The commands `multitask` and `mix`, and training that goes on, as a person types them."""

import json

import pytest

from conftest import LABELS, TEXTS


def write(path, rows):
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


@pytest.fixture
def tasks(tmp_path):
    """Two tasks on the same texts."""
    sentiment = [(text, LABELS[label]) for text, label in TEXTS]
    length = [(text, "war" if len(text.split()) > 5 else "love") for text, _ in TEXTS]
    return write(tmp_path / "sentiment.jsonl", sentiment), write(tmp_path / "length.jsonl", length)


@pytest.fixture
def family(run, tasks, causal_folder):
    sentiment, length = tasks
    code, out, _ = run(
        *("multitask", "--task", f"sentiment={sentiment}", "--task", f"length={length}", "--dev", f"length={length}"),
        *("--test", f"sentiment={sentiment}", "--model", causal_folder, "--option", "epochs=3", "--json"),
    )
    assert code == 0
    return json.loads(out)


def test_multitask_prints_one_document_and_its_tasks_predict(run, family):
    assert family["family"] == "runs/family"
    assert set(family["tasks"]) == {"sentiment", "length"}
    assert set(family["tasks"]["sentiment"]) == {"train_accuracy", "dev_accuracy", "test_accuracy"}
    code, out, _ = run("predict", "runs/family/tasks/length", "great love story", "--json")
    assert code == 0
    assert set(json.loads(out)["predictions"][0]["probabilities"]) == {"love", "war"}


def test_a_task_is_added(run, family, tasks, tmp_path):
    before = (tmp_path / "runs" / "family" / "shared.safetensors").read_bytes()
    code, _, err = run("multitask", "--add-to", "runs/family", "--task", f"again={tasks[0]}")
    assert code == 0, err
    assert (tmp_path / "runs" / "family" / "shared.safetensors").read_bytes() == before
    assert (tmp_path / "runs" / "family" / "tasks" / "again" / "manifest.json").is_file()


WRONG = {
    "one task alone": (["--task", "a={sentiment}"], "two tasks or more"),
    "no name": (["--task", "{sentiment}"], "is not NAME=VALUE"),
    "a name twice": (["--task", "a={sentiment}", "--task", "a={length}"], "given twice"),
    "labels that clash": (["--task", "a={sentiment}", "--task", "b={length}", "--dev", "a={length}"], "is not one of"),
    "dev of no task": (["--task", "a={sentiment}", "--task", "b={length}", "--dev", "c={length}"], "names task 'c'"),
    "a name that is taken": (["--add-to", "runs/family", "--task", "length={sentiment}"], "is there already"),
    "no family": (["--add-to", "nowhere", "--task", "x={sentiment}"], "no family of prompts"),
    "an unknown option": (["--task", "a={sentiment}", "--task", "b={length}", "--option", "x=1"], "has no option 'x'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line(case, run, family, tasks, causal_folder, tmp_path):
    words, message = WRONG[case]
    files = dict(zip(("sentiment", "length"), tasks, strict=True))
    kept = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    code, out, err = run("multitask", *(word.format(**files) for word in words), "--model", causal_folder)
    assert code == 2
    assert not out
    assert message in err
    assert err.strip().splitlines()[-1].startswith("error: ")
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()} == kept


def test_loras_are_mixed(run, tasks, causal_folder):
    for seed in (0, 1):
        options = ("--option", "epochs=4", "--option", "learning_rate=0.02", "--dev", tasks[0], "--seed", seed)
        code, _, err = run("tune", tasks[0], "--model", causal_folder, "--method", "lora", *options)
        assert code == 0, err
    code, out, err = run("mix", "runs/lora-0", "runs/lora-1", "--weights", "0.5,0.5", "--out", "runs/mix", "--json")
    assert code == 0, err
    assert json.loads(out)["weights"]["rank"] == 16
    assert run("predict", "runs/mix", "a joy")[0] == 0
    for words, message in (
        (("--weights", "0.5"), "a weight each"),
        (("--weights", "x,y"), "are no numbers"),
        (("--weights", "0.5,0.5", "--combination", "soup"), "choose cat, linear, svd"),
    ):
        code, _, err = run("mix", "runs/lora-0", "runs/lora-1", *words, "--out", "runs/other")
        assert (code, message in err) == (2, True), err


def test_a_state_of_other_options_is_refused(run, tasks, causal_folder):
    words = ("tune", tasks[0], "--model", causal_folder, "--method", "p-tuning", "--checkpoints", "state")
    assert run(*words, "--option", "epochs=2", "--out", "runs/a")[0] == 0
    assert run(*words, "--option", "epochs=2", "--out", "runs/b")[0] == 0
    code, _, err = run(*words, "--option", "epochs=3", "--out", "runs/c")
    assert code == 2
    assert "belongs to another run" in err
