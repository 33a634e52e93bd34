"""An engine that asks replicas: another one where one dies; errors as they were; Ray itself behind `slow`."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import httpx
import pytest

from cuecraft import PromptClassifier
from cuecraft.core.errors import ClosingError, DeadlineError, QueueFullError, ServeError, UnknownPromptError
from cuecraft.serving.cluster import Front, Scale, build
from cuecraft.serving.remote import Refusal, RemoteEngine
from cuecraft.serving.requests import Answer, Watcher
from cuecraft.serving.setup import ServeSettings, load_listing
from cuecraft.task import Decision
from serving import X, Y

ray = pytest.importorskip("ray", reason="pip install 'cuecraft[ray]'")


@pytest.fixture(scope="module")
def folder(causal_folder, tmp_path_factory):
    found = tmp_path_factory.mktemp("prompts")
    PromptClassifier(str(causal_folder), "zero-shot").fit(X, Y).save(found / "plain")
    return found


class Replicas:
    """Stands for a handle: gives or raises one reply after another."""

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []
        self.answer = self

    async def remote(self, texts, names, timeout):
        self.asked.append((texts, names, timeout))
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        if reply is None:
            await asyncio.sleep(10)
        return reply


def asked(folder, *replies, timeout=5.0, prompts=("plain",), stop=False):
    """Return what a request is answered with, and the replicas that were asked."""
    replicas = Replicas(*replies)

    async def ask():
        engine = RemoteEngine(replicas, load_listing(ServeSettings(prompts={"plain": folder / "plain"})), Watcher())
        engine.started()
        if stop:
            engine.close()
        found = await asyncio.wrap_future(engine.submit([{"text": "a"}], prompts, timeout))
        assert engine.waiting == 0
        return found

    return asyncio.run(ask()), replicas


ANSWERS = [Answer("plain", "v", Decision("b", 0.75, {"a": 0.25, "b": 0.75}), False)]


def test_another_replica_is_asked_where_one_dies(folder):
    found, replicas = asked(folder, ray.exceptions.ActorDiedError(), ray.exceptions.ActorDiedError(), ANSWERS)
    assert found == ANSWERS
    assert len(replicas.asked) == 3
    assert replicas.asked[2][2] < replicas.asked[0][2] <= 5.0  # the time that is left


def test_a_replica_that_does_not_know_a_prompt_yet_is_asked_again(folder):
    found, replicas = asked(folder, Refusal("UnknownPromptError", "none", 1.0), ANSWERS)
    assert found == ANSWERS
    assert len(replicas.asked) == 2


def test_errors_are_those_of_the_replica(folder):
    with pytest.raises(QueueFullError, match="try later") as error:
        asked(folder, Refusal("QueueFullError", "try later", 7.0))
    assert error.value.retry_after == 7.0
    with pytest.raises(DeadlineError):
        asked(folder, None, timeout=0.05)
    with pytest.raises(ZeroDivisionError):
        asked(folder, ZeroDivisionError())
    with pytest.raises(UnknownPromptError, match="there is no prompt 'other'; there are plain"):
        asked(folder, prompts=("other",))
    with pytest.raises(ServeError, match="nothing was asked for"):
        asked(folder, prompts=())
    with pytest.raises(ClosingError):
        asked(folder, stop=True)


def test_where_others_answer_prompts_change_through_a_shared_folder_alone(folder):
    from cuecraft.serving.http.access import AccessTokens, Role
    from cuecraft.serving.http.app import create_app
    from cuecraft.serving.http.middleware import Metrics
    from cuecraft.serving.http.service import Service

    listing = load_listing(ServeSettings(prompts={"plain": folder / "plain"}))
    token = "admin-token-0123456789"
    app = create_app(
        Service(RemoteEngine(Replicas(), listing, Watcher()), Metrics(), AccessTokens({"ops": (token, Role.ADMIN)}))
    )

    async def send():
        transport = httpx.ASGITransport(app=app)
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            return [await client.put("/v1/prompts/x", content=b""), await client.delete("/v1/prompts/plain")]

    for response in asyncio.run(send()):
        assert response.status_code == 400
        assert "without a folder for uploads" in response.json()["error"]
    assert [one.name for one in listing.all()] == ["plain"]


def test_a_front_without_tokens_refuses_to_be_open(folder, monkeypatch):
    monkeypatch.delenv("CUECRAFT_TOKENS", raising=False)
    settings = ServeSettings(prompts={"plain": folder / "plain"})
    with pytest.raises(ServeError, match="without tokens"):
        Front(settings.model_dump_json(), Replicas())
    Front(settings.model_copy(update={"open": True}).model_dump_json(), Replicas())


def test_a_serve_config_is_checked(folder):
    with pytest.raises(ServeError, match="unknown argument 'prompts'"):
        build({"prompts": {}})
    assert Scale(cpus=0.5).max_replicas is None


@pytest.mark.slow
def test_ray_serves_and_loses_nothing_when_a_replica_is_killed(folder):
    command = [sys.executable, "-m", "cuecraft", "serve", str(folder / "plain"), "--backend", "ray", "--replicas", "2"]
    command += ["--port", "8217", "--option", "scale.cpus=0.5"]
    statuses = []

    def client(number):
        until = time.monotonic() + 10
        while time.monotonic() < until:
            body = json.dumps({"inputs": f"{X[number % len(X)]} {time.monotonic()}"}).encode()
            with urllib.request.urlopen("http://127.0.0.1:8217/v1/classify", body, timeout=30) as response:
                statuses.append((response.status, len(json.load(response)["results"][0]["answers"])))

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert any("serving on" in line for line in process.stderr)
            threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
            for thread in threads:
                thread.start()
            time.sleep(3)
            found = subprocess.run(["pgrep", "-f", "ray::ServeReplica:cuecraft:engine"], capture_output=True, text=True)
            os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
            for thread in threads:
                thread.join(60)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=90)
    assert process.returncode == 0
    assert len(statuses) > 50
    assert set(statuses) == {(200, 1)}
