"""Files in: every row of every format is a text, or told with its place and reason, whatever the bytes and blocks."""

import gzip
import io
import json
import random
import resource
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from conftest import examples
from cuecraft.core.errors import BulkError
from cuecraft.serving.bulk.blocks import blocks_of
from cuecraft.serving.bulk.reading import read_block
from cuecraft.serving.bulk.rows import rows_of
from cuecraft.serving.bulk.sources import Format, find_sources
from cuecraft.serving.bulk.texts import Wanted, masked, parsed_template

NOWHERE = Path("/nowhere/out")
PACK = {"": lambda data: data, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def wanted(columns=("message",), **others):
    own = {"pieces": (), "keep": (), "longest": 1000, "is_masked": False, "is_joined": True, "candidates": 0}
    return Wanted(columns, **own | others)


def read(path, asked, size=1 << 20, forced=None):
    """Return the texts by offset, and what is bad as (offset, reason), of a file read in blocks of a size."""
    (source,) = find_sources([str(path)], forced, bool(asked.columns), NOWHERE)
    texts, bad = [], []
    for block in blocks_of(source, size, asked.longest, (*asked.columns, *asked.keep)):
        rows = rows_of(block, asked)
        texts += zip(rows.offsets, rows.texts, strict=True)
        bad += [(row.offset, row.reason) for row in rows.bad]
    return texts, sorted(bad)


def lines_of(data):
    """Return the lines that are not blank, by offset: the plain way."""
    offset, found = 0, []
    for line in data.split(b"\n"):
        if line.strip():
            found.append((offset, line))
        offset += len(line) + 1
    return found


LINES = [
    b'{"message": "one"}',
    b'{"message": "two", "level": "x"}',
    b"",
    b"{broken",
    b'{"level": "x"}',
    b'{"message": 3}',
    b'{"message": null}',
    b'{"message": "  "}',
    b'{"message": "nul \\u0000 in it"}',
    b'{"message": "\xff\xfe"}',
    b'{"message": "a\0b"}',
    b'["message"]',
    b'{"message": "' + b"x" * 2000 + b'"}',
    b'{"message": "\\ud800"}',
    '{"message": "đủ dấu"}\r'.encode(),
]
EXPECTED = [
    "broken JSON", "missing field", "not text", "missing field", "empty", "NUL", "invalid UTF-8", "NUL",
    "not an object", "too long", "broken JSON",
]  # fmt: skip


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("size", [1, 7, 64, 300, 1 << 20])
def test_every_kind_of_bad_line_is_told_with_its_place_in_blocks_of_any_size(tmp_path, size, packing):
    data = b"\n".join(LINES)
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(PACK[packing](data))
    texts, bad = read(path, wanted(), size)
    places = [offset for offset, line in lines_of(data)]
    good = [places[0], places[1], places[-1]]
    assert texts == list(zip(good, ["one", "two", "đủ dấu"], strict=True))
    assert bad == list(zip([place for place in places if place not in good], EXPECTED, strict=True))


@examples(150)
@given(
    st.lists(st.one_of(st.sampled_from(LINES), st.binary(max_size=60)), max_size=30),
    st.integers(1, 200),
    st.sampled_from([".jsonl", ".txt", ".csv", ".tsv"]),
    st.sampled_from(list(PACK)),
    st.integers(20, 3000),
)
def test_of_any_bytes_each_row_is_read_or_bad_once(tmp_path_factory, lines, size, kind, packing, longest):
    data = b"\n".join([b"message,n"[: 9 * (kind == ".csv")] or b"message", *lines])
    path = tmp_path_factory.mktemp("soup") / f"a{kind}{packing}"
    path.write_bytes(PACK[packing](data))
    asked = wanted(() if kind == ".txt" else ("message",), longest=longest)
    texts, bad = read(path, asked, size)
    places = [offset for offset, _ in texts] + [offset for offset, _ in bad]
    if kind in (".jsonl", ".txt"):
        assert sorted(places) == [offset for offset, _ in lines_of(data)]
        assert (texts, bad) == read(path, asked)
    # What a stray quotation mark does to a CSV file depends on the file, but nothing is read twice.
    assert len(places) == len(set(places))


@examples(80)
@given(st.binary(max_size=400), st.sampled_from([".gz", ".zst", ".parquet"]), st.integers(1, 100))
def test_bytes_that_are_no_archive_are_one_bad_row(tmp_path_factory, data, ending, size):
    path = tmp_path_factory.mktemp("soup") / f"a.jsonl{ending}"
    path.write_bytes(data)
    texts, bad = read(path, wanted(), size)
    assert not texts
    assert len(bad) <= 1
    assert data == b"" or bad or ending == ".gz"


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_file_cut_off_keeps_what_is_whole_and_tells_where_it_ends(tmp_path, ending, cut):
    chance = random.Random(0)
    data = b"".join(b'{"message": "text %x"}\n' % chance.getrandbits(160) for _ in range(9000))
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(PACK[ending](data)[:-cut])
    texts, bad = read(path, wanted(), 5000)
    assert [reason for _, reason in bad] == [f"truncated {'gzip' if ending == '.gz' else 'zstd'}"]
    assert texts == [(offset, json.loads(line)["message"]) for offset, line in lines_of(data)][: len(texts)]
    assert bad[0][0] >= max(offset for offset, _ in texts)
    assert len(texts) > 5000


def test_joined_archives_are_one_stream(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one\ntw") + gzip.compress(b"o\nthree\n") + b"\0" * 10)
    assert [text for _, text in read(path, wanted(()))[0]] == ["one", "two", "three"]


def test_csv_rows_may_have_newlines_and_keep_their_place(tmp_path):
    data = '\ufeffid,message\n1,"two\nlines, one row"\n2,short\n3\n4,"say ""hi"""\n5,\n'.encode()
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    for size in (1, 20, 1000):
        texts, bad = read(path, wanted(), size)
        assert [text for _, text in texts] == ["two\nlines, one row", "short", 'say "hi"']
        assert [data[offset : offset + 2] for offset, _ in texts] == [b"1,", b"2,", b"4,"]
        assert bad == [(data.index(b"3\n4"), "wrong number of columns"), (data.index(b"5,"), "empty")]


def test_parquet_rows_are_told_by_number(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"message": ["a", None, "", "b"], "n": [1, 2, 3, 4]})
    pq.write_table(table, path)
    for size in (1, 300, 1 << 20):
        texts, bad = read(path, wanted(), size)
        assert texts == [(0, "a"), (3, "b")]
        assert bad == [(1, "missing field"), (2, "empty")]
        assert read(path, wanted(("n",)), size)[1] == [(row, "not text") for row in range(4)]
        assert read(path, wanted(("absent",)), size)[1] == [(row, "missing field") for row in range(4)]


def test_stdin_is_jsonl_where_fields_are_asked_for_and_text_elsewhere(monkeypatch):
    assert find_sources(["-"], None, is_structured=True, out=NOWHERE)[0].format is Format.JSONL
    (source,) = find_sources(["-"], None, is_structured=False, out=NOWHERE)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n\ntwo")))
    (block,) = blocks_of(source, 1000, 1000, ())
    assert rows_of(block, wanted(())).texts == ["one", "two"]


def test_folders_and_globs_give_files_in_order_once(tmp_path):
    for name in ("b.jsonl", "a.log.gz", "deep/c.csv", "picture.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    found = find_sources([str(tmp_path), str(tmp_path / "*.jsonl")], None, is_structured=True, out=NOWHERE)
    assert [source.path for source in found] == [str(tmp_path / name) for name in ("a.log.gz", "b.jsonl", "deep/c.csv")]
    for word, told in (("nothing*.jsonl", "no glob that matches"), ("absent.csv", "no such file")):
        with pytest.raises(BulkError, match=told):
            find_sources([str(tmp_path / word)], None, is_structured=True, out=NOWHERE)


def test_a_template_puts_fields_together_numbers_too(tmp_path):
    columns, pieces = parsed_template("[{level}] {status}: {message}")
    path = tmp_path / "a.jsonl"
    rows = [
        {"level": "INFO", "status": 200, "message": "ok"},
        {"level": "INFO", "message": "none"},
        {"level": "x", "status": True, "message": "y"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts, bad = read(path, wanted(columns, pieces=pieces))
    assert [text for _, text in texts] == ["[INFO] 200: ok"]
    assert [reason for _, reason in bad] == ["missing field", "not text"]
    for wrong in ("{", "no field", "{a!r}", "{0}"):
        with pytest.raises(BulkError, match="template"):
            parsed_template(wrong)


def test_a_line_of_50_mb_is_told_and_takes_no_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as handle:
        handle.write(b'{"message": "before"}\n{"message": "')
        for _ in range(50):
            handle.write(b"x" * 1_000_000)
        handle.write(b'"}\n{"message": "after"}\n')
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    asked = wanted(longest=100_000)
    read(path, asked, 200_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for own in (path, packed):
        texts, bad = read(own, asked, 200_000)
        assert [text for _, text in texts] == ["before", "after"]
        assert bad == [(22, "too long")]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("took 12 ms", "took 9999 ms"),
        ("from 10.0.0.1:80 to 2001:db8::1", "from 192.168.1.250:8080 to fe80::1:2"),
        ("id 7ed4d57b-c2ce-7311-78e5-612ea6cecc1b", "id 00000000-0000-0000-0000-000000000000"),
        ("at 2026-01-02T03:04:05.678Z", "at 1999-12-31T23:59:59Z"),
        ("at 2026-01-02 03:04:05,1", "at 1999-12-31 23:59:59,999"),
        ("open /var/lib/a.txt", "open /srv/x/y-1.2/z"),
        ("hash 0xdeadbeef 1f3a9c", "hash 0x1 99ab00ff12"),
        ("worker-3 up", "worker-12 up"),
        ("mail to a@b.org", "mail to c.d+e@f-g.com"),
        ("get https://a.org/x?y=1", "get http://b.com"),
        ("core.862", "core.77"),
    ],
)
def test_numbers_ids_addresses_paths_and_times_do_not_tell_templates_apart(one, other):
    assert masked(one) == masked(other)


@examples(200)
@given(st.lists(st.from_regex(r"[a-zA-Z,.:;()\[\]=_-]{1,12}", fullmatch=True), max_size=8), st.data())
def test_texts_that_differ_in_a_word_are_never_one(words, data):
    assert masked(" ".join(words)) == " ".join(words)
    if words:
        at = data.draw(st.integers(0, len(words) - 1))
        other = [*words[:at], words[at] + "ed", *words[at + 1 :]]
        assert masked(" ".join(other)) != masked(" ".join(words))


def test_a_block_tells_its_texts_once_and_draws_the_same_rows_each_time(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"message": f"took {n % 50} ms, {n % 3} times"}) + "\n" for n in range(600)))
    (source,) = find_sources([str(path)], None, is_structured=True, out=NOWHERE)
    (block,) = blocks_of(source, 1 << 20, 1000, ())
    exact = read_block(block, wanted(candidates=20))
    assert len(exact.texts) == 150
    assert [exact.texts[key] for key in exact.key_of[:3]] == [
        "took 0 ms, 0 times",
        "took 1 ms, 1 times",
        "took 2 ms, 2 times",
    ]
    joined = read_block(block, wanted(is_masked=True, candidates=20))
    assert joined.texts == ["took 0 ms, 0 times"]
    assert joined.candidates == exact.candidates
    assert len({row for row, _ in joined.candidates}) == 20
    apart = read_block(block, wanted(is_joined=False))
    assert len({tuple(key) for key in apart.keys.tolist()}) == 600
