"""The demo's internet's certificates: a root, an issuer, one leaf for each site. Key material.

It plays the part of the real world's certificate authorities, so that "the real issuer" is something the
host's curl can meet and a sandbox cannot. The keys live as long as the process that made them.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ringfence.demo.internet.places import Place

ROOT_NAME = "Demo World Root CA"
ISSUER_ORGANISATION = "Let's Demo"
ISSUER_NAME = "R3"

_LIFETIME = timedelta(days=2)


def _name(common: str, organisation: str = "") -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)] if organisation else []
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """A certificate authority: its certificate, and its key, which no repr shows."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"Issuer({self.certificate.subject.rfc4514_string()})"


class WorldAuthority:
    """Issues certificates for the sites of the demo's internet, under one root."""

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        root_key = ec.generate_private_key(ec.SECP256R1())
        root_name = _name(ROOT_NAME, "Demo World")
        root = Issuer(
            certificate=self._sign(root_name, root_key.public_key(), root_name, root_key, depth=1),
            key=root_key,
        )
        key = ec.generate_private_key(ec.SECP256R1())
        self._issuer = Issuer(
            certificate=self._sign(
                _name(ISSUER_NAME, ISSUER_ORGANISATION), key.public_key(), root_name, root_key, depth=0
            ),
            key=key,
        )
        self.root_pem = root.certificate.public_bytes(serialization.Encoding.PEM)
        """What a host of this world has in its trust store."""

    def _builder(
        self, subject: x509.Name, public: ec.EllipticCurvePublicKey, issuer: x509.Name
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - timedelta(days=1))
            .not_valid_after(self._now + _LIFETIME)
        )

    def _sign(
        self,
        subject: x509.Name,
        public: ec.EllipticCurvePublicKey,
        issuer: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        depth: int,
    ) -> x509.Certificate:
        return (
            self._builder(subject, public, issuer)
            .add_extension(x509.BasicConstraints(ca=True, path_length=depth), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
            )
            .sign(key, hashes.SHA256())
        )

    def _leaf(self, place: Place) -> x509.Certificate:
        public = self._leaf_key.public_key()
        issuer = self._issuer
        return (
            self._builder(_name(place.name), public, issuer.certificate.subject)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(place.name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False
            )
            .sign(issuer.key, hashes.SHA256())
        )

    def context(self, place: Place) -> ssl.SSLContext:
        """Return a server context with a certificate for a place. Its key never touches a disk."""
        pem = serialization.Encoding.PEM
        chain = self._leaf_key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        chain += self._leaf(place).public_bytes(pem) + self._issuer.certificate.public_bytes(pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        descriptor = os.memfd_create("chain", os.MFD_CLOEXEC)
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(chain)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return context
