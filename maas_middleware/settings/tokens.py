"""Tokens as they are configured."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from ..tokens import LifetimePolicy
from .notation import File, Name, Positive, Seconds, WholeSeconds
from .reader import Reader


class TokenSettings(Struct, frozen=True, kw_only=True):
    """The access tokens that are minted, and what revokes them.

    Attributes:
        issuer: `iss`; None stands for the public URL, or else `maas-middleware`.
        audience: `aud`.
        signing_keys_file: a JWK set: the first key signs, all verify. None: a key is made, and kept beside the SQLite
            file, or nowhere. Needed with `postgresql://`, and with `redis://` unless the store is SQLite: replicas have
            to have the same keys.
        default_expiration, minimum_expiration, maximum_expiration: whole seconds; in text `4h`.
        administrators: the groups that may look at and revoke the tokens of others.
        on_store_failure: what is done when the store of revocations is away for longer than the grace: `refuse`
            answers 503, `continue` goes on by what was known.
        revocation_grace: seconds.
    """

    issuer: Name | None = None
    audience: Name = "maas"
    signing_keys_file: File | None = None
    default_expiration: WholeSeconds = 4 * 3600.0
    minimum_expiration: WholeSeconds = 600.0
    maximum_expiration: WholeSeconds = 24 * 3600.0
    administrators: tuple[Name, ...] = ()
    on_store_failure: Literal["refuse", "continue"] = "refuse"
    revocation_grace: Seconds = 30.0


class APIKeySettings(Struct, frozen=True, kw_only=True):
    """Named, long-lived access tokens.

    Attributes:
        default_expiration, maximum_expiration: whole seconds; in text `720h`. The minimum is that of access tokens.
        maximum_count: how many active ones a user may have.
    """

    default_expiration: WholeSeconds = 30 * 86_400.0
    maximum_expiration: WholeSeconds = 90 * 86_400.0
    maximum_count: Positive = 20


def check_lifetimes(reader: Reader, tokens: TokenSettings, api_keys: APIKeySettings) -> None:
    minimum = "tokens.minimum_expiration"
    _check_order(reader, lifetimes(tokens), minimum, "tokens.default_expiration", "tokens.maximum_expiration")
    keys = api_key_lifetimes(tokens, api_keys)
    _check_order(reader, keys, minimum, "api_keys.default_expiration", "api_keys.maximum_expiration")


def _check_order(reader: Reader, policy: LifetimePolicy, *keys: str) -> None:
    minimum, default, maximum = places = [reader.place(key) for key in keys]
    if any(map(reader.has_refused, places)):
        return
    if policy.minimum > policy.maximum:
        reader.refuse(minimum, f"is more than {maximum}")
    elif not policy.minimum <= policy.default <= policy.maximum:
        reader.refuse(default, f"is not between {minimum} and {maximum}")


def check_shared_keys(reader: Reader, counters: str, store: str) -> None:
    """Refuse a key of one process alone where others have the same store or counters."""
    place = reader.place("tokens.signing_keys_file")
    shared = [key for key, url in (("store", store), ("counters", counters)) if url.startswith(("postgres", "redis"))]
    if shared and not reader.has_refused(place):
        reason = f"{reader.place(shared[0])} is shared, and each process would refuse the tokens of the others"
        reader.refuse(place, f"is needed: {reason}")


def lifetimes(tokens: TokenSettings) -> LifetimePolicy:
    """How long access tokens may live."""
    return LifetimePolicy(
        default=int(tokens.default_expiration),
        minimum=int(tokens.minimum_expiration),
        maximum=int(tokens.maximum_expiration),
    )


def api_key_lifetimes(tokens: TokenSettings, api_keys: APIKeySettings) -> LifetimePolicy:
    """How long API keys may live."""
    return LifetimePolicy(
        default=int(api_keys.default_expiration),
        minimum=int(tokens.minimum_expiration),
        maximum=int(api_keys.maximum_expiration),
    )
