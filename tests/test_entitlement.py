"""What a tier allows a request to ask for."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import pytest

from maas_middleware._forms import FormRequest
from maas_middleware.catalogue import Catalogue, Model
from maas_middleware.dialects import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Dialect
from maas_middleware.endpoints import CHAT_COMPLETIONS, ENDPOINTS, Endpoint
from maas_middleware.entitlement import check_endpoint, check_features, check_ownership, subjects_of, within_cap
from maas_middleware.errors import AccessDenied, InvalidRequest
from maas_middleware.identity import Identity
from maas_middleware.limiting import NO_LIMITS, Limits, parse_limits
from maas_middleware.requests import InferenceRequest, JSONRequest
from maas_middleware.tiers import FEATURES, Feature, Tier

COMPLETIONS_PATH, MESSAGES_PATH, RESPONSES_PATH = "/v1/completions", "/v1/messages", "/v1/responses"


def parse(**fields: Any) -> JSONRequest:
    return JSONRequest.parse(json.dumps(fields).encode())


def endpoint_at(path: str) -> Endpoint:
    return Catalogue().locate(path).endpoint("POST")


def lacking(*features: Feature) -> Tier:
    return Tier("free", features=set(FEATURES) - set(features))


def needed(request: InferenceRequest, path: str) -> set[Feature]:
    """Without which features alone the request is refused."""
    refused: set[Feature] = set()
    for feature in FEATURES:
        try:
            check_endpoint(endpoint_at(path), lacking(feature))
            check_features(request, lacking(feature))
        except AccessDenied:
            refused.add(feature)
    return refused


def user(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": list(content)}]


TEXT = {"type": "text", "text": "What is this? An image_url or an input_audio?"}
URL = {"url": "https://example.com/a"}


# what the endpoint needs


@pytest.mark.parametrize(
    "endpoint", [endpoint for endpoint in ENDPOINTS if endpoint.is_served], ids=lambda endpoint: endpoint.path
)
def test_endpoint_needs_its_feature_and_no_other(endpoint: Endpoint) -> None:
    assert needed(parse(model="m"), endpoint.path) == ({endpoint.feature} - {None})


def test_what_is_refused_is_named_with_the_tier() -> None:
    tier = lacking("streaming", "audio")

    with pytest.raises(AccessDenied) as request:
        check_features(parse(stream=True), tier)
    with pytest.raises(AccessDenied) as endpoint:
        check_endpoint(endpoint_at("/v1/audio/speech"), tier)

    for feature, error in (("streaming", request.value), ("audio", endpoint.value)):
        assert (error.status, error.type, error.code) == (403, "permission_error", "feature_not_available")
        assert error.message == f"`{feature}` is not available in your tier"
        assert error.details == {"feature": feature, "tier": "free"}


@pytest.mark.parametrize(
    ("features", "refused"),
    [
        pytest.param(None, None, id="all"),
        pytest.param(["streaming", "tools", "vision"], None, id="enough"),
        pytest.param(["streaming", "tools"], "vision", id="one-missing"),
        pytest.param(["vision"], "streaming", id="the-first-missing-one-is-named"),
        pytest.param([], "streaming", id="none"),
    ],
)
def test_request_needs_every_feature_that_it_uses(
    features: Collection[Feature] | None, refused: Feature | None
) -> None:
    request = parse(stream=True, tools=[{"type": "function"}], messages=user({"type": "image_url", "image_url": URL}))
    found = None

    try:
        check_features(request, Tier("free", features=features))
    except AccessDenied as error:
        found = (error.details or {})["feature"]

    assert found == refused


# what the fields of a request need


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        pytest.param({"messages": user(TEXT)}, set(), id="text"),
        pytest.param({"messages": "image_url"}, set(), id="no-parts-at-all"),
        pytest.param({"stream": True}, {"streaming"}, id="stream"),
        pytest.param({"stream": False}, set(), id="no-stream"),
        pytest.param({"stream": None}, set(), id="stream-null"),
        pytest.param({"tools": [{"type": "function", "function": {"name": "f"}}]}, {"tools"}, id="tools"),
        pytest.param({"functions": [{"name": "f"}]}, {"tools"}, id="functions"),
        pytest.param({"tools": [], "functions": None}, set(), id="no-tools"),
        pytest.param({"tools": [{"parameters": {"image": {}, "audio": {}}}]}, {"tools"}, id="names-in-a-schema"),
        pytest.param({"modalities": ["text", "audio"]}, {"audio"}, id="spoken-answer"),
        pytest.param({"modalities": ["text"]}, set(), id="written-answer"),
        pytest.param({"modalities": ["text", "image"]}, set(), id="drawn-answer"),
        pytest.param({"modalities": None}, set(), id="modalities-null"),
        pytest.param({"modalities": 5}, set(), id="modalities-that-the-model-will-refuse"),
        pytest.param({"modalities": {"audio": True}}, set(), id="modalities-of-another-shape"),
        pytest.param({"audio": {"voice": "alloy", "format": "wav"}}, {"audio"}, id="voice"),
        pytest.param({"audio": None}, set(), id="no-voice"),
        pytest.param({"messages": user(TEXT, {"type": "image_url", "image_url": URL})}, {"vision"}, id="image"),
        pytest.param({"messages": user({"image_url": URL})}, {"vision"}, id="image-without-a-type"),
        pytest.param({"messages": user({"type": "video_url", "video_url": URL})}, {"vision"}, id="video"),
        pytest.param({"messages": user({"type": "file", "file": {"file_id": "1"}})}, {"vision"}, id="file"),
        pytest.param({"messages": user({"type": "input_audio", "input_audio": {}})}, {"audio"}, id="audio"),
        pytest.param({"messages": user({"audio_url": URL})}, {"audio"}, id="audio-without-a-type"),
        pytest.param(
            {"messages": user({"type": "image_url"}, {"type": "audio_url"})}, {"vision", "audio"}, id="image-and-audio"
        ),
        pytest.param({"messages": [{"role": "user", "content": {"type": "image_url"}}]}, {"vision"}, id="no-list"),
        pytest.param({"messages": user([[{"a": {"type": "image_url"}}]])}, {"vision"}, id="nested"),
        pytest.param({"messages": user({"type": "text", "text": "image", "x": ["audio"]})}, set(), id="names-as-text"),
        pytest.param({"messages": user({"type": ["image_url"]})}, set(), id="type-that-is-no-text"),
        pytest.param({"metadata": {"image": 1, "audio": 2}}, set(), id="names-elsewhere"),
    ],
)
def test_chat_needs_the_features_of_what_it_carries(fields: dict[str, Any], features: set[Feature]) -> None:
    assert needed(parse(model="m", **fields), CHAT_COMPLETIONS) == features


@pytest.mark.parametrize(
    ("name", "feature"),
    [
        *((name, "vision") for name in ("image", "image_url", "input_image", "image_embeds", "image_pil")),
        *((name, "vision") for name in ("document", "file", "input_file", "video", "video_url", "input_video")),
        *((name, "audio") for name in ("audio", "audio_url", "input_audio", "audio_embeds")),
    ],
)
@pytest.mark.parametrize("field", ["messages", "input", "documents"])
def test_media_are_known_by_their_type_and_by_their_name(field: str, name: str, feature: Feature) -> None:
    by_type = parse(**{field: [{"content": [TEXT, {"type": name, "x": 1}]}]})
    by_name = parse(**{field: [{"content": [TEXT, {name: {"x": 1}}]}]})

    assert needed(by_type, CHAT_COMPLETIONS) == needed(by_name, CHAT_COMPLETIONS) == {feature}


@pytest.mark.parametrize(
    "name",
    [
        *("messages", "prompt", "system", "instructions", "input"),
        *("query", "queries", "documents", "items", "text_1", "text_2", "data_1", "data_2"),
    ],
)
def test_every_field_that_a_model_reads_is_searched(name: str) -> None:
    request = parse(**{name: {"content": [{"type": "image_url", "image_url": URL}, {"type": "input_audio"}]}})

    assert needed(request, CHAT_COMPLETIONS) == {"vision", "audio"}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(rb'{"messages":[{"content":[{"type":"\u0069mage_url"}]}]}', id="type"),
        pytest.param(rb'{"messages":[{"content":[{"image\u005Furl":{}}]}]}', id="name"),
        pytest.param(rb'{"messages":[{"content":[{"\u0074ype":"image_url"}]}]}', id="the-name-of-the-type"),
    ],
)
def test_names_in_escaped_letters_are_the_same_names(body: bytes) -> None:
    assert needed(JSONRequest.parse(body), CHAT_COMPLETIONS) == {"vision"}


IMAGE_BLOCK = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        pytest.param({"messages": user(TEXT), "system": "Be brief."}, set(), id="text"),
        pytest.param({"stream": True}, {"streaming"}, id="stream"),
        pytest.param({"tools": [{"name": "f", "input_schema": {}}]}, {"tools"}, id="tools"),
        pytest.param({"messages": user(TEXT, IMAGE_BLOCK)}, {"vision"}, id="image"),
        pytest.param({"messages": user({"type": "document", "source": {}})}, {"vision"}, id="document"),
        pytest.param({"system": [TEXT, IMAGE_BLOCK]}, {"vision"}, id="image-in-the-system-prompt"),
        pytest.param(
            {"messages": user({"type": "tool_result", "tool_use_id": "1", "content": [IMAGE_BLOCK]})},
            {"vision"},
            id="image-in-the-result-of-a-tool",
        ),
        pytest.param(
            {"messages": user({"type": "tool_use", "id": "1", "name": "f", "input": {"image": 1, "audio": [{}]}})},
            set(),
            id="names-in-the-input-of-a-tool",
        ),
        pytest.param(
            {"messages": user({"type": "tool_use", "input": {}, "image_url": URL})}, {"vision"}, id="beside-the-input"
        ),
        pytest.param(
            {"messages": user({"type": "tool_use", "input": {}, "content": [IMAGE_BLOCK]})}, {"vision"}, id="below-it"
        ),
        pytest.param({"messages": user({"input": [IMAGE_BLOCK]})}, {"vision"}, id="input-of-no-tool"),
    ],
)
def test_messages_need_the_features_of_what_they_carry(fields: dict[str, Any], features: set[Feature]) -> None:
    assert needed(parse(model="m", max_tokens=9, **fields), MESSAGES_PATH) == features | {"messages"}


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        pytest.param({"input": "What is an input_image?"}, set(), id="text"),
        pytest.param({"stream": True}, {"streaming"}, id="stream"),
        pytest.param({"tools": [{"type": "web_search"}]}, {"tools"}, id="tools"),
        pytest.param({"input": user({"type": "input_image", "image_url": "data:"})}, {"vision"}, id="image"),
        pytest.param({"input": user({"type": "input_file", "file_id": "1"})}, {"vision"}, id="file"),
        pytest.param({"input": user({"type": "input_audio", "input_audio": {}})}, {"audio"}, id="audio"),
        pytest.param(
            {"input": [{"type": "function_call_output", "output": [{"type": "input_image"}]}]},
            {"vision"},
            id="image-in-the-result-of-a-tool",
        ),
        pytest.param(
            {"input": [{"type": "function_call", "arguments": '{"image_url": 1}'}]}, set(), id="arguments-are-text"
        ),
        pytest.param({"instructions": user({"type": "input_image"})}, {"vision"}, id="image-in-the-instructions"),
        pytest.param(
            {"prompt": {"id": "p", "variables": {"photo": {"type": "input_image"}}}}, {"vision"}, id="image-as-variable"
        ),
    ],
)
def test_responses_need_the_features_of_what_they_carry(fields: dict[str, Any], features: set[Feature]) -> None:
    assert needed(parse(model="m", **fields), RESPONSES_PATH) == features | {"responses"}


@pytest.mark.parametrize(
    ("parts", "features"),
    [
        pytest.param([("model", "m")], {"audio"}, id="no-stream"),
        pytest.param([("model", "m"), ("stream", "true")], {"audio", "streaming"}, id="stream"),
        pytest.param([("model", "m"), ("tools", "[1]"), ("image", "x")], {"audio"}, id="other-fields-mean-nothing"),
    ],
)
def test_form_needs_the_features_of_its_endpoint_and_streaming(
    parts: list[tuple[str, str]], features: set[Feature]
) -> None:
    assert needed(FormRequest.judge(parts), "/v1/audio/transcriptions") == features


# what is searched at all

TOO_MANY_PARTS = JSONRequest.parse(b'{"messages":[{"type":"image"}' + b",[]" * 250_000 + b"]}")


@pytest.mark.parametrize(
    "tier",
    [
        pytest.param(Tier("free"), id="all-features"),
        pytest.param(lacking("tools", "streaming"), id="all-that-would-be-searched-for"),
    ],
)
def test_nothing_is_searched_where_the_tier_lacks_nothing_that_could_be_found(tier: Tier) -> None:
    check_features(TOO_MANY_PARTS, tier)


@pytest.mark.parametrize("feature", ["vision", "audio"])
def test_more_parts_than_anybody_needs_are_refused_where_they_would_be_searched(feature: Feature) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_features(TOO_MANY_PARTS, lacking(feature))

    assert (caught.value.code, caught.value.param) == ("invalid_value", "messages")
    assert caught.value.message == "`messages` has too many parts"


def test_what_names_no_media_is_not_decoded() -> None:
    request = JSONRequest.parse(b'{"input":[' + b"1," * 2_000_000 + b"1]}")

    assert needed(request, "/v1/embeddings") == {"embeddings"}


# what would be kept under an id that is nobody's


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("previous_response_id", "resp_1", id="previous-response"),
        pytest.param("conversation", "conv_1", id="conversation"),
        pytest.param("conversation", {"id": "conv_1"}, id="conversation-object"),
        pytest.param("background", True, id="background"),
        pytest.param("background", 1, id="background-number"),
    ],
)
def test_response_that_has_no_owner_is_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_ownership(parse(model="m", **{name: value}), RESPONSES)

    error = caught.value
    assert (error.status, error.code, error.param) == (400, "unsupported_parameter", name)
    assert error.message == f"`{name}` is not supported"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="none"),
        pytest.param({"previous_response_id": None, "conversation": None, "background": None}, id="null"),
        pytest.param({"background": False}, id="foreground"),
        pytest.param({"store": True}, id="store"),
    ],
)
def test_response_that_refers_to_nothing_passes(fields: dict[str, Any]) -> None:
    check_ownership(parse(model="m", **fields), RESPONSES)


@pytest.mark.parametrize("dialect", [CHAT, MESSAGES, EMBEDDINGS], ids=lambda dialect: dialect.name)
def test_fields_of_responses_mean_nothing_in_another_dialect(dialect: Dialect) -> None:
    check_ownership(parse(model="m", background=True, previous_response_id="resp_1"), dialect)


# caps

CAPPED = Tier("free", max_tokens_per_request=100)
KNOWN, UNKNOWN = Model("m", context_length=1000), Model("m")
HUNDRED_BYTES: dict[str, Any] = {"prompt": "x" * 98}


def capped(dialect: Dialect, model: Model = KNOWN, tier: Tier = CAPPED, **fields: Any) -> dict[str, Any]:
    """The fields as they are forwarded."""
    request = within_cap(parse(model="m", **fields), dialect, tier, model)
    read = json.loads(request.encoded)
    assert isinstance(read, dict)
    assert JSONRequest.parse(request.encoded).cap == request.cap
    return read


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        pytest.param(CHAT, {"max_tokens": 1}, id="under"),
        pytest.param(CHAT, {"max_tokens": 100}, id="equal"),
        pytest.param(CHAT, {"max_tokens": 0}, id="zero"),
        pytest.param(CHAT, {"max_completion_tokens": 100}, id="max-completion-tokens"),
        pytest.param(CHAT, {"max_tokens": 50, "n": 2}, id="times-n"),
        pytest.param(COMPLETIONS, {"max_tokens": 25, "best_of": 4}, id="times-best-of"),
        pytest.param(COMPLETIONS, {"max_tokens": 25, "prompt": ["a", "b"], "n": 2}, id="times-prompts-and-n"),
        pytest.param(MESSAGES, {"max_tokens": 100}, id="messages"),
        pytest.param(RESPONSES, {"max_output_tokens": 100}, id="responses"),
    ],
)
@pytest.mark.parametrize("model", [KNOWN, UNKNOWN], ids=["known-context", "unknown-context"])
def test_cap_within_the_tiers_is_left_as_it_is(dialect: Dialect, fields: dict[str, Any], model: Model) -> None:
    request = parse(model="m", **fields)

    assert within_cap(request, dialect, CAPPED, model) is request


@pytest.mark.parametrize(
    ("dialect", "fields", "together"),
    [
        pytest.param(CHAT, {"max_tokens": 101}, "", id="over"),
        pytest.param(CHAT, {"max_completion_tokens": 101}, "", id="max-completion-tokens"),
        pytest.param(CHAT, {"max_tokens": 1, "max_completion_tokens": 101}, "", id="the-largest-counts"),
        pytest.param(CHAT, {"max_tokens": 1, "max_output_tokens": 101}, "", id="also-one-of-another-dialect"),
        pytest.param(CHAT, {"max_tokens": 51, "n": 2}, " for 2 answers together", id="times-n"),
        pytest.param(COMPLETIONS, {"max_tokens": 34, "best_of": 3}, " for 3 answers together", id="times-best-of"),
        pytest.param(
            COMPLETIONS, {"max_tokens": 26, "prompt": ["a", "b"], "n": 2}, " for 4 answers together", id="times-prompts"
        ),
        pytest.param(MESSAGES, {"max_tokens": 101}, "", id="messages"),
        pytest.param(RESPONSES, {"max_output_tokens": 101}, "", id="responses"),
        pytest.param(CHAT, {"n": 101}, " for 101 answers together", id="no-cap-and-more-answers-than-tokens"),
    ],
)
@pytest.mark.parametrize("model", [KNOWN, UNKNOWN], ids=["known-context", "unknown-context"])
def test_cap_over_the_tiers_is_refused_with_the_limit(
    dialect: Dialect, fields: dict[str, Any], together: str, model: Model
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        within_cap(parse(model="m", **fields), dialect, CAPPED, model)

    error = caught.value
    assert (error.status, error.code, error.param) == (400, "max_tokens_exceeded", dialect.cap)
    assert error.message == f"Your tier allows a request to generate at most 100 tokens{together}"
    assert error.details == {"maximum": 100}


@pytest.mark.parametrize(
    ("dialect", "fields", "added"),
    [
        pytest.param(CHAT, {"messages": []}, {"max_tokens": 100}, id="chat"),
        pytest.param(COMPLETIONS, HUNDRED_BYTES, {"max_tokens": 100}, id="completions"),
        pytest.param(MESSAGES, {"messages": []}, {"max_tokens": 100}, id="messages"),
        pytest.param(RESPONSES, {"input": "Hi"}, {"max_output_tokens": 100}, id="responses"),
        pytest.param(CHAT, {"messages": [], "n": 3}, {"max_tokens": 33}, id="shared-by-all-answers"),
        pytest.param(CHAT, {"messages": [], "n": 100}, {"max_tokens": 1}, id="one-token-an-answer"),
        pytest.param(COMPLETIONS, {"prompt": ["a", "b"], "n": 2}, {"max_tokens": 25}, id="shared-by-all-prompts"),
        pytest.param(CHAT, {"max_tokens": None}, {"max_tokens": 100}, id="null-is-none"),
    ],
)
def test_request_without_a_cap_is_given_the_tiers_in_the_field_of_its_dialect(
    dialect: Dialect, fields: dict[str, Any], added: dict[str, int]
) -> None:
    assert capped(dialect, **fields) == {"model": "m", **fields, **added}


@pytest.mark.parametrize(
    ("context_length", "cap"),
    [
        pytest.param(1000, 100, id="room-for-all"),
        pytest.param(200, 100, id="just-room-for-all"),
        pytest.param(199, 99, id="the-context-is-the-limit"),
        pytest.param(101, 1, id="room-for-one"),
    ],
)
def test_cap_leaves_room_for_the_prompt_in_the_context(context_length: int, cap: int) -> None:
    model = Model("m", context_length=context_length)

    assert capped(COMPLETIONS, model, **HUNDRED_BYTES)["max_tokens"] == cap


def test_room_is_counted_in_bytes_because_a_token_may_be_one() -> None:
    request = JSONRequest.parse(json.dumps({"prompt": "你" * 30}, ensure_ascii=False).encode())

    assert within_cap(request, COMPLETIONS, CAPPED, Model("m", context_length=100)).cap == 8


@pytest.mark.parametrize("context_length", [100, 99, 1])
def test_prompt_that_leaves_no_room_for_certain_has_to_name_a_cap(context_length: int) -> None:
    model = Model("m", context_length=context_length)

    with pytest.raises(InvalidRequest) as caught:
        within_cap(parse(**HUNDRED_BYTES, n=2), COMPLETIONS, CAPPED, model)

    error = caught.value
    assert (error.status, error.code, error.param) == (400, "max_tokens_required", "max_tokens")
    assert error.message == "For a prompt of this size `max_tokens` is required; your tier allows 50"
    assert error.details == {"maximum": 50}
    assert within_cap(parse(**HUNDRED_BYTES, max_tokens=50, n=2), COMPLETIONS, CAPPED, model).cap == 50


@pytest.mark.parametrize(
    ("dialect", "tier", "model"),
    [
        pytest.param(CHAT, Tier("free"), KNOWN, id="tier-without-a-cap"),
        pytest.param(EMBEDDINGS, CAPPED, KNOWN, id="dialect-that-generates-nothing"),
        pytest.param(CHAT, CAPPED, UNKNOWN, id="unknown-context"),
    ],
)
def test_request_without_a_cap_is_left_alone(dialect: Dialect, tier: Tier, model: Model) -> None:
    request = parse(model="m", prompt="x" * 9000, input="x" * 9000)

    assert within_cap(request, dialect, tier, model) is request


@pytest.mark.parametrize(
    ("dialect", "fields", "added"),
    [
        pytest.param(COMPLETIONS, {"max_completion_tokens": 5}, {"max_tokens": 5}, id="completions"),
        pytest.param(CHAT, {"max_output_tokens": 5}, {"max_tokens": 5}, id="chat"),
        pytest.param(
            CHAT, {"max_output_tokens": 5, "max_completion_tokens": None}, {"max_tokens": 5}, id="chat-with-null"
        ),
        pytest.param(MESSAGES, {"max_output_tokens": 5}, {"max_tokens": 5}, id="messages"),
        pytest.param(RESPONSES, {"max_tokens": 5}, {"max_output_tokens": 5}, id="responses"),
    ],
)
@pytest.mark.parametrize("model", [KNOWN, UNKNOWN], ids=["known-context", "unknown-context"])
def test_cap_that_the_server_would_not_read_is_put_where_it_does(
    dialect: Dialect, fields: dict[str, Any], added: dict[str, int], model: Model
) -> None:
    assert capped(dialect, model, **fields) == {"model": "m", **fields, **added}


@pytest.mark.parametrize(
    ("tier_limits", "model_limits", "keys"),
    [
        pytest.param({}, NO_LIMITS, 1, id="none"),
        pytest.param({"m": Limits(concurrency=1)}, NO_LIMITS, 2, id="of-the-user-alone"),
        pytest.param({}, Limits(), 1, id="of-the-model-that-are-none"),
        pytest.param({"m": Limits(concurrency=1)}, Limits(), 2, id="of-the-user-on-the-model"),
        pytest.param({"other": Limits(concurrency=1)}, Limits(), 1, id="of-the-user-on-another-model"),
        pytest.param({"m": Limits()}, Limits(), 1, id="unlimited-on-the-model"),
        pytest.param({}, Limits(concurrency=1), 2, id="of-the-model-in-flight"),
        pytest.param({}, Limits(requests=parse_limits("1/minute")), 2, id="of-the-model-on-requests"),
        pytest.param({}, Limits(tokens=parse_limits("1/minute")), 2, id="of-the-model-on-tokens"),
        pytest.param({"m": Limits(concurrency=1)}, Limits(concurrency=1), 3, id="all"),
    ],
)
def test_every_limit_is_a_budget_of_its_own(tier_limits: dict[str, Limits], model_limits: Limits, keys: int) -> None:
    tier, model = Tier("free", models=tier_limits), Model("m", limits=model_limits)

    subjects = subjects_of(tier, Identity("test", "alice"), model)

    assert len({subject.key for subject in subjects}) == len(subjects) == keys
    assert len(subjects_of(tier, Identity("test", "alice"), None)) == 1
