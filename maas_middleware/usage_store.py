"""What is remembered of use: requests and tokens by user, model and day."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Protocol


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """What a user used of a model on a day, or a part of it.

    Attributes:
        owner: the `Identity.key` of the user.
        day: in UTC, of the end of the request.
        model: its id; empty where no model is known.
        input_tokens, output_tokens: together they are what was charged, which is an estimate where the model did not
            tell.
    """

    owner: str
    day: date
    model: str
    requests: int
    input_tokens: int
    output_tokens: int


class UsageStore(Protocol):
    """Keeps recorded use. May raise StoreUnavailable."""

    async def add(self, batch_id: str, records: Sequence[UsageRecord], /) -> None:
        """Add records to what is kept, all or none. The id of a batch that was added already adds nothing.

        No two records of a batch are of the same owner, day and model. An id is remembered for an hour at least.
        """
        ...

    async def usage(self, owner: str, first: date, last: date, /) -> Sequence[UsageRecord]:
        """What a user used on the days from the first to the last, by day and then model."""
        ...
