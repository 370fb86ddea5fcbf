"""What a caller may write into its metadata around a good token, and the calls that carry it.

`AROUND` must be refused by every RPC that needs a credential, `FINE` be let in. A good token is
enough to make them; tokens that are wrong themselves are jwt_attacks.py's.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import grpc

from services.chassis.http2 import frames as h2
from services.chassis.http2 import headers
from tests.support.raw_http2 import message, peer, request
from tests.support.waiting import BOUND_S

Fields = list[tuple[str, str]]
Around = Callable[[str, str], Fields]
"""Fields of metadata from a good token and a forged one."""

_PRINTABLE = re.compile(r"[ -~]*")


def _value(form: str) -> Around:
    return lambda good, forged: [("authorization", form.format(good=good, forged=forged))]


def _fields(*fields: tuple[str, str]) -> Around:
    def make(good: str, forged: str) -> Fields:
        return [(name, form.format(good=good, forged=forged)) for name, form in fields]

    return make


_GOOD = ("authorization", "Bearer {good}")
_FORGED = ("authorization", "Bearer {forged}")

AROUND: dict[str, Around] = {
    "nothing": _fields(),
    **{
        f"value {form!r}": _value(form)
        for form in (
            "", "Bearer", "Bearer ", "{good}", "Basic {good}", "Token {good}", "JWT {good}",
            "Bearer Bearer {good}", "Bearer {good} {good}", "Bearer {good},Bearer {good}",
            "Bearer {good}, Bearer {forged}", "Bearer: {good}", "Bearer={good}", 'Bearer "{good}"',
            "Bearer {good};", "Bearer token={good}", "DPoP {good}", "Negotiate {good}",
        )
    },
    "the good one twice": _fields(_GOOD, _GOOD),
    "a good one before a forged one": _fields(_GOOD, _FORGED),
    "a forged one before a good one": _fields(_FORGED, _GOOD),
    "an empty one before a good one": _fields(("authorization", ""), _GOOD),
    "an empty one after a good one": _fields(_GOOD, ("authorization", "")),
    "another scheme before a good one": _fields(("authorization", "Basic eDp5"), _GOOD),
    "another scheme after a good one": _fields(_GOOD, ("authorization", "Basic eDp5")),
    "three of them": _fields(_GOOD, _FORGED, _GOOD),
    **{
        f"only in {name}": _fields((name, form))
        for name in (
            "x-authorization", "proxy-authorization", "cookie", "token", "access-token",
            "access_token", "x-access-token", "x-api-key", "authorization-", "grpc-authorization",
            "x-forwarded-authorization", "x-original-authorization", "authorization.0",
        )
        for form in ("Bearer {good}",)
    },
    "in a cookie of its name": _fields(("cookie", "authorization={good}; access_token={good}")),
    "as who the caller says it is": _fields(
        ("x-client-id", "admin"), ("x-tenant", "operators"), ("x-scope", "admin"),
        ("x-forwarded-user", "admin"), ("x-remote-user", "admin"), ("x-user", "admin"),
    ),
}  # fmt: skip

FINE: dict[str, Around] = {
    "Bearer": _fields(_GOOD),
    "lower case": _value("bearer {good}"),
    "upper case": _value("BEARER {good}"),
    "two spaces": _value("Bearer  {good}"),
    "other names beside it": _fields(
        ("x-authorization", "Bearer {forged}"), _GOOD, ("cookie", "authorization={forged}")
    ),
}


def refusals_of(token: str) -> tuple[str, ...]:
    """How a call with a bad token may end. A transport need not hand every header on: not one with
    control characters, nor one beyond its limit of 8 KiB."""
    if any(character in token for character in "\0\r\n"):
        return ("reset: PROTOCOL_ERROR",)
    return ("RESOURCE_EXHAUSTED",) if len(token) > 8192 else ("UNAUTHENTICATED",)


def can_be_sent(value: str) -> bool:
    """Whether gRPC's own client sends it; everything else takes a hand-written frame."""
    return _PRINTABLE.fullmatch(value) is not None


async def ended(channel: grpc.aio.Channel, path: str, fields: Fields) -> str:
    """The status of an empty request of a unary RPC, through gRPC's client."""
    call = channel.unary_unary(path)(b"", metadata=fields, timeout=BOUND_S)
    return str((await call.code()).name)


async def ended_raw(address: str, path: str, *fields: tuple[str, bytes]) -> str:
    """The same with header fields of any bytes: the status, or how the stream was reset."""
    block = request(path) + b"".join(headers.literal(*field) for field in fields)
    async with peer(int(address.rpartition(":")[2])) as one:
        one.open(1, block)
        one.data(1, message(b""), end=True)

        def over() -> bool:
            finished = [f for f in one.of(h2.HEADERS, 1) if f[1] & h2.END_STREAM]
            return bool(finished or one.of(h2.RST_STREAM, 1))

        await one.until(over)
        if one.of(h2.RST_STREAM, 1):
            return f"reset: {await one.reset_with(1)}"
        return await one.status(1)


async def ended_with_token(channel: grpc.aio.Channel, address: str, path: str, token: str) -> str:
    """How a call with this token ends, whichever characters the token has."""
    if can_be_sent(token):
        return await ended(channel, path, [("authorization", f"Bearer {token}")])
    raw = b"Bearer " + token.encode("utf-8", "surrogatepass")
    return await ended_raw(address, path, ("authorization", raw))
