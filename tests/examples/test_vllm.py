"""The example of vLLM: its commands work as pasted, and its manifest is what a cluster and vLLM take."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from maas_middleware import Settings, __version__, load_settings
from maas_middleware.providers.keys import SigningKeys
from maas_middleware.settings import models_of, tiers_of
from maas_middleware.testing.cluster import StandInCluster
from tests.deployments import bearer
from tests.hosts.vllm_arguments import parse
from tests.hosts.vllm_running import CHAT, FAY, MIDDLEWARE, QUESTION, USERS, cluster, vllm
from tests.processes import ROOT
from tests.servers import serving_in_thread

from .manifests import Object, arguments, container_of, environment, load

FOLDER = ROOT / "examples" / "vllm"
MANIFEST = load(FOLDER / "kubernetes.yaml")
((DEPLOYMENT, POD),) = MANIFEST.pods()
VLLM = container_of(POD)
IN_A_POD = {"KUBERNETES_SERVICE_HOST": "172.30.0.1", "KUBERNETES_SERVICE_PORT": "443"}
README = (FOLDER / "README.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, re.M | re.S)

pytestmark = pytest.mark.timeout(60)


def init_container(name: str) -> Object:
    (found,) = [container for container in POD["spec"]["initContainers"] if container["name"] == name]
    return dict(found)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """What vLLM finds in its environment, with its files in another folder."""
    files = MANIFEST.contents(POD, VLLM)
    for path, text in files.items():
        (file := Path(f"{tmp_path}{path}")).parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for folder in ("keys", "data"):
        (tmp_path / folder).mkdir()
    SigningKeys.generate().save(tmp_path / "keys" / "keys.json")
    found = environment(VLLM)
    folders = re.compile(r"(?<=sqlite:///)/data/|^/(keys|etc/maas)/")
    return {name: folders.sub(lambda match: f"{tmp_path}{match[0]}", value) for name, value in found.items()}


def test_manifest_names_nothing_that_is_not_there() -> None:
    assert MANIFEST.loose_ends() == []
    assert MANIFEST.missing() == {"Secret/maas-keys"}
    assert "secret generic maas-keys --from-file=keys.json" in MANIFEST.text


def test_settings_of_the_manifest_are_settings(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    settings = load_settings({**environ, **IN_A_POD})

    assert [tier.name for tier in tiers_of(settings)] == ["free", "premium"]
    assert [model.id for model in models_of(settings) or ()] == ["granite"]
    assert settings.openshift.api_url == "https://172.30.0.1:443"
    assert settings.tokens.signing_keys_file == environ["MAAS_TOKENS_SIGNING_KEYS_FILE"]
    assert "unknown environment variables" not in caplog.text


def test_settings_are_checked_with_the_environment_that_vllm_will_have(environ: dict[str, str], tmp_path: Path) -> None:
    check = init_container("check")
    (credential := tmp_path / "token").write_text("of the pod")

    ran = subprocess.run(
        [sys.executable, "-m", "maas_middleware", *arguments(check)[1:]],
        env={**os.environ, **environ, **IN_A_POD, "MAAS_OPENSHIFT_TOKEN_FILE": str(credential)},
        capture_output=True,
        text=True,
        timeout=20,
    )

    assert arguments(check) == ["maas-gateway", "check"]
    assert environment(check) == environment(VLLM)
    assert MANIFEST.contents(POD, check) == MANIFEST.contents(POD, VLLM)
    assert ran.returncode == 0, ran.stderr
    assert "The configuration is valid." in ran.stdout
    assert "warning" not in ran.stdout.lower()
    assert re.findall("^WARNING: +([a-z, ]+): kept by this process alone", ran.stderr, re.M) == ["counters"]


def test_vllm_may_review_logins() -> None:
    binding = MANIFEST.one("ClusterRoleBinding")

    (subject,) = binding["subjects"]
    assert binding["roleRef"]["name"] == "system:auth-delegator"
    assert subject["name"] == POD["spec"]["serviceAccountName"] == MANIFEST.one("ServiceAccount")["metadata"]["name"]


def test_pod_has_the_time_that_streams_need_to_end() -> None:
    args = parse(["serve", *arguments(VLLM)[2:]])
    (pause,) = VLLM["lifecycle"]["preStop"]["exec"]["command"][1:]

    assert POD["spec"]["terminationGracePeriodSeconds"] >= int(pause) + args.shutdown_timeout + 15


def test_vllm_starts_with_the_arguments_and_the_environment_of_the_manifest(environ: dict[str, str]) -> None:
    with serving_in_thread(StandInCluster(USERS)) as url:
        program, command, *options = arguments(VLLM)
        with vllm(*options, **environ, MAAS_OPENSHIFT_API_URL=url) as server:
            token = server.mint(FAY)
            (model,) = server.http.get("/v1/models", headers=bearer(token)).json()["data"]
            probes = [VLLM[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")]
            probed = [server.http.get(path).status_code for path in probes]
            answer = server.ask(token, model="granite")
            stranger = server.http.post(CHAT, json=QUESTION)

    assert (program, command) == ("vllm", "serve")
    assert (model["id"], model["tier"]) == ("granite", "free")
    assert model["url"] == f"https://{MANIFEST.one('Route')['spec']['host']}/granite{CHAT}"
    assert probed == [200, 200, 200]
    assert answer.headers["x-ratelimit-remaining-requests"] == "4"
    assert stranger.status_code == 401


def test_image_takes_this_release() -> None:
    (line,) = re.findall(r"^RUN uv pip install --system (.*)$", (FOLDER / "Dockerfile").read_text(), re.M)

    requirement = Requirement(*shlex.split(line))
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert requirement.name == "maas-middleware"
    assert requirement.extras <= known.keys()
    assert __version__ in requirement.specifier


def test_image_is_the_same_everywhere() -> None:
    images = {container["image"] for container in [*POD["spec"]["initContainers"], *POD["spec"]["containers"]]}

    (image,) = images
    for text in (README, (FOLDER / "Dockerfile").read_text()):
        assert image in text


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """A shell in vLLM's environment: `vllm` is the stand-in, and `oc` is logged in to a stand-in cluster."""
    programs = tmp_path / "bin"
    programs.mkdir()
    lines = {
        "pip": ":",
        "oc": f"echo {FAY}",
        "maas-gateway": f'exec {sys.executable} -m maas_middleware "$@"',
        "vllm": f'cd {ROOT} && exec {sys.executable} -m tests.hosts.vllm_app "$@"',
    }
    for name, line in lines.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (programs / name).chmod(0o755)
    return {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path)}


def test_commands_of_the_readme_work_as_pasted(shell: dict[str, str], tmp_path: Path) -> None:
    install, check, serve, use, _ = BLOCKS
    with serving_in_thread(StandInCluster(USERS)) as url:
        check = check.replace("https://api.example.com:6443", url)
        check = check.replace("sqlite:///maas.db", f"sqlite:///{tmp_path}/maas.db")
        serve = serve.replace("vllm serve", "vllm serve --host 127.0.0.1").replace("\n", " &\n")
        waiting = "until curl -sf localhost:8000/health; do kill -0 $! || exit 9; done"
        script = "\n".join([install, check, serve, waiting, "{", use, "} >used.txt", "kill $!", "wait"])

        ran = subprocess.run(
            ["bash", "-c", script], env=shell, cwd=tmp_path, capture_output=True, text=True, timeout=50
        )

    used = (tmp_path / "used.txt").read_text()
    listed, rest = json.JSONDecoder().raw_decode(used)
    answer, end = json.JSONDecoder().raw_decode(used[rest:].lstrip())
    assert "The configuration is valid." in ran.stdout, ran.stderr
    assert [model["id"] for model in listed["data"]] == ["Qwen/Qwen3-0.6B"]
    assert answer["choices"][0]["message"]["content"].startswith("Hello!")
    assert "x-ratelimit-remaining-requests: 4" in used[rest:].lstrip()[end:]
    assert (tmp_path / "maas.keys.json").stat().st_mode & 0o777 == 0o600


def test_variables_of_the_readme_are_settings() -> None:
    named = {name.removeprefix("MAAS_").lower() for name in re.findall(r"\bMAAS_[A-Z_]+\b", README)}
    sections = {"openshift", "tokens"}
    known = {"config", "api_url", *Settings.__struct_fields__}

    own = {name for name in named if name.partition("_")[0] not in sections}
    assert own <= known
    with_section = {name for name in named - own}
    assert with_section == {"openshift_api_url", "openshift_review", "tokens_administrators"}


def test_options_of_the_readme_are_those_that_the_stand_in_takes() -> None:
    taken = {"--middleware", "--config", "--api-key", "--root-path", "--api-server-count", "--shutdown-timeout"}

    named = set(re.findall(r"^\| `(--[a-z-]+)", README, re.M))

    assert taken <= named


def test_yaml_line_of_the_readme_is_what_vllm_reads(tmp_path: Path) -> None:
    (line,) = re.findall(r"`(middleware: [\w.]+)`", README)
    (config := tmp_path / "vllm.yaml").write_text(line)

    args = parse(["serve", "tiny", "--config", str(config)])

    assert yaml.safe_load(line) == {"middleware": "maas_middleware.MaaSMiddleware"}
    assert args.middleware == ["maas_middleware.MaaSMiddleware"]


def test_tokens_of_one_server_are_good_for_another_with_the_same_key(tmp_path: Path) -> None:
    SigningKeys.generate().save(tmp_path / "keys.json")
    shared = {
        "MAAS_TOKENS_SIGNING_KEYS_FILE": str(tmp_path / "keys.json"),
        "MAAS_STORE": f"sqlite:///{tmp_path}/maas.db",
    }
    with cluster() as environ:
        environ |= shared
        with vllm(*MIDDLEWARE, **environ) as one, vllm(*MIDDLEWARE, **environ) as other:
            answer = other.ask(one.mint())

    assert answer.status_code == 200
