"""What a tier allows a request to ask for, and what is made of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from .catalogue import Model
from .dialects import CHAT, RESPONSES, Dialect
from .endpoints import Endpoint
from .errors import AccessDenied, InvalidRequest
from .identity import Identity
from .limiting import NO_LIMITS, Subject
from .requests import CONTENT_FIELDS, UNOWNED_FIELDS, InferenceRequest, JSONRequest
from .tiers import Feature, Tier

_VISION = frozenset(
    {"image", "image_url", "input_image", "image_embeds", "image_pil", "document", "file", "input_file"}
    | {"video", "video_url", "input_video"}
)
_AUDIO = frozenset({"audio", "audio_url", "input_audio", "audio_embeds"})
# decoding takes its time: only what has one of these names, or may have one in escaped letters, is decoded
_MEDIA_NAME = re.compile(rb'"(?:%s)"|\\u00[5-7]' % "|".join(sorted(_VISION | _AUDIO)).encode())
_MAXIMUM_PARTS = 250_000


def check_administrator(identity: Identity, administrators: Collection[str]) -> None:
    """Refuse whoever is in none of the groups of administrators, or comes with another credential than a full login.

    Raises:
        AccessDenied: `access_denied`.
    """
    if identity.restriction is not None or set(identity.groups).isdisjoint(administrators):
        raise AccessDenied("Only administrators may do this, with a full login")


def check_endpoint(endpoint: Endpoint, tier: Tier) -> None:
    """Refuse an endpoint that the tier lacks, whatever is asked of it.

    Raises:
        AccessDenied: `feature_not_available`.
    """
    if endpoint.feature is not None:
        _check(endpoint.feature, tier)


def check_features(request: InferenceRequest, tier: Tier) -> None:
    """Refuse what the tier lacks. A request is only searched where the tier lacks something.

    Raises:
        AccessDenied: `feature_not_available`.
        InvalidRequest: a field is nested too deep, or has too many parts, to be searched.
    """
    if tier.features is None:
        return
    for feature in _features(request, tier):
        _check(feature, tier)


def _check(feature: Feature, tier: Tier) -> None:
    if not tier.has(feature):
        raise AccessDenied(
            f"`{feature}` is not available in your tier",
            code="feature_not_available",
            details={"feature": feature, "tier": tier.name},
        )


def _features(request: InferenceRequest, tier: Tier) -> Iterator[Feature]:
    if request.stream:
        yield "streaming"
    if isinstance(request, JSONRequest):
        if request.has("tools") or request.has("functions"):
            yield "tools"
        if request.has("audio"):
            yield "audio"
        if not (tier.has("vision") and tier.has("audio")):
            yield from _media(request)


def _media(request: JSONRequest) -> Iterator[Feature]:
    modalities = _decoded(request, "modalities")
    if isinstance(modalities, list) and "audio" in modalities:
        yield "audio"
    for name in CONTENT_FIELDS:
        yield from _media_in(_decoded(request, name))


def _decoded(request: JSONRequest, name: str) -> Any:
    raw = bytes(request.fields.get(name, b""))
    if _MEDIA_NAME.search(raw) is None:
        return None
    if sum(map(raw.count, (b",", b"[", b"{"))) > _MAXIMUM_PARTS:
        raise InvalidRequest(f"`{name}` has too many parts", code="invalid_value", param=name)
    return request.value(name)


def _media_in(value: Any) -> Iterator[Feature]:
    rest = [value]
    while rest:
        value = rest.pop()
        if isinstance(value, list):
            rest += value
        elif isinstance(value, Mapping):
            kind = value.get("type")
            # what a tool was called with has names of its own
            rest += (inner for name, inner in value.items() if name != "input" or kind != "tool_use")
            names = {kind} | value.keys() if isinstance(kind, str) else value.keys()
            if not _VISION.isdisjoint(names):
                yield "vision"
            if not _AUDIO.isdisjoint(names):
                yield "audio"


def check_ownership(request: JSONRequest, dialect: Dialect) -> None:
    """Refuse a request that refers to, or leaves behind, what the server would show to anyone who knows its id.

    Raises:
        InvalidRequest: `unsupported_parameter`.
    """
    if dialect is not RESPONSES:
        return
    for name in UNOWNED_FIELDS:
        if request.has(name):
            raise InvalidRequest(f"`{name}` is not supported", code="unsupported_parameter", param=name)


def within_cap(request: JSONRequest, dialect: Dialect, tier: Tier, model: Model) -> JSONRequest:
    """The request, with the tier's cap where it names none and it is known what the model's context has room for.

    A cap in a field of another dialect is put into the one that the server reads.

    The room is counted from the bytes of the prompt, of which no tokenizer makes more tokens: servers refuse a cap
    that does not fit into the context together with the prompt.

    Raises:
        InvalidRequest: `max_tokens_exceeded`, or `max_tokens_required` where the prompt leaves no room for certain.
    """
    limit = tier.max_tokens_per_request
    if limit is None or dialect.cap is None:
        return request
    if request.cap is not None:
        if request.cap * request.answers > limit:
            raise _over(limit, request, dialect.cap)
        return request if _is_capped(request, dialect) else request.capped(dialect.cap, request.cap)
    share = limit // request.answers
    if not share:
        raise _over(limit, request, dialect.cap)
    if model.context_length is None:
        return request
    room = model.context_length - request.prompt_bytes
    if room < 1:
        message = f"For a prompt of this size `{dialect.cap}` is required; your tier allows {share}"
        raise InvalidRequest(message, code="max_tokens_required", param=dialect.cap, details={"maximum": share})
    return request.capped(dialect.cap, min(share, room))


def _is_capped(request: JSONRequest, dialect: Dialect) -> bool:
    names = (dialect.cap, "max_completion_tokens") if dialect is CHAT else (dialect.cap,)
    return any(request.has(name) for name in names if name is not None)


def _over(limit: int, request: JSONRequest, name: str) -> InvalidRequest:
    times = f" for {request.answers} answers together" if request.answers > 1 else ""
    return InvalidRequest(
        f"Your tier allows a request to generate at most {limit} tokens{times}",
        code="max_tokens_exceeded",
        param=name,
        details={"maximum": limit},
    )


def subjects_of(tier: Tier, identity: Identity, model: Model | None) -> tuple[Subject, ...]:
    """The budgets that a request takes from: the user's, the user's on the model, and the model's own."""
    subject = tier.subject(identity)
    if model is None or (not tier.models and model.limits is NO_LIMITS):
        return (subject,)
    others = (tier.subject_on(model.id, identity), model.subject)
    return (subject, *[other for other in others if other is not None])
