"""`cuecraft advise` as a command: its document, what a person reads, an endpoint, mistakes."""

import json
import shlex

import pytest

from conftest import LABELS, TEXTS, lively, make_masked
from test_endpoint import KEY, by_word, stub  # noqa: F401


def write(path, records):
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in records))
    return path


@pytest.fixture
def data(tmp_path):
    found = [{"text": f"{text} {n}", "label": LABELS[label]} for n in range(4) for text, label in TEXTS]
    return write(tmp_path / "data.jsonl", found)


def advise(run, *words):
    code, out, err = run("advise", *words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_the_document(run, data, causal_folder):
    found = advise(run, data, "--model", causal_folder, "--template", r"{text}{prompt:\nit was}{mask}")
    assert found["data"]["classes"] == {"negative": 16, "positive": 16}
    assert found["data"]["labels_per_class"] == 16
    assert found["measurement"]["rows"] == 32
    assert found["measurement"]["tokens_per_second"] > 0
    assert found["zero_shot"]["rows"] == found["calibrated"]["rows"] == 32
    low, high = found["zero_shot"]["interval_95"]
    assert low <= found["zero_shot"]["accuracy"] <= high
    assert found["majority_accuracy"] == 0.5
    assert sum(found["answers"].values()) == pytest.approx(1)
    assert found["endpoint"] is None
    assert [row["name"] for row in found["methods"]] == ["auto", "deep-cue"]
    assert all(row["about_seconds"] > 0 and row["about_bytes"] > 0 for row in found["methods"])
    words = shlex.split(found["next"])
    assert words[:3] == ["cuecraft", "tune", str(data)]
    assert words[words.index("--template") + 1] == r"{text}{prompt:\nit was}{mask}"
    assert words[words.index("--method") + 1] == "auto"


def test_a_command_of_the_document_runs(run, data, causal_folder):
    found = advise(
        run,
        data,
        "--model",
        causal_folder,
        "--max-tokens",
        60,
        "--label-words",
        "negative=bad",
        "--label-words",
        "positive=good",
    )
    [deep] = [row for row in found["methods"] if row["name"] == "deep-cue"]
    code, _, err = run(*shlex.split(deep["command"])[1:], "--option", "epochs=1")
    assert code == 0, err


def test_the_last_line_for_a_person_is_the_command(run, data, causal_folder):
    code, out, _ = run("advise", data, "--model", causal_folder)
    assert code == 0
    assert out.rstrip("\n").splitlines()[-1].startswith(f"cuecraft tune {data} --method auto")
    assert "worth tuning:" in out
    assert "95% up to" in out


def test_planted_data_is_told(run, tmp_path, causal_folder):
    texts = [{"text": "good " * 120, "label": "1"}] * 8 + [{"text": f"bad {n}", "label": "2"} for n in range(2)]
    texts += [{"text": "bad 0", "label": "1"}]
    data = write(tmp_path / "planted.jsonl", texts)
    found = advise(run, data, "--model", causal_folder, "--max-tokens", 60)
    told = {one["figure"] for one in found["findings"]}
    assert {"cut_share", "duplicate_share", "contradictions", "imbalance", "scarce_classes", "numbered_classes"} <= told
    assert found["data"]["contradictions"] == [{"rows": [9, 11], "labels": {"2": 1, "1": 1}}]
    assert found["data"]["duplicates"] == 8
    assert found["lengths"]["cut"] == 8


def test_no_labels_at_all(run, tmp_path, causal_folder):
    data = write(tmp_path / "texts.jsonl", [{"text": text} for text, _ in TEXTS])
    code, _, err = run("advise", data, "--model", causal_folder)
    assert code == 2
    assert "--classes" in err
    found = advise(run, data, "--model", causal_folder, "--classes", "bad,good")
    assert found["data"]["unlabelled"] == 8
    assert found["zero_shot"] is None
    assert found["measurement"]["rows"] == 8
    assert [row["name"] for row in found["methods"]] == ["label-free"]
    assert "--unlabeled" in found["next"]
    assert "--classes bad,good" in found["next"]
    lines = tmp_path / "texts.txt"
    lines.write_text("".join(f"{text}\n\n" for text, _ in TEXTS))
    asked = advise(run, lines, "--model", causal_folder, "--classes", "bad,good")
    assert asked["data"] == found["data"] | {"source": str(lines)}
    lines.write_text("\n")
    code, _, err = run("advise", lines, "--model", causal_folder, "--classes", "bad,good")
    assert code == 2
    assert "no rows" in err
    assert found["tuning"]["worth"] == "unknown"
    code, _, err = run(*shlex.split(found["next"])[1:])
    assert code == 0, err


def test_partly_labelled_rows_go_into_a_file_that_tune_takes(run, tmp_path, causal_folder):
    texts = [{"text": f"{text} {n}", "label": LABELS[label]} for n in range(3) for text, label in TEXTS]
    data = write(tmp_path / "partly.jsonl", [*texts, {"text": "no label here"}, {"text": "nor here", "label": " "}])
    found = advise(run, data, "--model", causal_folder)
    assert (found["data"]["labelled"], found["data"]["unlabelled"]) == (24, 2)
    assert "partly_unlabelled" in {one["figure"] for one in found["findings"]}
    words = shlex.split(found["next"])
    assert words[1] == "advise"
    code, out, err = run(*words[1:])
    assert code == 0, err
    assert [json.loads(line) for line in (tmp_path / "labelled.jsonl").read_text().splitlines()] == texts
    assert out.rstrip("\n").splitlines()[-1].startswith("cuecraft tune labelled.jsonl")
    code, _, err = run(*words[1:])
    assert code == 2
    assert "there already" in err
    for name, says in (("rows.csv", "*.jsonl"), ("absent/rows.jsonl", "no such folder")):
        code, _, err = run("advise", data, "--model", causal_folder, "--labelled-out", name)
        assert code == 2
        assert says in err


def test_label_words_that_cannot_be_scored(run, tmp_path, word_tokenizer):
    folder = tmp_path / "tiny-bert"
    make_masked(word_tokenizer).save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    names = ("terrible", "good fun")
    texts = [{"text": f"{text} {n}", "label": names[label]} for n in range(3) for text, label in TEXTS]
    data = write(tmp_path / "named.jsonl", texts)
    found = advise(run, data, "--model", folder, "--max-tokens", 60)
    assert found["measurement"] is None
    assert found["lengths"]["max"] > 1
    assert found["methods"][0]["about_seconds"] is None
    assert "unusable_words" in {one["figure"] for one in found["findings"]}
    words = shlex.split(found["next"])
    assert words[:2] == ["cuecraft", "words"]
    assert [word for word in words if "=" in word] == ["good fun=good", "terrible=a"]
    code, _, err = run(*words[1:])
    assert code == 0, err
    # Without labels nothing can be searched, so the words themselves are to be mended.
    bare = write(tmp_path / "bare.jsonl", [{"text": row["text"]} for row in texts])
    code, _, err = run("advise", bare, "--model", folder, "--classes", "terrible,good")
    assert code == 2
    assert "'terrible'" in err


def test_words_of_several_tokens_are_told(run, data, causal_folder):
    words = ("--label-words", "negative=terrible", "--label-words", "positive=wonderful")
    found = advise(run, data, "--model", causal_folder, *words)
    assert all(min(own["tokens"]) > 1 for own in found["label_words"].values())
    assert "long_words" in {one["figure"] for one in found["findings"]}


def test_a_backbone_of_features_only(run, data, tmp_path, word_tokenizer):
    from transformers import BertConfig, BertModel

    folder = tmp_path / "tiny-encoder"
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    lively(BertModel(BertConfig(**shape, vocab_size=len(word_tokenizer)))).save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    found = advise(run, data, "--model", folder)
    assert found["model"]["head"] == "sequence"
    assert found["zero_shot"] is found["label_words"] is None
    assert found["measurement"]["tokens_per_second"] > 0
    assert "linear-probe" in [row["name"] for row in found["methods"]]


def test_an_endpoint_is_asked_and_the_key_shown_nowhere(run, stub, data, causal_folder, monkeypatch):  # noqa: F811
    server = stub(by_word)
    monkeypatch.setenv("MY_KEY", KEY)
    flags = ("--endpoint", server.url, "--endpoint-model", "tiny", "--endpoint-key-env", "MY_KEY")
    code, out, err = run("advise", data, "--model", causal_folder, *flags, "--json")
    assert code == 0
    found = json.loads(out)["endpoint"]
    assert (found["rows"], found["no_class"], found["tokens"]) == (32, 0, 320)
    assert found["address"] == server.url
    assert f"sending 32 texts to {server.url}" in err
    assert KEY not in out + err
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, headers, _ in server.requests)
    code, out, err = run("advise", data, "--model", causal_folder, *flags)
    assert code == 0
    assert "texts were sent to" in out
    assert KEY not in out + err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--endpoint-model", "m"), "need --endpoint"),
        (("--endpoint", "http://h/v1"), "--endpoint-model"),
        (("--endpoint", "h", "--endpoint-model", "m"), "http"),
        (("--endpoint", "http://h", "--endpoint-model", "m", "--endpoint-key-env", "NOT_SET_AT_ALL"), "not set"),
        (("--label-column", "labl"), "no row has a label in column 'labl'"),
        (("--classes", "negative,other"), "label 'positive'"),
        (("--text-column", "nothing"), "no column 'nothing'"),
    ],
)
def test_mistakes_are_told_in_one_line(run, data, causal_folder, flags, says):
    code, out, err = run("advise", data, "--model", causal_folder, *flags)
    assert (code, out) == (2, "")
    assert says in err


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"labels": ["a", "b"]}, "multilabel"),
        ({"label": 1.5}, "ordinal"),
        ({"choices": ["a", "b"], "answer": 0}, "choices"),
    ],
)
def test_answers_that_are_no_labels_are_refused_in_one_line(answer, kind, run, tmp_path):
    path = write(tmp_path / "others.jsonl", [{"text": text, **answer} for text, _ in TEXTS])
    code, out, err = run("advise", path, "--model", "none")
    assert (code, out) == (2, "")
    said = " ".join(err.split())
    assert "advise measures one label for each text" in said
    assert f"these answers are of kind {kind} (" in said
    assert said.endswith("); use compare, or tune with the method auto")
