"""Messages of the auth service for people and for programs: rows of tables, and JSON objects.

The JSON is a promise: fields keep their names and kinds, and are there even when empty. Times are
ISO 8601 in UTC, durations seconds, choices the words that options take, unset ones null. Nothing
secret has a place here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from anabranch.cli.auth.times import iso, show_duration
from anabranch.cli.render import print_table
from anabranch.v1 import auth_pb2 as pb
from anabranch.vocabulary import AuditDetail, Cipher, QuotaUnit, WireEnum
from anabranch.wire import seconds

_CONTROLS = dict.fromkeys(
    {*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)},
    "\N{REPLACEMENT CHARACTER}",
)
"""What could steer a terminal, or turn the direction of writing, in names that others gave."""


def typed(value: WireEnum) -> str:
    """An enum's value as an option takes it."""
    return value.name.lower().replace("_", "-")


def client(info: pb.ClientInfo) -> dict[str, Any]:
    """A client as JSON."""
    return {
        "client_id": info.client_id,
        "tenant": info.tenant,
        "display_name": info.display_name,
        "scopes": list(info.scopes),
        "roles": list(info.roles),
        "models": list(info.models),
        "allowed_cidrs": list(info.allowed_cidrs),
        "token_life": seconds(info.token_life),
        "disabled": info.disabled,
        "created_at": moment(info, "created_at"),
    }


def print_clients(found: Sequence[pb.ClientInfo]) -> None:
    """Clients as a table."""
    _print(
        (
            "CLIENT", "TENANT", "NAME", "SCOPES", "ROLES", "MODELS", "FROM", "TOKENS", "STATE",
            "CREATED",
        ),
        (
            (
                c.client_id,
                c.tenant,
                c.display_name,
                _list(c.scopes),
                _list(c.roles),
                _list(c.models),
                _list(c.allowed_cidrs, "everywhere"),
                show_duration(seconds(c.token_life)),
                "disabled" if c.disabled else "active",
                _day(c, "created_at"),
            )
            for c in found
        ),
        "There is no client.",
    )  # fmt: skip


def api_key(info: pb.ApiKeyInfo) -> dict[str, Any]:
    """An API key, without its secret part, as JSON."""
    return {
        "key_id": info.key_id,
        "client_id": info.client_id,
        "tenant": info.tenant,
        "display_name": info.display_name,
        "scopes": list(info.scopes),
        "models": list(info.models),
        "created_by": info.created_by,
        "created_at": moment(info, "created_at"),
        "expires_at": moment(info, "expires_at"),
        "last_used_at": moment(info, "last_used_at"),
        "revoked": info.revoked,
    }


def print_api_keys(found: Sequence[pb.ApiKeyInfo]) -> None:
    """API keys as a table."""
    now = datetime.now(UTC)
    _print(
        ("KEY", "CLIENT", "TENANT", "NAME", "SCOPES", "MODELS", "STATE", "ENDS", "LAST USED", "BY"),
        (
            (
                k.key_id,
                k.client_id,
                k.tenant,
                k.display_name,
                _list(k.scopes),
                _list(k.models),
                _key_state(k, now),
                _day(k, "expires_at", "never"),
                _minute(k, "last_used_at", "never"),
                k.created_by,
            )
            for k in found
        ),
        "There is no API key.",
    )


def role(found: pb.AccessRole) -> dict[str, Any]:
    """A role as JSON."""
    return {
        "name": found.name,
        "description": found.description,
        "scopes": list(found.scopes),
        "models": list(found.models),
        "built_in": found.built_in,
    }


def print_roles(found: Sequence[pb.AccessRole]) -> None:
    """Roles as a table."""
    _print(
        ("ROLE", "SCOPES", "MODELS", "ORIGIN", "DESCRIPTION"),
        (
            (
                r.name,
                _list(r.scopes),
                _list(r.models),
                "built in" if r.built_in else "own",
                r.description,
            )
            for r in found
        ),
        "There is no role.",
    )


def quota(found: pb.Quota) -> dict[str, Any]:
    """A quota as JSON; amounts of money are millionths of a US dollar."""
    return {
        "quota_id": found.quota_id,
        "tenant": found.tenant,
        "client_id": found.client_id,
        "model": found.model,
        "unit": typed(QuotaUnit(found.unit)),
        "limit": found.limit,
        "period": seconds(found.period),
        "burst": found.burst,
    }


def print_quotas(found: Sequence[pb.Quota]) -> None:
    """Quotas as a table."""
    _print(
        ("QUOTA", "TENANT", "CLIENT", "MODEL", "LIMIT", "PER", "AT ONCE"),
        (
            (
                q.quota_id,
                "each" if q.tenant == "*" else q.tenant,
                {"": "all together", "*": "each"}.get(q.client_id, q.client_id),
                q.model or "all together",
                _amount(q),
                show_duration(seconds(q.period)),
                "-" if QuotaUnit(q.unit) is QuotaUnit.COST_MICROUSD else str(q.burst or q.limit),
            )
            for q in found
        ),
        "There is no quota.",
    )


def tenant(found: pb.Tenant) -> dict[str, Any]:
    """A tenant as JSON."""
    return {
        "name": found.name,
        "display_name": found.display_name,
        "audit": typed(AuditDetail(found.audit_detail or AuditDetail.METADATA)),
        "cipher": typed(Cipher(found.cipher or Cipher.AES_256_GCM)),
        "clients": found.clients,
    }


def print_tenants(found: Sequence[pb.Tenant]) -> None:
    """Tenants as a table."""
    _print(
        ("TENANT", "NAME", "AUDIT", "CIPHER", "CLIENTS"),
        (
            (t["name"], t["display_name"], t["audit"], t["cipher"], str(t["clients"]))
            for t in map(tenant, found)
        ),
        "There is no tenant.",
    )


def audit_record(record: pb.AuditRecord) -> dict[str, Any]:
    """A record of the audit trail as JSON; hashes are hexadecimal."""
    return {
        "sequence": record.sequence,
        "time": moment(record, "time"),
        "client_id": record.client_id,
        "tenant": record.tenant,
        "action": record.action,
        "target": record.target,
        "succeeded": record.succeeded,
        "details": MessageToDict(record.details),
        "peer": record.peer,
        "hash": record.hash.hex(),
        "previous_hash": record.previous_hash.hex(),
    }


def print_audit_records(found: Sequence[pb.AuditRecord]) -> None:
    """Records of the audit trail as a table."""
    _print(
        ("NO", "TIME", "CLIENT", "TENANT", "ACTION", "TARGET", "DONE", "FROM", "PARTICULARS"),
        (
            (
                str(r.sequence),
                _second(r, "time"),
                r.client_id,
                r.tenant,
                r.action,
                r.target,
                "yes" if r.succeeded else "REFUSED",
                r.peer,
                " ".join(f"{k}={v}" for k, v in sorted(MessageToDict(r.details).items())),
            )
            for r in found
        ),
        "No such record.",
    )


def introspection(found: pb.IntrospectTokenResponse) -> dict[str, Any]:
    """What a token is worth as JSON; only `active` says anything when it is false."""
    return {
        "active": found.active,
        "client_id": found.client_id,
        "tenant": found.tenant,
        "scopes": list(found.scopes),
        "token_id": found.token_id,
        "issued_at": moment(found, "issued_at"),
        "expires_at": moment(found, "expires_at"),
    }


def print_introspection(found: pb.IntrospectTokenResponse) -> None:
    """What a token is worth, as a table of one row."""
    if not found.active:
        print_table((), (), "not active")
        return
    _print(
        ("CLIENT", "TENANT", "SCOPES", "ISSUED", "ENDS", "TOKEN ID"),
        [
            (
                found.client_id,
                found.tenant,
                _list(found.scopes),
                _second(found, "issued_at"),
                _second(found, "expires_at"),
                found.token_id,
            )
        ],
        "",
    )


def print_signing_keys(keys: Sequence[Mapping[str, Any]]) -> None:
    """Keys that verify tokens, as a table."""
    _print(
        ("KEY", "ALGORITHM", "CURVE", "AGE"),
        ((k["kid"], k["algorithm"], k["curve"], k["age"]) for k in keys),
        "There is no key.",
    )


def moment(message: Message, field: str) -> str | None:
    """A time of a message; None when it is not set."""
    return iso(getattr(message, field)) if message.HasField(field) else None


def _print(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    print_table(columns, ([_cell(text) for text in row] for row in rows), empty)


def _cell(text: str) -> str:
    return text.translate(_CONTROLS) or "-"


def _list(items: Iterable[str], empty: str = "-") -> str:
    return ", ".join(items) or empty


def _day(message: Message, field: str, unset: str = "-") -> str:
    return (moment(message, field) or unset).partition("T")[0]


def _second(message: Message, field: str) -> str:
    found = moment(message, field)
    return f"{found[:19]}Z" if found else "-"


def _minute(message: Message, field: str, unset: str) -> str:
    found = moment(message, field)
    return f"{found[:16]}Z" if found else unset


def _key_state(key: pb.ApiKeyInfo, now: datetime) -> str:
    if key.revoked:
        return "revoked"
    ended = key.HasField("expires_at") and _utc(key.expires_at) <= now
    return "expired" if ended else "active"


def _utc(proto: Timestamp) -> datetime:
    return proto.ToDatetime(UTC)


def _amount(found: pb.Quota) -> str:
    if QuotaUnit(found.unit) is QuotaUnit.COST_MICROUSD:
        return f"$ {found.limit / 1e6:,.6f}".rstrip("0").rstrip(".")
    return f"{found.limit:,} {typed(QuotaUnit(found.unit))}"
