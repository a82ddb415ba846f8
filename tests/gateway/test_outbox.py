"""Records reach the daemon once, in order, again after a reconnect; refusals are never dropped (section 7)."""

from __future__ import annotations

from ringfence.gateway.outbox import Outbox


def outbox(limit: int = 1000) -> tuple[Outbox, list[int]]:
    rung: list[int] = []
    return Outbox(limit, lambda: rung.append(1)), rung


def test_records_leave_in_order_and_are_rung_for_once() -> None:
    box, rung = outbox()
    for name in (b"1", b"2", b"3"):
        box.add(name, True)
    assert len(rung) == 1
    assert box.take() == (1, b"1,2,3")
    assert box.take() is None
    box.add(b"4", True)
    assert len(rung) == 2
    assert box.take() == (2, b"4")


def test_what_was_not_acknowledged_is_sent_again() -> None:
    box, rung = outbox()
    box.add(b"1", True)
    first = box.take()
    box.add(b"2", True)
    second = box.take()
    box.acknowledge(1)
    box.add(b"3", True)
    box.reconnect()
    assert rung
    assert (box.take(), box.take(), box.take()) == (second, (3, b"3"), None)
    assert first == (1, b"1")
    box.acknowledge(3)
    box.reconnect()
    assert box.take() is None


def test_overload_drops_what_was_allowed_and_says_how_many() -> None:
    box, _ = outbox(limit=10)
    for _ in range(5):
        box.add(b"allowed", True)
    box.add(b"refused", False)
    box.add(b"refused", False)
    assert box.dropped == 3
    assert box.take() == (1, b"allowed,allowed,refused,refused")
    assert box.take() == (2, b'{"dropped":3}')
    box.add(b"later", True)
    assert box.take() == (3, b"later")


def test_refusals_alone_congest_and_are_relieved() -> None:
    box, _ = outbox(limit=10)
    for _ in range(3):
        box.add(b"refused", False)
    assert (box.congested, box.relieved, box.dropped) == (True, False, 0)
    box.take()
    assert (box.congested, box.relieved) == (False, True)


def test_messages_are_bounded_and_so_is_what_waits_for_acknowledgement() -> None:
    box, _ = outbox(limit=1 << 30)
    for _ in range(200):
        box.add(b"x" * 100_000, True)
    taken = []
    while (batch := box.take()) is not None:
        taken.append(batch)
    assert all(len(body) < 500_000 for _, body in taken)
    assert len(taken) == 64
    box.acknowledge(8)
    assert box.take() is not None
