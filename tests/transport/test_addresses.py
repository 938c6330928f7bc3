"""Where an upstream is: IPv4, IPv6 and unix sockets."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import anyio
import httpx
import pytest

from .asking import Kind, ask, post
from .scripts import OK, answering, silent
from .upstreams import hostile, listening


async def test_ipv6_address(kind: Kind) -> None:
    async with hostile(answering(OK), listening("::1")) as upstream, kind.open() as transport:
        found = await ask(transport, upstream.url)

    assert found.body == b"ok"
    assert upstream.url.startswith("http://[::1]:")
    assert b"Host: [::1]:" in upstream.log


async def test_unix_socket(kind: Kind) -> None:
    with tempfile.TemporaryDirectory() as folder:  # whose path is short enough
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{folder}/model")
        listener.listen()
        listener.setblocking(False)
        async with hostile(answering(OK), listener) as upstream, kind.open(uds=f"{folder}/model") as transport:
            bodies = [(await ask(transport, "http://model/path")).body for _ in range(2)]
            upstream.peers[0].hang_up_now()
            bodies.append((await post(transport, "http://model/path", b"once only")).body)

    assert (bodies, len(upstream.peers)) == ([b"ok"] * 3, 2)
    assert b"GET /path HTTP/1.1\r\nHost: model\r\n" in upstream.log


async def test_unix_socket_that_is_not_there_is_a_connect_error(kind: Kind, tmp_path: Path) -> None:
    async with kind.open(uds=str(tmp_path / "nobody")) as transport:
        with pytest.raises(httpx.ConnectError):
            await ask(transport, "http://model/")


async def test_port_where_nobody_listens_is_a_connect_error(kind: Kind) -> None:
    async with hostile(silent) as upstream:
        pass

    async with kind.open(max_connections=1) as transport:
        for _ in range(2):
            with pytest.raises(httpx.ConnectError):
                await ask(transport, upstream.url, pool=5)


async def test_unknown_host_is_a_connect_error(kind: Kind) -> None:
    async with kind.open() as transport:
        with anyio.fail_after(20), pytest.raises(httpx.ConnectError):
            await ask(transport, "http://model.invalid/")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "//127.0.0.1/", "unix://model/"])
async def test_other_schemes_are_refused(kind: Kind, url: str) -> None:
    async with kind.open() as transport:
        with pytest.raises(httpx.UnsupportedProtocol):
            await ask(transport, url)
