"""What is compared, and how each is started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import httpx
import yaml

from .wire import MODEL, PATH

ROOT = Path(__file__).parent.parent.parent
LOGIN = "sha256~benchmark"
_LITELLM_KEY = "sk-benchmark"
_PROXIES = "benchmarks.gateway.proxies"
_NGINX_CONF = """\
daemon off; worker_processes 1; worker_rlimit_nofile 16384; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections 8192; }}
http {{
    access_log off; server_tokens off; keepalive_requests 1000000000; keepalive_timeout 600s;
    client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    upstream model {{
        server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 600s;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a side runs: its own port and folder, and the ports of the upstream and of the stand-in cluster."""

    port: int
    folder: Path
    upstream: int
    cluster: int

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)


@dataclass(frozen=True, slots=True)
class Side:
    """One thing that answers.

    Attributes:
        does: what it has switched on.
        command: how it is started, and with which environment.
        is_here: whether it can be.
        authorization: makes the credential that is sent, once it listens.
        is_exact: it passes the bytes of the upstream on, so that every one is compared.
        most_held: how many streams it can hold at once, and still begin more.
        distributions: whose versions are told.
    """

    name: str
    does: str
    command: Callable[[Place], tuple[Sequence[str], Mapping[str, str]]]
    is_here: Callable[[], bool]
    authorization: Callable[[Place], str | None] = field(default=lambda place: None)
    is_exact: bool = True
    most_held: int = 1000
    distributions: tuple[str, ...] = ()


def _program(name: str) -> Callable[[], bool]:
    return lambda: _beside_python(name).exists()


def _beside_python(name: str) -> Path:
    return Path(sys.executable).with_name(name)


def nginx_binary() -> str | None:
    """On the PATH, where Debian has it, or unpacked into the environment."""
    return shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:{sys.prefix}/usr/sbin")


def nginx_version() -> str:
    told = subprocess.run([str(nginx_binary()), "-e", "stderr", "-v"], capture_output=True, text=True, check=True)
    return told.stderr.strip().rpartition("/")[2]


def _nginx(place: Place) -> tuple[Sequence[str], Mapping[str, str]]:
    written = _NGINX_CONF.format(folder=place.folder, upstream=place.upstream, port=place.port)
    return [str(nginx_binary()), "-e", "stderr", "-p", str(place.folder), "-c", place.write("nginx.conf", written)], {}


def _uvicorn(app: str, place: Place) -> list[str]:
    command = [sys.executable, "-m", "uvicorn", "--factory", app, "--port", str(place.port), "--log-level", "warning"]
    return [*command, "--no-access-log", "--app-dir", str(ROOT)]


def _proxy(name: str) -> Callable[[Place], tuple[Sequence[str], Mapping[str, str]]]:
    return lambda place: (
        _uvicorn(f"{_PROXIES}.{name}:app", place),
        {"BENCHMARK_UPSTREAM": f"http://127.0.0.1:{place.upstream}"},
    )


def _on_uvicorn(place: Place) -> tuple[Sequence[str], Mapping[str, str]]:
    command = [str(_beside_python("maas-gateway")), "serve", "--config", _config(place), "--port", str(place.port)]
    return [*command, "--no-access-log"], {}


def _on_granian(place: Place) -> tuple[Sequence[str], Mapping[str, str]]:
    command = [str(_beside_python("granian")), "--interface", "asgi", "--factory", "maas_middleware:gateway"]
    return [*command, "--port", str(place.port), "--log-level", "warning"], {"MAAS_CONFIG": _config(place)}


def _config(place: Place) -> str:
    """Everything on, with limits that nobody reaches."""
    limits = {"requests": "1000000000/minute", "tokens": "1000000000000/minute"}
    config = {
        "openshift": {"api_url": f"http://127.0.0.1:{place.cluster}"},
        "store": f"sqlite:///{place.folder}/maas.db",
        "tiers": [{"name": "free", "level": 0, "groups": ["system:authenticated"], "limits": limits}],
        "models": [{"id": MODEL, "tiers": "all", "upstreams": [f"http://127.0.0.1:{place.upstream}"]}],
    }
    return place.write("maas.yaml", yaml.safe_dump(config))


def _minted(place: Place) -> str:
    """Log in and mint an access token, as a user does."""
    url = f"http://127.0.0.1:{place.port}/v1/tokens"
    answer = httpx.post(url, headers={"authorization": f"Bearer {LOGIN}"}, timeout=30, trust_env=False)
    return str(answer.raise_for_status().json()["token"])


def _litellm(place: Place) -> tuple[Sequence[str], Mapping[str, str]]:
    parameters = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{place.upstream}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": parameters}],
        "general_settings": {"master_key": _LITELLM_KEY},
    }
    environ = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_DISABLE_ACCESS_LOG_PATHS": PATH,
    }
    command = [str(_beside_python("litellm")), "--config", place.write("litellm.json", json.dumps(config))]
    return [*command, "--host", "127.0.0.1", "--port", str(place.port), "--num_workers", "1"], environ


_ONION = "access tokens, tiers, limits on requests and tokens in memory, usage recorded in SQLite, headers"
SIDES = (
    Side("nginx", "forwarding, unbuffered", _nginx, lambda: nginx_binary() is not None),
    Side("raw", "forwarding over our transport, on uvicorn", _proxy("raw"), _program("uvicorn")),
    Side("gateway-uvicorn", f"maas-gateway: {_ONION}", _on_uvicorn, _program("uvicorn"), _minted),
    Side(
        "gateway-granian", "the same on granian", _on_granian, _program("granian"), _minted, distributions=("granian",)
    ),
    Side("httpx", "forwarding, Starlette and httpx, on uvicorn", _proxy("plain_httpx"), _program("uvicorn")),
    Side(
        "fastapi-proxy-lib",
        "forwarding, on uvicorn",
        _proxy("library"),
        lambda: find_spec("fastapi_proxy_lib") is not None,
        distributions=("fastapi-proxy-lib", "fastapi"),
    ),
    Side(
        "litellm",
        "LiteLLM proxy: master key, one model, no callbacks, no limits",
        _litellm,
        _program("litellm"),
        lambda place: _LITELLM_KEY,
        is_exact=False,
        most_held=32,
        distributions=("litellm",),
    ),
)
