"""A second policy engine, as slow and plain as possible: the reference that the product's engine is compared with.

It shares the parsed values and nothing else. Every rule is looked at for every question; patterns are taken apart label
by label; a bare connection is undetermined when, over all sets of HTTP rules that a request could match, verdicts
differ. Guards are written down a second time, in :mod:`ipaddress`'s terms.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from ringfence.policy import Effect, Mode, NetworkAccess, Rule, Verdict
from ringfence.policy.patterns import Resource, Shape

NEVER = [
    *(
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
    ),
    *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "127.0.0.0/8", "::1"),
    *("198.18.0.0/15", "10.255.255.0/29", "fd72:696e:6766::/48"),
]
LITERAL = ["0.0.0.0/8", "::", "169.254.0.0/16", "fe80::/10", "224.0.0.0/4", "255.255.255.255", "ff00::/8"]
PRIVATE = [
    *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "192.0.0.0/24", "240.0.0.0/4"),
    *("fc00::/7", "fec0::/10"),
]
BROAD = {4: 8, 6: 16}

Address = IPv4Address | IPv6Address


@dataclass(frozen=True)
class Answer:
    verdict: Verdict
    reason: str
    rules: frozenset[str] = frozenset()


def decide(rules: Sequence[Rule], access: NetworkAccess) -> Answer:
    """Decide without teams, budgets or expiry: those are tables, not algorithms."""
    address = as_address(access.host)
    if address is not None:
        return about_address(rules, access, address)
    return conclude([rule for rule in rules if matches_name(rule, access)], access)


def judge(rules: Sequence[Rule], access: NetworkAccess, dialled: str) -> Answer:
    """Decide an address that a name was resolved to."""
    found = decide(rules, access)
    if found.verdict not in (Verdict.ALLOWED, Verdict.UNDETERMINED):
        return found
    address = ip_address(dialled)
    openers: set[str] = set()
    for each in [address, *carried(address)]:
        degree = danger(each)
        if degree == 0:
            continue
        narrow = {r.id for r in rules if r.effect is Effect.ALLOW and opens(r, access, [address, each])}
        if degree > 1 or not narrow:
            return Answer(Verdict.BLOCKED, "guard")
        openers |= narrow
    denies = {
        rule.id
        for rule in rules
        if rule.effect is Effect.DENY
        and enforced(rule)
        and access.transport in rule.transports
        and any(holds(r, each, access.port) for r in rule.resources for each in [address, *carried(address)])
    }
    if denies:
        return Answer(Verdict.BLOCKED, "rule", frozenset(denies))
    family = conclude([rule for rule in rules if matches_name(rule, access, address.version)], access)
    if family.verdict in (Verdict.ALLOWED, Verdict.UNDETERMINED):
        return Answer(family.verdict, family.reason, family.rules | openers)
    return family


def about_address(rules: Sequence[Rule], access: NetworkAccess, address: Address) -> Answer:
    everything = [address, *carried(address)]
    guarded = [each for each in everything if danger(each)]
    for each in guarded:
        speakers = [r for r in rules if r.effect is not Effect.DENY and opens(r, access, [address, each])]
        if danger(each) > 2 or not speakers:
            return Answer(Verdict.BLOCKED, "guard")
    matching = []
    for rule in rules:
        if access.transport not in rule.transports:
            continue
        if rule.effect is Effect.DENY:
            direct = any(reaches(r, address, access.port) for r in rule.resources)
            indirect = any(holds(r, each, access.port) for r in rule.resources for each in carried(address))
            if direct or indirect:
                matching.append(rule)
        elif danger(address):
            if opens(rule, access, [address]):
                matching.append(rule)
        elif any(reaches(r, address, access.port) for r in rule.resources):
            matching.append(rule)
    return conclude(matching, access)


def conclude(matching: Iterable[Rule], access: NetworkAccess) -> Answer:
    said = [rule for rule in matching if enforced(rule)]
    network = [rule for rule in said if not rule.http]
    requests = [rule for rule in said if rule.http]
    if access.method:
        path = access.path.rstrip("/")
        return verdict([*network, *(rule for rule in requests if matches_request(rule, access.method, path))])
    plain = verdict(network)
    subsets = itertools.chain.from_iterable(
        itertools.combinations(requests, size) for size in range(len(requests) + 1)
    )
    verdicts = {verdict([*network, *subset]).verdict for subset in subsets}
    if len(verdicts) > 1:
        allows = frozenset(rule.id for rule in network if rule.effect is Effect.ALLOW)
        return Answer(Verdict.UNDETERMINED, "rule", allows)
    return plain


def verdict(rules: Sequence[Rule]) -> Answer:
    for effect, outcome in (
        (Effect.DENY, Verdict.BLOCKED),
        (Effect.ALLOW, Verdict.ALLOWED),
        (Effect.APPROVAL, Verdict.APPROVAL),
    ):
        winners = frozenset(rule.id for rule in rules if rule.effect is effect)
        if winners:
            return Answer(outcome, "rule", winners)
    return Answer(Verdict.BLOCKED, "default")


def enforced(rule: Rule) -> bool:
    return rule.mode is Mode.ENFORCE


def matches_name(rule: Rule, access: NetworkAccess, family: int = 0) -> bool:
    return access.transport in rule.transports and any(
        r.low <= access.port <= r.high and host_matches(r, access.host, family) for r in rule.resources
    )


def host_matches(resource: Resource, host: str, family: int = 0) -> bool:
    """Whether a name is among what a resource names, label by label."""
    if host == "localhost":
        return resource.shape is Shape.LOCAL
    if resource.shape is Shape.LOCAL:
        return False
    if resource.network is not None:
        return resource.network.length == 0 and family in (0, resource.network.version)
    written = resource.text.rsplit(":", 1)[0] if ":" in resource.text else resource.text
    if written == "**":
        return True
    return labels_match(written.split("."), host.split("."))


def labels_match(patterns: list[str], labels: list[str]) -> bool:
    if not patterns:
        return not labels
    if patterns[0] == "**":
        return any(labels_match(patterns[1:], labels[skip:]) for skip in range(len(labels) + 1))
    if not labels:
        return False
    if patterns[0] == "*":
        return labels_match(patterns[1:], labels[1:])
    return label_matches(patterns[0], labels[0]) and labels_match(patterns[1:], labels[1:])


def label_matches(pattern: str, label: str) -> bool:
    if not pattern:
        return not label
    if pattern[0] == "*":
        return any(label_matches(pattern[1:], label[skip:]) for skip in range(len(label) + 1))
    if not label:
        return False
    if pattern[0] == "?":
        return label_matches(pattern[1:], label[1:])
    if pattern[0] == "[":
        inside, _, rest = pattern[1:].partition("]")
        negated = inside.startswith("!")
        return (label[0] in expand(inside.lstrip("!"))) is not negated and label_matches(rest, label[1:])
    return pattern[0] == label[0] and label_matches(pattern[1:], label[1:])


def expand(inside: str) -> set[str]:
    found: set[str] = set()
    while inside:
        if inside[1:2] == "-":
            found |= {chr(c) for c in range(ord(inside[0]), ord(inside[2]) + 1)}
            inside = inside[3:]
        else:
            found.add(inside[0])
            inside = inside[1:]
    return found


def matches_request(rule: Rule, method: str, path: str) -> bool:
    segments = path.split("/")[1:] if path else []
    return ("ANY" in rule.methods or method in rule.methods) and any(
        segments_match(pattern.text.split("/")[1:] if pattern.text != "/" else [], segments)
        for pattern in rule.paths
    )


def segments_match(patterns: list[str], segments: list[str]) -> bool:
    if not patterns:
        return not segments
    if patterns[0] == "**":
        return any(segments_match(patterns[1:], segments[skip:]) for skip in range(len(segments) + 1))
    if not segments:
        return False
    here = bool(segments[0]) if patterns[0] == "*" else star_matches(patterns[0], segments[0])
    return here and segments_match(patterns[1:], segments[1:])


def star_matches(pattern: str, segment: str) -> bool:
    if not pattern:
        return not segment
    if pattern[0] == "*":
        return any(star_matches(pattern[1:], segment[skip:]) for skip in range(len(segment) + 1))
    return segment[:1] == pattern[0] and star_matches(pattern[1:], segment[1:])


def as_address(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def holds(resource: Resource, address: Address, port: int) -> bool:
    """Whether an address rule holds an address."""
    if resource.network is None or not resource.low <= port <= resource.high:
        return False
    return address in ip_network(
        (resource.network.value.to_bytes(resource.network.bits // 8), resource.network.length)
    )


def reaches(resource: Resource, address: Address, port: int) -> bool:
    everything = resource.shape is Shape.ANY and resource.low <= port <= resource.high
    return everything or holds(resource, address, port)


def opens(rule: Rule, access: NetworkAccess, addresses: Sequence[Address]) -> bool:
    """Whether a rule speaks for an address itself and not for half of the internet."""
    return (
        enforced(rule)
        and access.transport in rule.transports
        and any(not broad(r) and holds(r, each, access.port) for r in rule.resources for each in addresses)
    )


def broad(resource: Resource) -> bool:
    if resource.network is None:
        return True
    network = ip_network(
        (resource.network.value.to_bytes(resource.network.bits // 8), resource.network.length)
    )
    within = any(
        network.version == ip_network(text).version and network.subnet_of(ip_network(text))
        for text in NEVER + LITERAL + PRIVATE
    )
    return network.prefixlen < BROAD[network.version] and not within


def danger(address: Address) -> int:
    for degree, ranges in ((3, NEVER), (2, LITERAL), (1, PRIVATE)):
        if any(address in ip_network(text) for text in ranges):
            return degree
    return 0


def carried(address: Address) -> list[Address]:
    if isinstance(address, IPv4Address):
        return []
    low = IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.sixtofour is not None:
        return [address.sixtofour]
    if address.teredo is not None:
        return list(address.teredo)
    if address in ip_network("64:ff9b::/96") or address in ip_network("::ffff:0:0:0/96"):
        return [low]
    if address in ip_network("::/96") and int(address) > 1:
        return [low]
    return []
