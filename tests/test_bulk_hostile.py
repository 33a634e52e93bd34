"""Inputs, folders and disks that are not as they should be: what is read stays right, or one line says why not."""

import csv
import gzip
import io
import json
import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bulk import artifact, classify, messages, rows_of, write_jsonl
from conftest import examples
from cuecraft.core.errors import BulkError, DataError
from cuecraft.data import files as formats
from cuecraft.serving.bulk import making as preparing
from cuecraft.serving.bulk.blocks import SHRUNK, blocks_of
from cuecraft.serving.bulk.rows import rows_of as rows_in
from cuecraft.serving.bulk.sources import Format, find_sources
from cuecraft.serving.bulk.student import fit_student
from cuecraft.serving.bulk.table import AnswerBatch
from cuecraft.serving.bulk.texts import masked
from test_bulk_reading import NOWHERE, read, wanted


@pytest.fixture(scope="module")
def prompt(causal_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts") / "plain"
    artifact(causal_folder, folder)
    return folder


def find(*words, forced=None, is_structured=True, out=NOWHERE):
    return find_sources([str(word) for word in words], forced, is_structured, Path(out))


CELLS = st.text('ab",\n 5x', max_size=6)


@examples(200)
@given(st.lists(st.tuples(CELLS, CELLS, st.booleans()), min_size=1, max_size=12), st.integers(1, 60))
def test_csv_gives_the_rows_of_the_standard_library_in_blocks_of_any_size(tmp_path_factory, cells, size):
    # A mark within a cell that is not in marks is a letter: 5" is a length.
    def written(text, is_bare):
        bare = is_bare and not set(text) & set(",\n") and not text.startswith('"')
        return text if bare else '"' + text.replace('"', '""') + '"'

    data = "n,message\n" + "".join(f"{written(a, bare)},{written('m' + b, bare)}\n" for a, b, bare in cells)
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_text(data, newline="")
    plain = list(csv.reader(io.StringIO(data, newline=""), strict=True))[1:]
    texts, bad = read(path, wanted(), size)
    assert [text for _, text in texts] == [message for _, message in plain]
    assert bad == []


@pytest.mark.parametrize("size", [40, 3000, 1 << 20])
def test_a_csv_row_that_is_too_long_is_one_bad_row_whatever_is_in_it(tmp_path, size):
    inside = "".join(f"x,evil {n}\n" for n in range(600))
    rows = ["1,one", f'2,"{inside}"', '3,5" disk', "4," + "y" * 3000, f'5,"a ""quoted""\n{"z" * 2000}\nend"', "6,six"]
    data = "id,message\n" + "\n".join(rows) + "\n"
    path = tmp_path / "a.csv"
    path.write_text(data)
    texts, bad = read(path, wanted(), size)
    if size > 40:  # below, a block ends within the long row, and what is open at its end is cut there
        assert [text for _, text in texts] == ["one", '5" disk', "six"]
        assert bad == [(data.index(rows[n]), "too long") for n in (1, 3, 4)]
    places = [place for place, _ in texts + bad]
    assert len(places) == len(set(places))


@pytest.mark.parametrize("packing", ["", ".gz"])
@pytest.mark.parametrize("size", [40, 300, 1 << 20])
@pytest.mark.parametrize("mark", ["", '"'])
def test_a_quotation_mark_that_is_never_closed_costs_its_line_alone(tmp_path, monkeypatch, mark, size, packing):
    monkeypatch.setattr(formats, "_PLAIN", 50)  # so that a block has to be cut while the mark is open
    rows = [f"{mark}row {n}{mark},c" for n in range(200)]
    data = "message,n\n" + "\n".join([*rows[:4], '"oops,c', *rows[4:], '"a\nb",c', '"a "b"",c', "x,c"]) + "\n"
    path = tmp_path / f"a.csv{packing}"
    path.write_bytes(gzip.compress(data.encode(), mtime=0) if packing else data.encode())
    texts, bad = read(path, wanted(longest=100), size)
    assert [text for _, text in texts] == [f"row {n}" for n in range(200)] + ["a\nb", "x"]
    assert [place for place, _ in bad] == [data.index('"oops'), data.index('"a "b"')]
    assert all(reason.startswith("broken CSV") for _, reason in bad)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.csv", b"PK\x03\x04" + bytes(40), "ZIP"),
        ("a.jsonl", '{"message": "x"}\n'.encode("utf-16"), "UTF-16"),
        ("a.txt", "x\n".encode("utf-32"), "UTF-32"),
        ("a.csv", gzip.compress(b"message\nx\n", mtime=0), "packed by gzip"),
        ("a.tsv", b"BZh91AY&SY", "packed by bzip2"),
        ("a.jsonl", b"PAR1\x15\x04", "Parquet"),
        ("a.csv.gz", gzip.compress("message\nx\n".encode("utf-16"), mtime=0), "UTF-16"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer; .*git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer; .*git lfs pull"),
    ],
)
def test_a_file_that_is_none_of_its_kind_is_refused_before_anything_is_written(prompt, tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BulkError, match=rf"{name}: not .*it is .*{kind}"):
        classify(prompt, tmp_path / name, tmp_path / "out", fields=() if name == "a.txt" else ("message",))
    assert not (tmp_path / "out").exists()


def test_names_of_columns_that_are_broken_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    for names in ('"message,n', '"message"x,n', "mess\0age,n"):
        path.write_text(f"{names}\na,1\nb,2\n")
        with pytest.raises(BulkError, match=r"a\.csv.*(broken CSV|NUL)"):
            read(path, wanted())


def test_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\n\nmessage,,,message\na,,,b\n")
    with pytest.raises(BulkError, match="two columns are called 'message'"):
        read(path, wanted())
    path.write_text("\n\nmessage,other,other\na,,b\n")
    with pytest.raises(BulkError, match="two columns are called 'other'"):
        read(path, wanted())
    path.write_text("\n\nmessage,,\na,,\n")
    assert [text for _, text in read(path, wanted())[0]] == ["a"]


def test_columns_of_parquet_of_one_name_are_refused(tmp_path):
    arrays = [pa.array([value]) for value in ("a", "b", "c")]
    for names in (["message", "n", "message"], ["message", "n", "n"]):
        pq.write_table(pa.table(arrays, names=names), tmp_path / "a.parquet")
        with pytest.raises(BulkError, match=f"two columns are called '{names[2]}'"):
            read(tmp_path / "a.parquet", wanted())


KEYS = st.sampled_from(['"a"', '"message"', '"\\u0061"', '"b":', '"b" :', '"m\\"": '])
JSON_VALUES = st.sampled_from(['"x"', "1", '{"a": 1, "a": 2}', '"x\\": y"', '[{"message": "z"}]', '"a : b"', "null"])


@examples(200)
@given(st.lists(st.tuples(KEYS, st.sampled_from([":", " :", ": ", "\t: "]), JSON_VALUES), max_size=5))
def test_an_object_that_names_a_field_twice_is_a_bad_row_however_it_is_written(tmp_path_factory, items):
    items = [('"message"', ":", '"text"'), *items]
    line = "{" + ", ".join(f"{key.rstrip(': ')}{colon}{value}" for key, colon, value in items) + "}"
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    path.write_text(line + "\n")
    names = [json.loads(key.rstrip(": ")) for key, _, _ in items]
    twice = [name for name in names if names.count(name) > 1]
    _, bad = read(path, wanted())
    assert bad == ([(0, f"two fields of the name {twice[0]!r}")] if twice else [])


def test_columns_of_one_name_are_told_before_anything_is_written(prompt, tmp_path):
    (tmp_path / "a.csv").write_text("message,n\na,1\n")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"message,n,n\na,1,2\n", mtime=0))
    with pytest.raises(BulkError, match=r"b\.csv\.gz: two columns are called 'n'"):
        classify(prompt, [tmp_path / "a.csv", tmp_path / "b.csv.gz"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [7, 1 << 20])
def test_a_delimiter_is_for_csv_and_tsv(tmp_path, size):
    path = tmp_path / "a.csv"
    path.write_text('n;message\n1;"a; b"\n2;c, d\n')
    (source,) = find_sources([str(path)], None, True, tmp_path / "out", ";")
    texts = [text for block in blocks_of(source, size, 1000, ("message",)) for text in rows_in(block, wanted()).texts]
    assert texts == ["a; b", "c, d"]


def test_a_field_that_no_template_names_may_hold_anything(prompt, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good", "n": 1}\n{"text": "bad", "n": null}\n{"text": "dull"}\n{"n": "x"}\n')
    found = classify(prompt, path, tmp_path / "out", fields=("text", "n"))
    assert (found["classified"], found["reasons"]) == (3, {"missing field": 1})


def test_an_address_is_no_input(tmp_path):
    with pytest.raises(DataError, match="is an address"):
        find("https://a.org/b.jsonl")


def test_what_would_be_text_is_json_where_fields_are_asked_for(tmp_path):
    for name in ("app.log", "app.log.1", "b.txt.gz", "c.csv"):
        (tmp_path / name).write_bytes(b"")
    found = {Path(own.path).name: own.format for own in find(tmp_path / "*")}
    assert found == dict.fromkeys(("app.log", "app.log.1", "b.txt.gz"), Format.JSONL) | {"c.csv": Format.CSV}
    (source,) = find(tmp_path / "app.log", is_structured=False)
    assert source.format is Format.TEXT


def test_a_file_is_one_input_however_often_it_is_named_and_the_jobs_own_files_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Path("in/a.jsonl").write_text('{"message": "a"}\n')
    Path("link.jsonl").symlink_to("in/a.jsonl")
    Path("in/out/shards").mkdir(parents=True)
    Path("in/out/shards/part.json").write_text("{}")
    found = find("in", "./in/a.jsonl", "link.jsonl", "in/**/*.json*", out="in/out")
    assert [own.path for own in found] == ["in/a.jsonl"]


def test_a_pipe_is_read_once_to_its_end(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    data = b"".join(b'{"message": "text %d"}\n' % n for n in range(500))
    writer = threading.Thread(target=lambda: path.write_bytes(data))
    (source,) = find(path)
    assert source.is_stream
    writer.start()
    texts, bad = read(path, wanted(), 1000)
    writer.join()
    assert ([text for _, text in texts], bad) == ([f"text {n}" for n in range(500)], [])
    with pytest.raises(BulkError, match="stands alone"):
        find(path, __file__)
    with pytest.raises(BulkError, match="Parquet is read from its end"):
        find(path, forced=Format.PARQUET)


def test_a_file_that_has_become_shorter_is_told(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"message": "a text"}\n' * 100)
    (source,) = find(path)
    blocks = list(blocks_of(source, 500, 1000, ()))
    os.truncate(path, 710)
    pieces = [block.loaded(1000) for block in blocks]
    assert sum(piece.content.count(b"\n") for piece in pieces) == 710 // 22
    assert {bad.reason for piece in pieces for bad in piece.bad} == {SHRUNK}
    assert source.has_changed()


@pytest.mark.parametrize("unit", ["ab-", "a:1:", "a.", "a@", "1.", "aaaa:", "/a-", "_", "a1.b@", "x+"])
def test_a_long_word_is_masked_in_time_that_grows_with_its_length(unit):
    # The patterns once took seconds for 30,000 characters and a hundred times that for ten times as many.
    word = unit * (300_000 // len(unit))
    done = threading.Event()

    def mask():
        masked(word)
        done.set()

    threading.Thread(target=mask, daemon=True).start()
    assert done.wait(60)


def test_parquet_values_that_python_has_not_and_long_ones_are_bad_rows(tmp_path):
    path = tmp_path / "a.parquet"
    days = pa.array([0, 10**8, 1], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"message": ["a", "b", "c" * 2000], "day": days}), path)
    texts, bad = read(path, wanted(keep=("day",)))
    assert (texts, bad) == ([(0, "a")], [(1, "value out of range"), (2, "too long")])


def test_blocks_of_parquet_are_small_where_rows_are_large(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"message": [f"{n} " + os.urandom(5000).hex() for n in range(40)]}), path)
    (source,) = find(path)
    blocks = list(blocks_of(source, 50_000, 100_000, ("message",)))
    assert len(blocks) >= 8


def test_a_sample_opens_few_of_many_files_and_holds_one_block_at_a_time(tmp_path, prompt, monkeypatch):
    for number in range(40):
        (tmp_path / f"{number:02d}.jsonl.gz").write_bytes(
            gzip.compress("".join(json.dumps({"message": own}) + "\n" for own in messages(5, seed=number)).encode())
        )
    opened = []
    plain = preparing.blocks_of

    def counted(source, *rest):
        opened.append(source.path)
        return plain(source, *rest)

    monkeypatch.setattr(preparing, "blocks_of", counted)
    found = classify(prompt, tmp_path, tmp_path / "out", cascade=True, sample=600)
    assert found["read"] == 200
    assert len(opened) == 16
    assert opened[0].endswith("00.jsonl.gz")
    assert opened[-1].endswith("39.jsonl.gz")


def test_texts_of_one_score_are_let_in_together():
    # The student gives all texts the same probability, as all that it was fitted on have one label.
    texts = [f"word{n} x" for n in range(1500)]
    answers = AnswerBatch.empty(1500, 1)
    answers.labels[:, 0] = 0
    from cuecraft.serving.bulk.reading import text_number
    from cuecraft.serving.bulk.student import _HELD_OUT

    out = np.array([text_number(text) // 8 % _HELD_OUT[1] < _HELD_OUT[0] for text in texts])
    rare = np.flatnonzero(out)[-12:]  # among the last of those that calibrate: 2% of them
    answers.labels[rare, 0] = 1
    fitted = fit_student(texts, answers, ["p"], 0.99, is_masked=False)
    assert fitted.student is None
    assert f"of the {int(out.sum())} texts" in fitted.document["why"]


def test_a_disk_without_room_is_an_os_error():
    with pytest.raises(OSError, match="No space left"):
        AnswerBatch.empty(3, 1).save(Path("/dev/full"), np.zeros((3, 2), np.uint64))


def test_what_is_damaged_is_made_again_or_named(prompt, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", messages(150), broken=20)
    classify(prompt, source, tmp_path / "whole", cascade=True, sample=60)
    out = tmp_path / "out"
    with pytest.raises(BulkError):  # so that the state stays
        classify(prompt, source, out, cascade=True, sample=60, max_bad=0.001)
    manifest = sorted((out / "shards").iterdir())[-1]
    name = manifest.stem.removeprefix("part-")
    manifest.unlink()
    (out / "state" / f"{name}.000000.window").write_bytes(b"junk")
    classify(prompt, source, out, cascade=True, sample=60, resume=True)
    assert rows_of(out) == rows_of(tmp_path / "whole")
    aside = next((out / "quarantine").iterdir())
    text = aside.read_bytes()
    aside.unlink()
    with pytest.raises(BulkError, match=r"is not as it was written; remove .* and go on with resume="):
        classify(prompt, source, out, cascade=True, sample=60, resume=True)
    aside.write_bytes(text)
    told = out / "state" / "student.json"
    told.write_text("{")
    with pytest.raises(BulkError, match=r"student.json: is damaged"):
        classify(prompt, source, out, cascade=True, sample=60, resume=True)


def test_a_job_broken_off_before_its_folders_were_there_goes_on(prompt, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", messages(30))
    whole = classify(prompt, source, tmp_path / "whole")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "job.json").write_bytes((tmp_path / "whole" / "job.json").read_bytes())
    assert classify(prompt, source, tmp_path / "out", resume=True)["classified"] == whole["classified"]
    with pytest.raises(BulkError, match="dtype was 'auto', and is 'float16'"):
        classify(prompt, source, tmp_path / "out", resume=True, dtype="float16")


def test_a_name_that_is_not_unicode_is_a_name(prompt, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl")
    Path(path).write_text("".join(json.dumps({"message": own}) + "\n" for own in messages(10)))
    assert classify(prompt, path, tmp_path / "out")["classified"] == 10
