"""Making, listing and removing sandboxes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ringfence.cli import reach
from ringfence.cli.commands import command, json_option
from ringfence.cli.options import (
    agent_argument,
    creation_options,
    environment,
    sandbox_argument,
    workspaces,
)
from ringfence.cli.terminal.screen import (
    GREEN,
    RED,
    fields,
    interactive,
    out,
    out_json,
    paint,
    plain,
    progress,
)

if TYPE_CHECKING:
    from ringfence.client.api import Daemon
    from ringfence.client.shapes import Sandbox, SandboxDetail


@command(
    "create",
    examples=(
        "sbx create --name=lab shell .                    # this directory, at the same path inside",
        "sbx create shell ~/project ~/reference:ro        # a second directory, read-only",
        "sbx create --runtime namespaces --memory 4g shell .",
    ),
)
@creation_options
@click.option("-q", "--quiet", is_flag=True, help="Print the name and nothing else.")
@agent_argument
@click.argument("paths", metavar="[PATH[:ro]]...", nargs=-1)
def create(agent: str, paths: tuple[str, ...], quiet: bool, **options: Any) -> None:
    """Make a sandbox for AGENT that sees the directories PATH, and nothing else of this machine's files.

    The first directory is the working directory inside; without any the sandbox has none. It is started by
    the first `sbx run` or `sbx exec`.
    """
    from ringfence.cli.policy.presets import with_policy

    daemon = reach.daemon()
    specification = specified(agent, workspaces(paths), options, anonymous=False)
    made = with_policy(daemon, lambda: daemon.create(specification))
    if quiet:
        out(plain(made["name"]))
    else:
        out(created_text(made))


def specified(
    agent: str, directories: Sequence[str], options: dict[str, Any], *, anonymous: bool
) -> dict[str, object]:
    """What is asked of the daemon; what was not said is left to it."""
    said = {
        "name": options["name"],
        "runtime": options["runtime"],
        "template": options["template"],
        "cpus": options["cpus"],
        "memory": options["memory"],
        "environment": environment(options["env"], options["env_file"], os.environ),
        "deny_network": list(options["deny_network"]),
    }
    return {
        "agent": agent,
        "workspaces": list(directories),
        "anonymous": anonymous,
        **{key: value for key, value in said.items() if value},
        **({"protect_git": False} if options["no_protect_git"] else {}),
    }


def created_text(made: Sandbox) -> str:
    first, *others = made["workspaces"] or [""]
    lines = [
        f"{paint('✓', GREEN)} Created sandbox '{plain(made['name'])}'",
        f"  Workspace: {plain(first)} (direct mount)"
        if first
        else "  Workspace: none (no workspace bind mount)",
        f"  Additional Workspaces: {plain(', '.join(others))}" if others else "",
        f"  Agent: {plain(made['agent'])}",
        f"  Isolation: {plain(made['isolation'])} ({plain(made['runtime'])})",
        "\nTo connect to this sandbox, run:",
        f"  sbx run {plain(made['name'])}",
    ]
    return "\n".join(line for line in lines if line)


@command("ls", examples=("sbx ls", "sbx ls -q | xargs sbx stop", "sbx ls --json"))
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print names and nothing else.")
def ls(as_json: bool, quiet: bool) -> None:
    """List sandboxes, their isolation, and whether their enclosure is proven at the moment (enforcing)."""
    found = reach.daemon().sandboxes()
    if as_json:
        out_json({"sandboxes": found})
    elif quiet:
        for sandbox in found:
            out(plain(sandbox["name"]))
    elif not found:
        out("No sandboxes found.")
    else:
        out(listing(found))


def listing(found: Sequence[Sandbox]) -> str:
    from ringfence.cli.terminal.table import table

    rows = [
        (
            sandbox["name"],
            sandbox["agent"],
            sandbox["status"],
            _isolation(sandbox),
            ",".join(_port(port) for port in sandbox.get("ports") or ()),
            ", ".join(sandbox["workspaces"]),
        )
        for sandbox in found
    ]
    headers = ("SANDBOX", "AGENT", "STATUS", "ISOLATION", "PORTS", "WORKSPACE")
    return table(headers, rows, paints={2: _status_paint, 3: _isolation_paint})


def _isolation(sandbox: Sandbox) -> str:
    shown = sandbox["status"] == "running" or sandbox["enforcement"] != "off"
    return f"{sandbox['isolation']} ({sandbox['enforcement']})" if shown else sandbox["isolation"]


def _port(port: dict[str, Any]) -> str:
    return f"{port.get('host_ip')}:{port.get('host_port')}->{port.get('sandbox_port')}/{port.get('protocol')}"


def _status_paint(status: str) -> str:
    return paint(status, GREEN) if status == "running" else status


def _isolation_paint(isolation: str) -> str:
    return paint(isolation, RED) if "degraded" in isolation or "(off)" in isolation else isolation


@command("inspect", examples=("sbx inspect lab", "sbx inspect lab --json"))
@json_option
@sandbox_argument()
def inspect(sandbox: str, as_json: bool) -> None:
    """Show everything about a sandbox: isolation, enforcement, limits, policy scope, addresses."""
    found = reach.daemon().sandbox(sandbox)
    if as_json:
        out_json(found)
    else:
        out(described(found))


def described(found: SandboxDetail) -> str:
    import time

    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["created"]))
    first, *others = found["workspaces"] or ["none"]
    return fields(
        {
            "Name": found["name"],
            "ID": found["id"],
            "Agent": found["agent"],
            "Status": found["status"],
            "Isolation": f"{found['isolation']} ({found['runtime']})",
            "Enforcement": found["enforcement"],
            "Template": found.get("template", ""),
            "Workspace": first,
            "Additional workspaces": ", ".join(others),
            "Anonymous": "yes, removed when its last session ends cleanly" if found["anonymous"] else "",
            "Limits": _pairs(found.get("limits")),
            "Environment": " ".join(sorted(found.get("environment") or ())),
            "Secrets": ", ".join(f"{each['name']} ({each['scope']})" for each in found.get("secrets") or ()),
            "Ports": ", ".join(_port(port) for port in found.get("ports") or ()),
            "Sessions": str(found.get("sessions", 0)),
            "Policy": _pairs(found.get("policy")),
            "Addresses": _pairs(found.get("addresses")),
            "Observed": _pairs(found.get("observed")),
            "Created": created,
            "Socket": found["socket_path"],
        }
    )


def _pairs(value: dict[str, Any] | None) -> str:
    return ", ".join(f"{key} {shown}" for key, shown in (value or {}).items() if shown not in ("", None, 0))


@command("stop", examples=("sbx stop lab", "sbx stop lab other"))
@sandbox_argument("sandboxes", metavar="SANDBOX...", nargs=-1, required=True)
def stop(sandboxes: tuple[str, ...]) -> int:
    """Stop sandboxes. Their state is kept; `sbx run` starts them again."""
    daemon = reach.daemon()

    def one(name: str) -> None:
        progress(f"Stopping sandbox {plain(name)}...")
        daemon.stop(name)
        out(f"Sandbox '{plain(name)}' stopped")

    return each(sandboxes, one)


@command("rm", examples=("sbx rm lab", "sbx rm -f lab other", "sbx rm --all"))
@click.option("--all", "everything", is_flag=True, help="Remove all sandboxes.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@sandbox_argument("sandboxes", metavar="[SANDBOX]...", nargs=-1)
def rm(sandboxes: tuple[str, ...], everything: bool, force: bool) -> int:
    """Remove sandboxes and everything in them; their workspaces on this machine stay.

    On a terminal it asks first. Elsewhere named sandboxes are removed, and --all needs --force.
    """
    if everything == bool(sandboxes):
        raise click.UsageError("name the sandboxes to remove, or say --all", click.get_current_context())
    if everything and not force and not interactive():
        raise click.UsageError(
            "--all without a terminal to ask on needs --force", click.get_current_context()
        )
    daemon = reach.daemon()
    names = [found["name"] for found in daemon.sandboxes()] if everything else list(dict.fromkeys(sandboxes))
    if not names:
        out("No sandboxes found.")
        return 0
    if not force and interactive() and not _agreed(daemon, names):
        out("Cancelled")
        return 1

    def one(name: str) -> None:
        progress(f"Deleting sandbox {plain(name)}...")
        daemon.remove(name)
        out(f"Sandbox '{plain(name)}' removed")

    return each(names, one)


def _agreed(daemon: Daemon, names: Sequence[str]) -> bool:
    from ringfence.cli.terminal.prompt import confirm
    from ringfence.cli.terminal.screen import warn

    running = {found["name"] for found in daemon.sandboxes() if found["status"] == "running"}
    for name in names:
        if name in running:
            warn(f"sandbox '{name}' is running")
    one = f"sandbox '{names[0]}'"
    which = one if len(names) == 1 else f"{len(names)} sandboxes ({', '.join(names)})"
    return confirm(f"Remove {plain(which)} and everything outside the workspace?")


def each(names: Sequence[str], act: Callable[[str], None]) -> int:
    """Do the same for every name, whatever fails for one. The first failure's code is returned."""
    from ringfence.cli.terminal.screen import show_error
    from ringfence.client.errors import RingfenceError

    code = 0
    for name in names:
        try:
            act(name)
        except RingfenceError as error:
            show_error(str(error), error.hint)
            code = code or error.exit_code
    return code
