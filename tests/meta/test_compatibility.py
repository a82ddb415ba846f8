"""docs/compatibility.md and the tests of real clients say the same: every row has its test, every test its row."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "compatibility.md"
MODULES = sorted((ROOT / "tests" / "live").glob("test_clients_*.py"))


def rows() -> list[str]:
    """The table's rows, without heads and rules."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    return [line for line in lines if not re.match(r"\| (?:Client|What) \|", line)]


def named(row: str) -> list[str]:
    return re.findall(r"`(tests/live/\w+\.py::\w+)`", row.rpartition(" | ")[2])


def present() -> set[str]:
    return {
        f"{module.relative_to(ROOT)}::{node.name}"
        for module in MODULES
        for node in ast.parse(module.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


@pytest.mark.parametrize("row", rows())
def test_a_row_has_one_test(row: str) -> None:
    (test,) = named(row)
    assert test in present()


def test_every_test_has_one_row() -> None:
    shown = [test for row in rows() for test in named(row)]
    assert sorted(shown) == sorted(present())


def test_its_links_lead_somewhere() -> None:
    for document in (TABLE, ROOT / "docs" / "guides" / "clients.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to `{target}`"
