"""What the SDKs read through the gateway is what they would read from the model itself, under our name for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .calls import ANTHROPIC_CALLS, OPENAI_CALLS
from .site import Site

# the SDK deprecates translations, and yet has them
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

NAMES = [
    pytest.param("simulator", "simulator", "", "simulator", id="its-own-name"),
    pytest.param("gpt-4o", "acme/large", "", "qwen3", id="alias"),
    pytest.param("acme/large", "acme/large", "/acme/large", "qwen3", id="our-id-below-the-models-path"),
]
# answers that say nothing of a model
NAMELESS = {"transcriptions", "translations", "images", "speech", "count-tokens"}


def renamed(data: Any, name: str) -> Any:
    """The same data, whatever its `model` is put to a name."""
    if isinstance(data, list):
        return [renamed(item, name) for item in data]
    if isinstance(data, dict):
        return {key: name if key == "model" else renamed(value, name) for key, value in data.items()}
    return data


def names_in(data: Any) -> Iterator[str]:
    """Every `model` in the data."""
    if isinstance(data, list):
        for item in data:
            yield from names_in(item)
    if isinstance(data, dict):
        for key, value in data.items():
            yield from [value] if key == "model" else names_in(value)


async def both_replies(site: Site, kind: str, named: str, path: str, upstream_model: str) -> tuple[Any, Any]:
    """What a call reads through the gateway and directly, when both requests have the same id for the model."""
    model, sdks = site.models[upstream_model]
    user = await site.user()
    if kind in OPENAI_CALLS:
        ours = await OPENAI_CALLS[kind](user.openai(path), named)
        same_id = {"x-request-id": dict(model.requests[-1].headers)[b"x-request-id"].decode()}
        theirs = await OPENAI_CALLS[kind](sdks.openai("none", default_headers=same_id), upstream_model)
    else:
        ours = await ANTHROPIC_CALLS[kind](user.anthropic(path), named)
        same_id = {"x-request-id": dict(model.requests[-1].headers)[b"x-request-id"].decode()}
        theirs = await ANTHROPIC_CALLS[kind](sdks.anthropic("none", default_headers=same_id), upstream_model)
    return ours.data, theirs.data


@pytest.mark.parametrize(("named", "model_id", "path", "upstream_model"), NAMES)
@pytest.mark.parametrize("kind", [*OPENAI_CALLS, *ANTHROPIC_CALLS])
async def test_answer_is_that_of_the_model_under_its_configured_id(
    site: Site, kind: str, named: str, model_id: str, path: str, upstream_model: str
) -> None:
    ours, theirs = await both_replies(site, kind, named, path, upstream_model)

    assert theirs
    assert ours == renamed(theirs, model_id)
    assert set(names_in(ours)) == (set() if kind in NAMELESS else {model_id})
