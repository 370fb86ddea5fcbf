"""The first page: what callers get, where it comes from, what it costs, what is wrong."""

from __future__ import annotations

from tools.dashboards.boards.common import ASKED, HERE, NAMESPACE, SLICE, quantiles, rate
from tools.dashboards.panels import Board, Kind, Panel, Query, Row, Variable, one

_REQUESTS = "anabranch_router_requests_total"
_TTFT = "gen_ai_server_time_to_first_token_seconds"
_TOKENS = "gen_ai_client_token_usage_sum"
# Only the router's series have a tier: what callers saw.
_SEEN = f'{ASKED}, anabranch_tier!=""'
_ENDED = f'{ASKED}, outcome=~"ok|error"'


def _done(over: str) -> str:
    """Share of the requests that were answered to the end; callers who left do not count."""
    failed = rate(_REQUESTS, f'{ASKED}, outcome="error"', over=over)
    ended = rate(_REQUESTS, _ENDED, over=over)
    # Without a single failure there is no such series, and with no traffic there is no share.
    return f"1 - ({failed} or {ended} * 0) / {ended}"


def _to_cloud(over: str) -> str:
    cloud = rate(_REQUESTS, f'{ASKED}, anabranch_tier="cloud"', over=over)
    every = rate(_REQUESTS, ASKED, over=over)
    return f"({cloud} or {every} * 0) / {every}"


def _of_feedback(metric: str, over: str = "1h", **labels: str) -> str:
    chosen = "".join(f', {name}="{value}"' for name, value in labels.items())
    return f"sum (increase({metric}{{{ASKED}{chosen}}}[{over}]))"


def _late(over: str) -> str:
    """Share of the first tokens that came after more than the objective's 2 s."""
    soon = rate(f"{_TTFT}_bucket", f'{_SEEN}, le="2.0"', over=over)
    return f"1 - {soon} / {rate(f'{_TTFT}_count', _SEEN, over=over)}"


_RATING = (
    f"{_of_feedback('anabranch_router_feedback_rating_sum')}"
    f" / {_of_feedback('anabranch_router_feedback_rating_count')}"
)
_COMPLETED = "anabranch_router_feedback_completed_total"
_TASKS = f"{_of_feedback(_COMPLETED, completed='true')} / {_of_feedback(_COMPLETED)}"
_READY = f'anabranch_router_backends{{{HERE}, state="ready"}}'
_ALERTS = f'ALERTS{{{HERE}, alertname=~"Anabranch.+", alertstate="firing"}}'

_NOW = Row(
    "Now",
    (
        Panel(
            "Requests",
            "Requests that end in a second, however they end. None at all in a busy hour: callers "
            "do not get through. See the router's dashboard.",
            one(rate(_REQUESTS, ASKED, over="5m")),
            "reqps",
            Kind.NUMBER,
            width=3,
            height=4,
            decimals=1,
        ),
        Panel(
            "First token, p99",
            "One in a hundred callers waits longer for the first token, in the last 5 minutes. "
            "Above the limit: is a line waiting (router), is an engine slow (engine)?",
            one(
                f"histogram_quantile(0.99, {rate(f'{_TTFT}_bucket', _SEEN, 'le', '5m')})",
            ),
            "s",
            Kind.NUMBER,
            ("AnabranchTtftP99High",),
            width=3,
            height=4,
            decimals=2,
        ),
        Panel(
            "Answered to the end",
            "Of the requests that ended in the last 5 minutes, callers who left not counted. Low: "
            "see the reasons below.",
            one(_done("5m")),
            "percentunit",
            Kind.NUMBER,
            ("AnabranchCompletionRateLow",),
            width=3,
            height=4,
            decimals=1,
        ),
        Panel(
            "To the cloud",
            "Share of the requests that the cloud served in the last 5 minutes. High: is a local "
            "engine missing or full?",
            one(_to_cloud("5m")),
            "percentunit",
            Kind.NUMBER,
            width=3,
            height=4,
            decimals=1,
        ),
        Panel(
            "Cloud spending",
            "US dollars an hour at list prices, at the pace of the last 5 minutes.",
            one(f"{rate('anabranch_cloud_cost_total', HERE, over='5m')} * 3600 / 1e6"),
            "currencyUSD",
            Kind.NUMBER,
            width=3,
            height=4,
            decimals=2,
            nothing="0",
        ),
        Panel(
            "Ready backends",
            "Of the router that knows the fewest. 0: nothing is served; look at the registry and "
            "at the engines.",
            one(f"min (sum by (instance, worker) ({_READY}))"),
            "short",
            Kind.NUMBER,
            ("AnabranchNoBackends",),
            width=3,
            height=4,
        ),
        Panel(
            "Satisfaction",
            "Mean of the callers' ratings (1 to 5) in the last hour. Low: which model, and since "
            "when? Compare with the last change of a model or of the policy.",
            one(_RATING),
            "short",
            Kind.NUMBER,
            ("AnabranchSatisfactionLow",),
            width=3,
            height=4,
            decimals=1,
            highest=5,
            nothing="no ratings",
        ),
        Panel(
            "Firing alerts",
            "Alerts that fire now; the list is at the end of the page.",
            one(f"count ({_ALERTS}) or vector(0)"),
            "short",
            Kind.NUMBER,
            width=3,
            height=4,
        ),
    ),
)

_TRAFFIC = Row(
    "Traffic",
    (
        Panel(
            "Requests by tier and outcome",
            "Errors have their reasons below. Many `cancelled`: callers give up, mostly since "
            "they wait too long.",
            one(
                rate(_REQUESTS, ASKED, "anabranch_tier, outcome"), "{{anabranch_tier}} {{outcome}}"
            ),
            "reqps",
            Kind.STACK,
            colours={
                "local ok": "green",
                "cloud ok": "blue",
                ".* error": "red",
                ".* cancelled": "orange",
            },
        ),
        Panel(
            "Time to the first token",
            "As callers see it, waiting in line included. The dashed line is the objective: 99 % "
            "of first tokens within 2 s.",
            quantiles(_TTFT, _SEEN),
            "s",
            alerts=("AnabranchTtftP99High",),
        ),
        Panel(
            "Tokens",
            "Of finished requests, given and generated. Output that falls while requests wait: an "
            "engine is slow or missing.",
            one(rate(_TOKENS, _SEEN, "gen_ai_token_type"), "{{gen_ai_token_type}}"),
            "suffix: tok/s",
        ),
    ),
)

_WHERE = Row(
    "Where it is served",
    (
        Panel(
            "Share served in the cloud",
            "What local engines could not take in time, or what only the cloud offers.",
            one(_to_cloud(SLICE), "cloud"),
            "percentunit",
            highest=1,
            colours={"cloud": "blue"},
        ),
        Panel(
            "Why requests left for another tier",
            "saturated: local engines are full, add some or raise the objective. absent: no local "
            "engine has the model. unhealthy: breakers are open. failed: an engine failed them.",
            one(
                rate(
                    "anabranch_router_overflows_total",
                    f'{HERE}, gen_ai_request_model=~"$model"',
                    "reason",
                ),
                "{{reason}}",
            ),
            "reqps",
            Kind.STACK,
        ),
        Panel(
            "Backends by state",
            "As the router that knows the most sees them. lost: registered and silent, look at "
            "the process; draining: on purpose; connecting for minutes: network, certificates.",
            one(
                "max by (anabranch_tier, state) "
                f'(anabranch_router_backends{{{HERE}, anabranch_tier=~"$tier"}})',
                "{{anabranch_tier}} {{state}}",
            ),
            "short",
            Kind.STACK,
            colours={
                "local ready": "green",
                "cloud ready": "blue",
                ".* lost": "red",
                ".* draining": "orange",
                ".* connecting": "yellow",
            },
        ),
    ),
)

_WRONG = Row(
    "What goes wrong",
    (
        Panel(
            "Late first tokens",
            "Share of the first tokens that came after more than 2 s. The objective allows 1 % "
            "over 30 days: short peaks are what it is for. At the red line somebody gets up.",
            (Query(_late("5m"), "5 min"), Query(_late("1h"), "1 h")),
            "percentunit",
            alerts=("AnabranchTtftSloBurnFast", "AnabranchTtftSloBurnSlow"),
            width=6,
        ),
        Panel(
            "Errors by reason",
            "OVERLOADED: too little capacity, or too strict a limit. NO_BACKEND: see backends. "
            "MODEL_NOT_FOUND, INVALID_REQUEST: the callers'. INTERNAL: ours, read the logs.",
            one(rate("anabranch_router_failures_total", HERE, "error_type"), "{{error_type}}"),
            "reqps",
            Kind.STACK,
            width=6,
            nothing="no errors",
        ),
        Panel(
            "Answered to the end, tasks done",
            "answered: requests without an error. done: what callers report of their tasks, over "
            "an hour. Answered but not done: the answers are bad, look at the model.",
            (Query(_done(SLICE), "answered"), Query(_TASKS, "done")),
            "percentunit",
            alerts=("AnabranchCompletionRateLow",),
            width=6,
            highest=1,
        ),
        Panel(
            "Satisfaction by model",
            "Mean rating of an hour, 1 to 5.",
            one(
                "sum by (gen_ai_request_model) "
                f"(increase(anabranch_router_feedback_rating_sum{{{ASKED}}}[1h]))"
                " / sum by (gen_ai_request_model) "
                f"(increase(anabranch_router_feedback_rating_count{{{ASKED}}}[1h]))",
                "{{gen_ai_request_model}}",
            ),
            "short",
            alerts=("AnabranchSatisfactionLow",),
            width=6,
            highest=5,
            nothing="no ratings",
        ),
    ),
)

_ALERTING = Row(
    "Alerts and processes",
    (
        Panel(
            "Firing alerts",
            "Each has a section in docs/runbook.md, with the first command to run.",
            one(_ALERTS),
            "short",
            Kind.TABLE,
            width=12,
            nothing="none",
            hidden=("Value", "alertstate"),
        ),
        Panel(
            "Processes",
            "Every process that was one of the cluster's within the last hour. down: it does not "
            "answer Prometheus; look whether it runs.",
            one(
                f"up{{{HERE}}} * on (namespace, job, instance) group_left (service_name) max by "
                "(namespace, job, instance, service_name) (last_over_time("
                f'target_info{{{HERE}, service_name=~"anabranch-.+"}}[1h]))',
                "{{service_name}} {{instance}}",
            ),
            "short",
            Kind.TABLE,
            ("AnabranchProcessDown",),
            width=12,
            words={0: ("down", "red"), 1: ("up", "green")},
        ),
    ),
)

CLUSTER = Board(
    "cluster",
    "Anabranch / Cluster",
    "What callers get and where it comes from. Begin here.",
    (
        NAMESPACE,
        Variable("model", f"{_REQUESTS}{{{HERE}}}", "gen_ai_request_model"),
        Variable("tier", f"{_REQUESTS}{{{HERE}}}", "anabranch_tier"),
    ),
    (_NOW, _TRAFFIC, _WHERE, _WRONG, _ALERTING),
)
