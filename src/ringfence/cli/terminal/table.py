"""Tables as the field prints them: a header, columns three spaces apart, a wide cell continued below."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

from ringfence.cli.terminal.screen import plain

GAP = "   "
Cell = str | Sequence[str]
"""One line, or one line each."""


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    paints: Mapping[int, Callable[[str], str]] | None = None,
) -> str:
    """Lay out rows. Every cell is escaped; ``paints`` colours the lines of a column."""
    blocks = [
        [(plain(cell),) if isinstance(cell, str) else tuple(map(plain, cell)) for cell in row] for row in rows
    ]
    spans = [
        max([len(header), *(len(line) for block in blocks for line in block[column])])
        for column, header in enumerate(headers)
    ]
    paints = paints or {}

    def laid(cells: Sequence[str], *, head: bool = False) -> str:
        while cells and not cells[-1]:
            cells = cells[:-1]
        last = len(cells) - 1
        return GAP.join(
            _painted(cell, 0 if column == last else spans[column], None if head else paints.get(column))
            for column, cell in enumerate(cells)
        )

    lines = [laid(headers, head=True)]
    for block in blocks:
        lines.extend(laid(cells) for cells in zip_longest(*block, fillvalue=""))
    return "\n".join(lines)


def _painted(cell: str, span: int, painter: Callable[[str], str] | None) -> str:
    return (painter(cell) if painter and cell else cell) + " " * (span - len(cell))


def wrapped(text: str, columns: int | None) -> tuple[str, ...]:
    """``text`` in lines of at most ``columns`` where it has spaces, on one line without a limit."""
    if columns is None:
        return (text,)
    return tuple(
        textwrap.wrap(text, max(columns, 20), break_long_words=False, break_on_hyphens=False) or [""]
    )
