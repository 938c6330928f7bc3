"""A Redis as `limits` reaches it, and the script that the ledger runs there."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from limits.aio.storage import RedisStorage
from limits.aio.storage.redis.redispy import RedispyBridge
from limits.errors import ConfigurationError, StorageError
from limits.storage import storage_from_string

MAXIMUM_CONNECTIONS = 8  # more only make more handshakes at once: calls take a fraction of a millisecond
SCRIPTS = ("buckets.lua", "operations.lua")  # one script, in two files


class LedgerStorage(RedisStorage):
    """A storage under schemes of its own, so that importing it replaces nobody's.

    Args:
        uri: `async+maas-redis://` or `async+maas-rediss://`.
        options: those of `RedisStorage` and of redis-py's `BlockingConnectionPool`.
    """

    STORAGE_SCHEME = ["async+maas-redis", "async+maas-rediss"]  # noqa: RUF012 - as in the class above
    DEPENDENCIES = {"redis": RedisStorage.DEPENDENCIES["redis"]}  # noqa: RUF012 - so that no other client is imported

    def __init__(self, uri: str, **options: Any) -> None:
        super().__init__("async+" + uri.removeprefix("async+maas-"), **options)
        assert isinstance(self.bridge, RedispyBridge)
        self._client: Any = self.bridge.get_connection()
        self._script = b"".join(Path(__file__).with_name(name).read_bytes() for name in SCRIPTS)
        self._digest = hashlib.sha1(self._script, usedforsecurity=False).hexdigest()
        self._no_script: type[Exception] = self.bridge.dependency.exceptions.NoScriptError
        self._failures: tuple[type[Exception], ...] = (self.bridge.dependency.RedisError,)

    def configure_bridge(self) -> None:
        """Make a client of which calls wait for a connection while all are in use, and that tries nothing twice."""
        redis = self.bridge.dependency
        retry = redis.asyncio.retry.Retry(redis.backoff.NoBackoff(), 0)
        pool = redis.asyncio.BlockingConnectionPool.from_url(self.bridge.uri, retry=retry, **self.options)
        if pool.make_connection().encoder.decode_responses:  # the first to look at the options
            raise ValueError("replies have to be bytes")
        self.bridge.use_basic(connection_pool=pool)

    async def run(self, *keys_and_arguments: bytes) -> Any:
        """Run the script on three keys; where the server does not know it, or not any more, it is sent.

        Raises:
            StorageError: whatever redis-py says.
        """
        try:
            try:
                return await self._client.execute_command("EVALSHA", self._digest, b"3", *keys_and_arguments)
            except self._no_script:
                return await self._client.execute_command("EVAL", self._script, b"3", *keys_and_arguments)
        except self._failures as error:
            raise StorageError(error) from error

    async def aclose(self) -> None:
        """Close all connections, whether the server takes leave or not; calls in flight fail."""
        with suppress(*self._failures):
            await self._client.aclose(close_connection_pool=True)


def open_storage(url: str, *, key_prefix: str, timeout: float) -> LedgerStorage:
    """Make the storage for a `redis://` or `rediss://` url; nothing is connected yet.

    Raises:
        ValueError: with a sentence that has nothing of the url, where redis-py is missing or the url is wrong.
    """
    wrong = ValueError("the url of Redis has to be like redis://[user:password@]host[:port][/database]")
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("redis", "rediss") and parts.hostname
        place = parts.netloc if parts.port else f"{parts.netloc.removesuffix(':')}:6379"  # `limits` wants a port
    except ValueError:
        raise wrong from None
    if not is_whole:
        raise wrong
    try:
        storage = storage_from_string(
            parts._replace(scheme=f"async+maas-{parts.scheme}", netloc=place).geturl(),
            implementation="redispy",
            wrap_exceptions=True,
            key_prefix=key_prefix,
            protocol=2,
            client_name="maas-middleware",
            max_connections=MAXIMUM_CONNECTIONS,
            socket_connect_timeout=timeout,  # it is how long closing may take, too
        )
    except ConfigurationError:
        raise ValueError("redis is missing or too old: pip install 'maas-middleware[redis]'") from None
    except Exception:  # which options are wrong is for redis-py to say, in any words
        raise wrong from None
    assert isinstance(storage, LedgerStorage)
    return storage
