"""Prompts of every kind over the tiny models, and a server as a process, for the tests of what serves them."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from threading import Thread

import numpy as np
import pytest

from children import Command
from conftest import LABELS, TEXTS
from cuecraft import PromptClassifier
from cuecraft.serving.registry import decide_mixed

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
    "zero-shot": "hard",
    "prompt-tuning": "soft",
    "deep-cue": "deep",
    "prefix-tuning": "prefix",
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
        kind = "weights" if artifact.weights else artifact.prompt.kind
        assert kind == SHIPPED[method], f"{name}: {kind}"
    return found


def started(*words, **environment):
    """Start the command line as a user does, in a fresh interpreter."""
    own = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen([sys.executable, "-m", "cuecraft", *words], stderr=subprocess.PIPE, text=True, env=own)


@contextmanager
def served(*arguments, start=Command, **environment):
    """Start a server on a free port; yield its process, address and log (a list that is whole at the end)."""
    log = []
    with start("serve", *map(str, arguments), "--port", "0", **environment) as process:
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


def answered(served, texts):
    """Return the probabilities `[N, O]` that a served prompt answers to texts of one field, in one batch."""
    (field,) = served.task.template.field_names
    examples = [served.example({field: text}) for text in texts]
    pieces, _ = served.members[0].ready.renderer.fitted(examples)
    rows = [(served, *row) for row in zip(examples, pieces, strict=True)]
    return np.array([list(decision.options.values()) for decision in decide_mixed(rows)])
