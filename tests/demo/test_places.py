"""The demo's internet uses addresses that belong to nobody and that no guard treats in any special way."""

from __future__ import annotations

import ipaddress

from ringfence.demo.internet.places import (
    BY_ADDRESS,
    BY_NAME,
    ECHO,
    FOREIGN_DNS,
    METADATA,
    ORIGINS,
    PLACES,
    hosts_file,
)

DOCUMENTATION = [
    ipaddress.ip_network(text)
    for text in ("203.0.113.0/24", "198.51.100.0/24", "192.0.2.0/24", "2001:db8::/32")
]


def test_every_name_and_address_is_there_once() -> None:
    assert len(BY_NAME) == len(PLACES)
    assert len(BY_ADDRESS) == 2 * len(PLACES)


def test_origins_live_where_documentation_lives() -> None:
    for place in (*ORIGINS, ECHO):
        for text in (place.v4, place.v6):
            address = ipaddress.ip_address(text)
            assert any(address in network for network in DOCUMENTATION), text


def test_only_the_foreign_resolver_and_the_metadata_service_have_addresses_that_are_known_elsewhere() -> None:
    known = {
        place.name
        for place in PLACES
        if not any(ipaddress.ip_address(place.v4) in network for network in DOCUMENTATION)
    }
    assert known == {FOREIGN_DNS.name, METADATA.name}


def test_the_hosts_file_names_everybody() -> None:
    lines = hosts_file().splitlines()
    assert "203.0.113.18 paste.ee" in lines
    assert "2001:db8:113::18 paste.ee" in lines
    assert lines[0] == "127.0.0.1 localhost"
