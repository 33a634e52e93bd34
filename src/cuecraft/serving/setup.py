"""From settings to a service: artifacts, the backbone that all of them were made for, and an engine over it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from cuecraft.core.errors import ArtifactError, ServeError, named
from cuecraft.core.options import Options
from cuecraft.export.runtime import RuntimeOptions, is_export
from cuecraft.export.runtime.manifest import EXPORT
from cuecraft.export.runtime.model import check_where
from cuecraft.export.runtime.sessions import cores
from cuecraft.serving.engine import Engine, EngineOptions
from cuecraft.serving.exported import ExportShelf, ListedExport
from cuecraft.serving.guarding import GuardSettings, Screener
from cuecraft.serving.registry import AnyShelf, Listed
from cuecraft.serving.requests import AnyEngine, RequestLimits
from cuecraft.task.sections import BackboneSection

# What artifacts need is imported where they are loaded: exported folders are served without PyTorch.
if TYPE_CHECKING:
    from cuecraft.artifact import Artifact
    from cuecraft.artifact.manifest import BackboneEntry
    from cuecraft.serving.artifacts import Listing, Shelf
    from cuecraft.serving.http.middleware import Metrics
    from cuecraft.serving.http.service import Service

_HOST = re.compile(r"(?:[a-z0-9_-]+\.)*[a-z0-9_-]+\.?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_READ_DIFFERENTLY = re.compile("[ßς\u200c\u200d]")  # by browsers and by Python's table of international names


def _origin(value: str) -> str:
    meant = value if value == "*" else _as_sent(value)
    if meant is None:
        raise ServeError(f"{value!r} is no origin; give its scheme, host and port, as https://app.example.com, or *")
    if meant != value:
        raise ServeError(f"{value!r} is no origin as a browser sends it; write {meant}")
    return value


def _as_sent(value: str) -> str | None:
    """Return an origin as a browser writes it: in small ASCII letters, without a default port; None for no origin."""
    try:
        parts = urlsplit(value)
        port, host = parts.port, parts.hostname or ""
        if ":" in host:
            host = f"[{IPv6Address(host).compressed}]"
        elif not _READ_DIFFERENTLY.search(host):
            host = host.encode("idna").decode() if not host.isascii() else host
            if host.rstrip(".").rpartition(".")[2].isdigit():
                host = str(IPv4Address(host))
    except ValueError:
        return None
    is_host = _HOST.fullmatch(host) or (host.startswith("[") and "%" not in host)
    more = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme not in _DEFAULT_PORTS or not is_host or more or port == 0:
        return None
    shown = "" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{host}{shown}"


Origin = Annotated[str, AfterValidator(_origin)]
_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


class ServeSettings(BackboneSection, Options):
    """What is served, and how: the same for one machine and for a cluster."""

    prompts: dict[str, Path] = Field(default_factory=dict, description="id -> folder of an artifact or an ensemble")
    keep: Path | None = Field(None, description="folder for uploaded prompts, served again after a restart")
    tokens: Path | None = Field(None, description="file of access tokens")
    rate: float | None = Field(None, gt=0, description="answers a second for each token")
    batches: EngineOptions = Field(default_factory=EngineOptions, description="how batches are made")
    limits: RequestLimits = Field(default_factory=RequestLimits, description="what one request may hold")
    open: bool = Field(False, description="serve others than this machine without tokens")
    guard: GuardSettings = Field(default_factory=GuardSettings, description="what screens the texts")
    log_texts: bool = Field(False, description="write the texts into the log, too")
    cors_origins: tuple[Origin, ...] = Field(
        (), description="web pages of which origins may ask from a browser: https://app.example.com, or *"
    )
    trace: bool = Field(False, description="send traces by OpenTelemetry, as its OTEL_* variables say")


def require_extra() -> None:
    """Raise ServeError where the packages for serving over HTTP are not installed."""
    if any(find_spec(name) is None for name in _NEEDED):
        raise ServeError("serving needs further packages: pip install 'cuecraft[serve]'")


def make_service(settings: ServeSettings) -> Service:
    """Load what is served, and return the service; its engine is running.

    Raises:
        CuecraftError: as `load_shelf`; or the tokens cannot be read.
    """
    from cuecraft.serving.http.middleware import Metrics

    shelf = open_shelf(settings)
    metrics = Metrics()
    return service_of(settings, Engine(shelf, settings.batches, metrics), metrics)


def service_of(settings: ServeSettings, engine: AnyEngine, metrics: Metrics) -> Service:
    """Put a service in front of an engine.

    Raises:
        ServeError: the tokens cannot be read.
        GuardError: the guard cannot be set up.
    """
    from cuecraft.serving.http.access import AccessTokens, RateLimit
    from cuecraft.serving.http.service import Service

    metrics.follow(engine)
    kept = None
    if settings.keep:
        from cuecraft.serving.kept import Kept, follow

        kept = Kept(engine.shelf, settings.keep)
        follow(kept)
    return Service(
        engine,
        metrics,
        AccessTokens.read(settings.tokens),
        RateLimit(settings.rate),
        settings.limits,
        Screener.of(settings.guard, engine, settings.device, settings.local_files_only),
        kept,
        settings.log_texts,
        settings.trace,
        settings.cors_origins,
    )


def open_shelf(settings: ServeSettings) -> AnyShelf[Any]:
    """Load what is served: exported folders, or artifacts over the backbone that all of them were made for.

    Raises:
        ServeError: some are exported and some are not, or uploads are to be kept next to exported ones.
        CuecraftError: as `load_shelf`; or an exported folder cannot be used.
    """
    if not are_exported(settings):
        return load_shelf(settings)
    return ExportShelf(settings.prompts, RuntimeOptions(device=settings.device))


def load_listed(settings: ServeSettings) -> tuple[list[Listed], str, int]:
    """Return what is known of the prompts without what answers, the backbone's hash, and the threads that are usual.

    Raises:
        CuecraftError: as `open_shelf`, but for what only loading shows.
    """
    if are_exported(settings):
        exported = [ListedExport.of(name, EXPORT.read(folder)) for name, folder in settings.prompts.items()]
        return list(exported), exported[0].manifest.backbone.sha256, cores()
    import torch

    from cuecraft.serving.artifacts import ListedPrompt

    artifacts, made_for = load_artifacts(settings)
    listed: list[Listed] = [ListedPrompt.of(name, own) for name, own in artifacts.items()]
    return listed, made_for.sha256, torch.get_num_threads()


def are_exported(settings: ServeSettings) -> bool:
    """Return whether exported folders are to answer.

    Raises:
        ServeError: some are exported and some are not, or uploads are to be kept next to exported ones.
        ExportError: a model or a number type is asked for with them.
    """
    exported = [name for name, folder in settings.prompts.items() if is_export(folder)]
    if not exported:
        return False
    others = [name for name in settings.prompts if name not in exported]
    if others:
        raise ServeError(f"{exported[0]!r} is exported and {others[0]!r} is an artifact; give them apart")
    if settings.keep:
        raise ServeError(f"exported folders are served without uploads; leave {named('keep')} out")
    for name in exported:
        check_where(settings.prompts[name], settings.model, settings.dtype)
    return True


def load_shelf(settings: ServeSettings) -> Shelf:
    """Load the prompts, and the backbone that all of them were made for.

    Raises:
        CuecraftError: as `load_artifacts`; or the backbone cannot be used.
    """
    from cuecraft.backbone import load_backbone
    from cuecraft.serving.artifacts import Shelf

    artifacts, made_for = load_artifacts(settings)
    where = (settings.device, settings.local_files_only, settings.dtype)
    shelf = Shelf(load_backbone(settings.model or made_for.name, made_for.head, *where))
    for name, own in artifacts.items():
        shelf.put(name, own)
    return shelf


def load_listing(settings: ServeSettings) -> Listing:
    """List the prompts, without the backbone that all of them were made for; raises as `load_artifacts`."""
    from cuecraft.serving.artifacts import Listing

    artifacts, made_for = load_artifacts(settings)
    listing = Listing(made_for)
    for name, own in artifacts.items():
        listing.put(name, own)
    return listing


def load_artifacts(settings: ServeSettings) -> tuple[dict[str, list[Artifact]], BackboneEntry]:
    """Return the artifacts of each prompt, and the backbone that all of them were made for.

    Raises:
        ServeError: there is no prompt, or they were made for several backbones.
        ArtifactError: an artifact cannot be read.
    """
    artifacts = {name: _artifacts(folder) for name, folder in settings.prompts.items()}
    first = artifacts or _first_kept(settings.keep)
    if not first:
        raise ServeError("there is no prompt to serve; name an artifact's folder")
    _check_backbones(artifacts)
    return artifacts, next(iter(first.values()))[0].manifest.backbone


def _first_kept(folder: Path | None) -> dict[str, list[Artifact]]:
    """Return the first prompt that is kept and can be read; it names the backbone. All of them are loaded by `Kept`."""
    from cuecraft.artifact import load_artifact
    from cuecraft.core.storage import MANIFEST

    for path in sorted(folder.glob(f"*/{MANIFEST}")) if folder else ():
        with suppress(ArtifactError):
            return {path.parent.name: [load_artifact(path.parent)]}
    return {}


def _artifacts(folder: Path) -> list[Artifact]:
    from cuecraft.artifact import load_artifact, member_folders

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
