"""NAM-08 to NAM-14: addresses in every disguise, as literals and as answers."""

from __future__ import annotations

import ipaddress

import pytest
from tests.escapes.escape_stage import (
    Lab,
    allowed,
    connect,
    forward,
    get,
    inside,
    redirected,
    refused,
    rule,
    tunnel,
)

from ringfence.application.ports import Addresses
from ringfence.policy.addresses import Guards
from ringfence.policy.names import ipv6_text

HEARD = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
EVERYTHING = rule("allow", "**", "0.0.0.0/0", "::/0")


@pytest.fixture
def world(lab: Lab) -> Lab:
    """Everything is allowed that rules can allow, and ``a.test`` works (the positive control)."""
    lab.bind(EVERYTHING)
    lab.serve("a.test", port=80, tls=False)
    lab.expect(forward(get("a.test", "http://a.test/")), allowed(HEARD, questions=("a.test",)))
    return lab


# -- NAM-08 ---------------------------------------------------------------------------------------------------

NOTATIONS = [
    # every one of them is an address to some library, and a name to another
    "2130706433", "0x7f000001", "017700000001", "0177.0.0.1", "0177.1", "0x7f.1", "0x7f.0.0.1", "127.1",
    "127.0.1", "127.0.0.01", "127.0.0.001", "0127.0.0.1", "127.0x0.0.1", "127.0.0.0x1", "0x7F.0X0.0.1", "00.0.0.0",
    "127.0.0.256", "127.0.0.1.", "127.0.0.1.1", "1.127.0.0.1", "127.0.0", "127", "0", "0x0", "256.0.0.1",
    "4294967295", "4294967296", "127..0.1", "127.0.0.-1", "①②⑦.⓪.⓪.①", "１２７.0.0.1", "127。0。0。1",
    "127.0.0.٠",
]  # fmt: skip


@pytest.mark.parametrize("host", NOTATIONS)
def test_nam_08_an_address_has_one_notation_and_others_are_not_resolved(world: Lab, host: str) -> None:
    raw = host.encode()
    no = refused("failure", 400)
    world.expect(forward(b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\n\r\n" % (raw, raw)), no)
    world.expect(forward(connect(raw + b":80")), no)
    world.expect(redirected("a.test", b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % raw), no)


def test_nam_08_the_one_notation_is_judged_as_the_address_that_it_is(world: Lab) -> None:
    world.expect(forward(get("127.0.0.1", "http://127.0.0.1/")), refused("guard"))
    world.serve("public", port=80, tls=False, address="203.0.113.77")
    heard = b"GET / HTTP/1.1\r\nHost: 203.0.113.77\r\n\r\n"
    world.expect(forward(get("203.0.113.77", "http://203.0.113.77/")), allowed(heard))


# -- NAM-09 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["203.0.113.1", "203.0.113.200", "2001:db8::1"])
def test_nam_09_an_allowed_names_address_is_not_the_name(lab: Lab, address: str) -> None:
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test", port=80, tls=False, address="203.0.113.1")
    lab.serve("a.test", address="203.0.113.1")
    shown = f"[{address}]" if ":" in address else address
    lab.expect(forward(get("a.test", "http://a.test/")), allowed(HEARD))
    lab.expect(forward(get(shown, f"http://{shown}/")), refused())
    lab.expect(tunnel(shown, get(shown), port=80), refused())
    lab.expect(inside(shown, get("a.test"), name="a.test"), refused())
    lab.expect(redirected(address, get("a.test")), refused())
    lab.expect(redirected(address, get("a.test"), port=443, tls="a.test"), refused())


def test_nam_09_an_address_rule_opens_the_address_and_no_name(lab: Lab) -> None:
    lab.bind(rule("allow", "203.0.113.1"))
    lab.serve("a.test", port=80, tls=False, address="203.0.113.1")
    heard = b"GET / HTTP/1.1\r\nHost: 203.0.113.1\r\n\r\n"
    lab.expect(forward(get("203.0.113.1", "http://203.0.113.1/")), allowed(heard))
    lab.expect(forward(get("a.test", "http://a.test/")), refused())


# -- NAM-10 ---------------------------------------------------------------------------------------------------

FORMS = {
    "mapped": lambda v4: 0xFFFF << 32 | v4,
    "compatible": lambda v4: v4,
    "translated": lambda v4: 0xFFFF_0000 << 32 | v4,
    "NAT64": lambda v4: 0x64FF9B << 96 | v4,
    "local NAT64 /96": lambda v4: 0x64FF9B0001 << 80 | v4,
    "local NAT64 /48": lambda v4: 0x64FF9B0001 << 80 | v4 >> 16 << 64 | (v4 & 0xFFFF) << 40,
    "6to4": lambda v4: 0x2002 << 112 | v4 << 80 | 1,
    "Teredo server": lambda v4: 0x2001_0000 << 96 | v4 << 64 | (0xCB007101 ^ 0xFFFFFFFF),
    "Teredo client": lambda v4: 0x2001_0000 << 96 | 0xCB007101 << 64 | (v4 ^ 0xFFFFFFFF),
}
CARRIED = ["127.0.0.1", "169.254.169.254", "10.0.0.5", "198.18.77.77", "0.0.0.2"]


def carrying(form: str, v4: str) -> str:
    return ipv6_text(FORMS[form](int(ipaddress.IPv4Address(v4))))


@pytest.mark.parametrize("v4", CARRIED)
@pytest.mark.parametrize("form", FORMS)
def test_nam_10_an_embedded_address_is_judged_too(world: Lab, form: str, v4: str) -> None:
    address = carrying(form, v4)
    world.stage.addresses["b.test"] = [address]
    world.expect(forward(get("b.test", "http://b.test/")), refused("guard", questions=("b.test",)))
    world.expect(forward(get(f"[{address}]", f"http://[{address}]/")), refused("guard"))
    world.expect(redirected(address, get(f"[{address}]")), refused("guard"))


@pytest.mark.parametrize("form", FORMS)
def test_nam_10_an_embedded_public_address_is_reached(world: Lab, form: str) -> None:
    address = carrying(form, "203.0.113.9")
    world.serve("b.test", port=80, tls=False, address=address)
    heard = b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n"
    world.expect(forward(get("b.test", "http://b.test/")), allowed(heard, questions=("b.test",)))
    heard = f"GET / HTTP/1.1\r\nHost: [{address}]\r\n\r\n".encode()
    world.expect(forward(get(f"[{address}]", f"http://[{address}]/")), allowed(heard))


@pytest.mark.parametrize("zone", ["%eth0", "%25eth0", "%1", "%"])
def test_nam_10_a_zone_is_no_part_of_an_address(world: Lab, zone: str) -> None:
    for address in ("::ffff:127.0.0.1", "fe80::1", "2001:db8::1"):
        host = f"[{address}{zone}]"
        world.expect(forward(get(host, f"http://{host}/")), refused("failure", 400))
        world.expect(forward(connect(f"{host}:443")), refused("failure", 400))


# -- NAM-11 ---------------------------------------------------------------------------------------------------

METADATA = [
    "169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "168.63.129.16", "192.0.0.192",
    "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "::ffff:169.254.169.254",
]  # fmt: skip


@pytest.mark.parametrize("address", METADATA)
def test_nam_11_no_name_and_no_rule_leads_to_a_metadata_service(world: Lab, address: str) -> None:
    world.bind(EVERYTHING, rule("allow", "b.test", address))
    world.serve("b.test", port=80, tls=False, address=address)
    world.expect(forward(get("b.test", "http://b.test/")), refused("guard", questions=("b.test",)))
    shown = f"[{address}]" if ":" in address else address
    world.expect(forward(get(shown, f"http://{shown}/")), refused("guard"))
    world.expect(redirected(address, get(shown)), refused("guard"))


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "169.254.7.7", "fe80::7", "224.0.0.1"]
)
def test_nam_11_no_name_leads_to_this_machine_or_its_segment(world: Lab, address: str) -> None:
    world.serve("b.test", port=80, tls=False, address=address)
    world.expect(forward(get("b.test", "http://b.test/")), refused("guard", questions=("b.test",)))
    shown = f"[{address}]" if ":" in address else address
    world.expect(forward(get(shown, f"http://{shown}/")), refused("guard"))


@pytest.mark.parametrize(
    "address", ["10.0.0.5", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fc00::1", "fd12::1"]
)
def test_nam_11_a_private_address_needs_a_rule_of_its_own(world: Lab, address: str) -> None:
    world.serve("b.test", port=80, tls=False, address=address)
    ask = forward(get("b.test", "http://b.test/"))
    world.expect(ask, refused("guard", questions=("b.test",)))
    world.bind(EVERYTHING, rule("allow", address))
    world.expect(ask, allowed(b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n", questions=("b.test",)))


# -- NAM-12 ---------------------------------------------------------------------------------------------------

OWN = [Addresses().gateway4, Addresses().gateway6, Addresses().canary4, Addresses().canary6]


@pytest.mark.parametrize("address", OWN)
def test_nam_12_the_gateways_own_addresses_are_no_destination(world: Lab, address: str) -> None:
    world.bind(EVERYTHING, rule("allow", address))
    world.stage.addresses["b.test"] = [address]
    world.expect(forward(get("b.test", "http://b.test/")), refused("guard", questions=("b.test",)))
    shown = f"[{address}]" if ":" in address else address
    world.expect(forward(get(f"{shown}:3128", f"http://{shown}:3128/")), refused("guard"))
    world.expect(tunnel(shown, get(f"{shown}:3128"), port=3128), refused("guard"))


def test_nam_12_the_gateways_name_is_no_destination(world: Lab) -> None:
    for name in ("gateway.docker.internal", "GATEWAY.docker.internal."):
        world.expect(forward(get(f"{name}:3128", f"http://{name}:3128/")), refused("guard"))
    world.expect(tunnel("gateway.docker.internal", get("gateway.docker.internal")), refused("guard"))


@pytest.mark.parametrize("address", ["198.51.100.7", "2001:db8:7::1"])
def test_nam_12_no_name_leads_to_an_address_of_the_host(world: Lab, address: str) -> None:
    world.serve("b.test", port=80, tls=False, address=address)
    ask = forward(get("b.test", "http://b.test/"))
    world.expect(ask, allowed(b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n", questions=("b.test",)))
    world.bind(EVERYTHING, guards=Guards(host=(address,)))
    world.expect(ask, refused("guard", questions=("b.test",)))


@pytest.mark.parametrize("name", ["localhost:8080", "host.docker.internal:8080", "LOCALHOST.:8080"])
def test_nam_12_the_hosts_loopback_needs_a_rule_with_that_very_port(world: Lab, name: str) -> None:
    world.serve("localhost", port=8080, tls=False, address="127.0.0.1")
    ask = forward(get(name, f"http://{name}/"))
    world.expect(ask, refused())  # a catch-all does not open it
    world.bind(rule("allow", "localhost:8081"))
    world.expect(ask, refused())
    world.bind(rule("allow", "localhost:8080"))
    world.expect(ask, allowed(b"GET / HTTP/1.1\r\nHost: localhost:8080\r\n\r\n"))


# -- NAM-13 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1"])
def test_nam_13_a_second_answer_is_judged_like_the_first(world: Lab, second: str) -> None:
    world.serve("b.test", port=80, tls=False, address="203.0.113.50")
    world.serve("other", port=80, tls=False, address=second)
    world.stage.script["b.test"] = [["203.0.113.50"], [second], ["203.0.113.50"], [second]]
    ask, heard = forward(get("b.test", "http://b.test/")), b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n"
    for _ in range(2):
        world.expect(ask, allowed(heard, questions=("b.test",)))
        world.expect(ask, refused("guard", questions=("b.test",)))


def test_nam_13_one_answer_serves_both_the_check_and_the_connection(world: Lab) -> None:
    """The resolver is asked once, and would have said loopback the second time."""
    world.serve("b.test", port=80, tls=False, address="203.0.113.50")
    world.stage.script["b.test"] = [["203.0.113.50"], ["127.0.0.1"]]
    heard = b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n"
    records = world.expect(forward(get("b.test", "http://b.test/")), allowed(heard, questions=("b.test",)))
    assert {record["dialled"] for record in records} == {"203.0.113.50"}
    assert len(world.stage.script["b.test"]) == 1


def test_nam_13_of_mixed_answers_only_the_good_ones_are_dialled(world: Lab) -> None:
    world.serve("b.test", port=80, tls=False, address="203.0.113.50")
    world.stage.script["b.test"] = [["127.0.0.1", "10.0.0.1", "203.0.113.50", "::1"]]
    heard = b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n"
    records = world.expect(forward(get("b.test", "http://b.test/")), allowed(heard, questions=("b.test",)))
    assert {record["dialled"] for record in records} == {"203.0.113.50"}


# -- NAM-14 ---------------------------------------------------------------------------------------------------


def test_nam_14_the_client_chooses_no_address_for_a_name(lab: Lab) -> None:
    """An attacker's address with an allowed SNI and Host is the attacker's address."""
    lab.bind(rule("allow", "a.test"))
    lab.serve("a.test", address="203.0.113.1")
    lab.serve("attacker", address="203.0.113.66")
    lab.expect(
        redirected("a.test", get("a.test"), port=443, tls="a.test"), allowed(HEARD, questions=("a.test",))
    )
    (record,) = lab.expect(redirected("203.0.113.66", get("a.test"), port=443, tls="a.test"), refused())
    assert record["host"] == "203.0.113.66"
    lab.bind(rule("allow", "a.test", "203.0.113.66"))
    ask = redirected("203.0.113.66", get("a.test"), port=443, tls="a.test")
    records = lab.expect(ask, allowed(b"", 502, ended="upstream"))  # it cannot prove the name
    assert records[0]["host"] == "203.0.113.66"
