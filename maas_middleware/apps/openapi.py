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
    RequestTimeout,
    RequestTooLarge,
)

Schema = dict[str, Any]

_ANYONE: tuple[type[MaaSError], ...] = (MethodNotAllowed,)
_KNOWN = (*_ANYONE, InvalidRequest, InvalidCredentials, AuthUnavailable)
_LOGIN = (*_KNOWN, AccessDenied)
_BODY = (RequestTimeout, RequestTooLarge)

_TEXT: Schema = {"type": "string"}
_SECONDS: Schema = {"type": "integer", "description": "Seconds since the epoch"}


def _object(required: dict[str, Schema], **optional: Schema) -> Schema:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_SCHEMAS: dict[str, Schema] = {
    "Error": _object(
        {
            "error": _object(
                {
                    "message": _TEXT,
                    "type": {"enum": sorted({row[1] for row in ERRORS.values()})},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": "string", "description": "More exact than the type; others may be added"},
                },
                details={"type": "object", "description": "What a person needs beyond the message"},
            )
        }
    ),
    "TokenRequest": {
        "type": ["object", "null"],
        "properties": {
            "expiration": {
                "description": "A duration as Go writes it (`15m`, `1h30m`; `d` too), or seconds. Default: 4 hours",
                "type": ["string", "number", "null"],
            }
        },
    },
    "Token": _object(
        {
            "token": {"type": "string", "description": "A JWT, to be sent as a bearer"},
            "expiration": {"type": "string", "description": "What was granted: `15m0s`"},
            "expiresAt": _SECONDS,
            "issuedAt": _SECONDS,
            "jti": {"type": "string", "description": "By which it can be revoked"},
        }
    ),
    "Groups": _object({"groups": {"type": "array", "items": _TEXT, "minItems": 1}}),
    "Tier": _object({"tier": _TEXT, "displayName": _TEXT}),
    "Model": _object(
        {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": _SECONDS,
            "owned_by": _TEXT,
            "name": _TEXT,
            "url": {"type": "string", "description": "Where it is called; ends in `/v1/chat/completions`"},
            "tier": {"type": "string", "description": "The lowest tier that may use it"},
            "ready": {"type": "boolean"},
        }
    ),
    "Models": _object({"object": {"const": "list"}, "data": {"type": "array", "items": _reference("Model")}}),
    "Health": _object({"status": {"const": "healthy"}}),
    "Readiness": _object({"status": {"const": "ready"}}, degraded={"type": "array", "items": _TEXT}),
    "KeySet": _object({"keys": {"type": "array", "items": {"type": "object"}}}),
}


def _operation(
    summary: str, answers: dict[int, Schema | None], errors: tuple[type[MaaSError], ...], asked: str | None = None
) -> Schema:
    operation: Schema = {"summary": summary, "responses": _responses(answers, errors)}
    if asked is not None:
        content = {"application/json": {"schema": _reference(asked)}}
        operation["requestBody"] = {"content": content, "required": asked != "TokenRequest"}
    if errors == _ANYONE:
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
        content = {"application/json": {"schema": _reference("Error")}}
        described[str(status)] = {"description": f"{texts}`{code}`: {message}", "content": content}
    return described


def _path_parameter(name: str, description: str) -> list[Schema]:
    return [{"name": name, "in": "path", "required": True, "description": description, "schema": _TEXT}]


_PATHS: dict[str, Schema] = {
    "/maas-api/v1/tokens": {
        "post": _operation(
            "Mint an access token", {201: _reference("Token")}, (*_LOGIN, *_BODY, NoTier), asked="TokenRequest"
        ),
        "delete": _operation("Revoke all of the caller's access tokens", {204: None}, _LOGIN),
    },
    "/maas-api/v1/tokens/{jti}": {
        "parameters": _path_parameter("jti", "Of a token of the caller's"),
        "delete": _operation("Revoke an access token", {204: None}, (*_LOGIN, NotFound)),
    },
    "/maas-api/v1/models": {
        "get": _operation("List the models of the caller's tier", {200: _reference("Models")}, (*_KNOWN, NoTier)),
    },
    "/maas-api/v1/models/{model}": {
        "parameters": _path_parameter("model", "An id or an alias; may contain slashes"),
        "get": _operation(
            "Describe a model", {200: _reference("Model")}, (*_KNOWN, NoTier, AccessDenied, ModelNotFound)
        ),
    },
    "/maas-api/v1/tiers/lookup": {
        "post": _operation(
            "Tell the tier that groups lead to", {200: _reference("Tier")}, (*_LOGIN, *_BODY, NotFound), asked="Groups"
        ),
    },
    "/maas-api/health": {"get": _operation("Tell that the process lives", {200: _reference("Health")}, _ANYONE)},
    "/maas-api/ready": {"get": _operation("Tell what works only in part", {200: _reference("Readiness")}, _ANYONE)},
    "/maas-api/openapi.json": {"get": _operation("Describe this API", {200: {"type": "object"}}, _ANYONE)},
    "/.well-known/jwks.json": {
        "get": _operation("Publish the keys that verify access tokens", {200: _reference("KeySet")}, _ANYONE)
    },
}


def openapi_document() -> dict[str, Any]:
    """The control routes as OpenAPI 3.1, the same for every deployment. Those of inference are not ours to describe."""
    bearer = {"type": "http", "scheme": "bearer", "description": "A login of the cluster; models: also an access token"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Models-as-a-Service", "version": "1"},
        "paths": _PATHS,
        "components": {"schemas": _SCHEMAS, "securitySchemes": {"bearer": bearer}},
        "security": [{"bearer": []}],
    }
