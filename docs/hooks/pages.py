"""Hooks of the site: pages that are made of the repository's files, and parts that are generated from the code.

README and its companions are written once, for the repository. Here they become pages, with their links turned to the
site's. A page takes a generated part where it has a comment ``<!-- generated: NAME -->``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commands import command_reference  # MkDocs has this folder on its path while it loads the hooks
from mkdocs.structure.files import File, Files
from schema import model_reference, schema_reference

ROOT = Path(__file__).parents[2]

#: Files of the repository, and the pages that they become.
MADE = {
    "README.md": "index.md",
    "README.vi.md": "vi.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
    "deploy/README.md": "deploying.md",
}

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each file of the repository that is one."""
    for source, page in MADE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=turned(text, source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put the generated parts into a page."""
    for name, make in GENERATED.items():
        mark = f"<!-- generated: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def turned(text: str, source: str) -> str:
    """Return a file of the repository as a page: links to pages lead there, other links become their text."""

    def link(found: re.Match[str]) -> str:
        picture, shown, target = found.groups()
        if "://" in target or target.startswith("#"):
            return found.group(0)
        path, _, anchor = target.partition("#")
        path = os.path.normpath(os.path.join(os.path.dirname(source), path))
        if path in MADE:
            path = MADE[path]
        elif path.startswith("docs/"):
            path = path.removeprefix("docs/")
        else:
            return shown
        return f"{picture}[{shown}]({path}{'#' + anchor if anchor else ''})"

    return _LINK.sub(link, text)


def _commands() -> str:
    from cuecraft.cli import app

    return command_reference(app)


def _schema() -> str:
    from cuecraft.runs import json_schema

    return schema_reference(json_schema())


def _http() -> str:
    from cuecraft.serving.http import wire

    models = (
        wire.ClassifyRequest,
        wire.ClassifyResponse,
        wire.ExplainRequest,
        wire.ExplainResponse,
        wire.ErrorDocument,
    )
    return model_reference({model.__name__: model.model_json_schema() for model in models})


GENERATED: dict[str, Callable[[], str]] = {"commands": _commands, "recipe schema": _schema, "http": _http}
