"""Requests to the auth service that are too much, or not what they look like.

Every violation is told at once, the answer stays small whatever is sent
(amplification), and nothing that a caller writes ends as INTERNAL or as an outage of the database:
NUL characters (PostgreSQL takes none), numbers beyond 64 bits, durations whose nanoseconds hide
seconds.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from anabranch.v1 import auth_pb2 as pb
from services.auth.rpcs.wire import page_token
from services.chassis.errors import Fault
from services.chassis.settings import Secret
from tests.support.attackers import created, exchanged, fault_of, key_of
from tests.support.auth import Front, auth, bearer
from tests.support.outcomes import Outcome, outcome_of
from tests.support.postgres import postgres_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

METHODS = pb.DESCRIPTOR.services_by_name["AuthService"].methods_by_name
LARGEST_ANSWER = 16 * 1024


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "postgresql"])
async def front(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Front]:
    changes: dict[str, Any] = {}
    if request.param == "postgresql":
        url = request.getfixturevalue("database")
        changes = {"database_url": Secret(url), "key_encryption_secret": Secret("k" * 32)}
    async with auth(tmp_path_factory.mktemp("auth"), **changes) as opened:
        yield opened


def strings(items: list[str]) -> pb.StringList:
    return pb.StringList(items=items)


def client(**given: Any) -> pb.CreateClientRequest:
    return pb.CreateClientRequest(**{"tenant": "shop", "scopes": ["generate"]} | given)


def quota(**given: Any) -> pb.SetQuotaRequest:
    usual = {"tenant": "shop", "unit": pb.QUOTA_UNIT_TOKENS, "limit": 1}
    usual["period"] = Duration(seconds=60)
    return pb.SetQuotaRequest(quota=pb.Quota(**usual | given))


MANY = [f"item-{i}" for i in range(10_000)]

HUGE: dict[str, tuple[str, Message]] = {
    "scopes of a client": ("CreateClient", client(scopes=MANY)),
    "one scope ten thousand times": ("CreateClient", client(scopes=["generate"] * 10_000)),
    "roles": ("CreateClient", client(roles=MANY)),
    "models": ("CreateClient", client(models=MANY)),
    "networks": ("CreateClient", client(allowed_cidrs=MANY)),
    "everything": (
        "CreateClient",
        client(scopes=MANY, roles=MANY, models=MANY, allowed_cidrs=MANY, display_name="x" * 10**6),
    ),
    "lists of an update": (
        "UpdateClient",
        pb.UpdateClientRequest(
            client_id="orders",
            scopes=MANY,
            roles=strings(MANY),
            models=strings(MANY),
            allowed_cidrs=strings(MANY),
        ),
    ),
    "scopes of a login": (
        "IssueToken",
        pb.IssueTokenRequest(client_id="admin", client_secret="x", scopes=MANY),
    ),
    "a client id": ("DisableClient", pb.DisableClientRequest(client_id="x" * 10**6)),
    "a secret": ("IssueToken", pb.IssueTokenRequest(client_id="a", client_secret="x" * 10**6)),
    "an API key": ("ExchangeApiKey", pb.ExchangeApiKeyRequest(api_key="abk_" + "x" * 10**6)),
    "a token": ("IntrospectToken", pb.IntrospectTokenRequest(token="x" * 10**6)),
    "scopes of a key": ("CreateApiKey", pb.CreateApiKeyRequest(client_id="orders", scopes=MANY)),
    "models of a key": ("CreateApiKey", pb.CreateApiKeyRequest(client_id="orders", models=MANY)),
    "a role": ("SetRole", pb.SetRoleRequest(role=pb.AccessRole(name="x", models=MANY))),
    "one long model": ("SetRole", pb.SetRoleRequest(role=pb.AccessRole(models=["x" * 10**6]))),
    "a quota id": ("DeleteQuota", pb.DeleteQuotaRequest(quota_id="x" * 10**6)),
    "a page token": ("ListClients", pb.ListClientsRequest(page_token="QUFB" * 10**5)),
    "an action": ("QueryAudit", pb.QueryAuditRequest(action="x" * 10**6)),
}


async def asked(front: Front, rpc: str, request: Message) -> Outcome:
    metadata = bearer(await front.token())
    return await outcome_of(front.channel, METHODS[rpc], request, metadata)


@pytest.mark.parametrize(("rpc", "request_"), HUGE.values(), ids=HUGE.keys())
async def test_what_is_too_much_is_refused_in_few_words(
    front: Front, rpc: str, request_: Message
) -> None:
    """CWE-770, CWE-400: a list is counted before it is looked at, and never sent back."""
    found = await asked(front, rpc, request_)
    assert found.code is grpc.StatusCode.INVALID_ARGUMENT, found
    assert len(found.message.encode()) + len(found.details) < LARGEST_ANSWER


NAMES = [
    "a\0b",
    "\0",
    "a\nb",
    "a\x1b[31m",
    "a\u202eb",
    "a\ud7ffb\u2028",
    "..\\..\\etc",
    "a b",
    "'--",
]

TEXTS: dict[str, tuple[str, Callable[[str], Message]]] = {
    "client id": ("CreateClient", lambda t: client(client_id=t)),
    "tenant": ("CreateClient", lambda t: client(tenant=t)),
    "scope": ("CreateClient", lambda t: client(scopes=[t])),
    "role": ("CreateClient", lambda t: client(roles=[t])),
    "model": ("CreateClient", lambda t: client(models=[t])),
    "network": ("CreateClient", lambda t: client(allowed_cidrs=[t])),
    "role name": (
        "SetRole",
        lambda t: pb.SetRoleRequest(role=pb.AccessRole(name=t, scopes=["generate"])),
    ),
    "deleted role": ("DeleteRole", lambda t: pb.DeleteRoleRequest(name=t)),
    "quota's tenant": ("SetQuota", lambda t: quota(tenant=t)),
    "quota's client": ("SetQuota", lambda t: quota(client_id=t)),
    "quota's model": ("SetQuota", lambda t: quota(model=t)),
    "tenant to set": ("SetTenant", lambda t: pb.SetTenantRequest(tenant=pb.Tenant(name=t))),
    "key to revoke": ("RevokeApiKey", lambda t: pb.RevokeApiKeyRequest(key_id=t)),
    "page token": ("ListApiKeys", lambda t: pb.ListApiKeysRequest(page_token=t)),
    "audited client": ("QueryAudit", lambda t: pb.QueryAuditRequest(client_id=t)),
    "audited tenant": ("QueryAudit", lambda t: pb.QueryAuditRequest(tenant=t)),
}


@pytest.mark.parametrize(("rpc", "make"), TEXTS.values(), ids=TEXTS.keys())
async def test_names_with_other_characters_than_names_have_are_refused(
    front: Front, rpc: str, make: Callable[[str], Message]
) -> None:
    """NUL, control and direction characters, paths, SQL: neither stored, logged nor looked up."""
    for text in NAMES:
        found = await asked(front, rpc, make(text))
        assert found.code is grpc.StatusCode.INVALID_ARGUMENT, (text, found)


FREE: dict[str, tuple[str, Callable[[str], Message]]] = {
    "display name": ("CreateClient", lambda t: client(display_name=t)),
    "description": (
        "SetRole",
        lambda t: pb.SetRoleRequest(
            role=pb.AccessRole(name="reader", description=t, scopes=["generate"])
        ),
    ),
    "quota id": ("DeleteQuota", lambda t: pb.DeleteQuotaRequest(quota_id=t)),
    "action": ("QueryAudit", lambda t: pb.QueryAuditRequest(action=t)),
    "secret": ("IssueToken", lambda t: pb.IssueTokenRequest(client_id="admin", client_secret=t)),
    "token": ("IntrospectToken", lambda t: pb.IntrospectTokenRequest(token=t)),
    "token to revoke": ("RevokeToken", lambda t: pb.RevokeTokenRequest(token=t)),
    "API key": ("ExchangeApiKey", lambda t: pb.ExchangeApiKeyRequest(api_key=t)),
    "version": ("GetJwks", lambda t: pb.GetJwksRequest(known_version=t)),
}


@pytest.mark.parametrize(("rpc", "make"), FREE.values(), ids=FREE.keys())
async def test_no_text_is_an_error_of_the_service(
    front: Front, rpc: str, make: Callable[[str], Message]
) -> None:
    """A text that the database does not take is the caller's fault, not an outage (CWE-20)."""
    for text in [*NAMES, "%", "_", "\\", "\ufffd", "\U0001f600", "\ue000", "x" * 200]:
        found = await asked(front, rpc, make(text))
        ours = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)
        assert found.code not in ours, (text, found)


@pytest.mark.parametrize(
    "text", ["9" * 18, "9" * 19, "9" * 700, "-1", "0x10", "1e9", "\u0661", "1 OR 1=1", ""]
)
async def test_a_page_token_of_ones_own_making_is_no_error_of_the_service(
    front: Front, text: str
) -> None:
    """Numbers beyond 64 bits, which a database driver does not take."""
    for rpc in ("QueryAudit", "ListClients", "ListApiKeys", "ListQuotas", "ListTenants"):
        request = METHODS[rpc].input_type._concrete_class(page_token=page_token(text))
        found = await asked(front, rpc, request)
        assert found.code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT), (rpc, found)


async def test_times_beyond_all_calendars_are_no_error_of_the_service(front: Front) -> None:
    """The same of timestamps, whose seconds have 64 bits."""
    for seconds in (2**63 - 1, -(2**63), 10**15, 0):
        for nanos in (0, 2**31 - 1, -(2**31)):
            moment = Timestamp(seconds=seconds, nanos=nanos)
            found = await asked(front, "QueryAudit", pb.QueryAuditRequest(since=moment))
            assert found.code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT), found


async def violations(front: Front, call: Any, request: Message) -> list[str]:
    fault: Fault | None = await fault_of(front.as_admin(call, request))
    assert fault is not None
    assert fault.code is grpc.StatusCode.INVALID_ARGUMENT
    return [violation.field for violation in fault.violations]


async def test_a_quota_tells_all_that_is_wrong_with_it(front: Front) -> None:
    """Every violation at once; a caller that mends one after the other asks ten times."""
    bad = pb.Quota(
        tenant="*",
        client_id="orders",
        model="a**",
        limit=-1,
        burst=-5,
        period=Duration(seconds=-1, nanos=-5),
    )
    assert await violations(front, front.stub.SetQuota, pb.SetQuotaRequest(quota=bad)) == [
        "quota.tenant",
        "quota.model",
        "quota.limit",
        "quota.burst",
        "quota.period",
        "quota.unit",
    ]
    for limit in (0, 10**15 + 1, 2**63 - 1):
        assert await violations(front, front.stub.SetQuota, quota(limit=limit))


@pytest.mark.parametrize(
    "period",
    [
        Duration(),
        Duration(nanos=1),
        Duration(nanos=10**9),
        Duration(nanos=2 * 10**9),
        Duration(seconds=2**62),
        Duration(seconds=31 * 86_400 + 1),
        Duration(seconds=31 * 86_400 + 2, nanos=-(10**9)),
        Duration(seconds=60, nanos=-60),
        Duration(seconds=1, nanos=-(10**9)),
    ],
    ids=str,
)
async def test_a_period_is_what_it_says(front: Front, period: Duration) -> None:
    """Seconds hidden in nanoseconds: refused, or counted. A period of 0 would divide by zero."""
    found = await asked(front, "SetQuota", quota(period=period))
    if found.code is grpc.StatusCode.OK:
        assert isinstance(found.answer, pb.SetQuotaResponse)
        kept = found.answer.quota.period
        said = period.seconds * 10**9 + period.nanos
        assert (kept.seconds * 10**9 + kept.nanos) == said
        assert 1 <= kept.seconds <= 31 * 86_400
        await front.as_admin(
            front.stub.DeleteQuota, pb.DeleteQuotaRequest(quota_id=found.answer.quota.quota_id)
        )
    else:
        assert found.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_lives_are_what_they_say(front: Front) -> None:
    """The same of the life of a client's tokens and of a key."""
    life = Duration(seconds=9, nanos=10**9)
    found = await asked(front, "CreateClient", client(token_life=life))
    if found.code is grpc.StatusCode.OK:
        assert isinstance(found.answer, pb.CreateClientResponse)
        assert found.answer.client.token_life.seconds == 10
    else:
        assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    hidden = pb.CreateApiKeyRequest(client_id="admin", life=Duration(seconds=59, nanos=10**9))
    found = await asked(front, "CreateApiKey", hidden)
    if found.code is grpc.StatusCode.OK:
        assert isinstance(found.answer, pb.CreateApiKeyResponse)
        info = found.answer.info
        assert info.expires_at.ToNanoseconds() - info.created_at.ToNanoseconds() > 59.9e9
    else:
        assert found.code is grpc.StatusCode.INVALID_ARGUMENT


async def flooded(front: Front, **given: Any) -> set[grpc.StatusCode]:
    """How it ends to set thirty quotas, each for another model; call `cleared` afterwards."""
    codes = set()
    for i in range(30):
        model = f"{i:03}{given.get('model', '')}"
        codes.add((await asked(front, "SetQuota", quota(**given | {"model": model}))).code)
    return codes


async def cleared(front: Front) -> None:
    listed = await front.as_admin(front.stub.ListQuotas, pb.ListQuotasRequest(page_size=1000))
    for one in listed.quotas:
        delete = pb.DeleteQuotaRequest(quota_id=one.quota_id)
        await front.as_admin(front.stub.DeleteQuota, delete)


REFUSED_AT_LAST = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}


async def test_quotas_are_capped_before_they_shut_a_tenant_out(front: Front) -> None:
    """More rules than a token may carry would be a token that no service takes."""
    assert await flooded(front, tenant="full") == REFUSED_AT_LAST
    secret = await created(front, f"in-full-{front.port}", tenant="full")
    token = await front.token(f"in-full-{front.port}", secret)
    assert await front.active(token)
    await cleared(front)


async def test_no_quota_shuts_the_administrator_out_who_set_it(front: Front) -> None:
    """Quotas for every tenant are in every token, those of administrators too: however many and
    long they are, who set them can log in and take them back."""
    largest = {"tenant": "*", "client_id": "*", "model": "m" * 124, "limit": 10**15}
    assert await flooded(front, **largest) == REFUSED_AT_LAST
    assert await front.token()
    await cleared(front)


async def test_an_api_key_is_no_token_to_ask_about(front: Front) -> None:
    """Introspection of a key would exchange it, and say what it grants to who only has the text."""
    key = await key_of(front, "admin")
    for token in (key, key[:-1]):
        for rpc, request in (
            ("IntrospectToken", pb.IntrospectTokenRequest(token=token)),
            ("RevokeToken", pb.RevokeTokenRequest(token=token)),
        ):
            found = await asked(front, rpc, request)
            assert found.code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT), found
            if isinstance(found.answer, pb.IntrospectTokenResponse):
                assert not found.answer.active
    assert (await exchanged(front, key)).access_token
