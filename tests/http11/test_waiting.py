from __future__ import annotations

import asyncio

import httpx
import pytest

from maas_middleware.http11._waiting import until


async def test_what_comes_in_time_is_given() -> None:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, "here")

    assert await until(future, 1000, httpx.ReadTimeout) == "here"
    assert await until(future, None, httpx.ReadTimeout) == "here"


async def test_what_does_not_come_in_time_is_an_error() -> None:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    with pytest.raises(httpx.ReadTimeout):
        await until(future, 0, httpx.ReadTimeout)


async def test_what_comes_at_the_last_moment_is_given() -> None:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0, future.set_result, "here")

    assert await until(future, 0, httpx.ReadTimeout) == "here"
