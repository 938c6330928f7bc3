"""What control routes take and answer, as JSON Schema."""

from __future__ import annotations

from typing import Any

from ..errors import ERRORS

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_SECONDS: Schema = {"type": "integer", "description": "Seconds since the epoch"}
_DATE: Schema = {"type": "string", "format": "date"}
_TIME: Schema = {"type": "string", "format": "date-time"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_EXPIRATION: Schema = {"type": ["string", "number", "null"]}
_STATUS: Schema = {"enum": ["active", "expired", "revoked"]}


def _object(required: dict[str, Schema], **optional: Schema) -> Schema:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_TOKEN: dict[str, Schema] = {
    "token": {"type": "string", "description": "A JWT, to be sent as a bearer"},
    "expiration": {"type": "string", "description": "What was granted: `15m0s`"},
    "expiresAt": _SECONDS,
    "issuedAt": _SECONDS,
    "jti": {"type": "string", "description": "By which it can be revoked"},
}
_USED: dict[str, Schema] = dict.fromkeys(("requests", "input_tokens", "output_tokens", "total_tokens"), _COUNT)
_LIMIT = _object({"limit": _COUNT, "window_seconds": _COUNT})
_BUDGET = _object({"limit": _COUNT, "window_seconds": _COUNT, "remaining": _COUNT, "reset_seconds": {"type": "number"}})
_TIER = _object(
    {"name": _TEXT, "displayName": _TEXT, "level": {"type": "integer"}, "group": _maybe(_TEXT)}, description=_TEXT
)
_FEATURES: Schema = {"anyOf": [{"const": "all"}, _list_of(_TEXT)]}
_LIMITS: dict[str, Schema] = {
    "requests": _list_of(_LIMIT),
    "tokens": _list_of(_LIMIT),
    "concurrency": _maybe(_COUNT),
}

SCHEMAS: dict[str, Schema] = {
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
    "Token": _object(_TOKEN),
    "APIKeyRequest": _object({"name": _TEXT}, description=_TEXT, expiration=_EXPIRATION),
    "NewAPIKey": _object({**_TOKEN, "name": _TEXT}, description=_TEXT),
    "APIKey": _object(
        {"id": _TEXT, "name": _TEXT, "creationDate": _TIME, "expirationDate": _TIME, "status": _STATUS},
        description=_TEXT,
        lastUsedDate=_TIME,
    ),
    "TokenRecord": _object(
        {
            "id": _TEXT,
            "kind": {"enum": ["access_token", "api_key"]},
            "creationDate": _TIME,
            "expirationDate": _TIME,
            "status": _STATUS,
        },
        name=_TEXT,
        description=_TEXT,
        lastUsedDate=_TIME,
    ),
    "Me": _object(
        {
            "user": _TEXT,
            "provider": _TEXT,
            "groups": _list_of(_TEXT),
            "tier": _maybe(_TIER),
            "limits": _maybe(_object({**_LIMITS, "max_tokens_per_request": _maybe(_COUNT), "features": _FEATURES})),
            "remaining": _maybe(_object({"requests": _maybe(_BUDGET), "tokens": _maybe(_BUDGET)})),
            "models": _maybe(_list_of(_object({"id": _TEXT}, limits=_object(_LIMITS)))),
        },
        degraded=_list_of(_TEXT),
    ),
    "UsageRow": _object({"date": _DATE, "model": _TEXT, **_USED}),
    "Usage": _object(
        {
            "object": {"const": "list"},
            "from": _DATE,
            "to": _DATE,
            "data": _list_of(reference("UsageRow")),
            "total": _object(_USED),
        }
    ),
    "User": _object(
        {
            "user": _TEXT,
            "provider": _TEXT,
            "generation": _COUNT,
            "tier": _maybe(_TEXT),
            "groups": _list_of(_TEXT),
            "accessTokens": _object({"active": _COUNT}),
            "apiKeys": _object({"active": _COUNT, "revoked": _COUNT, "expired": _COUNT}),
            "truncated": {"type": "boolean"},
            "lastIssuedDate": _maybe(_TIME),
            "lastUsedDate": _maybe(_TIME),
            "usage": _list_of(reference("UsageRow")),
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
        },
        max_model_len={"type": "integer", "description": "As the app that it is mounted in tells it"},
        parent=_TEXT,
    ),
    "Models": _object({"object": {"const": "list"}, "data": {"type": "array", "items": reference("Model")}}),
    "Health": _object({"status": {"const": "healthy"}}),
    "Readiness": _object({"status": {"const": "ready"}}, degraded={"type": "array", "items": _TEXT}),
    "KeySet": _object({"keys": {"type": "array", "items": {"type": "object"}}}),
}
