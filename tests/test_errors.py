from __future__ import annotations

import pytest

from maas_middleware import errors
from maas_middleware.errors import (
    ERRORS,
    AccessDenied,
    AuthUnavailable,
    InternalError,
    InvalidCredentials,
    InvalidRequest,
    MaaSError,
    MethodNotAllowed,
    ModelNotFound,
    NotConfigured,
    NotFound,
    NoTier,
    RateLimitExceeded,
    Reason,
    RequestTimeout,
    RequestTooLarge,
    StoreUnavailable,
    UpstreamError,
    UpstreamRefusal,
    UpstreamTimeout,
    UpstreamUnavailable,
)


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        pytest.param(InvalidRequest(), 400, "invalid_request_error", "invalid_request", id="400"),
        pytest.param(UpstreamRefusal(), 400, "invalid_request_error", "invalid_request", id="400-upstream"),
        pytest.param(InvalidCredentials("missing"), 401, "invalid_request_error", "invalid_api_key", id="401"),
        pytest.param(AccessDenied(), 403, "permission_error", "access_denied", id="403"),
        pytest.param(NoTier(), 403, "permission_error", "no_tier", id="403-no-tier"),
        pytest.param(NotFound(), 404, "invalid_request_error", "not_found", id="404"),
        pytest.param(ModelNotFound(), 404, "invalid_request_error", "model_not_found", id="404-model"),
        pytest.param(MethodNotAllowed("GET"), 405, "invalid_request_error", "method_not_allowed", id="405"),
        pytest.param(RequestTimeout(), 408, "timeout_error", "request_timeout", id="408"),
        pytest.param(RequestTooLarge(), 413, "invalid_request_error", "request_too_large", id="413"),
        pytest.param(RateLimitExceeded(), 429, "rate_limit_error", "rate_limit_exceeded", id="429"),
        pytest.param(InternalError(), 500, "server_error", "internal_error", id="500"),
        pytest.param(MaaSError(), 500, "server_error", "internal_error", id="500-anything-else"),
        pytest.param(UpstreamError(), 502, "server_error", "upstream_error", id="502"),
        pytest.param(UpstreamUnavailable(), 503, "server_error", "upstream_unavailable", id="503-upstream"),
        pytest.param(StoreUnavailable(), 503, "server_error", "store_unavailable", id="503-store"),
        pytest.param(AuthUnavailable(), 503, "server_error", "auth_unavailable", id="503-auth"),
        pytest.param(NotConfigured(), 503, "server_error", "not_configured", id="503-configuration"),
        pytest.param(UpstreamTimeout(), 504, "server_error", "upstream_timeout", id="504"),
    ],
)
def test_every_error_has_the_status_type_and_code_of_the_contract(
    error: MaaSError, status: int, kind: str, code: str
) -> None:
    assert (error.status, error.type, error.code) == (status, kind, code)
    assert error.message
    assert str(error) == error.message


def test_the_table_knows_every_error() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MaaSError)}

    assert kinds == set(ERRORS)


def test_an_error_of_somebody_elses_has_the_row_of_what_it_derives_from() -> None:
    class WrongHour(AccessDenied):
        """Not at night."""

    error = WrongHour("Come back in the morning")

    assert (error.status, error.type, error.code) == (403, "permission_error", "access_denied")
    assert error.message == "Come back in the morning"


def test_what_is_said_replaces_what_the_table_says() -> None:
    error = InvalidRequest(
        "Too hot", code="too_hot", status=422, kind="weather_error", param="temperature", details={"maximum": 2}
    )

    assert (error.status, error.type, error.code, error.message) == (422, "weather_error", "too_hot", "Too hot")
    assert (error.param, error.details, error.headers) == ("temperature", {"maximum": 2}, ())


@pytest.mark.parametrize("reason", ["missing", "malformed", "expired", "revoked", "unknown"])
def test_refused_credential_says_why_and_how_to_authenticate(reason: Reason) -> None:
    error = InvalidCredentials(reason)

    assert error.details == {"reason": reason}
    assert error.headers == ((b"www-authenticate", b"Bearer"),)


def test_refused_method_names_those_that_are_allowed() -> None:
    assert MethodNotAllowed("POST", "DELETE").headers == ((b"allow", b"DELETE, POST"),)


@pytest.mark.parametrize("kind", [UpstreamUnavailable, StoreUnavailable, AuthUnavailable, NotConfigured])
def test_every_503_says_when_to_come_back(kind: type[MaaSError]) -> None:
    assert kind().headers == ((b"retry-after", b"2"),)
    assert kind(headers=((b"retry-after", b"30"),)).headers == ((b"retry-after", b"30"),)


def test_status_of_503_given_to_another_error_says_when_to_come_back_too() -> None:
    assert UpstreamError(status=503).headers == ((b"retry-after", b"2"),)
    assert UpstreamError().headers == ()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param("llama", "The model `llama` does not exist", id="named"),
        pytest.param("m" * 128, f"The model `{'m' * 128}` does not exist", id="longest"),
        pytest.param("m" * 129, "The model does not exist", id="too-long"),
        pytest.param("a\nb", "The model does not exist", id="with-a-line-break"),
        pytest.param("\ud800", "The model does not exist", id="half-a-character"),
        pytest.param(None, "The model does not exist", id="unnamed"),
    ],
)
def test_unknown_model_is_named_where_the_name_could_be_one(model: str | None, message: str) -> None:
    error = ModelNotFound(model)

    assert error.message == message
    assert error.param == "model"
