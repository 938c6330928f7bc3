"""Real parts for tests: of this package, and of apps that are composed with it."""

from .clock import FakeClock
from .cluster import ClusterUser, StandInCluster
from .converse import Conversation, GrammarError, converse, http_scope
from .identity import StaticIdentityProvider
from .lifespan import started
from .model import SimulatedModel
from .serving import serving, serving_in_thread

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
    "serving",
    "serving_in_thread",
    "started",
]
