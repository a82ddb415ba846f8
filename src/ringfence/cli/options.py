"""What people write after an option, parsed once: sizes, durations, environments, workspaces.

Each parser is total: a value, or a usage error that says what to write. Whether a resource means anything is
the policy engine's to say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from ringfence.cli.completion import rule_ids, sandbox_names

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class Memory(click.ParamType[int]):
    """Bytes in binary units: ``1024m``, ``8g``, ``4GiB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,15})(?:\.(\d{1,3}))?\s*([bkmgt]?)(?:i?b)?", str(value).lower())
        if found is None or not (amount := int(float(f"{found[1]}.{found[2] or 0}") * _UNITS[found[3]])):
            self.fail(f"`{value}` is no size; write for example 1024m or 8g", param, ctx)
        return amount


class Duration(click.ParamType[int]):
    """Seconds from ``90s``, ``30m``, ``2h``, ``7d``, ``1h30m``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).lower()
        if not re.fullmatch(r"(\d{1,9}[smhdw])+", text):
            self.fail(f"`{value}` is no duration; write for example 30m, 2h or 7d", param, ctx)
        seconds = sum(int(amount) * _SECONDS[unit] for amount, unit in re.findall(r"(\d+)([smhdw])", text))
        if not seconds:
            self.fail("a duration of nothing ends before it begins; write for example 30m", param, ctx)
        return seconds


def environment(pairs: Sequence[str], files: Sequence[str], host: Mapping[str, str]) -> dict[str, str]:
    """Variables of files, then of ``-e``. ``NAME`` alone takes the host's value, if there is one."""
    chosen: dict[str, str] = {}
    for entry in [*(line for path in files for line in _file_lines(path)), *pairs]:
        name, equals, value = entry.partition("=")
        if not re.fullmatch(r"[^\s=\x00]+", name) or "\x00" in value:
            raise click.UsageError(
                f"`{entry}` is no variable; write NAME=value, or NAME to take it from here"
            )
        if equals:
            chosen[name] = value
        elif name in host:
            chosen[name] = host[name]
    return chosen


def _file_lines(path: str) -> Iterable[str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise click.UsageError(f"the environment file `{path}` cannot be read: {reason}") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def workspaces(paths: Sequence[str]) -> list[str]:
    """Absolute paths as the daemon takes them, ``:ro`` at the end where one is to be read-only."""
    return [_workspace(path) for path in paths]


def _workspace(text: str) -> str:
    path, mark, suffix = text.rpartition(":")
    if mark and suffix in ("ro", "readonly", "rw"):
        return os.path.realpath(path) + ("" if suffix == "rw" else ":ro") if path else _no_path(text)
    return os.path.realpath(text) if text else _no_path(text)


def _no_path(text: str) -> str:
    raise click.UsageError(f"`{text}` names no directory")


def words(texts: Sequence[str]) -> list[str]:
    """The words of options that take a list with commas and may be repeated."""
    return [word.strip() for text in texts for word in text.split(",") if word.strip()]


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def creation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that ``create`` and ``run`` share."""
    for option in reversed(
        (
            click.option("--name", metavar="NAME", help="Name of the sandbox. Default: <agent>-<directory>."),
            click.option(
                "--runtime",
                metavar="RUNTIME",
                help="Isolation: auto, gvisor or namespaces. Default: the strongest that works here.",
            ),
            click.option("-t", "--template", metavar="TEMPLATE", help="Root file system: host or debian."),
            click.option(
                "--cpus",
                type=click.FloatRange(min=0),
                metavar="N",
                help="CPUs (0: one less than the host has).",
            ),
            click.option(
                "-m",
                "--memory",
                type=Memory(),
                metavar="SIZE",
                help="Memory in binary units: 1024m, 8g. Default: half the host's.",
            ),
            click.option(
                "-e", "--env", "env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable inside."
            ),
            click.option(
                "--env-file", "env_file", multiple=True, metavar="FILE", help="Read variables from a file."
            ),
            click.option(
                "--deny-network",
                "deny_network",
                multiple=True,
                metavar="RESOURCES",
                help="Deny this sandbox what others may reach.",
            ),
            click.option(
                "--no-protect-git",
                "no_protect_git",
                is_flag=True,
                help="Let the sandbox change git's hooks and configuration, which the host executes.",
            ),
        )
    ):
        function = option(function)
    return function


def agents() -> list[str]:
    """Names of agents, which are reserved: what ``run`` is given is an agent if it is one of these."""
    from ringfence.sandbox.agents import AGENTS

    return list(AGENTS)


def agent_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """An agent's name; the daemon knows whether it can be had."""
    return click.argument(
        "agent",
        metavar="AGENT",
        shell_complete=lambda _ctx, _param, start: [name for name in agents() if name.startswith(start)],
    )(function)


def sandbox_argument(name: str = "sandbox", **options: Any) -> Decorator:
    """A sandbox's name as an argument; shells complete it."""
    return click.argument(
        name, metavar=options.pop("metavar", "SANDBOX"), shell_complete=sandbox_names, **options
    )


def sandbox_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--sandbox", default="", metavar="NAME", shell_complete=sandbox_names, help="For this sandbox alone."
    )(function)


def rule_id_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--id",
        "rule",
        default="",
        metavar="ID",
        shell_complete=rule_ids,
        help="The rule's id, with or without `local:`.",
    )(function)
