"""Real parts for tests: of this package, and of apps that are composed with it."""

from .clock import FakeClock
from .cluster import ClusterUser, StandInCluster
from .converse import Conversation, GrammarError, converse, http_scope
from .identity import StaticIdentityProvider
from .model import SimulatedModel

__all__ = [
    "ClusterUser",
    "Conversation",
    "FakeClock",
    "GrammarError",
    "SimulatedModel",
    "StandInCluster",
    "StaticIdentityProvider",
    "converse",
    "http_scope",
]
