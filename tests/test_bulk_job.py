"""Jobs: a label a row as the classifier gives it, what is answered once, who answers, and what is wrong with a job."""

import errno
import gzip
import io
import json
import shutil
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cuecraft.core.storage
from bulk import SMALL, X, Y, artifact, classify, messages, rows_of, text_at, write_jsonl
from conftest import examples, make_causal
from cuecraft import PromptClassifier
from cuecraft.core.errors import BulkError
from cuecraft.serving.bulk.student import Drift, Student, fit_student, interval, lower_bound, needed
from cuecraft.serving.bulk.table import MODEL, STUDENT, AnswerBatch, AnswerTable


@pytest.fixture(scope="module")
def prompt(causal_folder, tmp_path_factory):
    """An artifact's folder, and its classifier."""
    folder = tmp_path_factory.mktemp("prompts") / "plain"
    return folder, artifact(causal_folder, folder, calibration="fitted")


def check_by_oracle(rows, classifier, label="label", probability="probability"):
    """Compare rows with the classifier, each text read where the row's id says and asked about alone."""
    names = classifier.classes_.tolist()
    for row in rows:
        shares = classifier.predict_proba([text_at(row)])[0]
        assert row[label] == names[int(shares.argmax())]
        assert row[probability] == pytest.approx(shares.max(), abs=2e-5)


@pytest.mark.parametrize("dedupe", ["exact", "off"])
def test_each_row_has_the_answer_of_the_classifier(prompt, tmp_path, dedupe):
    folder, classifier = prompt
    texts = messages(120, distinct=20)
    source = write_jsonl(tmp_path / "a.jsonl", texts, broken=30)
    found = classify(folder, source, tmp_path / "out", dedupe=dedupe)
    rows = rows_of(tmp_path / "out")
    assert (found["read"], found["classified"], found["quarantined"]) == (120, 116, 4)
    assert found["shards"] > 2
    assert [text_at(row) for row in rows] == [text for n, text in enumerate(texts, 1) if n % 30]
    check_by_oracle(rows, classifier)
    put_aside = rows_of(tmp_path / "out", "quarantine")
    assert [row["reason"] for row in put_aside] == ["broken JSON"] * 4
    assert all(source.read_bytes()[row["offset"] :].startswith(b"{broken\n") for row in put_aside)
    distinct = len({text_at(row) for row in rows})
    assert found["computed"] == (distinct if dedupe == "exact" else 116)


@examples(25)
@given(
    st.lists(st.one_of(st.just(b'{"message": "a good film"}'), st.binary(max_size=40)), max_size=12),
    st.sampled_from(["a.jsonl", "a.txt", "a.csv", "a.jsonl.gz", "a.txt.zst", "a.parquet"]),
    st.booleans(),
    st.sampled_from(["exact", "template", "off"]),
)
def test_of_any_bytes_the_sums_are_right_or_one_line_says_why(prompt, tmp_path_factory, lines, name, is_packed, dedupe):
    folder, _ = prompt
    tmp_path = tmp_path_factory.mktemp("soup")
    data = b"\n".join(lines)
    pack = gzip.compress if name.endswith(".gz") and is_packed else bytes
    (tmp_path / name).write_bytes(pack(data))
    fields = () if ".txt" in name else ("message",)
    try:
        found = classify(folder, tmp_path / name, tmp_path / "out", fields=fields, dedupe=dedupe, block_mb=0.0001)
    except BulkError as error:
        refused = error
    else:
        refused = None
    if (
        refused is not None and not (tmp_path / "out").exists()
    ):  # no file of its kind: refused before anything is written
        assert str(refused).startswith(str(tmp_path / name))
        return
    if refused is not None:
        assert rows_of(tmp_path / "out", "quarantine")
        assert not rows_of(tmp_path / "out")
        return
    assert found["read"] == found["classified"] + found["quarantined"]
    assert found["classified"] == len(rows_of(tmp_path / "out"))
    assert found["quarantined"] == len(rows_of(tmp_path / "out", "quarantine"))


def test_several_prompts_over_one_read_kept_fields_and_parquet(prompt, causal_folder, tmp_path):
    folder, classifier = prompt
    other = artifact(causal_folder, tmp_path / "deep", "deep-cue", epochs=1)
    source = write_jsonl(tmp_path / "a.jsonl", messages(20))
    both = {"plain": folder, "deep": tmp_path / "deep"}
    classify(both, source, tmp_path / "out", keep=("n", "absent"))
    rows = rows_of(tmp_path / "out")
    assert [(row["n"], row["absent"]) for row in rows] == [(n, None) for n in range(20)]
    check_by_oracle(rows, classifier, "plain.label", "plain.probability")
    check_by_oracle(rows, other, "deep.label", "deep.probability")
    classify(both, source, tmp_path / "parquet", keep=("n",), output="parquet")
    found = [
        row for path in sorted((tmp_path / "parquet").glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert [row["deep.label"] for row in found] == [row["deep.label"] for row in rows]
    assert [row["n"] for row in found] == [str(n) for n in range(20)]


def test_a_text_without_tokens_is_put_aside_and_spoils_no_other(masked, tmp_path):
    masked.model.save_pretrained(tmp_path / "m")
    masked.tokenizer.save_pretrained(tmp_path / "m")
    PromptClassifier(str(tmp_path / "m"), "zero-shot").fit(X, Y).save(tmp_path / "p")
    (tmp_path / "a.txt").write_text("a good film\n\x01\x02\na bad film\n")
    found = classify(tmp_path / "p", tmp_path / "a.txt", tmp_path / "out", fields=())
    assert (found["classified"], found["quarantined"]) == (2, 1)
    assert found["reasons"] == {"no tokens": 1}


def test_template_dedupe_asks_once_for_each_template_and_audits_itself(prompt, tmp_path):
    folder, classifier = prompt
    source = write_jsonl(tmp_path / "a.jsonl", messages(200, distinct=10))
    found = classify(folder, source, tmp_path / "out", dedupe="template", audit=60)
    rows = rows_of(tmp_path / "out")
    by_template = {}
    for row in rows:
        by_template.setdefault(text_at(row).rsplit(" ", 1)[0], set()).add((row["label"], row["probability"]))
    assert len(by_template) == 10
    assert {len(answers) for answers in by_template.values()} == {1}  # also across shards
    audit = found["agreement"]["template"]
    assert audit["rows"] >= 40
    assert found["computed"] == 10 + audit["rows"]
    truth = classifier.predict([text_at(row) for row in rows])
    share = np.mean([row["label"] == label for row, label in zip(rows, truth, strict=True)])
    low, high = audit["interval"]
    assert low <= share <= high


class Obedient:
    """Stands for what answers: a label by the text's first word, so that a student can learn it."""

    @staticmethod
    def answers(texts):
        found = AnswerBatch.empty(len(texts), 1)
        found.labels[:, 0] = [int(text.split()[0] in ("good", "great", "love", "joy")) for text in texts]
        return found


def test_a_student_keeps_its_word_on_texts_it_has_not_seen_and_is_not_used_where_it_cannot(tmp_path):
    words = "good great love joy bad awful bore dull".split() * 500
    texts = [f"{word} {rest}" for word, rest in zip(words, messages(2400), strict=False)]
    fitted = fit_student(texts, Obedient.answers(texts), ["p"], 0.99, is_masked=True)
    assert fitted.document["used"]
    fitted.student.save(tmp_path / "student")
    student = Student.load(tmp_path / "student")
    new = [f"{word} {rest}" for word, rest in zip(words, messages(2000, seed=5), strict=False)]
    sure, answers = student.answers(new)
    truth = Obedient.answers(new).labels[sure, 0]
    assert sure.mean() > 0.4
    assert (answers.labels[:, 0] == truth).mean() >= 0.985  # 0.99, but for the chance of a sample
    chance = np.random.default_rng(0)
    noise = AnswerBatch.empty(len(texts), 1)
    noise.labels[:, 0] = chance.integers(2, size=len(texts))
    refused = fit_student(texts, noise, ["p"], 0.99, is_masked=True)
    assert refused.student is None
    assert "agree" in refused.document["why"]
    assert fit_student(texts[:50], noise.at(np.arange(50)), ["p"], 0.99, is_masked=True).student is None


def test_the_cascade_answers_by_the_student_is_audited_and_falls_back_when_it_drifts(prompt, tmp_path, monkeypatch):
    folder, _ = prompt
    source = write_jsonl(tmp_path / "a.jsonl", messages(400))
    asked = {"cascade": True, "agreement": 0.6, "sample": 120, "audit": 150}

    class Stubborn(Student):
        """Answers all alike, whatever it was fitted on."""

        wrong = 0

        def answers(self, texts):
            found = AnswerBatch.empty(len(texts), 1)
            found.labels[:, 0], found.makers[:], found.probabilities[:] = self.wrong, STUDENT, 1.0
            return np.ones(len(texts), bool), found

    def learned(texts, answers, *rest):
        from cuecraft.serving.bulk.student import Fitted

        share = (answers.labels[:, 0] == 1).mean()
        Stubborn.wrong = int(share < 0.5)  # what the backbone seldom says
        student = Student(np.ones(2), [], is_masked=False)
        return Fitted(student, {"used": True, "sample": len(texts)})

    monkeypatch.setattr("cuecraft.serving.bulk.making.fit_student", learned)
    monkeypatch.setattr("cuecraft.serving.bulk.making.Student", Stubborn)
    found = classify(folder, source, tmp_path / "out", **asked)
    assert found["cascade"]["fell_back"]
    audit = found["agreement"]["cascade"]
    assert audit["interval"][1] < 1
    manifests = [json.loads(path.read_text()) for path in sorted((tmp_path / "out" / "shards").glob("*"))]
    taught = [own["taught"] for own in manifests]
    assert taught[0] > 0
    assert taught[-1] == 0  # the backbone answers from there on
    assert found["classified"] == 400


def test_drift_is_not_found_where_the_promise_is_kept():
    chance = np.random.default_rng(0)
    kept = sum(_drifts(chance, 0.99) for _ in range(100))
    broken = sum(_drifts(chance, 0.9) for _ in range(100))
    assert kept <= 5
    assert broken == 100


def _drifts(chance, share):
    watch = Drift(0.99)
    for _ in range(60):
        watch.note((chance.random(8) < share).tolist())
    return watch.is_drifting


def test_intervals_are_those_of_clopper_and_pearson():
    assert interval(0, 0) == (0.0, 1.0)
    assert interval(10, 10) == (pytest.approx(0.025 ** (1 / 10)), 1.0)
    assert lower_bound(299, 299) == pytest.approx(0.05 ** (1 / 299))
    assert needed(0.99, 0) == 299
    assert lower_bound(needed(0.99, 1) - 1, needed(0.99, 1)) >= 0.99


def test_the_table_finds_what_it_was_given_and_drops_the_oldest_shard_first():
    chance = np.random.default_rng(0)
    table, known = AnswerTable(250, 1), {}
    for shard in range(10):
        keys = chance.integers(0, 2**63, (60, 2)).astype(np.uint64)
        answers = AnswerBatch.empty(60, 1)
        answers.labels[:, 0] = chance.integers(0, 5, 60)
        answers.makers[:] = np.arange(60) % 2
        dropped = table.add(f"s{shard}", keys, answers)
        known[f"s{shard}"] = (keys, answers)
        assert dropped == ([f"s{shard - 4}"] if shard >= 4 else [])
        assert len(table) <= 250
    for shard, (keys, answers) in known.items():
        found, own = table.find(keys)
        assert found.all() == (shard in ("s6", "s7", "s8", "s9"))
        assert found.any() == found.all()
        if found.all():
            assert (own.labels == answers.labels).all()
    table.drop(STUDENT)
    found, own = table.find(known["s9"][0])
    assert found.tolist() == [n % 2 == MODEL for n in range(60)]


def test_a_bounded_cache_changes_what_is_computed_and_no_label(prompt, tmp_path):
    folder, classifier = prompt
    source = write_jsonl(tmp_path / "a.jsonl", messages(200, distinct=8))
    found = classify(folder, source, tmp_path / "out", cache_answers=5)
    assert found["computed"] > len({text_at(row) for row in rows_of(tmp_path / "out")})
    check_by_oracle(rows_of(tmp_path / "out")[::10], classifier)


def test_max_bad_stops_a_job_that_feeds_on_the_wrong_file(prompt, tmp_path):
    folder, _ = prompt
    source = write_jsonl(tmp_path / "a.jsonl", messages(100), broken=10)
    assert classify(folder, source, tmp_path / "fine", max_bad=0.1)["quarantined"] == 10
    with pytest.raises(BulkError, match=r"10 of 100 rows are bad \(broken JSON: 10\)"):
        classify(folder, source, tmp_path / "out", max_bad=0.05)
    assert rows_of(tmp_path / "out")
    long = write_jsonl(tmp_path / "b.jsonl", messages(4000, distinct=3), broken=4)
    with pytest.raises(BulkError, match="are bad"):
        classify(folder, long, tmp_path / "early", max_bad=0.05)
    assert len(rows_of(tmp_path / "early")) < 1500  # long before its end


def test_a_full_disk_keeps_what_is_finished_and_the_job_goes_on(prompt, tmp_path, monkeypatch):
    folder, _ = prompt
    source = write_jsonl(tmp_path / "a.jsonl", messages(150))
    classify(folder, source, tmp_path / "whole")
    plain, left = cuecraft.core.storage._sync, [40]

    def full(path):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(path)

    monkeypatch.setattr(cuecraft.core.storage, "_sync", full)
    with pytest.raises(BulkError, match=r"cannot be written \(No space left on device\); what is finished is kept"):
        classify(folder, source, tmp_path / "out")
    monkeypatch.setattr(cuecraft.core.storage, "_sync", plain)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "shards").iterdir()}
    assert 0 < len(kept) < 6
    assert not list(tmp_path.glob("out/**/.*.tmp"))
    classify(folder, source, tmp_path / "out", resume=True)
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "whole")
    for name, written in kept.items():
        assert (tmp_path / "out" / "shards" / name).stat().st_mtime_ns == written


def test_stdin_is_classified_as_a_file_is(prompt, tmp_path, monkeypatch):
    folder, _ = prompt
    source = write_jsonl(tmp_path / "a.jsonl", messages(60), broken=20)
    classify(folder, source, tmp_path / "file")
    for resume in (False, True):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(source.read_bytes())))
        found = classify(folder, "-", tmp_path / "out", resume=resume)
    assert (found["read"], found["quarantined"]) == (60, 3)
    expected, rows = rows_of(tmp_path / "file"), rows_of(tmp_path / "out")
    for row, own in zip(rows, expected, strict=True):
        assert (row["id"].rpartition(":")[2], row["label"]) == (own["id"].rpartition(":")[2], own["label"])
        # In batches of their own, whose last bits differ where the CPU has AVX-512; six places are written.
        assert row["probability"] == pytest.approx(own["probability"], abs=2.1e-6)
        assert row.keys() == own.keys() == {"id", "label", "probability", "truncated"}


def test_mistakes_are_told_in_one_line_and_nothing_is_written(run, prompt, byte_tokenizer, tmp_path):
    folder, _ = prompt
    source = write_jsonl(tmp_path / "a.jsonl", messages(5))
    (tmp_path / "plain.txt").write_text("one\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("keep me")
    (tmp_path / "empty").mkdir()
    other = tmp_path / "gpt2"
    make_causal(byte_tokenizer, "gpt2").save_pretrained(other)
    byte_tokenizer.save_pretrained(other)
    cases = {
        "no argument is the folder of an artifact": [source],
        "there is nothing to classify": [folder],
        "no such file or folder": [folder, tmp_path / "absent.jsonl"],
        "no file here has a known ending": [folder, tmp_path / "empty"],
        "none of 5 rows could be classified (missing field: 5)": [folder, source, "--field", "absent"],
        "exists and is no job of classify": [folder, source, "--out", tmp_path / "other"],
        "use the same weights and tokenizer": [folder, source, "--field", "message", "--model", other],
        "'1x%' is no share": [folder, source, "--max-bad", "1x%"],
        "--field and --template were both given": [folder, source, "--field", "a", "--template", "{a}"],
        "were asked for, and lines of text have none": [folder, source, "--format", "text", "--template", "{a}"],
        "-: what can be read once stands alone": [folder, source, "-"],
        "two columns would be called 'a'": [folder, source, "--keep", "a", "--keep", "a"],
        "two columns would be called 'input.id'": [folder, source, "--keep", "id", "--keep", "input.id"],
        "is not UTF-8, and the answers are": [folder, source, "--keep", "caf\udce9"],
        "cannot be read (File name too long)": [folder, "a long text, not a file " * 20],
        "option 'agreement'": [folder, source, "--agreement", "2"],
        "has no option 'nonsense'": [folder, source, "--option", "nonsense=1"],
    }
    for told, arguments in cases.items():
        out = ["--out", tmp_path / "out"] if "--out" not in arguments else []
        small = [part for name, value in SMALL.items() for part in ("--option", f"{name}={value}")]
        code, printed, err = run("classify", *arguments, *out, *small)
        assert (code, printed) == (2, ""), told
        assert told in err.replace("\n", " "), err
        assert "Traceback" not in err
        if "none of" not in told:
            assert not (tmp_path / "out").exists(), told
        else:
            shutil.rmtree(tmp_path / "out")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["mine.txt"]


def test_the_folder_of_another_job_is_refused(prompt, causal_folder, tmp_path):
    folder, _ = prompt
    source = write_jsonl(tmp_path / "a.jsonl", messages(10))
    classify(folder, source, tmp_path / "out")
    with pytest.raises(BulkError, match="holds a job already; resume= goes on with it"):
        classify(folder, source, tmp_path / "out")
    with pytest.raises(BulkError, match=r"holds another job .*dedupe was 'exact', and is 'template'"):
        classify(folder, source, tmp_path / "out", resume=True, dedupe="template")
    write_jsonl(source, messages(11))
    with pytest.raises(BulkError, match=r"a\.jsonl has changed since"):
        classify(folder, source, tmp_path / "out", resume=True)
    artifact(causal_folder, tmp_path / "deep", "deep-cue", epochs=1)
    with pytest.raises(BulkError, match="holds another job"):
        classify(tmp_path / "deep", source, tmp_path / "out", resume=True)


def test_json_has_the_sums(run, prompt, tmp_path):
    folder, _ = prompt
    write_jsonl(tmp_path / "a.jsonl", messages(30), broken=10)
    flags = ["--field", "message", "--option", "readers=0", "--out", "out"]
    code, printed, _ = run("classify", "a.jsonl", f"mine={folder}", *flags, "--json")
    document = json.loads(printed)
    assert code == 0
    assert document["read"] == document["classified"] + document["quarantined"] == 30
    code, printed, _ = run("classify", "a.jsonl", f"mine={folder}", *flags, "--resume")
    assert "30 read = 27 classified + 3 quarantined" in printed
