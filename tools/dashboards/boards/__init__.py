"""What each dashboard shows. How Grafana writes it is decided in grafana.py."""

from tools.dashboards.boards.auth import AUTH
from tools.dashboards.boards.cloud_cost import CLOUD_COST
from tools.dashboards.boards.cluster import CLUSTER
from tools.dashboards.boards.engine import ENGINE
from tools.dashboards.boards.router import ROUTER

BOARDS = (CLUSTER, ROUTER, ENGINE, CLOUD_COST, AUTH)
