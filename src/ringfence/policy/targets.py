"""Targets: how a person writes an access, in `policy check`, in a document's tests, in the simulator.

    example.com   example.com:8443   [2001:db8::1]:443   203.0.113.7   https://api.github.com/repos/x   localhost:11434

A target without a port means 443. A URL with a path, or a method, is an HTTP request; without either it is the bare
connection.
"""

from __future__ import annotations

import re

from ringfence.policy.errors import InvalidPolicy, quote
from ringfence.policy.model import NetworkAccess, Transport
from ringfence.policy.names import canonical_host, load_name, parse_port

DEFAULT_PORT = 443
_SCHEMES = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")


def parse_target(written: str, *, method: str = "", transport: Transport = Transport.TCP) -> NetworkAccess:
    """Return the access that a target means."""
    text, path, default = written.strip(), "", DEFAULT_PORT
    if "://" in text:
        scheme, _, rest = text.partition("://")
        if scheme.lower() not in _SCHEMES:
            raise InvalidPolicy(f"{quote(written)} is neither http nor https", "write `host:port`")
        default = _SCHEMES[scheme.lower()]
        text, path = _authority(rest, written)
    elif "/" in text:
        raise InvalidPolicy(f"{quote(written)} has a path", f"write it as a URL: {quote(f'https://{text}')}")
    if method and not _METHOD.fullmatch(method):
        raise InvalidPolicy(f"{quote(method)} is not a method", "write it in upper case: `GET`")
    host, port = _host_and_port(text, default, written)
    request = bool(method or path.strip("/"))
    return NetworkAccess(
        host=host,
        port=port,
        transport=transport,
        method=(method or "GET") if request else "",
        path=(path or "/") if request else "",
    )


def target_text(access: NetworkAccess) -> str:
    """Return a target that :func:`parse_target` reads back, with the method beside it."""
    place = authority_text(access.host, access.port)
    if not access.method:
        return place
    return f"https://{place}{access.path}"


def authority_text(host: str, port: int) -> str:
    """Return `host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _authority(rest: str, written: str) -> tuple[str, str]:
    cut = min((i for c in "/?#" if (i := rest.find(c)) >= 0), default=len(rest))
    authority, tail = rest[:cut], rest[cut:].partition("#")[0]
    if "@" in authority or "\\" in authority:
        raise InvalidPolicy(f"{quote(written)} has user information or a backslash", "write the plain URL")
    return authority, tail if tail.startswith("/") else ""


def _host_and_port(text: str, default: int, written: str) -> tuple[str, int]:
    if not text:
        raise InvalidPolicy(f"{quote(written)} names no host", "write `example.com` or `example.com:443`")
    if text.startswith("[") or text.count(":") > 1:
        host, closed, rest = text.partition("]") if text.startswith("[") else (text, "", "")
        if rest and not rest.startswith(":"):
            raise InvalidPolicy(f"{quote(written)} is not `[address]:port`")
        return canonical_host(host + closed), parse_port(rest[1:], written) if rest else default
    host, colon, port = text.partition(":")
    return load_name(host), parse_port(port, written) if colon else default
