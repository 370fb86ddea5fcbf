"""Credentials that would give more than whoever makes them has: none is made, none stays wider.

Privilege escalation through delegation (OWASP API5:2023, CWE-269; in this field LiteLLM's key
generation, where a user's key could be given more models and an admin's role than the user had).
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from google.protobuf.duration_pb2 import Duration

from anabranch.v1 import auth_pb2 as pb
from tests.support.attackers import created, exchanged, fault_of, key_of, login, told
from tests.support.auth import Front, auth, bearer

LIMITED = {"scopes": ["generate", "tenant-admin"], "models": ["river-*", "lake"]}


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with auth(tmp_path) as opened:
        yield opened


async def limited_admin(front: Front, **given: Any) -> str:
    """A token of an administrator of the tenant `shop` with few rights of its own."""
    secret = await created(front, "deputy", **LIMITED | given)
    return await front.token("deputy", secret)


def claims_of(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, options={"verify_signature": False}))


def denied(fault: Any) -> bool:
    return fault is not None and fault.code is grpc.StatusCode.PERMISSION_DENIED


WIDER: dict[str, dict[str, Any]] = {
    "a scope": {"scopes": ["generate", "audit"]},
    "every scope": {"scopes": ["admin"]},
    "relay, which passes every model": {"scopes": ["relay"]},
    "a role": {"roles": ["administrator"]},
    "a role beside scopes": {"scopes": ["generate"], "roles": ["viewer"]},
    "a model": {"scopes": ["generate"], "models": ["sea"]},
    "all models": {"scopes": ["generate"], "models": ["*"]},
    "a wider pattern": {"scopes": ["generate"], "models": ["river*"]},
    "a pattern of what is held as a name": {"scopes": ["generate"], "models": ["lake*"]},
    "one more model among others": {"scopes": ["generate"], "models": ["lake", "river-1", "sea"]},
}


@pytest.mark.parametrize("given", WIDER.values(), ids=WIDER.keys())
async def test_a_child_is_never_wider_than_its_creator(front: Front, given: dict[str, Any]) -> None:
    """Neither created with more, nor given more later.

    CVE-2026-47101, GHSA-qrc4-49gv-mv9m (LiteLLM).
    """
    deputy = bearer(await limited_admin(front))
    for tenant in ("shop", "rival"):
        request = pb.CreateClientRequest(client_id="child", tenant=tenant, **given)
        assert denied(await fault_of(front.stub.CreateClient(request, metadata=deputy)))
    await created(front, "child", scopes=["generate"], models=["lake"])
    lists = {k: pb.StringList(items=v) if k != "scopes" else v for k, v in given.items()}
    update = pb.UpdateClientRequest(client_id="child", **lists)
    assert denied(await fault_of(front.stub.UpdateClient(update, metadata=deputy)))


@pytest.mark.parametrize("given", WIDER.values(), ids=WIDER.keys())
async def test_nobody_promotes_itself(front: Front, given: dict[str, Any]) -> None:
    """Nor its own client, nor by an API key of its own."""
    deputy = bearer(await limited_admin(front))
    lists = {k: pb.StringList(items=v) if k != "scopes" else v for k, v in given.items()}
    update = pb.UpdateClientRequest(client_id="deputy", **lists)
    assert denied(await fault_of(front.stub.UpdateClient(update, metadata=deputy)))
    if "roles" not in given:
        key = pb.CreateApiKeyRequest(client_id="deputy", **given)
        assert denied(await fault_of(front.stub.CreateApiKey(key, metadata=deputy)))


async def test_a_child_without_models_of_its_own_gets_its_creators(front: Front) -> None:
    """What is not said must not mean everything."""
    deputy = await limited_admin(front)
    secret = await created(front, "child", by=deputy)
    assert claims_of(await front.token("child", secret))["models"] == ["lake", "river-*"]


async def test_a_key_is_never_wider_than_its_client_whoever_makes_it(front: Front) -> None:
    """An administrator has everything, its client's key has not."""
    await created(front, "orders", models=["river-*"])
    for wider in ({"scopes": ["admin"]}, {"scopes": ["relay"]}, {"models": ["lake"]}):
        request = pb.CreateApiKeyRequest(client_id="orders", **wider)
        assert denied(await fault_of(front.as_admin(front.stub.CreateApiKey, request))), wider
    narrow = await key_of(front, "orders", models=["river-1"])
    assert claims_of((await exchanged(front, narrow)).access_token)["models"] == ["river-1"]


async def test_a_key_narrows_with_its_client_and_never_widens_with_it(front: Front) -> None:
    """A key outlives what its client may do now (GHSA class: stale grants of long-lived keys)."""
    await created(front, "orders", scopes=["generate", "observe"], models=["river-*", "lake"])
    key = await key_of(front, "orders", models=["river-1", "lake"])

    async def granted(**change: Any) -> tuple[list[str], list[str]]:
        await front.as_admin(
            front.stub.UpdateClient, pb.UpdateClientRequest(client_id="orders", **change)
        )
        issued = await exchanged(front, key)
        return list(issued.scopes), claims_of(issued.access_token).get("models", [])

    models = pb.StringList
    assert await granted() == (["generate", "observe"], ["lake", "river-1"])
    assert await granted(scopes=["generate"]) == (["generate"], ["lake", "river-1"])
    assert await granted(models=models(items=["river-*"])) == (["generate"], ["river-1"])
    assert await granted(models=models(items=["sea"])) == (["generate"], [])
    assert await granted(scopes=["generate", "admin"], models=models(items=["*"])) == (
        ["generate"],
        ["lake", "river-1"],
    )


async def test_a_role_that_is_narrowed_narrows_clients_and_keys(front: Front) -> None:
    """And one that is widened later widens no key that was made before."""

    async def set_role(*scopes: str, models: list[str]) -> None:
        role = pb.AccessRole(name="reader", scopes=scopes, models=models)
        await front.as_admin(front.stub.SetRole, pb.SetRoleRequest(role=role))

    await set_role("generate", "observe", models=["lake"])
    secret = await created(front, "orders", roles=["reader"])
    key = await key_of(front, "orders")
    assert list((await exchanged(front, key)).scopes) == ["generate", "observe"]
    await set_role("generate", models=["lake"])
    assert list((await exchanged(front, key)).scopes) == ["generate"]
    assert claims_of(await front.token("orders", secret))["scope"] == "generate"
    await set_role("generate", "admin", models=["*"])
    issued = await exchanged(front, key)
    assert list(issued.scopes) == ["generate"]
    assert claims_of(issued.access_token)["models"] == ["lake"]


async def test_a_stronger_client_of_the_own_tenant_cannot_be_taken_over(front: Front) -> None:
    """Its secret replaced, its key made, its networks opened: all are ways to become it."""
    deputy = bearer(await limited_admin(front))
    strong = await created(front, "strong", scopes=["admin"])
    key = pb.CreateApiKeyRequest(client_id="strong", scopes=["generate"])
    takeovers = [
        (front.stub.RotateClientSecret, pb.RotateClientSecretRequest(client_id="strong")),
        (front.stub.CreateApiKey, key),
        (front.stub.UpdateClient, pb.UpdateClientRequest(client_id="strong", scopes=["generate"])),
        (front.stub.UpdateClient, pb.UpdateClientRequest(client_id="strong", display_name="x")),
        (front.stub.DisableClient, pb.DisableClientRequest(client_id="strong")),
    ]
    for call, request in takeovers:
        assert denied(await fault_of(call(request, metadata=deputy))), request
    assert await login(front, "strong", strong) is None


async def test_rights_that_a_role_gives_protect_as_those_given_directly(front: Front) -> None:
    """A client with no scope but a role is not a weak one."""
    deputy = bearer(await limited_admin(front))
    await created(front, "strong", roles=["administrator"])
    rotate = pb.RotateClientSecretRequest(client_id="strong")
    assert denied(await fault_of(front.stub.RotateClientSecret(rotate, metadata=deputy)))
    await created(front, "plain", roles=["caller"], models=["lake"])
    rotate.client_id = "plain"
    assert await fault_of(front.stub.RotateClientSecret(rotate, metadata=deputy)) is None


async def test_a_narrow_token_of_an_administrator_gives_no_more_than_it_says(front: Front) -> None:
    """What counts is the token, not what its client could have asked for."""
    narrow = await front.token("admin", front.secret, "tenant-admin")
    request = pb.CreateClientRequest(client_id="child", tenant="operators", scopes=["generate"])
    assert denied(await fault_of(front.stub.CreateClient(request, metadata=bearer(narrow))))
    rotate = pb.RotateClientSecretRequest(client_id="admin")
    assert denied(await fault_of(front.stub.RotateClientSecret(rotate, metadata=bearer(narrow))))


async def test_a_tenants_administrator_sets_no_quota_role_or_tenant(front: Front) -> None:
    """Its own least of all: a quota would be lifted, a role be widened, an audit be ended."""
    deputy = bearer(await limited_admin(front))
    quota = pb.Quota(
        tenant="shop", unit=pb.QUOTA_UNIT_TOKENS, limit=10**12, period=Duration(seconds=1)
    )
    quiet = pb.Tenant(name="shop", audit_detail=pb.AUDIT_DETAIL_NONE)
    for call, request in [
        (front.stub.SetQuota, pb.SetQuotaRequest(quota=quota)),
        (front.stub.DeleteQuota, pb.DeleteQuotaRequest(quota_id="tokens/shop//")),
        (front.stub.SetTenant, pb.SetTenantRequest(tenant=quiet)),
        (
            front.stub.SetRole,
            pb.SetRoleRequest(role=pb.AccessRole(name="own", scopes=["generate"])),
        ),
        (front.stub.DeleteRole, pb.DeleteRoleRequest(name="own")),
    ]:
        assert denied(await fault_of(call(request, metadata=deputy))), request


async def test_built_in_roles_are_nobodys_to_change(front: Front) -> None:
    """Not even an administrator's: what `caller` means is the same in every installation."""
    for name in ("caller", "viewer", "administrator"):
        role = pb.AccessRole(name=name, scopes=["admin"], models=["*"])
        fault = await fault_of(front.as_admin(front.stub.SetRole, pb.SetRoleRequest(role=role)))
        assert denied(fault)


async def test_a_disabled_client_has_no_key_and_cannot_be_woken_by_one(front: Front) -> None:
    """Keys of a client that is gone are gone, those made after its end too."""
    await created(front, "orders")
    before = await key_of(front, "orders")
    assert await fault_of(exchanged(front, before)) is None
    await front.as_admin(front.stub.DisableClient, pb.DisableClientRequest(client_id="orders"))
    unknown = told(await fault_of(exchanged(front, "abk_nonsense")))
    assert told(await fault_of(exchanged(front, before))) == unknown
    after = await key_of(front, "orders")
    assert told(await fault_of(exchanged(front, after))) == unknown
