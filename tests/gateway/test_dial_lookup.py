"""The host's own resolution: the hosts file, the servers, both families, and no name that policy did not judge."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import uvloop

from ringfence.gateway.lookup import SHORT, SystemLookup, Unresolved

Loop = Callable[[Coroutine[Any, Any, None]], None]

ZONE = {
    # name and type: records as text, time to live
    ("dual.test.", "A"): [("dual.test. 300 IN A 203.0.113.1",)],
    ("dual.test.", "AAAA"): [("dual.test. 200 IN AAAA 2001:db8::1",)],
    ("four.test.", "A"): [("four.test. 300 IN A 203.0.113.4",)],
    ("alias.test.", "A"): [("alias.test. 30 IN CNAME four.test.",), ("four.test. 300 IN A 203.0.113.4",)],
    ("late.test.", "A"): [("late.test. 300 IN A 203.0.113.5",)],
}
SILENT = {("late.test.", "AAAA"), ("dead.test.", "A"), ("dead.test.", "AAAA")}
BROKEN = {"broken.test."}


class NameServer:
    """Answers out of the zone, in a thread of its own; writes down every question."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.port: int = self.sock.getsockname()[1]
        self.asked: list[tuple[str, str]] = []
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        while True:
            wire, peer = self.sock.recvfrom(4_096)
            if not wire:
                return
            query = dns.message.from_wire(wire)
            [question] = query.question
            asked = question.name.to_text().lower(), dns.rdatatype.to_text(question.rdtype)
            self.asked.append(asked)
            if asked in SILENT:
                continue
            response = dns.message.make_response(query)
            if asked[0] in BROKEN:
                response.set_rcode(dns.rcode.REFUSED)
            elif asked in ZONE:
                for (text,) in ZONE[asked]:
                    name, ttl, rdclass, kind, value = text.split()
                    response.answer.append(dns.rrset.from_text(name, int(ttl), rdclass, kind, value))
            elif asked[0] not in {name for name, _ in ZONE}:
                response.set_rcode(dns.rcode.NXDOMAIN)
            self.sock.sendto(response.to_wire(), peer)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", self.port))
        self.thread.join(20)
        self.sock.close()


@pytest.fixture
def server() -> Iterator[NameServer]:
    running = NameServer()
    yield running
    running.close()


@pytest.fixture
def lookup(server: NameServer, tmp_path: Path) -> SystemLookup:
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\nsearch corp.example\noptions ndots:5\n")
    return SystemLookup(
        hosts=str(tmp_path / "hosts"), resolv_conf=str(tmp_path / "resolv.conf"), port=server.port
    )


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Loop:
    return request.param  # type: ignore[no-any-return]


FOUND = [
    ("dual.test", {"203.0.113.1", "2001:db8::1"}, 200.0),
    ("alias.test", {"203.0.113.4"}, 30.0),  # the shortest life of the chain
    ("late.test", {"203.0.113.5"}, SHORT),  # one family came in time; the other may yet
]


@pytest.mark.parametrize(("name", "addresses", "ttl"), FOUND)
def test_a_name_has_addresses(
    run: Loop, lookup: SystemLookup, name: str, addresses: set[str], ttl: float
) -> None:
    async def dialogue() -> None:
        found, kept = await lookup(name)
        assert set(found) == addresses
        assert kept == ttl

    run(dialogue())


ABSENT = [
    ("none.test", True, "does not exist"),
    ("broken.test", False, "REFUSED|nameservers"),
    ("a..test", True, "not a name"),
    ("a" * 64 + ".test", True, "not a name"),
]


@pytest.mark.parametrize(("name", "lasting", "text"), ABSENT)
def test_a_name_without_addresses_says_why(
    run: Loop, lookup: SystemLookup, name: str, lasting: bool, text: str
) -> None:
    async def dialogue() -> None:
        with pytest.raises(Unresolved, match=text) as absent:
            await lookup(name)
        assert absent.value.lasting is lasting

    run(dialogue())


def test_nobody_is_asked_for_another_name_than_was_judged(lookup: SystemLookup, server: NameServer) -> None:
    """Search domains and ``ndots`` would make ``none.test.corp.example`` of it."""

    async def dialogue() -> None:
        with pytest.raises(Unresolved):
            await lookup("none.test")
        with pytest.raises(Unresolved):
            await lookup("db")

    asyncio.run(dialogue())
    assert {name for name, _ in server.asked} == {"none.test.", "db."}


def test_servers_that_are_silent_are_not_waited_for_without_end(
    lookup: SystemLookup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringfence.gateway.lookup.LIFETIME", 0.05)

    async def dialogue() -> None:
        with pytest.raises(Unresolved, match=r"dead\.test") as absent:
            await lookup("dead.test")
        assert not absent.value.lasting

    asyncio.run(dialogue())


def test_the_hosts_file_comes_first_and_is_read_again_when_it_changes(
    lookup: SystemLookup, server: NameServer, tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts"

    async def dialogue() -> None:
        hosts.write_text(
            "# comment\n203.0.113.77 dual.test Alias.Test. # more\n2001:DB8::77 dual.test\n203.0.113.77 dual.test\n"
            "nonsense dual.test\n203.0.113.78\n\nfe80::1%eth0 zone.test\n"
        )
        found, kept = await lookup("dual.test")
        assert (list(found), kept) == (["203.0.113.77", "2001:db8::77"], SHORT)
        assert list((await lookup("alias.test"))[0]) == ["203.0.113.77"]
        hosts.unlink()
        assert set((await lookup("dual.test"))[0]) == {"203.0.113.1", "2001:db8::1"}

    asyncio.run(dialogue())
    assert {name for name, _ in server.asked} == {"dual.test."}


def test_the_servers_are_read_again_when_they_change(lookup: SystemLookup, tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"

    async def dialogue() -> None:
        assert (await lookup("four.test"))[0]
        conf.unlink()
        with pytest.raises(Unresolved, match="no name server can be asked") as absent:
            await lookup("four.test")
        assert not absent.value.lasting
        conf.write_text("nameserver 127.0.0.1\n# moved\n")
        assert (await lookup("four.test"))[0]

    asyncio.run(dialogue())


def test_a_lookup_that_is_given_up_leaves_nothing_running(lookup: SystemLookup) -> None:
    async def dialogue() -> None:
        asking = asyncio.ensure_future(lookup("dead.test"))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(dialogue())


def test_a_process_that_gave_up_its_privileges_resolves(server: NameServer, tmp_path: Path) -> None:
    """Once it has, the worker may not even read the files of its own Python."""
    if os.geteuid():
        pytest.skip("only root has privileges to give up")
    program = textwrap.dedent("""
        import asyncio, os, sys
        from ringfence.gateway.lookup import SystemLookup

        async def main():
            lookup = SystemLookup(hosts="/hosts", resolv_conf="/resolv.conf", port=int(sys.argv[2]))
            return await lookup("dual.test")

        os.chroot(sys.argv[1])
        os.chdir("/")
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        print(sorted(asyncio.run(main())[0]))
    """)
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o755)
    (root / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    ran = subprocess.run(
        [sys.executable, "-c", program, str(root), str(server.port)],
        capture_output=True, timeout=60, text=True,
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
    )  # fmt: skip
    assert ran.stdout == "['2001:db8::1', '203.0.113.1']\n", ran.stderr
