"""What a caller can see of the auth contract, kept in dictionaries.

It signs nothing: its tokens are random names, and its signing keys two that never change.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from anabranch import api_keys
from anabranch.v1 import auth_pb2 as pb
from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault, Violation

SCOPES = {"generate", "relay", "observe", "audit", "tenant-admin", "admin"}
PUBLIC = {"IssueToken", "ExchangeApiKey", "GetJwks"}


@dataclass
class FakeAuth:
    """The RPCs, each with the request and the id of who calls. For one caller at a time."""

    clients: dict[str, pb.ClientInfo] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    keys: dict[str, pb.ApiKeyInfo] = field(default_factory=dict)
    whole_keys: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    roles: dict[str, pb.AccessRole] = field(default_factory=dict)
    quotas: dict[str, pb.Quota] = field(default_factory=dict)
    tenants: dict[str, pb.Tenant] = field(default_factory=dict)
    records: list[pb.AuditRecord] = field(default_factory=list)
    fault: Fault | None = None
    """What every call but a login fails with, when set."""
    refuse_next: bool = False
    """Whether the next token that is shown is refused, as a revoked one would be."""
    largest_page: int = 1000

    def __post_init__(self) -> None:
        self.roles["administrator"] = pb.AccessRole(
            name="administrator", scopes=["admin"], models=["*"], built_in=True
        )

    def add_client(self, client_id: str, tenant: str, scopes: list[str], **rest: Any) -> str:
        info = pb.ClientInfo(client_id=client_id, tenant=tenant, scopes=scopes, **rest)
        info.created_at.CopyFrom(now())
        if not info.token_life.seconds:
            info.token_life.seconds = 300
        self.clients[client_id] = info
        self.secrets[client_id] = secrets.token_urlsafe(24)
        return self.secrets[client_id]

    def enter(self, method: str, request: Any, context: grpc.ServicerContext) -> str:
        """The caller, or a Fault."""
        if method in PUBLIC:
            return ""
        said = dict(context.invocation_metadata()).get("authorization", "")
        token = said.removeprefix("Bearer ")
        if token not in self.tokens or self.refuse_next:
            self.refuse_next = False
            raise rejected()
        if self.fault is not None:
            raise self.fault
        client_id, scopes = self.tokens[token]
        if method not in ("RevokeToken", "IntrospectToken") and not (
            {"admin", "tenant-admin"} & {*scopes}
        ):
            raise Fault(errors_pb2.ERROR_REASON_ACCESS_DENIED, "the scope admin is missing")
        return client_id

    def issue(self, client_id: str, scopes: list[str]) -> dict[str, Any]:
        token = f"token-{secrets.token_hex(16)}"
        self.tokens[token] = (client_id, scopes)
        life = self.clients[client_id].token_life
        return {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": life,
            "scopes": scopes,
        }

    def IssueToken(self, request, caller):
        info = self.clients.get(request.client_id)
        if info is None or info.disabled:
            raise rejected()
        if self.secrets[request.client_id] != request.client_secret:
            raise rejected()
        if beyond := set(request.scopes) - set(info.scopes):
            raise Fault(errors_pb2.ERROR_REASON_ACCESS_DENIED, f"no scope {sorted(beyond)[0]}")
        issued = self.issue(info.client_id, list(request.scopes or info.scopes))
        return pb.IssueTokenResponse(**issued)

    def ExchangeApiKey(self, request, caller):
        key_id = self.whole_keys.get(request.api_key)
        if key_id is None or self.keys[key_id].revoked:
            raise rejected()
        info = self.keys[key_id]
        info.last_used_at.CopyFrom(now())
        return pb.ExchangeApiKeyResponse(**self.issue(info.client_id, list(info.scopes)))

    def RevokeToken(self, request, caller):
        self.tokens.pop(request.token, None)
        return pb.RevokeTokenResponse()

    def IntrospectToken(self, request, caller):
        if request.token not in self.tokens:
            return pb.IntrospectTokenResponse(active=False)
        client_id, scopes = self.tokens[request.token]
        return pb.IntrospectTokenResponse(
            active=True,
            client_id=client_id,
            tenant=self.clients[client_id].tenant,
            scopes=scopes,
            issued_at=now(),
            expires_at=now(300),
            token_id="jti-1",
        )

    def GetJwks(self, request, caller):
        keys = [
            {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": "first", "x": "AAAA"},
            {"kty": "OKP", "alg": "EdDSA", "kid": "next", "iat": int(time.time()) - 7500},
        ]
        answer = pb.GetJwksResponse(
            jwks_json=json.dumps({"keys": keys}), issuer="https://auth.example", version="v7"
        )
        answer.max_age.seconds = 1
        answer.revoked_token_ids.append("jti-9")
        answer.disabled_client_ids.extend(c.client_id for c in self.clients.values() if c.disabled)
        answer.revoked_api_key_ids.extend(k.key_id for k in self.keys.values() if k.revoked)
        return answer

    def CreateClient(self, request, caller):
        check(request.client_id, request.scopes)
        if request.client_id in self.clients:
            raise Fault(errors_pb2.ERROR_REASON_ALREADY_EXISTS, "the client_id is taken")
        rest = {
            name: getattr(request, name)
            for name in ("display_name", "roles", "models", "allowed_cidrs", "token_life")
        }
        secret = self.add_client(request.client_id, request.tenant, list(request.scopes), **rest)
        self.record(caller, "client.create", request.client_id, request.tenant)
        return pb.CreateClientResponse(client=self.clients[request.client_id], client_secret=secret)

    def ListClients(self, request, caller):
        found, token = self.page(self.clients, request)
        return pb.ListClientsResponse(clients=found, next_page_token=token)

    def UpdateClient(self, request, caller):
        info = known(self.clients, request.client_id)
        check(info.client_id, request.scopes)
        if request.HasField("display_name"):
            info.display_name = request.display_name
        if request.scopes:
            info.scopes[:] = request.scopes
        if request.HasField("token_life"):
            info.token_life.CopyFrom(request.token_life)
        for name in ("roles", "models", "allowed_cidrs"):
            if request.HasField(name):
                getattr(info, name)[:] = getattr(request, name).items
        return pb.UpdateClientResponse(client=info)

    def DisableClient(self, request, caller):
        info = known(self.clients, request.client_id)
        info.disabled = True
        self.record(caller, "client.disable", info.client_id, info.tenant)
        return pb.DisableClientResponse()

    def RotateClientSecret(self, request, caller):
        known(self.clients, request.client_id)
        self.secrets[request.client_id] = secrets.token_urlsafe(24)
        return pb.RotateClientSecretResponse(client_secret=self.secrets[request.client_id])

    def CreateApiKey(self, request, caller):
        client = known(self.clients, request.client_id)
        info = pb.ApiKeyInfo(
            key_id="".join(secrets.choice(api_keys.PUBLIC_ID_ALPHABET) for _ in range(16)),
            client_id=client.client_id,
            tenant=client.tenant,
            scopes=request.scopes or client.scopes,
            models=request.models or client.models,
            display_name=request.display_name,
            created_by=caller,
            created_at=now(),
        )
        if request.HasField("life"):
            info.expires_at.CopyFrom(now(request.life.seconds))
        whole = new_api_key(info.key_id)
        self.keys[info.key_id] = info
        self.whole_keys[whole] = info.key_id
        return pb.CreateApiKeyResponse(info=info, api_key=whole)

    def ListApiKeys(self, request, caller):
        wanted = {k: v for k, v in self.keys.items() if request.client_id in ("", v.client_id)}
        found, token = self.page(wanted, request)
        return pb.ListApiKeysResponse(keys=found, next_page_token=token)

    def RevokeApiKey(self, request, caller):
        known(self.keys, request.key_id).revoked = True
        return pb.RevokeApiKeyResponse()

    def RotateSigningKey(self, request, caller):
        return pb.RotateSigningKeyResponse(kid="next", active_at=now(120))

    def SetRole(self, request, caller):
        role = request.role
        check(role.name, role.scopes)
        if self.roles.get(role.name, pb.AccessRole()).built_in:
            raise Fault(errors_pb2.ERROR_REASON_ACCESS_DENIED, "a built-in role cannot be changed")
        self.roles[role.name] = role
        return pb.SetRoleResponse(role=role)

    def ListRoles(self, request, caller):
        return pb.ListRolesResponse(roles=[self.roles[name] for name in sorted(self.roles)])

    def DeleteRole(self, request, caller):
        role = known(self.roles, request.name)
        if role.built_in or any(role.name in c.roles for c in self.clients.values()):
            raise Fault(errors_pb2.ERROR_REASON_IN_USE, "clients still have the role")
        del self.roles[role.name]
        return pb.DeleteRoleResponse()

    def SetQuota(self, request, caller):
        quota = request.quota
        if quota.period.seconds > 31 * 86_400:
            raise invalid("quota.period", "must be at most 31 days")
        parts = (quota.tenant, quota.client_id, quota.model, str(quota.unit))
        quota.quota_id = ":".join(parts)
        self.quotas[quota.quota_id] = quota
        return pb.SetQuotaResponse(quota=quota)

    def ListQuotas(self, request, caller):
        wanted = {
            k: v
            for k, v in self.quotas.items()
            if not request.tenant or v.tenant in ("*", request.tenant)
        }
        found, token = self.page(wanted, request)
        return pb.ListQuotasResponse(quotas=found, next_page_token=token)

    def DeleteQuota(self, request, caller):
        known(self.quotas, request.quota_id)
        del self.quotas[request.quota_id]
        return pb.DeleteQuotaResponse()

    def SetTenant(self, request, caller):
        tenant = request.tenant
        tenant.audit_detail = tenant.audit_detail or pb.AUDIT_DETAIL_METADATA
        tenant.cipher = tenant.cipher or pb.CIPHER_AES_256_GCM
        tenant.clients = sum(c.tenant == tenant.name for c in self.clients.values())
        self.tenants[tenant.name] = tenant
        return pb.SetTenantResponse(tenant=tenant)

    def ListTenants(self, request, caller):
        named = {c.tenant for c in self.clients.values()} | set(self.tenants)
        every = {name: self.tenants.get(name, pb.Tenant(name=name)) for name in named}
        found, token = self.page(every, request)
        return pb.ListTenantsResponse(tenants=found, next_page_token=token)

    def QueryAudit(self, request, caller):
        found = [
            r
            for r in reversed(self.records)
            if request.client_id in ("", r.client_id)
            and request.action in ("", r.action)
            and request.tenant in ("", r.tenant)
            and (not request.HasField("since") or instant(r.time) >= instant(request.since))
            and (not request.HasField("until") or instant(r.time) <= instant(request.until))
        ]
        page, token = self.page({f"{n:09}": r for n, r in enumerate(found)}, request)
        return pb.QueryAuditResponse(records=page, next_page_token=token)

    def record(
        self, client_id: str, action: str, target: str, tenant: str, **details: str
    ) -> pb.AuditRecord:
        record = pb.AuditRecord(
            sequence=len(self.records) + 1,
            time=now(),
            client_id=client_id,
            action=action,
            target=target,
            tenant=tenant,
            succeeded=True,
            peer="10.0.0.9",
            hash=secrets.token_bytes(32),
            previous_hash=self.records[-1].hash if self.records else bytes(32),
        )
        record.details.update(details)
        self.records.append(record)
        return record

    def page(self, items: dict[str, Any], request: Any) -> tuple[list[Any], str]:
        names = sorted(n for n in items if n > request.page_token)
        size = min(request.page_size or 100, self.largest_page)
        token = names[size - 1] if len(names) > size else ""
        return [items[n] for n in names[:size]], token


def new_api_key(key_id: str) -> str:
    """A key of the right form."""
    secret = "".join(secrets.choice(api_keys.BASE62) for _ in range(api_keys.SECRET_LENGTH))
    begun = f"{api_keys.PREFIX}{key_id}_{secret}"
    return begun + api_keys.checksum(begun)


def now(later: float = 0.0) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(round((time.time() + later) * 1e9))
    return stamp


def instant(stamp: Timestamp) -> int:
    return int(stamp.ToNanoseconds())


def known(items: dict[str, Any], name: str) -> Any:
    if name not in items:
        raise Fault(errors_pb2.ERROR_REASON_NOT_FOUND, f"{name} does not exist")
    return items[name]


def check(name: str, scopes: Any) -> None:
    if len(name) < 3:
        raise invalid("client_id", "must be 3 to 63 lower-case letters, digits and hyphens")
    for i, scope in enumerate(scopes):
        if scope not in SCOPES:
            raise invalid(f"scopes[{i}]", f"must be one of {', '.join(sorted(SCOPES))}")


def invalid(path: str, description: str) -> Fault:
    return Fault(
        errors_pb2.ERROR_REASON_INVALID_REQUEST,
        "the request is not valid",
        violations=[Violation(path, description)],
    )


def rejected() -> Fault:
    return Fault(errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED, "the credential is no good")
