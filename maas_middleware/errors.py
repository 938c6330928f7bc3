"""Everything that can be refused or go wrong, in one table.

MaaSError
├── InvalidRequest  RequestTooLarge  RequestTimeout  MethodNotAllowed  NotFound  ModelNotFound
├── InvalidCredentials  AccessDenied  NoTier  RateLimitExceeded
├── AuthUnavailable  StoreUnavailable  NotConfigured
├── UpstreamError  UpstreamUnavailable  UpstreamTimeout  UpstreamRefusal
└── InternalError
"""

from __future__ import annotations

from typing import Any, Literal

Headers = tuple[tuple[bytes, bytes], ...]

Reason = Literal["missing", "malformed", "expired", "revoked", "unknown"]


class MaaSError(Exception):
    """A refusal or a failure, as the API's user will read it.

    Args:
        message: a sentence without tokens, stacks or upstream addresses; default: the table's.
        code: a more exact code than the table's.
        status: a more exact HTTP status than the table's.
        kind: a more exact `type` than the table's.
        param: the parameter of the request that is at fault.
        details: what a person needs beyond the message, as JSON data.
        headers: HTTP headers that go with the answer; a 503 without any says `retry-after: 2`.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        status: int | None = None,
        kind: str | None = None,
        param: str | None = None,
        details: dict[str, Any] | None = None,
        headers: Headers = (),
    ) -> None:
        row = next(ERRORS[known] for known in type(self).__mro__ if known in ERRORS)
        self.status = row[0] if status is None else status
        self.type = row[1] if kind is None else kind
        self.code = row[2] if code is None else code
        self.message = row[3] if message is None else message
        self.param = param
        self.details = details
        self.headers = headers if headers or self.status != 503 else ((b"retry-after", b"2"),)
        super().__init__(self.message)


class InvalidRequest(MaaSError):
    """The request cannot be read, or asks for what cannot be."""


class RequestTooLarge(MaaSError):
    """The body is over its limit."""


class RequestTimeout(MaaSError):
    """The body did not come in time."""


class MethodNotAllowed(MaaSError):
    """The path exists, the method does not."""

    def __init__(self, *allowed: str) -> None:
        super().__init__(headers=((b"allow", ", ".join(sorted(allowed)).encode()),))


class NotFound(MaaSError):
    """No such path or thing, or not the caller's."""


class ModelNotFound(MaaSError):
    """No such model."""

    def __init__(self, model: str | None = None) -> None:
        # a name of another length is no model's, and is not worth repeating
        named = model is not None and len(model) <= 128 and model.isprintable()
        super().__init__(f"The model `{model}` does not exist" if named else None, param="model")


class InvalidCredentials(MaaSError):
    """No credential, or one that is not accepted."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(details={"reason": reason}, headers=((b"www-authenticate", b"Bearer"),))


class AccessDenied(MaaSError):
    """The caller is known, and may not."""


class NoTier(MaaSError):
    """The caller is in no tier."""


class RateLimitExceeded(MaaSError):
    """A limit of the caller's tier is used up, or a throttle's."""


class AuthUnavailable(MaaSError):
    """The identity provider gives no answer."""


class StoreUnavailable(MaaSError):
    """The store of counters or of tokens gives no answer."""


class NotConfigured(MaaSError):
    """The service was started with a configuration that it refused."""


class UpstreamError(MaaSError):
    """The model answered garbage, or broke off."""


class UpstreamUnavailable(MaaSError):
    """The model cannot be reached."""


class UpstreamTimeout(MaaSError):
    """The model took too long."""


class UpstreamRefusal(MaaSError):
    """The model or the inner app refused the request for a reason of its own."""


class InternalError(MaaSError):
    """A fault of ours."""


ERRORS: dict[type[MaaSError], tuple[int, str, str, str]] = {
    MaaSError: (500, "server_error", "internal_error", "Internal error"),
    InvalidRequest: (400, "invalid_request_error", "invalid_request", "Invalid request"),
    UpstreamRefusal: (400, "invalid_request_error", "invalid_request", "The model refused the request"),
    InvalidCredentials: (401, "invalid_request_error", "invalid_api_key", "Invalid authentication token"),
    AccessDenied: (403, "permission_error", "access_denied", "Insufficient permissions for this model"),
    NoTier: (403, "permission_error", "no_tier", "You are in no group that gives access to a tier"),
    NotFound: (404, "invalid_request_error", "not_found", "Not found"),
    ModelNotFound: (404, "invalid_request_error", "model_not_found", "The model does not exist"),
    MethodNotAllowed: (405, "invalid_request_error", "method_not_allowed", "Method not allowed"),
    RequestTimeout: (408, "timeout_error", "request_timeout", "The request body took too long to arrive"),
    RequestTooLarge: (413, "invalid_request_error", "request_too_large", "The request body is too large"),
    RateLimitExceeded: (429, "rate_limit_error", "rate_limit_exceeded", "Rate limit exceeded"),
    InternalError: (500, "server_error", "internal_error", "Internal error"),
    UpstreamError: (502, "server_error", "upstream_error", "The model failed to answer"),
    UpstreamUnavailable: (503, "server_error", "upstream_unavailable", "The model is not available at the moment"),
    StoreUnavailable: (503, "server_error", "store_unavailable", "The service cannot reach its store at the moment"),
    AuthUnavailable: (503, "server_error", "auth_unavailable", "The identity provider does not answer at the moment"),
    NotConfigured: (503, "server_error", "not_configured", "The service is not configured"),
    UpstreamTimeout: (504, "server_error", "upstream_timeout", "The model took too long to answer"),
}
