"""Streams, names and files that the process cannot write or read: one line and exit code 2, and no answer is lost."""

import builtins
import errno
import io
import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from bulk import artifact, classify, rows_of, write_jsonl
from cuecraft.cli import display, streams
from cuecraft.serving.bulk.sources import Format, Packing, Source

TEXT = "a joy, naïve — 喜 \U0001f600"


@pytest.fixture(scope="module")
def prompt(causal_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts") / "plain"
    artifact(causal_folder, folder)
    return folder


def encoded(monkeypatch, encoding):
    """Have stdout write in an encoding; return its bytes."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    return raw


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_an_encoding_that_lacks_a_character_loses_no_answer(encoding, run, prompt, monkeypatch):
    raw = encoded(monkeypatch, encoding)
    code, _, err = run("predict", prompt, TEXT)
    assert (code, err.count("error")) == (0, 0)
    shown = raw.getvalue().decode(encoding)
    assert "a joy, na" in shown
    raw = encoded(monkeypatch, encoding)
    assert run("predict", prompt, TEXT, "--json")[0] == 0
    assert json.loads(raw.getvalue().decode(encoding))["predictions"][0]["text"] == TEXT


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_half_a_character_in_json_is_still_json(encoding, monkeypatch):
    document = {"folder": os.fsdecode(b"caf\xe9")}
    raw = encoded(monkeypatch, encoding)
    streams.open_streams()
    display.print_json(document)
    sys.stdout.flush()
    assert json.loads(raw.getvalue()) == document


def test_an_artifact_whose_name_is_no_utf8_is_one_line(run, prompt, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    os.symlink(prompt, tmp_path / name)
    code, _, err = run("predict", name, "good", "--json")
    assert (code, err.count("\n")) == (2, 1)
    assert "not valid UTF-8" in err


class Full(io.StringIO):
    """A stream on a full disk, or one whose reader is gone."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def flush(self):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("word", ["ls", "schema"])
def test_what_cannot_be_written_is_one_line(number, word, run, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Full(number))
    code, _, err = run("recipe", word)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: stdout: ")


@pytest.mark.parametrize("word", ["ls", "schema"])
def test_a_reader_that_left_ends_it_quietly(word, run, monkeypatch):
    monkeypatch.setattr(display.page, "quiet", False)  # rich changes it
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", open(writer, "w", encoding="utf-8"))  # noqa: SIM115
    assert run("recipe", word) == (1, "", "")


@pytest.mark.parametrize(
    ("stdin", "told"),
    [
        (None, "stdin: is closed"),
        (io.TextIOWrapper(io.BytesIO(b"good\n\xff\xfe bad\n"), encoding="utf-8"), "UTF-8"),
    ],
)
def test_stdin_that_cannot_be_read_is_one_line(stdin, told, run, prompt, monkeypatch):
    monkeypatch.setattr(sys, "stdin", stdin)
    code, out, err = run("predict", prompt)
    assert (code, out) == (2, "")
    assert told.lower() in err.lower()
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ELOOP])
@pytest.mark.parametrize(
    "words",
    [
        ("tune", "DATA"),
        ("tune", "DATA", "--vocab-from", "DATA"),
        ("predict", "PROMPT", "--file", "DATA"),
        ("classify", "PROMPT", "DATA", "--field", "message", "--out", "job"),
        ("show", "DATA"),
        ("run", "DATA"),
        ("recipe", "show", "DATA"),
        ("recipe", "check", "DATA"),
        ("compare", "--config", "DATA"),
        ("guard", "check", "--file", "DATA"),
        ("serve", "PROMPT", "--tokens", "DATA", "--open"),
        ("words", "DATA"),
    ],
)
def test_a_file_that_may_not_be_read_is_one_line(number, words, command, prompt, monkeypatch, tmp_path):
    """Simulated: for root there is no such file."""
    path = write_jsonl(tmp_path / "data.jsonl", ["good"])
    plain, plain_io, plain_os = builtins.open, io.open, os.open

    def refusing(real):
        def own(file, *rest, **named):
            if not isinstance(file, int) and os.fspath(file) == str(path):
                raise OSError(number, os.strerror(number), str(path))
            return real(file, *rest, **named)

        return own

    monkeypatch.setattr(builtins, "open", refusing(plain))
    monkeypatch.setattr(io, "open", refusing(plain_io))
    monkeypatch.setattr(os, "open", refusing(plain_os))
    code, _, err = command(*(str({"DATA": path, "PROMPT": prompt}.get(word, word)) for word in words))
    assert "Traceback" not in err
    if words[0] == "classify":  # the row of a file that cannot be read is put aside
        assert code in (0, 2)
    else:
        assert code == 2, err
        assert [line for line in err.splitlines() if line.startswith(("error:", "Error"))]


@pytest.mark.parametrize("word", ["tune", "words", "show", "run", "compare"])
def test_a_folder_in_the_place_of_a_file_is_one_line(word, command, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    code, _, err = command(word, tmp_path / "folder.csv")
    assert code == 2
    assert "Traceback" not in err


def test_names_that_are_no_utf8_stay_apart(prompt, tmp_path):
    names = [b"a\xff.jsonl", b"a\xfe.jsonl", rb"a\xff.jsonl", rb"a\\xff.jsonl", "é.jsonl".encode(), b"plain.jsonl"]
    (tmp_path / "in").mkdir()
    for name in names:
        write_jsonl(tmp_path / "in" / os.fsdecode(name), ["good", "bad"], broken=2)
    ids = {}
    for output in ("jsonl", "parquet"):
        out = tmp_path / os.fsdecode(b"job\xff-" + output.encode())
        document = classify(prompt, tmp_path / "in", out, output=output)
        assert (document["classified"], document["quarantined"]) == (6, 6)
        assert len({row["path"] for row in rows_of(out, "quarantine")}) == 6
        if output == "jsonl":
            ids[output] = [row["id"] for row in rows_of(out)]
        else:
            ids[output] = [
                i
                for part in sorted(out.glob("*.parquet"))
                for i in pq.read_table(io.BytesIO(part.read_bytes()))["id"].to_pylist()
            ]
    assert len(set(ids["jsonl"])) == 6
    assert sorted(ids["jsonl"]) == sorted(ids["parquet"])
    assert f"{tmp_path}/in/plain.jsonl:0" in ids["jsonl"]


def test_no_two_paths_are_shown_alike():
    pieces = [b"\xff", rb"\xff", b"\\", b"x", b"ff", rb"\x", "é".encode(), b"\xc3"]
    paths = {a + b + c for a in pieces for b in pieces for c in pieces}
    shown = {Source(0, os.fsdecode(path), Format.TEXT, Packing.NONE, 0, 0).shown for path in paths}
    assert len(shown) == len(paths)
    assert all(name.encode() for name in shown)


def in_shell(command):
    """Run a shell command in which `$CUECRAFT` is the command line; return exit code and stderr."""
    own = os.environ | {"CUECRAFT": f"{sys.executable} -m cuecraft"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=own, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("command", "expected", "told"),
    [
        ("$CUECRAFT recipe schema >&-", 2, "error: stdout: is closed"),
        ("$CUECRAFT recipe schema > /dev/full", 2, "error: stdout: no space left on device"),
        ("$CUECRAFT recipe schema | head -c 1 > /dev/null; exit ${PIPESTATUS[0]}", 1, ""),
        ("$CUECRAFT recipe show nowhere 2>&-", 2, ""),
    ],
)
@pytest.mark.slow
def test_streams_of_a_process(command, expected, told):
    code, err = in_shell(command)
    assert code in (expected, 0) if "head" in command else code == expected
    assert err.startswith(told)
    assert err.count("\n") == bool(told)
