"""``sbx``: the table of commands, and the one place where a failure becomes text and an exit code.

Exit codes: 0 done, 1 failed, 2 used wrongly, 3 not found, 4 denied by policy, 5 daemon unreachable, 6 sign-in
needed, 130 interrupted. ``run`` and ``exec`` leave with the code of the command inside; failures of ours
there are 125 (sandbox), 126 (cannot execute) and 127 (not found).

This module is loaded for every command and for none of their work: it imports click and nothing of the
product but the tables below.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from ringfence import __version__
from ringfence.cli.commands import Entry, Group
from ringfence.cli.terminal.screen import err, out, out_json, show_error

EPILOG = """\
Exit codes:
  0 done, 1 failed, 2 used wrongly, 3 not found, 4 denied by policy,
  5 daemon unreachable, 6 sign-in needed, 130 interrupted.
  `run` and `exec` pass on the command's code; there 125, 126 and 127 are ours.

`sbx COMMAND --help` shows a command's options and examples.
"""
INTERRUPTED = 130
COMPLETE = "_SBX_COMPLETE"
"""The variable through which a shell asks for completions (click's protocol)."""

_SANDBOXES, _SESSIONS = "ringfence.cli.sandboxes", "ringfence.cli.sessions"
_INSTALLATION = "ringfence.cli.installation"

SECTIONS = {
    "Sandboxes": {
        "create": Entry(module=_SANDBOXES, attribute="create", line="Make a sandbox for an agent."),
        "run": Entry(
            module=_SESSIONS, attribute="run", line="Attach to a sandbox, made or started as needed."
        ),
        "exec": Entry(module=_SESSIONS, attribute="execute", line="Run a command in a sandbox."),
        "ls": Entry(module=_SANDBOXES, attribute="ls", line="List sandboxes."),
        "inspect": Entry(module=_SANDBOXES, attribute="inspect", line="Show everything about a sandbox."),
        "stop": Entry(module=_SANDBOXES, attribute="stop", line="Stop sandboxes; their state is kept."),
        "rm": Entry(module=_SANDBOXES, attribute="rm", line="Remove sandboxes and their state."),
    },
    "Policy": {
        "policy": Entry(
            module="ringfence.cli.policy",
            attribute="policy",
            line="Say what sandboxes may reach; see what they did.",
        ),
    },
    "Secrets": {
        "secret": Entry(
            module="ringfence.cli.secret",
            attribute="secret",
            line="Keep credentials on this machine; sandboxes use them unseen.",
        ),
    },
    "Installation": {
        "daemon": Entry(module=_INSTALLATION, attribute="daemon", line="Start, stop or look at the daemon."),
        "doctor": Entry(module=_INSTALLATION, attribute="doctor", line="Check what works here, and why not."),
        "demo": Entry(
            module="ringfence.cli.demo", attribute="demo", line="Watch policy decide, in a small world."
        ),
        "completion": Entry(
            module="ringfence.cli.completion",
            attribute="completion",
            line="Print a shell's completion script.",
        ),
        "version": Entry(
            module=_INSTALLATION, attribute="version", line="Print the versions of sbx and the daemon."
        ),
        "help": Entry(module=_INSTALLATION, attribute="show_help", line="Show the help of a command."),
    },
}


@click.group(
    "sbx",
    cls=Group,
    sections=SECTIONS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
@click.option("-D", "--debug", is_flag=True, help="Show where an unexpected failure comes from.")
@click.version_option(__version__, prog_name="sbx", message="%(prog)s %(version)s")
@click.pass_context
def root(ctx: click.Context, debug: bool) -> None:
    """Run coding agents in sandboxes whose only way out is policy."""
    ctx.meta["ringfence.debug"] = debug
    if ctx.invoked_subcommand is None:
        out(ctx.get_help())


def main() -> NoReturn:
    """The program. Never returns."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if COMPLETE in os.environ:
        from click.shell_completion import shell_complete

        sys.exit(shell_complete(root, {}, "sbx", COMPLETE, os.environ[COMPLETE]))
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _reader_left()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    meta: dict[str, object] = {}
    try:
        with root.make_context("sbx", list(arguments)) as ctx:
            meta = ctx.meta
            code = root.invoke(ctx)
            return code if isinstance(code, int) else 0
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.ClickException as error:
        return _usage(error, meta)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except Exception as error:  # noqa: BLE001 — the last resort of the program: a defect is an error, not a trace
        return _failure(error, meta)


def _failure(error: Exception, meta: dict[str, object]) -> int:
    from ringfence.client.errors import RingfenceError

    if not isinstance(error, RingfenceError):
        if meta.get("ringfence.debug"):
            raise error
        kind = "internal" if not isinstance(error, OSError) else "system"
        text = str(error) or type(error).__name__
        error = RingfenceError(
            text if kind == "system" else f"this is a defect of sbx: {type(error).__name__}: {text}",
            hint="" if kind == "system" else "`sbx --debug …` shows where it comes from",
            code=kind,
        )
    if meta.get("ringfence.json"):
        problem = {
            "code": error.code,
            "message": str(error),
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
        out_json({"error": problem})
    else:
        show_error(str(error), error.hint)
    return error.exit_code


def _usage(error: click.ClickException, meta: dict[str, object]) -> int:
    """Click's message in the product's shape: lower case, no full stop, then where to read on."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        err(error.format_message())
        return 2
    message = error.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    hint = getattr(error, "hint", "") or (f"see `{ctx.command_path} --help`" if ctx else "")
    if meta.get("ringfence.json"):
        out_json({"error": {"code": "usage", "message": message, "hint": hint, "exit_code": 2}})
    else:
        show_error(message, hint)
    return 2


def _reader_left() -> int:
    """Whoever read our output has gone (``| head``): nothing is wrong, and nothing more is to be written."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
    return 0
