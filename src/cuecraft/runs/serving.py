"""What `serve` does: artifacts in, a shelf of prompts over one backbone, and a server in front of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cuecraft.backbone import load_backbone
from cuecraft.ensemble import member_folders
from cuecraft.errors import ServeError
from cuecraft.prompts import Artifact, load_artifact
from cuecraft.serve import Engine, EngineOptions, Shelf

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


@dataclass(frozen=True)
class ServeRequest:
    """What `cuecraft serve` was asked for; see its help for each."""

    prompts: Mapping[str, Path]
    address: tuple[str, int]
    tokens: Path | None
    is_open: bool
    keep: Path | None
    rate: float | None
    batches: Mapping[str, Any]
    limits: Mapping[str, Any]
    drain: float
    logs_texts: bool
    backbone: Mapping[str, Any]


def run_serve(request: ServeRequest, ready: Callable[[str], None]) -> None:
    """Serve prompts until SIGTERM or SIGINT; `ready` is told the address once the server answers.

    Raises:
        ServeError: the extra is not installed, the address cannot be had, or others could ask without a token.
        CuecraftError: as `load_shelf`.
    """
    if any(find_spec(name) is None for name in _NEEDED):
        raise ServeError("serving needs further packages: pip install 'cuecraft[serve]'")
    from cuecraft.serve.http.access import RateLimit, Tokens
    from cuecraft.serve.http.metrics import Metrics
    from cuecraft.serve.http.server import listen, run
    from cuecraft.serve.http.service import Service
    from cuecraft.serve.http.wire import Limits

    host, port = request.address
    tokens = Tokens.read(request.tokens)
    if host not in _LOOPBACK and not tokens and not request.is_open:
        raise ServeError(f"without tokens anybody who reaches {host} may ask; give --tokens FILE, or --open")
    listening = listen(host, port)
    shelf = load_shelf(request.prompts, request.keep, **request.backbone)
    metrics = Metrics()
    service = Service(
        Engine(shelf, EngineOptions(**request.batches), metrics),
        metrics,
        tokens,
        RateLimit(request.rate),
        Limits(**request.limits),
        request.keep,
        request.logs_texts,
    )
    run(service, listening, request.drain, ready)


def load_shelf(
    prompts: Mapping[str, Path], kept: Path | None, model: str | None, device: str, dtype: str, local_files_only: bool
) -> Shelf:
    """Load artifacts, and the backbone that all of them were made for.

    Args:
        prompts: id -> folder of an artifact, or of an ensemble.
        kept: folder of prompts that were uploaded to a server before; they win over `prompts`. None for none.
        model: where the backbone is now; None for the name that the first prompt was tuned under.
        device: a torch device, or ``auto``.
        dtype: of the model's weights, or ``auto``.
        local_files_only: never ask the Hub for a model.

    Raises:
        ServeError: there is no prompt, or they were made for several backbones.
        CuecraftError: an artifact or the backbone cannot be used.
    """
    folders = dict(prompts)
    if kept is not None and kept.is_dir():
        folders |= {path.name: path for path in sorted(kept.iterdir()) if path.is_dir() and path.name[0] != "."}
    artifacts = {name: _artifacts(folder) for name, folder in folders.items()}
    if not artifacts:
        raise ServeError("there is no prompt to serve; name an artifact's folder")
    _check_backbones(artifacts)
    made_for = next(iter(artifacts.values()))[0].manifest.backbone
    shelf = Shelf(load_backbone(model or made_for.name, made_for.head, device, local_files_only, dtype))
    for name, own in artifacts.items():
        shelf.put(name, own)
    return shelf


def _artifacts(folder: Path) -> list[Artifact]:
    return [load_artifact(path) for path in member_folders(folder) or [folder]]


def _check_backbones(artifacts: Mapping[str, Sequence[Artifact]]) -> None:
    """Raise ServeError where prompts were made for several backbones."""
    made_for: dict[tuple[str, str], str] = {}
    for name, own in artifacts.items():
        entry = own[0].manifest.backbone
        made_for.setdefault((entry.sha256, entry.head), name)
    if len(made_for) > 1:
        first, other = list(made_for.values())[:2]
        raise ServeError(f"prompts {first!r} and {other!r} were made for different backbones; serve them apart")
