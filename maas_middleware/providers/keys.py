"""The keys that sign access tokens."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from jwt.algorithms import ECAlgorithm

from . import _private_files

ALGORITHM = "ES256"


class SigningKeys:
    """A ring of ES256 keys: the first signs, all verify.

    Args:
        keys: private keys by their `kid`.
    """

    def __init__(self, keys: Sequence[tuple[str, EllipticCurvePrivateKey]]) -> None:
        self.key_id, self.key = keys[0]
        self._private = dict(keys)
        self._public = {key_id: key.public_key() for key_id, key in keys}

    @classmethod
    def generate(cls) -> SigningKeys:
        """One fresh key, for a single process that keeps nothing."""
        key = generate_private_key(SECP256R1())
        public = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        thumbprint = json.dumps({name: public[name] for name in ("crv", "kty", "x", "y")}, separators=(",", ":"))
        digest = hashlib.sha256(thumbprint.encode()).digest()  # RFC 7638
        return cls([(base64.urlsafe_b64encode(digest).rstrip(b"=").decode(), key)])

    @classmethod
    def load(cls, path: Path) -> SigningKeys:
        """Read a JWK set of private P-256 keys, each with a `kid` of its own.

        Raises:
            ValueError: it is not such a set, or others than the owner may read the file.
            OSError: it cannot be read.
        """
        return cls.from_jwks(read_private(path))

    @classmethod
    def load_or_make(cls, path: Path) -> SigningKeys:
        """Read a file as `load` does; where there is none, make one with a fresh key.

        Of several processes that start at once, all get the key of the one that was first.

        Raises:
            ValueError: the file is refused, as by `load`.
            OSError: it can be neither read nor made.
        """
        with suppress(FileExistsError):
            if not path.exists():
                cls.generate().save(path)
        return cls.load(path)

    @classmethod
    def from_jwks(cls, text: str | bytes) -> SigningKeys:
        """The keys of a JWK set (RFC 7517), as JSON.

        Raises:
            ValueError: it is not one of private P-256 keys, each with a `kid` of its own.
        """
        try:
            entries = [(entry["kid"], ECAlgorithm.from_jwk(entry)) for entry in json.loads(text)["keys"]]
        except (ValueError, KeyError, TypeError, RecursionError, jwt.InvalidKeyError):
            entries = []
        keys = [(key_id, key) for key_id, key in entries if _is_key_id(key_id) and _is_private(key)]
        if not keys or len(dict(keys)) != len(entries):
            raise ValueError("is not a JWK set of private P-256 keys with a kid each")
        return cls(keys)

    def public(self, key_id: str) -> Any | None:
        """The key that verifies what `key_id` signed, None where there is none."""
        return self._public.get(key_id)

    def jwks(self) -> dict[str, Any]:
        """The public keys as a JWK set (RFC 7517)."""
        return _jwks(self._public)

    def private_jwks(self) -> dict[str, Any]:
        """The private keys as a JWK set: a secret."""
        return _jwks(self._private)

    def save(self, path: Path) -> None:
        """Write the private keys to a new file that only its owner may read, for `load`. It is there whole or not.

        Raises:
            OSError: there is such a file already, or it cannot be written.
        """
        _private_files.create(path, json.dumps(self.private_jwks(), indent=2))


def read_private(path: Path) -> bytes:
    """Read a file that nobody but its owner may open. The target of a symbolic link is what counts.

    Raises:
        ValueError: others may.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise ValueError("may be read by others than its owner: its mode must be 0600")
        return file.read()


def _jwks(keys: Mapping[str, EllipticCurvePrivateKey | EllipticCurvePublicKey]) -> dict[str, Any]:
    return {
        "keys": [
            {**ECAlgorithm.to_jwk(key, as_dict=True), "kid": key_id, "use": "sig", "alg": ALGORITHM}
            for key_id, key in keys.items()
        ]
    }


def _is_key_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value != ""


def _is_private(key: object) -> TypeGuard[EllipticCurvePrivateKey]:
    return isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1)
