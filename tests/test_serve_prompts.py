"""Prompts that a running server is given, over HTTP or by a folder that several servers share."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cuecraft.serving.http.access import AccessTokens, Role
from cuecraft.serving.requests import RequestLimits
from serving import X, classifiers
from serving_here import classify

ADMIN = "admin-token-0123456789"


def zipped(folder, prefix="", **others):
    content = io.BytesIO()
    files = {prefix + path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in (files | others).items():
            archive.writestr(name, data)
    return content.getvalue()


class Touching:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def saved(causal, tmp_path):
    classifiers(causal)["deep"].save(tmp_path / "deep")
    return tmp_path / "deep"


@pytest.fixture
def admin():
    return {"tokens": AccessTokens({"ops": (ADMIN, Role.ADMIN)})}


@pytest.mark.parametrize("prefix", ["", "deep/", "./"])
def test_an_uploaded_prompt_is_served_swapped_and_dropped(serve, causal, saved, admin, tmp_path, prefix):
    kept = tmp_path / "kept"
    server = serve(kept=kept, **admin)
    response = server.ask("PUT", "/v1/prompts/mine", zipped(saved, prefix), token=ADMIN)
    assert response.status_code == 200
    assert (kept / "mine" / "manifest.json").is_file()
    (answer,) = server.ask(*classify(X[0], "mine"), token=ADMIN).json()["results"][0]["answers"]
    expected = classifiers(causal)["deep"].predict_proba(X[:1])[0]
    assert np.allclose(list(answer["probabilities"].values()), expected, atol=1e-5)
    assert answer["version"] == response.json()["version"]
    assert [one["id"] for one in server.ask("GET", "/v1/prompts", token=ADMIN).json()["prompts"]] == [
        "hard",
        "soft",
        "mine",
    ]
    assert server.ask("DELETE", "/v1/prompts/mine", token=ADMIN).status_code == 204
    assert list(kept.iterdir()) == []
    assert server.ask(*classify(X[0], "mine"), token=ADMIN).status_code == 404


def test_servers_that_both_write_to_a_folder_lose_nothing(serve, causal, saved, admin, tmp_path):
    (tmp_path / "kept" / "lost+found").mkdir(parents=True)
    first, second = (serve(kept=tmp_path / "kept", **admin) for _ in range(2))
    for server, name in ((first, "a"), (second, "b")):
        assert server.ask("PUT", f"/v1/prompts/{name}", zipped(saved), token=ADMIN).status_code == 200
    for server in (first, second):
        server.app.state.service.kept.refresh()
        assert [one.name for one in server.engine.shelf.all()][-2:] in (["a", "b"], ["b", "a"])
    assert serve(kept=tmp_path / "kept", **admin).ask(*classify(X[0], "b"), token=ADMIN).status_code == 200


def test_servers_that_share_a_folder_follow_one_another(serve, causal, saved, admin, tmp_path):
    first, second = (serve(kept=tmp_path / "kept", **admin) for _ in range(2))
    kept = second.app.state.service.kept
    assert first.ask("PUT", "/v1/prompts/mine", zipped(saved), token=ADMIN).status_code == 200
    assert second.ask(*classify(X[0], "mine"), token=ADMIN).status_code == 404
    kept.refresh()
    version = second.ask(*classify(X[0], "mine"), token=ADMIN).json()["results"][0]["answers"][0]["version"]
    classifiers(causal)["soft"].save(tmp_path / "kept" / "mine")
    (tmp_path / "kept" / "half-copied").mkdir()
    (tmp_path / "kept" / "half-copied" / "manifest.json").write_text("{")
    kept.refresh()
    assert second.engine.shelf.get("mine").version != version
    assert first.ask("DELETE", "/v1/prompts/mine", token=ADMIN).status_code == 204
    kept.refresh()
    assert second.ask(*classify(X[0], "mine"), token=ADMIN).status_code == 404
    assert second.ask(*classify(X[0], "hard"), token=ADMIN).status_code == 200


def test_a_bad_upload_changes_nothing(serve, saved, admin, tmp_path):
    server = serve(limits=RequestLimits(upload_bytes=200_000), kept=tmp_path / "kept", **admin)
    good = zipped(saved)
    damaged = bytearray(good)
    damaged[len(good) // 3] ^= 0xFF
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b" " * 10_000_000)
    linked = io.BytesIO()
    with zipfile.ZipFile(linked, "w") as archive:
        link = zipfile.ZipInfo("manifest.json")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    (tmp_path / "none").mkdir()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b"some text that is packed " * 50)
    broken = bytearray(packed.getvalue())
    broken[50] ^= 0xFF
    pickled = pickle.dumps(Touching(tmp_path / "touched"))
    others = {
        "no ZIP": b"abc",
        "a link or a device": linked.getvalue(),
        "'weights.pkl', which no artifact has": zipped(saved, **{"weights.pkl": pickled}),
        "prompt.safetensors": zipped(saved, **{"prompt.safetensors": pickled}),
        "damaged": bytes(damaged),
        "or a damaged one": bytes(broken),
        "larger, unpacked, than": bomb.getvalue(),
        "which no artifact has": zipped(saved, evil=b""),
        "the path '../": zipped(saved, "../"),
        "the path '/etc/": zipped(saved, "/etc/"),
        "several folders": zipped(saved, **{"b/manifest.json": b"{}"}),
        "holds no manifest.json": zipped(tmp_path / "none", **{"trace.jsonl": b""}),
    }
    before = sorted(tmp_path.rglob("*"))
    for told, content in others.items():
        response = server.ask("PUT", "/v1/prompts/soft", content, token=ADMIN)
        assert response.status_code == 400, told
        assert told in response.json()["error"]
    assert server.ask("PUT", "/v1/prompts/a%20b", good, token=ADMIN).status_code == 400
    assert server.ask("PUT", "/v1/prompts/soft", b"x" * 200_001, token=ADMIN).status_code == 413
    assert sorted(tmp_path.rglob("*")) == before
    assert server.ask(*classify(X[0], "soft"), token=ADMIN).status_code == 200
