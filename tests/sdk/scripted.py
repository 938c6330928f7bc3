"""A model server that does what each test says, for what model servers in trouble do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ..hostile.scripts import Changing, hanging_up, reset_after, said
from ..raw_upstream import LAST_CHUNK, Script, chunk, chunked_head, raw_upstream
from ..streams import RECORDINGS
from .site import Site, sited

JSON = b"Content-Type: application/json"
EVENTS = chunked_head("text/event-stream; charset=utf-8")
model = Changing(hanging_up)


@asynccontextmanager
async def scripted_site(directory: Path) -> AsyncIterator[Site]:
    """A gateway with the model `scripted`, and `gone`, whose server is not there. It waits 0.3 seconds for answers."""
    async with raw_upstream(hanging_up) as closed:
        pass
    async with raw_upstream(model) as upstream:
        servers = {"scripted": upstream.url, "gone": closed.url}
        models = [{"id": name, "tiers": "all", "upstreams": [url]} for name, url in servers.items()]
        proxy = {"first_byte_timeout": 0.3, "idle_timeout": 0.3}
        async with sited(directory, models, proxy=proxy) as site:
            yield site


def streaming(stream: bytes) -> Script:
    """A server that streams so much and no more."""
    return said(EVENTS, chunk(stream), LAST_CHUNK)


def recorded(name: str, events: int | None = None) -> bytes:
    """What some server streamed, or only its first events."""
    (stream,) = [recording.plain for recording in RECORDINGS if recording.name == name]
    return b"".join(event + b"\n\n" for event in stream.rstrip(b"\n").split(b"\n\n")[:events])


def endings(part: bytes) -> dict[str, tuple[Script, str]]:
    """How a stream breaks off behind a part, and what users are told then."""
    failed, too_long = "The model failed to answer", "The model took too long to answer"
    return {
        "closes": (said(EVENTS, chunk(part)), failed),
        "ends": (streaming(part), failed),
        "resets": (reset_after(EVENTS, chunk(part)), failed),
        "hangs": (said(EVENTS, chunk(part), then_hang=True), too_long),
    }
