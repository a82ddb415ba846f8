"""Certificates that a server may show, good and bad, and what is to be said of each, whoever verifies."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.datetime.now(datetime.UTC)  # noqa: TID251  # backends read the real clock
HOST = "a.test"
DAY = datetime.timedelta(days=1)
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
USES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
MORE = ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")


class Made(NamedTuple):
    key: Any
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()


def made(
    name: str,
    issuer: Made | None = None,
    *,
    names: Sequence[str] | None = None,
    ca: bool | None = False,
    begin: int = -30,
    end: int = 30,
    purposes: Sequence[x509.ObjectIdentifier] = (),
    uses: Sequence[str] = (),
    length: int | None = None,
    permitted: str = "",
    strange: bool = False,
    key: Any = None,
) -> Made:
    """A certificate; days count from now, ``names`` are the subject alternative ones."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + begin * DAY)
        .not_valid_after(NOW + end * DAY)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=length), critical=True)
    if names is not None:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general(each) for each in names]), critical=False
        )
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if uses:
        every = {use: use in uses for use in (*USES, *MORE)}
        builder = builder.add_extension(x509.KeyUsage(**every), critical=True)
    if permitted:
        within = x509.NameConstraints([x509.DNSName(permitted)], None)
        builder = builder.add_extension(within, critical=True)
    if strange:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\0")
        builder = builder.add_extension(unknown, critical=True)
    return Made(key, builder.sign(issuer.key if issuer else key, hashes.SHA256()))


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Case(NamedTuple):
    says: str
    """What is said of it; empty when it is accepted."""
    leaf: Made
    chain: Sequence[Made] = ()
    host: str = HOST
    also: str = ""
    """What else may be said."""

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_ciphers("ALL:@SECLEVEL=0")
        key = self.leaf.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with tempfile.NamedTemporaryFile() as file:
            file.write("".join(each.pem for each in (self.leaf, *self.chain)).encode() + key)
            file.flush()
            context.load_cert_chain(file.name)
        return context


NAME, ISSUER, PURPOSE = "ostname mismatch", "local issuer", "unsuitable certificate purpose"


@cache
def cases() -> tuple[str, Mapping[str, Case]]:
    """The roots that are trusted (PEM), and what a server may show."""
    root, stranger = made("roots", ca=True), made("stranger", ca=True)
    old_root = made("old roots", ca=True, end=-1)
    issuer = made("issuer", root, ca=True, uses=("key_cert_sign",))
    old_issuer = made("old issuer", root, ca=True, end=-1)
    plain = made("no issuer", root)
    unfit = made("unfit issuer", root, ca=True, uses=("digital_signature",))
    last = made("last issuer", root, ca=True, length=0)
    beyond = made("issuer beyond", last, ca=True)
    fenced = made("fenced issuer", root, ca=True, permitted="other.test")
    clients = made("issuer of clients", root, ca=True, purposes=[CLIENT])
    own = [HOST]

    def leaf(by: Made | None = root, names: Sequence[str] | None = own, **more: Any) -> Made:
        return made(HOST, by, names=names, **more)

    weak = leaf(key=rsa.generate_private_key(65537, 1024))
    table = {
        "good": Case("", leaf(purposes=[SERVER])),
        "good without purposes": Case("", leaf()),
        "good, by an intermediate": Case("", leaf(issuer), [issuer]),
        "good, RSA of 2048 bits": Case("", leaf(key=rsa.generate_private_key(65537, 2048))),
        "good, P-384": Case("", leaf(key=ec.generate_private_key(ec.SECP384R1()))),
        "good, wildcard": Case("", leaf(names=["*.a.test"]), host="b.a.test"),
        "good, an address": Case("", leaf(names=["192.0.2.1"]), host="192.0.2.1"),
        "good, an IPv6 address": Case("", leaf(names=["2001:db8::1"]), host="2001:db8::1"),
        "expired": Case("has expired", leaf(end=-1)),
        "not yet valid": Case("not yet valid", leaf(begin=1)),
        "another host's": Case(NAME, leaf(names=["b.test"])),
        "a subdomain's": Case(NAME, leaf(names=["b.a.test"])),
        "a wildcard too high": Case(NAME, leaf(names=["*.test"]), host="b.a.test"),
        "a wildcard of wildcards": Case(NAME, leaf(names=["*.*"])),
        "a wildcard of a part": Case(NAME, leaf(names=["a*.test", "*a.test"])),
        "a NUL in the name": Case(NAME, leaf(names=["a.test\0.evil.test"])),
        "common name alone": Case(NAME, leaf(names=None)),
        "common name beside another": Case(NAME, leaf(names=["b.test"])),
        "another address's": Case("mismatch", leaf(names=["192.0.2.2"]), host="192.0.2.1"),
        "an address as a name": Case("mismatch", leaf(names=None), host="192.0.2.1"),
        "for clients": Case(PURPOSE, leaf(purposes=[CLIENT])),
        "self-signed": Case("self-signed", leaf(None), also=ISSUER),
        "of an unknown authority": Case(ISSUER, leaf(stranger)),
        "of an unknown authority that is sent": Case("self-signed", leaf(stranger), [stranger], also=ISSUER),
        "the intermediate is missing": Case(ISSUER, leaf(issuer)),
        "the intermediate has expired": Case("has expired", leaf(old_issuer), [old_issuer]),
        "the intermediate is no authority": Case("invalid CA", leaf(plain), [plain]),
        "the intermediate may not sign": Case("invalid CA", leaf(unfit), [unfit]),
        "the intermediate is one too many": Case("path length", leaf(beyond), [beyond, last]),
        "the intermediate is for other names": Case("permitted subtree", leaf(fenced), [fenced]),
        "the intermediate is for clients": Case(PURPOSE, leaf(clients), [clients]),
        "the root has expired": Case("has expired", leaf(old_root), also=ISSUER),
        "RSA of 1024 bits": Case("too weak", weak),
        "an extension that nobody knows": Case("unhandled critical", leaf(strange=True)),
    }
    return "\n".join(each.pem for each in (root, old_root)), table
