"""Clients that refuse the certificate authority: what the doctor says of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ringfence.application.doctor import Check, Status
from ringfence.application.mistrust import HOSTS, Mistrust
from ringfence.gateway.core.refusal import UNTRUSTED

ADVICE = "on the host, `sbx policy allow network --inspect never a.test:443` passes it through unread"


def record(ended: str = "mistrusted", host: str = "a.test", **more: Any) -> dict[str, Any]:
    return {
        "step": "closed",
        "sandbox": "1",
        "sandbox_name": "lab",
        "host": host,
        "port": 443,
        "protocol": "tls",
        "verdict": "allowed",
        "ended": ended,
        "text": f"{UNTRUSTED}; {ADVICE}",
        **more,
    }


def fed(*records: dict[str, Any]) -> Sequence[Check]:
    mistrust = Mistrust()
    for each in records:
        mistrust.heed(each)
    return asyncio.run(mistrust.examine())


def test_a_host_is_shown_with_the_command_that_would_bypass_it() -> None:
    (check,) = fed(record(), record())
    assert check == Check(
        name="certificate",
        status=Status.WARN,
        message=f"is refused in `lab` for `a.test:443` (2 times): {UNTRUSTED}",
        hint=ADVICE,
    )


def test_what_is_no_refusal_is_not_shown() -> None:
    assert fed() == []
    assert fed(record(step="opened")) == []
    assert fed(record("failed")) == []
    assert fed(record(protocol="http/1.1")) == []
    assert fed({"dropped": 3}) == []


def test_a_host_that_is_passed_through_is_forgotten() -> None:
    assert fed(record(), record("failed"), record(host="b.test"), record("done"))[0].message.startswith(
        "is refused in `lab` for `b.test:443`"
    )
    assert len(fed(record(), record(), record("client", sandbox="2"))) == 1
    assert fed(record(), record("client")) == []


def test_what_is_remembered_is_bounded_and_one_sandbox_does_not_crowd_out_another() -> None:
    mistrust = Mistrust()
    mistrust.heed(record(sandbox="2", sandbox_name="quiet"))
    for number in range(HOSTS * 2):
        mistrust.heed(record(host=f"h{number}.test"))
    assert len(mistrust._known) == 1 + HOSTS // 8
    for number in range(HOSTS * 2):
        mistrust.heed(record(sandbox=f"s{number}"))
    assert len(mistrust._known) == HOSTS
