"""Numbers of the pages that come from result files are those of the files."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_tables_are_those_of_the_result_files():
    command = [sys.executable, str(ROOT / "benchmarks" / "tables.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pages = [part.splitlines() for part in printed.split("# ")[1:]]
    assert len(pages) > 3
    for page, *rows in pages:
        lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
        missing = [row for row in rows if row and row not in lines]
        assert len(rows) > 1
        assert not missing, f"run benchmarks/tables.py and put its rows into {page}"


def test_pages_that_are_linked_to_are_there():
    import re

    for page in ("README.md", "README.vi.md", "CONTRIBUTING.md", "docs/architecture.md", "examples/README.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in target:
                assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"
