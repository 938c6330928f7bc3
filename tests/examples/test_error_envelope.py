from __future__ import annotations

from typing import Any

import pytest

from .running import running


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        pytest.param(
            "/voices/tenor",
            404,
            {"message": "There is no tenor", "type": "invalid_request_error", "param": None, "code": "not_found"},
            id="HTTPException",
        ),
        pytest.param(
            "/voices/bass?octave=high",
            422,
            {
                "message": "Input should be a valid integer, unable to parse string as an integer",
                "type": "invalid_request_error",
                "param": "octave",
                "code": "unprocessable_entity",
            },
            id="validation",
        ),
        pytest.param(
            "/voices/alto",
            500,
            {"message": "Internal error (request call-42)", "type": "server_error", "param": None}
            | {"code": "internal_error"},
            id="exception",
        ),
    ],
)
async def test_errors_are_read_as_openai_s(path: str, status: int, error: dict[str, Any]) -> None:
    async with running("error_envelope") as client:
        answer = await client.get(path, headers={"x-request-id": "call-42"})

    assert answer.status_code == status
    assert answer.json() == {"error": error}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == "call-42"


async def test_what_is_no_error_passes_as_it_is_with_an_id() -> None:
    async with running("error_envelope") as client:
        answer = await client.get("/voices/bass")

    assert answer.json() == {"voice": "bass", "octave": 0}
    assert answer.headers["x-request-id"]
