"""The compiled form of a set of network rules: which ones match is a few dictionary look-ups, however many
there are.

* Names: one dictionary for exact names (apexes of `**.` among them), one for what stands behind `*.` and `**.`,
  walked from the whole name towards its top-level domain; globs by the literal suffix behind them, then by
  what their wildcard label begins and ends with. So only the rules that match are ever looked at, and globs
  that nearly do.
* Addresses: one dictionary a family, keyed by the prefix with a one in front (the number of a node in a binary trie,
  as in a heap); one look-up for each prefix length that occurs.
* Ports: the same numbering over sixteen bits. A range becomes at most thirty aligned blocks.

What a look-up finds are *buckets*: the clauses of one place. Which buckets an access finds decides all that
can be known without looking at the clock, the request or the person, so that conclusion is drawn once for
each combination and kept (:class:`Matches`). Combinations are few, and bounded besides.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ringfence.policy.addresses import Address, Network
from ringfence.policy.model import Decision, Effect, Mode, RuleRef, Transport
from ringfence.policy.names import LOCALHOST, NAME_BYTES
from ringfence.policy.paths import PathPattern
from ringfence.policy.patterns import PORTS, Resource, Shape, compile_glob
from ringfence.policy.rule import ANY_METHOD, Rule

COMBINATIONS = 8192
NAMES = 8192
_PORT_BITS = 16
_ROOT = 1

_Nodes = dict[int, list["Clause"]]
"""Clauses by port node, while an index is built."""


@dataclass(frozen=True, slots=True, eq=False)
class Clause:
    """A rule in force, and its place in the order in which rules are named."""

    rule: Rule
    ref: RuleRef
    order: int

    @property
    def effect(self) -> Effect:
        return self.ref.effect

    @property
    def conditional(self) -> bool:
        """Whether it takes a clock, a person or a count to know that the rule applies."""
        rule = self.rule
        return rule.expires_at is not None or bool(rule.teams) or rule.budget is not None

    def applies(self, now: float, teams: frozenset[str] | None) -> bool:
        """Whether the rule says anything now, to this person. Of unknown teams only denies speak."""
        rule = self.rule
        if rule.expires_at is not None and rule.expires_at <= now:
            return False
        if not rule.teams:
            return True
        return rule.effect is Effect.DENY if teams is None else not teams.isdisjoint(rule.teams)


class Bucket:
    """The clauses of one host key and port block. Compared by identity, which is what makes a combination
    cheap."""

    __slots__ = ("clauses", "matches")

    def __init__(self, clauses: Iterable[Clause]) -> None:
        self.clauses = tuple(clauses)
        self.matches: Matches | None = None
        """What this bucket alone comes to: nearly every access finds one bucket."""


class Slot:
    """The buckets of one host key: mostly one, which is held without a dictionary."""

    __slots__ = ("bucket", "node", "rest", "shift")

    def __init__(self, nodes: _Nodes) -> None:
        buckets = {node: Bucket(clauses) for node, clauses in nodes.items()}
        self.node, self.bucket = next(iter(buckets.items()))
        self.shift = _shift(self.node)
        self.rest = None
        if len(buckets) > 1:
            self.rest = (tuple(sorted({_shift(node) for node in buckets})), buckets)

    def collect(self, node: int, hits: list[Bucket]) -> None:
        """Add the buckets whose ports hold the leaf ``node``."""
        if self.rest is None:
            if node >> self.shift == self.node:
                hits.append(self.bucket)
            return
        shifts, buckets = self.rest
        for shift in shifts:
            bucket = buckets.get(node >> shift)
            if bucket is not None:
                hits.append(bucket)


def _order(clause: Clause) -> int:
    return clause.order


class PathTable:
    """HTTP clauses by the literal segments in front of their path patterns."""

    __slots__ = ("_depth", "_stems", "conditional", "effects")

    def __init__(self, clauses: Iterable[Clause]) -> None:
        self._stems: dict[str, list[tuple[PathPattern, Clause]]] = defaultdict(list)
        effects, conditional = set(), []
        for clause in clauses:
            for path in clause.rule.paths:
                self._stems[path.stem].append((path, clause))
            if clause.rule.mode is Mode.ENFORCE:
                if clause.conditional:
                    conditional.append(clause)
                else:
                    effects.add(clause.effect)
        self.effects = frozenset(effects)
        self.conditional = tuple(conditional)
        self._depth = max(map(len, self._stems))

    def at(self, method: str, path: str) -> list[Clause]:
        """Return the clauses that match a request; ``path`` is canonical."""
        found: dict[Clause, None] = {}
        end = 0
        while end <= self._depth:
            for pattern, clause in self._stems.get(path[:end], ()):
                methods = clause.rule.methods
                if (method in methods or ANY_METHOD in methods) and pattern.matches(path):
                    found[clause] = None
            if end == len(path):
                break
            slash = path.find("/", end + 1)
            end = len(path) if slash < 0 else slash
        return list(found)


class Matches:
    """The clauses of a combination of buckets, sorted by what may be concluded from them."""

    __slots__ = ("conditional", "decision", "http", "network")

    def __init__(self, clauses: Sequence[Clause]) -> None:
        ordered = tuple(sorted(set(clauses), key=_order)) if len(clauses) > 1 else tuple(clauses)
        http = [clause for clause in ordered if clause.rule.paths]
        self.network = tuple(clause for clause in ordered if not clause.rule.paths) if http else ordered
        self.http = PathTable(http) if http else None
        self.conditional = any(clause.conditional for clause in self.network)
        self.decision: Decision | None = None
        """The conclusion, where it depends on nothing else. Whoever draws it keeps it here."""

    @property
    def settled(self) -> bool:
        """Whether every access that finds these clauses has the same answer."""
        return self.http is None and not self.conditional


class Table:
    """The index of one transport."""

    def __init__(self, clauses: Iterable[Clause]) -> None:
        hosts: dict[Shape, dict[str, _Nodes]] = {shape: {} for shape in Shape}
        networks: dict[int, dict[int, _Nodes]] = {4: {}, 6: {}}
        broad = set()
        for clause in clauses:
            for resource in clause.rule.resources:
                if resource.network is None:
                    _add(hosts[resource.shape].setdefault(resource.host, {}), resource, clause)
                    if resource.shape is Shape.DEEP:
                        _add(hosts[Shape.EXACT].setdefault(resource.host, {}), resource, clause)
                else:
                    key = _node(resource.network)
                    _add(networks[resource.network.version].setdefault(key, {}), resource, clause)
                    if resource.broad:
                        broad.add((resource.network.version, key))
        self._exact = _slots(hosts[Shape.EXACT])
        one, deep = _slots(hosts[Shape.ONE]), _slots(hosts[Shape.DEEP])
        self._below = {suffix: (one.get(suffix), deep.get(suffix)) for suffix in one.keys() | deep.keys()}
        self._fewest = min((suffix.count(".") for suffix in self._below), default=NAME_BYTES)
        """Dots in the shortest suffix behind a wildcard; nothing shorter is looked up."""
        self._globs = _globs(hosts[Shape.GLOB])
        self._any = _slots(hosts[Shape.ANY]).get("")
        self._local = _slots(hosts[Shape.LOCAL]).get("")
        self._networks = {version: _slots(keys) for version, keys in networks.items()}
        self._shifts = {
            version: tuple(sorted({bits - key.bit_length() + 1 for key in self._networks[version]}))
            for version, bits in ((4, 32), (6, 128))
        }
        self._broad = frozenset(broad)

    def name(self, host: str, port: int, family: int = 0) -> list[Bucket]:
        """Return what matches a name: patterns, `**`, and the catch-alls, those of one family if one is
        given."""
        node = 1 << _PORT_BITS | port
        hits: list[Bucket] = []
        slot = self._exact.get(host)
        if slot is not None:
            slot.collect(node, hits)
        dots = host.count(".")
        tail, first = host, True
        while dots > self._fewest:
            tail = tail[tail.find(".") + 1 :]
            dots -= 1
            below = self._below.get(tail)
            if below is not None:
                one, deep = below
                if first and one is not None:
                    one.collect(node, hits)
                if deep is not None:
                    deep.collect(node, hits)
            first = False
        if self._globs:
            self._glob(host, node, hits)
        if self._any is not None:
            self._any.collect(node, hits)
        for version, slots in self._networks.items():
            if slots and family in (0, version):
                slot = slots.get(_ROOT)
                if slot is not None:
                    slot.collect(node, hits)
        return hits

    def _glob(self, host: str, node: int, hits: list[Bucket]) -> None:
        start, dot = 0, host.find(".")
        while dot >= 0:
            group = self._globs.get(host[dot + 1 :])
            if group is not None:
                label = host[start:dot]
                for head, tail in group.shapes:
                    for regex, slot in group.globs.get((label[:head], label[len(label) - tail :]), ()):
                        if regex.fullmatch(host):
                            slot.collect(node, hits)
            start, dot = dot + 1, host.find(".", dot + 1)

    def address(self, address: Address, port: int) -> list[Bucket]:
        """Return what matches a literal address: networks, catch-alls of its family, `**`."""
        hits = self.networks(address, port)
        if self._any is not None:
            self._any.collect(1 << _PORT_BITS | port, hits)
        return hits

    def networks(self, address: Address, port: int, *, narrow: bool = False) -> list[Bucket]:
        """Return the address rules alone; ``narrow`` leaves out catch-alls and large pieces of them."""
        node = 1 << _PORT_BITS | port
        leaf = 1 << address.bits | address.value
        hits: list[Bucket] = []
        slots = self._networks[address.version]
        for shift in self._shifts[address.version]:
            key = leaf >> shift
            slot = slots.get(key)
            if slot is not None and not (narrow and (address.version, key) in self._broad):
                slot.collect(node, hits)
        return hits

    def local(self, port: int) -> list[Bucket]:
        """Return what matches a service on the host's loopback."""
        hits: list[Bucket] = []
        if self._local is not None:
            self._local.collect(1 << _PORT_BITS | port, hits)
        return hits


class NetworkIndex:
    """All clauses of a layer, by transport, with the conclusions that were drawn already.

    A table is built when its transport is first asked for: whoever only lists or ships policy builds none.
    """

    __slots__ = ("_matches", "_nothing", "_tables", "clauses", "known")

    def __init__(self, clauses: Iterable[Clause] = ()) -> None:
        self.clauses = tuple(clauses)
        self._tables: dict[Transport, Table] = {}
        self._matches: dict[tuple[Bucket, ...], Matches] = {}
        self._nothing = Matches(())
        self.known: dict[tuple[str, int, Transport], Matches] = {}
        """What was found for names that were asked for before. Bounded: names come from hostile hands."""

    def table(self, transport: Transport) -> Table:
        """Return the table of a transport."""
        table = self._tables.get(transport)
        if table is None:
            table = Table(clause for clause in self.clauses if transport in clause.rule.transports)
            self._tables[transport] = table
        return table

    def name(self, host: str, port: int, transport: Transport) -> Matches:
        """Return the matches of a canonical name, or of the host's loopback, and remember them."""
        table = self.table(transport)
        matches = self.combine(table.local(port) if host == LOCALHOST else table.name(host, port))
        if len(self.known) >= NAMES:
            self.known.clear()
        self.known[host, port, transport] = matches
        return matches

    def combine(self, hits: list[Bucket]) -> Matches:
        """Return the matches of a combination, the same ones every time."""
        if not hits:
            return self._nothing
        if len(hits) == 1:
            bucket = hits[0]
            if bucket.matches is None:
                bucket.matches = Matches(bucket.clauses)
            return bucket.matches
        key = tuple(hits)
        matches = self._matches.get(key)
        if matches is None:
            if len(self._matches) >= COMBINATIONS:
                self._matches.clear()
            matches = Matches([clause for bucket in key for clause in bucket.clauses])
            self._matches[key] = matches
        return matches


class _GlobGroup:
    """Globs above one literal suffix, by how many characters their wildcard label begins and ends with."""

    __slots__ = ("globs", "shapes")

    def __init__(self) -> None:
        self.globs: dict[tuple[str, str], list[tuple[re.Pattern[str], Slot]]] = defaultdict(list)
        self.shapes: tuple[tuple[int, int], ...] = ()


_WILD = re.compile(r"[*?\[]")


def _globs(patterns: dict[str, _Nodes]) -> dict[str, _GlobGroup]:
    groups: dict[str, _GlobGroup] = defaultdict(_GlobGroup)
    for pattern, nodes in patterns.items():
        stem = Resource(shape=Shape.GLOB, host=pattern).stem
        label = pattern[: len(pattern) - len(stem) - 1].rpartition(".")[2]
        head = _WILD.split(label, maxsplit=1)[0]
        tail = re.split(r"[*?\]]", label)[-1]
        groups[stem].globs[head, tail].append((compile_glob(pattern), Slot(nodes)))
    for group in groups.values():
        group.shapes = tuple(sorted({(len(head), len(tail)) for head, tail in group.globs}))
        group.globs = dict(group.globs)
    return dict(groups)


def _slots(keys: dict[str, _Nodes] | dict[int, _Nodes]) -> dict:  # type: ignore[type-arg]
    return {key: Slot(nodes) for key, nodes in keys.items()}


def _add(nodes: _Nodes, resource: Resource, clause: Clause) -> None:
    for node in _blocks(resource.low, resource.high):
        nodes.setdefault(node, []).append(clause)


def _blocks(low: int, high: int) -> list[int]:
    """Return the trie nodes that cover a port range exactly."""
    if (low, high) == PORTS:
        return [_ROOT]
    left, right = low + (1 << _PORT_BITS), high + (1 << _PORT_BITS) + 1
    nodes = []
    while left < right:
        if left & 1:
            nodes.append(left)
            left += 1
        if right & 1:
            right -= 1
            nodes.append(right)
        left, right = left >> 1, right >> 1
    return nodes


def _node(network: Network) -> int:
    """Return the number of a network in the binary trie of its family: a one, then the prefix."""
    return 1 << network.length | network.value >> (network.bits - network.length)


def _shift(node: int) -> int:
    return _PORT_BITS - (node.bit_length() - 1)
