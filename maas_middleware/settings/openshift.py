"""The cluster as it is configured."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from .loading import existing
from .notation import CAFile, File, Name, Seconds, Url

_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


class OpenShiftSettings(Struct, frozen=True, kw_only=True):
    """The Kubernetes API that vouches for logins. In a cluster all of it may be left out.

    Attributes:
        api_url: where a pod finds the API, unless configured.
        ca_file: the CA of the API; None is the system's trust store. Default: the pod's, where there is one.
        token_file: the service's own credential. Default: the pod's, where there is one.
        audiences: what tokens that are JWTs have to be made for.
        timeout: seconds that an answer may take.
        review: how logins are checked: by `tokenreview`, for which the service needs the right to review tokens, or
            `users-self`, by asking with the login itself who it is; then nobody can see whether its scopes are narrow.
        allow_service_accounts: whether ServiceAccounts may mint tokens: each of them is a quota of its own.
    """

    api_url: Url = "https://kubernetes.default.svc"
    ca_file: CAFile | None = field(default_factory=lambda: existing(f"{_SERVICE_ACCOUNT}/ca.crt"))
    token_file: File | None = field(default_factory=lambda: existing(f"{_SERVICE_ACCOUNT}/token"))
    audiences: tuple[Name, ...] = ()
    timeout: Seconds = 3.0
    review: Literal["tokenreview", "users-self"] = "tokenreview"
    allow_service_accounts: bool = False
