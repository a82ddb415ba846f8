"""Policy documents: rules as YAML, with comments and tests, for a repository and a review."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from ringfence.cli import reach
from ringfence.cli.commands import command, json_option
from ringfence.cli.options import sandbox_option
from ringfence.cli.terminal.screen import out, out_json, plain, show_error, warn

if TYPE_CHECKING:
    from ringfence.client.shapes import Tested, Validated

LIMIT = 16 * 1024 * 1024
"""Bytes of a document that are read; more is no document that a person wrote."""


def read(path: str) -> bytes:
    """The document in a file, or on standard input for ``-``."""
    try:
        if path == "-":
            content = sys.stdin.buffer.read(LIMIT + 1)
        else:
            with open(path, "rb") as file:
                content = file.read(LIMIT + 1)
    except OSError as error:
        raise click.UsageError(f"the document `{path}` cannot be read: {error.strerror}") from error
    if len(content) > LIMIT:
        raise click.UsageError(f"the document `{path}` is longer than {LIMIT >> 20} MiB")
    return content


file_argument = click.argument("file", metavar="FILE|-")


@command(
    "export", examples=("sbx policy export > policy.yaml", "sbx policy export --sandbox lab -o lab.yaml")
)
@sandbox_option
@click.option("-o", "--output", metavar="FILE", help="Write to a file instead of standard output.")
def export(sandbox: str, output: str | None) -> None:
    """Print your rules as a policy document. `sbx policy import` reads it back."""
    text = reach.daemon().export_document(sandbox=sandbox).decode()
    if output is None:
        out(text.rstrip("\n"))
    else:
        _write(output, text)


def _write(path: str, text: str) -> None:
    """Write a file whole or not at all."""
    beside = f"{path}.{os.getpid()}.new"
    try:
        with open(beside, "x", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    except OSError as error:
        raise click.UsageError(f"`{path}` cannot be written: {error.strerror}") from error


@command("import", examples=("sbx policy import policy.yaml --dry-run", "sbx policy import policy.yaml"))
@json_option
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@file_argument
def import_(file: str, dry_run: bool, as_json: bool) -> None:
    """Replace your rules by those of a document. A document whose tests fail is refused."""
    change = reach.daemon().import_document(read(file), dry_run=dry_run)
    if as_json:
        out_json(change)
        return
    for sign, entries in (("+", change["added"]), ("-", change["removed"])):
        for entry in entries:
            out(f"{sign} {plain(_rule(entry))}")
    count = f"{len(change['added'])} added, {len(change['removed'])} removed"
    out(f"Would change: {count}" if dry_run else f"Policy imported: {count}")
    for text in change["warnings"]:
        warn(text)


def _rule(entry: dict[str, Any] | str) -> str:
    if isinstance(entry, str):
        return entry
    effect = entry.get("decision") or entry.get("effect") or ""
    name = entry.get("name") or entry.get("id") or "unnamed"
    return f"{effect} {', '.join(entry.get('resources') or ())} ({name})"


@command(
    "validate", examples=("sbx policy validate policy.yaml", "sbx policy validate - --json < policy.yaml")
)
@json_option
@file_argument
def validate(file: str, as_json: bool) -> int:
    """Check a document and its tests without importing it. Leaves with 1 if it is not valid."""
    checked = reach.daemon().validate_document(read(file))
    if as_json:
        out_json(checked)
    else:
        _report(file, checked)
    return 0 if checked["ok"] else 1


def _report(file: str, checked: Validated) -> None:
    where = "standard input" if file == "-" else file
    for error in checked["errors"]:
        position = f"{plain(where)}:{error.get('line', 0)}:{error.get('column', 0)}"
        show_error(f"{position}: {error.get('message', '')}", str(error.get("hint") or ""))
    for warning in checked.get("warnings") or ():
        warn(warning if isinstance(warning, str) else str(warning.get("message", "")))
    tests = checked.get("tests") or []
    if checked["ok"]:
        out(f"{plain(where)} is valid" + (f", {len(tests)} tests pass" if tests else ""))


@command(
    "fmt",
    examples=(
        "sbx policy fmt policy.yaml",
        "sbx policy fmt -w policy.yaml",
        "sbx policy fmt --check policy.yaml",
    ),
)
@click.option("-w", "--write", is_flag=True, help="Write the file instead of printing it.")
@click.option(
    "--check", is_flag=True, help="Print nothing; leave with 1 if the file is not in canonical form."
)
@file_argument
@click.pass_context
def fmt(ctx: click.Context, file: str, write: bool, check: bool) -> int:
    """Print a document in canonical form; comments stay where they are."""
    if write and (check or file == "-"):
        raise click.UsageError("--write needs a file and excludes --check", ctx)
    before = read(file)
    after = reach.daemon().format_document(before)
    if check:
        return 0 if after == before else 1
    if not write:
        out(after.decode().rstrip("\n"))
    elif after != before:
        _write(file, after.decode())
    return 0


@command("test", examples=("sbx policy test policy.yaml", "sbx policy test policy.yaml --json"))
@json_option
@file_argument
def test(file: str, as_json: bool) -> int:
    """Run the tests of a document against its own rules. Leaves with 1 if one fails."""
    tested = reach.daemon().test_document(read(file))
    if as_json:
        out_json(tested)
    else:
        out(test_text(tested))
    return 1 if tested["failed"] else 0


def test_text(tested: Tested) -> str:
    lines = [
        plain(f"FAILED {case.get('asked')}: expected {case.get('expected')}, got {case.get('got')}")
        for case in tested["failed"]
    ]
    return "\n".join([*lines, f"{tested['passed']} passed, {len(tested['failed'])} failed"])
