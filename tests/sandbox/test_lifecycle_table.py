"""The lifecycle table: total, and every path through it ends."""

from __future__ import annotations

from itertools import product

import pytest

from ringfence.sandbox.lifecycle import FINAL, LONGEST, TABLE, Command, conclude, resumed
from ringfence.sandbox.model import Condition, Desired

AFTER = {
    Command.CREATE: {Condition.CREATED},
    Command.START: {Condition.RUNNING},
    Command.STOP: {Condition.CREATED, Condition.EXITED, Condition.ABSENT},
    Command.REMOVE: {Condition.ABSENT},
}
"""What a driver that does its work reports next."""

PURPOSE = {Desired.STOPPED: Command.REST, Desired.RUNNING: Command.ADOPT, Desired.REMOVED: Command.FORGET}


def test_the_table_is_total() -> None:
    assert TABLE.keys() == set(product(Desired, Condition))


@pytest.mark.parametrize("desired", Desired)
@pytest.mark.parametrize("condition", Condition)
def test_every_path_ends_where_it_was_meant_to(desired: Desired, condition: Condition) -> None:
    paths = [(condition, 0)]
    while paths:
        here, length = paths.pop()
        command = conclude(desired, here)
        assert length < LONGEST, "a driver that does its work is never said to contradict itself"
        if command in FINAL:
            assert command is PURPOSE[desired]
        else:
            paths += [(after, length + 1) for after in AFTER[command]]


@pytest.mark.parametrize(
    ("desired", "condition", "after"),
    [
        (Desired.RUNNING, Condition.RUNNING, Desired.RUNNING),
        (Desired.RUNNING, Condition.EXITED, Desired.STOPPED),
        (Desired.RUNNING, Condition.CREATED, Desired.STOPPED),
        (Desired.RUNNING, Condition.ABSENT, Desired.STOPPED),
        (Desired.RUNNING, Condition.UNKNOWN, Desired.STOPPED),
        (Desired.STOPPED, Condition.RUNNING, Desired.STOPPED),
        (Desired.REMOVED, Condition.RUNNING, Desired.REMOVED),
    ],
)
def test_who_was_away_starts_nothing_and_deletes_nothing_that_was_not_begun(
    desired: Desired, condition: Condition, after: Desired
) -> None:
    assert resumed(desired, condition) is after
