"""Starts, watches and stops a whole cluster of real processes on one machine.

`make up`, the demonstration and tests/cluster stand on it. It supervises nothing over time:
a process that dies stays dead until somebody starts it again.
"""

from tools.cluster.cluster import Cluster
from tools.cluster.process import ClusterError
from tools.cluster.recipes import EngineKind, EngineSpec, Ports

__all__ = ["Cluster", "ClusterError", "EngineKind", "EngineSpec", "Ports"]
