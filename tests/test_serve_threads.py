"""Clients in several threads while prompts are put and dropped: every answer is that of the prompt alone."""

import copy
import io
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from starlette.testclient import TestClient

from cuecraft import load_backbone
from cuecraft.serving import EngineOptions
from cuecraft.serving.http.access import AccessTokens, Role
from serving import X, classifiers
from serving_here import Server

ADMIN, CLIENT = "admin-token-0123456789", "client-token-0123456789"
# What a tokenizer takes for a token of its own, or not, by a state that its users share.
TEXTS = [*X, "good </s> bad [SEP] [MASK] great", "<s>awful</s>", "[CLS] dull <unk> love", "a" * 40]


def zipped(folder):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return content.getvalue()


class Traffic:
    """A server that is asked and changed at once; `wrong` has all that was not as expected."""

    def __init__(self, backbone, folder):
        known = classifiers(backbone)
        for name, own in known.items():
            own.save(folder / name)
        self.uploads = {name: zipped(folder / name) for name in known}
        self.expected = {name: own.predict_proba(TEXTS) for name, own in known.items()}
        self.fixed = list(known)[:3]
        tokens = AccessTokens({"ops": (ADMIN, Role.ADMIN), "shop": (CLIENT, Role.CLIENT)})
        self.server = Server(backbone, tuple(self.fixed), tokens=tokens, engine=EngineOptions(max_wait_ms=0))
        self.wrong, self.done, self.changes = [], threading.Event(), 0

    def send(self, http, status, method, path, token=ADMIN, **body):
        response = http.request(method, path, headers={"authorization": f"Bearer {token}"}, **body)
        if response.status_code != status:
            self.wrong.append((method, path, response.status_code, response.text))
            return None
        return response

    def administer(self, http, number):
        """Put and drop a prompt of its own, and swap those that are asked for themselves."""
        names = list(self.uploads)
        while not self.done.is_set():
            name = names[(number + self.changes) % len(names)]
            for target in (f"own-{number}", name if name in self.fixed else f"more-{number}"):
                self.send(http, 200, "PUT", f"/v1/prompts/{target}", content=self.uploads[name])
            self.send(http, 204, "DELETE", f"/v1/prompts/own-{number}")
            self.changes += 1

    def ask(self, http, number, requests):
        """Ask, and compare the answers with those of the prompts alone."""
        chance = np.random.default_rng(number)
        for _ in range(requests):
            rows = chance.choice(len(TEXTS), 3, replace=False).tolist()
            body = {"inputs": [TEXTS[row] for row in rows], "prompts": chance.permutation(self.fixed)[:2].tolist()}
            response = self.send(http, 200, "POST", "/v1/classify", CLIENT, json=body)
            for row, result in zip(rows, response.json()["results"] if response else [], strict=response is not None):
                self.compare(row, result["answers"])

    def compare(self, row, answers):
        for answer in answers:
            found = np.array(list(answer["probabilities"].values()))
            error = np.abs(found - self.expected[answer["prompt"]][row]).max()
            if not error <= 1e-6:
                self.wrong.append((answer["prompt"], TEXTS[row], float(error)))


@pytest.fixture(scope="module", params=["causal", "masked", "sequence"])
def exact(request):
    """A tiny backbone in double precision: what rounding differs by from batch to batch is far below 1e-6."""
    plain = request.getfixturevalue(request.param)
    return load_backbone((copy.deepcopy(plain.model).double(), plain.tokenizer), plain.head_kind)


@pytest.mark.parametrize(
    ("clients", "requests"), [(4, 30), pytest.param(8, 1500, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_answers_stay_right_while_prompts_are_swapped(exact, clients, requests, tmp_path):
    traffic = Traffic(exact, tmp_path)
    with TestClient(traffic.server.app) as http, ThreadPoolExecutor(clients + 2) as pool:
        admins = [pool.submit(traffic.administer, http, number) for number in range(2)]
        try:
            for asked in [pool.submit(traffic.ask, http, number, requests) for number in range(clients)]:
                asked.result()
        finally:
            traffic.done.set()
        for changed in admins:
            changed.result()
    assert traffic.changes > 1
    assert not traffic.wrong, f"{len(traffic.wrong)} wrong: {traffic.wrong[:3]}"
