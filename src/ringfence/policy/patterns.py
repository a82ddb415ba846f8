"""Network resources: the one language in which rules name destinations, parsed once into canonical values.

Entry is tolerant where people paste (:func:`split_resources`), storage and print are canonical: ``parse(print(x))``
is ``x``. What cannot be meant is refused with what to write instead; after that nothing can fail.

    example.com  example.com:443  *.example.com  **.example.com  crl*.digicert.com  api[12].x.org  **  **:25
    203.0.113.7  203.0.113.0/24:8000-8100  [2001:db8::1]:443  [2001:db8::/32]:443  0.0.0.0/0  ::/0  localhost:11434
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from ringfence.policy.addresses import Network, is_guarded, parse_network
from ringfence.policy.errors import InvalidPolicy, quote
from ringfence.policy.names import (
    HOST_NAME,
    LABEL_BYTES,
    LOCALHOST,
    NAME_BYTES,
    canonical_ipv6,
    load_name,
    parse_port,
)
from ringfence.policy.paths import glob_regex

PORTS = (1, 65_535)
RESOURCES = 1000
"""Resources in one rule, and in one entry."""

_WILD = frozenset("*?[]")
_GLOB_LABEL = re.compile(r"(?:[a-z0-9_*?-]|\[!?(?:[a-z0-9_](?:-[a-z0-9_])?)+\])+")
_SUSPICIOUS = re.compile(r"[\s@%\\]|://")
_BRACKETS = re.compile(r"\[[^\]]*[:.]|\[[^\]]*$")
"""Brackets as around an address, not those of a set such as `[12]`."""
_WIDE = {4: 8, 6: 16}
"""Prefixes shorter than this hold so much that they are catch-alls in pieces (`0.0.0.0/1` and `128.0.0.0/1`)."""

PublicSuffix = Callable[[str], bool]
"""Whether a name is a public suffix (`com`, `co.uk`, `github.io`). The list comes in from outside."""


class Shape(StrEnum):
    """How a resource matches."""

    EXACT = "exact"
    ONE = "one"
    DEEP = "deep"
    GLOB = "glob"
    ANY = "any"
    NETWORK = "network"
    LOCAL = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What a rule is about: a set of hosts on a range of ports."""

    shape: Shape
    host: str = ""
    """The name (``EXACT``), what follows the wildcard label (``ONE``, ``DEEP``), or the whole pattern (``GLOB``)."""
    network: Network | None = None
    low: int = PORTS[0]
    high: int = PORTS[1]

    @property
    def text(self) -> str:
        """The canonical form: what is stored, shown and parsed again."""
        host = self._host_text()
        if (self.low, self.high) == PORTS:
            return host
        ports = str(self.low) if self.low == self.high else f"{self.low}-{self.high}"
        return f"[{host}]:{ports}" if ":" in host else f"{host}:{ports}"

    def _host_text(self) -> str:
        match self.shape:
            case Shape.EXACT | Shape.GLOB:
                return self.host
            case Shape.ONE:
                return f"*.{self.host}"
            case Shape.DEEP:
                return f"**.{self.host}"
            case Shape.ANY:
                return "**"
            case Shape.LOCAL:
                return LOCALHOST
            case Shape.NETWORK:
                return str(self.network)

    def __str__(self) -> str:
        return self.text

    @property
    def catch_all(self) -> bool:
        """Whether every name is covered: `**`, `0.0.0.0/0`, `::/0`."""
        return self.shape is Shape.ANY or (self.network is not None and self.network.length == 0)

    @property
    def broad(self) -> bool:
        """Whether it is a catch-all or a large piece of one: it opens no guarded range."""
        if self.network is None:
            return self.shape is Shape.ANY
        return self.network.length < _WIDE[self.network.version] and not is_guarded(self.network)

    @property
    def stem(self) -> str:
        """The literal labels behind the last wildcard label; the whole name if there is none, empty for no name."""
        if self.shape is not Shape.GLOB:
            return self.host
        return self.host[_last_wild(self.host) :].partition(".")[2]

    def wild_over(self, is_public_suffix: PublicSuffix) -> str:
        """Return the public suffix that a wildcard stands directly in front of, or nothing."""
        wild = self.shape in (Shape.ONE, Shape.DEEP, Shape.GLOB)
        return self.stem if wild and is_public_suffix(self.stem) else ""


def bare_suffix(name: str) -> bool:
    """The least that any public-suffix list knows: a top-level domain."""
    return "." not in name


@lru_cache(maxsize=32_768)
def parse_resource(written: str) -> Resource:
    """Return the resource that was written, or raise ``InvalidPolicy`` with what to write instead.

    Cached, so that a snapshot built again shares its values with the one before it.
    """
    text = written.strip()
    _refuse_what_is_no_host(text, written)
    if _BRACKETS.match(text):
        return _bracketed(text)
    if text.count(":") > 1:
        return _network(text, text, PORTS)
    host, colon, port = text.partition(":")
    ports = _ports(port, text) if colon else PORTS
    if "/" in host:
        return _network(host, text, ports)
    return _name(host, text, ports)


def split_resources(text: str) -> tuple[Resource, ...]:
    """Return the resources of a pasted list: one a line, commas, spaces; blank lines and doubles are dropped.

    A space separates only where both sides look whole, so that `exa mple.com` is a mistake and not two names.
    """
    pieces: list[str] = []
    for line in text.splitlines() or [""]:
        if not line.strip():
            continue
        entries = line.strip().removesuffix(",").split(",")
        for entry in entries:
            pieces.extend(_split_spaces(entry, line))
        if len(pieces) > RESOURCES:
            break
    return parse_resources(pieces)


def parse_resources(texts: Iterable[str]) -> tuple[Resource, ...]:
    """Return the resources of a list in the order written, without doubles. An empty list is refused."""
    written = list(texts)
    if not written:
        raise InvalidPolicy("no resources", "write a host such as `example.com`, or `**` for everything")
    if len(written) > RESOURCES:
        raise InvalidPolicy(
            f"more than {RESOURCES} resources in one rule", "make several rules, or import a policy document"
        )
    return tuple(dict.fromkeys(parse_resource(text) for text in written))


def _split_spaces(entry: str, line: str) -> list[str]:
    parts = entry.split()
    if not parts:
        raise InvalidPolicy(f"a blank entry in {quote(line)}", "write one host between two commas")
    if len(parts) > 1 and not all("." in part or ":" in part or part == "**" for part in parts):
        raise InvalidPolicy(
            f"{quote(entry.strip())} has a space",
            "separate hosts with commas or new lines; a name has no spaces",
        )
    return parts


def _refuse_what_is_no_host(text: str, written: str) -> None:
    if not text:
        raise InvalidPolicy("`` is empty", "write a host such as `example.com`, or `**` for everything")
    if len(text) > NAME_BYTES + 16:
        raise InvalidPolicy(f"{quote(written)} is longer than {NAME_BYTES} bytes")
    if not _SUSPICIOUS.search(text):
        return
    if "://" in text:
        scheme, _, rest = text.partition("://")
        host = re.split(r"[/?#]", rest)[0].rpartition("@")[2]
        port = {"http": ":80", "https": ":443"}.get(scheme.lower(), "")
        shown = host if ":" in host.rpartition("]")[2] else f"{host}{port}"
        raise InvalidPolicy(f"{quote(written)} is a URL", f"write its host alone: {quote(shown)}")
    if any(c.isspace() for c in text):
        raise InvalidPolicy(
            f"{quote(written)} has a space", "a name has no spaces; separate hosts with commas"
        )
    if "@" in text:
        raise InvalidPolicy(f"{quote(written)} has user information", "write the host behind `@`")
    if "%" in text:
        raise InvalidPolicy(
            f"{quote(written)} has a zone or percent-encoding", "write the plain address or name"
        )
    if "\\" in text:
        raise InvalidPolicy(f"{quote(written)} has a backslash", "nothing is escaped in a resource")
    raise InvalidPolicy(f"{quote(written)} has a space", "a name has no spaces; separate hosts with commas")


def _bracketed(text: str) -> Resource:
    inside, closed, rest = text[1:].partition("]")
    if not closed or ":" not in inside:
        raise InvalidPolicy(
            f"{quote(text)} has brackets that hold no IPv6 address", "write `[2001:db8::1]:443`"
        )
    slash, colon, port = rest.partition(":")
    if slash and (not slash.startswith("/") or "/" in inside):
        raise InvalidPolicy(f"{quote(text)} is not an address", "write `[2001:db8::/32]:443`")
    return _network(inside + slash, text, _ports(port, text) if colon else PORTS)


def _network(host: str, written: str, ports: tuple[int, int]) -> Resource:
    address = host.partition("/")[0]
    if not (set(address) <= set("0123456789abcdefABCDEF:.") and (":" in address or address[-1:].isdigit())):
        if "/" in host:
            raise InvalidPolicy(
                f"{quote(written)} has a path",
                f"write the host alone, {quote(address)}, and the path with `--path`",
            )
        raise InvalidPolicy(f"{quote(written)} is neither a name nor an address", "write `host:port`")
    if ":" in address:
        canonical_ipv6(address)
    network = parse_network(host)
    if _LOOPBACK[network.version].covers(network):
        port = f":{ports[0]}" if ports[0] == ports[1] else ":PORT"
        raise InvalidPolicy(
            f"{quote(written)} is loopback, which no address rule reaches",
            f"write `{LOCALHOST}{port}` for a service on this machine; a sandbox reaches it as `{HOST_NAME}{port}`",
        )
    return Resource(shape=Shape.NETWORK, network=network, low=ports[0], high=ports[1])


def _name(host: str, written: str, ports: tuple[int, int]) -> Resource:
    low, high = ports
    if host in ("", "*"):
        port = written[len(host) :]
        raise InvalidPolicy(
            f"{quote(written)} names no host",
            f"write `**{port}` for everything, or `*.example.com{port}` for one label below a name",
        )
    if host == "**":
        return Resource(shape=Shape.ANY, low=low, high=high)
    if _WILD.isdisjoint(host):
        name = load_name(host)
        if name[-1].isdigit() and name.replace(".", "").isdigit():
            return _network(name, written, ports)
        if name == LOCALHOST:
            return Resource(shape=Shape.LOCAL, low=low, high=high)
        _refuse_below_localhost(name, written)
        return Resource(shape=Shape.EXACT, host=name, low=low, high=high)
    for wildcard, shape in (("**.", Shape.DEEP), ("*.", Shape.ONE)):
        rest = host.removeprefix(wildcard)
        if rest != host and _WILD.isdisjoint(rest):
            name = _suffix(rest, written)
            return Resource(shape=shape, host=name, low=low, high=high)
    return Resource(shape=Shape.GLOB, host=_glob(host, written), low=low, high=high)


def _suffix(rest: str, written: str) -> str:
    name = load_name(rest)
    if name[-1].isdigit() and name.replace(".", "").isdigit():
        raise InvalidPolicy(
            f"{quote(written)} puts a wildcard before an address", "write a network: `203.0.113.0/24`"
        )
    _refuse_below_localhost(f"x.{name}", written)
    return name


def _refuse_below_localhost(name: str, written: str) -> None:
    if name.endswith((f".{LOCALHOST}", f".{HOST_NAME}")):
        raise InvalidPolicy(f"{quote(written)} is below `{LOCALHOST}`", f"write `{LOCALHOST}:PORT`")


def _glob(host: str, written: str) -> str:
    """Return the canonical pattern. Only its first label may be a whole wildcard; the last one must be literal."""
    if not host.isascii():
        raise InvalidPolicy(
            f"{quote(written)} has letters outside ASCII beside a wildcard", "write the `xn--` form"
        )
    labels = host.lower().removesuffix(".").split(".")
    for position, label in enumerate(labels):
        whole = label in ("*", "**")
        if whole and position:
            raise InvalidPolicy(
                f"{quote(written)} has a wildcard label behind another label",
                "write `**.example.com` for every depth below a name",
            )
        if not whole and ("**" in label or not _GLOB_LABEL.fullmatch(label) or len(label) > 4 * LABEL_BYTES):
            raise InvalidPolicy(
                f"{quote(written)} is not a host pattern",
                "inside a label write `*`, `?` or `[12]`; in front of a name `*.` or `**.`",
            )
    if not _WILD.isdisjoint(labels[-1]):
        raise InvalidPolicy(
            f"{quote(written)} has a wildcard for a top-level domain",
            "write the top-level domain: `example.com`",
        )
    literal = ".".join(label if _WILD.isdisjoint(label) else "a" for label in labels)
    load_name(literal)
    _refuse_below_localhost(literal, written)
    compile_glob(".".join(labels))
    return ".".join(labels)


def compile_glob(host: str) -> re.Pattern[str]:
    """Compile a ``GLOB`` pattern for ``fullmatch`` against a canonical name; no wildcard crosses a dot."""
    first, _, rest = host.partition(".")
    front = {"**": r"(?:[^.]++\.)*", "*": r"[^.]++\."}.get(first)
    labels = rest if front is not None else host
    body = r"\.".join(glob_regex(label, "[^.]") for label in labels.split("."))
    try:
        return re.compile((front or "") + body)
    except re.error as error:
        raise InvalidPolicy(
            f"{quote(host)} has a set that is no set", "write `[12]`, `[a-f]` or `[!0-9]`"
        ) from error


def _last_wild(host: str) -> int:
    return max(host.rfind(c) for c in _WILD)


def _ports(text: str, written: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    first = parse_port(low, written)
    last = parse_port(high, written) if dash else first
    if last < first:
        raise InvalidPolicy(
            f"port range {quote(text)} in {quote(written)} runs backwards", f"write `{last}-{first}`"
        )
    return first, last


_LOOPBACK = {4: parse_network("127.0.0.0/8"), 6: Network(6, 1, 128)}
