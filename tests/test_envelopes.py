from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from anthropic.types import ErrorResponse
from openai.types import ErrorObject
from openai.types.responses import ResponseErrorEvent

from maas_middleware.dialects import ErrorFormat
from maas_middleware.envelopes import envelope, error_event, inner_error, reported_error, tells_too_much
from maas_middleware.errors import (
    ERRORS,
    AccessDenied,
    InternalError,
    InvalidCredentials,
    InvalidRequest,
    MaaSError,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    NoTier,
    RateLimitExceeded,
    RequestTimeout,
    RequestTooLarge,
    UpstreamError,
    UpstreamRefusal,
    UpstreamTimeout,
    UpstreamUnavailable,
)

OPENAI_FORMATS: list[ErrorFormat] = ["openai", "responses"]


def answer(error: MaaSError, request_id: str | None = None) -> dict[str, Any]:
    body = json.loads(envelope(error, request_id))
    assert list(body) == ["error"]
    fields = body["error"]
    assert isinstance(fields, dict)
    return fields


# OpenAI's shape


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


@pytest.mark.parametrize("errors", OPENAI_FORMATS)
@pytest.mark.parametrize("kind", sorted(set(ERRORS) - {InvalidCredentials}, key=str))
def test_every_error_is_one_that_openai_describes(kind: type[MaaSError], errors: ErrorFormat) -> None:
    error = kind()

    read = ErrorObject.model_validate(json.loads(envelope(error, "req-1", errors))["error"])

    assert (read.type, read.code, read.param) == (error.type, error.code, error.param)
    assert read.message.startswith(error.message)


# Anthropic's shape


@pytest.mark.parametrize(
    ("error", "body"),
    [
        pytest.param(
            InvalidRequest("Too hot", code="invalid_value", param="temperature"),
            b'{"type":"error","error":{"type":"invalid_request_error","message":"Too hot"},"request_id":"req-1"}',
            id="400",
        ),
        pytest.param(
            InvalidCredentials("expired"),
            b'{"type":"error","error":{"type":"authentication_error","message":"Invalid authentication token",'
            b'"details":{"reason":"expired"}},"request_id":"req-1"}',
            id="401",
        ),
        pytest.param(
            NoTier(),
            b'{"type":"error","error":{"type":"permission_error",'
            b'"message":"You are in no group that gives access to a tier"},"request_id":"req-1"}',
            id="403",
        ),
        pytest.param(
            ModelNotFound("m"),
            b'{"type":"error","error":{"type":"not_found_error","message":"The model `m` does not exist"},'
            b'"request_id":"req-1"}',
            id="404",
        ),
        pytest.param(
            MethodNotAllowed("POST"),
            b'{"type":"error","error":{"type":"invalid_request_error","message":"Method not allowed"},'
            b'"request_id":"req-1"}',
            id="405",
        ),
        pytest.param(
            RequestTimeout(),
            b'{"type":"error","error":{"type":"invalid_request_error",'
            b'"message":"The request body took too long to arrive"},"request_id":"req-1"}',
            id="408",
        ),
        pytest.param(
            RequestTooLarge(),
            b'{"type":"error","error":{"type":"invalid_request_error","message":"The request body is too large"},'
            b'"request_id":"req-1"}',
            id="413",
        ),
        pytest.param(
            RateLimitExceeded(details={"limit": "tokens", "quota": 100}),
            b'{"type":"error","error":{"type":"rate_limit_error","message":"Rate limit exceeded",'
            b'"details":{"limit":"tokens","quota":100}},"request_id":"req-1"}',
            id="429",
        ),
        pytest.param(
            InternalError(),
            b'{"type":"error","error":{"type":"api_error","message":"Internal error (request req-1)"},'
            b'"request_id":"req-1"}',
            id="500",
        ),
        pytest.param(
            UpstreamError(),
            b'{"type":"error","error":{"type":"api_error","message":"The model failed to answer (request req-1)"},'
            b'"request_id":"req-1"}',
            id="502",
        ),
        pytest.param(
            UpstreamUnavailable(),
            b'{"type":"error","error":{"type":"overloaded_error",'
            b'"message":"The model is not available at the moment (request req-1)"},"request_id":"req-1"}',
            id="503",
        ),
        pytest.param(
            UpstreamTimeout(),
            b'{"type":"error","error":{"type":"timeout_error",'
            b'"message":"The model took too long to answer (request req-1)"},"request_id":"req-1"}',
            id="504",
        ),
    ],
)
def test_errors_of_messages_are_those_of_anthropic(error: MaaSError, body: bytes) -> None:
    assert envelope(error, "req-1", "anthropic") == body


@pytest.mark.parametrize("kind", sorted(set(ERRORS) - {InvalidCredentials}, key=str))
def test_every_error_is_one_that_anthropic_describes(kind: type[MaaSError]) -> None:
    read = ErrorResponse.model_validate_json(envelope(kind(), "req-1", "anthropic"))

    assert (read.type, read.request_id) == ("error", "req-1")
    assert read.error.message.startswith(kind().message)


def test_error_of_messages_without_a_request_id_says_null() -> None:
    body = json.loads(envelope(NotFound(), None, "anthropic"))

    assert body == {"type": "error", "error": {"type": "not_found_error", "message": "Not found"}, "request_id": None}


# error events


@pytest.mark.parametrize(
    ("errors", "event"),
    [
        pytest.param(
            "openai",
            b'data: {"error":{"message":"The model took too long to answer (request req-1)","type":"server_error",'
            b'"param":null,"code":"upstream_timeout"}}\n\n',
            id="openai",
        ),
        pytest.param(
            "anthropic",
            b'event: error\ndata: {"type":"error","error":{"type":"timeout_error",'
            b'"message":"The model took too long to answer (request req-1)"},"request_id":"req-1"}\n\n',
            id="anthropic",
        ),
        pytest.param(
            "responses",
            b'event: error\ndata: {"type":"error","code":"upstream_timeout",'
            b'"message":"The model took too long to answer (request req-1)","param":null,"sequence_number":7}\n\n',
            id="responses",
        ),
    ],
)
def test_error_event_is_that_of_the_dialect(errors: ErrorFormat, event: bytes) -> None:
    assert error_event(UpstreamTimeout(), "req-1", errors, 7) == event


@pytest.mark.parametrize("kind", sorted(set(ERRORS) - {InvalidCredentials}, key=str))
def test_error_event_of_responses_is_one_that_openai_describes(kind: type[MaaSError]) -> None:
    error = kind()
    _, data = error_event(error, None, "responses", 7).strip().split(b"\ndata: ")

    read = ResponseErrorEvent.model_validate_json(data)

    assert (read.type, read.sequence_number) == ("error", 7)
    assert (read.code, read.message, read.param) == (error.code, error.message, error.param)


@pytest.mark.parametrize("errors", ["openai", "anthropic", "responses"])
def test_event_is_one_event_whatever_the_message_says(errors: ErrorFormat) -> None:
    event = error_event(InvalidRequest("two\n\nlines\r\u2028 and data: {}"), None, errors, 0)

    assert event.endswith(b"\n\n")
    assert event.count(b"\n\n") == 1
    assert b"\r" not in event
    assert event.count(b"\n") == (2 if errors == "openai" else 3)


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
            400,
            b'{"type":"error","error":{"type":"BadRequestError","message":"max_tokens: Field required"}}',
            ("invalid_request_error", "invalid_request", "max_tokens: Field required", None),
            id="vllm-messages",
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
            422,
            b'{"detail":[{"type":"json_invalid","loc":["body"],"msg":"Not JSON"}]}',
            ("invalid_request_error", "unprocessable_entity", "Not JSON", None),
            id="fastapi-about-the-whole-body",
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
        pytest.param(529, UpstreamUnavailable, id="529-overloaded"),
        pytest.param(599, InternalError, id="599"),
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
        pytest.param(b'{"type":"error","error":{"type":"not_found_error","message":"model: secret"}}', id="anthropic"),
        pytest.param(b'{"error":"model \\"/models/secret\\" not found"}', id="text"),
        pytest.param(b'{"detail":"Model /models/secret is not loaded"}', id="fastapi"),
        pytest.param(b'{"error":{"message":"secret is unknown","param":"model"}}', id="by-its-parameter"),
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


def test_overloaded_model_says_when_to_come_back() -> None:
    error = inner_error(529, b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}')

    assert (error.status, error.code, error.headers) == (503, "upstream_unavailable", ((b"retry-after", b"2"),))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"detail":"Not Found"}', id="unknown-route"),
        pytest.param(b'{"error":{"message":"/v1/files/secret is gone","code":"gone"}}', id="thing"),
    ],
)
def test_404_behind_us_says_nothing_of_what_an_upstream_wrote(body: bytes) -> None:
    error = inner_error(404, body)

    assert (type(error), error.message) == (NotFound, "Not found")


def test_unreadable_404_is_not_taken_for_an_unknown_model() -> None:
    assert inner_error(404, b"<html>no such model</html>").code == "not_found"


@pytest.mark.parametrize("status", [401, 403])
def test_app_behind_us_that_refuses_a_credential_refuses_ours(status: int) -> None:
    error = inner_error(status, b'{"error": "Unauthorized"}')

    assert (error.status, error.code, error.message) == (502, "upstream_error", "The model failed to answer")


STACK = 'Traceback (most recent call last):\n  File "/app/serve.py", line 7, in <module>'


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(STACK, id="stack"),
        pytest.param("no answer of 10.128.4.7", id="address"),
        pytest.param("tcp://[::ffff:10.0.0.7]:8000", id="address-with-a-port"),
        pytest.param("no answer of vllm.models.svc.cluster.local", id="name-in-the-cluster"),
        pytest.param("no answer of localhost", id="localhost"),
        pytest.param("no answer of http://vllm:8000/v1", id="url-with-a-port"),
        pytest.param("see https://models.example.com:443", id="url-with-the-usual-port"),
    ],
)
def test_refusal_that_holds_a_stack_or_an_address_says_nothing_of_it(text: str) -> None:
    error = inner_error(400, json.dumps({"error": {"message": text, "param": text, "code": text}}).encode())

    assert tells_too_much(text.encode())
    assert (error.status, error.code, error.message, error.param) == (
        400,
        "invalid_request",
        "The model refused the request",
        None,
    )


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("`temperature` is 10.0, and has to be from 0.0 to 2.0", id="numbers"),
        pytest.param("vLLM 0.10.1 knows no such field", id="version"),
        pytest.param("see https://docs.example.com/errors", id="url"),
        pytest.param("tags/v1.2.3", id="tag"),
        pytest.param("a file of the type .svcx", id="type-of-a-file"),
    ],
)
def test_refusal_that_holds_neither_keeps_its_words(text: str) -> None:
    error = inner_error(400, json.dumps({"error": {"message": text, "param": text, "code": text}}).encode())

    assert (error.message, error.param, error.code) == (text, text, text)


def test_only_what_tells_too_much_is_left_out() -> None:
    document = {"error": {"message": STACK, "param": "messages", "code": "context_length_exceeded"}}

    error = inner_error(400, json.dumps(document).encode())

    assert (error.message, error.param, error.code) == (
        "The model refused the request",
        "messages",
        "context_length_exceeded",
    )


# errors that were sent as a success


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(b'{"error":{"message":"no"}}', id="object"),
        pytest.param(b'{"error":"no"}', id="text"),
        pytest.param(b'{"error":{"message":"no","code":500}}', id="server-error"),
        pytest.param(b'{"error":{"message":"no","code":399}}', id="no-status"),
        pytest.param(b'{"error":{"message":"no","code":"400"}}', id="status-as-text"),
        pytest.param(b'{"error":{"message":"no","code":400.0}}', id="status-as-a-fraction"),
        pytest.param(b'{"error":{"message":"no"},"code":400}', id="status-of-something-else"),
        pytest.param(b'{"error":{"message":"no","code":401}}', id="credential-of-ours"),
        pytest.param(b'{"type":"error","error":{"type":"overloaded_error","message":"no"}}', id="messages"),
        pytest.param(b'{"type":"error","code":"server_error","message":"no"}', id="event-of-a-response"),
        pytest.param(b'{"object":"error","message":"no","code":500}', id="vllm-up-to-0.10"),
        pytest.param(b'{"object":"response","status":"failed","error":{"code":"server_error"}}', id="responses"),
    ],
)
def test_error_in_a_success_is_one_of_the_model(document: bytes) -> None:
    error = reported_error(document)

    assert isinstance(error, UpstreamError)
    assert error.message == "The model failed to answer"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        pytest.param(vllm(400, "Too long", "BadRequestError", "messages"), (400, "Too long", "messages"), id="vllm"),
        pytest.param(vllm(499, "Gone", "ClientError"), (499, "Gone", None), id="last-of-them"),
        pytest.param(
            b'{"object":"error","message":"Too long","param":null,"code":422}', (422, "Too long", None), id="old"
        ),
        pytest.param(b'{"error":"Too long","code":413}', (413, "Too long", None), id="text"),
        pytest.param(vllm(400, STACK, "BadRequestError"), (400, "The model refused the request", None), id="stack"),
    ],
)
def test_refusal_in_a_success_keeps_its_message(document: bytes, expected: tuple[int, str, str | None]) -> None:
    error = reported_error(document)

    assert isinstance(error, UpstreamRefusal)
    assert (error.status, error.message, error.param) == expected


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(b'{"object":"response","error":null,"output":[]}', id="null"),
        pytest.param(b'{"error":{}}', id="empty"),
        pytest.param(b'{"error":false}', id="false"),
        pytest.param(b'{"code":400,"message":"no"}', id="code-alone"),
        pytest.param(b'{"choices":[{"error":{"message":"no"}}]}', id="not-at-the-top"),
        pytest.param(b'{"text":"\\"error\\":{}","type":"text"}', id="spoken-of"),
        pytest.param(b'["error"]', id="list"),
        pytest.param(b'{"error":{"message":', id="truncated"),
        pytest.param(b'{"error":"\xff"}', id="not-utf-8"),
        pytest.param(b'{"error":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="deeply-nested"),
        pytest.param(b"[DONE]", id="end-of-a-stream"),
        pytest.param(b"", id="empty-body"),
    ],
)
def test_answer_that_is_no_error_is_none(document: bytes) -> None:
    assert reported_error(document) is None
