"""Where a configuration comes from: files, the environment, keywords; and what is said of a bad one.

Whatever cannot be read is a ValueError that completes a sentence about its place, and never quotes a file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import yaml

# what Kubernetes sets in every container for a service whose name begins with `maas`
_SERVICE_LINK = re.compile(r"MAAS_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration, and where: `maas.yaml: models[0].tiers`, `MAAS_TOKENS_AUDIENCE`.

    The message completes a sentence about the place, and holds no secret.
    """

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class ConfigurationError(ValueError):
    """A configuration that cannot be used. `problems` are all of them; the text has one a line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was given, and its place; that of a whole file ends in `: `, that of all keywords is empty."""

    place: str
    value: object

    def below(self, key: object, value: object) -> Given:
        dot = "" if not self.place or self.place.endswith(": ") else "."
        return Given(f"{self.place}{dot}{key}", value)


Layer = dict[str, Given]  # what was given for `tokens.audience` and its like; one layer goes over another with |


def variable(path: str) -> str:
    """The environment variable of a key: `tokens.audience` -> `MAAS_TOKENS_AUDIENCE`."""
    return "MAAS_" + path.replace(".", "_").upper()


def unknown_variables(keys: Iterable[str], environ: Iterable[str]) -> list[str]:
    """The variables that begin like ours and are neither a key's nor a Kubernetes service's."""
    known = {"MAAS_CONFIG", *map(variable, keys)}
    ours = {name for name in environ if name.startswith("MAAS_") and not _SERVICE_LINK.fullmatch(name)}
    return sorted(ours - known)


def existing(path: str) -> str | None:
    """The path of a file that is there, None where it is not."""
    return path if Path(path).is_file() else None


def read_bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def read_text(path: str) -> str:
    """Read a file in UTF-8, with or without a byte order mark."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not in UTF-8") from None


def read_document(path: str) -> object:
    """Read plain data from a file: `.toml`, `.json`, or YAML under whatever other name."""
    text, suffix = read_text(path), Path(path).suffix
    try:
        if suffix == ".toml":
            return tomllib.loads(text)
        return msgspec.json.decode(text) if suffix == ".json" else yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:  # its text quotes the file
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ValueError(f"{path} is not valid YAML: {error.problem}{line}") from None
    except (yaml.YAMLError, msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def read_secret(path: str) -> str:
    """Read a credential that goes into a header; what surrounds it, such as a final newline, is dropped."""
    secret = read_text(path).strip()
    if not secret:
        raise ValueError(f"{path} is empty")
    if not (secret.isascii() and secret.isprintable()):
        raise ValueError(f"{path} holds what cannot be sent in a header")
    return secret
