"""A request of every RPC, about what is the caller's tenant's, another's, or nobody's.

Each is good enough to get past whatever looks at its form, so that a refusal is one of access.
What the verdicts must be is tests/inprocess/test_access_matrix.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from anabranch.v1 import (
    admin_pb2,
    auth_pb2,
    model_admin_pb2,
    model_pb2,
    operations_pb2,
    session_pb2,
)
from anabranch.v1 import generation_pb2 as pb

OWN, OTHER, MISSING = "own tenant", "another tenant", "not existing"
PLACES = (OWN, OTHER, MISSING)
NOWHERE = ("no target",)
"""The columns of an RPC that names nothing that could be anybody's."""

TENANTS = {OWN: "shop", OTHER: "rival", MISSING: "nobodys"}
CLIENTS = {OWN: "target-shop", OTHER: "target-rival", MISSING: "target-nowhere"}


@dataclass
class Targets:
    """What requests may name, by place."""

    model: str
    client_id: str
    client_secret: str
    api_key: str
    keys: dict[str, str] = field(default_factory=dict)


Build = Callable[[Targets, str], Message]


@dataclass(frozen=True)
class Case:
    """How to ask, and in which columns."""

    build: Build
    places: tuple[str, ...] = PLACES


def generate_request(model: str) -> pb.GenerateRequest:
    """The shortest answer there is."""
    sampling = pb.Sampling(max_tokens=1, ignore_eos=True)
    return pb.GenerateRequest(model=model, prompt="hello", sampling=sampling)


def model_requests(model: str) -> dict[str, Message]:
    """A request for this model, by the RPC of ModelService."""
    start = session_pb2.SessionRequestFrame(stream=1, start=generate_request(model))
    return {
        "Generate": generate_request(model),
        "StreamGenerate": generate_request(model),
        "Session": session_pb2.SessionRequest(frames=[start]),
        "Embed": model_pb2.EmbedRequest(model=model, inputs=["hello"]),
        "CountTokens": model_pb2.CountTokensRequest(model=model, request=generate_request(model)),
        "ListModels": model_pb2.ListModelsRequest(),
    }


def _of_model(name: str) -> Case:
    return Case(lambda targets, _: model_requests(targets.model)[name], NOWHERE)


def _fixed(message: Message) -> Case:
    return Case(lambda _, __: message, NOWHERE)


_MODEL_SERVICE: Mapping[str, Case] = {
    "Generate": _of_model("Generate"),
    "StreamGenerate": _of_model("StreamGenerate"),
    # The opening alone: who may start what in it is asked apart (model_bound, relay).
    "Session": _fixed(session_pb2.SessionRequest()),
    "Embed": _of_model("Embed"),
    "CountTokens": _of_model("CountTokens"),
    "ListModels": _of_model("ListModels"),
    "Feedback": _fixed(model_pb2.FeedbackRequest(request_id="no-such", rating=5)),
}

_ROUTER_ADMIN: Mapping[str, Case] = {
    "ListBackends": _fixed(admin_pb2.ListBackendsRequest()),
    "DrainBackend": _fixed(admin_pb2.DrainBackendRequest(backend_id="no-such")),
    "UndrainBackend": _fixed(admin_pb2.UndrainBackendRequest(backend_id="no-such")),
    "ResetBreaker": _fixed(admin_pb2.ResetBreakerRequest(backend_id="no-such")),
    "ExplainRoute": Case(
        lambda targets, _: admin_pb2.ExplainRouteRequest(request=generate_request(targets.model)),
        NOWHERE,
    ),
    "GetPolicy": _fixed(admin_pb2.GetPolicyRequest()),
    "UpdatePolicy": _fixed(admin_pb2.UpdatePolicyRequest(policy_yaml="- no policy")),
    "CancelRequest": _fixed(admin_pb2.CancelRequestRequest(request_id="no-such")),
    "SetLogLevel": _fixed(admin_pb2.SetLogLevelRequest(level="info")),
}


def _quota(tenant: str) -> auth_pb2.Quota:
    return auth_pb2.Quota(
        tenant=tenant,
        unit=auth_pb2.QUOTA_UNIT_REQUESTS,
        limit=10**9,
        period=Duration(seconds=1),
    )


_AUTH: Mapping[str, Case] = {
    "IssueToken": Case(
        lambda targets, _: auth_pb2.IssueTokenRequest(
            client_id=targets.client_id, client_secret=targets.client_secret
        ),
        NOWHERE,
    ),
    "ExchangeApiKey": Case(
        lambda targets, _: auth_pb2.ExchangeApiKeyRequest(api_key=targets.api_key), NOWHERE
    ),
    "RevokeToken": _fixed(auth_pb2.RevokeTokenRequest(token="a.b.c")),
    "IntrospectToken": _fixed(auth_pb2.IntrospectTokenRequest(token="a.b.c")),
    "GetJwks": _fixed(auth_pb2.GetJwksRequest()),
    "CreateClient": Case(
        lambda _, place: auth_pb2.CreateClientRequest(
            tenant=TENANTS[place], scopes=["tenant-admin"]
        )
    ),
    "ListClients": _fixed(auth_pb2.ListClientsRequest(page_size=1000)),
    "UpdateClient": Case(
        lambda _, place: auth_pb2.UpdateClientRequest(
            client_id=CLIENTS[place], display_name="Renamed"
        )
    ),
    "DisableClient": Case(lambda _, place: auth_pb2.DisableClientRequest(client_id=CLIENTS[place])),
    "RotateClientSecret": Case(
        lambda _, place: auth_pb2.RotateClientSecretRequest(client_id=CLIENTS[place])
    ),
    "CreateApiKey": Case(lambda _, place: auth_pb2.CreateApiKeyRequest(client_id=CLIENTS[place])),
    "ListApiKeys": Case(
        lambda _, place: auth_pb2.ListApiKeysRequest(client_id=CLIENTS[place], page_size=1000)
    ),
    "RevokeApiKey": Case(
        lambda targets, place: auth_pb2.RevokeApiKeyRequest(key_id=targets.keys[place])
    ),
    "RotateSigningKey": _fixed(auth_pb2.RotateSigningKeyRequest()),
    "SetRole": _fixed(
        auth_pb2.SetRoleRequest(role=auth_pb2.AccessRole(name="reader", scopes=["observe"]))
    ),
    "ListRoles": _fixed(auth_pb2.ListRolesRequest()),
    "DeleteRole": _fixed(auth_pb2.DeleteRoleRequest(name="no-such")),
    "SetQuota": Case(lambda _, place: auth_pb2.SetQuotaRequest(quota=_quota(TENANTS[place]))),
    "ListQuotas": Case(lambda _, place: auth_pb2.ListQuotasRequest(tenant=TENANTS[place])),
    "DeleteQuota": Case(
        lambda _, place: auth_pb2.DeleteQuotaRequest(quota_id=f"tokens/{TENANTS[place]}//")
    ),
    "SetTenant": Case(
        lambda _, place: auth_pb2.SetTenantRequest(tenant=auth_pb2.Tenant(name=TENANTS[place]))
    ),
    "ListTenants": _fixed(auth_pb2.ListTenantsRequest()),
    "QueryAudit": Case(
        lambda _, place: auth_pb2.QueryAuditRequest(tenant=TENANTS[place], page_size=1000)
    ),
}

_OPERATIONS: Mapping[str, Case] = {
    "GetLogLevel": _fixed(operations_pb2.GetLogLevelRequest()),
    "UpdateLogLevel": _fixed(operations_pb2.UpdateLogLevelRequest(level="info")),
}

_MODEL_ADMIN: Mapping[str, Case] = {
    "ListServedModels": _fixed(model_admin_pb2.ListServedModelsRequest()),
    "LoadModel": _fixed(model_admin_pb2.LoadModelRequest(name="no-such", source="nowhere")),
    "UnloadModel": _fixed(model_admin_pb2.UnloadModelRequest(name="no-such")),
    "LoadAdapter": _fixed(
        model_admin_pb2.LoadAdapterRequest(base="no-such", name="none", source="nowhere")
    ),
    "UnloadAdapter": _fixed(model_admin_pb2.UnloadAdapterRequest(base="no-such", name="none")),
    "Sleep": _fixed(model_admin_pb2.SleepRequest(name="no-such")),
    "Wake": _fixed(model_admin_pb2.WakeRequest(name="no-such")),
}

CASES: Mapping[str, Mapping[str, Case]] = {
    "ModelService": _MODEL_SERVICE,
    "RouterAdminService": _ROUTER_ADMIN,
    "AuthService": _AUTH,
    "OperationsService": _OPERATIONS,
    "ModelAdminService": _MODEL_ADMIN,
}
"""By service and RPC. An RPC that is missing here has a row in no matrix, and fails its test."""
