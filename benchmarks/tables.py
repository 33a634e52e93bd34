"""Tables of README and the site that come from result files.

``python benchmarks/tables.py`` prints the rows of each table, ``--write`` puts them into the pages, and ``--check``
ends with exit code 1 where a page differs. A page marks a table by a comment ``<!-- table: NAME -->`` on the line
before its head; the head's two lines belong to the page, the rows to the result files.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import table_rows as rows
from answer_rows import answer_tables
from model_rows import model_tables

ROOT = Path(__file__).parents[1]


#: The functions that make tables, and the tables' names where they make one.
SINGLE: dict[str, Callable[[], list[str]]] = {
    "overview": rows.overview_rows,
    "accuracy": rows.accuracy_rows,
    "auto": rows.auto_rows,
    "compare": rows.compare_rows,
    "multitask": rows.multitask_rows,
    "speed": rows.speed_rows,
    "weights": rows.weights_rows,
    "serve": rows.serve_rows,
    "overload": rows.overload_rows,
    "label-free": rows.label_free_rows,
    "trust": rows.trust_rows,
    "logs": rows.log_rows,
    "label-flip": rows.flip_rows,
}
SEVERAL = (rows.capacity_tables, rows.bulk_tables, rows.export_tables, rows.guard_tables, model_tables, answer_tables)

#: A marked table of a page: the mark, the head, the line under it, and the rows.
_TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n\|[^\n]*\n\| -[^\n]*\n)((?:\|[^\n]*\n)*)")
_MARK = re.compile(r"<!-- table: ([\w-]+) -->")


def all_tables() -> dict[str, list[str]]:
    """Return the rows of every table, by name."""
    found = {name: table() for name, table in SINGLE.items()}
    for several in SEVERAL:
        found |= several()
    return found


def filled(text: str, tables: dict[str, list[str]]) -> str:
    """Return a page with the rows of its marked tables.

    Raises:
        ValueError: a mark has no table behind it, or a name that is not known.
    """
    marks = [mark.group(1) for mark in _MARK.finditer(text)]
    if wrong := [name for name in marks if name not in tables]:
        raise ValueError(f"no table is called {wrong[0]!r}")
    if len(marks) != len(_TABLE.findall(text)):
        raise ValueError(f"a mark has no table's head behind it; the marks are {', '.join(marks)}")
    return _TABLE.sub(lambda found: found.group(1) + "".join(f"{line}\n" for line in tables[found.group(2)]), text)


def pages() -> list[Path]:
    """Return the pages that may have tables."""
    return [ROOT / "README.md", ROOT / "README.vi.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print, write or check the tables; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the rows into the pages")
    parser.add_argument("--check", action="store_true", help="end with exit code 1 where a page differs")
    chosen = parser.parse_args(arguments)
    tables, code = all_tables(), 0
    if not (chosen.write or chosen.check):
        for name, lines in tables.items():
            print("\n".join([f"# {name}", *lines, ""]))
    else:
        for page in pages():
            before = page.read_text(encoding="utf-8")
            after = filled(before, tables)
            if before == after:
                continue
            if chosen.write:
                page.write_text(after, encoding="utf-8")
                print(f"wrote {page.relative_to(ROOT)}")
            else:
                print(
                    f"{page.relative_to(ROOT)}: tables differ from the result files; run benchmarks/tables.py --write"
                )
                code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
