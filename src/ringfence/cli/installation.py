"""The installation itself: its daemon, its health, its versions."""

from __future__ import annotations

import click

from ringfence import __version__
from ringfence.cli import reach
from ringfence.cli.commands import Entry, Group, command, json_option
from ringfence.cli.terminal.screen import (
    GREEN,
    RED,
    YELLOW,
    fields,
    out,
    out_json,
    paint,
    plain,
    progress,
)

UNREACHABLE = 5

daemon = Group(
    "daemon",
    sections={
        "Commands": {
            "start": Entry(module=__name__, attribute="start", line="Start the daemon, unless it runs."),
            "stop": Entry(module=__name__, attribute="stop", line="Stop the daemon; sandboxes go on."),
            "status": Entry(
                module=__name__, attribute="status", line="Say whether the daemon runs, and where."
            ),
        }
    },
    help="Start, stop or look at the daemon. Commands start it on first need by themselves.",
)


@command("start", examples=("sbx daemon start", "sbx daemon start --policy balanced"))
@click.option("-d", "--detach", is_flag=True, hidden=True)
@click.option(
    "--policy", "preset", metavar="PRESET", help="Choose the preset: allow-all, balanced or deny-all."
)
def start(detach: bool, preset: str | None) -> None:
    """Start the daemon, unless it runs."""
    del detach  # it always is
    client = reach.daemon()
    state = client.state()
    out(f"Daemon started (PID: {state['pid']}, socket: {plain(state['socket'])})")
    out(f"Logs: {plain(str(reach.here().daemon_log))}")
    if preset:
        from ringfence.cli.policy.presets import preset_text

        out(preset_text(client.choose_preset(preset)))


@command("stop", examples=("sbx daemon stop", "sbx daemon stop --sandboxes stop"))
@click.option(
    "--sandboxes",
    type=click.Choice(["keep", "stop"]),
    default="keep",
    show_default=True,
    help="Whether sandboxes go on under the policy in force, or are stopped first.",
)
def stop(sandboxes: str) -> None:
    """Stop the daemon. The next command that needs it starts it again."""
    client = reach.running_daemon()
    if client is None:
        out("The daemon is not running.")
        return
    progress("Stopping the daemon...")
    client.shut_down(sandboxes=sandboxes)
    out("Daemon stopped")


@command("status", examples=("sbx daemon status", "sbx daemon status --json"))
@json_option
def status(as_json: bool) -> int:
    """Say whether the daemon runs. Leaves with 0 if it does and with 5 if not; never starts it."""
    import time

    client = reach.running_daemon()
    state = client.state() if client else None
    if as_json:
        out_json({"status": "running", **state} if state else {"status": "not running"})
    elif state is None:
        out("Status: not running")
    else:
        gateway = state.get("gateway") or {}
        pairs = {
            "Version": state["version"],
            "PID": str(state["pid"]),
            "Started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state["started"])),
            "Socket": state["socket"],
            "State": state["state_dir"],
            "Gateway": ", ".join(f"pid {worker['pid']}" for worker in gateway.get("workers") or [gateway])
            if gateway.get("alive")
            else "not running: no egress",
            "Enforcement": state["enforcement"],
        }
        out(f"Status: running\n{fields(pairs, indent='  ')}")
    return 0 if state else UNREACHABLE


_MARKS = {"pass": ("✓", GREEN), "warn": ("!", YELLOW), "fail": ("✗", RED), "skip": ("-", "")}


@command("doctor", examples=("sbx doctor", "sbx doctor --json"))
@json_option
def doctor(as_json: bool) -> int:
    """Check what works on this machine and say how to get what does not. Leaves with 1 if a check fails."""
    from ringfence.client.errors import RingfenceError

    try:
        report = reach.daemon().doctor()
    except RingfenceError as error:
        report = {
            "version": __version__,
            "checks": [{"name": "daemon", "status": "fail", "message": str(error), "hint": error.hint}],
            "summary": {"pass": 0, "warn": 0, "fail": 1, "skip": 0},
        }
    if as_json:
        out_json(report)
    else:
        for check in report["checks"]:
            mark, colour = _MARKS.get(check["status"], ("?", YELLOW))
            out(
                f"{paint(mark, colour) if colour else mark} {plain(check['name'])}: {plain(check['message'])}"
            )
            for line in (check.get("detail"), check.get("hint")):
                if line:
                    out(f"    {plain(line)}")
        out("\n" + ", ".join(f"{count} {name}" for name, count in report["summary"].items()))
    return 1 if report["summary"].get("fail") else 0


@command("version", examples=("sbx version", "sbx version --json"))
@json_option
def version(as_json: bool) -> None:
    """Print the versions of sbx and of the daemon, if it runs."""
    client = reach.running_daemon()
    server = client.state()["version"] if client else None
    if as_json:
        out_json({"client": {"version": __version__}, "server": {"version": server} if server else None})
    else:
        out(f"Client Version:  v{__version__}")
        out(f"Server Version:  {'v' + plain(server) if server else '(not running)'}")


@click.command("help")
@click.argument("words", metavar="[COMMAND]...", nargs=-1)
@click.pass_context
def show_help(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Show the help of a command."""
    at = ctx.find_root()
    found: click.Command = at.command
    for word in words:
        if not isinstance(found, Group):
            raise click.UsageError(f"`{at.command_path}` has no commands of its own", at)
        _, inner, _ = found.resolve_command(at, [word])
        assert inner is not None
        at, found = click.Context(inner, parent=at, info_name=word), inner
    out(found.get_help(at))
