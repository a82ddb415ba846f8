"""Presets: choosing one, switching parts of it, starting over, and the question before the first sandbox.

The question is asked of a person at a terminal. Without one the preset that denies by default and lets common
tools work is put in force with one notice, unless the installation demands that a person chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from ringfence.cli import reach
from ringfence.cli.commands import command, json_option
from ringfence.cli.terminal.screen import err, interactive, out, out_json, plain

if TYPE_CHECKING:
    from ringfence.client.api import Daemon
    from ringfence.client.shapes import Presets

Answer = TypeVar("Answer")

TITLE = "Choose a default network policy:"
DEFAULT = "balanced"
NOTICE = "Notice: no network policy was chosen, so Balanced is in force now; `sbx policy reset` changes it"
CANCELLED = 1
_ALIASES = {"open": "allow-all", "locked-down": "deny-all"}


def with_policy(daemon: Daemon, act: Callable[[], Answer]) -> Answer:
    """Do what needs a policy; where none was chosen yet, have one chosen first."""
    from ringfence.client.errors import NOT_INITIALISED, RingfenceError

    try:
        return act()
    except RingfenceError as refusal:
        if refusal.code != NOT_INITIALISED:
            raise
        if interactive():
            preset = ask_preset(daemon)
            if preset is None:
                raise
            err(preset_text(daemon.choose_preset(preset)))
        else:
            daemon.choose_preset(DEFAULT, implicit=True)
            err(NOTICE)
    return act()


def ask_preset(daemon: Daemon) -> str | None:
    """Ask for a preset; ``None`` when the person cancels."""
    from ringfence.cli.terminal.prompt import choose

    presets = daemon.presets()["presets"]
    lines = [(preset["name"], _meaning(preset["line"])) for preset in presets]
    default = next((at for at, preset in enumerate(presets) if preset["value"] == DEFAULT), 0)
    chosen = choose(TITLE, lines, default=default)
    return None if chosen is None else presets[chosen]["value"]


def _meaning(line: str) -> str:
    """What a preset's line says after its number and name, if it has them."""
    return plain(line.partition("—")[2].strip() or line)


def preset_text(presets: Presets) -> str:
    chosen = next((preset for preset in presets["presets"] if preset["value"] == presets["chosen"]), None)
    if chosen is None:
        return f'Network policy set to "{plain(presets["chosen"] or "")}".'
    return f'Network policy set to "{plain(chosen["name"])}". {_meaning(chosen["line"])}'


class Preset(click.ParamType[str]):
    """A preset by its value, with the aliases that its name suggests."""

    name = "preset"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = _ALIASES.get(str(value).lower(), str(value).lower())
        if text not in ("allow-all", "balanced", "deny-all"):
            self.fail(f"`{value}` is no preset; there are allow-all, balanced and deny-all", param, ctx)
        return text


@command("init", examples=("sbx policy init balanced", "sbx policy init deny-all"))
@click.argument("preset", metavar="[allow-all|balanced|deny-all]", type=Preset(), required=False)
@click.pass_context
def init(ctx: click.Context, preset: str | None) -> int:
    """Choose the preset that a new installation starts from. Asks on a terminal when none is named."""
    if preset is None and not interactive():
        raise click.UsageError("name a preset: allow-all, balanced or deny-all", ctx)
    daemon = reach.daemon()
    preset = preset or ask_preset(daemon)
    if preset is None:
        return _cancelled()
    out(preset_text(daemon.choose_preset(preset)))
    return 0


@command(
    "reset",
    examples=(
        "sbx policy reset",
        "sbx policy reset --preset balanced",
        "sbx policy reset -f --preset deny-all",
    ),
)
@click.option(
    "--preset",
    type=Preset(),
    metavar="PRESET",
    help="allow-all, balanced or deny-all, instead of being asked.",
)
@click.option("-f", "--force", is_flag=True, help="Do not ask before rules are removed.")
@click.pass_context
def reset(ctx: click.Context, preset: str | None, force: bool) -> int:
    """Start over from a preset: your own rules are removed, and can be put back from the export that is
    written.

    Running sandboxes go on under the new policy at once. Secrets and the log stay. Under an organisation its
    policy is fetched anew.
    """
    if preset is None and not interactive():
        raise click.UsageError("no preset named and no terminal to ask on: say --preset balanced", ctx)
    daemon = reach.daemon()
    local, scoped = daemon.what_reset_removes()
    preset = preset or ask_preset(daemon)
    if preset is None:
        return _cancelled()
    if local or scoped:
        err(f"{_count(local, 'local rule')} and {_count(scoped, 'sandbox rule')} will be removed.")
        if not force and interactive() and not _sure():
            return _cancelled()
    done = daemon.reset(preset)
    out(preset_text({**daemon.presets(), "chosen": done["preset"]}))
    if done["removed"]:
        out(f"Removed {_count(done['removed'], 'rule')}. Undo: sbx policy import {plain(done['undo'])}")
    return 0


def _sure() -> bool:
    from ringfence.cli.terminal.prompt import confirm

    return confirm("Continue?")


def _cancelled() -> int:
    err("Cancelled: nothing was changed")
    return CANCELLED


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@command("ls", examples=("sbx policy preset ls", "sbx policy preset ls --json"))
@json_option
def ls(as_json: bool) -> None:
    """List the presets, and the groups of the one in force with what is switched off."""
    from ringfence.cli.terminal.table import table

    found = reach.daemon().presets()
    if as_json:
        out_json(found)
        return
    rows = [
        (
            preset["value"],
            preset["name"],
            "in force" if preset["value"] == found["chosen"] else "",
            _meaning(preset["line"]),
        )
        for preset in found["presets"]
    ]
    out(table(("PRESET", "NAME", "STATE", "MEANING"), rows))
    if found["groups"]:
        out("\n" + _groups(found))


def _groups(found: Presets) -> str:
    from ringfence.cli.terminal.table import table

    rows = []
    for group in found["groups"]:
        rows.append((group["name"], "on" if group["enabled"] else "off", str(len(group["resources"]))))
        rows.extend(
            (
                f"  {group['name']}/{part['name'].rpartition('/')[2]}",
                "on" if part["enabled"] and group["enabled"] else "off",
                str(len(part["resources"])),
            )
            for part in group["parts"]
        )
    return table(("GROUP", "STATE", "RESOURCES"), rows)


def _switch(name: str, *, enabled: bool) -> None:
    daemon = reach.daemon()
    daemon.switch_group(name, enabled=enabled)
    out(f"{plain(name)} is {'on' if enabled else 'off'}")


@command("enable", examples=("sbx policy preset enable default-cloud-infrastructure",))
@click.argument("group", metavar="GROUP[/PART]")
def enable(group: str) -> None:
    """Switch a group of the preset, or a part of one, on."""
    _switch(group, enabled=True)


@command("disable", examples=("sbx policy preset disable default-cloud-infrastructure/storage",))
@click.argument("group", metavar="GROUP[/PART]")
def disable(group: str) -> None:
    """Switch a group of the preset, or a part of one, off. Rules of a preset are not removed one by one."""
    _switch(group, enabled=False)
