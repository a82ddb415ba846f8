"""The one place that draws a conclusion from what was asked for and what was observed.

A sandbox's life is a loop, not a script: observe, look the pair up in ``TABLE``, carry out the command,
observe again, until the command is ``REST``, ``ADOPT`` or ``FORGET``. So a crash between any two steps
needs no repair code of its own: whoever comes next enters the same loop where the last one left it. Every
path through the table ends within ``LONGEST`` commands; a driver that keeps contradicting itself is a
failure, never a loop.
"""

from __future__ import annotations

from enum import StrEnum

from ringfence.sandbox.model import Condition, Desired


class Command(StrEnum):
    """What has to be done next."""

    REST = "rest"
    """It does not run and is not meant to: make sure that nothing is kept up for it either."""
    CREATE = "create"
    START = "start"
    ADOPT = "adopt"
    """It runs and is meant to: make sure that gateway, supervisor and heartbeat serve it."""
    STOP = "stop"
    REMOVE = "remove"
    FORGET = "forget"
    """Nothing of it is left outside the store."""


LONGEST = 5
"""Commands in the longest path (of a driver that lost track: stop, create, start, adopt), and one to spare."""

TABLE = {
    (Desired.STOPPED, Condition.ABSENT): Command.CREATE,
    (Desired.STOPPED, Condition.CREATED): Command.REST,
    (Desired.STOPPED, Condition.RUNNING): Command.STOP,
    (Desired.STOPPED, Condition.EXITED): Command.REST,
    (Desired.STOPPED, Condition.UNKNOWN): Command.STOP,
    (Desired.RUNNING, Condition.ABSENT): Command.CREATE,
    (Desired.RUNNING, Condition.CREATED): Command.START,
    (Desired.RUNNING, Condition.RUNNING): Command.ADOPT,
    (Desired.RUNNING, Condition.EXITED): Command.START,
    (Desired.RUNNING, Condition.UNKNOWN): Command.STOP,
    (Desired.REMOVED, Condition.ABSENT): Command.FORGET,
    (Desired.REMOVED, Condition.CREATED): Command.REMOVE,
    (Desired.REMOVED, Condition.RUNNING): Command.STOP,
    (Desired.REMOVED, Condition.EXITED): Command.REMOVE,
    (Desired.REMOVED, Condition.UNKNOWN): Command.REMOVE,
}

FINAL = frozenset({Command.REST, Command.ADOPT, Command.FORGET})


def conclude(desired: Desired, condition: Condition) -> Command:
    """Return the next command. The table is total."""
    return TABLE[desired, condition]


def resumed(desired: Desired, condition: Condition) -> Desired:
    """Return what is desired after the daemon or the host was away.

    A lost daemon stops and keeps, it never deletes and never starts anything by itself: a sandbox that no
    longer runs stays stopped until a person asks for it. A removal that was begun is finished.
    """
    if desired is Desired.RUNNING and condition is not Condition.RUNNING:
        return Desired.STOPPED
    return desired
