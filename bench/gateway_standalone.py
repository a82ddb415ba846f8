"""One gateway worker as an explicit proxy on loopback, for the benchmark: everything on, nothing around it.

The data path is the product's, with strict checks, interception, a policy of 10,000 rules and audit records
(written to a file as the daemon would). What is not the product's: every name under ``bench.test`` leads to one
address, because a benchmark must not measure a name server. ``*.bypass.test`` is passed through unread. A second
sandbox, the neighbour, has the next port.

    python bench/gateway_standalone.py --address 203.0.113.9 --roots origin-ca.pem --certificate ca.pem

The address must be this machine's (``ip addr add 203.0.113.9/32 dev lo`` in a network namespace of its own) and not
a guarded one, or the guards refuse it, as they should.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import uvloop

from ringfence.application.ports import Addresses
from ringfence.gateway.authority import Authority, create_authority
from ringfence.gateway.backends import WISHES, choose
from ringfence.gateway.core.limits import Limits
from ringfence.gateway.core.subject import Subject
from ringfence.gateway.dial import Dialer
from ringfence.gateway.guest import Guest, Services
from ringfence.gateway.outbox import Outbox
from ringfence.gateway.tls import upstream_contexts
from ringfence.gateway.turns import Round
from ringfence.gateway.worker import decision_numbers, settle_memory
from ringfence.policy.document import parse_rule
from ringfence.policy.effective import EffectivePolicy, Entry

SWEEP = 0.5


def rules(count: int, *, by_request: bool, uninspected: bool) -> EffectivePolicy:
    """Return a policy of ``count`` rules that do not matter and a few that do."""
    written: list[dict[str, Any]] = [
        {"id": f"r{k}", "name": f"rule {k}", "effect": "allow", "resources": [f"h{k}.other.test"]}
        for k in range(count)
    ]
    allow: dict[str, Any] = {
        "id": "bench",
        "name": "bench",
        "effect": "allow",
        "resources": ["**.bench.test"],
    }
    if uninspected:
        allow["inspect"] = "never"
    written.append(allow)
    written.append(
        {
            "id": "bypass",
            "name": "bypass",
            "effect": "allow",
            "resources": ["**.bypass.test"],
            "inspect": "never",
        }
    )
    if by_request:
        deny = {"id": "deny", "name": "deny", "effect": "deny", "resources": ["**.bench.test"]}
        written.append({**deny, "methods": ["ANY"], "paths": ["/denied/**", "/denied"]})
    entries = tuple(Entry(rule=parse_rule(rule), origin="local") for rule in written)
    return EffectivePolicy(revision=1, entries=entries)


class Scribe:
    """Takes batches of records from the outbox to a file."""

    def __init__(self, loop: asyncio.AbstractEventLoop, file: BinaryIO) -> None:
        self._loop, self._file = loop, file
        self.outbox = Outbox(16 << 20, lambda: loop.call_later(0.02, self._write))

    def _write(self) -> None:
        while (batch := self.outbox.take()) is not None:
            self._file.writelines((batch[1], b"\n"))
            self.outbox.acknowledge(batch[0])


async def serve(arguments: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()

    async def lookup(name: str) -> tuple[Sequence[str], float]:
        return ([arguments.address] if name.endswith((".bench.test", ".bypass.test")) else []), 3600.0

    backends = choose(arguments.tls)
    if arguments.tls == "rtls" and backends.client.name != "rtls":
        raise SystemExit(backends.reason)
    key, certificate = create_authority(now=time.time())
    arguments.certificate.write_bytes(certificate)
    with arguments.records.open("ab", 1 << 16) as records:
        scribe = Scribe(loop, records)
        services = Services(
            loop=loop,
            dialer=Dialer(loop, resolve={}, lookup=lookup),
            outbox=scribe.outbox,
            upstream_contexts=upstream_contexts(
                arguments.roots.read_text() if arguments.roots else "", backends.client
            ),
            round=Round(loop),
            authority=Authority(key, certificate, now=time.time, backend=backends.server),
            capacity=20_000,
        )
        policy = rules(arguments.rules, by_request=arguments.by_request, uninspected=arguments.uninspected)
        guests = []
        for name, port, most in (("bench", arguments.port, 20_000), ("neighbour", arguments.port + 1, 4096)):
            subject = Subject(
                id=name,
                name=name,
                agent="shell",
                user="bench",
                ids=decision_numbers(b"bench000"),
                sink=scribe.outbox.add,
                limits=Limits(connections=most),
            )
            guest = Guest(services, subject, Addresses())
            guest.bind(policy, time.time())
            listening = socket.socket()
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(("127.0.0.1", port))
            await guest.serve({"proxy4": listening})
            guests.append(guest)
        settle_memory()
        while True:
            await asyncio.sleep(SWEEP)
            for guest in guests:
                guest.sweep(time.time())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=3128)
    parser.add_argument("--address", default="203.0.113.9", help="where every name under bench.test leads")
    parser.add_argument("--roots", type=Path, help="certificate authority of the origin (PEM)")
    parser.add_argument(
        "--certificate", type=Path, default=Path("gateway-ca.pem"), help="written: ours, for clients"
    )
    parser.add_argument("--records", type=Path, default=Path("/dev/null"), help="written: audit records")
    parser.add_argument("--rules", type=int, default=10_000)
    parser.add_argument("--by-request", action="store_true", help="HTTP rules: every request is decided")
    parser.add_argument("--tls", choices=WISHES, default="ssl", help="the TLS backend, on both sides")
    parser.add_argument("--uninspected", action="store_true", help="TLS passes through as it is")
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
