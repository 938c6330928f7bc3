from __future__ import annotations

import asyncio

import httpx

from maas_middleware.transports import LoopTransport


def counting() -> tuple[LoopTransport, list[httpx.MockTransport]]:
    made: list[httpx.MockTransport] = []

    def make() -> httpx.MockTransport:
        made.append(httpx.MockTransport(lambda request: httpx.Response(200)))
        return made[-1]

    return LoopTransport(make), made


async def ask_twice(transport: LoopTransport) -> list[int]:
    request = httpx.Request("GET", "http://upstream/")
    return [(await transport.handle_async_request(request)).status_code for _ in range(2)]


def test_each_loop_has_a_transport_of_its_own_and_those_of_ended_loops_are_forgotten() -> None:
    transport, made = counting()

    statuses = [asyncio.run(ask_twice(transport)) for _ in range(3)]

    assert statuses == [[200, 200]] * 3
    assert len(made) == 3
    assert list(transport._transports.values()) == made[-1:]


async def test_closing_where_nothing_was_sent_opens_nothing() -> None:
    transport, made = counting()

    await transport.aclose()

    assert made == []
