"""The cipher behind :mod:`ringfence.gateway.core.quic`: AES as ``cryptography`` has it."""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from ringfence.gateway.core.quic import Ciphers


class _Aes:
    def mask(self, key: bytes, sample: bytes) -> bytes:
        return Cipher(AES(key), ECB()).encryptor().update(sample)  # noqa: S305  # one block, as RFC 9001 has it

    def open(self, key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes | None:
        try:
            return AESGCM(key).decrypt(nonce, sealed, associated)
        except InvalidTag:
            return None


CIPHERS: Final[Ciphers] = _Aes()
