"""The router: who waits, what its backends do, what its calls take, what it needs."""

from __future__ import annotations

from tools.dashboards.boards.common import (
    HERE,
    NAMESPACE,
    PROCESS,
    calls_row,
    instances,
    process_row,
    rate,
)
from tools.dashboards.panels import Board, Kind, Panel, Query, Row, Variable, one

_BACKEND = f'{PROCESS}, backend=~"$backend"'
_SESSIONS = "anabranch_router_sessions"
_CACHE = "anabranch_router_cache"


def _of_backend(name: str) -> str:
    """A backend's value at the router that sees the most of it."""
    return f"max by (backend) (anabranch_router_backend_{name}{{{_BACKEND}}})"


_LINE = Row(
    "Line and sessions",
    (
        Panel(
            "Waiting in line",
            "Requests without a free slot. A line that does not empty: too little capacity. "
            "`anabranch explain` says why a request waits.",
            one(f"sum by (instance) (anabranch_router_waiting{{{PROCESS}}})", "{{instance}}"),
            "short",
            Kind.STACK,
            ("AnabranchQueueLong",),
        ),
        Panel(
            "Answers gone on with elsewhere",
            "Answers that a backend had begun and another one ended. Callers notice nothing; find "
            "out why the backend failed.",
            one(
                rate("anabranch_router_resumes_total", PROCESS, "gen_ai_request_model"),
                "{{gen_ai_request_model}}",
            ),
            "ops",
            Kind.STACK,
            nothing="none",
        ),
        Panel(
            "Sessions without a connection",
            "waiting: callers that may come back. resumed: came back. handed over: to another "
            "worker. lost: did not. Many lost: callers' network, or a router was killed.",
            (
                Query(f"sum ({_SESSIONS}_detached{{{PROCESS}}})", "waiting"),
                Query(rate(f"{_SESSIONS}_resumed_total", PROCESS), "resumed/s"),
                Query(rate(f"{_SESSIONS}_handed_over_total", PROCESS), "handed over/s"),
                Query(rate(f"{_SESSIONS}_lost_total", PROCESS, "reason"), "lost/s: {{reason}}"),
            ),
        ),
    ),
)

_BACKENDS = Row(
    "Backends, as the router sees them",
    (
        Panel(
            "In flight",
            "Requests at a backend now. One that has none while others are full: its breaker, its "
            "state, or it does not serve the model.",
            one(
                f"sum by (backend) (anabranch_router_backend_in_flight{{{_BACKEND}}})",
                "{{backend}}",
            ),
            "short",
            Kind.STACK,
        ),
        Panel(
            "KV cache in use",
            "As backends report it with each step. Near 100 % they take no further request.",
            one(_of_backend("kv_used_ratio"), "{{backend}}"),
            "percentunit",
            alerts=("AnabranchKvCacheFull",),
            highest=1,
        ),
        Panel(
            "Step time against the expected",
            "1: as fast as it should be for its batch. Above the line: the GPU is throttled or "
            "shared, or the host lacks CPU. See the engine's dashboard.",
            one(_of_backend("step_time_ratio"), "{{backend}}"),
            "suffix: x",
            alerts=("AnabranchEngineSlow",),
        ),
        Panel(
            "Waiting at the backend",
            "Requests that a backend has taken and not begun. The router keeps this short; if it "
            "grows, somebody calls the engine past the router.",
            one(_of_backend("waiting"), "{{backend}}"),
            "short",
        ),
        Panel(
            "Ready",
            "1: takes new requests. 0: drained, starting, or not healthy.",
            one(f"min by (backend) (anabranch_router_backend_ready{{{_BACKEND}}})", "{{backend}}"),
            "short",
            highest=1,
        ),
        Panel(
            "Breaker open",
            "1: left alone after failures; tried again after a while. When the cause is gone, "
            "close it at once with the ResetBreaker call.",
            one(_of_backend("breaker_open"), "{{backend}}"),
            "short",
            alerts=("AnabranchBreakerOpen",),
            highest=1,
        ),
    ),
)

_AROUND = Row(
    "Cache, policy, registry",
    (
        Panel(
            "Response cache",
            "Requests answered without a backend, and those that the cache was asked in vain for.",
            (
                Query(rate(f"{_CACHE}_hits_total", PROCESS, "source"), "hit: {{source}}"),
                Query(rate(f"{_CACHE}_misses_total", PROCESS), "miss"),
            ),
            "reqps",
            Kind.STACK,
        ),
        Panel(
            "Cache size",
            "Memory of this process, and the file on disk.",
            one(f"sum by (source) ({_CACHE}_bytes{{{PROCESS}}})", "{{source}}"),
            "bytes",
        ),
        Panel(
            "Last word from the registry",
            "Since Consul last answered about a service; below some 15 s all is well. The last "
            "known instances are kept for an hour: start Consul again before that.",
            one(
                f"max by (instance, service) (anabranch_registry_age_seconds{{{PROCESS}}})",
                "{{instance}} {{service}}",
            ),
            "s",
            alerts=("AnabranchRegistryForgetsSoon",),
        ),
        Panel(
            "Newest policy",
            "refused: `anabranch policy show` names the faults; the policy before it is in force.",
            one(f"max by (instance) (anabranch_router_policy_rejected{{{PROCESS}}})"),
            "short",
            Kind.NUMBER,
            ("AnabranchPolicyRejected",),
            height=5,
            words={0: ("in force", "green"), 1: ("refused", "yellow")},
        ),
        Panel(
            "Policy in force",
            "The version that each router goes by. They differ for a second after a change, not "
            "longer.",
            one(
                "count by (version, source) "
                f"(max by (instance, version, source) (anabranch_router_policy_info{{{PROCESS}}}))"
            ),
            "short",
            Kind.TABLE,
            height=5,
        ),
        Panel(
            "Quotas exceeded",
            "Refused requests by what they had too many of. Expected now and then: a quota that "
            "never refuses limits nothing.",
            one(
                rate("anabranch_quota_refused_total", PROCESS, "anabranch_quota_unit"),
                "{{anabranch_quota_unit}}",
            ),
            "reqps",
            height=5,
            nothing="none",
        ),
    ),
)

ROUTER = Board(
    "router",
    "Anabranch / Router",
    "Who waits, what the backends do, how long calls take.",
    (
        NAMESPACE,
        instances("anabranch-router"),
        Variable("backend", f"anabranch_router_backend_ready{{{HERE}}}", "backend"),
    ),
    (_LINE, _BACKENDS, calls_row(), _AROUND, process_row()),
)
