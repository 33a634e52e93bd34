"""Results about large files that are kept: right while the files are, and made again when they change."""

import hashlib
import json
import os

import pytest

from cuecraft.backbone import load as loading
from cuecraft.backbone import load_backbone
from cuecraft.core import remembered
from cuecraft.core.remembered import keep, known_sha256, recall


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, for which every file is large."""
    monkeypatch.setenv("CUECRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "LARGE", 0)
    monkeypatch.setattr(remembered, "_SETTLED", -1.0)  # a test does not wait for two seconds
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch):
    """The files that were hashed."""
    found = []
    hashed = remembered.file_sha256

    def counted(path):
        found.append(path)
        return hashed(path)

    monkeypatch.setattr(remembered, "file_sha256", counted)
    return found


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_hashed_once(tmp_path, cache, reads):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert [known_sha256(path) for _ in range(3)] == [sha256(b"one")] * 3
    assert len(reads) == 1


def change(path):
    path.write_bytes(b"two")


def change_in_place(path):
    with path.open("r+b") as handle:
        handle.write(b"two")


def change_and_set_the_time_back(path):
    before = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path):
    other = path.with_name("other")
    other.write_bytes(b"two")
    before = path.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("how", [change, change_in_place, change_and_set_the_time_back, replace])
def test_a_change_of_as_many_bytes_is_noticed(tmp_path, cache, how):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert known_sha256(path) == sha256(b"one")
    how(path)
    assert known_sha256(path) == sha256(b"two")


def test_a_file_that_has_just_changed_is_not_kept(tmp_path, cache, reads, monkeypatch):
    monkeypatch.setattr(remembered, "_SETTLED", 60.0)
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    known_sha256(path), known_sha256(path)
    assert len(reads) == 2


def test_a_small_file_is_hashed_each_time(tmp_path, cache, reads, monkeypatch):
    monkeypatch.setattr(remembered, "LARGE", 4)
    path = tmp_path / "small"
    path.write_bytes(b"one")
    known_sha256(path), known_sha256(path)
    assert len(reads) == 2
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"key": {}, "value": "x"}', '{"value": "x"}', "null"])
def test_a_damaged_result_is_computed_again(tmp_path, cache, content):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    known_sha256(path)
    (kept,) = (cache / "known").iterdir()
    kept.write_text(content)
    assert known_sha256(path) == sha256(b"one")


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path, cache):
    cache.write_text("a file where the folder would be")
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert known_sha256(path) == sha256(b"one")
    keep({"a": 1}, True)
    assert recall({"a": 1}) is None


def test_results_are_kept_by_all_of_the_key(cache):
    keep({"a": 1, "b": [2]}, False)
    assert recall({"b": [2], "a": 1}) is False
    assert recall({"a": 1, "b": [3]}) is None
    assert [json.loads(path.read_text())["value"] for path in (cache / "known").iterdir()] == [False]


@pytest.fixture
def checks(cache, monkeypatch):
    """How often a causal model was checked; every model counts as large."""
    from cuecraft.backbone.decoder import CausalModel

    monkeypatch.setattr(loading, "LARGE", 0)
    found = []
    check = CausalModel._answers_alike

    def counted(self):
        found.append(self.name)
        return check(self)

    monkeypatch.setattr(CausalModel, "_answers_alike", counted)
    yield found
    loading._load.cache_clear()


def test_a_model_is_checked_once_and_again_where_something_differs(checks, causal_folder, monkeypatch):
    def load():
        loading._load.cache_clear()
        return load_backbone(str(causal_folder), dtype="float32")

    first = load()
    again = load()
    assert len(checks) == 1
    assert again.shares_context == first.shares_context is True
    assert again.fingerprint() == first.fingerprint()
    monkeypatch.setattr("transformers.__version__", "0.0")
    load()
    assert len(checks) == 2
    config = json.loads((causal_folder / "config.json").read_text())
    (causal_folder / "config.json").write_text(json.dumps(config | {"rope_theta": 5000.0}))
    try:
        load()
    finally:
        (causal_folder / "config.json").write_text(json.dumps(config))
    assert len(checks) == 3


def test_what_the_check_found_is_kept_as_it_is(checks, causal_folder, monkeypatch):
    """Of a model that takes no shared contexts, too."""
    from cuecraft.backbone.decoder import CausalModel

    monkeypatch.setattr(CausalModel, "_answers_alike", lambda self: not self._shares_context)
    loading._load.cache_clear()
    assert not load_backbone(str(causal_folder)).shares_context
    monkeypatch.setattr(CausalModel, "_answers_alike", lambda self: pytest.fail("checked again"))
    loading._load.cache_clear()
    assert not load_backbone(str(causal_folder)).shares_context
