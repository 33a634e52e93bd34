"""The routes."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from cuecraft.core.errors import CuecraftError, ServeError
from cuecraft.serving.http.access import Role
from cuecraft.serving.http.middleware import BodyLimit, Observed, add_tracing, cross_origin
from cuecraft.serving.http.service import ClientGoneError, D, RefusedError, Service, error_response, parsed
from cuecraft.serving.http.wire import (
    ClassifyRequest,
    ClassifyResponse,
    ErrorDocument,
    ExplainRequest,
    ExplainResponse,
    result_document,
)
from cuecraft.serving.kept import Occlusion
from cuecraft.serving.registry import check_id

_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript")
        for name in ("look", "page", "dom", "wire", "answers", "kinds", "history", "code")
    },
}
_LOOKS = ["GET", "HEAD"]
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorDocument, "description": text}
    for status, text in (
        (400, "Something in the request cannot be used."),
        (401, "No token, or one that is not known."),
        (403, "Not with this token, or not this text."),
        (404, "No such prompt."),
        (408, "The body did not come in time."),
        (409, "The text has not the fields that the prompt takes."),
        (413, "The body is too large."),
        (415, "The body is packed, or in another encoding than UTF-8."),
        (429, "Too much was asked for; see Retry-After."),
        (503, "The queue is full, or the server is stopping; see Retry-After."),
        (504, "The answer was not there in time."),
    )
}


def create_app(service: Service) -> FastAPI:
    """Return the ASGI application of a service; its shutdown closes the engine."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.started()
        yield
        await run_in_threadpool(service.engine.close)

    app = FastAPI(title="cuecraft", version=version("cuecraft"), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.add_exception_handler(CuecraftError, _told)
    app.add_exception_handler(RefusedError, _told)
    app.add_exception_handler(ClientGoneError, _gone)
    app.add_exception_handler(HTTPException, _http)
    limits = service.limits
    app.add_middleware(BodyLimit, most=lambda method: limits.upload_bytes if method == "PUT" else limits.body_bytes)
    app.add_middleware(Observed, metrics=service.metrics)
    if service.origins:  # the outermost, so that a page is shown errors too
        app.add_middleware(CORSMiddleware, **cross_origin(service.origins))
    if service.traces:
        add_tracing(app)
    _add_questions(app, service)
    _add_prompts(app, service)
    _add_state(app, service)
    _add_page(app)
    return app


async def _told(request: Request, error: Exception) -> JSONResponse:
    return error_response(error)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 405:  # of the first route alone; others may have the path, too
        routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
        headers["allow"] = ", ".join(sorted({method for route in routes for method in route.methods or ()}))
    return JSONResponse({"error": str(error.detail).lower()}, error.status_code, headers)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # the client is gone; the log has it


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    """Return the part of the OpenAPI document that describes a body which the route reads by itself."""
    plain = kind.model_json_schema()
    schema = _inlined(plain, plain.get("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """Return a JSON Schema whose references are replaced by what they refer to."""
    if isinstance(schema, dict):
        name = schema.get("$ref", "").removeprefix("#/$defs/")
        own = definitions[name] if name else {key: value for key, value in schema.items() if key != "$defs"}
        return {key: _inlined(value, definitions) for key, value in own.items()}
    return [_inlined(value, definitions) for value in schema] if isinstance(schema, list) else schema


def _json(document: Any) -> Response:
    return Response(to_json(document), media_type="application/json")


def _add_questions(app: FastAPI, service: Service) -> None:
    # Bodies are read and written by hand: FastAPI's own way costs as much as a small model takes for a text.
    @app.post("/v1/classify", response_model=ClassifyResponse, responses=_ERRORS, openapi_extra=_body(ClassifyRequest))
    async def classify(request: Request) -> Response:
        """Classify texts: one or many, with one prompt or many."""
        caller = service.admit(request)
        asked = await _asked(ClassifyRequest, service, request)
        names = service.prompt_ids(asked.ids)
        texts = service.texts(asked.given, names)
        _note(request, service, texts, names)
        service.charge(caller, len(texts) * len(names))
        until = service.until(asked.timeout_ms)
        screenings, is_blocked = await service.screened(request, texts, asked.guard, until)
        free = [text for text, blocked in zip(texts, is_blocked, strict=True) if not blocked]
        answers = iter(await service.answers(request, free, names, until) if free else [])
        results = [
            result_document([] if blocked else list(islice(answers, len(names))), asked.top_k, screening, blocked)
            for screening, blocked in zip(screenings, is_blocked, strict=True)
        ]
        return _json({"model": service.engine.shelf.model, "results": results})

    @app.post("/v1/explain", response_model=ExplainResponse, responses=_ERRORS, openapi_extra=_body(ExplainRequest))
    async def explain(request: Request) -> Response:
        """Return which words of a text count: how much less probable its label is without each of them."""
        caller = service.admit(request)
        asked = await _asked(ExplainRequest, service, request)
        (name,) = service.prompt_ids(None if asked.prompt is None else [asked.prompt])
        (fields,) = service.texts([asked.input], [name])
        variants = Occlusion.of(service.engine.shelf.get(name), fields)
        _note(request, service, variants.texts[:1], [name])
        service.charge(caller, len(variants.texts))
        until = service.until(None)
        _, (is_blocked,) = await service.screened(request, [fields], None, until)
        if is_blocked:
            raise RefusedError(403, "the guard blocks this text; classify it to see why")
        answers = await service.answers(request, variants.texts, [name], until)
        found = variants.explained(answers)
        words = [{"word": word, "drop": drop} for word, drop in found.words]
        decision = found.answer.decision
        document = {"prompt": name, "label": decision.value, "option": found.option}
        return _json({**document, "probability": decision.options[found.option], "words": words})


async def _asked(kind: type[D], service: Service, request: Request) -> D:
    return parsed(kind, await service.body(request), request.headers.get("content-type", ""))


def _note(request: Request, service: Service, texts: Sequence[Any], names: Sequence[str]) -> None:
    """Have the log say what was asked for; the texts themselves only where that was chosen."""
    request.state.log |= {"inputs": len(texts), "prompts": list(names)}
    if service.logs_texts:
        request.state.log["texts"] = list(texts)


def _add_prompts(app: FastAPI, service: Service) -> None:
    shelf = service.engine.shelf

    @app.get("/v1/prompts", responses=_ERRORS)
    async def prompts(request: Request) -> Response:
        """List the prompts that are served."""
        service.admit(request)
        return _json({"model": shelf.model, "prompts": [served.describe() for served in shelf.all()]})

    @app.put("/v1/prompts/{name}", responses=_ERRORS, openapi_extra=_ARCHIVE)
    async def put(name: str, request: Request) -> Response:
        """Add a prompt, or swap one for another: a ZIP file of an artifact's folder. Needs an admin token."""
        service.admit(request, Role.ADMIN)
        check_id(name)
        request.state.log["prompts"] = [name]
        return _json(await run_in_threadpool(_put, service, name, await service.body(request)))

    @app.delete("/v1/prompts/{name}", status_code=204, responses=_ERRORS)
    async def drop(name: str, request: Request) -> Response:
        """Drop a prompt; what is being answered with it is answered. Needs an admin token."""
        service.admit(request, Role.ADMIN)
        shelf.get(name)
        request.state.log["prompts"] = [name]
        if service.kept is None:
            _check_alone(service)
            shelf.drop(name)
        else:
            await run_in_threadpool(service.kept.remove, name)
        return Response(status_code=204)


_ARCHIVE = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("application/octet-stream", "application/zip")
        },
    }
}


def _check_alone(service: Service) -> None:
    """Raise ServeError where others answer, who would not learn of a change."""
    if service.engine.shelf.is_remote:
        raise ServeError(
            "prompts cannot be changed: this server has replicas without a folder for uploads; ask its operator"
        )


def _put(service: Service, name: str, content: bytes) -> dict[str, Any]:
    """Add an uploaded artifact to the prompts, and keep it where that was asked for."""
    service.engine.shelf.check_uploads()
    from cuecraft.artifact import load_artifact
    from cuecraft.serving.http.archive import unpack

    if service.kept is None:
        _check_alone(service)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, name)
        folder.mkdir()
        unpack(content, folder, service.limits.upload_bytes)
        artifact = load_artifact(folder)
    shelf = service.engine.shelf
    if service.kept is None:
        shelf.put(name, [artifact])
    else:
        service.kept.save(name, artifact)
    described: dict[str, Any] = shelf.get(name).describe()
    return described


def _add_state(app: FastAPI, service: Service) -> None:
    @app.api_route("/healthz", methods=_LOOKS, include_in_schema=False)
    async def health() -> Response:
        if service.engine.is_alive:
            return _json({"status": "ok"})
        return JSONResponse({"status": "a thread of the engine has died; restart the server"}, 500)

    @app.api_route("/readyz", methods=_LOOKS, include_in_schema=False)
    async def ready() -> Response:
        if service.engine.is_open:
            return _json({"status": "ready", "prompts": len(service.engine.shelf.all())})
        return JSONResponse({"status": "stopping"}, 503, {"retry-after": "1"})

    @app.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        service.admit(request)
        return Response(service.metrics.document(), media_type="text/plain; version=0.0.4")


def _add_page(app: FastAPI) -> None:
    folder = resources.files("cuecraft.serving.http") / "page"
    for path, (name, kind) in _PAGE.items():
        content = (folder / name).read_bytes()
        app.add_api_route(path, _fixed(content, kind), methods=_LOOKS, include_in_schema=False)


def _fixed(content: bytes, kind: str) -> Any:
    async def page() -> Response:
        return Response(content, media_type=kind)

    return page
