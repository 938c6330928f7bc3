"""Which path leads where, and who may use which model."""

from __future__ import annotations

import pytest

from maas_middleware.catalogue import Catalogue, Model
from maas_middleware.errors import AccessDenied, ModelNotFound
from maas_middleware.tiers import Tier

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


@pytest.mark.parametrize(
    ("path", "model", "canonical"),
    [
        pytest.param("/", None, "/", id="root"),
        pytest.param("", None, "", id="empty"),
        pytest.param("/health", None, "/health", id="something-else"),
        pytest.param("/v1/models", None, "/v1/models", id="control-route"),
        pytest.param("/v1/models/", None, "/v1/models", id="control-route-with-slash"),
        pytest.param(f"{CHAT}/v1/models", None, "/v1/models", id="appended-control-route"),
        pytest.param(f"{CHAT}/x", None, f"{CHAT}/x", id="below-an-endpoint"),
        pytest.param(f"{CHAT}//", None, f"{CHAT}/", id="two-slashes"),
        pytest.param(f"/{CHAT}", None, f"/{CHAT}", id="double-slash-in-front"),
        pytest.param("/V1/chat/completions", None, "/V1/chat/completions", id="other-case"),
        pytest.param(f"/publicity{CHAT}", None, f"/publicity{CHAT}", id="prefix-ends-at-a-segment"),
        pytest.param(f"/unknown{CHAT}", None, f"/unknown{CHAT}", id="unknown-model"),
        pytest.param("/public", None, "/public", id="a-model-itself"),
        pytest.param("/public/v1/models", PUBLIC, "/v1/models", id="control-route-below-a-model"),
        pytest.param("/some/where/v1/load_lora_adapter", PLACED, "/v1/load_lora_adapter", id="administration"),
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


def test_doubled_path_collapses_a_few_times_and_is_unknown_beyond() -> None:
    chat = "/v1/chat/completions"

    assert Catalogue().locate(chat * 5).path == chat
    assert Catalogue().locate(chat * 5).endpoints
    assert not Catalogue().locate(chat * 6).endpoints


def test_long_path_of_a_stranger_is_looked_up_no_further_than_models_have_paths() -> None:
    class Counting(str):
        searches = 0

        def rfind(self, *arguments: object) -> int:
            Counting.searches += 1
            return super().rfind(*arguments)  # type: ignore[arg-type]  # passed on as they came

    location = Catalogue([Model("org/model")]).locate(Counting("/" * 60_000 + "x"))

    assert location.model is None
    assert Counting.searches <= len("/org/model") + 1
