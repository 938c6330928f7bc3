"""The gateway of examples/gateway/kubernetes.yaml is what a cluster takes, and its parts work with each other."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from maas_middleware import __version__, load_settings
from maas_middleware.cli import main
from maas_middleware.testing import ClusterUser, SimulatedModel, StandInCluster
from tests.deployments import bearer, chat
from tests.ledgers.redis_server import RedisServer, running_redis
from tests.processes import ROOT, GatewayProcess, running
from tests.servers import serving
from tests.stores.postgres_server import running_postgres

from .manifests import Object, arguments, container_of, load

FOLDER = ROOT / "examples" / "gateway"
MANIFEST = load(FOLDER / "kubernetes.yaml")
HEADER = MANIFEST.text.partition("apiVersion:")[0]
COMMANDS = "\n".join(re.findall(r"^#   (.*)$", HEADER, re.M))
USERS = {"sha256~fay": ClusterUser("fay"), "sha256~pat": ClusterUser("pat", ("premium-group",))}


def pod(name: str) -> Object:
    (found,) = [pod for workload, pod in MANIFEST.pods() if workload["metadata"]["name"] == name]
    return found


def gateway() -> Object:
    return container_of(pod("maas-gateway"))


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The Secrets, as the commands at the top of the manifest make them."""
    folder = tmp_path_factory.mktemp("secrets")
    noting = 'kubectl() { printf "%s\\0" "$@" >> calls; printf "\\n" >> calls; }\nset -euo pipefail\n'
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    subprocess.run(["bash", "-c", noting + COMMANDS], cwd=folder, env={"PATH": path}, check=True, timeout=20)
    made: dict[str, dict[str, str]] = {}
    for call in (folder / "calls").read_text().split("\0\n")[:-1]:
        words = call.split("\0")
        if words[:3] == ["create", "secret", "generic"]:
            made[words[3]] = dict(_entry(folder, word) for word in words[4:])
        elif words[:2] == ["create", "secret"]:
            made[words[3]] = {}
    return made


def _entry(folder: Path, word: str) -> tuple[str, str]:
    if file := re.fullmatch(r"--from-file=(\S+)", word):
        return file[1], (folder / file[1]).read_text()
    literal = re.fullmatch(r"--from-literal=([\w.-]+)=(.*)", word)
    assert literal is not None, word
    return literal[1], literal[2]


def test_nothing_leads_nowhere_and_what_is_missing_is_made_before(secrets: dict[str, dict[str, str]]) -> None:
    tls = [f"Secret/{entry['secretName']}" for entry in MANIFEST.one("Ingress")["spec"]["tls"]]

    assert MANIFEST.loose_ends() == []
    assert {*MANIFEST.missing(), *tls} == {f"Secret/{name}" for name in secrets}
    assert COMMANDS.splitlines()[-1] == f"kubectl apply -f {(FOLDER / 'kubernetes.yaml').name}"


def test_files_are_where_programs_look_for_them(secrets: dict[str, dict[str, str]]) -> None:
    config = yaml.safe_load(MANIFEST.one("ConfigMap")["data"]["maas.yaml"])
    named = {config["store_file"], config["counters_file"], config["tokens"]["signing_keys_file"]}
    environ = {entry["name"]: entry["value"] for entry in container_of(pod("maas-postgres"))["env"]}

    assert arguments(gateway())[3] in _files(pod("maas-gateway"), secrets)
    assert named - {"/keys/keys.json"} <= _files(pod("maas-gateway"), secrets)
    assert arguments(container_of(pod("maas-redis")))[1] in _files(pod("maas-redis"), secrets)
    assert environ["POSTGRES_PASSWORD_FILE"] in _files(pod("maas-postgres"), secrets)
    assert environ["PGDATA"].startswith("/var/lib/postgresql/data/")  # not the volume itself, where lost+found may be


def _files(pod: Object, secrets: dict[str, dict[str, str]]) -> set[str]:
    """What the container of a Pod finds, by the paths, of the ConfigMap and of the Secrets."""
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    sources = {("configMap", found["metadata"]["name"]): found["data"] for found in MANIFEST.all("ConfigMap")}
    sources |= {("secret", name): entries for name, entries in secrets.items()}
    return {
        f"{mount['mountPath']}/{file}"
        for mount in container_of(pod)["volumeMounts"]
        for kind, source in volumes.get(mount["name"], {}).items()
        if kind in ("configMap", "secret")
        for file in sources[kind, source.get("name", source.get("secretName"))]
    }


def test_urls_name_the_services_of_the_manifest(secrets: dict[str, dict[str, str]]) -> None:
    store, counters = (httpx.URL(secrets["maas-urls"][name]) for name in ("store-url", "counters-url"))
    environ = {entry["name"]: entry["value"] for entry in container_of(pod("maas-postgres"))["env"]}

    services = {service["metadata"]["name"]: service["spec"]["ports"][0]["port"] for service in MANIFEST.all("Service")}

    assert (store.host, services[store.host]) == ("maas-postgres", 5432)
    assert (counters.host, services[counters.host]) == ("maas-redis", counters.port)
    assert (store.username, store.path) == (environ["POSTGRES_USER"], f"/{environ['POSTGRES_DB']}")
    assert store.password == secrets["maas-postgres"]["password"]
    assert secrets["maas-redis"]["redis.conf"] == f"requirepass {counters.password}"


def test_way_in_leads_to_the_gateway_and_outlasts_its_time_outs() -> None:
    ingress, settings = MANIFEST.one("Ingress"), settings_of(MANIFEST.one("ConfigMap")["data"]["maas.yaml"])
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    service = MANIFEST.one("Service", path["backend"]["service"]["name"])
    notes = ingress["metadata"]["annotations"]

    assert settings.public_url == f"https://{rule['host']}"
    assert [port["name"] for port in service["spec"]["ports"]] == [path["backend"]["service"]["port"]["name"]]
    assert service["spec"]["selector"] == pod("maas-gateway")["metadata"]["labels"]
    silence = [notes["haproxy.router.openshift.io/timeout"].removesuffix("s")]
    silence += [notes[f"nginx.ingress.kubernetes.io/proxy-{name}-timeout"] for name in ("read", "send")]
    assert {int(seconds) > settings.proxy.first_byte_timeout for seconds in silence} == {True}
    assert settings.proxy.keepalive_interval is not None
    assert settings.proxy.keepalive_interval < 30
    assert notes["nginx.ingress.kubernetes.io/proxy-body-size"] == f"{settings.proxy.max_body_bytes >> 20}m"
    assert notes["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"


def settings_of(text: str) -> Any:
    """The settings of a ConfigMap, where its files are not there."""
    document = yaml.safe_load(text)
    del document["store_file"], document["counters_file"], document["tokens"]["signing_keys_file"]
    return load_settings({}, **document)


def test_credential_of_the_gateway_may_review_tokens() -> None:
    binding = MANIFEST.one("ClusterRoleBinding")
    (subject,) = binding["subjects"]

    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("ClusterRole", "system:auth-delegator")
    assert subject["name"] == pod("maas-gateway")["spec"]["serviceAccountName"]
    assert f"kubectl create namespace {subject['namespace']}" in COMMANDS
    assert "automountServiceAccountToken" not in pod("maas-gateway")["spec"]
    for name in ("maas-redis", "maas-postgres"):
        assert pod(name)["spec"]["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", ["maas-gateway", "maas-redis", "maas-postgres"])
def test_pods_keep_to_the_standard_restricted_and_say_what_they_take(name: str) -> None:
    spec = pod(name)["spec"]

    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*spec.get("initContainers", ()), *spec["containers"]]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert container["resources"]["limits"].keys() == {"memory"}


def test_on_openshift_no_user_is_asked_for_once_the_lines_are_left_out() -> None:
    lines = [line for line in MANIFEST.text.splitlines() if not re.match(r" +(runAsUser|fsGroup):", line)]

    left = [found for found in yaml.safe_load_all("\n".join(lines)) if found]

    assert len(left) == len(MANIFEST.objects)
    assert not any("runAsUser" in str(found) or "fsGroup" in str(found) for found in left)


def test_time_to_end_is_longer_than_the_pause_and_what_requests_have() -> None:
    words = arguments(gateway())
    pause = int(gateway()["lifecycle"]["preStop"]["exec"]["command"][1])

    shutdown = int(words[words.index("--shutdown-timeout") + 1])

    assert pod("maas-gateway")["spec"]["terminationGracePeriodSeconds"] >= pause + shutdown + 15


def test_probes_are_those_of_the_page_for_operators() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    probes = [gateway()[f"{kind}Probe"]["httpGet"]["path"] for kind in ("liveness", "readiness")]

    assert probes == re.findall(r"^\|[^|]*\| `(/[a-z]+)` \|", page, re.M)


def test_keys_are_copied_as_their_page_says() -> None:
    page = (ROOT / "docs" / "keys.md").read_text()
    (block,) = [text for text in re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S) if "initContainers" in text]
    (documented,) = yaml.safe_load(block)["spec"]["initContainers"]

    (copying,) = pod("maas-gateway")["spec"]["initContainers"]

    own = {"image": gateway()["image"], "securityContext": copying["securityContext"]}
    assert copying == {**documented, **own, "resources": copying["resources"]}


def test_redis_forgets_nothing_that_is_counted_and_stays_within_its_memory(
    redis: RedisServer, secrets: dict[str, dict[str, str]]
) -> None:
    memory = container_of(pod("maas-redis"))["resources"]["limits"]["memory"]
    password = secrets["maas-redis"]["redis.conf"].split()[1]

    with socket.create_connection(("127.0.0.1", redis.port), timeout=10) as connection:
        connection.sendall(f"AUTH {password}\r\nCONFIG GET maxmemory*\r\nQUIT\r\n".encode())
        words = b"".join(iter(partial(connection.recv, 4096), b"")).decode().split("\r\n")

    assert words[words.index("maxmemory-policy") + 2] == "noeviction"
    assert 0 < int(words[words.index("maxmemory") + 2]) < int(memory.removesuffix("Mi")) << 20


def test_only_the_gateway_reaches_its_stores() -> None:
    policy = MANIFEST.one("NetworkPolicy")["spec"]
    chosen = policy["podSelector"]["matchLabels"].items()
    (source,) = policy["ingress"][0]["from"]

    held = {
        workload["metadata"]["name"] for workload, pod in MANIFEST.pods() if chosen <= pod["metadata"]["labels"].items()
    }

    assert held == {"maas-redis", "maas-postgres"}
    assert source["podSelector"]["matchLabels"] == pod("maas-gateway")["metadata"]["labels"]


def test_every_replica_is_counted_and_one_is_always_there() -> None:
    settings = settings_of(MANIFEST.one("ConfigMap")["data"]["maas.yaml"])
    deployment = MANIFEST.one("Deployment", "maas-gateway")["spec"]

    budget = MANIFEST.one("PodDisruptionBudget")["spec"]

    assert settings.replicas == deployment["replicas"]
    assert 0 < budget["minAvailable"] < deployment["replicas"]
    assert budget["selector"] == deployment["selector"]


def test_image_installs_what_the_gateway_needs_and_runs_it_as_nobody() -> None:
    lines = [line.partition(" ") for line in (FOLDER / "Dockerfile").read_text().splitlines() if line[0] != "#"]
    steps = {name: rest for name, _, rest in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    *command, wanted = shlex.split(steps["RUN"])
    requirement = Requirement(wanted)

    assert list(steps) == ["FROM", "RUN", "USER", "CMD"]
    assert SpecifierSet(project["requires-python"]).contains(steps["FROM"].removeprefix("python:").partition("-")[0])
    assert command == ["pip", "install", "--no-cache-dir"]
    assert requirement.name == project["name"]
    assert requirement.extras == {"gateway"} <= project["optional-dependencies"].keys()
    assert requirement.specifier.contains(__version__)
    assert all(int(number) > 0 for number in steps["USER"].split(":"))
    assert yaml.safe_load(steps["CMD"]) == arguments(gateway())[: len(yaml.safe_load(steps["CMD"]))]
    assert yaml.safe_load(steps["CMD"])[0] in project["scripts"]


@pytest.fixture(scope="module")
def redis(secrets: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server with the options and with the Secret of the manifest."""
    options = container_of(pod("maas-redis"))["args"]
    (file := tmp_path_factory.mktemp("redis") / "redis.conf").write_text(secrets["maas-redis"]["redis.conf"])
    with running_redis(*options, "--include", str(file)) as server:
        yield server


def lay_out(folder: Path, secrets: dict[str, dict[str, str]], **addresses: str) -> list[str]:
    """Put the files of a gateway's Pod below a folder, with other addresses; returns its command there."""
    stood_in = {"/etc/maas": f"{folder}/etc/maas", "/keys/": f"{folder}/keys/"}
    stood_in["http://granite.models.svc:8000"] = addresses["model"]
    text = MANIFEST.one("ConfigMap")["data"]["maas.yaml"]
    for original, replacement in stood_in.items():
        text = text.replace(original, replacement)
    counters = secrets["maas-urls"]["counters-url"].replace("maas-redis:6379", addresses["redis"])
    files = {
        "etc/maas/maas.yaml": text,
        "etc/maas-secrets/store-url": addresses["store"],
        "etc/maas-secrets/counters-url": counters,
        "keys/keys.json": secrets["maas-keys"]["keys.json"],
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(content)
    program, *words = arguments(gateway())
    changed = {"/etc/maas/maas.yaml": f"{folder}/etc/maas/maas.yaml", "0.0.0.0": "127.0.0.1", "8080": "0"}
    return [str(Path(sys.executable).with_name(program)), *(changed.get(word, word) for word in words)]


@asynccontextmanager
async def replicas(
    folder: Path, secrets: dict[str, dict[str, str]], redis: RedisServer
) -> AsyncIterator[tuple[list[GatewayProcess], SimulatedModel]]:
    """Two gateways with the arguments, the ConfigMap and the Secrets of the manifest, in front of stand-ins."""
    model = SimulatedModel("ibm-granite/granite-3.3-8b-instruct")
    with running_postgres() as postgres, ExitStack() as processes:
        async with serving(model) as model_url, serving(StandInCluster(USERS)) as cluster_url:
            addresses = {"model": model_url, "redis": redis.url[8:], "store": await postgres.new_database()}
            command = lay_out(folder, secrets, **addresses)
            assert main(["check", *command[2:4]]) == 0
            started = (running(*command, MAAS_OPENSHIFT_API_URL=cluster_url) for _ in range(2))
            yield [processes.enter_context(gateway) for gateway in started], model


async def test_replicas_serve_with_the_configuration_and_the_secrets_of_the_manifest(
    tmp_path: Path, secrets: dict[str, dict[str, str]], redis: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    probes = [gateway()[f"{kind}Probe"]["httpGet"]["path"] for kind in ("liveness", "readiness")]
    async with replicas(tmp_path, secrets, redis) as (gateways, model), httpx.AsyncClient(timeout=10) as client:
        one, other = (f"http://127.0.0.1:{gateway.port}" for gateway in gateways)
        answers = [await client.get(f"{url}{path}") for url in (one, other) for path in probes]
        token = (await client.post(f"{one}/v1/tokens", headers=bearer("sha256~fay"))).json()["token"]
        listed = await client.get(f"{other}/v1/models", headers=bearer(token))
        question = chat("granite", max_tokens=5)
        asked = [
            await client.post(f"{url}/v1/chat/completions", headers=bearer(token), json=question)
            for url in (one, other, one, other, one, other)
        ]
        for replica in gateways:
            replica.process.terminate()  # as Kubernetes does
        codes = [replica.process.wait(timeout=10) for replica in gateways]

    assert "warning" not in capsys.readouterr().out
    assert [answer.status_code for answer in answers] == [200] * 4
    assert [answer.json() for answer in answers[1::2]] == [{"status": "ready"}] * 2
    assert [(row["id"], row["url"]) for row in listed.json()["data"]] == [
        ("granite", "https://maas.example.com/granite/v1/chat/completions")
    ]
    assert [answer.status_code for answer in asked] == [200] * 5 + [429]
    assert len(model.requests) == 5
    assert codes == [0, 0]
    assert not any("ERROR" in gateway.printed or "WARNING" in gateway.printed for gateway in gateways)
