"""The one table of endpoints: the routes of inference servers, and what users may do with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from .dialects import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    IMAGE_FORM,
    IMAGES,
    INVOCATION,
    MESSAGES,
    POOLING,
    RERANK,
    RESPONSES,
    SPEECH,
    TOKENIZE,
    TRANSCRIPTION,
    Dialect,
    ErrorFormat,
)
from .errors import InvalidRequest
from .requests import JSONRequest
from .tiers import Feature

CHAT_COMPLETIONS = "/v1/chat/completions"
MODELS = "/v1/models"

Kind = Literal["billable", "unmetered", "administrative", "refused"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route of an inference server, and what users may do with it.

    Attributes:
        method: `*` stands for every method.
        path: `/*` at its end stands for everything below.
        kind: `billable` routes are metered and charged, `unmetered` ones cost a request and no tokens;
            `administrative` ones are for the operator of the server, and `refused` ones cannot be metered, or would
            let users read each other's answers: neither is ever forwarded for a user.
        dialect: None for what no user can reach.
        feature: what a tier needs to use it; None: every tier has it.
    """

    method: str
    path: str
    kind: Kind
    dialect: Dialect | None = None
    feature: Feature | None = None

    @property
    def is_served(self) -> bool:
        """Whether users can reach it."""
        return self.dialect is not None


def _served(kind: Kind, dialect: Dialect, feature: Feature | None, *paths: str) -> tuple[Endpoint, ...]:
    return tuple(Endpoint("POST", path, kind, dialect, feature) for path in paths)


def _unserved(kind: Kind, *paths: str) -> tuple[Endpoint, ...]:
    return tuple(Endpoint("*", path, kind) for path in paths)


INVOCATIONS = Endpoint("POST", "/invocations", "billable", INVOCATION)

ENDPOINTS = (
    *_served("billable", CHAT, None, CHAT_COMPLETIONS),
    *_served("billable", COMPLETIONS, None, "/v1/completions"),
    *_served("billable", MESSAGES, "messages", "/v1/messages"),
    *_served("billable", RESPONSES, "responses", "/v1/responses"),
    *_served("billable", EMBEDDINGS, "embeddings", "/v1/embeddings"),
    *_served("billable", RERANK, "rerank", "/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score"),
    *_served("billable", POOLING, "pooling", "/classify", "/v1/classify", "/pooling"),
    *_served("billable", TRANSCRIPTION, "audio", "/v1/audio/transcriptions", "/v1/audio/translations"),
    *_served("billable", SPEECH, "audio", "/v1/audio/speech"),
    *_served("billable", IMAGES, "images", "/v1/images/generations"),
    *_served("billable", IMAGE_FORM, "images", "/v1/images/edits", "/v1/images/variations"),
    INVOCATIONS,
    *_served("unmetered", COUNT_TOKENS, "messages", "/v1/messages/count_tokens"),
    *_served("unmetered", TOKENIZE, None, "/tokenize", "/detokenize"),
    *_unserved(
        "administrative",
        *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/adapters/*"),
        *("/scale_elastic_ep", "/is_scaling_elastic_ep", "/fault_tolerance/apply", "/fault_tolerance/status"),
        *("/inference/v1/abort_requests", "/abort_requests", "/pause", "/resume", "/is_paused"),
        *("/sleep", "/wake_up", "/is_sleeping", "/release_kv_cache_memory", "/start_profile", "/stop_profile"),
        *("/collective_rpc", "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"),
        *("/init_weight_transfer_engine", "/shutdown_weight_transfer_engine", "/start_weight_update"),
        *("/start_draft_weight_update", "/update_weights", "/finish_weight_update", "/update_weight_version"),
        *("/weight_info", "/weight_checker", "/get_world_size"),
        *("/server_info", "/tokenizer_info", "/kv_event_sources", "/load"),
    ),
    *_unserved(
        "refused",
        *("/v1/responses/*", "/v1/realtime", "/v1/realtime/*", "/generative_scoring", "/inference/v1/generate"),
        *("/v1/systemone", "/v1/decisions", "/v2/embed", "/cohere/v2/chat", "/cohere/v2/chat/render"),
        *("/v1/engines/*", "/v1/embeddings_image", "/v1/embeddings_audio"),  # llama-cpp-python; infinity
        *("/v1/chat/completions/*", "/v1/completions/*", "/v1/messages/*"),
    ),
)

NO_ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType({})
_BY_PATH: Mapping[str, Mapping[str, Endpoint]] = {
    path: MappingProxyType({endpoint.method: endpoint for endpoint in ENDPOINTS if endpoint.path == path})
    for path in dict.fromkeys(endpoint.path for endpoint in ENDPOINTS)
}
_BELOW = tuple(path.removesuffix("*") for path in _BY_PATH if path.endswith("/*"))
# a model of one of these names could not be reached, or would hide what is there
RESERVED_SEGMENTS = frozenset({"maas-api", "v1", ".well-known", *(path.split("/")[1] for path in _BELOW)})
_ERROR_FORMATS = {
    f"{endpoint.path}/": endpoint.dialect.errors
    for endpoint in ENDPOINTS
    if endpoint.dialect is not None and endpoint.dialect.errors != "openai"
}


def error_format(path: str) -> ErrorFormat:
    """The shape of errors on a path and below it, also behind a model's prefix or a mount point."""
    path = path.rstrip("/") + "/"
    for known, errors in _ERROR_FORMATS.items():
        if known in path:
            return errors
    return "openai"


def endpoints_at(path: str) -> Mapping[str, Endpoint]:
    """The endpoints of a canonical path, by their methods."""
    endpoints = _BY_PATH.get(path, NO_ENDPOINTS)
    if not endpoints and path.startswith(_BELOW):
        return _BY_PATH[next(above for above in _BELOW if path.startswith(above)) + "*"]
    return endpoints


# what each can be told by; `documents` stands beside `messages` too
_TOLD_BY = {
    CHAT_COMPLETIONS: ("messages",),
    "/v1/completions": ("prompt", "prompt_embeds"),
    "/v1/embeddings": ("input",),
    "/rerank": ("query",),
    "/score": ("queries", "text_1", "data_1"),
    "/pooling": ("data",),
}


def invoked(request: JSONRequest) -> Endpoint:
    """The endpoint that a request to `/invocations` is for, as its fields tell.

    It is to be forwarded there: vLLM's own `/invocations` answers for its base model, whichever the body names
    (model-hosting-container-standards, `inject_adapter_id`), and by its own choice of dialect.

    Raises:
        InvalidRequest: `missing_required_parameter` or `ambiguous_request`: they tell of none, or of several.
    """
    found = [path for path, names in _TOLD_BY.items() if any(map(request.has, names))]
    if len(found) == 1:
        return _BY_PATH[found[0]]["POST"]
    if found:
        raise InvalidRequest(f"The request may be for {' or for '.join(found)}", code="ambiguous_request")
    expected = ", ".join(f"`{name}`" for names in _TOLD_BY.values() for name in names)
    raise InvalidRequest(f"One of these is required: {expected}", code="missing_required_parameter")
