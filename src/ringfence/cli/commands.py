"""Commands that load themselves when they are called, and help with examples.

A group is a table of names: ``sbx --help`` prints it without importing a single command. Errors of usage are
said in the product's one shape by :mod:`ringfence.cli.main`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

SYNONYMS: Mapping[str, str] = {
    "list": "ls",
    "ps": "ls",
    "remove": "rm",
    "delete": "rm",
    "attach": "run",
    "start": "run",
    "show": "inspect",
    "logs": "log",
    "status": "daemon",
    "diagnose": "doctor",
    "block": "deny",
}
"""What people type from other tools, and what it is called here. Suggested, never run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A command of a group: where it is and what its line in the help says."""

    module: str
    attribute: str
    line: str
    hidden: bool = False


class Command(click.Command):
    """A command whose help ends with examples."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*args, **options)
        self.examples = examples

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


class Group(click.Group):
    """A table of commands in titled sections. An unknown name is an error that names the nearest ones."""

    def __init__(self, *args: Any, sections: Mapping[str, Mapping[str, Entry]], **options: Any) -> None:
        super().__init__(*args, **options)
        self.sections = sections
        self.entries = {name: entry for section in sections.values() for name, entry in section.items()}

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return [name for name, entry in self.entries.items() if not entry.hidden]

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        found: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.entries and not name.startswith("-") and not ctx.resilient_parsing:
            raise UnknownCommand(name, self.nearest(name), ctx)
        return super().resolve_command(ctx, args)

    def nearest(self, name: str) -> list[str]:
        import difflib

        if SYNONYMS.get(name) in self.entries:
            return [SYNONYMS[name]]
        known = [known for known, entry in self.entries.items() if not entry.hidden]
        return difflib.get_close_matches(name, known, n=3, cutoff=0.7)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        span = max(map(len, self.list_commands(ctx)))
        for title, section in self.sections.items():
            rows = [(f"{name:<{span}}", entry.line) for name, entry in section.items() if not entry.hidden]
            with formatter.section(title):
                formatter.write_dl(rows)

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write_paragraph()
            formatter.write(self.epilog.rstrip() + "\n")

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        shown = [
            CompletionItem(name, help=entry.line)
            for name, entry in self.entries.items()
            if name.startswith(incomplete) and not entry.hidden
        ]
        return [*shown, *(super().shell_complete(ctx, incomplete) if incomplete.startswith("-") else ())]


class UnknownCommand(click.UsageError):
    """A name that is no command of the group, with the names that may have been meant."""

    def __init__(self, name: str, nearest: Sequence[str], ctx: click.Context) -> None:
        super().__init__(f"no such command `{name}`", ctx)
        self.hint = ""
        if nearest:
            self.hint = (
                "did you mean " + " or ".join(f"`{ctx.command_path} {near}`" for near in nearest) + "?"
            )


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--json``: nothing but JSON is printed, errors included (see :mod:`ringfence.cli.main`)."""

    def remember(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> bool:
        if wanted:
            ctx.find_root().meta["ringfence.json"] = True
        return wanted

    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        is_eager=True,
        callback=remember,
        help="Print JSON and nothing else.",
    )(function)


def command(name: str, *, examples: Sequence[str], **options: Any) -> Callable[[Callable[..., Any]], Command]:
    """Declare a command; its function returns an exit code or nothing."""
    return click.command(name, cls=Command, examples=examples, **options)
