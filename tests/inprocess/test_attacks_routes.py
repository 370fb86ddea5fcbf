"""Requests that name one method to whoever authorises and another to whoever answers.

Authorisation by path, host or forwarded header has been bypassed again and again: by `//`, `/../`
and percent-encoding (Envoy CVE-2019-9901, CVE-2021-29492), by X-Original-URL and X-Rewrite-URL
(CVE-2018-14773), by a Host header (CVE-2022-31813 and others), by routes beside the guarded ones
(vLLM's and others' API keys that covered /v1 alone). Here the dispatched method decides.
"""

from collections.abc import AsyncIterator

import aiohttp
import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from anabranch.v1 import auth_pb2
from services.chassis.access import RULES
from services.chassis.http2 import frames as h2
from services.chassis.http2.headers import literal
from tests.support.attackers import key_of
from tests.support.auth import Front, auth, bearer
from tests.support.inprocess import MODEL, Cluster, cluster
from tests.support.raw_http2 import REQUEST, Peer, message, peer, request

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVICE = "/anabranch.v1.AuthService"
PUBLIC = f"{SERVICE}/GetJwks"
ADMIN = f"{SERVICE}/ListClients"

PATHS = {
    "double slash": f"/{ADMIN}",
    "double slash within": f"{SERVICE}//ListClients",
    "backslash": f"{SERVICE}\\ListClients",
    "dot segment": f"{SERVICE}/./ListClients",
    "up from the public one": f"{PUBLIC}/../ListClients",
    "up, encoded": f"{PUBLIC}/%2e%2e/ListClients",
    "up, encoded twice": f"{PUBLIC}/%252e%252e/ListClients",
    "encoded slash": f"{SERVICE}%2FListClients",
    "encoded letter": f"{SERVICE}/%4cistClients",
    "lower case": ADMIN.lower(),
    "upper case": ADMIN.upper(),
    "trailing slash": f"{ADMIN}/",
    "trailing space": f"{ADMIN} ",
    "query": f"{ADMIN}?x=1",
    "query that names the public one": f"{ADMIN}?{PUBLIC}",
    "fragment": f"{ADMIN}#{PUBLIC}",
    "parameter": f"{ADMIN};x=1",
    "NUL, encoded": f"{ADMIN}%00",
    "line end, encoded": f"{ADMIN}%0d%0a",
    "absolute": f"http://127.0.0.1{ADMIN}",
    "no slash": ADMIN[1:],
    "both": f"{PUBLIC}{ADMIN}",
    "the public service's name before it": f"/grpc.health.v1.Health{ADMIN}",
    "a method of the health service": "/grpc.health.v1.Health/ListClients",
    "package left out": "/AuthService/ListClients",
    "as REST would": "/v1/clients",
    "health over HTTP": "/healthz",
    "metrics over HTTP": "/metrics",
}

ELSEWHERE = {
    "host": [("host", "127.0.0.1")],
    "x-original-url": [("x-original-url", PUBLIC)],
    "x-rewrite-url": [("x-rewrite-url", PUBLIC)],
    "x-forwarded-path": [("x-forwarded-path", PUBLIC)],
    "x-forwarded-prefix": [("x-forwarded-prefix", PUBLIC)],
    "x-forwarded-uri": [("x-forwarded-uri", PUBLIC)],
    "x-forwarded-host": [("x-forwarded-host", "localhost")],
    "forwarded": [("forwarded", "for=127.0.0.1;host=localhost")],
    "x-http-method-override": [("x-http-method-override", "GET")],
    "x-envoy-original-path": [("x-envoy-original-path", PUBLIC)],
    "x-anabranch-caller": [("x-anabranch-caller", "ipv4:127.0.0.1:0")],
    "grpc-internal-encoding-request": [("grpc-internal-encoding-request", "identity")],
    "x-real-ip": [("x-real-ip", "127.0.0.1")],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    async with auth(tmp_path_factory.mktemp("auth")) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with cluster(tmp_path_factory.mktemp("town")) as running:
        yield running


async def ended(raw: Peer, number: int) -> str:
    """The status of a call, or how its stream or the connection was ended instead."""

    def over() -> bool:
        trailers = [f for f in raw.of(h2.HEADERS, number) if f[1] & h2.END_STREAM]
        return bool(trailers or raw.of(h2.RST_STREAM, number))

    await raw.until(over)
    reset = raw.of(h2.RST_STREAM, number)
    return await raw.reset_with(number) if reset else (await raw.fields(number))["grpc-status"]


CODES = {str(code.value[0]): code.name for code in grpc.StatusCode}


async def called(front: Front, path: str, *more: tuple[str, str], **pseudo: str) -> str:
    async with peer(front.port) as raw:
        raw.open(1, request(path, *more, **pseudo))
        raw.data(1, message(b""), end=True)
        answer = await ended(raw, 1)
        return CODES.get(answer, answer)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
async def test_no_spelling_of_a_path_is_another_method(front: Front, path: str) -> None:
    """A path is dispatched as it is or not at all: nobody gets in, and who is in finds nothing.

    CVE-2026-48746 (vLLM).
    """
    assert await called(front, path) in ("UNAUTHENTICATED", "PROTOCOL_ERROR")
    credential = ("authorization", f"Bearer {await front.token()}")
    assert await called(front, path, credential) in ("UNIMPLEMENTED", "PROTOCOL_ERROR")


@pytest.mark.parametrize("more", ELSEWHERE.values(), ids=ELSEWHERE.keys())
async def test_no_header_changes_which_method_is_authorised(
    front: Front, more: list[tuple[str, str]]
) -> None:
    """Named elsewhere, the public method opens nothing, and a closed one stays what it is.

    CVE-2026-49468, GHSA-4xpc-pv4p-pm3w (LiteLLM).
    """
    assert await called(front, ADMIN, *more) in ("UNAUTHENTICATED", "PROTOCOL_ERROR")
    assert await called(front, PUBLIC, *more) in ("OK", "PROTOCOL_ERROR")


@pytest.mark.parametrize(
    "authority",
    [
        "",
        "localhost",
        "127.0.0.1",
        "auth.anabranch.internal",
        f"x{PUBLIC}",
        "a@b",
        "[::1]",
        "x" * 9,
    ],
)
async def test_no_authority_changes_who_may_call(front: Front, authority: str) -> None:
    """CVE class of virtual hosts: a name that is trusted, or empty, or another path.

    CVE-2026-49468, GHSA-4xpc-pv4p-pm3w (LiteLLM).
    """
    assert await called(front, ADMIN, authority=authority) in ("UNAUTHENTICATED", "PROTOCOL_ERROR")


async def test_two_paths_in_one_request_are_no_request(front: Front) -> None:
    """One parser takes the first, the other the last (RFC 9113 section 8.3)."""
    for first, second in ((PUBLIC, ADMIN), (ADMIN, PUBLIC)):
        block = b"".join(
            literal(name, value)
            for name, value in (*REQUEST[:2], (":path", first), (":path", second), *REQUEST[3:])
        )
        async with peer(front.port) as raw:
            raw.open(1, block)
            raw.data(1, message(b""), end=True)
            assert await ended(raw, 1) == "PROTOCOL_ERROR"


async def test_health_and_reflection_alone_are_public_where_models_are(town: Cluster) -> None:
    """Every method that a server knows, called without a credential."""
    infrastructure = {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
    assert town.router is not None
    for host in (town.router, town.engines[0].host):
        methods = {m for handler in host._server._handlers for m in handler._method_handlers}
        assert methods & set(RULES)
        assert methods - set(RULES) <= infrastructure
        public = {method for method in methods & set(RULES) if RULES[method].public}
        assert not public, public


async def test_a_method_without_a_rule_is_nobodys(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed until somebody says who may: an administrator is refused as well."""
    monkeypatch.delitem(RULES, ADMIN)  # type: ignore[arg-type]
    call = front.stub.ListClients(
        auth_pb2.ListClientsRequest(), metadata=bearer(await front.token())
    )
    assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
    call = front.stub.ListClients(auth_pb2.ListClientsRequest())
    assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_probes_tell_no_secret_and_open_nothing(front: Front, town: Cluster) -> None:
    """What anybody may read says that a process lives and how busy it is."""
    api_key, token = await key_of(front, "admin"), await front.token()
    await front.stub.ListClients(auth_pb2.ListClientsRequest(), metadata=bearer(api_key))
    secrets = [front.secret, api_key, api_key[4:20], token, town.admin_secret]
    secrets.append((front.data / "auth.db.key").read_text().strip())
    assert town.router is not None
    hosts = (town.router, town.engines[0].host, town.auth)
    bases = [front.http, *(f"http://{host.http_address}" for host in hosts)]
    async with aiohttp.ClientSession() as http:
        for base in bases:
            for path in ("/healthz", "/readyz", "/metrics", "/.well-known/jwks.json"):
                async with http.get(base + path) as answer:
                    said = await answer.text() + str(answer.headers)
                assert not [secret for secret in secrets if secret in said], path
            for path in ("/", "/v1/models", "/generate", "/debug", "/docs", "/openapi.json"):
                async with http.get(base + path) as answer:
                    assert answer.status == 404, (base, path)
            for path in ("/..%2fmetrics", "/oauth/../metrics", "//metrics"):
                async with http.get(base + path) as answer:
                    assert answer.status in (200, 404)


async def test_health_answers_anybody_and_names_no_model(town: Cluster) -> None:
    """A probe holds no credential, so what it is told everybody is told."""
    for host in (town.router, town.engines[0].host):
        assert host is not None
        async with grpc.aio.insecure_channel(host.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Check(health_pb2.HealthCheckRequest(service=MODEL))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
