from __future__ import annotations

import asyncio
import subprocess
import sys

import httpx
import pytest

from maas_middleware.http11 import HTTP11Transport
from maas_middleware.transports import LoopTransport, upstream_transport

WITHOUT_HTTPTOOLS = """
import sys
sys.modules["httptools"] = None  # as where it is not installed
"""

OLD_HTTPTOOLS = """
import httptools
httptools.__version__ = "0.6.3"
from maas_middleware.transports import upstream_transport
print(type(upstream_transport()._make()).__name__)
try:
    upstream_transport("http11")
except ValueError as error:
    print(error)
"""


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


def test_the_fast_client_is_taken_where_it_can_be(caplog: pytest.LogCaptureFixture) -> None:
    kinds = {kind: type(upstream_transport(kind)._make()) for kind in ("auto", "http11", "httpx")}

    assert kinds == {"auto": HTTP11Transport, "http11": HTTP11Transport, "httpx": httpx.AsyncHTTPTransport}
    assert caplog.messages == []


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_HTTPTOOLS + code], capture_output=True, text=True, check=True, timeout=20
    ).stdout


def test_without_httptools_auto_is_httpx_and_says_so_once() -> None:
    printed = run(
        "import logging; from maas_middleware.transports import upstream_transport\n"
        "logging.basicConfig(stream=sys.stdout, format='%(levelname)s %(message)s')\n"
        "print(type(upstream_transport('auto')._make()).__name__)"
    )

    warning, kind = printed.splitlines()
    assert warning.startswith("WARNING httptools 0.6.4 is missing: model servers are reached over httpx")
    assert kind == "AsyncHTTPTransport"


def test_without_httptools_who_asks_for_httpx_is_told_nothing() -> None:
    printed = run(
        "import logging; from maas_middleware.transports import upstream_transport\n"
        "logging.basicConfig(stream=sys.stdout)\n"
        "print(type(upstream_transport('httpx')._make()).__name__)"
    )

    assert printed == "AsyncHTTPTransport\n"


def test_without_httptools_http11_is_a_problem_of_a_gateway_with_what_to_install() -> None:
    printed = run(
        "from maas_middleware import Settings, gateway\n"
        "from maas_middleware._checking import check\n"
        "from maas_middleware.settings import ConfigurationError, ModelSettings, ProxySettings\n"
        "model = ModelSettings(id='m', tiers='all', upstreams=('http://127.0.0.1:1',))\n"
        "settings = Settings(models=(model,), proxy=ProxySettings(transport='http11'))\n"
        "for refuse in (gateway, check):\n"
        "    try:\n"
        "        refuse(settings)\n"
        "    except ConfigurationError as error:\n"
        "        print(error)\n"
    )

    assert printed == "proxy.transport: httptools 0.6.4 is missing: pip install 'maas-middleware[gateway]'\n" * 2


def test_httptools_that_is_not_strict_is_none() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", OLD_HTTPTOOLS], capture_output=True, text=True, check=True, timeout=20
    )

    assert printed.stdout == "AsyncHTTPTransport\nhttptools 0.6.4 is missing: pip install 'maas-middleware[gateway]'\n"


class Closing(httpx.AsyncBaseTransport):
    """A transport that waits in its closing until it is cancelled, and is closed the next time."""

    def __init__(self) -> None:
        self.waits = asyncio.Event()
        self.is_closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200)

    async def aclose(self) -> None:
        if not self.waits.is_set():
            self.waits.set()
            await asyncio.Event().wait()
        self.is_closed = True


async def test_closing_that_is_cancelled_can_be_done_again() -> None:
    inner = Closing()
    transport = LoopTransport(lambda: inner)
    await ask_twice(transport)

    closing = asyncio.create_task(transport.aclose())
    await inner.waits.wait()
    closing.cancel()
    await asyncio.wait([closing])
    await transport.aclose()

    assert closing.cancelled()
    assert inner.is_closed
