"""The demo's small internet as a table: who lives where.

Three networks that documentation owns (RFC 5737, RFC 3849) look public to every guard and belong to nobody,
so nothing here can be mistaken for a real host and no guard needs an exemption. The one liberty is the
foreign DNS server, which has the address that an attacker would really type. Everything lives inside network
namespaces of the demo's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A host of the demo's internet: its name and its two addresses."""

    name: str
    v4: str
    v6: str


ORIGINS: Final[tuple[Place, ...]] = tuple(
    Place(name=name, v4=f"203.0.113.{number}", v6=f"2001:db8:113::{number}")
    for number, name in enumerate(
        (
            "api.anthropic.com",
            "statsig.anthropic.com",
            "platform.claude.com",
            "api.openai.com",
            "storage.googleapis.com",
            "hub.docker.com",
            "registry-1.docker.io",
            "dhi.io",
            "paste.ee",
            "pastebin.com",
            "hooks.slack.com",
            "example.com",
            "www.example.com",
            "pypi.org",
            "files.pythonhosted.org",
            "github.com",
            "codeload.github.com",
            "registry.npmjs.org",
            "deb.debian.org",
            "crates.io",
            "proxy.golang.org",
        ),
        start=10,
    )
)
"""Web sites: HTTP on port 80, HTTPS on port 443."""

ECHO: Final = Place(name="echo.example.net", v4="198.51.100.7", v6="2001:db8:51::7")
"""Answers every datagram and every byte on its port, and ICMP echo requests."""

ECHO_PORT: Final = 7

QUIC: Final = ORIGINS[0]
"""A web site that also answers datagrams on port 443, as those do that speak HTTP/3."""

FOREIGN_DNS: Final = Place(name="dns.google", v4="8.8.8.8", v6="2001:4860:4860::8888")
"""A resolver that a program inside a sandbox might prefer. It answers for every name of this world."""

HOST_DNS: Final = Place(name="dns.isp.example", v4="192.0.2.53", v6="2001:db8:2::53")
"""The resolver in the demo host's ``/etc/resolv.conf``."""

METADATA: Final = Place(name="metadata.cloud.example", v4="169.254.169.254", v6="fd00:ec2::254")
"""Where a cloud machine asks for its credentials. It answers the host; no sandbox may ever reach it."""

ROUTER: Final = Place(name="router.isp.example", v4="192.0.2.1", v6="2001:db8:2::1")
HOST: Final = Place(name="host.isp.example", v4="192.0.2.2", v6="2001:db8:2::2")
"""The demo's host: where its daemon, its gateway and "the host's own curl" run."""

TUNNEL_ZONE: Final = "tunnel.example"
"""A zone whose server is an accomplice: whatever is asked below it has been told to somebody."""

SITES: Final[tuple[Place, ...]] = (*ORIGINS, METADATA)
"""Everybody who speaks HTTP."""

PLACES: Final[tuple[Place, ...]] = (*ORIGINS, ECHO, FOREIGN_DNS, METADATA, HOST_DNS, ROUTER)
"""Everybody on the far side of the demo host's one link."""

BY_NAME: Final = {place.name: place for place in PLACES}
BY_ADDRESS: Final = {address: place for place in PLACES for address in (place.v4, place.v6)}


def hosts_file() -> str:
    """Return an ``/etc/hosts`` with every name of this world, for the demo's host."""
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    lines += [f"{address} {place.name}" for place in PLACES for address in (place.v4, place.v6)]
    return "\n".join(lines) + "\n"
