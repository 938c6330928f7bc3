"""A cluster and a model server to try the other examples with, where there are no real ones.

    uvicorn examples.stand_ins:cluster --port 8001
    uvicorn examples.stand_ins:model --port 8002

    curl localhost:8002/v1/models

The cluster knows two logins, `sha256~alice` and `sha256~bob`. In front of a cluster of your own, `oc proxy --port 8001`
takes its place (you have to be allowed to create tokenreviews there), and `$(oc whoami -t)` that of the logins.
"""

from __future__ import annotations

from maas_middleware.testing import ClusterUser, SimulatedModel, StandInCluster

cluster = StandInCluster(
    {
        "sha256~alice": ClusterUser("alice", ("premium-group", "system:authenticated:oauth")),
        "sha256~bob": ClusterUser("bob", ("system:authenticated:oauth",)),
    }
)

model = SimulatedModel("simulator", delay=0.05)
