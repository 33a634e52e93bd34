"""8-bit multiplication with a scale for each row of the activations, and for each column of the weights.

ONNX Runtime's own dynamic quantisation has one scale for a whole batch of activations, so that one large number, of
one token, takes the precision of all others; language models have such numbers. Here each token has a scale of its
own. Weights have 7 bits: processors without VNNI add two products in 16 bits, which 8 bits would overflow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_DOMAIN = "com.microsoft"
_WEIGHT_TOP = 63  # of 7 bits
_ROW_TOP = 127.0
_CENTRE = 128
_LEAST_WIDTH = 64  # of a weight matrix's sides; smaller ones take no time


def quantise_rows(model: Any, keeps: Callable[[int, int], bool]) -> Any:
    """Multiply by weights in 8 bits, a scale for each row and each column.

    Args:
        model: an ONNX model (`onnx.ModelProto`) in float32; changed in place.
        keeps: tells of a weight matrix `[K, N]` whether it stays in float32.

    Returns:
        The model.
    """
    return _Rows(model, keeps).done()


class _Rows:
    def __init__(self, model: Any, keeps: Callable[[int, int], bool]) -> None:
        self._model, self._keeps = model, keeps
        self._weights = {own.name: own for own in model.graph.initializer}
        self._nodes: list[Any] = []
        self._made: dict[str, tuple[str, str]] = {}

    def done(self) -> Any:
        """Rewrite the graph."""
        from onnx import helper

        graph = self._model.graph
        self._constant("row_top", np.array(_ROW_TOP, np.float32))
        self._constant("row_least", np.array(1e-8, np.float32))
        self._constant("row_centre", np.array(_CENTRE + 0.5, np.float32))  # with the half, cutting off rounds
        self._constant("row_zero", np.array(_CENTRE, np.uint8))
        self._constant("row_axis", np.array([-1], np.int64))
        self._constant("row_one", np.array(1.0, np.float32))
        for node in graph.node:
            weight = self._weights.get(node.input[1]) if node.op_type == "MatMul" else None
            if weight is None or len(weight.dims) != 2 or min(weight.dims) < _LEAST_WIDTH or self._keeps(*weight.dims):
                self._nodes.append(node)
            else:
                self._multiply(node, weight)
        del graph.node[:]
        graph.node.extend(self._nodes)
        used = {name for node in graph.node for name in node.input}
        kept = [own for own in graph.initializer if own.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        if all(own.domain != _DOMAIN for own in self._model.opset_import):
            self._model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
        return self._model

    def _multiply(self, node: Any, weight: Any) -> None:
        from onnx import numpy_helper

        matrix = numpy_helper.to_array(weight).astype(np.float32)
        scale = np.maximum(np.abs(matrix).max(0), 1e-8) / _WEIGHT_TOP
        name = weight.name
        self._constant(f"{name}_int8", np.clip(np.rint(matrix / scale), -_WEIGHT_TOP, _WEIGHT_TOP).astype(np.int8))
        self._constant(f"{name}_scale", scale.astype(np.float32))
        rows, row_scale = self._rows(node.input[0])
        output = node.output[0]
        inputs = [rows, f"{name}_int8", "row_one", f"{name}_scale", "row_zero"]
        self._node("MatMulIntegerToFloat", inputs, f"{output}_rows", _DOMAIN)
        self._node("Mul", [f"{output}_rows", row_scale], output)

    def _rows(self, name: str) -> tuple[str, str]:
        """Return the names of a tensor's rows in 8 bits, and of their scales; several products share them."""
        if name not in self._made:
            self._node("Abs", [name], f"{name}_abs")
            self._node("ReduceMax", [f"{name}_abs", "row_axis"], f"{name}_most", keepdims=1)
            self._node("Max", [f"{name}_most", "row_least"], f"{name}_top")
            self._node("Div", ["row_top", f"{name}_top"], f"{name}_inverse")
            self._node("Div", [f"{name}_top", "row_top"], f"{name}_row_scale")
            self._node("Mul", [name, f"{name}_inverse"], f"{name}_scaled")
            self._node("Add", [f"{name}_scaled", "row_centre"], f"{name}_moved")
            self._node("Cast", [f"{name}_moved"], f"{name}_uint8", to=_uint8())
            self._made[name] = (f"{name}_uint8", f"{name}_row_scale")
        return self._made[name]

    def _node(self, kind: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> None:
        from onnx import helper

        self._nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}_node", domain=domain, **attributes))

    def _constant(self, name: str, value: np.ndarray) -> None:
        from onnx import numpy_helper

        if name not in self._weights:
            self._weights[name] = numpy_helper.from_array(value, name)
            self._model.graph.initializer.append(self._weights[name])


def _uint8() -> int:
    from onnx import TensorProto

    return int(TensorProto.UINT8)
