"""Guards: every range at its edges, and the IPv4 addresses that IPv6 addresses carry."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network

import naive
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringfence.policy import Guards, InvalidPolicy
from ringfence.policy.addresses import (
    _RANGES,
    DEGREES,
    Address,
    Danger,
    Degree,
    Network,
    embedded,
    is_guarded,
    parse_address,
    parse_network,
)

BITS = {4: 32, 6: 128}
addresses = st.sampled_from((4, 6)).flatmap(
    lambda version: st.integers(0, (1 << BITS[version]) - 1).map(lambda value: Address(version, value))
)


@pytest.mark.parametrize(("text", "danger"), _RANGES)
def test_a_range_is_guarded_to_its_edges_and_no_further(text: str, danger: Danger) -> None:
    network = ip_network(text)
    guards = Guards()
    for inside in (network[0], network[-1]):
        found = guards.danger(parse_address(str(inside)))
        assert found is not None
        assert DEGREES[found] >= DEGREES[danger]
    for outside in (int(network[0]) - 1, int(network[-1]) + 1):
        if 0 <= outside < 1 << network.max_prefixlen:
            neighbour = Address(network.version, outside)
            assert guards.danger(neighbour) is not danger or any(
                ip_address(str(neighbour)) in ip_network(other)
                for other, again in _RANGES
                if again is danger and ip_network(other).version == network.version
            )


@settings(max_examples=500, deadline=None)
@given(addresses)
def test_danger_agrees_with_the_naive_reference(address: Address) -> None:
    found = Guards().danger(address)
    expected = naive.danger(ip_address(str(address)))
    assert (DEGREES[found] if found else Degree.OPEN) == expected


@settings(max_examples=500, deadline=None)
@given(
    st.integers(0, (1 << 32) - 1),
    st.sampled_from(("::ffff:0:0/96", "::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "2002::/16", "2001::/32")),
    st.integers(0, (1 << 128) - 1),
)
def test_carried_addresses_agree_with_the_standard_library(v4: int, prefix: str, noise: int) -> None:
    network = ip_network(prefix)
    value = int(network[0]) | noise & int(network.hostmask)
    if network.prefixlen == 96:
        value = int(network[0]) | v4
    address = Address(6, value)
    assert [str(each) for each in embedded(address)] == [str(a) for a in naive.carried(IPv6Address(value))]


@pytest.mark.parametrize("prefix", [48, 56, 64, 96])
@pytest.mark.parametrize("carried", ["127.0.0.1", "169.254.169.254", "10.0.0.5", "93.184.216.34"])
def test_local_nat64_is_judged_at_every_length(prefix: int, carried: str) -> None:
    """RFC 6052 section 2.2: the address stands behind the prefix and steps over bits 64 to 71."""
    v4 = int(ip_address(carried))
    bits = f"{v4:032b}"
    room = ["0"] * 128
    places = [place for place in range(prefix, 128) if prefix == 96 or not 64 <= place < 72][:32]
    for place, bit in zip(places, bits, strict=True):
        room[place] = bit
    value = int(ip_address("64:ff9b:1::")) | int("".join(room), 2)
    assert carried in [str(each) for each in embedded(Address(6, value))]


@given(addresses)
@settings(deadline=None)
def test_text_is_canonical_and_read_back(address: Address) -> None:
    assert parse_address(str(address)) == address
    if address.version == 4 or address.value >> 32 != 0xFFFF:
        assert str(address) == str(ip_address(str(address)))


@given(addresses, st.integers(0, 128))
@settings(deadline=None)
def test_a_network_covers_what_the_standard_library_says(address: Address, length: int) -> None:
    length = min(length, address.bits)
    shift = address.bits - length
    network = Network(address.version, address.value >> shift << shift, length)
    assert network.covers(address)
    assert parse_network(str(network)) == network
    if length:
        assert not network.covers(Address(address.version, address.value ^ 1 << address.bits - 1))


def test_what_only_the_machine_knows() -> None:
    guards = Guards(host=("10.0.0.5", "2001:db8::5"), product=("192.0.2.0/30",))
    assert guards.danger(parse_address("10.0.0.5")) is Danger.HOST
    assert guards.danger(parse_address("10.0.0.6")) is Danger.PRIVATE
    assert guards.danger(parse_address("2001:db8::5")) is Danger.HOST
    assert guards.danger(parse_address("192.0.2.3")) is Danger.PRODUCT
    assert guards.danger(parse_address("192.0.2.4")) is None
    metadata = Guards(host=("169.254.169.254",))
    assert metadata.danger(parse_address("169.254.169.254")) is Danger.METADATA


@pytest.mark.parametrize("facts", [{"host": ("x",)}, {"product": ("10.0.0.1/8",)}, {"host": ("127.1",)}])
def test_facts_that_are_none(facts: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(InvalidPolicy):
        Guards(**facts)


def test_whole_networks() -> None:
    assert is_guarded(parse_network("10.0.0.0/8"))
    assert is_guarded(parse_network("fc00::/7"))
    assert is_guarded(parse_network("fd00::/8"))
    assert not is_guarded(parse_network("0.0.0.0/1"))
    assert not is_guarded(parse_network("8.0.0.0/6"))
