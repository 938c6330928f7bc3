"""The tables of docs/http.md, made from the code. `python -m tests.reference` writes them into the page."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import maas_middleware
from maas_middleware.apps.openapi import openapi_document
from maas_middleware.dialects import Dialect
from maas_middleware.endpoints import ENDPOINTS, Endpoint
from maas_middleware.envelopes import envelope
from maas_middleware.errors import ERRORS, MaaSError
from maas_middleware.tiers import FEATURES

PAGE = Path(__file__).parent.parent / "docs" / "http.md"
PACKAGE = Path(maas_middleware.__file__).parent


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def code(*texts: str) -> str:
    return ", ".join(f"`{text}`" for text in texts)


def control_routes() -> str:
    rows = []
    for path, item in openapi_document()["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                rows.append([code(f"{method.upper()} {path}"), operation["summary"], _statuses(operation)])
    return table(["Route", "What it does", "Answers"], rows)


def _statuses(operation: dict[str, Any]) -> str:
    return ", ".join(sorted(operation["responses"]))


def endpoints() -> str:
    served = [endpoint for endpoint in ENDPOINTS if endpoint.dialect is not None]
    rows = []
    for (kind, dialect, feature), group in groupby(served, lambda row: (row.kind, row.dialect, row.feature)):
        assert dialect is not None
        paths = code(*(f"{endpoint.method} {endpoint.path}" for endpoint in group))
        rows.append([paths, kind, dialect.name, code(feature) if feature else "", *_described(dialect)])
    head = ["Endpoint", "Kind", "Dialect", "Feature", "Request", "Cap", "Errors"]
    return table(head, rows)


def _described(dialect: Dialect) -> list[str]:
    return ["form" if dialect.is_form else "JSON", code(dialect.cap) if dialect.cap else "", dialect.errors]


def unserved() -> str:
    def kind(endpoint: Endpoint) -> str:
        return endpoint.kind

    served = [endpoint for endpoint in ENDPOINTS if endpoint.dialect is None]
    return table(
        ["Kind", "Paths, all methods"],
        ([name, code(*(endpoint.path for endpoint in group))] for name, group in groupby(served, kind)),
    )


def features() -> str:
    return code(*FEATURES)


def errors() -> str:
    rows = []
    for kind, (status, error_type, error_code, message) in ERRORS.items():
        if kind is not MaaSError:
            rows.append([str(status), code(error_type), code(error_code), message, code(_anthropic_type(status))])
    return table(["Status", "`type`", "`code`", "Message", "Anthropic's `type`"], sorted(rows, key=lambda row: row[0]))


def _anthropic_type(status: int) -> str:
    body = envelope(MaaSError(status=status), None, "anthropic")
    found = re.search(rb'"error":\{"type":"([a-z_]+)"', body)
    assert found is not None
    return found[1].decode()


def exact_codes() -> str:
    return code(*sorted(set(_codes())))


def _codes() -> Iterator[str]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            value = node.value if isinstance(node, ast.keyword) and node.arg == "code" else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value


SECTIONS = {
    "control-routes": control_routes,
    "endpoints": endpoints,
    "unserved": unserved,
    "features": features,
    "errors": errors,
    "codes": exact_codes,
}


def written(page: str) -> str:
    """The page with every table made anew."""
    for name, make in SECTIONS.items():
        begin, end = f"<!-- {name} -->\n", "\n<!-- end -->"
        before, rest = page.split(begin)
        _, after = rest.split(end, 1)
        page = before + begin + make() + end + after
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
