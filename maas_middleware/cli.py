"""`maas-gateway serve`, `maas-gateway check`, `maas-gateway new-key` and `maas-gateway rotate-key`."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from shlex import quote

from . import __version__
from ._checking import Form, check, form_of
from .assembly import Parts
from .endpoints import ENDPOINTS, Endpoint
from .providers.keys import SigningKeys
from .providers.rotation import LONGEST_LIFETIME_DAYS, KeyFile, KeyState
from .serving import serve, worker
from .settings import (
    ConfigurationError,
    Problem,
    Settings,
    counters_of,
    load_settings,
    signing_keys_path,
    store_of,
    warnings_of,
)
from .tiers import Tier

logger = logging.getLogger("maas_middleware")

_GRACE_SECONDS = 30
_WAIT_FOR_READERS = """\
Next: wait until every replica has read the file (a second after it was put there; a Kubernetes Secret takes up to two
minutes to get there), and until others that verify with /.well-known/jwks.json have fetched that again. Then:"""
_WAIT_FOR_EXPIRY = f"""\
Next: wait until every token that the key before it signed has expired: {LONGEST_LIFETIME_DAYS} days, or what
`api_keys.maximum_expiration` and `tokens.maximum_expiration` say at most. Then:"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 1 for what is refused, which stderr tells."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s:     %(message)s")
    if options.command == "new-key":
        return _with_keys(options.file, _new_key)
    if options.command == "rotate-key":
        return _with_keys(options.file, _STEPS[options.step], options.key)
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
    check = commands.add_parser("check", help="validate a configuration, gateway or mounted, and start nothing")
    for command in (serve, check):
        command.add_argument("--config", metavar="FILE", help="YAML, TOML or JSON; default: $MAAS_CONFIG")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8080)
    serve.add_argument("--workers", type=int, default=1, metavar="N")
    serve.add_argument(
        "--shutdown-timeout",
        type=int,
        default=_GRACE_SECONDS,
        metavar="SECONDS",
        help="how long requests may run on after the signal to stop; default: %(default)s",
    )
    serve.add_argument("--ssl-certfile", metavar="FILE")
    serve.add_argument("--ssl-keyfile", metavar="FILE")
    serve.add_argument("--no-access-log", action="store_true", help="no line for each request")
    new_key = commands.add_parser("new-key", help="make a file for tokens.signing_keys_file, with one key")
    new_key.add_argument("file", metavar="FILE", type=Path)
    rotate_key = commands.add_parser("rotate-key", help="exchange the key of such a file, in steps: docs/keys.md")
    rotate_key.add_argument("file", metavar="FILE", type=Path)
    rotate_key.set_defaults(key=None)
    _add_steps(rotate_key)
    return parser


def _add_steps(rotate_key: argparse.ArgumentParser) -> None:
    steps = rotate_key.add_subparsers(dest="step", required=True)
    steps.add_parser("list", help="tell which key signs, and what the others are for")
    steps.add_parser("publish", help="add a new key, which verifies and does not sign yet")
    sign = steps.add_parser("sign", help="let the published key sign")
    sign.add_argument("--key", metavar="KID", help="default: what was published last and has not signed yet")
    retire = steps.add_parser("retire", help="drop an old key: the tokens that it signed end")
    default = f"what stopped signing first, at least {LONGEST_LIFETIME_DAYS} days ago"
    retire.add_argument("--key", metavar="KID", help=f"default: {default}")


def _with_keys(path: Path, act: Callable[..., None], *arguments: str | None) -> int:
    try:
        act(path, *arguments)
    except (ValueError, OSError) as error:
        print(f"{path}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1
    return 0


def _new_key(path: Path) -> None:
    SigningKeys.generate().save(path)


def _list_keys(path: Path, _: str | None) -> None:
    for index, state in enumerate(KeyFile(path).states()):
        print(f"{state.key_id}: {'signs' if index == 0 else _past(state)}")


def _past(state: KeyState) -> str:
    if state.stopped_signing_at is None:
        return "verifies, and has not signed as far as the file tells"
    stopped = datetime.fromtimestamp(state.stopped_signing_at, UTC)
    return f"verifies, stopped signing at {stopped:%Y-%m-%dT%H:%M:%SZ}"


def _publish_key(path: Path, _: str | None) -> None:
    print(f"{KeyFile(path).publish()} was published: it verifies, and does not sign yet.")
    print(f"{_WAIT_FOR_READERS}\n    {_command(path)} sign")


def _command(path: Path) -> str:
    return f"maas-gateway rotate-key {quote(str(path))}"


def _sign_with_key(path: Path, key_id: str | None) -> None:
    file = KeyFile(path)
    print(f"{file.sign(key_id)} signs from now on.")
    print(f"{_WAIT_FOR_EXPIRY}\n    {_command(path)} retire --key={quote(file.states()[1].key_id)}")


def _retire_key(path: Path, key_id: str | None) -> None:
    print(f"{KeyFile(path).retire(key_id)} was dropped.")
    print("What it signed is refused by each replica within a second after the file got there.")


_FORMS: dict[Form, str] = {
    "gateway": "For `maas-gateway serve`: every model has upstreams.",
    "mounted": "To be mounted in an inference app: no model has upstreams, so `maas-gateway serve` would refuse it.",
}
_STEPS = {"list": _list_keys, "publish": _publish_key, "sign": _sign_with_key, "retire": _retire_key}


def _check(settings: Settings) -> int:
    check(settings)
    parts = Parts(settings)
    for tier in parts.tiers.current():
        print(f"tier {tier.name}: level {tier.level}, groups {', '.join(tier.groups) or 'none'}; {_extent(tier)}")
    if not parts.catalogue.models:
        print(f"models: {'those of the inner app, for every tier' if parts.catalogue.is_open else 'none'}")
    for model in parts.catalogue.models:
        allowed = "every tier" if model.tiers is None else ", ".join(sorted(model.tiers)) or "nobody"
        aliases = f", also called {', '.join(model.aliases)}" if model.aliases else ""
        print(f"model {model.id}{aliases}: for {allowed}, below {model.path}")
    for what, endpoints in groupby(ENDPOINTS, partial(_meaning, parts.tiers.current())):
        print(f"{what}: {', '.join(endpoint.path for endpoint in endpoints)}")
    for warning in warnings_of(settings):
        print(f"warning: {warning}")
    print(_FORMS[form_of(settings)])
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


def _check_workers(count: int, settings: Settings) -> None:
    if signing_keys_path(settings) is None:
        message = "several workers need one key: without it each would refuse the tokens of the others"
        raise ConfigurationError([Problem("tokens.signing_keys_file", message)])
    own = {"limits": counters_of(settings), "revocations": store_of(settings)}
    if alone := [what for what, url in own.items() if url == "memory://"]:
        logger.warning("%d workers: each has %s of its own", count, " and ".join(alone))


def _serve(options: argparse.Namespace, settings: Settings) -> int:
    if importlib.util.find_spec("uvicorn") is None:
        print("uvicorn is missing: pip install 'maas-middleware[gateway]'", file=sys.stderr)
        return 1
    if options.workers > 1:
        _check_workers(options.workers, settings)
    if options.config is not None:
        os.environ["MAAS_CONFIG"] = options.config  # inherited by the workers

    serve(
        "maas_middleware.serving:worker" if options.workers > 1 else worker(settings),
        workers=options.workers,
        shutdown_timeout=options.shutdown_timeout,
        host=options.host,
        port=options.port,
        ssl_certfile=options.ssl_certfile,
        ssl_keyfile=options.ssl_keyfile,
        access_log=not options.no_access_log,
    )
    return 0
