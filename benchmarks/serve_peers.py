"""Servers as people write them today, over the same weights: one request, one forward pass.

    python benchmarks/serve_peers.py peft|pipeline MODEL

`peft`: a soft prompt of PEFT over a sequence classification model, in a FastAPI handler. `pipeline`: Transformers'
text-classification pipeline over the same model. The class heads are random: what is measured is their speed. Prints
the address once it answers.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from peft import PromptTuningConfig, get_peft_model
from pydantic import BaseModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from cuecraft.core.assets import model_folder
from cuecraft.serving.http.server import listen

VIRTUAL_TOKENS = 8


class Body(BaseModel):
    """A request."""

    inputs: str


def answering(kind: str, name: str) -> Any:
    folder = str(model_folder(name))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    if kind == "pipeline":
        return pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    tuned = get_peft_model(model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=VIRTUAL_TOKENS)).eval()

    @torch.no_grad()
    def answer(text: str) -> list[dict[str, Any]]:
        logits = tuned(**tokenizer(text, return_tensors="pt")).logits[0]
        return [{"label": str(n), "score": float(p)} for n, p in enumerate(logits.softmax(-1))]

    return answer


def main() -> None:
    kind, name = sys.argv[1:]
    app, answer = FastAPI(), answering(kind, name)

    @app.post("/v1/classify")
    def classify(body: Body) -> Any:
        return answer(body.inputs)

    listening = listen("127.0.0.1", 0)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listening])


if __name__ == "__main__":
    main()
