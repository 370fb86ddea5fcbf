"""One service as several processes behind one port: a supervisor, and workers that it replaces.

The supervisor (supervisor.py) creates no gRPC object and answers no RPC. A worker (worker.py) is
an ordinary service process that shares its port and knows its siblings. Why it is built so:
docs/adr/0003-workers-share-a-port.md.
"""

from services.chassis.workers.assignment import Assignment
from services.chassis.workers.siblings import Roster, Sibling, willing
from services.chassis.workers.worker import Worker

__all__ = ["Assignment", "Roster", "Sibling", "Worker", "willing"]
