"""What is slowed down beside inference, as it is configured."""

from __future__ import annotations

from msgspec import Struct

from .notation import LimitText


class ThrottleSettings(Struct, frozen=True, kw_only=True):
    """Limits that protect the service itself, each `unlimited` or in the notation of a tier's limits.

    Attributes:
        mints: access tokens and API keys that a user may mint.
        failed_credentials: wrong credentials from one address; then they are answered with 429, and no further login
            from there is reviewed. What was accepted before passes all the same.
        control_requests: requests of a user to everything but inference, logins and access tokens counted apart.
    """

    mints: LimitText = "30/minute;300/day"
    failed_credentials: LimitText = "60/minute"
    control_requests: LimitText = "600/minute"
