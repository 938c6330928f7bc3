from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from maas_middleware import __version__
from maas_middleware.cli import main
from maas_middleware.endpoints import ENDPOINTS
from maas_middleware.testing.cluster import ClusterUser, StandInCluster

from .processes import ROOT, running
from .servers import serving_in_thread

EXAMPLE = str(ROOT / "examples" / "gateway" / "maas.yaml")


def test_check_describes_a_valid_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", EXAMPLE]) == 0

    printed = capsys.readouterr().out.splitlines()
    assert printed[:6] == [
        "tier free: level 0, groups system:authenticated, tier-free-users; all features; at most 2048 tokens a request",
        "tier premium: level 1, groups premium-group, tier-premium-users; all features",
        "tier enterprise: level 2, groups enterprise-group, admin-group, tier-enterprise-users; all features",
        "model simulator: for every tier, below /simulator",
        "model qwen3: for enterprise, premium, below /qwen3",
        "billable as chat: /v1/chat/completions",
    ]
    assert "billable as pooling: /classify, /v1/classify, /pooling" in printed
    assert "unmetered as tokenize: /tokenize, /detokenize" in printed
    assert any(line.startswith("administrative: /v1/load_lora_adapter, ") for line in printed)
    assert any(line.startswith("refused: /v1/responses/*, ") for line in printed)
    assert printed[-1] == "The configuration is valid."
    listed = {path for line in printed[5:-2] for path in line.partition(": ")[2].split(", ")}
    assert listed == {endpoint.path for endpoint in ENDPOINTS}


def test_check_tells_what_a_tier_lacks_and_what_is_probably_not_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "maas.yaml"
    config.write_text(
        """
tiers:
  - {name: free, limits: {requests: 5/minute, tokens: unlimited}, features: [streaming], max_tokens_per_request: 9}
  - {name: bare, limits: {requests: 5/minute, tokens: unlimited}, features: []}
models:
  - {id: one, aliases: [uno, un], tiers: [free], upstreams: [http://127.0.0.1:9]}
"""
    )

    assert main(["check", "--config", str(config)]) == 0

    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "tier free: level 0, groups none; features streaming; at most 9 tokens a request"
    assert printed[1] == "tier bare: level 0, groups none; features none"
    assert printed[2] == "model one, also called uno, un: for free, below /one"
    assert "billable as embeddings, not for free, bare: /v1/embeddings" in printed
    (warning,) = [line for line in printed if line.startswith("warning: ")]
    assert warning.startswith("warning: maas.yaml: tiers[0].max_tokens_per_request: binds only requests that")


def test_check_without_a_file_validates_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAAS_MODELS", '[{"id": "hidden"}]')

    assert main(["check"]) == 0
    monkeypatch.delenv("MAAS_MODELS")
    assert main(["check"]) == 0

    printed = capsys.readouterr().out
    assert "model hidden: for nobody, below /hidden" in printed
    assert "models: those of the inner app, for every tier" in printed
    assert printed.count("To be mounted in an inference app: ") == 2


def test_check_names_every_problem_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text("counters: etcd://:secret@db\nmodels: [{id: a, tiers: [gold]}]\nunheard: 1\n")

    assert main(["check", "--config", str(config)]) == 1

    problems = capsys.readouterr().err.splitlines()
    assert sorted(line.partition(": ")[2].partition(":")[0] for line in problems) == [
        "counters",
        "models[0].tiers",
        "unheard",
    ]
    assert "secret" not in "".join(problems)


def test_check_refuses_what_serve_would_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys.json").write_text("{}")
    (tmp_path / "keys.json").chmod(0o644)
    (tmp_path / "ca.crt").write_text("no certificate")
    (tmp_path / "maas.yaml").write_text(f"openshift: {{ca_file: {tmp_path}/ca.crt}}")
    (tmp_path / "keys.yaml").write_text(f"tokens: {{signing_keys_file: {tmp_path}/keys.json}}")

    exits = [main(["check", "--config", str(tmp_path / name)]) for name in ("maas.yaml", "keys.yaml")]

    assert exits == [1, 1]
    authority, keys = capsys.readouterr().err.splitlines()
    assert authority == f"maas.yaml: openshift.ca_file: {tmp_path}/ca.crt holds no certificate"
    assert keys.startswith("tokens.signing_keys_file: ")


def test_missing_file_is_a_problem_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", "/nowhere/maas.yaml"]) == 1

    assert "/nowhere/maas.yaml cannot be read: No such file or directory" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])

    assert capsys.readouterr().out.strip() == __version__


def test_serve_refuses_a_configuration_without_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"]) == 1

    assert capsys.readouterr().err == "models: the gateway needs at least one model\n"


def test_serve_without_uvicorn_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)

    assert main(["serve", "--config", EXAMPLE]) == 1

    assert capsys.readouterr().err == "uvicorn is missing: pip install 'maas-middleware[gateway]'\n"


def test_serve_tells_how_long_requests_may_run_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["serve", "--help"])

    assert "after the signal to stop; default: 30" in " ".join(capsys.readouterr().out.split())


def test_process_that_serves_does_not_look_through_what_was_loaded_again_and_again() -> None:
    code = "import gc, sys; from maas_middleware.cli import main; from maas_middleware.serving import worker\n"
    code += "worker(); print(gc.get_freeze_count() > 10_000, gc.get_threshold())"
    environ = {**os.environ, "MAAS_CONFIG": EXAMPLE}

    printed = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=20)

    assert printed.stdout == "True (10000, 50, 100)\n", printed.stderr


def test_new_key_is_for_its_owner_alone_and_overwrites_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys.json"

    made, again = main(["new-key", str(keys)]), main(["new-key", str(keys)])

    assert (made, again) == (0, 1)
    assert keys.stat().st_mode & 0o777 == 0o600
    assert json.loads(keys.read_text())["keys"][0]["d"]
    assert capsys.readouterr().err == f"{keys}: File exists\n"


def test_several_workers_need_a_common_signing_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAAS_STORE", "memory://")

    assert main(["serve", "--config", EXAMPLE, "--workers", "2"]) == 1

    assert capsys.readouterr().err.startswith("tokens.signing_keys_file: several workers need one key")


@pytest.mark.parametrize(
    ("counters", "store", "own"),
    [
        pytest.param("memory://", "memory://", "limits and revocations", id="memory"),
        pytest.param("redis://127.0.0.1:9", "memory://", "revocations", id="redis"),
        pytest.param("redis://127.0.0.1:9", "sqlite:///{folder}/maas.db", None, id="redis-and-sqlite"),
    ],
)
def test_workers_serve_with_a_common_key_and_a_warning_of_what_they_do_not_share(
    counters: str, store: str, own: str | None, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    assert main(["new-key", str(keys)]) == 0
    (key,) = json.loads(keys.read_text())["keys"]
    config = tmp_path / "maas.yaml"
    config.write_text(
        f"counters: {counters}\nstore: {store.format(folder=tmp_path)}\ntokens: {{signing_keys_file: {keys}}}\n"
        "models: [{id: a, tiers: all, upstreams: ['http://127.0.0.1:9']}]\n"
    )

    with running(
        sys.executable, "-m", "maas_middleware", "serve", "--config", str(config), "--port", "0", "--workers", "2"
    ) as gateway:
        # the workers begin to listen after their parent has said so
        transport = httpx.HTTPTransport(retries=6)
        with httpx.Client(transport=transport, base_url=f"http://127.0.0.1:{gateway.port}", timeout=10) as client:
            forged = {"x-forwarded-for": "203.0.113.9"}
            answers = [client.get("/.well-known/jwks.json", headers=forged) for _ in range(5)]

    assert {key["kid"] for answer in answers for key in answer.json()["keys"]} == {key["kid"]}
    assert not any("server" in answer.headers for answer in answers)
    assert "203.0.113.9" not in gateway.printed
    assert (f"2 workers: each has {own} of its own" in gateway.printed) == (own is not None)
    assert ("of its own" in gateway.printed) == (own is not None)


ADMINISTRATORS = """
openshift: {{api_url: {cluster}}}
store: sqlite:///{folder}/maas.db
tokens: {{administrators: [admins]}}
models: [{{id: a, tiers: all, upstreams: ["http://127.0.0.1:9"]}}]
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_administrators_do_is_printed_as_json(workers: str, tmp_path: Path) -> None:
    cluster = StandInCluster({"ada": ClusterUser("ada", ("admins",))})
    config = tmp_path / "maas.yaml"
    with serving_in_thread(cluster) as cluster_url:
        config.write_text(ADMINISTRATORS.format(cluster=cluster_url, folder=tmp_path))
        serve = ("serve", "--config", str(config), "--port", "0", "--workers", workers)
        with running(sys.executable, "-m", "maas_middleware", *serve) as gateway:
            transport = httpx.HTTPTransport(retries=6)
            with httpx.Client(transport=transport, base_url=f"http://127.0.0.1:{gateway.port}", timeout=10) as client:
                revoked = client.delete("/v1/admin/tokens?user=fay", headers={"authorization": "Bearer ada"})

    assert revoked.status_code == 204
    (record,) = [json.loads(line) for line in gateway.printed.splitlines() if line.startswith("{")]
    assert (record["event"], record["actor"], record["subject"], record["outcome"]) == (
        "admin.tokens.revoke",
        "openshift/ada",
        "openshift/fay",
        "done",
    )
    assert record["request_id"] == revoked.headers["x-request-id"]
