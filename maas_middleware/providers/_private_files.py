"""Files that only their owner may read, and that nobody ever sees half written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def create(path: Path, text: str) -> None:
    """Write a file that is not there yet, with mode 0600.

    Raises:
        FileExistsError: it is there.
        OSError: it cannot be written.
    """
    with _written_beside(path, text) as temporary:
        os.link(temporary, path)  # a rename would overwrite what has come to be there meanwhile
        _sync(path.parent)


def replace(path: Path, text: str) -> None:
    """Exchange a file for one with mode 0600 and the same owner; a symbolic link goes on leading to it.

    Raises:
        OSError: there is no such file, or it cannot be written.
    """
    target = path.resolve(strict=True)
    with _written_beside(target, text) as temporary:
        os.chown(temporary, target.stat().st_uid, -1)  # else root would take the file from whom the service runs as
        os.replace(temporary, target)
        _sync(target.parent)


@contextmanager
def _written_beside(path: Path, text: str) -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # its mode is 0600 from the start
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
