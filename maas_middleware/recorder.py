"""Recorded use on its way to the store: summed in memory, written in batches, each of them once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from itertools import islice

import anyio

from ._asgi import new_id
from ._group_commit import GroupCommit
from .errors import StoreUnavailable
from .limiting import DAY_SECONDS, Charge
from .token_store import TokenStore
from .usage_store import UsageRecord, UsageStore

logger = logging.getLogger("maas_middleware")

_EPOCH = date(1970, 1, 1).toordinal()
_BATCH_RECORDS = 500  # few enough that a slow database takes them in time
_MAXIMUM_IN_DOUBT = 8
_MAXIMUM_MODEL_CHARACTERS = 256
_MAXIMUM_MODELS = 200  # of a user on a day
_MARK_SECONDS = 60.0

_Key = tuple[str, int, str]  # owner, day since the epoch, model


class UsageRecorder:
    """Sums up use by user, day and model, and writes it to the store, exactly once however often the store fails.

    While `run` is running, everything is written that often. Without it, as in an app that sees no lifespan, requests
    write it when they have ended: one of them at a time, for all that ended meanwhile.

    What the store may or may not have taken is sent again under the same batch id until it answers, which is exact as
    long as the store remembers the id.

    Args:
        tokens: where it is remembered when tokens were used for the last time; None: nowhere.
        interval: seconds between two writes; what is younger is lost when the process is killed.
        timeout: seconds that a write may take.
        clock: seconds since the epoch.
        maximum: how many sums, and how many tokens, are kept while the store fails. Further ones are not recorded.
    """

    def __init__(
        self,
        store: UsageStore,
        *,
        tokens: TokenStore | None = None,
        interval: float = 0.5,
        timeout: float = 3.0,
        clock: Callable[[], float] = time.time,
        id_factory: Callable[[], str] = new_id,
        maximum: int = 100_000,
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._interval = interval
        self._clock = clock
        self._id_factory = id_factory
        self._maximum = maximum
        self._waiting: dict[_Key, list[int]] = {}  # requests, input tokens, output tokens
        self._in_doubt: dict[str, list[UsageRecord]] = {}  # sent, and not known to be taken; by batch id
        self._room = maximum  # for what is waiting
        self._day = 0  # since the epoch
        self._models: dict[str, set[str]] = {}  # that are recorded on that day, by owner
        self._noted_tokens: dict[str, float] = {}  # when the use of each was noted last; the oldest first
        self._used_tokens: dict[str, int] = {}
        self._dropped = 0
        self._is_dropping = False
        self._running = 0
        self._commit = GroupCommit(self._write, self._has_work, timeout=timeout, subject="recorded use")

    @property
    def is_failing(self) -> bool:
        """Whether the last write failed, so that use is only remembered here."""
        return self._commit.is_failing

    @property
    def dropped(self) -> int:
        """How many charges were never recorded, because too much was waiting."""
        return self._dropped

    def note(self, owner: str, model: str, charge: Charge, input_tokens: int) -> None:
        """Remember a charge, if it is one, as use of today. Its tokens that are no input are output."""
        if not (charge.request or charge.tokens):
            return
        day = int(self._clock() // DAY_SECONDS)
        sums = self._waiting.get((owner, day, model)) or self._sums((owner, day, self._known(owner, day, model)))
        if sums is None:
            self._drop()
            return
        sums[0] += charge.request
        sums[1] += input_tokens
        sums[2] += charge.tokens - input_tokens

    def _sums(self, key: _Key) -> list[int] | None:
        if key not in self._waiting and len(self._waiting) >= self._room:
            return None
        return self._waiting.setdefault(key, [0, 0, 0])

    def _known(self, owner: str, day: int, model: str) -> str:
        # where the inner app knows the models, the name may be anything that somebody sent, another each time
        if len(model) > _MAXIMUM_MODEL_CHARACTERS or not model.isprintable():
            return ""
        if day != self._day:
            self._day, self._models = day, {}
        models = self._models.setdefault(owner, set())
        if model not in models and len(models) >= _MAXIMUM_MODELS:
            return ""
        models.add(model)
        return model

    def note_token(self, token_id: str) -> None:
        """Remember that a token was used: at most once a minute, so that its row in the store stays cool."""
        now = self._clock()
        if self._tokens is None or now < self._noted_tokens.get(token_id, 0.0) + _MARK_SECONDS:
            return
        if len(self._used_tokens) >= self._maximum and token_id not in self._used_tokens:
            return
        self._noted_tokens.pop(token_id, None)
        if len(self._noted_tokens) >= self._maximum:
            del self._noted_tokens[next(iter(self._noted_tokens))]
        self._noted_tokens[token_id] = now
        self._used_tokens[token_id] = int(now)

    async def run(self) -> None:
        """Write what was noted, again and again until it is cancelled."""
        self._running += 1
        try:
            while True:
                await anyio.sleep(self._interval)
                with suppress(StoreUnavailable):
                    await self.flush()
        finally:
            self._running -= 1

    async def after_request(self) -> None:
        """Write what was noted, where neither `run` nor another request does. To be called when a request has ended.

        It is not cancelled, and raises nothing.
        """
        if not self._running:
            await self._commit.leave()

    async def flush(self) -> None:
        """Write what was noted until now.

        Raises:
            StoreUnavailable: not all of it could be written; it is kept.
        """
        await self._commit.flush()

    async def aclose(self, seconds: float = 2.0) -> None:
        """Write what is left, trying for so many seconds. What is noted later is written as without `run`."""
        await self._commit.drain(seconds)
        if self._waiting or self._in_doubt:
            sums = len(self._waiting) + sum(map(len, self._in_doubt.values()))
            logger.error("recorded use is lost with this process: %d sums could not be written", sums)

    def _has_work(self) -> bool:
        return bool(self._waiting or self._in_doubt or self._used_tokens)

    async def _write(self) -> None:
        if len(self._in_doubt) >= _MAXIMUM_IN_DOUBT:
            await self._send_again()
        left = len(self._waiting)
        while left > 0:
            batch_id, records = self._id_factory(), self._cut()
            left -= len(records)
            self._in_doubt[batch_id] = records
            self._room -= len(records)
            await self._send(batch_id)
        await self._send_again()
        await self._mark()
        if self._is_dropping:
            self._is_dropping = False
            logger.warning("there is room for recorded use again; %d charges are not recorded so far", self._dropped)

    async def _send_again(self) -> None:
        for batch_id in list(self._in_doubt):
            self._in_doubt[batch_id] = self._in_doubt.pop(batch_id)  # so that one that is never taken blocks no others
            await self._send(batch_id)

    async def _send(self, batch_id: str) -> None:
        await self._store.add(batch_id, self._in_doubt[batch_id])
        self._room += len(self._in_doubt.pop(batch_id))

    def _cut(self) -> list[UsageRecord]:
        keys = list(islice(self._waiting, _BATCH_RECORDS))
        return [_record(key, *self._waiting.pop(key)) for key in keys]

    async def _mark(self) -> None:
        for _ in range(0, len(self._used_tokens), _BATCH_RECORDS):
            assert self._tokens is not None  # else nothing was noted
            used = dict(islice(self._used_tokens.items(), _BATCH_RECORDS))
            await self._tokens.mark_used(used)
            for token_id in used:
                del self._used_tokens[token_id]

    def _drop(self) -> None:
        self._dropped += 1
        if not self._is_dropping:
            self._is_dropping = True
            logger.error("too much recorded use is waiting for the store: no more users, models and days are recorded")


def _record(key: _Key, requests: int, input_tokens: int, output_tokens: int) -> UsageRecord:
    owner, day, model = key
    return UsageRecord(owner, date.fromordinal(_EPOCH + day), model, requests, input_tokens, output_tokens)
