"""The way from a command to the daemon, which is started on first need."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from ringfence.cli.terminal.screen import warn
from ringfence.locations import Locations, locate

if TYPE_CHECKING:
    from ringfence.client.api import Daemon


def here() -> Locations:
    """The locations of this installation."""
    return locate(os.environ, home=os.path.expanduser("~"))


def daemon() -> Daemon:
    """The daemon, started if it was not. A person is told when it is of another version."""
    from ringfence.client.daemon import ensure_daemon

    told = sys.stderr.isatty() and not click.get_current_context().find_root().meta.get("ringfence.json")
    return ensure_daemon(here(), os.environ, notice=warn if told else lambda _text: None)


def running_daemon() -> Daemon | None:
    """The daemon if one listens; never starts one."""
    from ringfence.client.api import Daemon
    from ringfence.client.daemon import listening

    path = str(here().socket)
    return Daemon(path) if listening(path) else None
