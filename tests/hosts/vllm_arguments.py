"""The command line of `vllm serve`, as far as it concerns what stands in front of the model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import yaml


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read a command line, whose options may come from a file, too: what stands on it goes over the file."""
    return _parser().parse_args(_with_file(list(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    serve = parser.add_subparsers(dest="subcommand", required=True).add_parser("serve", allow_abbrev=False)
    serve.add_argument("model_tag", nargs="?")
    serve.add_argument("--model", default="Qwen/Qwen3-0.6B")
    serve.add_argument("--served-model-name", nargs="+")
    serve.add_argument("--lora-modules", nargs="+", default=[], metavar="NAME=PATH")
    serve.add_argument("--host", default=None)
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--middleware", action="append", default=[])
    serve.add_argument("--api-key", nargs="+")
    serve.add_argument("--root-path", default="")
    serve.add_argument("--allowed-origins", type=json.loads, default=[])
    serve.add_argument("--allow-credentials", action="store_true")
    serve.add_argument("--api-server-count", type=int, default=1)
    serve.add_argument("--shutdown-timeout", type=int, default=0)
    serve.add_argument("--enable-request-id-headers", action="store_true")
    serve.add_argument("--enable-force-include-usage", action="store_true")
    serve.add_argument("--disable-uvicorn-access-log", action="store_true")
    serve.add_argument("--disable-fastapi-docs", action="store_true")
    serve.add_argument("--uvicorn-log-level", default="info")
    # what an engine takes, and a simulated one does not need
    serve.add_argument("--max-model-len", type=int)
    serve.add_argument("--gpu-memory-utilization", type=float)
    serve.add_argument("--tensor-parallel-size", type=int, default=1)
    # what no vLLM has: how long a token takes, and after how many a stream stands still
    serve.add_argument("--token-seconds", type=float, default=0.0)
    serve.add_argument("--hold-after", type=int)
    return parser


def _with_file(arguments: list[str]) -> list[str]:
    """The options of `--config FILE` right behind the model, as vLLM puts them."""
    if "--config" not in arguments:
        return arguments
    at = arguments.index("--config")
    options = _options(arguments[at + 1])
    rest = arguments[:at] + arguments[at + 2 :]
    begin = 2 if len(rest) > 1 and not rest[1].startswith("-") else 1
    return rest[:begin] + options + rest[begin:]


def _options(path: str) -> list[str]:
    with open(path) as file:
        config = yaml.safe_load(file)
    options: list[str] = []
    for key, value in config.items():
        if isinstance(value, bool):
            options += [f"--{key}"] if value else []
        elif isinstance(value, list):
            options += [f"--{key}", *map(str, value)] if value else []
        else:
            options += [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return options
