"""The signature that a signed module carries behind its ELF image.

Layout from the end of the file: the magic text, a 12-byte information block, the signature itself and, for formats
other than PKCS#7, the signer's name and key id in front of it. Source of the fact: include/linux/module_signature.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pkvm_emu.errors import InputError

MAGIC = b"~Module signature appended~\n"
_INFORMATION = struct.Struct(">BBBBB3xI")

_ID_TYPES = {0: "PGP", 1: "X.509", 2: "PKCS#7"}
_HASHES = {
    bytes.fromhex("608648016503040201"): "sha256",
    bytes.fromhex("608648016503040202"): "sha384",
    bytes.fromhex("608648016503040203"): "sha512",
    bytes.fromhex("608648016503040204"): "sha224",
    bytes.fromhex("608648016503040208"): "sha3-256",
    bytes.fromhex("608648016503040209"): "sha3-384",
    bytes.fromhex("60864801650304020a"): "sha3-512",
    bytes.fromhex("2b0e03021a"): "sha1",
}


@dataclass(frozen=True, slots=True)
class ModuleSignature:
    """What an appended signature says; it is reported, never verified.

    ``length`` counts every byte behind the ELF image, ``hash_name`` is None where the format does not tell.
    """

    id_type: str
    hash_name: str | None
    signer: bytes
    key_id: bytes
    signature: bytes
    length: int


def split_signature(data: bytes, name: str) -> tuple[bytes, ModuleSignature | None]:
    """Split a module file into its ELF image and its signature.

    Args:
        data: the whole file.
        name: what error messages call it.

    Returns:
        (image, signature); the signature is None for an unsigned module.

    Raises:
        InputError: the signature block does not fit into the file.
    """
    if not data.endswith(MAGIC):
        return data, None
    end = len(data) - len(MAGIC) - _INFORMATION.size
    if end < 0:
        raise InputError(f"{name}: truncated: the module signature has no information block")
    _, _, id_type, signer_length, key_length, length = _INFORMATION.unpack_from(data, end)
    start = end - length - signer_length - key_length
    if start < 0:
        raise InputError(f"{name}: the module signature of {length} bytes is longer than the file")
    signer = data[start : start + signer_length]
    key_id = data[start + signer_length : end - length]
    body = data[end - length : end]
    signature = ModuleSignature(
        _ID_TYPES.get(id_type, f"type {id_type}"), _hash_name(body), signer, key_id, body, len(data) - start
    )
    return data[:start], signature


def _hash_name(body: bytes) -> str | None:
    """Return the first digest algorithm named in a DER structure: tag 6, length, object identifier."""
    places = [(body.find(bytes((6, len(oid))) + oid), name) for oid, name in _HASHES.items()]
    found = sorted((position, name) for position, name in places if position >= 0)
    return found[0][1] if found else None
