"""The OAuth endpoints of the auth service over real HTTP, with the RFCs' error bodies."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from anabranch.v1 import auth_pb2 as pb
from tests.support.auth import ISSUER, Front, auth, basic


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with auth(tmp_path) as opened:
        yield opened


async def test_http_logins_work_with_basic_and_with_body_credentials(front: Front) -> None:
    async with aiohttp.ClientSession() as http:
        form = {"grant_type": "client_credentials", "scope": "generate observe"}
        url = f"{front.http}/oauth/token"
        body = await http.post(
            url, data={**form, "client_id": "admin", "client_secret": front.secret}
        )
        header = await http.post(url, data=form, headers=basic("admin", front.secret))
        for answer in (body, header):
            assert answer.status == 200
            assert answer.headers["Cache-Control"] == "no-store"
            read = await answer.json()
            assert (read["token_type"], read["expires_in"]) == ("Bearer", 300)
            assert read["scope"] == "generate observe"
            assert await front.active(read["access_token"])


async def test_http_errors_are_those_of_the_rfc(front: Front) -> None:
    await front.new_client("orders")
    grant = {"grant_type": "client_credentials"}
    me = {"client_id": "admin", "client_secret": front.secret}
    twice = "grant_type=client_credentials&grant_type=client_credentials"
    cases: list[tuple[Any, int, str]] = [
        ({**grant, **me, "client_secret": "wrong"}, 401, "invalid_client"),
        ({**grant, "client_id": "nobody", "client_secret": "x"}, 401, "invalid_client"),
        (grant, 401, "invalid_client"),
        (me, 400, "invalid_request"),
        ({**me, "grant_type": "password"}, 400, "unsupported_grant_type"),
        ({**grant, **me, "scope": "root"}, 400, "invalid_scope"),
        (twice, 400, "invalid_request"),
        ("a=%ff", 400, "invalid_request"),
        ("&".join("a" for _ in range(9000)), 413, "invalid_request"),
    ]
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    async with aiohttp.ClientSession() as http:
        url = f"{front.http}/oauth/token"
        for data, status, code in cases:
            answer = await http.post(url, data=data, headers=form)
            assert (answer.status, (await answer.json())["error"]) == (status, code), data
            assert ("WWW-Authenticate" in answer.headers) is (status == 401)
        answer = await http.post(url, json={**grant, **me})
        assert (await answer.json())["error"] == "invalid_request"
        both = await http.post(url, data={**grant, **me}, headers=basic("admin", "x"))
        assert (both.status, (await both.json())["error"]) == (400, "invalid_request")
        for header in ("Basic !!", "Bearer abc", "Basic " + "bm9jb2xvbg=="):
            answer = await http.post(url, data=grant, headers={"Authorization": header})
            assert (answer.status, (await answer.json())["error"]) == (401, "invalid_client")


async def test_http_throttling_says_when_to_come_back(tmp_path: Path) -> None:
    async with (
        auth(tmp_path, login_burst=1, login_rate=0.01) as front,
        aiohttp.ClientSession() as h,
    ):
        form = {"grant_type": "client_credentials", "client_id": "abc", "client_secret": "x"}
        statuses = []
        for _ in range(2):
            answer = await h.post(f"{front.http}/oauth/token", data=form)
            statuses.append(answer.status)
        assert statuses == [401, 429]
        assert int(answer.headers["Retry-After"]) > 1


async def test_http_revocation_and_introspection_follow_the_same_rules(front: Front) -> None:
    secret = await front.new_client("orders")
    mine, other = basic("orders", secret), basic("billing", await front.new_client("billing"))
    token = await front.token("orders", secret)
    async with aiohttp.ClientSession() as http:

        async def post(path: str, who: dict[str, str]) -> aiohttp.ClientResponse:
            return await http.post(f"{front.http}/oauth/{path}", data={"token": token}, headers=who)

        seen = await (await post("introspect", mine)).json()
        assert (seen["active"], seen["client_id"], seen["scope"]) == (True, "orders", "generate")
        assert (seen["iss"], seen["aud"], seen["exp"] - seen["iat"]) == (ISSUER, "anabranch", 300)
        assert await (await post("introspect", other)).json() == {"active": False}
        denied = await post("revoke", other)
        assert (denied.status, (await denied.json())["error"]) == (400, "unauthorized_client")
        assert (await post("revoke", mine)).status == 200
        assert (await post("revoke", mine)).status == 200
        assert await (await post("introspect", mine)).json() == {"active": False}


async def test_discovery_names_this_issuer_and_its_public_keys(front: Front) -> None:
    async with aiohttp.ClientSession() as http:
        answer = await http.get(f"{front.http}/.well-known/oauth-authorization-server")
        found = await answer.json()
        assert found["issuer"] == ISSUER
        assert found["token_endpoint"] == f"{ISSUER}/oauth/token"
        assert found["jwks_uri"] == f"{ISSUER}/.well-known/jwks.json"
        answer = await http.get(f"{front.http}/.well-known/jwks.json")
        assert answer.headers["Cache-Control"] == "public, max-age=300"
        grpc_keys = json.loads((await front.stub.GetJwks(pb.GetJwksRequest())).jwks_json)
        assert json.loads(await answer.text()) == grpc_keys
        assert set(grpc_keys["keys"][0]) == {"kty", "crv", "x", "use", "alg", "kid", "iat"}
