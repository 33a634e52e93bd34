"""`cuecraft serve` as a process: up, asked, stopped; and what is wrong with its arguments."""

import json
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from conftest import LABELS, TEXTS
from cuecraft import PromptClassifier
from serving import served, started

X = [text for text, _ in TEXTS]
Y = [LABELS[label] for _, label in TEXTS]
TOKEN = "client-token-0123456789"


@pytest.fixture(scope="module")
def artifacts(causal_folder, tmp_path_factory):
    """Two artifacts of the tiny causal model, and their classifiers."""
    folder = tmp_path_factory.mktemp("prompts")
    found = {}
    for name, method, options in (("plain", "zero-shot", {}), ("deep", "deep-cue", {"epochs": 2})):
        found[name] = PromptClassifier(str(causal_folder), method, method_options=options).fit(X, Y)
        found[name].save(folder / name)
    return folder, found


def ask(address, inputs, prompts=None, token=None):
    body = json.dumps({"inputs": inputs, "prompts": prompts}).encode()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{address}/v1/classify", body, headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["results"]


def test_a_server_answers_as_the_classifiers_do_and_ends_cleanly(artifacts, causal_folder, tmp_path):
    """With a prompt, one of another name, and seeds that answer together; and with tokens from the environment."""
    folder, classifiers = artifacts
    both = tmp_path / "both"
    for seed in (0, 1):
        options = {"epochs": 1}
        PromptClassifier(str(causal_folder), "deep-cue", method_options=options, seed=seed).fit(X, Y).save(
            both / f"seed-{seed}"
        )
    members = [PromptClassifier.load(both / f"seed-{seed}").predict_proba(X) for seed in (0, 1)]
    expected = [classifiers[name].predict_proba(X) for name in ("plain", "deep")] + [np.mean(members, axis=0)]
    served_ones = (folder / "plain", f"mine={folder / 'deep'}", both)
    with served(*served_ones, start=started, CUECRAFT_TOKENS=f"app:{TOKEN}") as (_, address, log):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(address, X[0])
        results = ask(address, X, ["plain", "mine", "both"], token=TOKEN)
        for number, shares in enumerate(expected):
            found = [list(result["answers"][number]["probabilities"].values()) for result in results]
            assert np.allclose(found, shares, atol=1e-5)
    assert TOKEN not in "".join(log)
    events = [json.loads(line) for line in log if line.startswith("{")]
    assert [event["event"] for event in events] == ["ready", "request", "request", "stopped"]
    assert [event.get("inputs") for event in events[1:3]] == [None, len(X)]


def test_what_is_under_way_at_the_end_is_answered(artifacts):
    folder, _ = artifacts
    # A text waits a second for others, so that the end comes while it does.
    with served(folder / "plain", "--option", "batches.max_wait_ms=1000") as (process, address, _):
        with ThreadPoolExecutor(1) as thread:
            asking = thread.submit(ask, address, "a joy")
            time.sleep(0.6)
            process.send_signal(signal.SIGTERM)
            assert asking.result(30)[0]["answers"]
        process.wait(30)


def test_mistakes_are_told_in_one_line(run, artifacts, causal_folder, tmp_path):
    folder, _ = artifacts
    (tmp_path / "tokens").write_text("nonsense")
    cases = {
        "there is no prompt to serve": [],
        "no artifact here": ["serve-nothing"],
        "without tokens anybody who reaches 0.0.0.0 may ask": [folder / "plain", "--host", "0.0.0.0"],
        "two prompts would have the id 'plain'": [folder / "plain", folder / "plain"],
        "cannot be one": [f"a b={folder / 'plain'}"],
        "cannot listen on 203.0.113.1": [folder / "plain", "--host", "203.0.113.1", "--open"],
        "cannot listen on 127.0.0.1 port 99999": [folder / "plain", "--port", 99999],
        "tokens line 1": [folder / "plain", "--tokens", tmp_path / "tokens"],
    }
    for told, arguments in cases.items():
        code, out, err = run("serve", *map(str, arguments))
        assert code == 2, told
        assert not out
        assert told in err
        assert len(err.strip().splitlines()) <= 2  # the bar's part may go before


def test_prompts_of_several_backbones_are_refused(run, artifacts, masked, tmp_path):
    folder, _ = artifacts
    PromptClassifier(masked, "zero-shot").fit(X, Y).save(tmp_path / "other")
    code, _, err = run("serve", str(folder / "plain"), str(tmp_path / "other"))
    assert code == 2
    assert "'plain' and 'other' were made for different backbones" in err


def test_without_the_extra_the_command_says_what_to_install(run, artifacts, monkeypatch):
    from cuecraft.serving import setup as serving

    folder, _ = artifacts
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    code, _, err = run("serve", str(folder / "plain"))
    assert code == 2
    assert "pip install 'cuecraft[serve]'" in err
