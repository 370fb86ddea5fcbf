"""Credentials bound to networks, used from where they may not be: by whoever says he is elsewhere.

Spoofed X-Forwarded-For headers (CWE-290; the leftmost value taken, a proxy trusted that nobody
configured), IPv4 in IPv6 clothes, addresses that cannot be read, and a thief's own machine. The
tests' proxy is this machine: a trusted one says where a call comes from.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from anabranch.v1 import auth_pb2 as pb
from anabranch.v1 import session_pb2
from tests.support.attackers import (
    created,
    exchanged,
    fault_of,
    from_address,
    http_login,
    key_of,
    login,
    status_of,
    told,
)
from tests.support.auth import Front, auth, bearer
from tests.support.inprocess import Cluster, cluster, model_stub
from tests.support.waiting import BOUND_S

PROXIED = {"trusted_proxies": ("127.0.0.0/8", "172.16.0.0/12")}
HERE = ("127.0.0.0/8", "::1/128")


@pytest.fixture
async def direct(tmp_path: Path) -> AsyncIterator[Front]:
    async with auth(tmp_path) as opened:
        yield opened


@pytest.fixture
async def proxied(tmp_path: Path) -> AsyncIterator[Front]:
    async with auth(tmp_path, **PROXIED) as opened:
        yield opened


async def used(front: Front, token: str, *forwarded: str) -> str:
    """How an RPC that any credential opens ends, from an address."""
    request = pb.IntrospectTokenRequest(token="a.b.c")
    fields = [*bearer(token), *from_address(*forwarded)]
    return await status_of(front, "IntrospectToken", request, fields)


INSIDE = {
    "itself": ("10.1.2.3",),
    "with a port": ("10.1.2.3:4711",),
    "in IPv6 clothes": ("::ffff:10.1.2.3",),
    "in IPv6 clothes, in hexadecimal": ("::ffff:0a01:0203",),
    "IPv6": ("2001:db8::7",),
    "IPv6 in brackets with a port": ("[2001:db8::7]:4711",),
    "behind a second trusted proxy": ("10.1.2.3, 172.16.0.9",),
    "behind two fields of trusted proxies": ("10.1.2.3", "172.16.0.9"),
    "after what the caller made up": ("8.8.8.8, 10.1.2.3",),
    "after a field that the caller made up": ("8.8.8.8", "10.1.2.3"),
}
OUTSIDE = {
    "itself": ("8.8.8.8",),
    "after an inside address that the caller made up": ("10.1.2.3, 8.8.8.8",),
    "after a field that the caller made up": ("10.1.2.3", "8.8.8.8"),
    "an untrusted proxy before a trusted one": ("10.1.2.3, 8.8.8.8, 172.16.0.9",),
    "in IPv6 clothes": ("::ffff:8.8.8.8",),
    "IPv4-compatible IPv6": ("::10.1.2.3",),
    "NAT64": ("64:ff9b::10.1.2.3",),
    "6to4": ("2002:0a01:0203::1",),
    "nothing": ("",),
    "nothing after an inside one": ("10.1.2.3,",),
    "garbage": ("unknown",),
    "garbage after an inside one": ("10.1.2.3, _hidden",),
    "an inside network": ("10.0.0.0/8",),
    "octal": ("012.1.2.3",),
    "a number": ("167838211",),
    "hexadecimal": ("0x0a010203",),
    "three parts": ("10.1.3",),
    "quoted": ('"10.1.2.3"',),
    "as Forwarded has it": ("for=10.1.2.3",),
    "with a space within": ("10.1.2. 3",),
    "a host name": ("localhost",),
    "a socket": ("unix:/run/x",),
    "only trusted proxies": ("172.16.0.9, 172.16.0.8",),
    "very many": (", ".join(["10.1.2.3"] * 200 + ["8.8.8.8"]),),
    "very many trusted ones": (", ".join(["10.1.2.3"] + ["172.16.0.9"] * 200),),
}


async def test_a_token_is_good_inside_its_networks_and_nowhere_else(proxied: Front) -> None:
    """A token that is stolen and used elsewhere (OWASP API2:2023)."""
    networks = ["10.0.0.0/8", "2001:db8::/32"]
    secret = await created(proxied, "orders", allowed_cidrs=networks)
    request = pb.IssueTokenRequest(client_id="orders", client_secret=secret)
    issued = await proxied.stub.IssueToken(request, metadata=from_address("10.9.9.9"))
    for name, forwarded in INSIDE.items():
        assert await used(proxied, issued.access_token, *forwarded) == "OK", name
    for name, forwarded in OUTSIDE.items():
        code = await used(proxied, issued.access_token, *forwarded)
        assert code == "PERMISSION_DENIED", name
    assert await used(proxied, issued.access_token) == "PERMISSION_DENIED"


async def test_a_login_from_elsewhere_is_a_wrong_login(proxied: Front) -> None:
    """One text, over gRPC and over HTTP: a leaked secret is not confirmed to who found it."""
    networks = ["10.0.0.0/8", "2001:db8::/32"]
    secret = await created(proxied, "orders", allowed_cidrs=networks)
    request = pb.IssueTokenRequest(client_id="orders", client_secret=secret)
    wrong = told(await login(proxied, "orders", "wrong"))
    wrong_http = await http_login(proxied, "orders", "wrong")
    assert wrong[0] is grpc.StatusCode.UNAUTHENTICATED
    assert wrong_http[0] == 401
    for name, forwarded in OUTSIDE.items():
        fields = from_address(*forwarded)
        assert await status_of(proxied, "IssueToken", request, fields) == "UNAUTHENTICATED", name
        if len(fields) == 1:
            assert told(await login(proxied, "orders", secret, fields)) == wrong, name
        assert await http_login(proxied, "orders", secret, fields) == wrong_http, name
    for name, forwarded in INSIDE.items():
        fields = from_address(*forwarded)
        assert await status_of(proxied, "IssueToken", request, fields) == "OK", name
        assert (await http_login(proxied, "orders", secret, fields))[0] == 200, name


async def test_nobody_is_believed_where_no_proxy_is_trusted(direct: Front) -> None:
    """The default: headers of callers are the callers' own words."""
    secret = await created(direct, "orders", allowed_cidrs=["10.0.0.0/8"])
    here = await created(direct, "local", allowed_cidrs=list(HERE))
    token = await direct.token("local", here)
    for name in ("x-forwarded-for", "x-real-ip", "forwarded", "x-anabranch-caller"):
        for value in ("10.1.2.3", "ipv4:10.1.2.3:0", "for=10.1.2.3"):
            spoofed = [(name, value)]
            assert await login(direct, "orders", secret, spoofed) is not None, (name, value)
            assert (await http_login(direct, "orders", secret, spoofed))[0] == 401, (name, value)
            request = pb.IntrospectTokenRequest(token="a.b.c")
            fields = [*bearer(token), *spoofed]
            assert await status_of(direct, "IntrospectToken", request, fields) == "OK", name


async def test_a_proxy_is_believed_only_if_it_is_the_one_that_is_trusted(tmp_path: Path) -> None:
    """Another machine's header counts as any caller's does."""
    async with auth(tmp_path, trusted_proxies=("192.0.2.1/32",)) as front:
        secret = await created(front, "orders", allowed_cidrs=["10.0.0.0/8"])
        for forwarded in INSIDE.values():
            assert await login(front, "orders", secret, from_address(*forwarded)) is not None


async def test_what_cannot_be_read_is_not_even_within_everything(proxied: Front) -> None:
    """An address that is none must not become one of the widest network."""
    everywhere = ["0.0.0.0/0", "::/0"]
    secret = await created(proxied, "orders", allowed_cidrs=everywhere)
    for forwarded in ("8.8.8.8", "2001:db8::7"):
        assert await login(proxied, "orders", secret, from_address(forwarded)) is None
    for forwarded in ("", "unknown", "unix:/run/x", "999.1.1.1", "::1::"):
        fields = from_address(forwarded)
        assert await login(proxied, "orders", secret, fields) is not None, forwarded
        assert (await http_login(proxied, "orders", secret, fields))[0] == 401, forwarded


async def test_a_key_gives_tokens_that_are_bound_as_its_client_is(proxied: Front) -> None:
    """A key that is stolen can be exchanged from anywhere, and what it gives is no good there."""
    await created(proxied, "orders", allowed_cidrs=["10.0.0.0/8"])
    key = await key_of(proxied, "orders")
    token = (await exchanged(proxied, key)).access_token
    for credential in (key, token):
        assert await used(proxied, credential, "10.1.2.3") == "OK"
        for forwarded in ("8.8.8.8", "10.1.2.3, 8.8.8.8", ""):
            code = await used(proxied, credential, forwarded)
            assert code == "PERMISSION_DENIED", forwarded


async def test_guesses_from_one_address_lock_out_nobody_at_another(tmp_path: Path) -> None:
    """Lock-out as denial of service (CWE-645): the attacker waits, the client does not."""
    limits = {"login_burst": 3, "login_rate": 0.01}
    async with auth(tmp_path, **PROXIED, **limits) as front:
        secret = await created(front, "orders")
        attacker = from_address("8.8.8.8")
        answers = [told(await login(front, "orders", f"guess-{i}", attacker)) for i in range(5)]
        assert answers[-1][0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await login(front, "orders", secret, attacker) is not None, "not even a right one"
        assert (await http_login(front, "orders", secret, attacker))[0] == 429
        for elsewhere in ("10.1.2.3", "8.8.8.9", "2001:db8::7"):
            fields = from_address(elsewhere)
            assert await login(front, "orders", secret, fields) is None
            assert (await http_login(front, "orders", secret, fields))[0] == 200
        # What it says of itself beyond its proxy does not give the attacker more attempts.
        for made_up in ("10.1.2.3, 8.8.8.8", "1.1.1.1, 8.8.8.8"):
            fault = await login(front, "orders", "guess", from_address(made_up))
            assert told(fault)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_session_is_not_renewed_from_where_its_new_token_may_not_be(
    tmp_path: Path,
) -> None:
    """A session outlives tokens: each new one is bound to the address that the session is at."""
    async with cluster(tmp_path) as town:
        token = await free_and_bound(town)
        async with town.channel(town.engines[0].host) as channel:
            call = model_stub(channel).Session(metadata=bearer(token["free"]), timeout=BOUND_S)
            await call.read()
            renewal = session_pb2.SessionRequest(authorization=f"Bearer {token['bound']}")
            await call.write(renewal)
            assert await ended(call) is grpc.StatusCode.PERMISSION_DENIED
            call = model_stub(channel).Session(metadata=bearer(token["bound"]), timeout=BOUND_S)
            assert await ended(call) is grpc.StatusCode.PERMISSION_DENIED


async def ended(call: Any) -> grpc.StatusCode:
    """How a session ends, when all that it says has been read."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await call.read() is not grpc.aio.EOF:
            pass
    return caught.value.code()


async def free_and_bound(town: Cluster) -> dict[str, str]:
    """Two tokens of one client: from before and after it was bound to another network than this
    machine's. (The second cannot be had from here by a login: it is exchanged for a key.)"""
    tokens = {}
    async with town.channel(town.auth) as channel:
        front = Front(town.auth.address, town.auth.http_address, town.admin_secret, town.directory)
        front.use(channel)
        tokens["free"] = await front.token("orders", await created(front, "orders"))
        key = await key_of(front, "orders")
        networks = pb.StringList(items=["10.0.0.0/8"])
        bind = pb.UpdateClientRequest(client_id="orders", allowed_cidrs=networks)
        await front.as_admin(front.stub.UpdateClient, bind)
        tokens["bound"] = (await exchanged(front, key)).access_token
    return tokens


async def test_networks_that_are_none_are_refused_with_every_violation(direct: Front) -> None:
    """A list that is read other than it was meant binds nobody."""
    wrong = ["10.0.0.1/8", "10.0.0.0/33", "10.0.0/8", "any", "", "*", "10.0.0.0/8 ", "::/129"]
    wrong += ["x" * 5000, "10.0.0.0/255.0.0.0\n", "fe80::%eth0/64"]
    request = pb.CreateClientRequest(
        client_id="orders", tenant="shop", scopes=["generate"], allowed_cidrs=wrong
    )
    fault = await fault_of(direct.as_admin(direct.stub.CreateClient, request))
    assert fault is not None
    assert [v.field for v in fault.violations] == [f"allowed_cidrs[{i}]" for i in range(len(wrong))]
