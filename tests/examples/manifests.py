"""Kubernetes manifests: read, held against the schemas of the API, and asked what a Pod would see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped] # it has no types
import kubernetes_validate  # type: ignore[import-untyped] # it has no types
import yaml

Object = dict[str, Any]

# the oldest that people run, and the newest that the schemas know
VERSIONS = ("1.28", kubernetes_validate.latest_version())
_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")
# route.openshift.io/v1 is no part of Kubernetes; from the API reference of OpenShift 4
_TEXT = {"type": "string"}


def _table(required: str, **properties: object) -> Object:
    return {
        "type": "object",
        "required": required.split(),
        "additionalProperties": False,
        "properties": properties,
    }


_ROUTE = _table(
    "apiVersion kind metadata spec",
    apiVersion={"const": "route.openshift.io/v1"},
    kind={"const": "Route"},
    metadata={"type": "object"},
    spec=_table(
        "to",
        host=_TEXT,
        path=_TEXT,
        subdomain=_TEXT,
        wildcardPolicy={"enum": ["None", "Subdomain"]},
        port=_table("targetPort", targetPort={"type": ["string", "integer"]}),
        to=_table("kind name", kind={"const": "Service"}, name=_TEXT, weight={"type": "integer"}),
        tls=_table(
            "termination",
            termination={"enum": ["edge", "passthrough", "reencrypt"]},
            insecureEdgeTerminationPolicy={"enum": ["None", "Allow", "Redirect"]},
            certificate=_TEXT,
            key=_TEXT,
            caCertificate=_TEXT,
            destinationCACertificate=_TEXT,
        ),
    ),
)


@dataclass(frozen=True)
class Manifest:
    """The objects of a file, in order."""

    text: str
    objects: tuple[Object, ...]

    def all(self, kind: str) -> list[Object]:
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> Object:
        """The only object of a kind, or the one of that name."""
        (found,) = [found for found in self.all(kind) if name in (None, found["metadata"]["name"])]
        return found

    def pods(self) -> list[tuple[Object, Object]]:
        """Each workload, and the Pod that it makes."""
        workloads = [found for found in self.objects if found["kind"] in _WORKLOADS]
        return [(workload, workload["spec"]["template"]) for workload in workloads]

    def missing(self) -> set[str]:
        """What the Pods name and the file does not make, such as `Secret/maas-urls`; optional ones are left out."""
        there = {f"{found['kind']}/{found['metadata']['name']}" for found in self.objects}
        claims = {f"PersistentVolumeClaim/{claim}" for workload in self.objects for claim in _claim_templates(workload)}
        named = {name for _, pod in self.pods() for name in _references(pod["spec"])}
        return named - there - claims

    def loose_ends(self) -> list[str]:
        """What every schema accepts and no cluster could make sense of: names that lead nowhere."""
        return [
            *(end for workload, pod in self.pods() for end in _ends_of_workload(workload, pod)),
            *(end for service in self.all("Service") for end in self._ends_of_service(service)),
            *(end for route in self.all("Route") for end in self._ends_of_route(route)),
            *(end for kind in ("ClusterRoleBinding", "RoleBinding") for end in self._ends_of_bindings(kind)),
        ]

    def contents(self, pod: Object, container: Object) -> dict[str, str]:
        """The files that a container finds of the ConfigMaps and Secrets of this manifest, by their paths."""
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
        found = {}
        for mount in container.get("volumeMounts", ()):
            for name, text in self._files(volumes[mount["name"]]).items():
                if "subPath" not in mount:
                    found[f"{mount['mountPath']}/{name}"] = text
                elif mount["subPath"] == name:
                    found[mount["mountPath"]] = text
        return found

    def _files(self, volume: Object) -> dict[str, str]:
        for kind, key, name in (("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")):
            for found in self.all(kind) if key in volume else ():
                if found["metadata"]["name"] == volume[key][name]:
                    return {**found.get("data", {}), **found.get("stringData", {})}
        return {}

    def _ends_of_service(self, service: Object) -> Iterator[str]:
        name, spec = service["metadata"]["name"], service["spec"]
        chosen = [pod for _, pod in self.pods() if spec["selector"].items() <= pod["metadata"]["labels"].items()]
        if not chosen:
            yield f"Service/{name} selects no Pod"
        for pod in chosen:
            for port in spec["ports"]:
                if port.get("targetPort", port["port"]) not in _ports(pod):
                    yield f"Service/{name}: no container has the port {port.get('targetPort', port['port'])}"

    def _ends_of_route(self, route: Object) -> Iterator[str]:
        name, spec = route["metadata"]["name"], route["spec"]
        services = {service["metadata"]["name"]: service for service in self.all("Service")}
        if spec["to"]["name"] not in services:
            yield f"Route/{name}: there is no Service/{spec['to']['name']}"
            return
        ports = services[spec["to"]["name"]]["spec"]["ports"]
        known = {value for port in ports for value in (port.get("name"), port.get("targetPort"))}
        if "port" in spec and spec["port"]["targetPort"] not in known:
            yield f"Route/{name}: its Service has no port {spec['port']['targetPort']}"

    def _ends_of_bindings(self, kind: str) -> Iterator[str]:
        accounts = {account["metadata"]["name"] for account in self.all("ServiceAccount")}
        for binding in self.all(kind):
            for subject in binding["subjects"]:
                if subject["kind"] == "ServiceAccount" and subject["name"] not in accounts:
                    yield f"{kind}/{binding['metadata']['name']}: there is no ServiceAccount/{subject['name']}"
                if subject["kind"] == "ServiceAccount" and "namespace" not in subject:
                    yield f"{kind}/{binding['metadata']['name']}: its ServiceAccount has no namespace"


def load(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        AssertionError: its objects do not keep to the schemas, names every fault.
    """
    text = path.read_text()
    found = Manifest(text, tuple(document for document in yaml.safe_load_all(text) if document))
    faults = [fault for thing in found.objects for fault in _faults(thing)]
    assert not faults, "\n".join(faults)
    return found


def container_of(pod: Object, name: str | None = None) -> Object:
    """The only container of a Pod, or the one of that name."""
    (found,) = [container for container in pod["spec"]["containers"] if name in (None, container["name"])]
    return dict(found)


def environment(container: Object, secrets: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a container finds in its environment.

    Args:
        secrets: the values that come from elsewhere, by the names of the variables.
    """
    variables = container.get("env", ())
    return {
        entry["name"]: entry["value"] if "value" in entry else (secrets or {})[entry["name"]] for entry in variables
    }


def arguments(container: Object) -> list[str]:
    """The command line of a container."""
    return [*container.get("command", ()), *container.get("args", ())]


def _faults(thing: Object) -> Iterator[str]:
    where = f"{thing['kind']}/{thing['metadata']['name']}"
    if thing["kind"] == "Route":
        yield from (f"{where}: {error.message}" for error in jsonschema.Draft202012Validator(_ROUTE).iter_errors(thing))
        return
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(thing, version, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            yield f"{where}, Kubernetes {version}: {error.message}"


def _containers(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", ()), *spec["containers"]]


def _ports(pod: Object) -> set[object]:
    ports = [port for container in pod["spec"]["containers"] for port in container.get("ports", ())]
    return {value for port in ports for value in (port.get("name"), port["containerPort"])}


def _claim_templates(workload: Object) -> list[str]:
    return [claim["metadata"]["name"] for claim in workload.get("spec", {}).get("volumeClaimTemplates", ())]


def _references(spec: Object) -> Iterator[str]:
    if "serviceAccountName" in spec:
        yield f"ServiceAccount/{spec['serviceAccountName']}"
    yield from (f"Secret/{secret['name']}" for secret in spec.get("imagePullSecrets", ()))
    for volume in spec.get("volumes", ()):
        yield from _sources(volume)
        for source in volume.get("projected", {}).get("sources", ()):
            yield from _sources(source)
    for container in _containers(spec):
        for entry in container.get("env", ()):
            source = entry.get("valueFrom", {})
            yield from _named(source.get("secretKeyRef"), "Secret")
            yield from _named(source.get("configMapKeyRef"), "ConfigMap")
        for entry in container.get("envFrom", ()):
            yield from _named(entry.get("secretRef"), "Secret")
            yield from _named(entry.get("configMapRef"), "ConfigMap")


def _sources(volume: Object) -> Iterator[str]:
    yield from _named(volume.get("secret"), "Secret")
    yield from _named(volume.get("configMap"), "ConfigMap")
    if "persistentVolumeClaim" in volume:
        yield f"PersistentVolumeClaim/{volume['persistentVolumeClaim']['claimName']}"


def _named(source: Object | None, kind: str) -> Iterator[str]:
    if source is not None and not source.get("optional", False):
        yield f"{kind}/{source.get('secretName', source.get('name'))}"


def _ends_of_workload(workload: Object, pod: Object) -> Iterator[str]:
    where = f"{workload['kind']}/{workload['metadata']['name']}"
    selector = workload["spec"].get("selector", {}).get("matchLabels", {})
    if not selector.items() <= pod["metadata"].get("labels", {}).items():
        yield f"{where}: its selector does not select its own Pods"
    volumes = {volume["name"] for volume in pod["spec"].get("volumes", ())} | {*_claim_templates(workload)}
    mounts = [
        (container, mount) for container in _containers(pod["spec"]) for mount in container.get("volumeMounts", ())
    ]
    for container, mount in mounts:
        if mount["name"] not in volumes:
            yield f"{where}: {container['name']} mounts {mount['name']}, which is no volume"
    yield from (f"{where}: nobody mounts {name}" for name in volumes - {mount["name"] for _, mount in mounts})
    for container in pod["spec"]["containers"]:
        own = {value for port in container.get("ports", ()) for value in (port.get("name"), port["containerPort"])}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container.get(probe, {}).get("httpGet", {}).get("port")
            if asked is not None and asked not in own:
                yield f"{where}: {probe} of {container['name']} asks the port {asked}, which it does not have"
