"""Where a value comes from on a command line: a question without echo, a pipe, a command of the daemon's.

Nothing waits for a person who is not there: without a terminal and without a pipe it is an error. A value that is an
argument has been seen by every process of the machine and by the shell's history, and is warned about.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ringfence.cli.options import Decorator, Duration
from ringfence.cli.terminal.screen import interactive, warn

if TYPE_CHECKING:
    from ringfence.client.api import Daemon

MOST = 4 * 64 * 1024
ON_DEMAND = "on-demand"


class Refresh(click.ParamType[float]):
    """Seconds that a made value is good for; ``on-demand`` is 0."""

    name = "refresh"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        if str(value).lower() == ON_DEMAND:
            return 0.0
        return float(Duration().convert(value, param, ctx))


def source_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--command``, ``--ref`` and ``--refresh``."""
    options: Sequence[Decorator] = (
        click.option(
            "--command",
            "program",
            metavar="COMMAND",
            default="",
            help="Let the daemon run this on the host whenever a value is needed. No shell reads it.",
        ),
        click.option(
            "--ref",
            "reference",
            metavar="REFERENCE",
            default="",
            help="Like --command, with 1Password's or AWS's tool: op://… or arn:aws:secretsmanager:…",
        ),
        click.option(
            "--refresh",
            type=Refresh(),
            metavar="DURATION|on-demand",
            help="How long a value of --command or --ref is good for. Default: 55m.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def given(
    ctx: click.Context,
    *,
    token: str = "",
    program: str = "",
    reference: str = "",
    refresh: float | None = None,
    piped: bool = False,
    ask: Callable[[], dict[str, object]],
) -> dict[str, object]:
    """Return the fields of a request that say where the value comes from. ``piped``: from a pipe and nothing else."""
    if sum(map(bool, (token, program, reference, piped))) > 1:
        raise click.UsageError("a secret has one source: the value, --command, --ref or standard input", ctx)
    if refresh is not None and not (program or reference):
        raise click.UsageError("--refresh needs --command or --ref: a stored value does not change", ctx)
    timing = {} if refresh is None else {"refresh": refresh} if refresh else {"on_demand": True}
    if program:
        try:
            return {"command": shlex.split(program), **timing}
        except ValueError as error:
            raise click.UsageError(f"--command cannot be read: {error}".lower(), ctx) from error
    if reference:
        return {"reference": reference, **timing}
    if token:
        return {"text": token}
    if interactive() and not piped:
        return ask()
    return {"text": _standard_input(ctx)}


def _standard_input(ctx: click.Context) -> str:
    hint = 'pipe the value in: `printf %s "$KEY" | sbx secret set …`'
    if sys.stdin is None or sys.stdin.isatty():
        raise _usage(ctx, "there is no value, and no terminal to ask on", hint)
    content = sys.stdin.buffer.read(MOST + 1)
    if len(content) > MOST:
        raise _usage(ctx, f"the value is longer than {MOST} bytes", "")
    try:
        text = content.decode().strip("\r\n")
    except UnicodeDecodeError:
        raise _usage(ctx, "the value is not text", "") from None
    if not text:
        raise _usage(ctx, "there is no value on standard input", hint)
    return text


def asked(question: str) -> Callable[[], dict[str, object]]:
    """Ask for one value."""

    def ask() -> dict[str, object]:
        from ringfence.cli.terminal.prompt import hidden

        return {"text": hidden(question) or cancelled()}

    return ask


def cancelled() -> str:
    from ringfence.cli.terminal.screen import out

    out("Cancelled")
    raise click.exceptions.Exit(0)


def warn_of_argument(daemon: Daemon, option: str) -> None:
    """Say what a value on the command line has been through; refuse it where an organisation governs."""
    if daemon.policy()["governance"]:
        from ringfence.client.errors import Denied

        raise Denied(
            f"{option} is not allowed here: an organisation governs this machine",
            hint="leave it out and type the value, or pipe it in",
        )
    warn(f"{option} shows the value to the shell's history and the process list; pipe it in instead")


def _usage(ctx: click.Context, text: str, hint: str) -> click.UsageError:
    error = click.UsageError(text, ctx)
    error.hint = hint  # type: ignore[attr-defined]
    return error
