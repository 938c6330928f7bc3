from __future__ import annotations

import json

import pytest

from maas_middleware.errors import UpstreamError
from maas_middleware.middleware.administrators import AdministratorsMiddleware
from maas_middleware.testing.converse import converse
from tests.parts import AS_ALICE, AS_BOB, Answering, identified, json_answer, start_up, starting_up

ADMINISTRATORS = ("premium-users",)


def recorded(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == "maas_middleware.audit"]


async def test_record_tells_who_asked_for_what_and_when(caplog: pytest.LogCaptureFixture) -> None:
    app = Answering(*json_answer(b"{}"))
    guarded = identified(AdministratorsMiddleware(app, administrators=ADMINISTRATORS, clock=lambda: 1_790_000_000.0))

    refused, done = [await converse(guarded, "POST", "/sleep", headers=[who]) for who in (AS_ALICE, AS_BOB)]

    assert (refused.status, done.status, len(app.scopes)) == (403, 200, 1)
    assert [(record["actor"], record["outcome"]) for record in recorded(caplog)] == [
        ("test/alice", "denied"),
        ("test/bob", "done"),
    ]
    assert {(record["event"], record["time"]) for record in recorded(caplog)} == {
        ("admin.server POST /sleep", "2026-09-21T14:13:20.000Z")
    }


async def test_error_of_the_app_goes_on_outwards_and_is_recorded_as_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = identified(AdministratorsMiddleware(Answering(raises=UpstreamError()), administrators=ADMINISTRATORS))

    answer = await converse(app, "POST", "/sleep", headers=[AS_BOB])

    assert isinstance(answer.exception, UpstreamError)
    assert [record["outcome"] for record in recorded(caplog)] == ["failed"]


async def test_lifespan_is_the_apps() -> None:
    app = AdministratorsMiddleware(starting_up, administrators=ADMINISTRATORS)

    assert await start_up(app) == [{"type": "lifespan.startup.complete"}]
