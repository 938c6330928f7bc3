"""Gateways whose word counts, as they are configured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

from ..assertions import AssertionKeys
from .notation import Name
from .reader import Reader

if TYPE_CHECKING:
    from .models import ModelSettings


def _assertion_keys_file(path: str) -> str:
    try:
        AssertionKeys.load(Path(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    return path


AssertionKeysFile = Annotated[str, Meta(extra={"check": _assertion_keys_file})]


class TrustedGatewaySettings(Struct, frozen=True, kw_only=True):
    """A gateway before a mounted app, whose word about callers counts there.

    Attributes:
        keys_file: the keys that the gateway has as `assertion_keys_file` of its model, one a line; all verify. None: no
            gateway is trusted.
        audiences: the names that its models have behind the gateway; default: the ids of `models`.
    """

    keys_file: AssertionKeysFile | None = None
    audiences: tuple[Name, ...] = ()


def check_audiences(reader: Reader, gateways: TrustedGatewaySettings, models: Sequence[ModelSettings] | None) -> None:
    """Refuse audiences without keys, keys without audiences, and audiences that no model is called by."""
    keys_file, audiences = reader.place("trusted_gateways.keys_file"), reader.place("trusted_gateways.audiences")
    if reader.has_refused(keys_file) or not reader.is_sound(audiences):
        return
    if gateways.keys_file is None:
        if gateways.audiences:
            reader.refuse(keys_file, f"is needed with {audiences}")
        return
    if not (gateways.audiences or models):
        reader.refuse(audiences, f"is needed with {keys_file} where {reader.place('models')} names no model")
    if models is None:
        return
    names = {name for model in models for name in (model.id, *model.aliases)}
    for index, audience in enumerate(gateways.audiences):
        if audience not in names and "" not in names:  # what was refused has no id
            reader.refuse(f"{audiences}[{index}]", f"there is no model {audience}")
