"""Imports every module of the installed wheel, without extras; run by `scripts/check` in a clean environment."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil

import maas_middleware


def main() -> None:
    assert importlib.util.find_spec("uvicorn") is None, "the environment is not clean"
    assert importlib.util.find_spec("redis") is None, "the environment is not clean"
    for module in pkgutil.walk_packages(maas_middleware.__path__, "maas_middleware."):
        if module.name != "maas_middleware.__main__":
            importlib.import_module(module.name)
    for name in maas_middleware.__all__:
        getattr(maas_middleware, name)


if __name__ == "__main__":
    main()
