"""The house keeps its shape: what CONTRIBUTING.md promises about names, sizes and dangerous calls is counted here."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src" / "ringfence").rglob("*.py"))
BANNED = {"manager", "helper", "helpers", "util", "utils", "common", "misc", "item", "object", "handler"}

MAY_START_PROGRAMS = {
    "client/daemon.py",
    "daemon",
    "demo",
    "gateway/control.py",
    "runtimes",
}
"""Files or packages that may start another program; everything else asks one of these."""


def named(path: Path) -> str:
    return path.relative_to(ROOT / "src" / "ringfence").as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_no_file_outgrows_its_room(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 450, "split it along a noun of the glossary"


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_names_say_something(path: Path) -> None:
    words = set(re.split(r"[_.]", path.stem.lower()))
    assert not words & BANNED
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            parts = {w.lower() for w in re.findall(r"[A-Z][a-z0-9]*", node.name)}
            assert not parts & BANNED, node.name


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.stem != "__init__" or p.read_text().strip()], ids=named
)
def test_every_module_opens_with_its_theory(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "a module opens with what it is about"


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_programs_are_started_only_where_the_name_says_so(path: Path) -> None:
    name = named(path)
    if any(name == place or name.startswith(f"{place}/") for place in MAY_START_PROGRAMS):
        return
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert "subprocess" not in imported


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_no_shell_strings(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert not any(
                k.arg == "shell" and not (isinstance(k.value, ast.Constant) and k.value.value is False)
                for k in node.keywords
            )
            assert not (
                isinstance(node.func, ast.Attribute)
                and node.func.attr in {"system", "popen"}
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "os"
            )


def test_the_lock_file_names_no_index() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|file:", text)


def test_the_lock_file_pins_every_dependency_with_hashes() -> None:
    blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements.lock").read_text())
    pins = [b for b in blocks if re.match(r"[a-z0-9][a-z0-9._-]*==", b)]
    assert len(pins) > 20
    assert all("--hash=sha256:" in b for b in pins)
