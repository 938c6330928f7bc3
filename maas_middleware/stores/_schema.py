"""The tables of a database: how they came to be, what is forgotten of them, and how text is written in them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

Steps = Sequence[Sequence[str]]

USABLE_FROM = 1  # the oldest version of the library that can live with the tables as the last step leaves them

# Step N makes version N of version N - 1, in one transaction that has to end within the time-out of a call. Replicas of
# the version before may still be at work on the tables. What has been released is never changed: a step is added,
# and where older replicas cannot live with it, USABLE_FROM is raised, so that they refuse the tables.
# Names are compared by their bytes. Times are seconds since the epoch.
STEPS: Steps = (
    (
        "CREATE TABLE maas_tokens ("
        " id {text} NOT NULL PRIMARY KEY,"
        " owner {text} NOT NULL,"
        " generation BIGINT NOT NULL,"
        " kind {text} NOT NULL,"
        " name {text} NOT NULL,"
        " description {text} NOT NULL,"
        " groups {text} NOT NULL,"
        " issued_at BIGINT NOT NULL,"
        " expires_at BIGINT NOT NULL,"
        " forgotten_at BIGINT NOT NULL,"
        " revoked_at BIGINT,"
        " last_used_at BIGINT)",
        "CREATE INDEX maas_tokens_of_owner ON maas_tokens (owner, issued_at DESC, id)",
        "CREATE INDEX maas_tokens_of_kind ON maas_tokens (owner, kind, issued_at DESC, id)",
        "CREATE INDEX maas_tokens_forgotten ON maas_tokens (forgotten_at)",
        "CREATE INDEX maas_tokens_revoked ON maas_tokens (id) WHERE revoked_at IS NOT NULL",
        "CREATE TABLE maas_owners ("
        " owner {text} NOT NULL PRIMARY KEY,"
        " name {text} NOT NULL,"
        " generation BIGINT NOT NULL)",
        "CREATE TABLE maas_changes ("
        " sequence {sequence} PRIMARY KEY,"
        " made_at BIGINT NOT NULL,"
        " token_id {text},"
        " expires_at BIGINT,"
        " owner_name {text},"
        " generation BIGINT)",
        "CREATE INDEX maas_changes_made ON maas_changes (made_at)",
        "CREATE TABLE maas_usage ("
        " owner {text} NOT NULL,"
        " day {text} NOT NULL,"
        " model {text} NOT NULL,"
        " requests BIGINT NOT NULL,"
        " input_tokens BIGINT NOT NULL,"
        " output_tokens BIGINT NOT NULL,"
        " PRIMARY KEY (owner, day, model))",
        "CREATE TABLE maas_usage_batches (id {text} NOT NULL PRIMARY KEY, added_at BIGINT NOT NULL)",
        "CREATE INDEX maas_usage_batches_added ON maas_usage_batches (added_at)",
    ),
)

# What nobody asks for any more at the time `:before`, which is some hours ago: the clocks of replicas differ, and one
# may still follow the changes. The last change stays, for the sake of its sequence.
FORGETTING = (
    "DELETE FROM maas_tokens WHERE id IN (SELECT id FROM maas_tokens WHERE forgotten_at < :before"
    " ORDER BY forgotten_at LIMIT :limit {for_update})",
    "DELETE FROM maas_changes WHERE sequence IN (SELECT sequence FROM maas_changes WHERE made_at < :before"
    " AND sequence < (SELECT MAX(sequence) FROM maas_changes) ORDER BY made_at LIMIT :limit {for_update})",
    "DELETE FROM maas_usage_batches WHERE id IN (SELECT id FROM maas_usage_batches WHERE added_at < :before"
    " ORDER BY added_at LIMIT :limit {for_update})",
)
FORGOTTEN_AFTER_SECONDS = 2 * 3600
FORGOTTEN_AT_ONCE = 1000

_ESCAPE = re.compile(r"\\(?:\\|0|u([0-9a-f]{4}))")
_LONGEST_KEY = 1000  # bytes; PostgreSQL has no index on longer than 2,704


def written(text: str) -> str:
    """The text without what PostgreSQL cannot keep: NUL, and surrogates that have no partner."""
    escaped = text.replace("\\", "\\\\").replace("\0", "\\0")
    return escaped.encode("utf-8", "backslashreplace").decode()


def read(text: str) -> str:
    """What was written so."""
    return _ESCAPE.sub(lambda found: _unescaped(found[0], found[1]), text) if "\\" in text else text


def key(text: str) -> str:
    """The text as it is kept where it is searched for: written, and a digest where that is too long for an index."""
    name = written(text)
    if len(encoded := name.encode()) > _LONGEST_KEY:
        return f"\\sha256:{hashlib.sha256(encoded).hexdigest()}"  # no text is written with such a backslash
    return name


def _unescaped(escape: str, digits: str | None) -> str:
    if digits is not None:
        return chr(int(digits, 16))
    return "\\" if escape == "\\\\" else "\0"
