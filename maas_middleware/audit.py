"""What administrators did, and to whom, for whoever has to know it later."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

logger = logging.getLogger("maas_middleware.audit")
logger.setLevel(logging.INFO)  # whatever the level of others is

Outcome = Literal["done", "denied", "failed"]


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """An act on somebody else's behalf, or the attempt.

    Attributes:
        event: what was asked for: `admin.tokens.revoke`.
        actor, subject: the `Identity.key` of who acted, and of whom it concerns; None where the request named nobody.
        time: seconds since the epoch.
        outcome: `denied` to the actor; `failed`: it is not known to have happened.
    """

    event: str
    actor: str
    subject: str | None
    time: float
    request_id: str | None
    outcome: Outcome

    def __str__(self) -> str:
        """One line of JSON in ASCII, whatever the names are; the time as in RFC 3339, in UTC."""
        time = datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return json.dumps({**asdict(self), "time": time})


def write_audit_record(record: AuditRecord) -> None:
    """Log a record to `maas_middleware.audit`: INFO where the act was done, else WARNING.

    Where nobody has configured logging it is WARNING always, because Python drops everything below.
    """
    is_plain = record.outcome == "done" and logger.hasHandlers()
    logger.log(logging.INFO if is_plain else logging.WARNING, "%s", record)
