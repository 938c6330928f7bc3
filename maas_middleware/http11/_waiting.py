"""Waiting for a future, with or without a deadline."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import httpx

T = TypeVar("T")


async def until(future: asyncio.Future[T], seconds: float | None, error: type[httpx.TimeoutException]) -> T:
    """Wait for a future; None waits for ever and costs nothing. A deadline that passes fails the future.

    Raises:
        httpx.TimeoutException: of the type given, after so many seconds.
    """
    if seconds is None:
        return await future
    deadline = future.get_loop().call_later(seconds, _expire, future, error)
    try:
        return await future
    finally:
        deadline.cancel()


def _expire(future: asyncio.Future[T], error: type[httpx.TimeoutException]) -> None:
    if not future.done():
        future.set_exception(error("Timed out"))
