from __future__ import annotations

import gzip
import json
from typing import Any

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
    RequestTooLarge,
    StoreUnavailable,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
    envelope,
    inner_error,
)


def answer(error: MaaSError, request_id: str | None = None) -> dict[str, Any]:
    body = json.loads(envelope(error, request_id))
    assert list(body) == ["error"]
    fields = body["error"]
    assert isinstance(fields, dict)
    return fields


# the table


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        pytest.param(InvalidRequest(), 400, "invalid_request_error", "invalid_request", id="400"),
        pytest.param(InvalidCredentials("missing"), 401, "invalid_request_error", "invalid_api_key", id="401"),
        pytest.param(AccessDenied(), 403, "permission_error", "access_denied", id="403"),
        pytest.param(NoTier(), 403, "permission_error", "no_tier", id="403-no-tier"),
        pytest.param(NotFound(), 404, "invalid_request_error", "not_found", id="404"),
        pytest.param(ModelNotFound(), 404, "invalid_request_error", "model_not_found", id="404-model"),
        pytest.param(MethodNotAllowed("GET"), 405, "invalid_request_error", "method_not_allowed", id="405"),
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


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        pytest.param(
            InvalidCredentials("expired"),
            {
                "message": "Invalid authentication token",
                "type": "invalid_request_error",
                "param": None,
                "code": "invalid_api_key",
                "details": {"reason": "expired"},
            },
            id="401",
        ),
        pytest.param(
            AccessDenied(),
            {
                "message": "Insufficient permissions for this model",
                "type": "permission_error",
                "param": None,
                "code": "access_denied",
            },
            id="403",
        ),
        pytest.param(
            RateLimitExceeded(details={"limit": "requests", "quota": 5}),
            {
                "message": "Rate limit exceeded",
                "type": "rate_limit_error",
                "param": None,
                "code": "rate_limit_exceeded",
                "details": {"limit": "requests", "quota": 5},
            },
            id="429",
        ),
    ],
)
def test_the_three_answers_of_the_guide_are_kept_byte_for_byte(error: MaaSError, fields: dict[str, Any]) -> None:
    assert envelope(error, "req-1") == json.dumps({"error": fields}, separators=(",", ":")).encode()


@pytest.mark.parametrize("reason", ["missing", "malformed", "expired", "revoked", "unknown"])
def test_refused_credential_says_why_and_how_to_authenticate(reason: Reason) -> None:
    error = InvalidCredentials(reason)

    assert answer(error)["details"] == {"reason": reason}
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

    assert answer(error)["message"] == message
    assert error.param == "model"


# the envelope


def test_envelope_has_every_field_and_details_only_where_there_are_some() -> None:
    error = InvalidRequest("Too hot", code="invalid_value", param="temperature")

    assert answer(error, "req-1") == {
        "message": "Too hot",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": "invalid_value",
    }
    assert answer(InvalidRequest(details={}))["details"] == {}


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599])
def test_message_of_a_server_error_names_the_request(status: int) -> None:
    error = MaaSError("Something broke", status=status)

    assert answer(error, "req-1")["message"] == "Something broke (request req-1)"
    assert answer(error, None)["message"] == "Something broke"


def test_message_of_a_refusal_does_not_name_the_request() -> None:
    assert answer(NotFound(), "req-1")["message"] == "Not found"


# errors of upstreams and inner apps


def vllm(status: int, message: str, kind: str, param: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        pytest.param(
            400,
            vllm(400, "max_tokens must be at least 1", "BadRequestError", "max_tokens"),
            ("invalid_request_error", "invalid_request", "max_tokens must be at least 1", "max_tokens"),
            id="vllm",
        ),
        pytest.param(
            400,
            b'{"object":"error","message":"Too long","type":"BadRequestError","param":"messages","code":400}',
            ("invalid_request_error", "invalid_request", "Too long", "messages"),
            id="vllm-up-to-0.10-without-envelope",
        ),
        pytest.param(
            400,
            b'{"error":{"message":"Too long","type":"invalid_request_error","param":null,'
            b'"code":"context_length_exceeded"}}',
            ("invalid_request_error", "context_length_exceeded", "Too long", None),
            id="openai-with-a-code-of-its-own",
        ),
        pytest.param(
            401,
            b'{"error":"Unauthorized"}',
            ("invalid_request_error", "invalid_api_key", "Unauthorized", None),
            id="vllm-api-key",
        ),
        pytest.param(
            403,
            b'{"detail":"Forbidden"}',
            ("permission_error", "access_denied", "Forbidden", None),
            id="fastapi-text",
        ),
        pytest.param(
            422,
            b'{"detail":[{"type":"missing","loc":["body","messages"],"msg":"Field required"},{"msg":"And more"}]}',
            ("invalid_request_error", "unprocessable_entity", "Field required", "messages"),
            id="fastapi-list",
        ),
        pytest.param(
            404,
            b'{"detail":"Not Found"}',
            ("invalid_request_error", "not_found", "Not Found", None),
            id="fastapi-unknown-route",
        ),
        pytest.param(
            405,
            b'{"detail":"Method Not Allowed"}',
            ("invalid_request_error", "method_not_allowed", "Method Not Allowed", None),
            id="fastapi-wrong-method",
        ),
        pytest.param(
            429,
            b'{"error":{"message":"Queue is full","type":"TooManyRequests","code":429}}',
            ("rate_limit_error", "rate_limit_exceeded", "Queue is full", None),
            id="429",
        ),
        pytest.param(
            413, b'{"detail":"Too large"}', ("invalid_request_error", "request_too_large", "Too large", None), id="413"
        ),
        pytest.param(
            415, b'{"detail":"Audio"}', ("invalid_request_error", "unsupported_media_type", "Audio", None), id="415"
        ),
        pytest.param(
            418, b'{"message":"Tea"}', ("invalid_request_error", "invalid_request", "Tea", None), id="unlisted-status"
        ),
    ],
)
def test_refusal_of_an_upstream_keeps_its_message_in_our_envelope(
    status: int, body: bytes, expected: tuple[str, str, str, str | None]
) -> None:
    error = inner_error(status, body, is_behind_us=False)

    assert error.status == status
    assert (error.type, error.code, error.message, error.param) == expected


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"<html><h1>400</h1> nginx at 10.0.0.7</html>", id="html"),
        pytest.param(b"", id="empty"),
        pytest.param(b"Internal text", id="text"),
        pytest.param(gzip.compress(b'{"error":{"message":"x"}}', mtime=0), id="gzip"),
        pytest.param(b'{"error":{"message":"tr', id="truncated"),
        pytest.param(b'{"error":{"message":"\xff"}}', id="not-utf-8"),
        pytest.param(b'{"error":{"message":"\\ud800"}}', id="half-a-character"),
        pytest.param(b'{"error":' + b"[" * 100_000, id="deeply-nested"),
        pytest.param(b'{"error":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="deeply-nested-and-whole"),
        pytest.param(b'{"error":' + b'{"message":' * 900 + b"1" + b"}" * 901, id="nested"),
        pytest.param(b'[{"message":"x"}]', id="list"),
        pytest.param(b"null", id="null"),
        pytest.param(b"{}", id="no-fields"),
        pytest.param(b'{"error":null}', id="null-error"),
        pytest.param(b'{"error":[]}', id="empty-list"),
        pytest.param(b'{"detail":[[]]}', id="list-of-lists"),
        pytest.param(b'{"error":{"message":""}}', id="empty-message"),
        pytest.param(b'{"error":{"message":{"a":1},"param":[1],"code":[2]}}', id="fields-that-are-no-text"),
        pytest.param(b'{"error":{"message":null,"param":"","code":""}}', id="empty-fields"),
    ],
)
def test_refusal_that_says_nothing_readable_is_still_an_envelope(body: bytes) -> None:
    error = inner_error(400, body)

    assert answer(error, "req-1") == {
        "message": "The model refused the request",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_request",
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        pytest.param(500, InternalError, id="500"),
        pytest.param(501, InternalError, id="501"),
        pytest.param(502, UpstreamError, id="502"),
        pytest.param(503, UpstreamUnavailable, id="503"),
        pytest.param(504, UpstreamTimeout, id="504"),
        pytest.param(529, InternalError, id="529-overloaded"),
    ],
)
def test_server_error_of_an_upstream_says_nothing_of_what_it_wrote(status: int, kind: type[MaaSError]) -> None:
    body = vllm(status, "/models/secret on http://10.0.0.7:8000", "InternalServerError", "secret")

    error = inner_error(status, body)

    assert type(error) is kind
    fields = answer(error, "req-1")
    assert fields["message"] == f"{ERRORS[kind][3]} (request req-1)"
    assert (fields["param"], fields["code"]) == (None, ERRORS[kind][2])


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            vllm(404, "The model `x` does not exist. Valid aliases: secret.", "NotFoundError", "model"), id="vllm"
        ),
        pytest.param(
            b'{"object":"error","message":"The model `secret` does not exist.","type":"NotFoundError","code":404}',
            id="vllm-up-to-0.10-without-envelope",
        ),
        pytest.param(b'{"error":"model \\"/models/secret\\" not found"}', id="text"),
        pytest.param(b'{"detail":"Model /models/secret is not loaded"}', id="fastapi"),
    ],
)
def test_unknown_model_of_an_upstream_is_told_in_our_words(body: bytes) -> None:
    error = inner_error(404, body)

    assert answer(error) == {
        "message": "The model does not exist",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


def test_unreadable_404_is_not_taken_for_an_unknown_model() -> None:
    assert inner_error(404, b"<html>no such model</html>").code == "not_found"


@pytest.mark.parametrize("status", [401, 403])
def test_app_behind_us_that_refuses_a_credential_refuses_ours(status: int) -> None:
    error = inner_error(status, b'{"error": "Unauthorized"}')

    assert (error.status, error.code, error.message) == (502, "upstream_error", "The model failed to answer")
