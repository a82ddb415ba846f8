"""The certificate authority of one installation, and the server contexts made from it on demand.

A leaf is a template of DER around the host's name: every part that does not change from host to host is
encoded once, so minting is one concatenation and one ECDSA signature (21 µs, against 45 µs with a certificate
builder). All leaves share one P-256 key, made at start and written nowhere; OpenSSL reads key and leaf from
an anonymous file in memory, since that is the only door that :mod:`ssl` offers (RFC 5280 for the encoding;
what `X509_V_FLAG_X509_STRICT` asks for is there: SKI and critical basic constraints in the CA, AKI in the
leaf).

One context per host. A context makes its own ticket keys, so a session ticket of one host is noise to every
other and a resumed session can never skip the choice of the host's certificate. OpenSSL also keeps sessions
of TLS 1.2 clients without tickets, 20,480 of them in every context, and Python cannot switch that off; a
context that has gathered a few is made anew, so a client cannot fill our memory by shaking hands.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import secrets
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

# The worker gives up its privileges, and with them perhaps the files of its Python, before the first key
# arrives; what cryptography would load on first use is loaded here.
import cryptography.hazmat.bindings.openssl.binding  # noqa: F401
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ringfence.gateway.backends import OPENSSL, Backend, Context

ORGANISATION = "Ringfence untrusted MITM proxy"
"""The proxy names itself in every leaf: nobody who looks can mistake it for the origin."""

_DAY = 86_400.0
_BACKDATED = 1 * _DAY
"""Guests' clocks are wrong more often than not."""
_VALID = 29 * _DAY
_RENEWED = 3 * _DAY
"""A cached leaf is replaced when it has less than this to live."""
_AUTHORITY_DAYS = 3_652
_SESSIONS = 16
"""Sessions OpenSSL may hold for one context before the context is made anew."""
_COMMON_NAME_LIMIT = 64
"""RFC 5280 appendix A.1, ub-common-name. The name that counts is in the subject alternative name, whole."""


def create_authority(*, now: float) -> tuple[bytes, bytes]:
    """Make a certificate authority; return its key (PEM, PKCS #8) and its certificate (PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Ringfence"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Ringfence local CA {secrets.token_hex(4)}"),
        ]
    )
    begin = datetime.datetime.fromtimestamp(int(now - _BACKDATED), datetime.UTC)
    key_identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=_AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .add_extension(key_identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_identifier), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return (
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        certificate.public_bytes(serialization.Encoding.PEM),
    )


_CA_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class Authority:
    """Server contexts by host. Not for use by several threads."""

    def __init__(
        self,
        key_pem: bytes,
        certificate_pem: bytes,
        *,
        now: Callable[[], float] = time.time,
        capacity: int = 4_096,
        backend: Backend = OPENSSL,
    ) -> None:
        """Raises ``ValueError`` if the two are not an authority's key and certificate."""
        self._now = now
        self._capacity = capacity
        self._backend = backend
        self._contexts: OrderedDict[str, _Entry] = OrderedDict()
        self._mint = Mint(key_pem, certificate_pem)
        self.certificate_pem = certificate_pem

    def __len__(self) -> int:
        return len(self._contexts)

    def context(self, host: str) -> Context:
        """Return the context of a canonical host name or address, with a leaf for it and nobody else.

        To be called once a decision about the host exists, never for a name that was merely mentioned. Raises
        ``ValueError`` for what no certificate can name.
        """
        now = self._now()
        entry = self._contexts.get(host)
        if entry is not None and entry.serves(now):
            self._contexts.move_to_end(host)
            return entry.context
        begin, end = now - _BACKDATED, min(now + _VALID, self._mint.end)
        if end - _RENEWED <= now:
            raise ValueError("the certificate authority is about to expire")
        context = self._backend.server_context(self._mint.leaf(host, begin, end), self._mint.leaf_key_pem)
        self._contexts[host] = _Entry(context=context, begin=begin, end=end - _RENEWED)
        self._contexts.move_to_end(host)
        if len(self._contexts) > self._capacity:
            self._contexts.popitem(last=False)
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    context: Context
    begin: float
    end: float

    def serves(self, now: float) -> bool:
        context = self.context
        if isinstance(context, ssl.SSLContext) and context.session_stats()["number"] >= _SESSIONS:
            return False
        return self.begin <= now < self.end


class Mint:
    """The template, and the two keys."""

    def __init__(self, key_pem: bytes, certificate_pem: bytes) -> None:
        key = serialization.load_pem_private_key(key_pem, None)
        authority = x509.load_pem_x509_certificate(certificate_pem)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != authority.public_key():
            raise ValueError("the key is not the key of the certificate authority")
        try:
            key_identifier = authority.extensions.get_extension_for_class(
                x509.SubjectKeyIdentifier
            ).value.digest
            issues = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.ExtensionNotFound:
            issues = False
        if not issues:
            raise ValueError("the certificate is not a certificate authority's")
        leaf_key = ec.generate_private_key(ec.SECP256R1())
        public = leaf_key.public_key()
        self.leaf_key_pem = leaf_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.end = authority.not_valid_after_utc.timestamp()
        self._key = key
        self._sign_with = ec.ECDSA(hashes.SHA256())
        self._issuer = authority.subject.public_bytes()
        self._organisation = _relative_name("060355040a", ORGANISATION)
        self._public = public.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        own_identifier = x509.SubjectKeyIdentifier.from_public_key(public).digest
        self._extensions = b"".join(
            (
                _extension("0603551d13", bytes.fromhex("3000"), critical=True),  # basic constraints: no CA
                _extension(
                    "0603551d0f", bytes.fromhex("03020780"), critical=True
                ),  # key usage: digital signature
                _extension("0603551d25", bytes.fromhex("300a06082b06010505070301")),  # TLS server
                _extension("0603551d0e", _tlv(0x04, own_identifier)),  # subject key identifier
                _extension("0603551d23", _tlv(0x30, _tlv(0x80, key_identifier))),  # authority key identifier
            )
        )

    def leaf(self, host: str, begin: float, end: float) -> bytes:
        """Sign a certificate for one host and return it as PEM."""
        subject = _tlv(0x30, self._organisation, _relative_name("0603550403", host[:_COMMON_NAME_LIMIT]))
        names = _extension("0603551d11", _tlv(0x30, _general_name(host)))
        certified = _tlv(
            0x30,
            b"\xa0\x03\x02\x01\x02",  # version 3
            _tlv(0x02, b"\x01", secrets.token_bytes(15)),
            _ECDSA_SHA256,
            self._issuer,
            _tlv(0x30, _instant(begin), _instant(end)),
            subject,
            self._public,
            _tlv(0xA3, _tlv(0x30, names, self._extensions)),
        )
        signature = self._key.sign(certified, self._sign_with)
        der = _tlv(0x30, certified, _ECDSA_SHA256, _tlv(0x03, b"\0", signature))
        return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def _tlv(tag: int, *parts: bytes) -> bytes:
    """Tag, length, value (X.690 section 8.1.3); no value here reaches 64 KiB."""
    value = b"".join(parts)
    size = len(value)
    if size < 0x80:
        return bytes((tag, size)) + value
    if size < 0x100:
        return bytes((tag, 0x81, size)) + value
    return bytes((tag, 0x82, size >> 8, size & 0xFF)) + value


def _extension(identifier: str, value: bytes, *, critical: bool = False) -> bytes:
    return _tlv(0x30, bytes.fromhex(identifier), b"\x01\x01\xff" if critical else b"", _tlv(0x04, value))


def _relative_name(identifier: str, text: str) -> bytes:
    return _tlv(0x31, _tlv(0x30, bytes.fromhex(identifier), _tlv(0x0C, text.encode())))


def _general_name(host: str) -> bytes:
    """A ``dNSName`` or an ``iPAddress`` (RFC 5280 section 4.2.1.6)."""
    try:
        return _tlv(0x87, ipaddress.ip_address(host).packed)
    except ValueError:
        if not 0 < len(host) <= 253 or not host.isascii() or not host.isprintable() or " " in host:
            raise ValueError(f"no certificate can name `{host[:64]}`") from None
        return _tlv(0x82, host.encode())


def _instant(seconds: float) -> bytes:
    """UTCTime until 2049, GeneralizedTime after (RFC 5280 section 4.1.2.5)."""
    moment = time.gmtime(seconds)
    if moment.tm_year < 2050:
        return _tlv(0x17, time.strftime("%y%m%d%H%M%SZ", moment).encode())
    return _tlv(0x18, time.strftime("%Y%m%d%H%M%SZ", moment).encode())


_ECDSA_SHA256 = _tlv(0x30, bytes.fromhex("06082a8648ce3d040302"))
