"""How the demo tells its story: numbered steps, evidence as it was seen, a mark for every check.

Colours appear only on a terminal.

With ``--json`` the story is silent and one object is printed at the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ringfence.demo.checks import Check

_MARKS: Final = {True: ("✓", "green"), False: ("✗", "bold red")}

_METER: Final = re.compile(r"^[\s\d:.kM-]+(?=[*<>] )")
"""curl's progress meter, where it precedes something worth reading."""


class Narrator:
    """Prints, and keeps every check that was made."""

    def __init__(self, console: Console, *, as_json: bool = False) -> None:
        self._console = console
        self._as_json = as_json
        self._step = 0
        self.checks: list[Check] = []

    @property
    def passed(self) -> bool:
        """Whether there were checks and every one of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    def _print(self, renderable: Text | Padding | Table | str) -> None:
        if not self._as_json:
            self._console.print(renderable, soft_wrap=not isinstance(renderable, Padding | Table))

    def title(self, text: str, *lines: str) -> None:
        self._print(Text(text, style="bold"))
        for line in lines:
            self._print(Text(line))

    def step(self, text: str) -> None:
        """Begin a numbered step."""
        self._step += 1
        self._print(Text.assemble("\n", (f"{self._step}. ", "bold cyan"), (text, "bold")))

    def say(self, text: str) -> None:
        self._print(Text(f"   {text}"))

    def typed(self, line: str, *, prompt: str = "$") -> None:
        """Show a command as it was typed."""
        self._print(Text.assemble("   ", (f"{prompt} ", "dim"), (line, "yellow")))

    def shown(self, text: str, *, only: Iterable[str] = ()) -> None:
        """Show output; with ``only``, the lines that contain one of these fragments."""
        fragments = tuple(only)
        for line in text.rstrip("\n").splitlines():
            if not fragments or any(fragment in line for fragment in fragments):
                self._print(Text(f"     {_METER.sub('', line)}", style="dim"))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
        for column in columns:
            table.add_column(column, no_wrap=column != columns[-1], overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._print(Padding(table, (0, 0, 0, 3)))

    def check(self, *checks: Check) -> None:
        """Show checks and keep them. A failed one says what was expected and what was got."""
        for check in checks:
            self.checks.append(check)
            mark, style = _MARKS[check.passed]
            self._print(Text.assemble("   ", (mark, style), f" {check.name}"))
            if not check.passed:
                self._print(
                    Text(f"       expected: {check.expected}\n       got:      {check.got}", style="red")
                )

    def end(self, seconds: float, failure: str = "") -> bool:
        """Say how it ended; return whether everything is as it must be."""
        good = self.passed and not failure
        if self._as_json:
            result = {
                "passed": good,
                "seconds": round(seconds, 1),
                "failure": failure,
                "checks": [check.record() for check in self.checks],
            }
            self._console.print(json.dumps(result, indent=2), soft_wrap=True, highlight=False, markup=False)
            return good
        if failure:
            self._print(Text(f"\n✗ the demo could not go on: {failure}", style="bold red"))
        elif good:
            self._print(
                Text(f"\n✓ all {len(self.checks)} checks passed in {seconds:.0f} s", style="bold green")
            )
        else:
            self._print(Text(f"\n✗ {len(self.failed)} of {len(self.checks)} checks failed", style="bold red"))
            for check in self.failed:
                self._print(
                    Text(f"  - {check.name}: expected {check.expected}, got {check.got}", style="red")
                )
        return good
