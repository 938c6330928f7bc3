"""Which path leads where, and who may use which model."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from maas_middleware.catalogue import Catalogue, Location, Model
from maas_middleware.dialects import ErrorFormat
from maas_middleware.endpoints import ENDPOINTS, Endpoint, Kind, error_format
from maas_middleware.errors import AccessDenied, MethodNotAllowed, ModelNotFound, NotFound
from maas_middleware.tiers import FEATURES, Feature, Tier

FREE, GOLD = Tier("free"), Tier("gold")


def a_model(model_id: str, path: str | None = None, tiers: frozenset[str] | None = None) -> Model:
    return Model(id=model_id, name=model_id, upstream_model=model_id, path=path or f"/{model_id}", tiers=tiers)


PUBLIC = a_model("public")
NESTED = a_model("public/nested")
PLACED = a_model("placed", "/some/where", frozenset({"gold"}))
HIDDEN = a_model("hidden", tiers=frozenset())
CATALOGUE = Catalogue([PUBLIC, NESTED, PLACED, HIDDEN])

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@pytest.mark.parametrize(
    ("path", "model", "canonical"),
    [
        pytest.param(CHAT, None, CHAT, id="chat"),
        pytest.param(COMPLETIONS, None, COMPLETIONS, id="completions"),
        pytest.param(f"{CHAT}/", None, CHAT, id="trailing-slash"),
        pytest.param(f"{CHAT}{CHAT}", None, CHAT, id="appended-once"),
        pytest.param(f"{CHAT}{CHAT}{CHAT}/", None, CHAT, id="appended-twice"),
        pytest.param(f"{CHAT}{COMPLETIONS}", None, COMPLETIONS, id="the-last-one-counts"),
        pytest.param(f"/public{CHAT}", PUBLIC, CHAT, id="below-a-model"),
        pytest.param(f"/public{CHAT}{COMPLETIONS}", PUBLIC, COMPLETIONS, id="appended-below-a-model"),
        pytest.param(f"/public/nested{CHAT}", NESTED, CHAT, id="the-longest-prefix-wins"),
        pytest.param(f"/some/where{COMPLETIONS}", PLACED, COMPLETIONS, id="configured-path"),
        pytest.param(f"/hidden{CHAT}", HIDDEN, CHAT, id="a-model-for-nobody-is-located-all-the-same"),
    ],
)
def test_paths_that_lead_to_an_endpoint(path: str, model: Model | None, canonical: str) -> None:
    location = CATALOGUE.locate(path)

    assert (location.model, location.path) == (model, canonical)
    assert [(endpoint.method, endpoint.path) for endpoint in location.endpoints.values()] == [("POST", canonical)]
    assert list(location.endpoints) == ["POST"]


class Text(str):
    """Text that can be watched: a weak reference to it tells when nobody remembers it any more."""


def located(catalogue: Catalogue, path: str) -> weakref.ref[Text]:
    text = Text(path)
    catalogue.locate(text)
    return weakref.ref(text)


def test_paths_of_strangers_are_not_remembered() -> None:
    catalogue = Catalogue([PUBLIC])

    assert located(catalogue, f"/stranger{CHAT}")() is None
    assert located(catalogue, "/v1/responses/resp_1")() is None
    assert located(catalogue, CHAT)() is not None


def test_only_so_many_paths_are_remembered() -> None:
    catalogue = Catalogue([a_model(f"model-{number}") for number in range(1100)])
    first = located(catalogue, f"/model-0{CHAT}")

    for number in range(1, 1100):
        catalogue.locate(f"/model-{number}{CHAT}")

    assert first() is None
    assert catalogue.locate(f"/model-0{CHAT}").model == a_model("model-0")
    assert catalogue.locate(f"/model-1099{CHAT}").model == a_model("model-1099")


def test_path_leads_to_the_same_place_each_time() -> None:
    catalogue = Catalogue([PUBLIC, NESTED])

    for _ in range(2):
        assert catalogue.locate(f"/public/nested{CHAT}/") == Location(CHAT, NESTED, CATALOGUE.locate(CHAT).endpoints)
        assert catalogue.locate(f"/public{CHAT}").model is PUBLIC
        assert catalogue.locate(f"/hidden{CHAT}").endpoints == {}


@pytest.mark.parametrize(
    ("path", "model", "canonical"),
    [
        pytest.param("/", None, "/", id="root"),
        pytest.param("//", None, "/", id="two-slashes-alone"),
        pytest.param("", None, "", id="empty"),
        pytest.param("/health", None, "/health", id="something-else"),
        pytest.param("/v1/models", None, "/v1/models", id="control-route"),
        pytest.param("/v1/models/", None, "/v1/models", id="control-route-with-slash"),
        pytest.param(f"{CHAT}/v1/models", None, "/v1/models", id="appended-control-route"),
        pytest.param("/v1/embeddings/x", None, "/v1/embeddings/x", id="below-an-endpoint"),
        pytest.param("/v1/embeddings//", None, "/v1/embeddings/", id="two-slashes"),
        pytest.param("/adaptersx", None, "/adaptersx", id="beside-a-subtree"),
        pytest.param(f"/{CHAT}", None, f"/{CHAT}", id="double-slash-in-front"),
        pytest.param("/V1/chat/completions", None, "/V1/chat/completions", id="other-case"),
        pytest.param(f"/publicity{CHAT}", None, f"/publicity{CHAT}", id="prefix-ends-at-a-segment"),
        pytest.param(f"/unknown{CHAT}", None, f"/unknown{CHAT}", id="unknown-model"),
        pytest.param("/public", None, "/public", id="a-model-itself"),
        pytest.param("/public/v1/models", PUBLIC, "/v1/models", id="control-route-below-a-model"),
        pytest.param("/some/where/v1/tokens", PLACED, "/v1/tokens", id="nothing-below-a-model"),
    ],
)
def test_paths_that_lead_to_no_endpoint(path: str, model: Model | None, canonical: str) -> None:
    location = CATALOGUE.locate(path)

    assert (location.model, location.path, dict(location.endpoints)) == (model, canonical, {})


def test_a_model_is_given_to_the_tiers_that_may_use_it() -> None:
    assert CATALOGUE.model("public", FREE) is PUBLIC
    assert CATALOGUE.model("placed", GOLD) is PLACED


def test_a_model_for_another_tier_is_denied() -> None:
    with pytest.raises(AccessDenied):
        CATALOGUE.model("placed", FREE)


def test_a_model_that_is_not_there_is_not_found() -> None:
    with pytest.raises(ModelNotFound) as caught:
        CATALOGUE.model("unknown", GOLD)

    assert caught.value.message == "The model `unknown` does not exist"


@pytest.mark.parametrize(
    ("tier", "expected"),
    [
        pytest.param(FREE, [PUBLIC, NESTED], id="free"),
        pytest.param(GOLD, [PUBLIC, NESTED, PLACED], id="gold"),
    ],
)
def test_only_models_of_the_tier_are_listed_in_the_order_of_the_configuration(
    tier: Tier, expected: list[Model]
) -> None:
    assert CATALOGUE.models_for(tier) == expected


def test_a_catalogue_without_models_leaves_them_to_the_inner_app() -> None:
    catalogue = Catalogue()

    model = catalogue.model("ns/anything", FREE)

    assert catalogue.is_open
    assert (model.id, model.upstream_model, model.tiers) == ("ns/anything", "ns/anything", None)
    assert catalogue.models_for(FREE) == []


def test_an_empty_catalogue_has_no_model() -> None:
    catalogue = Catalogue([])

    assert not catalogue.is_open
    with pytest.raises(ModelNotFound):
        catalogue.model("anything", FREE)


def test_doubled_path_collapses_a_few_times_and_is_refused_beyond() -> None:
    assert Catalogue().locate(CHAT * 5).path == CHAT
    assert Catalogue().locate(CHAT * 5).endpoint("POST").is_served
    assert Catalogue().locate(CHAT * 6).endpoint("POST").kind == "refused"


def test_long_path_of_a_stranger_is_looked_up_no_further_than_models_have_paths() -> None:
    class Counting(str):
        searches = 0

        def rfind(self, *arguments: object) -> int:
            Counting.searches += 1
            return super().rfind(*arguments)  # type: ignore[arg-type]  # passed on as they came

    location = Catalogue([Model("org/model")]).locate(Counting("/" * 60_000 + "x"))

    assert location.model is None
    assert Counting.searches <= len("/org/model") + 1


# the table of endpoints

SERVED = [endpoint for endpoint in ENDPOINTS if endpoint.is_served]
UNSERVED = [endpoint for endpoint in ENDPOINTS if not endpoint.is_served]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"]


def a_path(endpoint: Endpoint) -> str:
    return endpoint.path.replace("*", "some/thing")


def test_every_row_of_the_table_is_either_served_to_post_or_closed_to_every_method() -> None:
    assert {(endpoint.method, endpoint.kind) for endpoint in SERVED} == {("POST", "billable"), ("POST", "unmetered")}
    assert {(endpoint.method, endpoint.kind) for endpoint in UNSERVED} == {("*", "administrative"), ("*", "refused")}
    assert not any(endpoint.path.endswith("*") for endpoint in SERVED)
    assert len({(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}) == len(ENDPOINTS)


@pytest.mark.parametrize("endpoint", SERVED, ids=lambda endpoint: endpoint.path)
@pytest.mark.parametrize(
    ("prefix", "model", "suffix"),
    [
        pytest.param("", None, "", id="plain"),
        pytest.param("", None, "/", id="trailing-slash"),
        pytest.param("/public", PUBLIC, "", id="below-a-model"),
        pytest.param("/public/nested", NESTED, "/", id="below-a-nested-model-and-slash"),
        pytest.param("/some/where", PLACED, "", id="below-a-configured-path"),
    ],
)
def test_served_endpoint_is_found_for_post_and_asked_about_by_head(
    endpoint: Endpoint, prefix: str, model: Model | None, suffix: str
) -> None:
    location = CATALOGUE.locate(prefix + endpoint.path + suffix)

    assert (location.path, location.model) == (endpoint.path, model)
    assert location.endpoint("POST") is endpoint
    assert location.endpoint("HEAD") is endpoint


@pytest.mark.parametrize(
    "endpoint", [row for row in SERVED if row.path.startswith("/v1/")], ids=lambda endpoint: endpoint.path
)
@pytest.mark.parametrize("prefix", ["", "/public"])
def test_path_that_was_appended_to_a_model_url_leads_to_the_last_one(endpoint: Endpoint, prefix: str) -> None:
    location = CATALOGUE.locate(f"{prefix}{CHAT}{endpoint.path}")

    assert (location.path, location.endpoint("POST")) == (endpoint.path, endpoint)


@pytest.mark.parametrize("endpoint", SERVED, ids=lambda endpoint: endpoint.path)
@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("POST", "HEAD")])
def test_wrong_method_is_told_which_are_right(endpoint: Endpoint, method: str) -> None:
    location = CATALOGUE.locate(endpoint.path)

    with pytest.raises(MethodNotAllowed) as caught:
        location.endpoint(method)

    assert caught.value.headers == ((b"allow", b"HEAD, POST"),)


@pytest.mark.parametrize("endpoint", UNSERVED, ids=lambda endpoint: endpoint.path)
@pytest.mark.parametrize("prefix", ["", "/public", "/some/where"])
def test_endpoint_that_is_not_served_is_closed_whatever_the_method(endpoint: Endpoint, prefix: str) -> None:
    location = CATALOGUE.locate(prefix + a_path(endpoint))

    assert {location.endpoint(method) for method in METHODS} == {endpoint}
    assert (endpoint.is_served, endpoint.dialect) == (False, None)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        pytest.param("/v1/responses/resp_1", "refused", id="one-response"),
        pytest.param("/v1/responses/resp_1/cancel", "refused", id="deep-below"),
        pytest.param("/v1/responses//", "refused", id="empty-segment"),
        pytest.param("/v1/messages/batches", "refused", id="below-messages"),
        pytest.param("/v1/messages/count_tokens/x", "refused", id="below-a-row-of-its-own"),
        pytest.param("/v1/messages/count_tokens", "unmetered", id="a-row-of-its-own-wins"),
        pytest.param("/v1/chat/completions/batch", "refused", id="below-chat"),
        pytest.param("/v1/chat/completions/render", "refused", id="render"),
        pytest.param("/adapters", "administrative", id="the-collection"),
        pytest.param("/adapters/a/b", "administrative", id="in-the-collection"),
        pytest.param("/v1/load_lora_adapter", "administrative", id="lora"),
        pytest.param("/v1/realtime", "refused", id="realtime"),
        pytest.param("/public/v1/load_lora_adapter", "administrative", id="below-a-model"),
        pytest.param(f"{CHAT}/v1/load_lora_adapter", "administrative", id="appended"),
        pytest.param(f"/public{CHAT}/v1/responses/resp_1", "refused", id="appended-below-a-model"),
    ],
)
def test_rows_cover_what_is_below_them(path: str, kind: Kind) -> None:
    assert CATALOGUE.locate(path).endpoint("POST").kind == kind


def test_where_there_is_no_endpoint_no_method_is_found() -> None:
    with pytest.raises(NotFound):
        CATALOGUE.locate("/health").endpoint("GET")


@pytest.mark.parametrize("method", ["POST", "HEAD"])
def test_several_methods_on_one_path_are_told_apart(method: str) -> None:
    get, post = Endpoint("GET", "/x", "unmetered"), Endpoint("POST", "/x", "billable")
    location = Location("/x", None, {"GET": get, "POST": post})

    assert location.endpoint(method) is {"POST": post, "HEAD": get}[method]
    with pytest.raises(MethodNotAllowed) as caught:
        location.endpoint("PUT")
    assert caught.value.headers == ((b"allow", b"GET, HEAD, POST"),)


@pytest.mark.parametrize(
    ("path", "feature"),
    [
        pytest.param(CHAT, None, id="chat"),
        pytest.param(COMPLETIONS, None, id="completions"),
        pytest.param("/tokenize", None, id="tokenize"),
        pytest.param("/v1/messages", "messages", id="messages"),
        pytest.param("/v1/messages/count_tokens", "messages", id="count-tokens"),
        pytest.param("/v1/responses", "responses", id="responses"),
        pytest.param("/v1/embeddings", "embeddings", id="embeddings"),
        pytest.param("/v2/rerank", "rerank", id="rerank"),
        pytest.param("/score", "rerank", id="score"),
        pytest.param("/classify", "pooling", id="classify"),
        pytest.param("/v1/audio/transcriptions", "audio", id="transcriptions"),
        pytest.param("/v1/audio/speech", "audio", id="speech"),
        pytest.param("/v1/images/edits", "images", id="images"),
    ],
)
def test_endpoint_tells_the_feature_that_it_needs(path: str, feature: Feature | None) -> None:
    assert CATALOGUE.locate(path).endpoint("POST").feature == feature


def test_features_of_endpoints_are_known_ones() -> None:
    assert {endpoint.feature for endpoint in ENDPOINTS} - {None} <= set(FEATURES)


@pytest.mark.parametrize(
    ("path", "errors"),
    [
        pytest.param("/v1/messages", "anthropic", id="messages"),
        pytest.param("/v1/messages/", "anthropic", id="messages-and-slash"),
        pytest.param("/v1/messages/count_tokens", "anthropic", id="count-tokens"),
        pytest.param("/org/model/v1/messages", "anthropic", id="below-a-model"),
        pytest.param("/mount/org/model/v1/messages/count_tokens", "anthropic", id="below-a-mount"),
        pytest.param(f"{CHAT}/v1/messages", "anthropic", id="appended"),
        pytest.param("/v1/responses", "responses", id="responses"),
        pytest.param("/mount/v1/responses/", "responses", id="responses-below-a-mount"),
        pytest.param(CHAT, "openai", id="chat"),
        pytest.param("/v1/embeddings", "openai", id="embeddings"),
        pytest.param("/v1/audio/transcriptions", "openai", id="form"),
        pytest.param("/v1/my-messages", "openai", id="only-at-a-segment-boundary"),
        pytest.param("/xv1/messages", "openai", id="only-whole-segments"),
        pytest.param("/v1/messagesx", "openai", id="only-whole-segments-at-the-end"),
        pytest.param("/health", "openai", id="no-endpoint"),
        pytest.param("/", "openai", id="root"),
        pytest.param("", "openai", id="empty"),
    ],
)
def test_errors_are_in_the_shape_of_the_path(path: str, errors: ErrorFormat) -> None:
    assert error_format(path) == errors


@pytest.mark.parametrize("endpoint", SERVED, ids=lambda endpoint: endpoint.path)
def test_errors_of_every_endpoint_are_in_the_shape_of_its_dialect(endpoint: Endpoint) -> None:
    assert endpoint.dialect is not None
    assert error_format(f"/mount/model{endpoint.path}") == endpoint.dialect.errors


# aliases


def test_a_model_is_found_by_its_aliases() -> None:
    model = Model("org/model-7b", aliases=("model", "gpt-4o"))
    catalogue = Catalogue([model])

    assert [catalogue.model(name, FREE) for name in ("org/model-7b", "model", "gpt-4o")] == [model] * 3
    assert all(model.is_called(name) for name in ("org/model-7b", "model", "gpt-4o"))
    assert not any(model.is_called(name) for name in ("Model", "org", ""))
    assert catalogue.models_for(FREE) == [model]
    assert not catalogue.locate(f"/gpt-4o{CHAT}").endpoints


def test_a_model_of_another_tier_is_denied_by_its_aliases_too() -> None:
    with pytest.raises(AccessDenied):
        Catalogue([Model("a", aliases=("b",), tiers=("gold",))]).model("b", FREE)


def test_names_of_a_model_are_its_id_where_nothing_else_is_said() -> None:
    model = Model("org/m", aliases=())

    assert (model.name, model.upstream_model, model.path) == ("org/m", "org/m", "/org/m")


# paths in disguise


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/V1/Chat/Completions", id="other-case"),
        pytest.param("//v1/chat/completions", id="double-slash-in-front"),
        pytest.param("/v1//chat/completions", id="double-slash-inside"),
        pytest.param("/v1/./chat/completions", id="dot"),
        pytest.param("/x/../v1/chat/completions", id="dots"),
        pytest.param("/v1\\chat\\completions", id="backslashes"),
        pytest.param("v1/chat/completions", id="no-slash-in-front"),
        pytest.param("/public//v1/chat/completions", id="below-a-model"),
        pytest.param("/V1/LOAD_LORA_ADAPTER", id="administration"),
        pytest.param("/v1/chat/completions\n", id="line-feed"),
        pytest.param("/v1/realtime\n", id="websocket"),
        pytest.param("/v1/models\n", id="list-of-models"),
        pytest.param("/llm/v1/chat/completions", id="below-a-mount-point"),
        pytest.param("/a/v1/b/v1/load_lora_adapter", id="below-several"),
    ],
)
def test_path_that_a_lenient_server_would_take_for_an_endpoint_is_in_disguise(path: str) -> None:
    assert not CATALOGUE.locate(path).endpoints
    assert CATALOGUE.is_disguised(path)


@pytest.mark.parametrize("path", ["/", "", "/health", "/docs/v1", "/v1/models", "/static/../index.html"])
def test_path_of_the_host_is_in_no_disguise(path: str) -> None:
    assert not CATALOGUE.is_disguised(path)


@pytest.mark.parametrize(
    ("models", "name"),
    [
        pytest.param([Model("a"), Model("a")], "a", id="two-ids"),
        pytest.param([Model("a"), Model("b", aliases=("a",))], "a", id="alias-and-id"),
        pytest.param([Model("a", aliases=("c",)), Model("b", aliases=("c",))], "c", id="two-aliases"),
        pytest.param([Model("a"), Model("b", path="/a")], "/a", id="two-paths"),
    ],
)
def test_a_name_that_stands_for_two_models_is_refused(models: list[Model], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} stands for two models$"):
        Catalogue(models)


@pytest.mark.parametrize("names", [{"aliases": "small"}, {"tiers": "premium"}])
def test_a_text_is_no_collection_of_names(names: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="aliases and tiers are collections of names"):
        Model("a", **names)
