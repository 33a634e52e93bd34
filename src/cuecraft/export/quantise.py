"""Smaller numbers: float16 and ways to 8 bits, the fastest first; multiplication by rows for one of them.

What quantises activations with one scale for a whole tensor changes answers: one large number, of one token, takes the
precision of all others, and language models have such numbers. `quantise_rows` gives each token a scale of its own and
moves what is large in a channel into the weights first (SmoothQuant, Xiao et al., ICML 2023, arXiv 2211.10438, strength
0.5). Its weights have 7 bits: processors without VNNI add two products in 16 bits and cut off what is more; with 8 bits
the probabilities of a MiniLM were half as far off again. `docs/export.md` has what each way was measured to do; which
one is taken is decided by the labels that it keeps (`export/folder.py`).
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cuecraft.core.errors import ExportError
from cuecraft.export.graph import EXTERNAL, GRAPH, ONE_FILE
from cuecraft.export.runtime.sessions import Feed

Batches = Sequence[Feed]  # of texts that a recipe may look at

_DOMAIN = "com.microsoft"
_WEIGHT_TOP = 63  # of 7 bits
_ROW_TOP = 127.0
_CENTRE = 128
_LEAST_WIDTH = 16  # of a weight matrix's sides; smaller ones take no time
OPENVINO_GRAPH = "model.xml"


def quantise_rows(source: Path, calibration: Batches, keeps: Callable[[int, int], bool]) -> Any:
    """Multiply by weights in 8 bits, a scale for each row and each column.

    Args:
        source: of an ONNX model in float32.
        calibration: texts that show how large each channel becomes.
        keeps: returns of a weight matrix `[K, N]` whether it stays in float32.

    Returns:
        The model (`onnx.ModelProto`).
    """
    import onnx

    rows = _Rows(onnx.load(source), keeps)
    widths = {name: weights[0].dims[0] for name, weights in rows.quantised.items()}
    return rows.done(_largest(source, calibration, widths))


def _largest(source: Path, calibration: Batches, names: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the largest magnitude `[K]` of each channel of some tensors `[..., K]` of a graph."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(source)
    if not names:
        return {}
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "largest_axes"))
    for name, width in names.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1, width], np.int64), f"{name}_flat_shape"))
        made = [
            ("Abs", [name], f"{name}_abs"),
            ("Reshape", [f"{name}_abs", f"{name}_flat_shape"], f"{name}_flat"),
            ("ReduceMax", [f"{name}_flat", "largest_axes"], f"{name}_largest"),
        ]
        for kind, inputs, output in made:
            own = {"keepdims": 0} if kind == "ReduceMax" else {}
            model.graph.node.append(helper.make_node(kind, inputs, [output], **own))
        model.graph.output.append(helper.make_tensor_value_info(f"{name}_largest", TensorProto.FLOAT, None))
    with tempfile.TemporaryDirectory(prefix="cuecraft-") as scratch:
        path = Path(scratch, "watched.onnx")
        onnx.save(model, path, save_as_external_data=model.ByteSize() > ONE_FILE, location="watched.data")
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        ordered = sorted(names)
        found = {name: np.zeros(0, np.float32) for name in ordered}
        for batch in calibration:
            values = session.run([f"{name}_largest" for name in ordered], dict(batch))
            for name, value in zip(ordered, values, strict=True):
                found[name] = np.maximum(found[name], value) if len(found[name]) else value
    return found


class _Rows:
    def __init__(self, model: Any, keeps: Callable[[int, int], bool]) -> None:
        self._model, self._keeps = model, keeps
        self._weights = {own.name: own for own in model.graph.initializer}
        self._nodes: list[Any] = []
        self._made: dict[str, tuple[str, str]] = {}
        self._smooth: dict[str, np.ndarray] = {}

    @property
    def quantised(self) -> dict[str, list[Any]]:
        """The tensors that are multiplied in 8 bits, each with the weights that it is multiplied by."""
        found: dict[str, list[Any]] = {}
        for node in self._model.graph.node:
            weight = self._weight(node)
            if weight is not None:
                found.setdefault(node.input[0], []).append(weight)
        return found

    def _weight(self, node: Any) -> Any:
        """Return the weight that a node multiplies by in 8 bits; None where it stays as it is."""
        weight = self._weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or len(weight.dims) != 2 or min(weight.dims) < _LEAST_WIDTH:
            return None
        return None if self._keeps(*weight.dims) else weight

    def _smoothing(self, weights: list[Any], largest: np.ndarray) -> np.ndarray:
        """Return what each channel `[K]` of a tensor is divided by, and its weights multiplied by."""
        from onnx import numpy_helper

        widest = np.max([np.abs(numpy_helper.to_array(own)).max(1) for own in weights], axis=0)
        found: np.ndarray = np.sqrt(np.maximum(largest, 1e-5) / np.maximum(widest, 1e-5)).clip(1e-4)
        return found.astype(np.float32)

    def done(self, largest: Mapping[str, np.ndarray]) -> Any:
        """Rewrite the graph, given the largest magnitude `[K]` of each channel of the tensors that are quantised."""
        from onnx import helper

        graph = self._model.graph
        self._smooth = {name: self._smoothing(own, largest[name]) for name, own in self.quantised.items()}
        self._constant("row_top", np.array(_ROW_TOP, np.float32))
        self._constant("row_least", np.array(1e-8, np.float32))
        self._constant("row_centre", np.array(_CENTRE + 0.5, np.float32))  # with the half, cutting off rounds
        self._constant("row_zero", np.array(_CENTRE, np.uint8))
        self._constant("row_axis", np.array([-1], np.int64))
        self._constant("row_one", np.array(1.0, np.float32))
        for node in graph.node:
            weight = self._weight(node)
            if weight is None:
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

        matrix = numpy_helper.to_array(weight).astype(np.float32) * self._smooth[node.input[0]][:, None]
        scale = np.maximum(np.abs(matrix).max(0), 1e-8) / _WEIGHT_TOP
        name = f"{weight.name}_{node.input[0]}"  # what it is multiplied by decides how it is smoothed
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
            self._constant(f"{name}_smoothing", 1 / self._smooth[name])
            self._node("Mul", [name, f"{name}_smoothing"], f"{name}_smooth")
            self._node("Abs", [f"{name}_smooth"], f"{name}_abs")
            self._node("ReduceMax", [f"{name}_abs", "row_axis"], f"{name}_most", keepdims=1)
            self._node("Max", [f"{name}_most", "row_least"], f"{name}_top")
            self._node("Div", ["row_top", f"{name}_top"], f"{name}_inverse")
            self._node("Div", [f"{name}_top", "row_top"], f"{name}_row_scale")
            self._node("Mul", [f"{name}_smooth", f"{name}_inverse"], f"{name}_scaled")
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


@dataclass(frozen=True)
class Recipe:
    """One way from the graph in float32 to the one that is exported.

    Args:
        name: in manifests.
        graph: file name of what it writes.
        make: given the graph in float32, a folder and texts to calibrate by, writes the graph there.
    """

    name: str
    graph: str
    make: Callable[[Path, Path, Batches], None]


def recipes_of(kind: str, precision: str) -> Sequence[Recipe]:
    """Return the recipes of a format and a precision, in the order in which they are tried.

    Raises:
        ExportError: a package is not installed.
    """
    if kind == "openvino":
        wanted = ("openvino", "nncf") if precision == "int8" else ("openvino",)
        if any(find_spec(name) is None for name in wanted):
            raise ExportError("export to OpenVINO needs further packages: pip install 'cuecraft[export,openvino]'")
    return _RECIPES[kind, precision]


def _copied(source: Path, target: Path, _: Batches) -> None:
    for name in (GRAPH, EXTERNAL):
        if (source.parent / name).is_file():
            shutil.copyfile(source.parent / name, target / name)


def _half(source: Path, target: Path, _: Batches) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    # The model's own shape inference meets graphs of more than 2 GB on disk alone.
    model = convert_float_to_float16(onnx.load(source), keep_io_types=True, disable_shape_infer=True)
    _save(model, target)


def _dynamic(source: Path, target: Path, _: Batches) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quietly():
        quantize_dynamic(
            source,
            target / GRAPH,
            op_types_to_quantize=["MatMul"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            # Processors without VNNI add two products in 16 bits, which 8-bit weights overflow.
            reduce_range=True,
            use_external_data_format=(source.parent / EXTERNAL).is_file(),
        )


def _rows(keeps: Callable[[int, int], bool]) -> Callable[[Path, Path, Batches], None]:
    """Return a recipe's `make`; weights `[K, N]` that `keeps` tells stay in float32."""

    def make(source: Path, target: Path, calibration: Batches) -> None:
        _save(quantise_rows(source, calibration, keeps), target)

    return make


def _weights(size: int) -> Callable[[Path, Path, Batches], None]:
    """Return a recipe's `make`: weights in 8 bits, a scale for each block of `size`, activations in float32."""

    def make(source: Path, target: Path, _: Batches) -> None:
        import onnx
        from onnxruntime.quantization import matmul_nbits_quantizer as nbits
        from onnxruntime.quantization.quant_utils import QuantFormat

        own = nbits.DefaultWeightOnlyQuantConfig(
            block_size=size,
            is_symmetric=True,
            accuracy_level=0,  # multiply in float32
            quant_format=QuantFormat.QOperator,
            op_types_to_quantize=("MatMul",),
            bits=8,
        )
        with _quietly():
            quantiser = nbits.MatMulNBitsQuantizer(onnx.load(source), algo_config=own)
            quantiser.process()
        _save(quantiser.model.model, target)

    return make


def _save(model: Any, folder: Path) -> None:
    import onnx

    if model.ByteSize() > ONE_FILE:
        onnx.save(model, folder / GRAPH, save_as_external_data=True, location=EXTERNAL)
    else:
        onnx.save(model, folder / GRAPH)


def _openvino(is_half: bool) -> Callable[[Path, Path, Batches], None]:
    def make(source: Path, target: Path, _: Batches) -> None:
        import openvino

        openvino.save_model(openvino.convert_model(source), target / OPENVINO_GRAPH, compress_to_fp16=is_half)

    return make


def _openvino_static(source: Path, target: Path, calibration: Batches) -> None:
    import nncf
    import openvino

    with _quietly():
        texts = nncf.Dataset([dict(batch) for batch in calibration])
        model = nncf.quantize(
            openvino.convert_model(source), texts, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(calibration)
        )
    openvino.save_model(model, target / OPENVINO_GRAPH, compress_to_fp16=False)


def _openvino_weights(source: Path, target: Path, _: Batches) -> None:
    import nncf
    import openvino

    with _quietly():
        model = nncf.compress_weights(openvino.convert_model(source))
    openvino.save_model(model, target / OPENVINO_GRAPH, compress_to_fp16=False)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what the quantisers print off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


_RECIPES: dict[tuple[str, str], Sequence[Recipe]] = {
    ("onnx", "fp32"): (Recipe("float32", GRAPH, _copied),),
    ("onnx", "fp16"): (Recipe("float16", GRAPH, _half),),
    ("onnx", "int8"): (
        Recipe("dynamic, a scale for each channel, 7-bit weights", GRAPH, _dynamic),
        Recipe("a scale for each row and channel, smoothed, 7-bit weights", GRAPH, _rows(lambda inner, outer: False)),
        # What narrows again behind an activation function has the largest numbers.
        Recipe("the same, narrowing layers in float32", GRAPH, _rows(lambda inner, outer: inner > outer)),
        Recipe("weights alone, blocks of 128", GRAPH, _weights(128)),
    ),
    ("openvino", "fp32"): (Recipe("float32", OPENVINO_GRAPH, _openvino(False)),),
    ("openvino", "fp16"): (Recipe("float16", OPENVINO_GRAPH, _openvino(True)),),
    ("openvino", "int8"): (
        Recipe("static, smoothed", OPENVINO_GRAPH, _openvino_static),
        Recipe("weights alone", OPENVINO_GRAPH, _openvino_weights),
    ),
}
