"""Names to addresses to connections: judged, cached, raced; nothing is dialled that was not judged."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
import uvloop

from ringfence.gateway import dial
from ringfence.gateway.dial import ANSWERS, IN_FLIGHT, Dialer, Refused, Unconnected, Unresolved, own_addresses
from ringfence.policy.model import Decision, Reason, Verdict

Loop = Callable[[Coroutine[Any, Any, None]], None]

ALLOWED = Decision(verdict=Verdict.ALLOWED, reason=Reason.RULE, text="allowed")
GUARDED = Decision(verdict=Verdict.BLOCKED, reason=Reason.GUARD, text="the host itself")
DENIED = Decision(verdict=Verdict.BLOCKED, reason=Reason.RULE, text="denied by rule")


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Loop:
    return request.param  # type: ignore[no-any-return]


def allow(_: str) -> Decision:
    return ALLOWED


class Zone:
    """A lookup that counts its questions and answers when it is told to."""

    def __init__(self, **names: Sequence[str]) -> None:
        self.names = {name.replace("_", "."): addresses for name, addresses in names.items()}
        self.ttl = 60.0
        self.asked: list[str] = []
        self.gate: asyncio.Event | None = None

    async def __call__(self, name: str) -> tuple[Sequence[str], float]:
        self.asked.append(name)
        if self.gate is not None:
            await self.gate.wait()
        if name not in self.names:
            raise Unresolved(f"`{name}` cannot be resolved: the name does not exist", lasting=True)
        return self.names[name], self.ttl


class Clock:
    """A loop whose time stands still, for whoever only asks what time it is."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self.now = loop, 100.0

    def time(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


def dialer(zone: Zone, resolve: dict[str, tuple[str, int | None]] | None = None, **more: Any) -> Dialer:
    return Dialer(asyncio.get_running_loop(), resolve=resolve or {}, lookup=zone, **more)


# -- names to addresses --------------------------------------------------------------------------------------


def test_a_name_is_resolved_once_and_every_answer_is_judged_every_time() -> None:
    async def dialogue() -> None:
        zone = Zone(a_test=["203.0.113.1", "203.0.113.2"])
        judged: list[str] = []

        def judge(address: str) -> Decision:
            judged.append(address)
            return ALLOWED

        ours = dialer(zone)
        assert ours.cached("a.test") is None
        assert await ours.addresses("a.test", 443, judge) == [("203.0.113.1", 443), ("203.0.113.2", 443)]
        assert await ours.addresses("a.test", 80, judge) == [("203.0.113.1", 80), ("203.0.113.2", 80)]
        assert ours.cached("a.test") == (("203.0.113.1", None), ("203.0.113.2", None))
        assert zone.asked == ["a.test"]
        assert judged == ["203.0.113.1", "203.0.113.2"] * 2

    asyncio.run(dialogue())


def test_answers_that_are_refused_are_dropped() -> None:
    """A name with one good and one bad address (rebinding, mixed answers) is dialled at the good one only."""

    async def dialogue() -> None:
        zone = Zone(a_test=["169.254.169.254", "203.0.113.1", "127.0.0.1"])
        found = await dialer(zone).addresses(
            "a.test", 443, lambda address: ALLOWED if address == "203.0.113.1" else GUARDED
        )
        assert found == [("203.0.113.1", 443)]

    asyncio.run(dialogue())


def test_a_name_whose_every_answer_is_refused_is_refused_with_the_first_reason() -> None:
    async def dialogue() -> None:
        ours = dialer(Zone(a_test=["10.0.0.1", "127.0.0.1"]))
        with pytest.raises(Refused, match="denied by rule") as refused:
            await ours.addresses("a.test", 443, lambda address: DENIED if address == "10.0.0.1" else GUARDED)
        assert refused.value.decision is DENIED
        # A policy that changes its mind is heard at once: nothing of the judgement was kept.
        assert await ours.addresses("a.test", 443, allow) == [("10.0.0.1", 443), ("127.0.0.1", 443)]

    asyncio.run(dialogue())


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.ALLOWED])
def test_no_other_verdict_lets_an_address_pass(verdict: Verdict) -> None:
    async def dialogue() -> None:
        with pytest.raises(Refused):
            await dialer(Zone(a_test=["203.0.113.1"])).addresses(
                "a.test", 443, lambda _: Decision(verdict=verdict)
            )

    asyncio.run(dialogue())


def test_a_judge_that_fails_lets_nothing_pass() -> None:
    async def dialogue() -> None:
        def judge(_: str) -> Decision:
            raise RuntimeError

        with pytest.raises(RuntimeError):
            await dialer(Zone(a_test=["203.0.113.1"])).addresses("a.test", 443, judge)

    asyncio.run(dialogue())


FIXED = [
    # static names, asked, answered
    ({"a.test": ("203.0.113.9", None)}, ("a.test", 443), [("203.0.113.9", 443)]),
    ({"a.test": ("203.0.113.9", 8443)}, ("a.test", 443), [("203.0.113.9", 8443)]),
    ({"a.test": ("2001:DB8::0:1", 8443)}, ("a.test", 443), [("2001:db8::1", 8443)]),
    ({}, ("localhost", 11434), [("127.0.0.1", 11434), ("::1", 11434)]),
    ({"localhost": ("203.0.113.9", 1)}, ("localhost", 80), [("127.0.0.1", 80), ("::1", 80)]),
    ({}, ("203.0.113.7", 22), [("203.0.113.7", 22)]),
    ({}, ("2001:db8::7", 22), [("2001:db8::7", 22)]),
    ({}, ("::ffff:10.0.0.1", 22), [("::ffff:10.0.0.1", 22)]),
]


@pytest.mark.parametrize(("resolve", "asked", "answered"), FIXED)
def test_static_names_and_addresses_cause_no_question(
    resolve: dict[str, tuple[str, int | None]], asked: tuple[str, int], answered: list[tuple[str, int]]
) -> None:
    async def dialogue() -> None:
        zone = Zone(a_test=["198.51.100.1"])
        ours = dialer(zone, resolve)
        assert await ours.addresses(*asked, allow) == answered
        with pytest.raises(Refused):  # no static name passes a guard
            await ours.addresses(*asked, lambda _: GUARDED)
        assert zone.asked == []

    asyncio.run(dialogue())


@pytest.mark.parametrize("address", ["", "a.test", "1.2.3.4:80", "127.1", "0177.0.0.1"])
def test_a_static_name_has_an_address(address: str) -> None:
    async def dialogue() -> None:
        with pytest.raises(ValueError):
            dialer(Zone(), {"a.test": (address, None)})

    asyncio.run(dialogue())


ORDERS = [
    (["203.0.113.1", "203.0.113.2", "2001:db8::1"], ["2001:db8::1", "203.0.113.1", "203.0.113.2"]),
    (["2001:db8::1", "2001:db8::2", "203.0.113.1"], ["2001:db8::1", "203.0.113.1", "2001:db8::2"]),
    (["203.0.113.1", "203.0.113.1"], ["203.0.113.1"]),
    (["2001:db8:0::1", "2001:DB8::1"], ["2001:db8::1"]),
    (["nonsense", "203.0.113.1"], ["203.0.113.1"]),
]


@pytest.mark.parametrize(("found", "tried"), ORDERS)
def test_families_alternate(found: list[str], tried: list[str]) -> None:
    async def dialogue() -> None:
        addresses = await dialer(Zone(a_test=found)).addresses("a.test", 1, allow)
        assert [address for address, _ in addresses] == tried

    asyncio.run(dialogue())


def test_a_thousand_answers_are_cut() -> None:
    async def dialogue() -> None:
        many = [f"203.0.{n // 250}.{n % 250}" for n in range(1_000)]
        assert len(await dialer(Zone(a_test=many)).addresses("a.test", 1, allow)) == ANSWERS

    asyncio.run(dialogue())


# -- the cache -----------------------------------------------------------------------------------------------

LIVES = [
    # time to live of the answer, seconds later, asked again?
    (60.0, 59.0, False),
    (60.0, 60.0, True),
    (0.0, 0.5, False),  # a server that says 0 is asked once a second, not once a connection
    (0.0, 1.0, True),
    (1e9, 3_599.0, False),
    (1e9, 3_600.0, True),
]


@pytest.mark.parametrize(("ttl", "later", "again"), LIVES)
def test_an_answer_is_kept_for_its_time(ttl: float, later: float, again: bool) -> None:
    async def dialogue() -> None:
        clock = Clock(asyncio.get_running_loop())
        zone = Zone(a_test=["203.0.113.1"])
        zone.ttl = ttl
        ours = Dialer(clock, resolve={}, lookup=zone)  # type: ignore[arg-type]
        await ours.addresses("a.test", 1, allow)
        clock.now += later
        assert (ours.cached("a.test") is None) is again
        await ours.addresses("a.test", 1, allow)
        assert len(zone.asked) == 1 + again

    asyncio.run(dialogue())


def test_a_name_that_does_not_exist_is_remembered_for_a_moment() -> None:
    async def dialogue() -> None:
        clock = Clock(asyncio.get_running_loop())
        zone = Zone(empty_test=[])
        ours = Dialer(clock, resolve={}, lookup=zone)  # type: ignore[arg-type]
        for name in ("none.test", "empty.test"):
            for _ in range(3):
                with pytest.raises(Unresolved, match=f"`{name}`"):
                    await ours.addresses(name, 1, allow)
                assert ours.cached(name) is None
        assert zone.asked == ["none.test", "empty.test"]
        zone.names["none.test"] = ["203.0.113.1"]
        clock.now += 5
        assert await ours.addresses("none.test", 1, allow) == [("203.0.113.1", 1)]

    asyncio.run(dialogue())


def test_the_cache_is_bounded_and_the_least_recently_used_name_goes_first() -> None:
    async def dialogue() -> None:
        zone = Zone(**{f"n{n}_test": ["203.0.113.1"] for n in range(10)})
        ours = dialer(zone, capacity=3)
        for n in (0, 1, 2, 0, 3):
            await ours.addresses(f"n{n}.test", 1, allow)
        assert [ours.cached(f"n{n}.test") is not None for n in range(4)] == [True, False, True, True]

    asyncio.run(dialogue())


def test_many_connections_to_one_name_cause_one_question() -> None:
    async def dialogue() -> None:
        zone = Zone(a_test=["203.0.113.1"])
        zone.gate = asyncio.Event()
        ours = dialer(zone)
        asking = [asyncio.ensure_future(ours.addresses("a.test", n + 1, allow)) for n in range(100)]
        await asyncio.sleep(0)
        asking[0].cancel()  # who asked first gives up; the others are answered all the same
        zone.gate.set()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert answers[1:] == [[("203.0.113.1", n + 1)] for n in range(1, 100)]
        assert zone.asked == ["a.test"]

    asyncio.run(dialogue())


def test_one_sandbox_that_asks_too_much_does_not_keep_another_from_asking() -> None:
    async def dialogue() -> None:
        zone = Zone(b_test=["203.0.113.1"])
        zone.gate = asyncio.Event()
        ours = dialer(zone)
        greedy = [
            asyncio.ensure_future(ours.addresses(f"n{n}.test", 1, allow, owner="greedy"))
            for n in range(IN_FLIGHT)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Unresolved, match="too many names"):
            await ours.addresses("one.more", 1, allow, owner="greedy")
        other = asyncio.ensure_future(ours.addresses("b.test", 1, allow, owner="other"))
        await asyncio.sleep(0)
        zone.gate.set()
        assert await other == [("203.0.113.1", 1)]
        assert all(
            isinstance(answer, Unresolved) for answer in await asyncio.gather(*greedy, return_exceptions=True)
        )
        with pytest.raises(Unresolved, match="does not exist"):
            await ours.addresses("one.more", 1, allow, owner="greedy")

    asyncio.run(dialogue())


def test_what_is_being_looked_up_can_be_given_up() -> None:
    async def dialogue() -> None:
        zone = Zone()
        zone.gate = asyncio.Event()
        ours = dialer(zone)
        asking = asyncio.ensure_future(ours.addresses("a.test", 1, allow))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ours.close()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(dialogue())


# -- connections ---------------------------------------------------------------------------------------------


class Client(asyncio.Protocol):
    made = 0

    def __init__(self) -> None:
        self.connected = False
        self.arrived = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connected = True
        type(self).made += 1

    def data_received(self, data: bytes) -> None:
        self.arrived.set()


@pytest.fixture(autouse=True)
def count() -> None:
    Client.made = 0


class Origin(asyncio.Protocol):
    """Accepts, counts, says a word and goes."""

    def __init__(self, accepted: list[str]) -> None:
        self.accepted = accepted

    def connection_made(self, transport: Any) -> None:
        self.accepted.append(transport.get_extra_info("sockname")[0])
        transport.write(b"here")
        transport.close()


async def origin(host: str, accepted: list[str], port: int = 0) -> tuple[asyncio.Server, int]:
    server = await asyncio.get_running_loop().create_server(lambda: Origin(accepted), host, port)
    return server, server.sockets[0].getsockname()[1]


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Silence:
    """An address that neither accepts nor refuses: a listener whose backlog is full."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.listener = socket.socket()
        self.listener.bind((host, 0))
        self.listener.listen(0)
        self.address: tuple[str, int] = self.listener.getsockname()
        self.fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(self.address)
            self.fillers.append(filler)

    def close(self) -> None:
        for sock in (*self.fillers, self.listener):
            sock.close()


@pytest.fixture
def silence() -> Iterator[Silence]:
    quiet = Silence()
    yield quiet
    quiet.close()


def test_the_address_that_answers_is_connected(run: Loop) -> None:
    async def dialogue() -> None:
        accepted: list[str] = []
        server, port = await origin("127.0.0.1", accepted)
        ours = dialer(Zone())
        transport, protocol, address = await ours.connect([("127.0.0.1", port)], Client, timeout=10)
        assert address == ("127.0.0.1", port)
        assert protocol.connected
        assert transport.get_extra_info("peername") == address
        nodelay = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert nodelay
        transport.close()
        server.close()

    run(dialogue())


def test_an_address_that_refuses_gives_way_to_the_next(run: Loop) -> None:
    async def dialogue() -> None:
        accepted: list[str] = []
        server, port = await origin("127.0.0.1", accepted)
        addresses = [("127.0.0.1", closed_port()), ("::1", closed_port()), ("127.0.0.1", port)]
        transport, protocol, address = await dialer(Zone()).connect(addresses, Client, timeout=10)
        assert address == addresses[-1]
        assert protocol.connected
        transport.close()
        server.close()

    run(dialogue())


def test_an_address_that_is_silent_is_raced(run: Loop, silence: Silence) -> None:
    async def dialogue() -> None:
        accepted: list[str] = []
        server, port = await origin("127.0.0.1", accepted)
        addresses = [silence.address, ("127.0.0.1", port)]
        transport, _, address = await dialer(Zone()).connect(addresses, Client, timeout=30)
        assert address == addresses[-1]
        assert Client.made == 1
        transport.close()
        server.close()

    run(dialogue())


def test_only_the_winner_is_ever_spoken_to(run: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """All start at once, several connect; one protocol is made, and the losers are closed."""
    monkeypatch.setattr(dial, "STAGGER", 0.0)

    async def dialogue() -> None:
        accepted: list[str] = []
        servers = [await origin(f"127.0.0.{n}", accepted) for n in range(1, 9)]
        addresses = [(f"127.0.0.{n}", port) for n, (_, port) in enumerate(servers, start=1)]
        for _ in range(20):
            before = Client.made
            transport, protocol, address = await dialer(Zone()).connect(addresses, Client, timeout=10)
            assert address in addresses
            assert protocol.connected
            assert Client.made == before + 1
            transport.close()
        for server, _ in servers:
            server.close()

    run(dialogue())


def test_no_descriptor_is_left_behind(run: Loop, monkeypatch: pytest.MonkeyPatch, silence: Silence) -> None:
    monkeypatch.setattr(dial, "STAGGER", 0.0)

    async def dialogue() -> None:
        ours = dialer(Zone())
        with suppress(Unconnected):
            await ours.connect([silence.address] * 2, Client, timeout=0.01)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            with pytest.raises(Unconnected):
                await ours.connect([silence.address] * 3, Client, timeout=0.005)
            asking = asyncio.ensure_future(ours.connect([silence.address] * 3, Client, timeout=10))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking
            await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
        assert len(os.listdir("/proc/self/fd")) <= before
        assert Client.made == 0

    run(dialogue())


def test_nobody_answers(run: Loop) -> None:
    async def dialogue() -> None:
        ours = dialer(Zone())
        for addresses in (
            [("127.0.0.1", closed_port())],
            [("127.0.0.1", closed_port()), ("::1", closed_port())],
        ):
            with pytest.raises(Unconnected, match=r"refused|cannot assign|unreachable"):
                await ours.connect(addresses, Client, timeout=10)
        with pytest.raises(Unconnected, match="no address"):
            await ours.connect([], Client, timeout=10)

    run(dialogue())


def test_silence_has_an_end(run: Loop, silence: Silence) -> None:
    async def dialogue() -> None:
        ours = dialer(Zone())
        for addresses in ([silence.address], [silence.address] * 2):
            with pytest.raises(Unconnected, match=r"no answer within 0\.05 s"):
                await ours.connect(addresses, Client, timeout=0.05)

    run(dialogue())


def test_the_address_that_was_judged_is_the_one_that_is_dialled(run: Loop) -> None:
    """The zone changes its answer between the check and the connection; nobody asks it again."""

    async def dialogue() -> None:
        accepted: list[str] = []
        good, port = await origin("127.0.0.5", accepted)
        evil, _ = await origin("127.0.0.6", accepted, port)
        zone = Zone(a_test=["127.0.0.5"])
        ours = dialer(zone)
        addresses = await ours.addresses(
            "a.test", port, lambda address: ALLOWED if address == "127.0.0.5" else GUARDED
        )
        zone.names["a.test"] = ["127.0.0.6"]
        transport, protocol, address = await ours.connect(addresses, Client, timeout=10)
        assert address[0] == "127.0.0.5"
        await asyncio.wait_for(protocol.arrived.wait(), 10)
        assert accepted == ["127.0.0.5"]
        transport.close()
        for server in (good, evil):
            server.close()

    run(dialogue())


# -- the host's own addresses --------------------------------------------------------------------------------


def test_the_hosts_own_addresses_are_all_there() -> None:
    own = own_addresses()
    assert "127.0.0.1" in own
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, suppress(OSError):
        sock.connect(("192.0.2.1", 9))
        assert sock.getsockname()[0] in own


@pytest.mark.live
def test_own_addresses_are_what_ip_says() -> None:
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("ip or unshare missing")
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, timeout=20).returncode:
        pytest.skip("namespaces cannot be made here")
    program = textwrap.dedent("""
        import subprocess
        from ringfence.gateway.dial import own_addresses

        def ip(*lines):
            subprocess.run(["ip", "-batch", "-"], input="\\n".join(lines), text=True, check=True, timeout=50)

        assert own_addresses() == frozenset(), own_addresses()
        ip("link set lo up", "addr add 10.1.0.1 peer 10.2.0.1 dev lo")
        four = [f"203.0.113.{n}" for n in range(1, 251)]  # more than one message of the kernel's holds
        six = [f"2001:db8::{n:x}" for n in range(1, 201)]
        ip(*(f"addr add {address}/32 dev lo" for address in four))
        ip(*(f"addr add {address}/128 dev lo" for address in six))
        assert own_addresses() == {"127.0.0.1", "::1", "10.1.0.1", *four, *six}, own_addresses()
    """)
    ran = subprocess.run(
        ["unshare", "-rn", sys.executable, "-c", program],
        capture_output=True, text=True, timeout=60,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": ":".join(filter(None, sys.path))},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
