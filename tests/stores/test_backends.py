from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from maas_middleware.stores.sql import SQLDatabase

ROOT = Path(__file__).parent.parent.parent
SECRET = "wiesel7"


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_sqlite_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"has to be a file; memory:// keeps everything in memory"):
        SQLDatabase(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "has to begin with sqlite:/// or postgresql://"),
        ("mysql://maas:wiesel7@db/maas", "has to begin with sqlite:/// or postgresql://"),
        ("postgresql+asyncpg://maas:wiesel7@db/maas", "has to begin with sqlite:/// or postgresql://"),
        ("sqlite://wiesel7.db", "has to be like sqlite:///relative.db or sqlite:////absolute.db"),
        ("sqlite:///wiesel7/", "has to be like sqlite:///relative.db or sqlite:////absolute.db"),
        ("sqlite:///wiesel7.db?mode=memory", "has to be like sqlite:///relative.db or sqlite:////absolute.db"),
        ("sqlite:///wiesel7.db#x", "has to be like sqlite:///relative.db or sqlite:////absolute.db"),
        ("postgresql://", "has to be like postgresql://user:password@host[:port]/database"),
        ("postgresql://maas:wiesel7@db", "has to be like postgresql://user:password@host[:port]/database"),
        ("postgresql://maas:wiesel7@db/", "has to be like postgresql://user:password@host[:port]/database"),
        ("postgresql:///wiesel7", "has to be like postgresql://user:password@host[:port]/database"),
        ("postgresql://maas:wiesel7@db/a/b", "has to be like postgresql://user:password@host[:port]/database"),
        ("postgresql://maas:wiesel7@db:port/maas", "has to be like postgresql://user:password@host[:port]/database"),
        ("postgresql://maas:wiesel7@db:99999/maas", "has to be like postgresql://user:password@host[:port]/database"),
        ("postgresql://maas:wiesel7@[db/maas", "has to be like postgresql://user:password@host[:port]/database"),
        ("postgresql://maas:wiesel7@db/maas#x", "has to be like postgresql://user:password@host[:port]/database"),
        ("postgresql://maas:wiesel7@db/maas?x", "has to be like postgresql://user:password@host[:port]/database"),
        ("postgresql://maas:wiesel7@db/maas?wiesel7=1", "may have sslrootcert=FILE, and sslmode, which is one of"),
        ("postgresql://maas@db/maas?sslmode=wiesel7", "may have sslrootcert=FILE, and sslmode, which is one of"),
        ("postgresql://maas@db/maas?sslmode=", "may have sslrootcert=FILE, and sslmode, which is one of"),
        ("postgresql://m@db/m?sslmode=verify-ca&sslrootcert=/wiesel7", "the file that sslrootcert names"),
        ("postgresql://m@db/m?sslmode=require&sslrootcert=/wiesel7", "needs sslmode=verify-full, or verify-ca"),
        ("postgresql://m@db/m?sslrootcert=/wiesel7", "needs sslmode=verify-full, or verify-ca"),
    ],
)
def test_url_that_is_wrong_is_refused_and_not_told(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"the url of|the file that|in the url of") as raised:
        SQLDatabase(url)

    assert message in str(raised.value)
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_file_without_certificates_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("none")

    with pytest.raises(ValueError, match="holds no certificates"):
        SQLDatabase(f"postgresql://maas@db/maas?sslmode=verify-full&sslrootcert={tmp_path}/ca.pem")


@pytest.mark.parametrize(
    ("missing", "url"),
    [
        ("sqlalchemy", "sqlite:///maas.db"),
        ("greenlet", "sqlite:///maas.db"),
        ("aiosqlite", "sqlite:///maas.db"),
        ("sqlalchemy", "postgresql://db/maas"),
        ("asyncpg", "postgresql://db/maas"),
    ],
)
def test_package_that_is_missing_is_named_with_what_to_install(missing: str, url: str) -> None:
    program = (
        "import sys\n"
        "import maas_middleware.stores.sql as sql\n"
        "assert not {'sqlalchemy', 'aiosqlite', 'asyncpg'} & sys.modules.keys()\n"
        f"sys.modules[{missing!r}] = None\n"
        f"sql.SQLDatabase({url!r})\n"
    )

    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=20)

    assert done.stderr.splitlines()[-1] == f"ValueError: {missing} is missing: pip install 'maas-middleware[sql]'"
