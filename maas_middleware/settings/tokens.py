"""Tokens as they are configured."""

from __future__ import annotations

from msgspec import Struct

from ..tokens import LifetimePolicy
from .notation import File, Name, WholeSeconds
from .reader import Reader


class TokenSettings(Struct, frozen=True, kw_only=True):
    """The access tokens that are minted.

    Attributes:
        issuer: `iss`; None stands for the public URL, or else `maas-middleware`.
        audience: `aud`.
        signing_keys_file: a JWK set: the first key signs, all verify. None: a key is made.
        default_expiration, minimum_expiration, maximum_expiration: whole seconds; in text `4h`.
    """

    issuer: Name | None = None
    audience: Name = "maas"
    signing_keys_file: File | None = None
    default_expiration: WholeSeconds = 4 * 3600.0
    minimum_expiration: WholeSeconds = 600.0
    maximum_expiration: WholeSeconds = 24 * 3600.0


def check_lifetimes(reader: Reader, tokens: TokenSettings) -> None:
    minimum, default, maximum = places = [
        reader.place(f"tokens.{which}_expiration") for which in ("minimum", "default", "maximum")
    ]
    if any(map(reader.has_refused, places)):
        return
    if tokens.minimum_expiration > tokens.maximum_expiration:
        reader.refuse(minimum, f"is more than {maximum}")
    elif not tokens.minimum_expiration <= tokens.default_expiration <= tokens.maximum_expiration:
        reader.refuse(default, f"is not between {minimum} and {maximum}")


def lifetimes(tokens: TokenSettings) -> LifetimePolicy:
    """How long minted tokens may live."""
    return LifetimePolicy(
        default=int(tokens.default_expiration),
        minimum=int(tokens.minimum_expiration),
        maximum=int(tokens.maximum_expiration),
    )
