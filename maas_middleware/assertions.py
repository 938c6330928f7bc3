"""What a gateway tells the app behind it about a caller: the header, the keys that both have, and who signs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from .identity import Identity

ASSERTION_HEADER = b"x-maas-assertion"
_MINIMUM_KEY_BYTES = 32
_OTHERS = 0o007


@dataclass(frozen=True, slots=True)
class AssertionKeys:
    """Secrets that a gateway and the app behind it have in common: the first signs, all verify.

    Attributes:
        secrets: at least 32 bytes each.

    Raises:
        ValueError: one is shorter, or there is none.
    """

    secrets: tuple[bytes, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.secrets:
            raise ValueError("holds no key")
        for index, secret in enumerate(self.secrets, 1):
            if len(secret) < _MINIMUM_KEY_BYTES:
                raise ValueError(f"holds a key of less than {_MINIMUM_KEY_BYTES} bytes: the {index}. one")

    @classmethod
    def load(cls, path: Path) -> AssertionKeys:
        """Read a file with a secret a line, such as `openssl rand -base64 32` prints; `#` begins a line of comment.

        Raises:
            ValueError: it holds none, or a short one, or everybody may read or write it.
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _OTHERS:
                raise ValueError("is open to everybody: its mode must be 0640 or narrower")
            lines = map(bytes.strip, file.read().splitlines())
        return cls(tuple(line for line in lines if line and not line.startswith(b"#")))


class Signer(Protocol):
    """Vouches for callers, for the app behind a gateway."""

    def sign(self, identity: Identity, /, *, tier: str, audience: str, request_id: str) -> bytes:
        """The value of `x-maas-assertion` for one request.

        Args:
            audience: the name by which the app behind knows the model.
        """
        ...
