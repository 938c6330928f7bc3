"""The control routes, described in OpenAPI 3.1. Error answers come out of the table of errors."""

from __future__ import annotations

from typing import Any

from ..errors import (
    ERRORS,
    AccessDenied,
    AuthUnavailable,
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
    StoreUnavailable,
    UpstreamError,
    UpstreamTimeout,
)
from ._schemas import SCHEMAS, Schema, reference

_ANYONE: tuple[type[MaaSError], ...] = (MethodNotAllowed,)
_KNOWN = (*_ANYONE, InvalidRequest, InvalidCredentials, RateLimitExceeded, AuthUnavailable, StoreUnavailable)
_LOGIN = (*_KNOWN, AccessDenied)
_BODY = (RequestTimeout, RequestTooLarge)
_LISTING = (*_KNOWN, NoTier, UpstreamError, UpstreamTimeout)  # the last two of an app that it is mounted in


def _operation(
    summary: str,
    answers: dict[int, Schema | None],
    errors: tuple[type[MaaSError], ...],
    *parameters: Schema,
    asked: str | None = None,
) -> Schema:
    operation: Schema = {"summary": summary, "responses": _responses(answers, errors)}
    if parameters:
        operation["parameters"] = list(parameters)
    if asked is not None:
        content = {"application/json": {"schema": reference(asked)}}
        operation["requestBody"] = {"content": content, "required": asked != "TokenRequest"}
    if InvalidCredentials not in errors:
        operation["security"] = []
    return operation


def _responses(answers: dict[int, Schema | None], errors: tuple[type[MaaSError], ...]) -> Schema:
    described: Schema = {}
    for status, schema in answers.items():
        content = {} if schema is None else {"content": {"application/json": {"schema": schema}}}
        described[str(status)] = {"description": "Done", **content}
    for error in errors:
        status, _, code, message = ERRORS[error]
        texts = f"{described[str(status)]['description']}; " if str(status) in described else ""
        content = {"application/json": {"schema": reference("Error")}}
        described[str(status)] = {"description": f"{texts}`{code}`: {message}", "content": content}
    return described


def _path_parameter(name: str, description: str) -> list[Schema]:
    return [{"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}]


def _query(name: str, description: str, schema: Schema, *, required: bool = False) -> Schema:
    return {"name": name, "in": "query", "required": required, "description": description, "schema": schema}


def _list_of(name: str) -> Schema:
    return {"type": "array", "items": reference(name)}


_PAGES = (
    _query("limit", "How many; default: 100", {"type": "integer", "minimum": 1, "maximum": 1000}),
    _query("after", "The id behind which the page begins; `link` names the next one", {"type": "string"}),
)
_USER = (
    _query("user", "The user's name", {"type": "string"}, required=True),
    _query("provider", "Who vouches for the name; default: the caller's own", {"type": "string"}),
)

_PATHS: dict[str, Schema] = {
    "/maas-api/v1/tokens": {
        "post": _operation(
            "Mint an access token", {201: reference("Token")}, (*_LOGIN, *_BODY, NoTier), asked="TokenRequest"
        ),
        "delete": _operation("Revoke all of the caller's access tokens and API keys", {204: None}, _LOGIN),
    },
    "/maas-api/v1/tokens/{jti}": {
        "parameters": _path_parameter("jti", "Of a token of the caller's"),
        "delete": _operation("Revoke an access token or an API key", {204: None}, (*_LOGIN, NotFound)),
    },
    "/maas-api/v1/api-keys": {
        "post": _operation(
            "Mint an API key: an access token with a name, that lives long",
            {201: reference("NewAPIKey")},
            (*_LOGIN, *_BODY, NoTier),
            asked="APIKeyRequest",
        ),
        "get": _operation("List the caller's API keys, the newest first", {200: _list_of("APIKey")}, _LOGIN, *_PAGES),
    },
    "/maas-api/v1/api-keys/{id}": {
        "parameters": _path_parameter("id", "The `jti` of an API key of the caller's"),
        "get": _operation("Describe an API key", {200: reference("APIKey")}, (*_LOGIN, NotFound)),
        "delete": _operation("Revoke an API key", {204: None}, (*_LOGIN, NotFound)),
    },
    "/maas-api/v1/models": {
        "get": _operation("List the models of the caller's tier", {200: reference("Models")}, _LISTING),
    },
    "/maas-api/v1/models/{model}": {
        "parameters": _path_parameter("model", "An id or an alias; may contain slashes"),
        "get": _operation("Describe a model", {200: reference("Model")}, (*_LISTING, AccessDenied, ModelNotFound)),
    },
    "/maas-api/v1/tiers/lookup": {
        "post": _operation(
            "Tell the tier that groups lead to", {200: reference("Tier")}, (*_LOGIN, *_BODY, NotFound), asked="Groups"
        ),
    },
    "/maas-api/v1/me": {
        "get": _operation(
            "Tell who the caller is, the tier, its limits and what remains", {200: reference("Me")}, _KNOWN
        )
    },
    "/maas-api/v1/usage": {
        "get": _operation(
            "List the caller's recorded use by day (UTC) and model",
            {200: reference("Usage")},
            _KNOWN,
            _query("from", "The first day; default: 29 days before the last", {"type": "string", "format": "date"}),
            _query("to", "The last day; default: today", {"type": "string", "format": "date"}),
        )
    },
    "/maas-api/v1/admin/users": {
        "get": _operation("Describe a user (administrators)", {200: reference("User")}, (*_LOGIN, NotFound), *_USER),
    },
    "/maas-api/v1/admin/tokens": {
        "get": _operation(
            "List a user's tokens and API keys (administrators)",
            {200: _list_of("TokenRecord")},
            _LOGIN,
            *_USER,
            *_PAGES,
        ),
        "delete": _operation(
            "Revoke all of a user's tokens and API keys (administrators)", {204: None}, _LOGIN, *_USER
        ),
    },
    "/maas-api/health": {"get": _operation("Tell that the process lives", {200: reference("Health")}, _ANYONE)},
    "/maas-api/ready": {
        "get": _operation("Tell what works only in part", {200: reference("Readiness")}, (*_ANYONE, StoreUnavailable))
    },
    "/maas-api/openapi.json": {"get": _operation("Describe this API", {200: {"type": "object"}}, _ANYONE)},
    "/.well-known/jwks.json": {
        "get": _operation("Publish the keys that verify access tokens", {200: reference("KeySet")}, _ANYONE)
    },
}


def openapi_document() -> dict[str, Any]:
    """The control routes as OpenAPI 3.1, the same for every deployment. Those of inference are not ours to describe."""
    bearer = {"type": "http", "scheme": "bearer", "description": "A login; models, me, usage: also a token"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Models-as-a-Service", "version": "1"},
        "paths": _PATHS,
        "components": {"schemas": SCHEMAS, "securitySchemes": {"bearer": bearer}},
        "security": [{"bearer": []}],
    }
