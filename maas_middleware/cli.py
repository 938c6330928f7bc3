"""`maas-gateway serve`, `maas-gateway check` and `maas-gateway new-key`."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from . import __version__
from .assembly import Parts
from .endpoints import ENDPOINTS, Endpoint
from .preset import gateway
from .providers.keys import SigningKeys
from .settings import ConfigurationError, Problem, Settings, counters_of, load_settings, warnings_of
from .tiers import Tier

logger = logging.getLogger("maas_middleware")

_GRACE_SECONDS = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 1 for what is refused, which stderr tells."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s:     %(message)s")
    if options.command == "new-key":
        return _new_key(options.file)
    try:
        settings = load_settings(config=options.config)
        return _serve(options, settings) if options.command == "serve" else _check(settings)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="maas-gateway", description="Models-as-a-Service in front of model servers")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the gateway")
    check = commands.add_parser("check", help="validate a configuration and start nothing")
    for command in (serve, check):
        command.add_argument("--config", metavar="FILE", help="YAML, TOML or JSON; default: $MAAS_CONFIG")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8080)
    serve.add_argument("--workers", type=int, default=1, metavar="N")
    serve.add_argument("--ssl-certfile", metavar="FILE")
    serve.add_argument("--ssl-keyfile", metavar="FILE")
    new_key = commands.add_parser("new-key", help="make a file for tokens.signing_keys_file, with one key")
    new_key.add_argument("file", metavar="FILE", type=Path)
    return parser


def _new_key(path: Path) -> int:
    try:
        SigningKeys.generate().save(path)
    except OSError as error:
        print(f"{path}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _check(settings: Settings) -> int:
    parts = Parts(settings)
    for tier in parts.tiers.current():
        print(f"tier {tier.name}: level {tier.level}, groups {', '.join(tier.groups) or 'none'}; {_extent(tier)}")
    for model in parts.catalogue.models:
        allowed = "every tier" if model.tiers is None else ", ".join(sorted(model.tiers)) or "nobody"
        aliases = f", also called {', '.join(model.aliases)}" if model.aliases else ""
        print(f"model {model.id}{aliases}: for {allowed}, below {model.path}")
    for what, endpoints in groupby(ENDPOINTS, partial(_meaning, parts.tiers.current())):
        print(f"{what}: {', '.join(endpoint.path for endpoint in endpoints)}")
    try:
        parts.gateway()
    except ConfigurationError as error:
        print(f"fit to be mounted in an inference app, but not for `maas-gateway serve`:\n{error}")
    for warning in warnings_of(settings):
        print(f"warning: {warning}")
    print("The configuration is valid.")
    return 0


def _extent(tier: Tier) -> str:
    features = "all features" if tier.features is None else f"features {', '.join(tier.features) or 'none'}"
    cap = tier.max_tokens_per_request
    return features if cap is None else f"{features}; at most {cap} tokens a request"


def _meaning(tiers: Sequence[Tier], endpoint: Endpoint) -> str:
    dialect = f" as {endpoint.dialect.name}" if endpoint.dialect is not None else ""
    lacking = [tier.name for tier in tiers if endpoint.feature is not None and not tier.has(endpoint.feature)]
    return f"{endpoint.kind}{dialect}" + (f", not for {', '.join(lacking)}" if lacking else "")


def _serve(options: argparse.Namespace, settings: Settings) -> int:
    if importlib.util.find_spec("uvicorn") is None:
        print("uvicorn is missing: pip install 'maas-middleware[gateway]'", file=sys.stderr)
        return 1
    if options.workers > 1 and settings.tokens.signing_keys_file is None:
        message = "several workers need one key: without it each would refuse the tokens of the others"
        raise ConfigurationError([Problem("tokens.signing_keys_file", message)])
    if options.workers > 1:
        own = "limits and revocations" if counters_of(settings) == "memory://" else "revocations"
        logger.warning("%d workers: each has %s of its own", options.workers, own)
    if options.config is not None:
        os.environ["MAAS_CONFIG"] = options.config  # inherited by the workers

    import uvicorn

    uvicorn.run(
        "maas_middleware:gateway" if options.workers > 1 else gateway(settings),
        factory=options.workers > 1,
        workers=options.workers,
        host=options.host,
        port=options.port,
        ssl_certfile=options.ssl_certfile,
        ssl_keyfile=options.ssl_keyfile,
        server_header=False,
        proxy_headers=False,  # whose word counts is for `trusted_proxies` to say
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return 0
