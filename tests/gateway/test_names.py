"""Synthetic addresses: one mapping of both families, bounded, and never a wrong name."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ringfence.gateway.names import REST, Exhausted, SyntheticNames

FOUR, SIX = "198.18.0.0/15", "fd72:696e:6766:5359::/64"


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def test_both_families_of_a_name_are_one_mapping() -> None:
    names = SyntheticNames(FOUR, SIX)
    four, six = names.address("a.test", 4), names.address("a.test", 6)
    assert ipaddress.ip_address(four) in ipaddress.ip_network(FOUR)
    assert ipaddress.ip_address(six) in ipaddress.ip_network(SIX)
    assert names.name(four) == names.name(six) == "a.test"
    assert names.address("a.test", 4) == four
    assert names.address("b.test", 4) != four
    assert len(names) == 2


ADDRESSES = [
    # address, synthetic?
    ("198.18.0.1", True),
    ("198.19.255.255", True),
    ("::ffff:198.18.0.1", True),
    ("fd72:696e:6766:5359::1", True),
    ("fd72:696e:6766:5359:ffff::1", True),
    ("198.17.255.255", False),
    ("198.20.0.0", False),
    ("fd72:696e:6766::1", False),
    ("::198.18.0.1", False),
    ("::ffff:1.2.3.4", False),
    ("a.test", False),
    ("", False),
]


@pytest.mark.parametrize(("address", "synthetic"), ADDRESSES)
def test_a_synthetic_address_is_known_and_without_a_mapping_leads_nowhere(
    address: str, synthetic: bool
) -> None:
    names = SyntheticNames(FOUR, SIX)
    assert names.contains(address) is synthetic
    assert names.name(address) is None
    names.hold(address)
    names.free(address)


def test_an_ipv4_mapped_address_is_the_address_that_it_is() -> None:
    names = SyntheticNames(FOUR, SIX)
    assert names.name(f"::ffff:{names.address('a.test', 4)}") == "a.test"


def test_the_network_and_the_broadcast_address_are_nobodys() -> None:
    names = SyntheticNames("198.18.0.0/29", "fd00::/64", capacity=5)
    given = {names.address(f"n{n}.test", 4) for n in range(6)}
    assert given == {f"198.18.0.{n}" for n in range(1, 7)}


def test_the_least_recently_used_name_goes_first() -> None:
    names = SyntheticNames(FOUR, SIX, capacity=3)
    address = {name: names.address(name, 4) for name in ("a", "b", "c")}
    names.address("a", 6)  # asking is use
    names.name(address["b"])  # connecting is use
    names.address("d", 4)
    assert names.name(address["c"]) is None
    assert [names.name(address[name]) for name in ("a", "b")] == ["a", "b"]
    assert len(names) == 3


def test_a_name_in_use_is_never_evicted() -> None:
    names = SyntheticNames(FOUR, SIX, capacity=2)
    four, six = names.address("a", 4), names.address("a", 6)
    names.hold(four)
    names.hold(six)
    for n in range(10):
        names.address(f"n{n}", 4)
    names.free(four)
    for n in range(10):
        names.address(f"m{n}", 4)
    assert names.name(four) == "a"
    names.free(six)
    names.address("x", 4)
    names.address("y", 4)
    assert names.name(six) is None


def test_with_every_name_in_use_there_is_no_new_one() -> None:
    names = SyntheticNames(FOUR, SIX, capacity=2)
    for name in ("a", "b"):
        names.hold(names.address(name, 4))
    with pytest.raises(Exhausted):
        names.address("c", 4)
    assert len(names) == 2


def test_an_evicted_address_leads_nowhere_and_is_not_given_again_while_it_could_be_in_use() -> None:
    clock = Clock()
    names = SyntheticNames("198.18.0.0/29", SIX, capacity=3, now=clock)
    first = [names.address(f"n{n}", 4) for n in range(6)]  # all six addresses; three names were evicted
    assert [names.name(address) for address in first] == [None, None, None, "n3", "n4", "n5"]
    with pytest.raises(Exhausted):
        names.address("new", 4)
    assert [names.name(address) for address in first] == [None, None, None, "n3", "n4", "n5"]
    clock.time += REST
    assert names.address("new", 4) == first[0]
    assert names.name(first[1]) is None


def test_a_name_that_comes_back_gets_another_address() -> None:
    names = SyntheticNames(FOUR, SIX, capacity=1)
    before = names.address("a", 4)
    names.address("b", 4)
    assert names.address("a", 4) != before
    assert names.name(before) is None


@pytest.mark.parametrize(
    ("four", "capacity"),
    [("198.18.0.0/30", 2), ("198.18.0.0/24", 254), (FOUR, 0), ("198.18.0.1/15", 10), ("x", 1)],
)
def test_networks_that_cannot_hold_the_names_are_refused(four: str, capacity: int) -> None:
    with pytest.raises(ValueError):
        SyntheticNames(four, SIX, capacity=capacity)


class Mapping(RuleBasedStateMachine):
    """Whatever is asked, held, freed, evicted: an address means the name it was given for, or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.names = SyntheticNames("198.18.0.0/28", SIX, capacity=6, now=self.clock)
        self.meant: dict[str, tuple[str, float]] = {}
        self.held: list[tuple[str, str]] = []

    @rule(name=st.sampled_from([f"n{n}.test" for n in range(30)]), family=st.sampled_from([4, 6]))
    def ask(self, name: str, family: int) -> None:
        try:
            address = self.names.address(name, family)
        except Exhausted:
            return
        before = self.meant.get(address)
        if before is not None and before[0] != name:
            assert self.clock.time - before[1] >= REST
        self.meant[address] = name, self.clock.time

    @precondition(lambda self: self.meant)
    @rule(place=st.integers(min_value=0, max_value=100))
    def hold(self, place: int) -> None:
        address = sorted(self.meant)[place % len(self.meant)]
        name = self.names.name(address)
        if name is not None and len(self.held) < 4:
            self.names.hold(address)
            self.held.append((address, name))

    @precondition(lambda self: self.held)
    @rule()
    def free(self) -> None:
        self.names.free(self.held.pop(0)[0])

    @rule(seconds=st.sampled_from([1.0, REST / 2, REST]))
    def wait(self, seconds: float) -> None:
        self.clock.time += seconds

    @invariant()
    def an_address_means_its_name_or_nothing(self) -> None:
        for address, (name, _) in self.meant.items():
            assert self.names.name(address) in (name, None) or self.moved(address)

    def moved(self, address: str) -> bool:
        """The other family of a slot was given for another name."""
        now = self.names.name(address)
        return now is not None and any(name == now for name, _ in self.meant.values())

    @invariant()
    def what_is_held_stays(self) -> None:
        for address, name in self.held:
            assert self.names.name(address) == name

    @invariant()
    def the_table_is_bounded(self) -> None:
        assert len(self.names) <= 6


TestMapping = Mapping.TestCase


@given(st.text(max_size=60))
def test_any_text_is_asked_safely(address: str) -> None:
    names = SyntheticNames(FOUR, SIX)
    assert names.name(address) is None
    assert names.contains(address) in (True, False)
