"""Imports every module of the installed wheel, without extras; run by `scripts/check` in a clean environment."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil

import maas_middleware


def main() -> None:
    for extra in ("uvicorn", "redis", "httptools"):
        assert importlib.util.find_spec(extra) is None, "the environment is not clean"
    for module in pkgutil.walk_packages(maas_middleware.__path__, "maas_middleware."):
        if module.name != "maas_middleware.__main__" and not module.name.startswith("maas_middleware.http11"):
            importlib.import_module(module.name)
    for name in maas_middleware.__all__:
        getattr(maas_middleware, name)


if __name__ == "__main__":
    main()
