"""The cloud: what it costs, what is left, how providers behave, what was masked."""

from __future__ import annotations

from tools.dashboards.boards.common import (
    HERE,
    NAMESPACE,
    PROCESS,
    SLICE,
    instances,
    process_row,
    rate,
    slowest,
)
from tools.dashboards.panels import Board, Kind, Panel, Query, Row, Variable, one

_COST = "anabranch_cloud_cost_total"
_ATTEMPTS = "gen_ai_client_operation_duration_seconds"
_PROVIDER = f'{PROCESS}, gen_ai_provider_name=~"$provider"'
_ACCOUNT = "anabranch_budget_account"
_SPENT = f"sum by ({_ACCOUNT}) (anabranch_cloud_budget_spent{{{PROCESS}}})"
_LIMIT = f"max by ({_ACCOUNT}) (anabranch_cloud_budget_limit{{{PROCESS}}})"


def _dollars(over: str, by: str = "") -> str:
    """US dollars an hour."""
    return f"{rate(_COST, _PROVIDER, by, over)} * 3600 / 1e6"


def _attempts(more: str = "", by: str = "gen_ai_provider_name") -> str:
    """Attempts a second."""
    return rate(f"{_ATTEMPTS}_count", _PROVIDER + more, by)


_FAILED = ', error_type!=""'

_MONEY = Row(
    "Money, at list prices",
    (
        Panel(
            "Now",
            "US dollars an hour, at the pace of the last 5 minutes.",
            one(_dollars("5m")),
            "currencyUSD",
            Kind.NUMBER,
            width=4,
            decimals=2,
            nothing="0",
        ),
        Panel(
            "Last 24 hours",
            "US dollars. Invoices differ: a model without a price in its profile counts as 0.",
            one(f"sum (increase({_COST}{{{_PROVIDER}}}[1d])) / 1e6"),
            "currencyUSD",
            Kind.NUMBER,
            width=4,
            decimals=2,
            nothing="0",
        ),
        Panel(
            "By provider and model",
            "US dollars an hour. A jump: which model, and why did requests leave (cluster's "
            "dashboard)? Overflow can be switched off in the policy: `overflow.enabled`.",
            one(
                _dollars(SLICE, "gen_ai_provider_name, gen_ai_request_model"),
                "{{gen_ai_provider_name}} {{gen_ai_request_model}}",
            ),
            "currencyUSD",
            Kind.STACK,
            width=16,
        ),
        Panel(
            "Budgets spent",
            "Share of the current period's budget, by account. At 100 % what it would pay is "
            "refused, and waits for a local engine.",
            one(f"{_SPENT} / {_LIMIT}", f"{{{{{_ACCOUNT}}}}}"),
            "percentunit",
            Kind.BARS,
            ("AnabranchCloudBudgetNearlySpent",),
            width=12,
            highest=1,
            nothing="no budgets",
        ),
        Panel(
            "Budgets left",
            "US dollars until the period ends.",
            one(f"({_LIMIT} - {_SPENT}) / 1e6", f"{{{{{_ACCOUNT}}}}}"),
            "currencyUSD",
            width=12,
            nothing="no budgets",
        ),
    ),
)

_PROVIDERS = Row(
    "Providers",
    (
        Panel(
            "Failed attempts by reason",
            "busy: the provider limits us. refused_key, no_credit: see the keys. timed_out, "
            "unreachable, failed: the provider; its status page. misconfigured: our file.",
            one(
                _attempts(_FAILED, "gen_ai_provider_name, error_type"),
                "{{gen_ai_provider_name}} {{error_type}}",
            ),
            "reqps",
            Kind.STACK,
            nothing="none",
        ),
        Panel(
            "Share of attempts that fail",
            "Above the line for minutes: take the provider out of the routes file, or let its "
            "fallbacks serve.",
            one(
                f"({_attempts(_FAILED)} or {_attempts()} * 0) / {_attempts()}",
                "{{gen_ai_provider_name}}",
            ),
            "percentunit",
            alerts=("AnabranchCloudProviderFailing",),
            highest=1,
        ),
        Panel(
            "Latency, 99th percentile",
            "first: to the first output. whole: of an attempt.",
            (
                Query(
                    slowest(
                        "gen_ai_server_time_to_first_token_seconds",
                        _PROVIDER,
                        "gen_ai_provider_name",
                    ),
                    "first {{gen_ai_provider_name}}",
                ),
                Query(
                    slowest(_ATTEMPTS, _PROVIDER, "gen_ai_provider_name"),
                    "whole {{gen_ai_provider_name}}",
                ),
            ),
            "s",
        ),
        Panel(
            "Requests at providers",
            "running: now. left alone: 1 while the breaker of a provider is open after failures; "
            "its models' fallbacks serve.",
            (
                Query(f"sum (anabranch_cloud_requests_running{{{PROCESS}}})", "running"),
                Query(
                    "max by (provider) (anabranch_cloud_breaker_open"
                    f'{{{PROCESS}, provider=~"$provider"}})',
                    "left alone: {{provider}}",
                ),
            ),
            "short",
        ),
        Panel(
            "Tokens",
            "By kind; what is paid for.",
            one(
                rate("gen_ai_client_token_usage_total", _PROVIDER, "gen_ai_token_type"),
                "{{gen_ai_token_type}}",
            ),
            "suffix: tok/s",
        ),
        Panel(
            "Keys by state",
            "None usable: AnabranchCloudKeysUnusable. refused: the provider does not take it, "
            "replace the file; it is read again by itself. no_credit: pay.",
            one(
                "sum by (gen_ai_provider_name, anabranch_key_state) "
                f"(anabranch_cloud_keys{{{_PROVIDER}}})",
                "{{gen_ai_provider_name}} {{anabranch_key_state}}",
            ),
            "short",
            Kind.STACK,
            colours={".* usable": "green"},
        ),
    ),
)

_PRIVACY = Row(
    "What leaves",
    (
        Panel(
            "Masked in prompts",
            "Personal data and keys that were replaced before a prompt left, by kind. A jump: "
            "somebody sends what should not be in prompts.",
            one(
                rate("anabranch_cloud_entities_masked_total", _PROVIDER, "anabranch_pii_kind"),
                "{{anabranch_pii_kind}}",
            ),
            "ops",
            Kind.STACK,
            width=12,
            nothing="nothing",
        ),
        Panel(
            "Parameters left out",
            "Sampling parameters that a provider's profile does not take, by name.",
            one(
                rate("anabranch_cloud_parameters_dropped_total", _PROVIDER, "anabranch_parameter"),
                "{{anabranch_parameter}}",
            ),
            "ops",
            Kind.STACK,
            width=12,
            nothing="none",
        ),
    ),
)

CLOUD_COST = Board(
    "cloud-cost",
    "Anabranch / Cloud and cost",
    "What the cloud costs, what budgets are left, how providers behave.",
    (
        NAMESPACE,
        instances("anabranch-cloud"),
        Variable("provider", f"anabranch_cloud_keys{{{HERE}}}", "gen_ai_provider_name"),
    ),
    (_MONEY, _PROVIDERS, _PRIVACY, process_row()),
)
