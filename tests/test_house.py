"""The house keeps its directions: who may import whom, and which room touches which library."""

from __future__ import annotations

import ast
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import maas_middleware

PACKAGE = Path(maas_middleware.__file__).parent

CORE_LIBRARIES = {"msgspec", "limits"}
CORE = {
    *("context", "durations", "errors", "identity", "tiers", "catalogue", "limiting", "requests", "usage", "tokens"),
    *("admission", "charging", "dialects", "endpoints", "entitlement", "envelopes", "events", "renaming", "_cache"),
    *("_fingerprint", "audit", "token_store", "revocations", "usage_store", "throttling", "balancing"),
    "_event_template",
    "assertions",
}
PLUMBING = {
    "_asgi",
    "_event_streams",
    "_form_parts",
    "_forms",
    "_streamed_forms",
    "_uploads",
    "_leases",
    "_lifespan",
    "recorder",
    "_group_commit",
}
SHELLS = {"middleware", "apps"}
ADAPTERS = {"providers", "ledgers", "stores", "transports"}
SETTINGS = {"settings"}
ASSEMBLY = {
    "_asserting",
    "_browsers",
    "_checking",
    "_control",
    "_counting",
    "_mounting",
    "_proxying",
    "_signing",
    "_storing",
    "assembly",
    "dispatch",
    "preset",
    "serving",
    "cli",
    "__main__",
    "__init__",
}

MAY_IMPORT = {
    **dict.fromkeys(CORE, CORE),
    **dict.fromkeys(PLUMBING, CORE | PLUMBING),
    **dict.fromkeys(SHELLS, CORE | PLUMBING),
    **dict.fromkeys(ADAPTERS, CORE | {"transports", "http11"}),
    **dict.fromkeys(SETTINGS, CORE),
    **dict.fromkeys(ASSEMBLY, CORE | PLUMBING | SHELLS | ADAPTERS | SETTINGS | ASSEMBLY),
    "http11": set[str](),
    "testing": CORE | {"testing"},
}
ONLY_IN = {
    "httpx": {
        *("apps/proxy.py", "apps/_attempt.py", "apps/_forwarding.py", "apps/_request_body.py"),
        *("transports.py", "http11", "providers/openshift.py", "providers/_apiserver.py"),
    },
    "httptools": {"http11"},
    "limits": {"limiting.py", "ledgers/stock.py", "ledgers/redis.py", "ledgers/_storage.py", "ledgers/throttles.py"},
    "jwt": {"providers/jwt.py", "providers/keys.py"},
    "cryptography": {"providers/keys.py"},
    "yaml": {"settings/loading.py"},
    "itsdangerous": {"providers/signed.py"},
    "uvicorn": {"serving.py", "testing/serving.py"},
    "sqlalchemy": {
        f"stores/_{name}.py" for name in ("backends", "database", "engines", "postgresql", "sqlite", "transaction")
    },
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Each imported module by its top name, and whether it is one of ours."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0], False
        elif isinstance(node, ast.ImportFrom):
            inside = room(path) if node.level < depth else None
            if inside is None and node.module is None:
                names = (alias.name for alias in node.names)
                yield from (("__init__" if name == "__version__" else name, True) for name in names)
            else:
                yield inside or str(node.module).partition(".")[0], True


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_keep_the_directions(path: Path) -> None:
    allowed = MAY_IMPORT[room(path)]

    ours = {name for name, is_ours in imports(path) if is_ours}
    shells_of_others = {name for name in ours & SHELLS if room(path) in SHELLS}

    assert ours - allowed - {room(path)} == set()
    assert shells_of_others <= {room(path)}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_library_is_touched_in_its_own_room_only(path: Path) -> None:
    relative = str(path.relative_to(PACKAGE))

    foreign = {name for name, is_ours in imports(path) if not is_ours}

    assert {name for name in foreign & set(ONLY_IN) if ONLY_IN[name].isdisjoint({relative, room(path)})} == set()


@pytest.mark.parametrize("name", sorted(CORE))
def test_core_knows_no_other_libraries_than_it_has_to(name: str) -> None:
    foreign = {name for name, is_ours in imports(PACKAGE / f"{name}.py") if not is_ours}

    assert foreign - set(sys.stdlib_module_names) <= CORE_LIBRARIES | ({"anyio"} if name == "_cache" else set())


def test_shells_do_not_import_each_other() -> None:
    for path in [*PACKAGE.glob("middleware/*.py"), *PACKAGE.glob("apps/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                is_neighbour = node.level == 1 and not str(node.module).startswith("_")
                assert not is_neighbour, f"{path.name} imports its neighbour {node.module}"


def test_only_the_settings_read_the_environment() -> None:
    reading = re.compile(r"\bos\.(environ|getenv)\b")
    touching = {str(path.relative_to(PACKAGE)) for path in modules() if reading.search(path.read_text())}

    assert touching == {"settings/assembling.py", "cli.py"}  # the command sets a variable for its workers


def test_public_names_are_sorted_and_exist() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}

    assert maas_middleware.__all__ == sorted(imported)


def test_every_room_is_known() -> None:
    rooms = {info.name for info in pkgutil.iter_modules(maas_middleware.__path__)} | {"__init__"}

    assert rooms == set(MAY_IMPORT)
