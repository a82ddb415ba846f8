"""Host names and addresses in their one canonical form.

Everything that is ever compared is canonical first, at load and on the wire, and by the same code: lower
case, one trailing dot removed, IDNA A-labels, at most 253 bytes, LDH labels and underscores; addresses in one
notation (RFC 5952; dotted decimal). What is not canonical is refused, not repaired: resolvers, proxies and
libraries disagree about `0177.1`, `127.1`, `1.2.3.4.` and `％2e`, and every disagreement has been a bypass
(CVE-2021-29923, CVE-2022-24825, CVE-2022-29188). The two liberties, both harmless: case, and IPv6 text that
RFC 4291 reads one way.

A person may write U-labels in a policy, where UTS 46 maps them once (:func:`load_name`). The wire speaks
A-labels: there a byte outside ASCII is refused (:func:`canonical_host`).
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

import idna

from ringfence.policy.errors import InvalidPolicy, quote

HOST_NAME = "host.docker.internal"
"""What a sandbox calls the host's loopback; ``localhost`` inside is the sandbox itself."""
GATEWAY_NAME = "gateway.docker.internal"
"""The gateway's own listener: never a destination."""
LOCALHOST = "localhost"
"""The canonical host of a service on the host's loopback."""

NAME_BYTES = 253
LABEL_BYTES = 63

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ENDS_IN_NUMBER = re.compile(r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)\.?$")
"""A last label that the WHATWG URL standard and `inet_aton` read as part of an IPv4 address."""
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f]")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


@lru_cache(maxsize=16_384)
def canonical_host(text: str | bytes) -> str:
    """Return the canonical host that a client named, or refuse it. ``host.docker.internal`` becomes
    ``localhost``.

    ``text`` is a name, an IPv4 address, or an IPv6 address with or without brackets, and comes from hostile
    hands.
    """
    host = _ascii(text)
    if host.startswith("[") or host.endswith("]"):
        if not (host.startswith("[") and host.endswith("]") and ":" in host):
            raise InvalidPolicy(f"{quote(text)} has brackets that do not hold an IPv6 address")
        host = host[1:-1]
    if ":" in host:
        return canonical_ipv6(host)
    return canonical_name(host)


def canonical_name(text: str | bytes) -> str:
    """Return the canonical name or IPv4 address; see :func:`canonical_host`."""
    host = _ascii(text).lower()
    if _ENDS_IN_NUMBER.search(host):
        return _canonical_ipv4(host)
    name = host[:-1] if host.endswith(".") else host
    _check_name(name, text)
    return LOCALHOST if name == HOST_NAME else name


def load_name(text: str) -> str:
    """Return the canonical form of a name that a person wrote: as :func:`canonical_name`, and U-labels become
    A-labels."""
    if text.isascii():
        return canonical_name(text)
    if len(text) > NAME_BYTES:
        raise InvalidPolicy(f"{quote(text)} is longer than {NAME_BYTES} bytes")
    try:
        mapped = idna.uts46_remap(text, std3_rules=False, transitional=False)
        labels = [label if label.isascii() else _to_alabel(label) for label in mapped.split(".")]
    except (idna.IDNAError, UnicodeError) as error:
        raise InvalidPolicy(
            f"{quote(text)} is not an internationalised domain name", "write its `xn--` form"
        ) from error
    name = ".".join(labels)
    if _ENDS_IN_NUMBER.search(name):
        raise InvalidPolicy(f"{quote(text)} looks like an address in other characters", "write plain digits")
    return canonical_name(name)


def canonical_ipv6(text: str) -> str:
    """Return an IPv6 address in the notation of RFC 5952, mapped addresses with their IPv4 tail on every
    Python."""
    if "%" in text:
        raise InvalidPolicy(f"{quote(text)} has a zone", "write the address without `%`")
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError as error:
        raise InvalidPolicy(f"{quote(text)} is not an IPv6 address") from error
    return ipv6_text(int(address))


def ipv6_text(value: int) -> str:
    """Return the canonical notation of a 128-bit address."""
    if value >> 32 == 0xFFFF:
        return f"::ffff:{ipaddress.IPv4Address(value & 0xFFFF_FFFF)}"
    return str(ipaddress.IPv6Address(value))


def split_authority(text: str | bytes, default_port: int | None = None) -> tuple[str, int]:
    """Return the canonical host and the port of ``host:port`` or ``[v6]:port`` as it stands in a request."""
    written = _ascii(text)
    host, colon, port = written.rpartition(":")
    if not colon or written.endswith("]"):
        if default_port is None:
            raise InvalidPolicy(f"{quote(text)} has no port")
        return canonical_host(written), default_port
    if ":" in host and not host.startswith("["):
        raise InvalidPolicy(f"{quote(text)} is neither `host:port` nor `[address]:port`")
    return canonical_host(host), parse_port(port, written)


def parse_port(text: str, whole: str) -> int:
    """Return the port, 1 to 65535, without sign, space or leading zero."""
    if _PORT.fullmatch(text) and int(text) <= 65_535:
        return int(text)
    raise InvalidPolicy(f"{quote(text)} in {quote(whole)} is not a port", "ports are 1 to 65535")


def _ascii(text: str | bytes) -> str:
    if len(text) > NAME_BYTES + 8:
        raise InvalidPolicy(f"{quote(text)} is longer than {NAME_BYTES} bytes")
    try:
        host = text.decode("ascii") if isinstance(text, bytes) else text
    except UnicodeDecodeError:
        host = "\x00"
    if not host:
        raise InvalidPolicy("`` is empty", "write a host such as `example.com`")
    if _FORBIDDEN.search(host) or not host.isascii():
        raise InvalidPolicy(f"{quote(text)} holds a character that no host name has")
    return host


def _canonical_ipv4(host: str) -> str:
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError as error:
        raise InvalidPolicy(
            f"{quote(host)} is not an address in its canonical notation",
            "write four decimal numbers: `203.0.113.7`",
        ) from error


def _check_name(name: str, written: str | bytes) -> None:
    if len(name) > NAME_BYTES:
        raise InvalidPolicy(f"{quote(written)} is longer than {NAME_BYTES} bytes")
    if not _NAME.fullmatch(name):
        hint = "labels have letters, digits and hyphens, and neither begin nor end with a hyphen"
        if max(map(len, name.split("."))) > LABEL_BYTES:
            hint = f"a label has at most {LABEL_BYTES} bytes"
        elif "" in name.split("."):
            hint = "a name has no empty label"
        raise InvalidPolicy(f"{quote(written)} is not a host name", hint)
    if "xn--" in name:
        for label in name.split("."):
            if label.startswith("xn--"):
                _check_alabel(label, written)


def _check_alabel(label: str, written: str | bytes) -> None:
    """Refuse punycode that is not the one spelling of an IDN: two spellings would be two names to rules, one
    to people."""
    try:
        agrees = idna.alabel(idna.ulabel(label)) == label.encode()
    except (idna.IDNAError, UnicodeError):
        agrees = False
    if not agrees:
        raise InvalidPolicy(
            f"{quote(label)} in {quote(written)} is punycode that no internationalised name has",
            "write the name in its own letters",
        )


def _to_alabel(label: str) -> str:
    if label.startswith("xn--"):
        raise idna.IDNAError("an A-label is ASCII")
    return idna.alabel(label).decode()
