"""A server in the test's own process, and what is sent to it."""

import asyncio

import httpx

from cuecraft.serving import Engine, EngineOptions, Shelf
from cuecraft.serving.http.app import create_app
from cuecraft.serving.http.middleware import Metrics
from cuecraft.serving.http.service import Service
from cuecraft.serving.kept import Kept
from serving import classifiers


class Server:
    """An application, and a client of it."""

    def __init__(self, backbone, names=("hard", "soft"), shelf=None, **parts):
        if shelf is None:
            shelf = Shelf(backbone)
            for name in names:
                shelf.put(name, [classifiers(backbone)[name].artifact_])
        self.metrics = Metrics()
        self.engine = Engine(shelf, parts.pop("engine", None) or EngineOptions(max_wait_ms=0), self.metrics)
        self.metrics.follow(self.engine)
        if "kept" in parts:
            parts["kept"] = Kept(shelf, parts["kept"])
        self.app = create_app(Service(self.engine, self.metrics, **parts))

    def ask(self, method, path, body=None, token=None, extra=None):
        return self.all([(method, path, body)], token, **({"headers": extra} if extra else {}))[0]

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
