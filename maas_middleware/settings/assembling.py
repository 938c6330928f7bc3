"""Keywords, environment and file become validated `Settings`. Nothing else reads the environment."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import partial

from .gateways import check_audiences
from .loading import Given, Layer, unknown_variables
from .models import models_from
from .reader import Reader
from .schema import leaves, schema_of
from .sections import Origin, Settings
from .tokens import check_lifetimes, check_shared_keys
from .values import counters_from, inner_api_key_from, store_from, tiers_in

logger = logging.getLogger("maas_middleware")


def load_settings(
    environ: Mapping[str, str] | None = None, *, config: str | None = None, **overrides: object
) -> Settings:
    """Read the settings: a keyword goes before the environment, that before the file, and that before the default.

    Args:
        environ: default: the environment of the process. Every key has a variable: `tokens.audience` is
            `MAAS_TOKENS_AUDIENCE`; lists of texts are separated by commas, maps and other lists are JSON.
        config: the path of a YAML, TOML or JSON file; default: `MAAS_CONFIG`.
        overrides: any key. A mapping changes single keys of a section, a struct replaces the section.

    Raises:
        ConfigurationError: with all problems. Unknown variables are no problem, but one warning.
    """
    environ = dict(os.environ if environ is None else environ)
    if unknown := unknown_variables(dict(leaves(schema_of(Settings))), environ):
        logger.warning("unknown environment variables: %s", ", ".join(unknown))
    return _load(environ, config, overrides)


def _load(environ: Mapping[str, str], config: str | None, overrides: Mapping[str, object]) -> Settings:
    reader, schema = Reader(), schema_of(Settings)
    path = config or environ.get("MAAS_CONFIG")
    document = reader.document("config" if config else "MAAS_CONFIG", path) if path else None
    file = reader.keys(schema, document) if document else {}
    above = reader.environment(schema, environ) | reader.keys(schema, Given("", overrides))
    settings = _finished(reader, _in_cluster(environ) | file | above)
    if path:
        keys = frozenset(file.keys() - above.keys())
        settings.__dict__["origin"] = Origin(path, keys, partial(_load, environ, config, overrides))
    return settings


def _in_cluster(environ: Mapping[str, str]) -> Layer:
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        return {}
    host = f"[{host}]" if ":" in host else host
    return {"openshift.api_url": Given("KUBERNETES_SERVICE_HOST", f"https://{host}:{port}")}


def _finished(reader: Reader, layer: Layer) -> Settings:
    settings = reader.whole(schema_of(Settings), layer)
    assert isinstance(settings, Settings)
    tiers = tiers_in(reader, settings)
    models_from(reader, settings.models, None if tiers is None else {tier.name for tier in tiers})
    counters = counters_from(reader, settings)
    store = store_from(reader, settings)
    inner_api_key_from(reader, settings)
    check_audiences(reader, settings.trusted_gateways, settings.models)
    check_lifetimes(reader, settings.tokens, settings.api_keys)
    if settings.tokens.signing_keys_file is None and not store.startswith("sqlite:"):
        check_shared_keys(reader, counters, store)
    if settings.openshift.audiences and settings.openshift.review == "users-self":
        reader.refuse(reader.place("openshift.audiences"), "cannot be checked by the review users-self")
    reader.finish()
    return settings


def validated(settings: Settings) -> Settings:
    """Check settings that were made in Python, and return them as the loader would: numbers for `3s`, `/` stripped.

    Raises:
        ConfigurationError: with all problems.
    """
    reader = Reader()
    if not isinstance(settings, Settings):
        reader.refuse("settings", "has to be what Settings(...) or load_settings(...) returns")
        reader.finish()
    checked = _finished(reader, reader.keys(schema_of(Settings), Given("", settings)))
    checked.__dict__.update(settings.__dict__)
    return checked
