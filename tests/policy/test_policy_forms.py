"""How things are written, and what is made of it: the canonical forms, and everything that is refused with a hint.

The names NAM-01 to NAM-16 are those of the catalogue of published bypasses, each a disagreement about a name.
"""

from __future__ import annotations

import pytest

from ringfence.policy import (
    InvalidPolicy,
    canonical_host,
    canonical_name,
    parse_resource,
    parse_resources,
    parse_target,
    split_authority,
    split_resources,
    target_text,
)

CANONICAL = [
    ("example.com", "example.com"),
    ("EXAMPLE.com", "example.com"),
    ("example.com.", "example.com"),
    ("  example.com ", "example.com"),
    ("example.com:443", "example.com:443"),
    ("example.com.:443", "example.com:443"),
    ("example.com:1-65535", "example.com"),
    ("example.com:443-443", "example.com:443"),
    ("example.com:8000-8100", "example.com:8000-8100"),
    ("*.Example.com", "*.example.com"),
    ("**.example.com:443", "**.example.com:443"),
    ("CRL*.digicert.com", "crl*.digicert.com"),
    ("api?.x.org", "api?.x.org"),
    ("api[12].x.org", "api[12].x.org"),
    ("[ab]pi.x.org", "[ab]pi.x.org"),
    ("a[!0-9]b.x.org:80", "a[!0-9]b.x.org:80"),
    ("*.one.digicert.com:80", "*.one.digicert.com:80"),
    ("**", "**"),
    ("**:25", "**:25"),
    ("**:8000-8100", "**:8000-8100"),
    ("203.0.113.7", "203.0.113.7"),
    ("203.0.113.7/32", "203.0.113.7"),
    ("203.0.113.0/24", "203.0.113.0/24"),
    ("10.0.0.0/8:5432", "10.0.0.0/8:5432"),
    ("0.0.0.0/0", "0.0.0.0/0"),
    ("::/0", "::/0"),
    ("2001:db8::1", "2001:db8::1"),
    ("[2001:db8::1]", "2001:db8::1"),
    ("[2001:db8::1]:443", "[2001:db8::1]:443"),
    ("2001:DB8:0:0::1", "2001:db8::1"),
    ("2001:db8::/32", "2001:db8::/32"),
    ("[2001:db8::/32]:443", "[2001:db8::/32]:443"),
    ("[2001:db8::]/32:443", "[2001:db8::/32]:443"),
    ("::ffff:1.2.3.4", "::ffff:1.2.3.4"),
    ("::ffff:102:304", "::ffff:1.2.3.4"),
    ("localhost:11434", "localhost:11434"),
    ("LocalHost:11434", "localhost:11434"),
    ("host.docker.internal:11434", "localhost:11434"),
    ("localhost", "localhost"),
    ("bücher.example", "xn--bcher-kva.example"),
    ("BÜCHER.example", "xn--bcher-kva.example"),
    ("faß.example", "xn--fa-hia.example"),
    ("*.bücher.example", "*.xn--bcher-kva.example"),
    ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ("ｅｘａｍｐｌｅ．ｃｏｍ", "example.com"),
    ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
    ("r3---sn-abc.video.test", "r3---sn-abc.video.test"),
    ("_dmarc.example.com", "_dmarc.example.com"),
    ("a." * 124 + "com", "a." * 124 + "com"),
    ("x" * 63 + ".com", "x" * 63 + ".com"),
]

REFUSED = [
    ("", "is empty", "example.com"),
    ("   ", "is empty", "example.com"),
    ("*", "names no host", "`**`"),
    ("*:443", "names no host", "`**:443`"),
    (":443", "names no host", "`**:443`"),
    (":99999", "not a port", "1 to 65535"),
    ("http://x/", "is a URL", "`x:80`"),
    ("https://example.com/path?q", "is a URL", "`example.com:443`"),
    ("https://user@example.com:8443/", "is a URL", "`example.com:8443`"),
    ("a b", "has a space", "no spaces"),
    ("exa mple.com", "has a space", "no spaces"),
    ("exa\tmple.com", "has a space", "no spaces"),
    ("example.com/path", "has a path", "--path"),
    ("example.com:0", "not a port", "1 to 65535"),
    ("example.com:99999", "not a port", "1 to 65535"),
    ("example.com:65536", "not a port", ""),
    ("example.com:0443", "not a port", ""),
    ("example.com:+443", "not a port", ""),
    ("example.com:-443", "not a port", ""),
    ("example.com:", "not a port", ""),
    ("example.com:http", "not a port", ""),
    ("example.com:443-80", "runs backwards", "80-443"),
    ("example.com:443-", "not a port", ""),
    ("a:443:443", "not an IPv6 address", ""),
    ("example.com:٤٤٣", "not a port", ""),
    ("x" * 300, "longer than 253", ""),
    ("x" * 64 + ".com", "not a host name", "63"),
    ("a." * 127 + "com", "longer than 253", ""),
    ("*.*.com", "behind another label", "**.example.com"),
    ("a.*.com", "behind another label", ""),
    ("*.**.com", "behind another label", ""),
    ("**.**", "behind another label", ""),
    ("*.*", "behind another label", ""),
    ("***", "not a host pattern", ""),
    ("**example.com", "not a host pattern", ""),
    ("a**b.example.com", "not a host pattern", ""),
    ("example.*", "behind another label", ""),
    ("example.c*m", "top-level domain", ""),
    ("a*", "top-level domain", ""),
    ("[a-.example.com", "brackets", ""),
    ("a[].example.com", "not a host pattern", ""),
    ("a[z-a].example.com", "set that is no set", ""),
    ("a[--a].example.com", "not a host pattern", ""),
    ("a\\*.example.com", "backslash", ""),
    ("bü*.example.com", "outside ASCII", "xn--"),
    ("a..example.com", "not a host name", "empty label"),
    (".example.com", "not a host name", "empty label"),
    ("example.com..", "not a host name", "empty label"),
    ("*..example.com", "not a host name", ""),
    ("-a.example.com", "not a host name", "hyphen"),
    ("a-.example.com", "not a host name", "hyphen"),
    ("exa!mple.com", "not a host name", ""),
    ("user@example.com", "user information", ""),
    ("example%2ecom", "percent-encoding", ""),
    ("fe80::1%eth0", "zone", ""),
    ("10.0.0.1/33", "prefix length 33", "0 to 32"),
    ("2001:db8::/129", "prefix length 129", "0 to 128"),
    ("10.0.0.1/24", "bits beyond", "`10.0.0.0/24`"),
    ("10.0.0.0/08", "not a prefix length", ""),
    ("10.0.0.0/", "not a prefix length", ""),
    ("10.0.0.0/-1", "not a prefix length", ""),
    ("10.0.0.0/255.0.0.0", "not a prefix length", ""),
    ("127.0.0.1", "loopback", "localhost:PORT"),
    ("127.0.0.1:11434", "loopback", "localhost:11434"),
    ("127.9.9.9", "loopback", ""),
    ("127.0.0.0/8", "loopback", ""),
    ("[::1]:80", "loopback", "localhost:80"),
    ("*.localhost", "below `localhost`", ""),
    ("x.localhost:80", "below `localhost`", "localhost:PORT"),
    ("x.host.docker.internal", "below `localhost`", ""),
    ("[10.0.0.1]:80", "brackets", ""),
    ("[example.com]:80", "brackets", ""),
    ("[::1", "brackets", ""),
    ("*.10.0.0.1", "before an address", "network"),
    ("2130706433", "canonical notation", ""),
    ("0177.0.0.1", "canonical notation", ""),
    ("0x7f.0.0.1", "canonical notation", ""),
    ("0x7f000001", "canonical notation", ""),
    ("127.1", "canonical notation", ""),
    ("1.2.3", "canonical notation", ""),
    ("1.2.3.4.", "canonical notation", ""),
    ("1.2.3.256", "canonical notation", ""),
    ("1.2.3.04", "canonical notation", ""),
    ("example.1", "canonical notation", ""),
    ("①②⑦.⓪.⓪.①", "other characters", ""),
    ("xn--a.example", "punycode", ""),
    ("xn--bcher-kva-.example", "not a host name", ""),
    ("xn--example.example", "punycode", ""),
    ("xn--BCHER-Kva8445foa.example", "punycode", ""),
    ("xn--bücher.example", "internationalised", ""),
    ("☃☃\u202e.example", "internationalised", ""),
    ("a\x00b.example", "host name", ""),
    ("exa\u200dmple.com", "internationalised", ""),
]


@pytest.mark.parametrize(("written", "stored"), CANONICAL)
def test_canonical_form(written: str, stored: str) -> None:
    assert parse_resource(written).text == stored
    assert parse_resource(stored).text == stored


@pytest.mark.parametrize(("written", "wrong", "hint"), REFUSED)
def test_refused_with_what_to_write_instead(written: str, wrong: str, hint: str) -> None:
    with pytest.raises(InvalidPolicy) as caught:
        parse_resource(written)
    message = caught.value.message
    assert wrong in message
    assert hint in caught.value.hint
    assert message[0].islower() or message[0] in "`"
    assert not message.endswith(".")
    assert "\n" not in message + caught.value.hint
    assert len(message) < 250


@pytest.mark.parametrize(
    ("pasted", "stored"),
    [
        ("api.anthropic.com:443\napi.openai.com:443\n*.googleapis.com:443\n\n", 3),
        ("a.test, b.test,c.test", 3),
        ("a.test,\nb.test,\n", 2),
        ("a.test b.test:443 **", 3),
        ("\n\n  a.test  \r\n  b.test\r\n", 2),
        ("a.test\na.test\nA.test.", 1),
        ("intranet\nwiki", 2),
        ("localhost:11434 a.test", 2),
    ],
)
def test_pasted_lists_are_taken_apart(pasted: str, stored: int) -> None:
    assert len(split_resources(pasted)) == stored


@pytest.mark.parametrize(
    ("pasted", "wrong"),
    [
        ("", "no resources"),
        ("\n \n", "no resources"),
        (",", "blank entry"),
        ("a.test,,b.test", "blank entry"),
        ("a.test, ,b.test", "blank entry"),
        ("exa mple.com", "has a space"),
        ("a b", "has a space"),
        ("pypi.org and npmjs.org", "has a space"),
        ("a.test\n*\n", "names no host"),
        ("\n".join(f"h{n}.test" for n in range(10_000)), "more than 1000"),
        (",".join(f"h{n}.test" for n in range(10_000)), "more than 1000"),
    ],
)
def test_pasted_lists_that_are_mistakes(pasted: str, wrong: str) -> None:
    with pytest.raises(InvalidPolicy, match=wrong):
        split_resources(pasted)


def test_an_empty_list_is_refused_and_not_everything() -> None:
    """NAM-15: an empty allow-list once meant allow everything (CVE-2025-66479)."""
    with pytest.raises(InvalidPolicy, match="no resources"):
        parse_resources([])
    with pytest.raises(InvalidPolicy, match="is empty"):
        parse_resources([""])


WIRE = [
    ("NAM-02 case", b"Allowed.Test", "allowed.test"),
    ("NAM-02 trailing dot", b"allowed.test.", "allowed.test"),
    ("text", "allowed.test", "allowed.test"),
    ("underscore", b"a_b.test", "a_b.test"),
    ("NAM-05 A-label", b"xn--bcher-kva.test", "xn--bcher-kva.test"),
    ("NAM-05 A-label, upper case", b"XN--BCHER-KVA.test", "xn--bcher-kva.test"),
    ("address", b"203.0.113.7", "203.0.113.7"),
    ("IPv6", b"2001:DB8::1", "2001:db8::1"),
    ("IPv6 in brackets", b"[2001:db8::1]", "2001:db8::1"),
    ("NAM-10 mapped", b"::ffff:127.0.0.1", "::ffff:127.0.0.1"),
    ("NAM-10 mapped, hexadecimal", b"[::FFFF:7F00:1]", "::ffff:127.0.0.1"),
    ("the host", b"Host.Docker.Internal", "localhost"),
    ("the gateway", b"gateway.docker.internal.", "gateway.docker.internal"),
]

WIRE_REFUSED = [
    ("NAM-01 NUL", b"evil\x00.allowed.test"),
    ("NAM-01 CR", b"evil\r.test"),
    ("NAM-01 LF", b"evil\n.test"),
    ("NAM-01 space", b"evil .test"),
    ("NAM-01 tab", b"evil\t.test"),
    ("NAM-01 delete", b"evil\x7f.test"),
    ("NAM-01 percent", b"evil%2etest"),
    ("NAM-02 empty label", b"allowed..test"),
    ("NAM-02 leading dot", b".allowed.test"),
    ("NAM-02 two trailing dots", b"allowed.test.."),
    ("nothing", b""),
    ("a dot", b"."),
    ("NAM-03 brackets around a name", b"[evil.test]"),
    ("NAM-03 brackets around an IPv4 address", b"[127.0.0.1]"),
    ("NAM-03 open bracket", b"[::1"),
    ("NAM-03 closed bracket", b"::1]"),
    ("NAM-04 user information", b"allowed@evil.test"),
    ("NAM-04 backslash", b"evil\\.test"),
    ("NAM-04 fragment", b"evil#.test"),
    ("NAM-04 slash", b"evil/.test"),
    ("NAM-05 raw letters", "bücher.test".encode()),
    ("NAM-05 latin-1", b"b\xfccher.test"),
    ("NAM-05 fullwidth dot", "allowed。test"),
    ("NAM-05 U-label as text", "bücher.test"),
    ("NAM-05 fake A-label", b"xn--a.test"),
    ("NAM-05 A-label of ASCII", b"xn--example-.test"),
    ("NAM-06 wildcard", b"*.test"),
    ("NAM-07 zone", b"::ffff:1.2.3.4%x.allowed.test"),
    ("NAM-07 zone, short", b"fe80::1%1"),
    ("NAM-08 decimal", b"2130706433"),
    ("NAM-08 octal", b"0177.0.0.1"),
    ("NAM-08 octal, short", b"0177.1"),
    ("NAM-08 hexadecimal", b"0x7f.1"),
    ("NAM-08 hexadecimal, one number", b"0x7f000001"),
    ("NAM-08 upper hexadecimal", b"0X7F.0.0.1"),
    ("NAM-08 short", b"127.1"),
    ("NAM-08 very short", b"127"),
    ("NAM-08 zero", b"0"),
    ("NAM-08 too many", b"1.2.3.4.5"),
    ("NAM-08 too large", b"1.2.3.256"),
    ("NAM-08 leading zero", b"192.168.01.1"),
    ("NAM-08 trailing dot", b"127.0.0.1."),
    ("NAM-08 letters before", b"a.0x1"),
    ("NAM-08 circled digits", "①②⑦.⓪.⓪.①"),
    ("NAM-08 arabic digits", "١٢٧.٠.٠.١"),
    ("too long", b"a." * 130 + b"test"),
    ("a label too long", b"a" * 64 + b".test"),
    ("a megabyte", b"a" * 1_000_000),
    ("hyphen first", b"-a.test"),
    ("hyphen last", b"a-.test"),
    ("IPv6, nonsense", b"1::2::3"),
    ("IPv6, too long", b"1:2:3:4:5:6:7:8:9"),
]


@pytest.mark.parametrize(("wire", "host"), [(w, h) for _, w, h in WIRE], ids=[name for name, *_ in WIRE])
def test_a_host_on_the_wire_is_made_canonical(wire: str | bytes, host: str) -> None:
    assert canonical_host(wire) == host
    assert canonical_host(host) == host


@pytest.mark.parametrize("wire", [w for _, w in WIRE_REFUSED], ids=[name for name, _ in WIRE_REFUSED])
def test_a_host_on_the_wire_is_refused(wire: str | bytes) -> None:
    with pytest.raises(InvalidPolicy) as caught:
        canonical_host(wire)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_a_name_is_not_an_address_in_brackets() -> None:
    with pytest.raises(InvalidPolicy):
        canonical_name(b"[::1]")


@pytest.mark.parametrize(
    ("authority", "default", "expected"),
    [
        (b"example.com:443", None, ("example.com", 443)),
        (b"EXAMPLE.com.:443", None, ("example.com", 443)),
        (b"example.com", 80, ("example.com", 80)),
        (b"[2001:db8::1]:443", None, ("2001:db8::1", 443)),
        (b"[2001:db8::1]", 443, ("2001:db8::1", 443)),
        (b"203.0.113.7:80", None, ("203.0.113.7", 80)),
        ("host.docker.internal:11434", None, ("localhost", 11434)),
    ],
)
def test_an_authority(authority: str | bytes, default: int | None, expected: tuple[str, int]) -> None:
    assert split_authority(authority, default) == expected


@pytest.mark.parametrize(
    "authority",
    [
        *(
            b"example.com",
            b"",
            b":443",
            b"example.com:",
            b"example.com:0",
            b"example.com:65536",
            b"a:443:443",
        ),
        *(b"example.com:0443", b"example.com:+443", b"example.com: 443", b"2001:db8::1", b"2001:db8::1:443"),
        *(
            b"[::1]443",
            b"[::1]:",
            b"[evil.test]:443",
            b"u@evil.test:443",
            b"evil.test:443\r\n",
            b"evil.test:4_3",
        ),
    ],
)
def test_an_authority_that_is_none(authority: bytes) -> None:
    """NAM-03: ports and brackets that parsers read differently (CVE-2022-29188)."""
    with pytest.raises(InvalidPolicy):
        split_authority(authority)


@pytest.mark.parametrize(
    ("written", "method", "shown"),
    [
        ("example.com", "", "example.com:443"),
        ("Example.com:8443", "", "example.com:8443"),
        ("http://example.com", "", "example.com:80"),
        ("https://example.com/", "", "example.com:443"),
        ("https://example.com/a?b=c#d", "", "GET https://example.com:443/a?b=c"),
        ("wss://example.com:99/ws", "", "GET https://example.com:99/ws"),
        ("example.com", "POST", "POST https://example.com:443/"),
        ("[2001:db8::1]:443", "", "[2001:db8::1]:443"),
        ("2001:db8::1", "", "[2001:db8::1]:443"),
        ("https://[2001:db8::1]/x", "", "GET https://[2001:db8::1]:443/x"),
        ("bücher.example", "", "xn--bcher-kva.example:443"),
        ("host.docker.internal:11434", "", "localhost:11434"),
    ],
)
def test_a_target(written: str, method: str, shown: str) -> None:
    access = parse_target(written, method=method)
    assert f"{access.method} {target_text(access)}".strip() == shown
    assert parse_target(target_text(access), method=access.method) == access


@pytest.mark.parametrize(
    "written",
    [
        "",
        "example.com/path",
        "ftp://x",
        "https://u@x/",
        "https://",
        "x:0",
        "a b",
        "https://x\\y/",
        "[::1",
        "*.x.com",
    ],
)
def test_a_target_that_is_none(written: str) -> None:
    with pytest.raises(InvalidPolicy):
        parse_target(written)
