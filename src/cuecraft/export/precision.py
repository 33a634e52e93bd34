"""Smaller numbers: float16, and ways to 8 bits, the fastest first.

What quantises activations with one scale for a whole tensor changes answers; see `docs/export.md` for what each way
was measured to do. Which one is taken is decided by the labels that it keeps (`cuecraft.export.folder`).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cuecraft.errors import ExportError
from cuecraft.export.graph import EXTERNAL, GRAPH, ONE_FILE
from cuecraft.export.rows import Batches, quantise_rows

OPENVINO_GRAPH = "model.xml"


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
