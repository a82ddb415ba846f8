"""UDP through a real enclosure: what rules let out arrives and is answered, what they do not is refused at once."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import pytest
from gateway_dialogue import rule
from gateway_stage import until
from quic_ends import quic_echo, quic_server, self_signed
from relay_stage import A, RelayStage, needs_enclosure, play

from ringfence.application.ports import RELAY_PORT
from ringfence.policy.rule import Rule

pytestmark = [pytest.mark.live, needs_enclosure]

NTP = rule("allow", "ntp.test:123", transports=["udp"], name="allow time")


def audit(stage: RelayStage, *fields: str) -> list[tuple[object, ...]]:
    return [tuple(record.get(field) for field in fields) for record in stage.records]


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_a_flow_that_a_rule_allows(tmp_path: Path, six: bool) -> None:
    async def scene(stage: RelayStage) -> None:
        service = await stage.service("ntp.test", 123)
        stage.bind(NTP)
        client = await stage.inside("ntp.test", 123, six=six)
        assert await client.ask(b"what time") == b"re: what time"
        assert await client.ask(b"is it") == b"re: is it"
        assert service.seen == [b"what time", b"is it"]
        assert len(set(service.peers)) == 1
        stage.guest.release()
        assert audit(
            stage, "step", "verdict", "rule", "via", "transport", "protocol", "host", "port", "dialled"
        ) == [
            (step, "allowed", "allow time", "udp", "udp", "udp", "ntp.test", 123, "203.0.113.1")
            for step in ("opened", "closed")
        ]
        assert audit(stage, "bytes_out", "bytes_in", "ended")[1] == (14, 22, "revoked")

    play(tmp_path, scene)


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_what_no_rule_allows_is_refused_at_once_and_recorded_once(tmp_path: Path, six: bool) -> None:
    """The enclosure refuses until a rule lets anything out, the relay from then on: nobody inside can tell."""

    async def scene(stage: RelayStage) -> None:
        await stage.service("ntp.test", 123)
        for revision, rules in enumerate(((), (NTP,)), 1):
            stage.bind(*rules, revision=revision)
            client = await stage.inside("other.test", 123, six=six)
            for _ in range(3):
                assert await client.ask(b"hello") == "refused"
            (record,) = await stage.settle(1)
            assert (
                record["step"],
                record["verdict"],
                record["host"],
                record["port"],
                record["transport"],
            ) == (*("opened", "blocked", "other.test", 123, "udp"),)
            assert record["reason"] == "default"
            assert record.get("count", 1) == 1
            assert stage.dialer.asked == []
            stage.records.clear()

    play(tmp_path, scene)


def test_refusals_of_one_flow_are_recorded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringfence.gateway.datagrams.INTERVAL", 0.05)

    async def scene(stage: RelayStage) -> None:
        stage.bind(NTP)
        client = await stage.inside("other.test", 9)
        for _ in range(20):
            assert await client.ask(b"again") == "refused"
        await until(lambda: sum(record["count"] for record in stage.records) == 20)
        assert stage.records[0]["count"] == 1

    play(tmp_path, scene)


@pytest.mark.parametrize("size", [0, 1, 1_472, 1_473, 9_000, 60_000, 65_507])
@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_datagrams_of_every_size_are_carried_both_ways(tmp_path: Path, size: int, six: bool) -> None:
    async def scene(stage: RelayStage) -> None:
        await stage.service("ntp.test", 123, lambda data: (data[::-1] or b"nothing",))
        stage.bind(NTP)
        client = await stage.inside("ntp.test", 123, six=six)
        sent = bytes(number % 127 for number in range(size))
        assert await client.ask(sent) == sent[::-1] or b"nothing"

    play(tmp_path, scene)


def test_two_destinations_from_one_port_are_two_flows(tmp_path: Path) -> None:
    async def scene(stage: RelayStage) -> None:
        first = await stage.service("ntp.test", 123, lambda data: (b"first",))
        second = await stage.service("two.test", 123, lambda data: (b"second",))
        stage.bind(rule("allow", "*.test:123", transports=["udp"]))
        one = await stage.inside("ntp.test", 123, local=40_000)
        assert await one.ask(b"1") == b"first"
        one.sock.close()
        two = await stage.inside("two.test", 123, local=40_000)
        assert await two.ask(b"2") == b"second"
        assert (first.seen, second.seen) == ([b"1"], [b"2"])
        assert [record["host"] for record in stage.recorded("opened")] == ["ntp.test", "two.test"]

    play(tmp_path, scene)


def test_a_stranger_cannot_answer(tmp_path: Path) -> None:
    async def scene(stage: RelayStage) -> None:
        service = await stage.service("ntp.test", 123, lambda data: ())
        stage.bind(NTP)
        client = (await stage.inside("ntp.test", 123)).send(b"?")
        await until(lambda: service.peers)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"forged", service.peers[0])
        service.transport.sendto(b"genuine", service.peers[0])
        assert await client.receive() == b"genuine"

    play(tmp_path, scene)


def test_a_deny_ends_what_is_open_and_the_client_hears_of_it(tmp_path: Path) -> None:
    async def scene(stage: RelayStage) -> None:
        service = await stage.service("ntp.test", 123)
        stage.bind(NTP)
        client = await stage.inside("ntp.test", 123)
        assert await client.ask(b"1") == b"re: 1"
        stage.bind(NTP, rule("deny", "ntp.test", name="no time"), revision=2)
        assert await client.receive() == "refused"
        assert await client.ask(b"2") == "refused"
        assert service.seen == [b"1"]
        assert audit(stage, "step", "verdict", "rule", "ended") == [
            ("opened", "allowed", "allow time", None),
            ("closed", "allowed", "allow time", "revoked"),
            ("opened", "blocked", "no time", None),
        ]
        assert not stage.guest.datagrams.flows

    play(tmp_path, scene)


def test_a_cut_refuses_and_its_end_restores(tmp_path: Path) -> None:
    async def scene(stage: RelayStage) -> None:
        await stage.service("ntp.test", 123)
        stage.bind(NTP)
        client = await stage.inside("ntp.test", 123)
        stage.guest.cut(True, 0.0)
        assert await client.ask(b"1") == "refused"
        stage.guest.cut(False, 0.0)
        assert await client.ask(b"2") == b"re: 2"

    play(tmp_path, scene)


GUARDED = [
    ("the name resolves to the host's loopback", "ntp.test", ["127.0.0.1"]),
    ("the name resolves to a private address", "ntp.test", ["10.0.0.1"]),
    ("the name resolves to cloud metadata", "ntp.test", ["169.254.169.254"]),
]


@pytest.mark.parametrize(("what", "name", "answers"), GUARDED)
def test_the_address_is_judged_after_the_name(
    tmp_path: Path, what: str, name: str, answers: list[str]
) -> None:
    async def scene(stage: RelayStage) -> None:
        stage.addresses[name] = answers
        stage.bind(NTP)
        assert await (await stage.inside(name, 123)).ask(b"hello") == "refused"
        (record,) = stage.records
        assert (record["verdict"], record["reason"], record["host"]) == ("blocked", "guard", name)

    play(tmp_path, scene)


RESERVED = [
    ("the gateway itself", A.gateway4, 123),
    ("the gateway itself", A.gateway6, 123),
    ("the relay's own port", A.gateway4, RELAY_PORT),
    ("a synthetic address that nobody was given", "198.18.9.9", 123),
    ("multicast", "224.0.0.251", 5353),
]


@pytest.mark.parametrize(("what", "host", "port"), RESERVED)
def test_what_is_nobodys_destination(tmp_path: Path, what: str, host: str, port: int) -> None:
    async def scene(stage: RelayStage) -> None:
        stage.bind(rule("allow", "**", transports=["udp"]))
        client = await stage.inside(host, port)
        client.send(b"hello")
        if what != "multicast":  # to which no error may be sent (RFC 1122 section 3.2.2)
            assert await client.receive() == "refused"
        (record,) = await stage.settle(1)
        assert (record["verdict"], record["reason"], record["host"]) == ("blocked", "guard", host)

    play(tmp_path, scene)


def test_a_raw_address_needs_a_rule_about_addresses(tmp_path: Path) -> None:
    async def scene(stage: RelayStage) -> None:
        await stage.service("ntp.test", 123)
        stage.bind(NTP)
        assert await (await stage.inside("203.0.113.1", 123)).ask(b"1") == "refused"
        stage.bind(rule("allow", "203.0.113.0/24:123", transports=["udp"]), revision=2)
        assert await (await stage.inside("203.0.113.1", 123)).ask(b"2") == b"re: 2"
        assert audit(stage, "verdict", "host") == [("blocked", "203.0.113.1"), ("allowed", "203.0.113.1")]

    play(tmp_path, scene)


def test_dns_stays_with_our_resolver(tmp_path: Path) -> None:
    question = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\7example\3com\0\0\1\0\1"

    async def scene(stage: RelayStage) -> None:
        elsewhere = await stage.service("", 53, address="203.0.113.53")
        stage.bind(rule("allow", "**", transports=["udp"]))
        client = await stage.inside("203.0.113.53", 53)
        answer = await client.ask(question)
        assert isinstance(answer, bytes)
        assert answer[-4:] == socket.inet_aton(stage.guest.names.address("example.com", 4))
        assert elsewhere.seen == []

    play(tmp_path, scene)


def test_canaries_are_refused_and_told_also_while_datagrams_are_relayed(tmp_path: Path) -> None:
    from ringfence.runtimes import canary
    from ringfence.runtimes.enclosure import Enclosures

    async def scene(stage: RelayStage) -> None:
        await stage.service("ntp.test", 123)
        stage.bind(rule("allow", "**", transports=["tcp", "udp"]), NTP)
        assert await (await stage.inside("ntp.test", 123)).ask(b"1") == b"re: 1"
        await Enclosures(tmp_path).canaries(stage.attachment, "n")
        flight = canary.plan("n")
        await until(lambda: len([r for r in stage.records if r.get("canary")]) == 6)
        told = [
            (record["transport"], record["host"], record["port"])
            for record in stage.records
            if record.get("canary")
        ]
        assert sorted(told) == sorted(
            (canary_.transport.replace("dns", "tcp"), canary_.host, canary_.port)
            for canary_ in flight.canaries()
        )
        assert all(r["verdict"] == "blocked" for r in stage.records if r.get("canary"))

    play(tmp_path, scene)


def test_a_destination_that_is_not_there_is_said_and_recorded_once(tmp_path: Path) -> None:
    async def scene(stage: RelayStage) -> None:
        stage.bind(NTP)
        client = await stage.inside("ntp.test", 123)  # has no address
        for _ in range(3):
            assert await client.ask(b"hello") == "refused"
        assert audit(stage, "step", "verdict", "ended", "text") == [
            ("opened", "allowed", None, "502: `ntp.test` has no address"),
            ("closed", "allowed", "upstream", "502: `ntp.test` has no address"),
        ]

    play(tmp_path, scene)


def test_a_closed_port_is_said(tmp_path: Path) -> None:
    async def scene(stage: RelayStage) -> None:
        service = await stage.service("ntp.test", 123)
        service.transport.close()
        stage.bind(NTP)
        assert await (await stage.inside("ntp.test", 123)).ask(b"hello") == "refused"
        assert audit(stage, "step", "verdict", "ended") == [
            ("opened", "allowed", None),
            ("closed", "allowed", "upstream"),
        ]

    play(tmp_path, scene)


def test_silence_ends_a_flow_and_frees_its_name(tmp_path: Path) -> None:
    async def scene(stage: RelayStage) -> None:
        service = await stage.service("ntp.test", 123, lambda data: ())
        stage.bind(NTP)
        (await stage.inside("ntp.test", 123)).send(b"1")
        await until(lambda: service.seen)
        (record,) = await stage.settle(1, step="closed")
        assert (record["ended"], record["bytes_out"], record.get("bytes_in", 0)) == ("done", 1, 0)
        assert stage.guest.services.connections == 0
        assert not stage.guest.names._held

    play(tmp_path, scene, udp_time=0.05, udp_unanswered_time=0.05)


def test_flows_are_bounded_and_the_most_silent_goes(tmp_path: Path) -> None:
    async def scene(stage: RelayStage) -> None:
        await stage.service("ntp.test", 123)
        stage.bind(NTP)
        clients = [await stage.inside("ntp.test", 123) for _ in range(5)]
        for number, client in enumerate(clients):
            assert await client.ask(b"%d" % number) == b"re: %d" % number
        assert len(stage.guest.datagrams.flows) == 4
        assert audit(stage, "step", "ended")[-2:] in (
            [("closed", "limit"), ("opened", None)],
            [("opened", None), ("closed", "limit")],
        )
        assert await clients[0].ask(b"again") == b"re: again"

    play(tmp_path, scene, udp_flows=4)


@pytest.mark.parametrize("rules", [(NTP,), ()], ids=["with the rule", "without it"])
def test_a_second_gateway_takes_over_the_sockets_as_they_are(tmp_path: Path, rules: tuple[Rule, ...]) -> None:
    """The daemon holds the enclosure's sockets: a new worker gets the ones that the one before has bound."""

    async def scene(stage: RelayStage) -> None:
        await stage.service("ntp.test", 123)
        stage.bind(NTP)
        assert await (await stage.inside("ntp.test", 123)).ask(b"1") == b"re: 1"
        stage.guest.release()
        again = RelayStage(asyncio.get_running_loop(), stage.subject.limits)
        again.attachment, again.datagram_ports, again.addresses = (
            stage.attachment,
            stage.datagram_ports,
            stage.addresses,
        )
        again.bind(*rules)
        await again.guest.serve({role: sock.dup() for role, sock in stage.attachment.listeners.items()})
        try:
            expected = b"re: 2" if rules else "refused"
            assert await (await again.inside("ntp.test", 123)).ask(b"2") == expected
            assert await (await again.inside("x.test", 123)).ask(b"2") == "refused"
        finally:
            again.close()

    play(tmp_path, scene)


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("inspect", ["never", "always"])
def test_a_real_quic_connection(tmp_path: Path, inspect: str, six: bool) -> None:
    """aioquic on both ends: a handshake, a stream there and back; or a refusal that its socket hears at once."""

    async def scene(stage: RelayStage) -> None:
        certificate, key = self_signed("quic.test", tmp_path)
        async with quic_server(certificate, key) as port:
            stage.datagram_ports["203.0.113.1", 443] = port
            stage.addresses["quic.test"] = ["203.0.113.1"]
            stage.bind(rule("allow", "quic.test:443", transports=["udp"], inspect=inspect, name="quic"))
            client = await stage.inside("quic.test", 443, six=six)
            if inspect == "never":
                assert await quic_echo(client.sock, "quic.test", b"over QUIC" * 1_000) == b"over QUIC" * 1_000
                (opened,) = stage.recorded("opened")
                assert (opened["verdict"], opened["protocol"], opened["host"]) == (
                    "allowed",
                    "quic",
                    "quic.test",
                )
            else:
                with pytest.raises(ConnectionRefusedError):
                    await quic_echo(client.sock, "quic.test", b"over QUIC")
                (record,) = stage.records
                assert (record["verdict"], record["protocol"], record["reason"]) == (
                    "blocked",
                    "quic",
                    "guard",
                )
                assert "inspect: never" in record["text"]

    play(tmp_path, scene)


FORGED = [
    # what stands in front of the UDP header, the number of that header, what becomes of it
    ("hop-by-hop options", 0, b"\x11\0\1\4\0\0\0\0", "blocked"),
    ("destination options", 60, b"\x11\0\1\4\0\0\0\0", "blocked"),
    ("a fragment header that says the whole", 44, b"\x11\0\0\0\0\0\0\7", "allowed"),
]


@pytest.mark.parametrize(("what", "kind", "header", "verdict"), FORGED, ids=[each[0] for each in FORGED])
def test_headers_that_root_inside_may_write(
    tmp_path: Path, what: str, kind: int, header: bytes, verdict: str
) -> None:
    """Either it is a datagram like any other, or the enclosure refuses it and says so: nothing is lost between."""

    async def scene(stage: RelayStage) -> None:
        service = await stage.service("ntp.test", 123)
        stage.bind(NTP)
        address = stage.guest.names.address("ntp.test", 6)
        from ringfence.runtimes import kernel

        def throw() -> None:
            kernel.join_path(stage.attachment.netns, kernel.CLONE_NEWNET)
            with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
                udp = struct.pack("!HHHH", 1234, 123, 12, 0) + b"evil"
                source = socket.inet_pton(socket.AF_INET6, A.sandbox6)
                target = socket.inet_pton(socket.AF_INET6, address)
                pseudo = source + target + struct.pack("!IHBB", len(udp), 0, 0, 17) + udp
                checksum = 0xFFFF - int.from_bytes(pseudo, "big") % 0xFFFF
                udp = udp[:6] + checksum.to_bytes(2, "big") + udp[8:]
                head = struct.pack("!IHBB", 6 << 28, 8 + len(udp), kind, 64) + source + target
                raw.sendto(head + header + udp, (address, 0))

        await kernel.apart(throw)
        record = (await stage.settle(1))[0]
        assert (record["verdict"], record["host"], record["port"]) == (verdict, "ntp.test", 123)
        await until(lambda: verdict == "blocked" or service.seen)
        assert service.seen == ([b"evil"] if verdict == "allowed" else [])

    play(tmp_path, scene)
