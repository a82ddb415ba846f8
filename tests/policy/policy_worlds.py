"""Small worlds for property tests: few names, few ports, so that rules and questions meet often."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from ringfence.policy import Effect, Mode, NetworkAccess, Rule, Transport, canonical_host, parse_resource
from ringfence.policy.paths import parse_path_pattern

LABELS = ("a", "b", "api1", "api2")
DOMAINS = ("test", "x.test", "y.test", "co.uk")
ADDRESSES = (
    *("93.184.216.34", "203.0.113.7", "10.1.2.3", "10.9.9.9", "192.168.1.1", "127.0.0.1", "169.254.169.254"),
    *("169.254.1.1", "224.0.0.1", "198.18.0.1", "2606:2800::1", "fd00::1", "::1", "::ffff:10.1.2.3"),
    *(
        "::ffff:203.0.113.7",
        "64:ff9b::a01:203",
        "64:ff9b::cb00:7107",
        "2002:a01:203::1",
        "fe80::1",
        "::ffff:7f00:1",
    ),
)
NETWORKS = (
    *("0.0.0.0/0", "::/0", "0.0.0.0/1", "10.0.0.0/8", "10.1.0.0/16", "203.0.113.0/24", "203.0.113.7"),
    *(
        "93.184.216.34",
        "2606:2800::/32",
        "fd00::/8",
        "fc00::/7",
        "169.254.0.0/16",
        "::ffff:10.1.2.3",
        "2000::/3",
    ),
)
PORTS = (80, 443, 8080)
PATHS = ("/", "/a", "/a/b", "/a/b/c", "/b")
PATTERNS = ("/**", "/a", "/a/**", "/*", "/*/b", "/a*", "/**/b/**")
METHODS = ("GET", "POST")

names = st.builds(
    lambda labels, domain: ".".join([*labels, domain]),
    st.lists(st.sampled_from(LABELS), max_size=3),
    st.sampled_from(DOMAINS),
)
hosts = st.one_of(names, st.sampled_from(ADDRESSES).map(canonical_host), st.just("localhost"))

ports = st.one_of(
    st.just(""),
    st.sampled_from(PORTS).map(lambda port: f":{port}"),
    st.sampled_from(((1, 80), (80, 443), (443, 65535), (400, 8080))).map(
        lambda ends: f":{ends[0]}-{ends[1]}"
    ),
)


def _with_ports(pattern: str, port: str) -> str:
    return f"[{pattern}]{port}" if ":" in pattern and port else f"{pattern}{port}"


resources = st.builds(
    _with_ports,
    st.one_of(
        names,
        st.builds(
            "{}.{}".format, st.sampled_from(("*", "**", "a*", "api?", "api[12]", "*b", "[!a]*")), names
        ),
        st.builds("{}.api?.{}".format, st.sampled_from(("*", "**")), st.sampled_from(DOMAINS)),
        st.sampled_from(("**", *NETWORKS)),
        st.just("host.docker.internal"),
    ),
    ports,
).map(parse_resource)


@st.composite
def rules(draw: st.DrawFn, **fixed: object) -> Rule:
    """One rule that may be; ``fixed`` fields are as given."""
    effect = fixed.get("effect") or draw(st.sampled_from(Effect))
    found = draw(st.lists(resources, min_size=1, max_size=3))
    if effect is not Effect.DENY:
        found = [
            r if r.shape != "local" or r.high != 65_535 or r.low != 1 else replace(r, low=80, high=443)
            for r in found
        ]
    http = not any(resource.network for resource in found) and draw(st.integers(0, 3)) == 0
    fields: dict[str, object] = {
        "id": f"r{draw(st.integers(0, 10**9))}",
        "effect": effect,
        "resources": tuple(dict.fromkeys(found)),
        "transports": tuple(draw(st.sets(st.sampled_from(Transport)))),
        "mode": Mode.EVALUATE if draw(st.integers(0, 5)) == 0 else Mode.ENFORCE,
    }
    if http:
        fields["methods"] = tuple(draw(st.sampled_from((("GET",), ("ANY",), ("GET", "POST")))))
        fields["paths"] = tuple(
            parse_path_pattern(text)
            for text in draw(st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=2))
        )
    return Rule(**{**fields, **fixed})


def distinct(found: list[Rule]) -> list[Rule]:
    return list({rule.id: rule for rule in found}.values())


policies = st.lists(rules(), max_size=8).map(distinct)


@st.composite
def accesses(draw: st.DrawFn, host: st.SearchStrategy[str] = hosts) -> NetworkAccess:
    transport = draw(st.sampled_from((Transport.TCP, Transport.TCP, Transport.UDP)))
    request = draw(st.booleans())
    return NetworkAccess(
        host=draw(host),
        port=draw(st.sampled_from(PORTS)),
        transport=transport,
        method=draw(st.sampled_from(METHODS)) if request else "",
        path=draw(st.sampled_from(PATHS)) if request else "",
    )
