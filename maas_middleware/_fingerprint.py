"""What tells a file from what it was, for those who follow its changes."""

from __future__ import annotations

import os

LOOK_SECONDS = 1.0  # between two looks at a file

Fingerprint = tuple[int, int, int, int] | None  # None: there is no such file


def fingerprint(path: str | os.PathLike[str]) -> Fingerprint:
    """Another one whenever the file may have changed. Of a symbolic link the target counts: Kubernetes swaps those."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
