"""A TCP balancer on loopback: what kube-proxy or HAProxy do with connections, and no more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.abc import SocketAttribute, SocketStream


class Balancer:
    """Gives each connection to the next backend in turn, or to the one behind it where nobody listens.

    Attributes:
        backends: ports on loopback, which may change at any time.
        passed_over: how often nobody listened.
    """

    def __init__(self, port: int, backends: list[int]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.backends = backends
        self.passed_over = 0
        self._turn = 0

    async def forward(self, client: SocketStream) -> None:
        """Forward one connection until either side ends it."""
        async with client:
            backend = await self._connect()
            async with backend, anyio.create_task_group() as group:
                group.start_soon(_pump, client, backend, group.cancel_scope)
                group.start_soon(_pump, backend, client, group.cancel_scope)

    async def _connect(self) -> SocketStream:
        while True:  # a backend listens at any time, so this ends
            self._turn += 1
            try:
                return await anyio.connect_tcp("127.0.0.1", self.backends[self._turn % len(self.backends)])
            except OSError:
                self.passed_over += 1


async def _pump(source: SocketStream, sink: SocketStream, connection: anyio.CancelScope) -> None:
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            await sink.send(await source.receive())
    connection.cancel()


@asynccontextmanager
async def balancing(*backends: int) -> AsyncIterator[Balancer]:
    """Balance between ports on loopback until the end of the block."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    balancer = Balancer(listener.extra(SocketAttribute.local_port), list(backends))
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, balancer.forward)
        yield balancer
        group.cancel_scope.cancel()
