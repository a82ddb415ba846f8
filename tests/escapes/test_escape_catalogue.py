"""Nothing is forgotten: every row of the catalogue is tried by a test that bears its name, or says why not."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from tests.escapes.catalogue import README, Row, page, rows, tried

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "NAM": 16, "TLS": 14, "DNS": 7, "UDP": 2, "ICMP": 1, "RAW": 1, "V6": 1, "SMT": 1, "REQ": 16, "DOS": 3, "CRD": 13,
    "ALW": 9, "FS": 12, "IPC": 3, "PRC": 2, "LIF": 7, "AUD": 3,
}  # fmt: skip


def test_the_catalogue_is_whole() -> None:
    listed = [row.id for row in rows()]
    assert len(set(listed)) == len(listed)
    assert Counter(each.partition("-")[0] for each in listed) == SIZES
    assert set(tried()) <= set(listed), "a test bears the name of a row that the catalogue does not have"


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.id)
def test_a_row_is_tried_or_says_why_not(row: Row) -> None:
    assert bool(tried().get(row.id)) is not bool(row.because), "either a test or a reason"


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.id)
def test_what_a_row_refers_to_exists(row: Row) -> None:
    named = re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", f"{row.because} {row.gap}")
    named += [each.partition("::")[::2] for each in row.also]
    for file, test in named:
        assert (ROOT / file).exists(), file
        assert not test or f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


def test_the_page_is_the_catalogue() -> None:
    assert README.read_text() == page(), "run `python -m tests.escapes.catalogue`"
