"""Queries, variables and panels that several dashboards share."""

from __future__ import annotations

from tools.dashboards.panels import Kind, Panel, Query, Row, Variable, one

NAMESPACE = Variable("namespace", 'target_info{service_name=~"anabranch-.+"}', "namespace")


def instances(service: str) -> Variable:
    """The processes of one service. "All" are all of these, not those of other services."""
    series = f'target_info{{namespace=~"$namespace", service_name="{service}"}}'
    return Variable("instance", series, "instance", anything="")


HERE = 'namespace=~"$namespace"'
"""Selects the cluster."""

PROCESS = f'{HERE}, instance=~"$instance"'
"""Selects processes of the dashboard's service."""

ASKED = f'{HERE}, gen_ai_request_model=~"$model", anabranch_tier=~"$tier"'
"""Selects requests as the router counts them."""

SLICE = "$__rate_interval"


def rate(metric: str, labels: str, by: str = "", over: str = SLICE) -> str:
    """What a counter gains in a second, summed."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{labels}}}[{over}]))"


def quantiles(histogram: str, labels: str, legend: str = "p{q}") -> tuple[Query, ...]:
    """Median, 95th and 99th percentile."""
    buckets = rate(f"{histogram}_bucket", labels, "le")
    return tuple(
        Query(f"histogram_quantile({q}, {buckets})", legend.format(q=f"{q * 100:.0f}"))
        for q in (0.5, 0.95, 0.99)
    )


def slowest(histogram: str, labels: str, by: str) -> str:
    """The 99th percentile of each group."""
    return f"histogram_quantile(0.99, {rate(f'{histogram}_bucket', labels, f'{by}, le')})"


def process_row() -> Row:
    """CPU, memory and file descriptors of the processes, whatever they do."""
    by = "by (instance)"
    cpu = f"rate(anabranch_resources_cpu_seconds_total{{{PROCESS}}}[{SLICE}])"
    return Row(
        "Processes",
        (
            Panel(
                "CPU",
                "Share of the CPU that a process may use. Near 100 %, first tokens come late: add "
                "replicas or raise the limit.",
                one(
                    f"max {by} ({cpu}) / max {by} "
                    f"(anabranch_resources_cpu_limit_cores{{{PROCESS}}})",
                    "{{instance}}",
                ),
                "percentunit",
                alerts=("AnabranchCpuHigh",),
            ),
            Panel(
                "Memory",
                "Share of the memory that a process may use; at 100 % it is killed. When it grows "
                "and does not fall, note what changed, and restart the process in order.",
                one(
                    f"max {by} (anabranch_resources_memory_used_bytes{{{PROCESS}}}) / max {by} "
                    f"(anabranch_resources_memory_limit_bytes{{{PROCESS}}})",
                    "{{instance}}",
                ),
                "percentunit",
                alerts=("AnabranchMemoryHigh",),
            ),
            Panel(
                "Uptime",
                "Since a process started. A saw with short teeth is a process that dies again and "
                "again: read the end of its log.",
                one(f"time() - max {by} (process_start_time_seconds{{{PROCESS}}})", "{{instance}}"),
                "s",
                alerts=(),
            ),
        ),
    )


def calls_row() -> Row:
    """The RPCs of the processes: latency and statuses."""
    short = 'rpc_method!~".*/(Session|Generate|StreamGenerate|GetJwks|Watch)"'
    calls = "rpc_server_duration_seconds"
    return Row(
        "Calls",
        (
            Panel(
                "Latency of short calls, 99th percentile",
                "One in a hundred calls takes longer. Calls that last as long as an answer are "
                "left out. If one method is slow, look at what it needs: auth, Redis, an engine.",
                one(slowest(calls, f"{PROCESS}, {short}", "rpc_method"), "{{rpc_method}}"),
                "s",
                alerts=("AnabranchRpcP99High",),
                width=12,
            ),
            Panel(
                "Calls by status",
                "UNAUTHENTICATED and PERMISSION_DENIED: a caller's credentials. "
                "RESOURCE_EXHAUSTED: a quota, or overload. UNAVAILABLE and INTERNAL: ours; read "
                "the log of the process.",
                one(
                    rate(f"{calls}_count", PROCESS, "rpc_grpc_status_code"),
                    "{{rpc_grpc_status_code}}",
                ),
                "reqps",
                Kind.STACK,
                width=12,
                colours={"OK": "green"},
            ),
        ),
    )
