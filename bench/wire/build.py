"""Builds the load generator and the origin, and makes the benchmark's certificates."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HERE = Path(__file__).parent
NAMES = ("*.bench.test", "*.bypass.test", "*.denied.test")


def build(into: Path) -> None:
    """Compile ``load`` and ``origin``; needs a C compiler and OpenSSL's headers."""
    for name in ("load", "origin"):
        subprocess.run(
            ["cc", "-O2", "-Wall", "-o", str(into / name), str(HERE / f"{name}.c"), "-lssl", "-lcrypto"],
            check=True,
        )


def certificates(into: Path) -> None:
    """Write ``root.pem``, ``chain.pem`` and ``key.pem``: an origin that every candidate verifies."""
    now = datetime.datetime(2026, 1, 1)
    later = now + datetime.timedelta(days=3650)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Benchmark Root")])
    common = x509.CertificateBuilder().not_valid_before(now).not_valid_after(later).issuer_name(root_name)
    ski = x509.SubjectKeyIdentifier.from_public_key(root_key.public_key())
    root = (
        common.subject_name(root_name)
        .public_key(root_key.public_key())
        .serial_number(1)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True
        )
        .add_extension(ski, critical=False)
        .sign(root_key, hashes.SHA256())
    )
    leaf = (
        common.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "origin")]))
        .public_key(key.public_key())
        .serial_number(2)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in NAMES]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (into / "root.pem").write_bytes(root.public_bytes(pem))
    (into / "chain.pem").write_bytes(leaf.public_bytes(pem))
    (into / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    own = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Peer CA")])
    ca = (
        x509.CertificateBuilder()
        .not_valid_before(now)
        .not_valid_after(later)
        .issuer_name(name)
        .subject_name(name)
        .public_key(own.public_key())
        .serial_number(3)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, True, True, False, False), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .sign(own, hashes.SHA256())
    )
    secret = own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (into / "peer-ca.pem").write_bytes(ca.public_bytes(pem))
    (into / "peer-ca-both.pem").write_bytes(secret + ca.public_bytes(pem))
