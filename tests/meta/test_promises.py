"""The documents tell the truth: every test that a promise or a threat names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def references() -> list[tuple[str, str, str]]:
    found = []
    for document in ("SPECIFICATION.md", "THREAT_MODEL.md", "LIMITS.md"):
        for file, test in NAMED.findall((ROOT / document).read_text()):
            found.append((document, file, test))
    return found


@pytest.mark.parametrize(("document", "file", "test"), references())
def test_a_named_test_exists(document: str, file: str, test: str) -> None:
    path = ROOT / file
    assert path.exists(), f"{document} names `{file}`"
    if test:
        assert re.search(rf"def {test}\b", path.read_text()), f"{document} names `{file}::{test}`"


def numbered(document: str) -> list[str]:
    return [
        line for line in (ROOT / document).read_text().splitlines() if re.match(r"^\| ?[A-Z]+-\d+ ?\|", line)
    ]


@pytest.mark.parametrize("document", ["SPECIFICATION.md", "THREAT_MODEL.md", "LIMITS.md"])
def test_every_numbered_line_names_a_test(document: str) -> None:
    lines = numbered(document)
    assert len(lines) >= 10
    for line in lines:
        assert NAMED.search(line), f"{document}: no test is named in: {line}"


@pytest.mark.parametrize("document", sorted(p.name for p in ROOT.glob("*.md")))
def test_links_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / document).read_text()):
        if "://" not in target:
            assert (ROOT / target).exists(), f"{document} links to `{target}`"
