"""What reaches a terminal: escaped text, tables that line up, colour only where it is wanted."""

from __future__ import annotations

import unicodedata

import pytest
from fake_daemon import FakeDaemon, sandbox
from hypothesis import given
from hypothesis import strategies as st
from stage import OpenTerminal

from ringfence.cli.terminal.screen import plain
from ringfence.cli.terminal.table import table

ANY = st.text(st.characters())
"""Every code point, lone surrogates included: JSON can carry them."""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("pypi.org", "pypi.org"),
        ("münchen.example ✓ 日本", "münchen.example ✓ 日本"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\r\nb\tc", "a\\x0d\\x0ab\\x09c"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egro.lapyap", "\\u202egro.lapyap"),
        ("a\u2066b\u2069", "a\\u2066b\\u2069"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud800", "\\ud800"),
        ("x" * 5000, "x" * 4095 + "…"),
    ],
)
def test_nothing_that_acts_is_printed(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(ANY)
def test_whatever_it_was_it_is_printable_now(text: str) -> None:
    shown = plain(text, 100)
    assert shown.isprintable()
    assert len(shown) <= 100
    assert not any(
        unicodedata.bidirectional(char) in {"RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI"} for char in shown
    )


@given(st.lists(st.tuples(ANY, st.lists(ANY, max_size=3), ANY), max_size=5))
def test_a_table_has_as_many_lines_as_its_cells(rows: list[tuple[str, list[str], str]]) -> None:
    lines = table(("A", "B", "C"), rows).split("\n")
    assert len(lines) == 1 + sum(max(1, len(row[1])) for row in rows)
    assert all(line.isprintable() for line in lines)


def test_columns_stand_below_their_headers() -> None:
    assert table(("NAME", "TYPE", "RESOURCES"), [("a-long-name", "network", ("x", "y")), ("b", "", "z")]) == (
        "NAME          TYPE      RESOURCES\n"
        "a-long-name   network   x\n"
        "                        y\n"
        "b                       z"
    )


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": "", "TERM": "dumb"}, False)],
)
def test_colour_is_for_those_who_want_it(
    terminal: OpenTerminal, daemon: FakeDaemon, environment: dict[str, str], coloured: bool
) -> None:
    daemon.sandboxes = {"lab": sandbox("lab", status="running", enforcement="degraded")}
    screen = terminal("ls", **environment)
    assert screen.end() == 0
    assert ("\x1b[31muser-kernel (degraded)\x1b[0m" in screen.screen) is coloured
