"""Certificates that no client should believe, and the chain beside them that it should."""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import ssl
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from tests.gateway.gateway_stage import origin_authority

NAME = "a.test"
BEGIN = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
FOREVER = datetime.timedelta(days=20_000)
_numbers = itertools.count(1_000)


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who signs, and what stands between it and the roots."""

    key: Any
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...] = ()


@lru_cache(maxsize=1)
def roots() -> Issuer:
    return Issuer(*origin_authority())


def named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def certificate(
    issuer: Issuer | None,
    *,
    subject: str = NAME,
    names: Iterable[x509.GeneralName] = (x509.DNSName(NAME),),
    begin: datetime.datetime = BEGIN,
    until: datetime.datetime = BEGIN + FOREVER,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
    authority: x509.BasicConstraints | None = None,
    key: Any = None,
    more: tuple[x509.ExtensionType, ...] = (),
) -> Issuer:
    """Make a certificate; ``None`` signs itself."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(subject))
        .issuer_name(named(subject) if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(next(_numbers))
        .not_valid_before(begin)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if names := list(names):
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if authority is None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    else:
        builder = builder.add_extension(authority, critical=True)
    for extension in more:
        builder = builder.add_extension(extension, critical=True)
    signed = builder.sign(key if issuer is None else issuer.key, hashes.SHA256())
    chain = () if issuer is None else (issuer.certificate, *issuer.chain)
    return Issuer(key, signed, chain)


def serving(shown: Issuer, *, chain: bool = True, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A server that shows a certificate (with what stands behind it), whatever it is worth."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["http/1.1"])
    if version is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
    with tempfile.NamedTemporaryFile() as pem:
        for each in (shown.certificate, *(shown.chain if chain else ())):
            pem.write(each.public_bytes(serialization.Encoding.PEM))
        pem.write(
            shown.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        pem.flush()
        context.load_cert_chain(pem.name)
    return context


def intermediate(**changes: Any) -> Issuer:
    fields = {
        "subject": "an intermediate",
        "names": (),
        "authority": x509.BasicConstraints(True, None),
        **changes,
    }
    return certificate(roots(), **fields)


def signed_weakly() -> Issuer:
    """A certificate whose signature is over SHA-1, which libraries no longer make: the algorithm is written over."""
    key = rsa.generate_private_key(65_537, 2_048)
    made = certificate(intermediate(key=key))
    sha256, sha1 = (bytes.fromhex(f"2a864886f70d0101{last}") for last in ("0b", "05"))
    body = made.certificate.tbs_certificate_bytes.replace(sha256, sha1)
    whole = made.certificate.public_bytes(serialization.Encoding.DER)
    whole = whole.replace(made.certificate.tbs_certificate_bytes, body).replace(sha256, sha1)
    whole = whole.replace(made.certificate.signature, key.sign(body, padding.PKCS1v15(), hashes.SHA1()))
    return Issuer(made.key, x509.load_der_x509_certificate(whole), made.chain)


def stranger() -> Issuer:
    return certificate(None, subject="a stranger", names=(), authority=x509.BasicConstraints(True, None))


def constrained() -> x509.NameConstraints:
    return x509.NameConstraints([x509.DNSName("other.test")], None)


def wild(*patterns: str) -> Issuer:
    return certificate(roots(), names=[x509.DNSName(each) for each in patterns])


PAST = BEGIN + datetime.timedelta(days=1)
FUTURE = BEGIN + FOREVER - datetime.timedelta(days=1)

BAD = {
    # what is wrong, how it is made, what the 502 says
    "expired": (lambda: serving(certificate(roots(), until=PAST)), "expired"),
    "not yet valid": (lambda: serving(certificate(roots(), begin=FUTURE)), "not yet valid"),
    "for another host": (lambda: serving(wild("b.test")), "mismatch"),
    "for clients": (
        lambda: serving(certificate(roots(), usage=ExtendedKeyUsageOID.CLIENT_AUTH)),
        "unsuitable certificate purpose",
    ),
    "for code": (
        lambda: serving(certificate(roots(), usage=ExtendedKeyUsageOID.CODE_SIGNING)),
        "unsuitable certificate purpose",
    ),
    "signed by itself": (lambda: serving(certificate(None)), "self-signed"),
    "of an unknown authority": (lambda: serving(certificate(stranger())), "self-signed certificate in"),
    "of an unknown authority that is not shown": (
        lambda: serving(certificate(stranger()), chain=False),
        "unable to get local issuer",
    ),
    "a weak key": (
        lambda: serving(certificate(roots(), key=rsa.generate_private_key(65_537, 1_024))),
        "key too weak",
    ),
    "a weak intermediate": (
        lambda: serving(certificate(intermediate(key=rsa.generate_private_key(65_537, 1_024)))),
        "key too weak",
    ),
    "signed with SHA-1": (lambda: serving(signed_weakly()), "too weak"),
    "TLS 1.0": (lambda: serving(wild(NAME), version=ssl.TLSVersion.TLSv1), "during the TLS handshake"),
    "TLS 1.1": (lambda: serving(wild(NAME), version=ssl.TLSVersion.TLSv1_1), "during the TLS handshake"),
    "a common name alone": (lambda: serving(certificate(roots(), names=())), "mismatch"),
    "an address": (
        lambda: serving(certificate(roots(), names=[x509.IPAddress(ipaddress.ip_address("203.0.113.1"))])),
        "mismatch",
    ),
    "a wildcard below the name": (lambda: serving(wild("*.a.test")), "mismatch"),
    "a wildcard over a top-level domain": (lambda: serving(wild("*.test")), "mismatch"),
    "a wildcard over everything": (lambda: serving(wild("*")), "mismatch"),
    "a wildcard inside a label": (lambda: serving(wild("a*.test", "*a.test")), "mismatch"),
    "a name with a NUL": (lambda: serving(wild("a.test\0.evil.test")), "mismatch"),
    "a chain that ends early": (
        lambda: serving(certificate(intermediate()), chain=False),
        "unable to get local issuer",
    ),
    "issued by a leaf": (
        lambda: serving(certificate(certificate(roots(), subject="a leaf"))),
        "invalid CA certificate",
    ),
    "a chain that is too long": (
        lambda: serving(
            certificate(
                certificate(
                    intermediate(authority=x509.BasicConstraints(True, 0)),
                    subject="below", names=(), authority=x509.BasicConstraints(True, None),
                )
            )
        ),
        "path length",
    ),
    "outside of its issuer's names": (
        lambda: serving(certificate(intermediate(more=(constrained(),)))),
        "permitted subtree violation",
    ),
}  # fmt: skip


def good() -> ssl.SSLContext:
    """A chain that holds: what makes every other one a difference of one thing."""
    return serving(certificate(intermediate()))
