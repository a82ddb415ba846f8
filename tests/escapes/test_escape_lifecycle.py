"""LIF-01 to LIF-07: what was allowed a moment ago, what is not in force yet, and what is in force no more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from tests.escapes.escape_stage import (
    CLIENT4,
    PATIENCE,
    Ask,
    Lab,
    Outcome,
    allowed,
    forward,
    get,
    inside,
    policy,
    redirected,
    refused,
    rule,
    tunnel,
)

from ringfence.policy.document import parse_document
from ringfence.policy.effective import EffectivePolicy
from ringfence.policy.errors import InvalidPolicy
from ringfence.policy.model import Kind

HEARD = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
ALLOW = rule("allow", "a.test")

# -- LIF-01 ---------------------------------------------------------------------------------------------------

OPEN: dict[str, tuple[Callable[[], Ask], int, bytes, bytes]] = {
    # the ask, the origin's port, what the origin says, what the client has read when policy changes
    "a tunnel": (lambda: tunnel("a.test", b"\1hello", port=7000), 7000, b"", b"ready"),
    "a stream of events": (lambda: inside("a.test", get("a.test")), 443, ENDLESS, b"\r\n\r\n"),
    "a WebSocket": (
        lambda: inside("a.test", get("a.test", "/", "Connection: Upgrade", "Upgrade: websocket")),
        443, SWITCH, b"\r\n\r\n",
    ),
    "keep-alive": (lambda: inside("a.test", get("a.test")), 443, b"HTTP/1.1 204 No Content\r\n\r\n", b"\r\n\r\n"),
    "keep-alive in the clear": (
        lambda: redirected("a.test", get("a.test")), 80, b"HTTP/1.1 204 No Content\r\n\r\n", b"\r\n\r\n",
    ),
}  # fmt: skip
CHANGES: dict[str, Callable[[Lab], None]] = {
    "a deny": lambda lab: lab.bind(ALLOW, rule("deny", "a.test")),
    "the rule's end": lambda lab: lab.bind(),
    "a cut": lambda lab: lab.stage.guest.cut(True, time.time()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize(("make", "port", "reply", "mark"), OPEN.values(), ids=OPEN.keys())
def test_lif_01_what_is_open_ends_with_the_policy_that_opened_it(
    lab: Lab, make: Callable[[], Ask], port: int, reply: bytes, mark: bytes, change: Callable[[Lab], None]
) -> None:
    lab.bind(ALLOW)
    lab.serve("a.test", port=port, tls=port == 443, reply=reply, greeting=b"ready" if port == 7000 else b"")
    ask = make()

    async def scene() -> None:
        lab.forget()
        client = await ask.open(lab)
        client.send(ask.payload)
        await client.until(mark)
        heard = lab.upstream
        lab.bind(ALLOW)  # another policy that says the same
        await asyncio.sleep(0)
        assert lab.stage.guest.links  # disturbs nobody
        change(lab)
        client.send(b"\1more" if port == 7000 else get("a.test"))
        assert (await client.end()).removesuffix(b"<reset>") == b""
        client.close()
        await lab._quiet()
        assert lab.upstream == heard

    lab.run(scene())
    ends = [each.get("ended") for each in lab.stage.records]
    assert ends.count("revoked") == 1, lab.stage.records
    lab.stage.guest.cut(False, time.time())
    lab.sentinel()


# -- LIF-02 ---------------------------------------------------------------------------------------------------


def test_lif_02_every_decision_is_of_one_policy(lab: Lab) -> None:
    """A storm of new policies under load: odd revisions allow, even ones do not, and no answer mixes two."""
    lab.serve("a.test", port=80, tls=False)
    storms = 300

    async def swap() -> None:
        for number in range(storms):
            rules = (ALLOW,) if number % 2 else (rule("allow", "b.test"),)
            lab.stage.guest.bind(policy(*rules, revision=1_000 + number), time.time())
            await asyncio.sleep(0)

    async def ask(seen: list[int]) -> None:
        client = await lab.stage.dial()
        while swapping.done() is False:
            client.send(get("a.test", "http://a.test/"))
            try:
                status, _, _ = await client.response()
            except (asyncio.IncompleteReadError, ConnectionError):
                client = await lab.stage.dial()
                continue
            seen.append(status)
        client.close()

    seen: list[int] = []

    async def scene() -> None:
        nonlocal swapping
        swapping = asyncio.get_running_loop().create_task(swap())
        await asyncio.gather(swapping, *(ask(seen) for _ in range(8)))
        await lab._quiet()

    swapping: asyncio.Task[None]
    lab.run(scene())
    opened = lab.stage.recorded("opened")
    assert {each["verdict"] for each in opened} == {"allowed", "blocked"}
    for each in opened:
        assert (each["verdict"] == "allowed") is bool(each["revision"] % 2), each
    assert set(seen) <= {200, 403}
    lab.bind(ALLOW)
    lab.expect(forward(get("a.test", "http://a.test/")), allowed(HEARD))


@pytest.mark.parametrize(
    "broken", [{"rules": [{"id": "x"}]}, {"rules": "all"}, [], {"rules": [{"effect": "permit"}]}]
)
def test_lif_02_a_policy_that_is_none_never_comes_into_force(lab: Lab, broken: object) -> None:
    lab.bind(rule("allow", "b.test"))
    before = lab.stage.guest.subject.policy
    with pytest.raises(InvalidPolicy):
        parse_document(broken)
    with pytest.raises((InvalidPolicy, ValueError, KeyError, TypeError)):
        EffectivePolicy.from_wire({"revision": 2, "entries": [{"rule": {"id": "x"}, "origin": "local"}]})
    assert lab.stage.guest.subject.policy is before
    lab.serve("b.test", port=80, tls=False)
    lab.expect(forward(get("b.test", "http://b.test/")), allowed(HEARD.replace(b"a.test", b"b.test")))
    lab.expect(forward(get("a.test", "http://a.test/")), refused())


# -- LIF-03 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", ["forward", "intercepted", "redirected"])
def test_lif_03_before_there_is_a_policy_and_while_egress_is_cut_nothing_leaves(lab: Lab, door: str) -> None:
    lab.serve("a.test")
    lab.serve("a.test", port=80, tls=False)
    ask = {
        "forward": forward(get("a.test", "http://a.test/")),
        "intercepted": inside("a.test", get("a.test")),
        "redirected": redirected("a.test", get("a.test")),
    }[door]
    subject = lab.stage.guest.subject
    subject.policy = None
    subject.epoch += 1
    lab.expect(ask, refused("failure"))
    lab.bind(ALLOW)
    lab.expect(ask, allowed(HEARD))
    lab.stage.guest.cut(True, time.time())
    lab.expect(ask, refused("failure", text="cut"))
    lab.stage.guest.cut(False, time.time())
    lab.expect(ask, allowed(HEARD))


def test_lif_03_a_sandbox_that_is_gone_leaves_no_door(lab: Lab) -> None:
    from tests.escapes.test_escape_responses import Neighbour

    lab.bind(ALLOW)
    lab.serve("a.test", port=80, tls=False)
    neighbour = Neighbour(lab)
    neighbour.guest.bind(policy(ALLOW), time.time())
    assert neighbour.get() == 200
    port = neighbour.sock.getsockname()[1]
    neighbour.guest.release()

    async def knock() -> None:
        with pytest.raises(OSError):
            async with asyncio.timeout(PATIENCE):
                await asyncio.open_connection(CLIENT4, port)

    lab.run(knock())
    lab.expect(forward(get("a.test", "http://a.test/")), allowed(HEARD))


# -- LIF-04 ---------------------------------------------------------------------------------------------------


def test_lif_04_a_policy_that_has_expired_allows_nothing(lab: Lab) -> None:
    lab.serve("a.test", port=80, tls=False)
    ask = forward(get("a.test", "http://a.test/"))
    governed = {"origin": "remote", "organisation": "acme", "governs": frozenset({Kind.NETWORK})}
    lab.bind(ALLOW, bundle_expires_at=time.time() + 3_600, **governed)
    lab.expect(ask, allowed(HEARD))
    lab.bind(ALLOW, bundle_expires_at=time.time() - 1, **governed)
    lab.expect(ask, refused("failure", text="expired"))


# -- LIF-06 ---------------------------------------------------------------------------------------------------


def test_lif_06_what_waits_for_an_approval_is_refused_and_opens_nothing_beside_it(lab: Lab) -> None:
    for name in ("a.test", "x.a.test"):
        lab.serve(name, port=80, tls=False)
    lab.bind(rule("approval", "a.test"))
    ask = forward(get("a.test", "http://a.test/"))
    lab.expect(ask, Outcome(seen=(403,), verdict="approval", reason="rule"))
    lab.expect(forward(get("x.a.test", "http://x.a.test/")), refused())
    lab.bind(rule("approval", "a.test"), rule("allow", "a.test:80"))  # what somebody approved, and no more
    lab.expect(ask, allowed(HEARD))
    lab.expect(forward(get("x.a.test", "http://x.a.test/")), refused())
    lab.expect(inside("a.test", get("a.test")), Outcome(seen=(403,), verdict="approval", reason="rule"))


def test_lif_06_a_grant_ends_at_its_hour(lab: Lab) -> None:
    lab.serve("a.test", port=80, tls=False)
    ask = forward(get("a.test", "http://a.test/"))
    lab.bind(rule("allow", "a.test", expires_at=time.time() + 3_600))
    lab.expect(ask, allowed(HEARD))
    lab.bind(rule("allow", "a.test", expires_at=time.time() - 1))
    lab.expect(ask, refused())


# -- LIF-07 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "attacker.test", "[::1]", "0.0.0.0"])
def test_lif_07_the_gateways_listener_is_a_proxy_and_serves_nothing_of_its_own(lab: Lab, host: str) -> None:
    """A browser that DNS was rebound for finds no page, no API and no WebSocket behind the port."""
    port = lab.stage.proxy
    for lines in ((), ("Origin: http://attacker.test",), ("Connection: Upgrade", "Upgrade: websocket")):
        for path in ("/", "/v1/sandboxes", "/stats", "/debug"):
            payload = get(f"{host}:{port}", path, *lines)
            lab.expect(forward(payload), refused("failure", 400))
