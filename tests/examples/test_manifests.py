"""What reads manifests finds what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from .manifests import arguments, container_of, environment, load

GOOD = """\
apiVersion: v1
kind: ServiceAccount
metadata: {name: account}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: binding}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:auth-delegator}
subjects: [{kind: ServiceAccount, name: account, namespace: models}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: config}
data: {app.yaml: "a: 1"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: app}
spec:
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      serviceAccountName: account
      containers:
        - name: app
          image: app
          command: [serve]
          args: [--port, "8000"]
          env:
            - {name: A, value: b}
            - {name: C, valueFrom: {secretKeyRef: {name: elsewhere, key: c}}}
          ports: [{name: http, containerPort: 8000}]
          readinessProbe: {httpGet: {path: /health, port: http}}
          volumeMounts: [{name: config, mountPath: /etc/app}]
      volumes: [{name: config, configMap: {name: config}}]
---
apiVersion: v1
kind: Service
metadata: {name: app}
spec: {selector: {app: app}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: route.openshift.io/v1
kind: Route
metadata: {name: app}
spec: {to: {kind: Service, name: app}, port: {targetPort: http}, tls: {termination: edge}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kubernetes.yaml"


def test_a_pod_is_read_as_its_containers_see_it(path: Path) -> None:
    path.write_text(GOOD)

    found = load(path)

    ((_, pod),) = found.pods()
    container = container_of(pod)
    assert arguments(container) == ["serve", "--port", "8000"]
    assert environment(container, {"C": "secret"}) == {"A": "b", "C": "secret"}
    assert found.contents(pod, container) == {"/etc/app/app.yaml": "a: 1"}
    assert found.missing() == {"Secret/elsewhere"}
    assert found.loose_ends() == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        pytest.param("image: app", "imagine: app", "Deployment/app, Kubernetes 1.28: ", id="unknown-key"),
        pytest.param('"8000"', "8000", "8000 is not of type 'string'", id="number-for-text"),
        pytest.param("apiVersion: apps/v1", "apiVersion: apps/v1beta9", "Couldn't find schema", id="unknown-version"),
        pytest.param("termination: edge", "termination: soft", "Route/app: 'soft' is not one of", id="route"),
    ],
)
def test_what_the_schemas_refuse_is_told(path: Path, old: str, new: str, fault: str) -> None:
    path.write_text(GOOD.replace(old, new))

    with pytest.raises(AssertionError) as refused:
        load(path)

    assert fault in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "end"),
    [
        pytest.param("labels: {app: app}", "labels: {app: b}", "Service/app selects no Pod", id="service"),
        pytest.param("matchLabels: {app: app}", "matchLabels: {app: b}", "does not select its own Pods", id="selector"),
        pytest.param("targetPort: http}]", "targetPort: web}]", "no container has the port web", id="target-port"),
        pytest.param("/health, port: http", "/health, port: 80", "asks the port 80", id="probe"),
        pytest.param("name: app}, port", "name: b}, port", "Route/app: there is no Service/b", id="route"),
        pytest.param("targetPort: http}, tls", "targetPort: web}, tls", "has no port web", id="port-of-route"),
        pytest.param("name: account, names", "name: b, names", "there is no ServiceAccount/b", id="binding"),
        pytest.param(", namespace: models", "", "its ServiceAccount has no namespace", id="namespace"),
        pytest.param("[{name: config, mountPath", "[{name: b, mountPath", "mounts b, which is no volume", id="mount"),
        pytest.param("[{name: config, configMap", "[{name: b, configMap", "nobody mounts b", id="volume"),
    ],
)
def test_names_that_lead_nowhere_are_told(path: Path, old: str, new: str, end: str) -> None:
    path.write_text(GOOD.replace(old, new))

    ends = load(path).loose_ends()

    assert end in "\n".join(ends)
