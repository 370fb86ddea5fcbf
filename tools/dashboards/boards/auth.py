"""Who logs in and who is refused, certificates, the audit trail."""

from __future__ import annotations

from tools.dashboards.boards.common import (
    HERE,
    NAMESPACE,
    PROCESS,
    calls_row,
    instances,
    process_row,
    rate,
    slowest,
)
from tools.dashboards.panels import Board, Kind, Panel, Row, one

_LOGINS = "anabranch_auth_logins_total"
_CALLS = "rpc_server_duration_seconds"
_LOGIN = f'{PROCESS}, rpc_method=~".*/(IssueToken|ExchangeApiKey)"'
_EXPIRES = f"min by (instance) (anabranch_tls_certificate_expiry_seconds{{{HERE}}}) - time()"

_WHO = Row(
    "Logins",
    (
        Panel(
            "Logins by outcome",
            "refused: wrong or revoked credentials. error: the service itself failed, mostly its "
            "database.",
            one(rate(_LOGINS, PROCESS, "grant, outcome"), "{{grant}} {{outcome}}"),
            "reqps",
            Kind.STACK,
            colours={".* ok": "green", ".* refused": "orange", ".* error": "red"},
        ),
        Panel(
            "Refused logins in 5 minutes",
            "A burst: somebody guesses, or a secret was changed and not handed on. `anabranch "
            "auth audit query` names the client.",
            one(f'sum (increase({_LOGINS}{{{PROCESS}, outcome="refused"}}[5m]))', "refused"),
            "short",
            alerts=("AnabranchLoginFailures",),
            nothing="none",
        ),
        Panel(
            "Latency of logins, 99th percentile",
            "A secret costs some 50 ms of CPU to check on purpose. Seconds: too many logins at "
            "once; do callers keep their tokens?",
            one(slowest(_CALLS, _LOGIN, "rpc_method"), "{{rpc_method}}"),
            "s",
            alerts=("AnabranchRpcP99High",),
        ),
    ),
)

_REFUSALS = Row(
    "Refusals in the whole cluster",
    (
        Panel(
            "Refused calls",
            "At every service. UNAUTHENTICATED: no token, or one that is not valid. "
            "PERMISSION_DENIED: scope, model, address. RESOURCE_EXHAUSTED: quota or overload.",
            one(
                rate(
                    f"{_CALLS}_count",
                    f'{HERE}, rpc_grpc_status_code=~"UNAUTHENTICATED|PERMISSION_DENIED|'
                    'RESOURCE_EXHAUSTED"',
                    "job, rpc_grpc_status_code",
                ),
                "{{job}} {{rpc_grpc_status_code}}",
            ),
            "reqps",
            Kind.STACK,
            nothing="none",
        ),
        Panel(
            "Quotas exceeded",
            "By what callers had too many of. `anabranch auth quotas list` shows the limits.",
            one(
                rate("anabranch_quota_refused_total", HERE, "anabranch_quota_unit"),
                "{{anabranch_quota_unit}}",
            ),
            "reqps",
            nothing="none",
        ),
        Panel(
            "Quotas counted together",
            "alone: Redis is away or not configured, and each process counts for itself.",
            one(f"min by (instance) (anabranch_quota_shared{{{HERE}}})", "{{instance}}"),
            "short",
            Kind.NUMBER,
            words={0: ("alone", "yellow"), 1: ("together", "green")},
        ),
    ),
)

_TRUST = Row(
    "Certificates and audit trail",
    (
        Panel(
            "Certificates",
            "Time until the certificate in force expires. Files are read again by themselves: "
            "renew them (`make certs`, cert-manager).",
            one(_EXPIRES, "{{instance}}"),
            "s",
            Kind.BARS,
            ("AnabranchCertificateExpiring", "AnabranchCertificateExpiresTomorrow"),
            nothing="no TLS",
        ),
        Panel(
            "Audit sinks",
            "down: the trail goes on in the other sink. See docs/security/audit.md.",
            one(
                f"min by (instance, sink) (anabranch_audit_sink_up{{{HERE}}})",
                "{{instance}} {{sink}}",
            ),
            "short",
            Kind.NUMBER,
            ("AnabranchAuditSinkDown",),
            words={0: ("down", "red"), 1: ("up", "green")},
            nothing="no trail",
        ),
        Panel(
            "Audit entries that wait",
            "lacking: a sink has yet to get them. Entries that are safe nowhere are the alert "
            "AnabranchAuditUnsafe: free space on the disk.",
            one(f"sum by (sink) (anabranch_audit_sink_waiting{{{HERE}}})", "{{sink}} lacks"),
            "short",
            nothing="no trail",
        ),
    ),
)

AUTH = Board(
    "auth",
    "Anabranch / Auth and audit",
    "Who logs in, who is refused, whether certificates and the audit trail are well.",
    (NAMESPACE, instances("anabranch-auth")),
    (_WHO, _REFUSALS, _TRUST, calls_row(), process_row()),
)
