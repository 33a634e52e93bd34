"""From a folded module to an ONNX file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from cuecraft.errors import ExportError
from cuecraft.export.folding import Folded
from cuecraft.export.several import FoldedSeveral
from cuecraft.runtime.manifest import INPUTS, PROMPTS

GRAPH, EXTERNAL = "model.onnx", "model.onnx.data"
_OUTPUT = "probabilities"
_OPSET = 18
ONE_FILE = 2**31 - 2**24  # a protobuf message ends at 2 GiB; some of it is the graph itself
#: Names of sizes that are free, with a size to trace with: any but 0 and 1, which would be taken for fixed.
_TEXTS, _ASKED = {"batch": 3, "length": 7}, {"asked": 5}


def require_onnx() -> None:
    """Raise ExportError where the packages that write graphs are not installed."""
    if any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
        raise ExportError("export as a graph needs further packages: pip install 'cuecraft[export]'")


def write_graph(folded: Folded | FoldedSeveral, folder: Path) -> Path:
    """Write a module as a graph with any batch size and length, and any number of prompts asked; return its file.

    Weights of more than 2 GB are next to it, in `model.onnx.data`.

    Raises:
        ExportError: the model cannot be traced.
    """
    inputs = dict.fromkeys(INPUTS, _TEXTS) | ({PROMPTS: _ASKED} if isinstance(folded, FoldedSeveral) else {})
    target = folder / GRAPH
    # A tensor for each: inputs that are one object are traced as one input.
    sample = tuple(torch.ones(tuple(sizes.values()), dtype=torch.long) for sizes in inputs.values())
    with torch.no_grad(), _quietly():
        try:
            program = torch.onnx.export(
                folded,
                sample,
                dynamo=True,
                input_names=list(inputs),
                output_names=[_OUTPUT],
                dynamic_shapes=tuple(dict(enumerate(sizes)) for sizes in inputs.values()),
                opset_version=_OPSET,
                verbose=False,
            )
        except Exception as error:  # tracing fails in ways of its own for each architecture
            first = str(error.__cause__ or error).strip().splitlines()[0]
            raise ExportError(
                f"a {folded.model.config.model_type} cannot be written as an ONNX graph ({first}); export its prompt "
                "alone with --format safetensors, or to PEFT"
            ) from error
        assert program is not None
        _without_gemm(program.model)
        _without_traces(program.model)
        program.save(target, external_data=_weight_bytes(program.model) > ONE_FILE)
    return target


def _without_gemm(model: Any) -> None:
    """Write products of a matrix with a weight and a bias as two steps: what makes 8 bits knows the first alone."""
    import onnx_ir as ir

    for node in list(model.graph):
        plain = {own.name: own.value for own in node.attributes.values()}
        is_plain = plain.get("alpha", 1.0) == plain.get("beta", 1.0) == 1.0
        if node.op_type != "Gemm" or not is_plain or plain.get("transA", 0) or plain.get("transB", 0):
            continue
        product = ir.node("MatMul", node.inputs[:2])
        parts = [product]
        if len(node.inputs) > 2:
            parts.append(ir.node("Add", [product.outputs[0], node.inputs[2]]))
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], parts, list(node.outputs), list(parts[-1].outputs)
        )


def _weight_bytes(model: Any) -> int:
    return sum(own.const_value.nbytes for own in model.graph.initializers.values())


def _without_traces(model: Any) -> None:
    """Take out which line of which file on this machine each node comes from: it is of no use elsewhere."""
    graph = model.graph
    for held in (model, graph, *graph, *graph.inputs, *graph.outputs, *graph.initializers.values()):
        held.metadata_props.clear()
    for node in graph:
        for value in node.outputs:
            value.metadata_props.clear()


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what the exporter prints off the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [own.level for own in loggers]
    for own in loggers:
        own.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for own, level in zip(loggers, levels, strict=True):
            own.setLevel(level)
