"""Tokens that look like ours, and are not what we sign."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives import serialization
from jwt.algorithms import ECAlgorithm

from maas_middleware.providers.keys import SigningKeys

from .attack import Target

Forgery = Callable[[Target], str]
_LEFT_OUT = object()


def encoded(value: bytes | dict[str, Any]) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decoded(part: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return value


def saying(headers: dict[str, Any] | None = None, **claims: Any) -> Forgery:
    """A token that our own key signed, with other headers and claims; times are relative to now."""

    def forge(target: Target) -> str:
        return signed(target, target.keys, headers or {}, claims)

    return forge


def without(name: str) -> Forgery:
    """A token that our own key signed, without a header or claim."""
    return saying({name: _LEFT_OUT}) if name in ("kid", "typ", "alg") else saying(None, **{name: _LEFT_OUT})


def from_now(seconds: float) -> Callable[[], int]:
    return lambda: int(time.time() + seconds)


def signed(target: Target, keys: SigningKeys, headers: dict[str, Any], claims: dict[str, Any]) -> str:
    head, payload, _ = map(decoded_or_none, target.access().split("."))
    signing_input = f"{encoded(_changed(head, headers))}.{encoded(_changed(payload, claims))}"
    algorithm = ECAlgorithm(ECAlgorithm.SHA256)
    return f"{signing_input}.{encoded(algorithm.sign(signing_input.encode(), keys.key))}"


def decoded_or_none(part: str) -> dict[str, Any]:
    try:
        return decoded(part)
    except ValueError:  # a signature
        return {}


def _changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    changes = {name: change() if callable(change) else change for name, change in changes.items()}
    return {name: value for name, value in (values | changes).items() if value is not _LEFT_OUT}


def of_somebody_elses_key(target: Target) -> str:
    return signed(target, SigningKeys.generate(), {}, {})


def with_an_embedded_key(target: Target) -> str:
    keys = SigningKeys.generate()
    return signed(target, keys, {"jwk": keys.jwks()["keys"][0]}, {})


def tampered(part: int) -> Forgery:
    """One letter of a part is another; of the payload it is one of the name."""

    def forge(target: Target) -> str:
        parts = target.access("x" * 30).split(".")
        if part == 1:
            parts[1] = encoded(decoded(parts[1]) | {"sub": "x" * 29 + "y"})
        else:
            parts[part] = parts[part][:20] + ("A" if parts[part][20] != "A" else "B") + parts[part][21:]
        return ".".join(parts)

    return forge


def joined(*parts: int | str) -> Forgery:
    """The parts of a good token, by their numbers, and others between them."""

    def forge(target: Target) -> str:
        good = target.access().split(".")
        return ".".join(part if isinstance(part, str) else good[part] for part in parts)

    return forge


def of_no_algorithm(target: Target) -> str:
    head, payload, _ = target.access().split(".")
    return f"{encoded(decoded(head) | {'alg': 'none'})}.{payload}."


def of_no_algorithm_and_somebodys_signature(target: Target) -> str:
    head, payload, signature = target.access().split(".")
    return f"{encoded(decoded(head) | {'alg': 'nOnE'})}.{payload}.{signature}"


def hs256(secret: Callable[[Target], bytes]) -> Forgery:
    """Signed with what anybody can read, for a service that lets the token choose the algorithm."""

    def forge(target: Target) -> str:
        head, payload, _ = target.access().split(".")
        signing_input = f"{encoded(decoded(head) | {'alg': 'HS256'})}.{payload}"
        return f"{signing_input}.{encoded(hmac.digest(secret(target), signing_input.encode(), 'sha256'))}"

    return forge


def pem(target: Target) -> bytes:
    return _public(target, serialization.Encoding.PEM)


def der(target: Target) -> bytes:
    return _public(target, serialization.Encoding.DER)


def jwk(target: Target) -> bytes:
    return json.dumps(target.keys.jwks()["keys"][0]).encode()


def _public(target: Target, encoding: serialization.Encoding) -> bytes:
    return target.keys.key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
