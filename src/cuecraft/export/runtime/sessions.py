"""What runs a graph: ONNX Runtime on a CPU or a GPU, or OpenVINO."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import Field

from cuecraft.core.errors import ExportError, named
from cuecraft.core.options import Options
from cuecraft.export.runtime.manifest import ExportManifest

#: Names of devices, and what ONNX Runtime calls that which runs a graph on them, the first choice first.
_PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
Feed = Mapping[str, np.ndarray]  # input of a graph -> its values, int64


class RuntimeOptions(Options):
    """Where a graph runs, and with how much."""

    device: str = Field("auto", description="`cpu`, `cuda`, `tensorrt`, or `auto`: cuda where it is there, else cpu")
    threads: int | None = Field(None, ge=1, description="threads of one batch; none for as many as there are cores")
    engine_cache: Path | None = Field(
        None, description="folder of built TensorRT engines; none for one in the user's cache"
    )


class Session(Protocol):
    """A graph that is ready to run."""

    def run(self, feed: Feed) -> np.ndarray:
        """Return the probabilities of a batch."""
        ...


def cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_session(folder: Path, manifest: ExportManifest, options: RuntimeOptions) -> Session:
    """Load a graph.

    Raises:
        ExportError: the runtime is not installed, cannot read the graph, or has not the device.
    """
    kind = OnnxSession if manifest.format == "onnx" else OpenVinoSession
    return kind(folder / manifest.graph, options, manifest)


class OnnxSession:
    """A graph in ONNX Runtime.

    Args:
        path: of the graph.
        options: where it runs.
        manifest: of the folder.

    Raises:
        ExportError: ONNX Runtime is not installed, cannot read the graph, or has not the device.
    """

    def __init__(self, path: Path, options: RuntimeOptions, manifest: ExportManifest) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ExportError("exported ONNX graphs need an extra; pip install 'cuecraft[onnx]'") from error
        wanted = _providers(options.device, onnxruntime.get_available_providers())
        own = onnxruntime.SessionOptions()
        own.intra_op_num_threads = options.threads or cores()
        own.inter_op_num_threads = 1
        own.log_severity_level = 3  # what it warns of concerns those who made the graph
        providers = [(name, _provider_options(name, options, manifest)) for name in wanted]
        try:
            self._session = onnxruntime.InferenceSession(str(path), own, providers=providers)
        except Exception as error:  # its errors share no class of their own
            first = str(error).strip().splitlines()[0]
            raise ExportError(f"{path}: ONNX Runtime cannot load it ({first}); export again") from error
        if options.device != "auto" and self._session.get_providers()[0] != wanted[0]:
            raise ExportError(
                f"{wanted[0]} could not be started (its libraries may be missing); choose another {named('device')}"
            )

    def run(self, feed: Feed) -> np.ndarray:
        """Return the probabilities of a batch."""
        found: np.ndarray = self._session.run(None, dict(feed))[0]
        return found


def _providers(device: str, there: list[str]) -> tuple[str, ...]:
    name, _, number = device.partition(":")
    if number and not number.isdecimal():
        raise ExportError(f"device {device!r} has no number after its colon; write for instance cuda:0")
    if name == "auto":
        name = "cuda" if _PROVIDERS["cuda"][0] in there else "cpu"
    if name not in _PROVIDERS:
        raise ExportError(f"device {device!r} runs no exported graph; choose auto, {', '.join(_PROVIDERS)}")
    wanted = _PROVIDERS[name]
    if wanted[0] not in there:
        raise ExportError(
            f"device {device!r} needs {wanted[0]}, and this onnxruntime has {', '.join(there)}; install "
            f"onnxruntime-gpu, or choose {named('device')} cpu"
        )
    return tuple(own for own in wanted if own in there)


def _provider_options(name: str, options: RuntimeOptions, manifest: ExportManifest) -> dict[str, str]:
    number = options.device.partition(":")[2] or "0"
    if name == "CUDAExecutionProvider":
        return {"device_id": number}
    if name != "TensorrtExecutionProvider":
        return {}
    folder = options.engine_cache or _engine_cache() / manifest.export_sha256[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "device_id": number,
        "trt_fp16_enable": "1" if manifest.precision == "fp16" else "0",
        # Building an engine takes minutes; it is kept for the graph and the card.
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
    }


def _engine_cache() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("cuecraft"), "engines")


class OpenVinoSession:
    """A graph in OpenVINO, on a CPU; arguments and errors as for `OnnxSession`."""

    def __init__(self, path: Path, options: RuntimeOptions, manifest: ExportManifest) -> None:
        try:
            import openvino
        except ImportError as error:
            raise ExportError("exported OpenVINO graphs need an extra; pip install 'cuecraft[openvino]'") from error
        if options.device not in ("auto", "cpu"):
            raise ExportError(f"device {options.device!r} runs no OpenVINO export; choose {named('device')} cpu")
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": options.threads or cores(),
            # It would take bfloat16 by itself where the processor has it, and answer differently there.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        except Exception as error:  # its errors share no class of their own
            first = str(error).strip().splitlines()[0]
            raise ExportError(f"{path}: OpenVINO cannot load it ({first}); export again") from error
        self._request = compiled.create_infer_request()

    def run(self, feed: Feed) -> np.ndarray:
        """Return the probabilities of a batch."""
        found = self._request.infer(dict(feed))
        probabilities: np.ndarray = np.array(found[0])
        return probabilities
