"""Certificates minted by hand, judged by OpenSSL, cryptography, and handshakes as strict as Python 3.13's."""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import ssl
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ringfence.gateway.authority import Authority, create_authority
from ringfence.gateway.backends import OpenSsl

NOW = datetime.datetime.now(datetime.UTC).timestamp()  # noqa: TID251  # OpenSSL reads the real clock
DAY = 86_400.0


class Clock:
    def __init__(self, time: float = NOW) -> None:
        self.time = time

    def __call__(self) -> float:
        return self.time


@pytest.fixture(scope="module")
def pair() -> tuple[bytes, bytes]:
    return create_authority(now=NOW)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(pair: tuple[bytes, bytes], clock: Clock) -> Authority:
    return Authority(*pair, now=clock)


def client_context(certificate_pem: bytes, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """What ``ssl.create_default_context()`` makes since Python 3.13."""
    context = ssl.create_default_context(cadata=certificate_pem.decode())
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def shake(
    client_side: ssl.SSLContext, server_side: ssl.SSLContext, name: str, session: ssl.SSLSession | None = None
) -> ssl.SSLObject:
    """A handshake in memory; returns the client once the server's tickets have arrived."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    done: set[ssl.SSLObject] = set()
    for _ in range(4):
        for side in (client, server):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
                done.add(side)
    assert done == {client, server}
    with suppress(ssl.SSLWantReadError):
        client.read(1)
    return client


def leaf_of(authority: Authority, host: str, pair: tuple[bytes, bytes]) -> x509.Certificate:
    client = shake(client_context(pair[1]), authority.context(host), host)
    der = client.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


# -- the authority -------------------------------------------------------------------------------------------


def test_the_authority_says_what_it_is(pair: tuple[bytes, bytes]) -> None:
    certificate = x509.load_pem_x509_certificate(pair[1])
    name = certificate.subject.rfc4514_string({NameOID.COMMON_NAME: "CN", NameOID.ORGANIZATION_NAME: "O"})
    assert certificate.issuer == certificate.subject
    assert name.startswith("CN=Ringfence local CA ")
    assert name.endswith(",O=Ringfence")
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert datetime.timedelta(days=3_650) < lifetime < datetime.timedelta(days=3_655)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    own = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert (
        certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        == own
    )
    assert b"BEGIN PRIVATE KEY" in pair[0]


def test_two_authorities_are_strangers(pair: tuple[bytes, bytes]) -> None:
    other = create_authority(now=NOW)
    assert x509.load_pem_x509_certificate(other[1]).subject != x509.load_pem_x509_certificate(pair[1]).subject
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(client_context(other[1]), Authority(*pair).context("a.test"), "a.test")


def test_a_key_that_is_not_the_certificates_is_refused(pair: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="not the key"):
        Authority(create_authority(now=NOW)[0], pair[1])


def test_a_certificate_that_may_not_issue_is_refused(pair: tuple[bytes, bytes]) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a.test")])
    begin = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    leaf = (
        x509.CertificateBuilder(name, name, key.public_key(), 7, begin, begin + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ValueError, match="not a certificate authority"):
        Authority(key_pem, leaf)


# -- leaves --------------------------------------------------------------------------------------------------


def canonical(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


HOSTS = [
    "example.com",
    "localhost",
    "a",
    "_under_score.example.com",
    "xn--bcher-kva.example",
    "1.2.3.4",
    "2001:db8::1",
    "::ffff:1.2.3.4",
    "a" * 63 + ".example",
    ".".join(["a" * 49] * 5 + ["tes"]),
]


@pytest.mark.parametrize("host", HOSTS)
def test_a_leaf_names_its_host_and_the_proxy(
    host: str, authority: Authority, pair: tuple[bytes, bytes]
) -> None:
    leaf = leaf_of(authority, host, pair)
    issuer = x509.load_pem_x509_certificate(pair[1])
    leaf.verify_directly_issued_by(issuer)
    subject = [(part.rfc4514_attribute_name, part.value) for part in leaf.subject]
    assert subject == [("O", "Ringfence untrusted MITM proxy"), ("CN", host[:64])]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == [canonical(host)]
    assert leaf.version is x509.Version.v3
    assert leaf.serial_number.bit_length() <= 159
    assert leaf.not_valid_before_utc.timestamp() < NOW - 3_600
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc <= datetime.timedelta(days=30)
    constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca) == (True, False)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert (
        leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        == issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    )


def test_leaves_share_one_key_and_never_a_serial_number(
    authority: Authority, pair: tuple[bytes, bytes]
) -> None:
    leaves = [leaf_of(authority, f"h{n}.test", pair) for n in range(20)]
    assert len({leaf.public_key().public_numbers() for leaf in leaves}) == 1  # type: ignore[union-attr]
    assert len({leaf.serial_number for leaf in leaves}) == 20
    assert leaves[0].public_key() != x509.load_pem_x509_certificate(pair[1]).public_key()


@pytest.mark.parametrize("host", ["", "a b", "a\0b", "bücher.example", "a\n", "x" * 254])
def test_what_no_certificate_can_name_is_refused(host: str, authority: Authority) -> None:
    with pytest.raises(ValueError, match="no certificate can name"):
        authority.context(host)
    assert len(authority) == 0


@pytest.mark.parametrize("host", ["*.test", "b.a.test", "a.test.evil"])
def test_a_leaf_is_for_its_host_alone(host: str, authority: Authority, pair: tuple[bytes, bytes]) -> None:
    with pytest.raises((ssl.SSLCertVerificationError, ValueError)):
        shake(client_context(pair[1]), authority.context("a.test"), host)


def test_openssl_verifies_a_leaf_strictly(
    authority: Authority, pair: tuple[bytes, bytes], tmp_path: Path
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    leaf = leaf_of(authority, "example.com", pair)
    (tmp_path / "leaf.pem").write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "ca.pem").write_bytes(pair[1])
    verified = subprocess.run(
        [openssl, "verify", "-x509_strict", "-check_ss_sig", "-purpose", "sslserver", "-verify_hostname",
         "example.com", "-CAfile", "ca.pem", "leaf.pem"],
        cwd=tmp_path, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr
    shown = subprocess.run(
        [openssl, "x509", "-in", "leaf.pem", "-noout", "-subject", "-nameopt", "compat"],
        cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert shown.stdout.strip() == "subject=/O=Ringfence untrusted MITM proxy/CN=example.com"


def test_dates_beyond_2049_are_written_as_rfc_5280_says() -> None:
    far = datetime.datetime(2055, 3, 1, tzinfo=datetime.UTC).timestamp()
    pair = create_authority(now=far)
    authority = Authority(*pair, now=Clock(far))
    context = client_context(pair[1])
    context.verify_mode = ssl.VerifyMode.CERT_REQUIRED
    authority.context("a.test")  # OpenSSL has read it
    assert x509.load_pem_x509_certificate(pair[1]).not_valid_before_utc.year == 2055


# -- handshakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), (["spdy/1"], None), ([], None)],
)
def test_a_client_negotiates(
    authority: Authority,
    pair: tuple[bytes, bytes],
    version: ssl.TLSVersion,
    offered: list[str],
    chosen: str | None,
) -> None:
    context = client_context(pair[1], version)
    if offered:
        context.set_alpn_protocols(offered)
    client = shake(context, authority.context("a.test"), "a.test")
    assert client.selected_alpn_protocol() == chosen
    assert client.version() == {ssl.TLSVersion.TLSv1_2: "TLSv1.2", ssl.TLSVersion.TLSv1_3: "TLSv1.3"}[version]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_versions_are_refused(
    authority: Authority, pair: tuple[bytes, bytes], version: ssl.TLSVersion
) -> None:
    context = client_context(pair[1])
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with pytest.raises(ssl.SSLError):
        shake(context, authority.context("a.test"), "a.test")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_ticket_of_one_host_is_noise_to_another(
    authority: Authority, pair: tuple[bytes, bytes], version: ssl.TLSVersion
) -> None:
    """TLS session resumption under another name never skips the choice of a certificate."""
    context = client_context(pair[1], version)
    first = shake(context, authority.context("a.test"), "a.test")
    assert first.session is not None
    assert first.session.has_ticket
    assert shake(context, authority.context("a.test"), "a.test", first.session).session_reused
    other = shake(context, authority.context("b.test"), "b.test", first.session)
    assert not other.session_reused
    certificate = other.getpeercert()
    assert certificate is not None
    assert certificate["subjectAltName"] == (("DNS", "b.test"),)


def test_sessions_without_tickets_do_not_pile_up(authority: Authority, pair: tuple[bytes, bytes]) -> None:
    context = client_context(pair[1], ssl.TLSVersion.TLSv1_2)
    context.options |= ssl.OP_NO_TICKET
    kept = []
    for _ in range(100):
        server = authority.context("a.test")
        shake(context, server, "a.test")
        kept.append(server.session_stats()["number"])
    assert max(kept) <= 16
    assert len(authority) == 1


# -- the cache -----------------------------------------------------------------------------------------------


def test_a_context_is_kept(authority: Authority) -> None:
    assert authority.context("a.test") is authority.context("a.test")
    assert authority.context("a.test") is not authority.context("b.test")


def test_the_least_recently_used_context_goes_first(pair: tuple[bytes, bytes], clock: Clock) -> None:
    authority = Authority(*pair, now=clock, capacity=3)
    kept = {host: authority.context(host) for host in ("a", "b", "c")}
    assert authority.context("a") is kept["a"]
    authority.context("d")
    assert len(authority) == 3
    assert authority.context("a") is kept["a"]
    assert authority.context("b") is not kept["b"]


def test_ten_thousand_names_do_not_grow_the_cache(
    pair: tuple[bytes, bytes], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # every leaf is minted; one context stands for all
    monkeypatch.setattr(OpenSsl, "server_context", lambda *_: context)
    authority = Authority(*pair, now=clock, capacity=64)
    for n in range(10_000):
        authority.context(f"h{n}.test")
        assert len(authority) <= 64


@pytest.mark.parametrize(
    ("days", "same"), [(0, True), (20, True), (25.9, True), (26.1, False), (400, False), (-2, False)]
)
def test_a_leaf_is_replaced_before_it_expires(
    authority: Authority, clock: Clock, days: float, same: bool
) -> None:
    before = authority.context("a.test")
    clock.time += days * DAY
    assert (authority.context("a.test") is before) is same


def test_an_authority_at_its_end_mints_nothing(authority: Authority, clock: Clock) -> None:
    clock.time += 3_649 * DAY
    with pytest.raises(ValueError, match="about to expire"):
        authority.context("a.test")


def test_a_leaf_does_not_outlive_its_authority(pair: tuple[bytes, bytes]) -> None:
    end = x509.load_pem_x509_certificate(pair[1]).not_valid_after_utc
    authority = Authority(*pair, now=Clock(end.timestamp() - 10 * DAY))
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    client = context.wrap_bio(to_client, to_server)
    server = authority.context("a.test").wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        with suppress(ssl.SSLWantReadError):
            side.do_handshake()
    der = client.getpeercert(binary_form=True)
    assert der is not None
    assert x509.load_der_x509_certificate(der).not_valid_after_utc <= end


def test_no_file_and_no_descriptor_is_left(pair: tuple[bytes, bytes], tmp_path: Path) -> None:
    authority = Authority(*pair)
    before = set(os.listdir("/proc/self/fd"))
    for n in range(5):
        authority.context(f"h{n}.test")
    with pytest.raises(ValueError):
        authority.context("")
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_a_process_that_gave_up_its_privileges_mints(pair: tuple[bytes, bytes], tmp_path: Path) -> None:
    """The worker drops root and forbids dumps of its memory; both make ``/proc/self`` somebody else's."""
    if os.geteuid():
        pytest.skip("only root has privileges to give up")
    program = textwrap.dedent("""
        import ctypes, os, sys
        from ringfence.gateway.authority import Authority
        pair = sys.stdin.buffer.read().split(b"=====")
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0  # PR_SET_DUMPABLE
        Authority(*pair).context("a.test")
        print("minted")
    """)
    ran = subprocess.run(
        [sys.executable, "-c", program],
        input=b"=====".join(pair), capture_output=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    assert ran.stdout == b"minted\n", ran.stderr


def test_many_handshakes_at_once(authority: Authority, pair: tuple[bytes, bytes]) -> None:
    """One context serves connections of many at a time (OpenSSL's locks, not ours)."""
    context, server = client_context(pair[1]), authority.context("a.test")
    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(lambda _: shake(context, server, "a.test").version(), range(40)))
    assert set(versions) == {"TLSv1.3"}
