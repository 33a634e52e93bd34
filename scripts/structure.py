"""The structure of the source: packages by level, modules, lines, cycles; exit code 1 where a rule is broken.

    python scripts/structure.py

Rules: a module imports from its own package and from packages of lower levels; imports at the head of modules make no
cycle; no module has more than 500 lines, no function more than 60.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "cuecraft"
# From the lowest level up. Packages of one level never import each other.
LEVELS = (
    ("core",),
    ("data",),
    ("task",),
    ("backbone",),
    ("artifact",),
    ("methods", "export"),
    ("serving", "study"),
    ("api",),
    ("runs",),
    ("cli",),
)
LEVEL = {package: number for number, level in enumerate(LEVELS, start=1) for package in level}
MODULE_LINES, FUNCTION_LINES = 500, 60


@dataclass(frozen=True)
class Module:
    """One file.

    Args:
        path: of the file.
        name: dotted, without the leading `cuecraft.`.
        tree: its syntax tree.
        lines: how many it has.
    """

    path: Path
    name: str
    tree: ast.Module
    lines: int

    @property
    def package(self) -> str:
        """The package at the top; of a module of the library's own folder, its name."""
        return self.name.split(".")[0]


def modules() -> dict[str, Module]:
    """Return the modules by name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        found[name] = Module(path, name, ast.parse(text), text.count("\n"))
    return found


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree without what is there for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _run(node)


def imports(module: Module, known: dict[str, Module], anywhere: bool = True) -> set[str]:
    """Return the modules that a module imports: at its head, or anywhere within it."""
    found = set()
    for node in _run(module.tree) if anywhere else module.tree.body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("cuecraft.") in known else node.module for name in names]
        else:
            continue
        found |= {name.removeprefix("cuecraft.") for name in names if name.startswith("cuecraft.")}
    return {name for name in found if name in known and name != module.name}


def broken_levels(known: dict[str, Module]) -> list[str]:
    """Return the imports that point up, or to another package of the same level."""
    found = []
    for module in known.values():
        if module.name in ("", "__main__"):
            continue
        if module.package not in LEVEL:
            found.append(f"{module.name} is in no known package")
            continue
        for other in sorted(imports(module, known)):
            package = known[other].package
            if package != module.package and LEVEL[package] >= LEVEL[module.package]:
                found.append(f"{module.name} imports {other}, which is not below it")
    return found


def cycles(known: dict[str, Module]) -> list[list[str]]:
    """Return groups of modules whose heads import each other, directly or by way of others."""
    edges = {name: imports(module, known, anywhere=False) for name, module in known.items()}
    reach: dict[str, set[str]] = {}
    for start in edges:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for other in edges[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        reach[start] = seen
    groups = {frozenset(b for b in reach[a] if a in reach[b]) for a in edges if a in reach[a]}
    return sorted(sorted(group) for group in groups)


#: Classes that share a name: an estimator that users import, and the method behind it.
SHARED_NAMES = {"AutoPrompt", "PrefixTuning"}


def ambiguous(known: dict[str, Module]) -> list[str]:
    """Return public classes whose name another class of the source has too, each with its modules."""
    found: dict[str, list[str]] = {}
    for name, module in known.items():
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(name)
    return [f"{own}: {', '.join(names)}" for own, names in found.items() if len(names) > 1 and own not in SHARED_NAMES]


def too_long(known: dict[str, Module]) -> list[str]:
    """Return modules and functions with more lines than they may have."""
    found = [f"{m.name} has {m.lines} lines" for m in known.values() if m.lines > MODULE_LINES]
    for module in known.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > FUNCTION_LINES:
                    found.append(f"{module.name}: {node.name} has {size} lines")
    return found


def main() -> int:
    known = modules()
    for number, level in enumerate(LEVELS, start=1):
        for package in level:
            own = [module for module in known.values() if module.package == package]
            print(f"{number}  {package:<10} {len(own):>4} modules  {sum(m.lines for m in own):>6} lines")
    total = sum(module.lines for module in known.values())
    print(f"   all        {len(known):>4} modules  {total:>6} lines, {total // len(known)} each; {len(LEVELS)} levels")
    circles = [f"cycle: {', '.join(group)}" for group in cycles(known)]
    broken = broken_levels(known) + circles + ambiguous(known) + too_long(known)
    print("\n".join(broken) or "   no import points up, no cycle, nothing too long")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
