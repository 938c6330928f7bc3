"""Each way to mount the whole onion, on each server: what users and authors of the host app see."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

import pytest

from maas_middleware.endpoints import CHAT_COMPLETIONS
from tests.deployments import chat
from tests.hosts.inference import ENDLESS, MODEL, PATTERNS, Notes, Served, added
from tests.hosts.servers import SERVERS, Serving, on_granian, on_hypercorn
from tests.hosts.sites import Site, host_settings, hosting

WEBSOCKET = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}
COMBINATIONS = [pytest.param((pattern, server), id=f"{pattern}-{server}") for pattern in PATTERNS for server in SERVERS]


@dataclass
class Place:
    site: Site
    notes: Notes
    pattern: str


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=COMBINATIONS)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    pattern, server = request.param
    make, mount_point = PATTERNS[pattern]
    notes = Notes()
    async with (
        host_settings() as settings,
        hosting(Served(make(notes, settings), notes), mount_point, server=SERVERS[server]) as site,
    ):
        yield Place(site, notes, pattern)
    assert notes.lifespan == ["up", "down"]


async def test_lifespan_of_the_host_is_up(place: Place) -> None:
    assert place.notes.lifespan == ["up"]


async def test_token_is_minted_and_models_are_listed(place: Place) -> None:
    headers = await place.site.headers()

    listed = await place.site.client.get("/v1/models", headers=headers)

    (model,) = listed.json()["data"]
    assert model["id"] == MODEL


async def test_listed_url_of_a_model_serves_it(place: Place) -> None:
    headers = await place.site.headers()
    (model,) = (await place.site.client.get("/v1/models", headers=headers)).json()["data"]

    url = model["url"] if place.pattern != "fastapi-root-path" else model["url"].replace("/srv", "")  # its proxy does
    answer = await place.site.client.post(url, json=chat(MODEL), headers=headers)

    assert answer.status_code == 200, model["url"]


async def test_answer_tells_its_usage_and_who_asked(place: Place) -> None:
    headers = await place.site.headers()

    answer = await place.site.client.post(CHAT_COMPLETIONS, json=chat(MODEL), headers=headers)

    assert answer.json()["choices"][0]["message"]["content"] == "Well, fine."
    assert answer.headers["x-odhu-usage-total-tokens"] == "5"
    assert int(answer.headers["x-ratelimit-remaining-requests"]) < 20
    assert place.notes.seen[-1] == "pat"


async def test_stream_passes_and_is_charged_with_what_it_used(place: Place) -> None:
    headers = await place.site.headers()
    before = await place.site.tokens_left(headers)

    answer = await place.site.client.post(CHAT_COMPLETIONS, json=chat(MODEL, stream=True), headers=headers)

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.count("data: {") == 2
    assert answer.text.endswith("data: [DONE]\n\n")
    assert before - await place.site.tokens_left(headers) == 5


async def test_stranger_is_401(place: Place) -> None:
    answer = await place.site.client.post(CHAT_COMPLETIONS, json=chat(MODEL))

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_request_over_the_limit_is_429(place: Place) -> None:
    headers = await place.site.headers("sha256~free")
    ask = partial(place.site.client.post, CHAT_COMPLETIONS, json=chat(MODEL), headers=headers)

    answers = [await ask() for _ in range(6)]

    assert [answer.status_code for answer in answers] == [*[200] * 5, 429]
    assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert int(answers[-1].headers["retry-after"]) > 0


async def test_head_is_free(place: Place) -> None:
    headers = await place.site.headers("sha256~other")

    first, second = [await place.site.client.head(CHAT_COMPLETIONS, headers=headers) for _ in range(2)]

    assert (first.status_code, first.content) == (200, b"")
    assert first.headers["x-ratelimit-remaining-requests"] == second.headers["x-ratelimit-remaining-requests"] == "20"


async def test_websocket_is_refused_before_it_is_accepted(place: Place) -> None:
    headers = await place.site.headers()

    stranger = await place.site.client.get("/v1/realtime", headers=WEBSOCKET)
    caller = await place.site.client.get("/v1/realtime", headers=WEBSOCKET | headers)

    assert stranger.status_code == 401
    assert stranger.json()["error"]["code"] == "invalid_api_key"
    assert caller.status_code == 404
    assert caller.json()["error"]["code"] == "not_found"


async def test_client_that_leaves_ends_the_generation_and_is_charged(place: Place) -> None:
    headers = await place.site.headers()
    before = await place.site.tokens_left(headers)
    asked = chat(MODEL, stream=True, messages=[{"role": "user", "content": ENDLESS}])

    async with place.site.client.stream("POST", CHAT_COMPLETIONS, json=asked, headers=headers) as answer:
        await anext(answer.aiter_raw())
    await place.notes.served.wait()

    assert place.notes.cancelled.is_set()
    assert 2 <= before - await place.site.tokens_left(headers) < 20


async def test_what_is_not_listed_is_closed_and_public_paths_are_open(place: Place) -> None:
    headers = await place.site.headers()
    prefix = "/v1" if place.pattern == "mounted-at-v1" else ""

    page, stranger, health = [
        await place.site.client.get(prefix + path, headers=more)
        for path, more in (("/page", headers), ("/page", {}), ("/health", {}))
    ]

    assert (page.status_code, stranger.status_code) == (404, 401)
    assert health.json() == "the host's own"


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
async def test_root_path_of_the_server_comes_before_the_routes(server: Serving) -> None:
    mount_point = "/srv" if server in (on_granian, on_hypercorn) else ""  # uvicorn puts it there itself

    async with (
        host_settings() as settings,
        hosting(added(Notes(), settings), mount_point, server=server, root_path="/srv") as site,
    ):
        headers = await site.headers()
        answer = await site.client.post(CHAT_COMPLETIONS, json=chat(MODEL), headers=headers)
        listed = await site.client.get("/v1/models", headers=headers)

    assert answer.status_code == 200
    assert listed.json()["data"][0]["url"].endswith(f"/srv/{MODEL}/v1/chat/completions")
