"""What administrators did is in the log, however that is configured."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from maas_middleware.audit import AuditRecord, write_audit_record

DONE = AuditRecord("admin.tokens.revoke", "openshift/ada", "openshift/fay", 1_700_000_000.5, "r1", "done")
SCRIPT = """
from maas_middleware.audit import AuditRecord, write_audit_record
write_audit_record(AuditRecord("admin.tokens.revoke", "openshift/ada", "openshift/fay", 1.0, None, "done"))
"""


def test_record_is_one_line_of_json(caplog: pytest.LogCaptureFixture) -> None:
    write_audit_record(DONE)

    (record,) = caplog.records
    assert (record.name, record.levelname) == ("maas_middleware.audit", "INFO")
    assert json.loads(record.getMessage()) == {
        "event": "admin.tokens.revoke",
        "actor": "openshift/ada",
        "subject": "openshift/fay",
        "time": "2023-11-14T22:13:20.500Z",
        "request_id": "r1",
        "outcome": "done",
    }


def test_record_is_not_lost_where_nobody_has_configured_logging() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=20, check=True)

    assert json.loads(ran.stderr)["actor"] == "openshift/ada"
