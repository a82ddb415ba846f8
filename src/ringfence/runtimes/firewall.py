"""What a packet meets that leaves a sandbox: the rules of the gate, as text, and the filter of its witness.

The gate is a network namespace with one interface, ``gw0``, and no other: nothing is routed, whatever the
rules say. The rules make every way out *answer*, at once and on our terms:

* TCP to the gateway's proxy port is let through; port 53 goes to the resolver; every other connection,
  whatever its destination, goes to the transparent listener, which learns the destination by
  ``SO_ORIGINAL_DST``.
* UDP 53 goes to the resolver, whatever server was asked.
* Other datagrams go to the relay, if there is one: ``tproxy`` hands them to whoever has bound the relay's port, and is
  no rule at all while nobody has. So the gateway switches the relay on by being there, and a sandbox whose policy lets
  no datagram out never has one. Only what the kernel would deliver is offered (a unicast address that could be
  anybody's, no extension headers); it is not tracked, and carries a mark by which it is routed to this host.
* The rest is refused with ICMP before connection tracking, so that a flood of datagrams costs no memory: UDP
  with "port unreachable", which every network stack tells its program, so that QUIC falls back at once (gVisor's
  keeps "administratively prohibited" to itself); anything else with "administratively prohibited". RFC 1812
  section 5.2.7.1, RFC 4443 section 3.1.

A source address belongs to one of the two interfaces that can send here, the sandbox's and the canary's;
anything that claims otherwise gets no answer. So nothing inside can pass for a canary, whose refusals are not
counted.

What is refused is seen by packet sockets that were given classic BPF programs; they copy heads of packets for the
audit and leave out what has a listener of its own (TCP, UDP 53) and the link's housekeeping. There are two, so that the
one with the datagrams that could be relayed can be made deaf when they are. The programs tell these by the same
marks as the rules.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

from ringfence.application.ports import RELAY_PORT, Addresses

INTERFACE: Final = "gw0"
PROXY_PORT: Final = 3128
TRANSPARENT_PORT: Final = 3129
DNS_PORT: Final = 3153
RELAYED: Final = 1
"""The mark of what goes to the relay, and the number of the routing table that it is looked up in."""

GATE_MAC: Final = "02:72:66:00:00:01"
SANDBOX_MAC: Final = "02:72:66:00:00:02"
CANARY_MAC: Final = "02:72:66:00:00:06"

SNAPSHOT: Final = 256
"""Bytes kept of a refused packet: all headers that matter, none of the content worth having."""

_RULES: Final = """\
table inet ringfence
delete table inet ringfence
table inet ringfence {{
  chain admit {{
    type filter hook prerouting priority raw; policy drop;
    iifname != "{interface}" drop
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} ip6 hoplimit 255 accept
    ether saddr . ip saddr != {{ {sandbox_mac} . {a.sandbox4}, {canary_mac} . {a.canary4} }} drop
    ether saddr . ip6 saddr != {{ {sandbox_mac} . {a.sandbox6}, {canary_mac} . {a.canary6} }} drop
    meta l4proto tcp accept
    udp dport 53 accept
    ip saddr {a.sandbox4} ip daddr != {{ 0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/3 }} ip protocol udp \
      tproxy ip to :{relay} meta mark set {relayed} notrack accept
    ip6 saddr {a.sandbox6} ip6 daddr {{ 2000::/3, fc00::/7 }} ip6 nexthdr udp \
      tproxy ip6 to :{relay} meta mark set {relayed} notrack accept
    meta l4proto udp reject with icmpx port-unreachable
    reject with icmpx admin-prohibited
  }}
  chain divert {{
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr {a.gateway4} tcp dport {proxy} accept
    ip6 daddr {a.gateway6} tcp dport {proxy} accept
    meta nfproto ipv4 meta l4proto {{ tcp, udp }} th dport 53 dnat ip to {a.gateway4}:{dns}
    meta nfproto ipv6 meta l4proto {{ tcp, udp }} th dport 53 dnat ip6 to [{a.gateway6}]:{dns}
    meta nfproto ipv4 meta l4proto tcp dnat ip to {a.gateway4}:{transparent}
    meta nfproto ipv6 meta l4proto tcp dnat ip6 to [{a.gateway6}]:{transparent}
  }}
  chain arrive {{
    type filter hook input priority filter; policy drop;
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    tcp dport {{ {proxy}, {transparent}, {dns} }} accept
    udp dport {dns} accept
    meta mark {relayed} accept
  }}
  chain answer {{
    type filter hook output priority raw; policy accept;
    meta l4proto udp udp sport != {dns} notrack
  }}
  chain pass {{
    type filter hook forward priority filter; policy drop;
  }}
}}
"""


def rules(addresses: Addresses) -> str:
    """The gate's rule set for ``nft -f -``: replaces itself in one transaction, never open in between."""
    return _RULES.format(
        a=addresses,
        interface=INTERFACE,
        sandbox_mac=SANDBOX_MAC,
        canary_mac=CANARY_MAC,
        proxy=PROXY_PORT,
        transparent=TRANSPARENT_PORT,
        dns=DNS_PORT,
        relay=RELAY_PORT,
        relayed=RELAYED,
    )


SETTINGS: Final[tuple[tuple[str, str], ...]] = (
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv6/conf/all/forwarding", "0"),
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/autoconf", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
)
"""Of every namespace of an enclosure. A new namespace may have inherited forwarding from a host that routes. """

GATE_SETTINGS: Final[tuple[tuple[str, str], ...]] = (
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv6/icmp/ratelimit", "0"),
    ("net/netfilter/nf_conntrack_tcp_timeout_established", "7200"),
    ("net/netfilter/nf_conntrack_tcp_timeout_syn_recv", "10"),
    ("net/netfilter/nf_conntrack_tcp_timeout_fin_wait", "30"),
    ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "5"),
    ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", "30"),
    ("net/netfilter/nf_conntrack_tcp_timeout_close", "2"),
    ("net/netfilter/nf_conntrack_udp_timeout", "10"),
    ("net/netfilter/nf_conntrack_udp_timeout_stream", "30"),
)
"""Refusals are answered each (the kernel's global limit stays); forgotten flows do not pile up for five days. """


# Classic BPF as the kernel's networking/filter.rst documents it: opcode, jump if true, jump if false,
# operand.
_LD, _LDB, _LDH, _LDX_HEADER, _LDH_X = 0x20, 0x30, 0x28, 0xB1, 0x48
_JEQ, _JGE, _JSET, _RET = 0x15, 0x35, 0x45, 0x06
_PACKET_TYPE: Final = 0xFFFF_F000 + 4
_OUTGOING: Final = 4


DEAF_PROGRAM: Final = struct.pack("=HBBI", _RET, 0, 0, 0)
"""The filter of a socket that only sends."""


def witness_program(addresses: Addresses, *, relayable: bool) -> bytes:
    """The filter of a packet socket (``SOCK_DGRAM``: offsets count from the IP header): for the datagrams that the
    relay would take, or for everything else.
    """
    keep, drop, taken = "keep", "drop", "taken"
    client4 = int(ipaddress.IPv4Address(addresses.sandbox4))
    client6 = struct.unpack("!4I", ipaddress.IPv6Address(addresses.sandbox6).packed)
    source: tuple[tuple[str, int, int, str, str], ...] = (
        # label, opcode, operand, where to if true, where to if false; an empty target is the next line
        ("", _LDB, _PACKET_TYPE, "", ""),
        ("", _JEQ, _OUTGOING, drop, ""),
        ("", _LDB, 0, "", ""),
        ("", _JGE, 0x60, "six", ""),
        ("", _JGE, 0x50, drop, ""),
        ("", _JGE, 0x40, "", drop),
        ("", _LDB, 9, "", ""),
        ("", _JEQ, 6, drop, ""),
        ("", _JEQ, 17, "", keep),
        ("", _LDH, 6, "", ""),
        ("", _JSET, 0x1FFF, "unicast", ""),  # a later fragment has no ports
        ("", _LDX_HEADER, 0, "", ""),
        ("", _LDH_X, 2, "", ""),
        ("", _JEQ, 53, drop, ""),
        ("unicast", _LDB, 16, "", ""),
        ("", _JGE, 224, keep, ""),
        ("", _JEQ, 127, keep, ""),
        ("", _JEQ, 0, keep, ""),
        ("", _LD, 12, "", ""),
        ("", _JEQ, client4, taken, keep),
        ("six", _JGE, 0x70, drop, ""),
        ("", _LDB, 6, "", ""),
        ("", _JEQ, 6, drop, ""),
        ("", _JEQ, 17, "port", ""),
        ("", _JEQ, 44, "fragment", ""),
        ("", _JEQ, 58, "housekeeping", ""),
        ("", _JEQ, 0, "", keep),
        ("", _LDB, 40, "", ""),  # hop-by-hop options: only listener reports (RFC 3810) are nobody's business
        ("", _JEQ, 58, "", keep),
        ("", _LDB, 41, "", ""),
        ("", _JEQ, 0, "", keep),  # longer options could place any byte where the type is looked for
        ("", _LDB, 48, "", ""),
        ("", _JGE, 130, "", keep),
        ("", _JGE, 133, "", drop),
        ("", _JEQ, 143, drop, keep),
        ("fragment", _LDB, 40, "", ""),
        ("", _JEQ, 17, "", keep),
        ("", _LDH, 42, "", ""),
        ("", _JSET, 0xFFF8, "unicast6", ""),
        ("", _LDH, 50, "", ""),
        ("", _JEQ, 53, drop, "unicast6"),
        ("port", _LDH, 42, "", ""),
        ("", _JEQ, 53, drop, ""),
        ("unicast6", _LDB, 24, "", ""),
        ("", _JGE, 0xFE, keep, ""),
        ("", _JGE, 0xFC, "client6", ""),
        ("", _JGE, 0x40, keep, ""),
        ("", _JGE, 0x20, "", keep),
        *(
            ("" if number else "client6", _LD, 8 + 4 * number, "", "")
            if not test
            else ("", _JEQ, word, taken if number == 3 else "", keep)
            for number, word in enumerate(client6)
            for test in (False, True)
        ),
        ("housekeeping", _LDB, 40, "", ""),
        ("", _JGE, 130, "", keep),
        ("", _JGE, 138, "", drop),
        ("", _JEQ, 143, drop, keep),
        (keep, _RET, 0 if relayable else SNAPSHOT, "", ""),
        (taken, _RET, SNAPSHOT if relayable else 0, "", ""),
        (drop, _RET, 0, "", ""),
    )
    place = {label: index for index, (label, *_) in enumerate(source) if label}

    def jump(target: str, index: int) -> int:
        return place[target] - index - 1 if target else 0

    return b"".join(
        struct.pack("=HBBI", code, jump(true, index), jump(false, index), operand)
        for index, (_, code, operand, true, false) in enumerate(source)
    )
