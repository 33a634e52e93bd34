"""Prompts of every kind over the tiny models, and servers of them: in the test's own process, and as another one."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from threading import Thread

import httpx
import pytest

from conftest import LABELS, TEXTS
from cuecraft import PromptClassifier
from cuecraft.serve import Engine, EngineOptions, Shelf
from cuecraft.serve.http.app import create_app
from cuecraft.serve.http.metrics import Metrics
from cuecraft.serve.http.service import Service
from cuecraft.serve.kept import Kept

X = [text for text, _ in TEXTS]
Y = [LABELS[label] for _, label in TEXTS]
FIRST = "{prompt:word: }{text} it was{mask}"
ENCODER_FIRST = "{prompt:word: }{text}"

LEARNS = {"epochs": 12, "patience": 12, "learning_rate": 0.1}
#: name -> method, its options, whether the prompt stands before the text.
KINDS = {
    "hard": ("zero-shot", {"calibration": "fitted"}, False),
    "hard-first": ("zero-shot", {}, True),
    "soft": ("prompt-tuning", {"prompt_length": 3, **LEARNS}, False),
    "soft-first": ("prompt-tuning", {"prompt_length": 2, **LEARNS}, True),
    "deep": ("deep-cue", LEARNS, False),
    "deep-first": ("deep-cue", LEARNS, True),
    "prefix": ("prefix-tuning", {"epochs": 12, "patience": 12, "encoder_learning_rate": 0.002}, True),
    "lora": ("lora", {"epochs": 12, "patience": 12, "learning_rate": 0.01}, False),
}
#: What each method has to ship, so that the tests show something of it.
SHIPPED = {
    "zero-shot": "HardPrompt",
    "prompt-tuning": "SoftPrompt",
    "deep-cue": "DeepCue",
    "prefix-tuning": "PrefixPrompt",
    "lora": "weights",
}


@cache
def classifiers(backbone):
    """Return a classifier of each kind over a backbone."""
    found = {}
    for name, (method, options, is_first) in KINDS.items():
        if backbone.head_kind == "sequence":
            if method == "zero-shot":
                continue
            template = ENCODER_FIRST if is_first else None
        else:
            template = FIRST if is_first else "{text}{prompt: it was}{mask}"
        own = PromptClassifier(backbone, method, template=template, method_options=options, seed=3)
        found[name] = own.fit(X, Y, dev=(X, Y))  # what is learned has to be better there, or the start is kept
        artifact = found[name].artifact_
        kind = "weights" if artifact.weights else type(artifact.prompt).__name__
        assert kind == SHIPPED[method], f"{name}: {kind}"
    return found


@contextmanager
def served(*arguments, **environment):
    """Start a server on a free port; yield its process, address and log (a list that is whole at the end)."""
    command = [sys.executable, "-m", "cuecraft", "serve", *map(str, arguments), "--port", "0"]
    own = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    log = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=own) as process:
        for line in process.stderr:
            log.append(line)
            if '"ready"' in line:
                break
        else:
            pytest.fail("".join(log))
        address = json.loads(log[-1])["address"]
        reader = Thread(target=lambda: log.extend(process.stderr))  # a pipe that nobody reads would stop the server
        reader.start()
        try:
            yield process, address, log
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(30)
            reader.join()
    assert process.returncode == 0, "".join(log)


class Server:
    """An application, and a client of it."""

    def __init__(self, backbone, names=("hard", "soft"), **parts):
        shelf = Shelf(backbone)
        for name in names:
            shelf.put(name, [classifiers(backbone)[name].artifact_])
        self.metrics = Metrics()
        self.engine = Engine(shelf, parts.pop("engine", None) or EngineOptions(max_wait_ms=0), self.metrics)
        self.metrics.follow(self.engine)
        if "kept" in parts:
            parts["kept"] = Kept(shelf, parts["kept"])
        self.app = create_app(Service(self.engine, self.metrics, **parts))

    def ask(self, method, path, body=None, token=None, **more):
        return self.all([(method, path, body)], token, **more)[0]

    def all(self, requests, token=None, **more):
        """Send several requests at once."""

        async def send():
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            headers = {"authorization": f"Bearer {token}"} if token else {}
            async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
                kinds = [{"json": body} if not isinstance(body, bytes) else {"content": body} for *_, body in requests]
                pairs = zip(requests, kinds, strict=True)
                return await asyncio.gather(*(client.request(m, p, **kind, **more) for (m, p, _), kind in pairs))

        return asyncio.run(send())

    def raw(self, receive):
        """Send a request whose messages `receive` gives; return the status."""

        async def send():
            sent = []

            async def note(message):
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": "/v1/classify", "headers": [], "query_string": b""}
            await self.app(scope, receive, note)
            return sent[0]["status"]

        return asyncio.run(send())


def classify(inputs, prompts=None, **more):
    document = {"inputs": inputs} | ({"prompts": prompts} if prompts else {}) | more
    return ("POST", "/v1/classify", document)
