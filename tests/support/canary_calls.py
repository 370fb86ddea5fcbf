"""Ways to send a secret wherever a text can be sent, and to keep all that is said of it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2

from anabranch.v1 import auth_pb2 as pb
from services.chassis.reflection import V1
from tests.support.auth import Front, basic, bearer
from tests.support.waiting import BOUND_S

SERVICE = pb.DESCRIPTOR.services_by_name["AuthService"]


class Said:
    """What callers were told: the text and details of each refusal, and other answers as bytes."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.codes: set[grpc.StatusCode] = set()

    async def by(self, call: Awaitable[Any]) -> Any:
        """The answer, if it is one."""
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            self.codes.add(error.code())
            self.parts.append(repr(error))
            self.parts += [repr(pair) for pair in error.trailing_metadata() or ()]
            return None
        self.codes.add(grpc.StatusCode.OK)
        return answer

    def add(self, raw: bytes | str) -> None:
        self.parts.append(raw if isinstance(raw, str) else raw.decode("latin-1"))


def strings(message: Message) -> Iterator[tuple[Message, FieldDescriptor]]:
    """Every field of a message that takes a text, the message made as deep as it goes."""
    for field in message.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            yield message, field
        elif field.type == FieldDescriptor.TYPE_MESSAGE and field.file is message.DESCRIPTOR.file:
            yield from strings(getattr(message, field.name))


def filled(name: str, secret: str) -> Iterator[Message]:
    """Requests of an RPC with the secret in each of its texts in turn, and in all at once."""
    kind = GetMessageClass(SERVICE.methods_by_name[name].input_type)
    count = len(list(strings(kind())))
    for chosen in [*({i} for i in range(count)), set(range(count))]:
        request = kind()
        for i, (part, field) in enumerate(list(strings(request))):
            if i in chosen:
                given = [secret] if field.is_repeated else secret
                if field.is_repeated:
                    getattr(part, field.name).extend(given)
                else:
                    setattr(part, field.name, given)
        yield request


@asynccontextmanager
async def http_of(front: Front) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(front.http) as http:
        yield http


async def posted(
    said: Said, http: aiohttp.ClientSession, path: str, **given: Any
) -> dict[str, Any]:
    """A form posted; what is said of it is kept unless it is a token."""
    async with http.post(path, **given) as answer:
        body = await answer.read()
        said.add(repr(dict(answer.headers)))
        if answer.status != 200:
            said.add(body)
            return {}
        return dict(await answer.json()) if body else {}


async def reflected(said: Said, channel: grpc.aio.Channel, text: str) -> None:
    """What reflection says of the services, and of a symbol that is none."""
    call = channel.stream_stream(
        f"/{V1}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
    )
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE.full_name),
    ]
    async for raw in call(iter(asked), timeout=BOUND_S):
        said.add(raw)
    assert SERVICE.full_name in "".join(said.parts[-2:]), text


async def pages(said: Said, address: str) -> None:
    """What anybody may read over HTTP."""
    async with aiohttp.ClientSession(f"http://{address}") as http:
        for path in ("/metrics", "/healthz", "/readyz", "/nowhere"):
            async with http.get(path) as answer:
                said.add(await answer.read())


def command_lines() -> str:
    """Of every process of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode("latin-1"))
        except OSError:
            continue  # it has ended
    return "\n".join(found)


async def every_rpc_refused(said: Said, front: Front, admin: Any, secret: str) -> None:
    """Each RPC with the secret in each text, from an administrator and from nobody; bearers, other
    headers, methods and bodies that are nothing but the secret."""
    strangers = [
        bearer(secret),
        [("authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")],
        [("authorization", secret), ("cookie", secret), ("x-api-key", secret)],
    ]
    for method in SERVICE.methods:
        if method.name == "GetJwks":
            continue  # it would wait for a version that never comes
        call = getattr(front.stub, method.name)
        for request in filled(method.name, secret):
            await said.by(call(request, metadata=admin))
        for metadata in strangers:
            kind = GetMessageClass(method.input_type)
            await said.by(call(kind(), metadata=metadata))
        raw = front.channel.unary_unary(f"/{SERVICE.full_name}/{method.name}")
        await said.by(raw(b"\x0a\xff" + secret.encode(), metadata=admin))
    await said.by(front.channel.unary_unary(f"/{SERVICE.full_name}/{secret}")(b""))
    await said.by(front.channel.unary_unary(f"/{secret}/{secret}")(b"", metadata=bearer(secret)))


async def every_form_refused(said: Said, front: Front, secret: str) -> None:
    """The endpoints of OAuth with the secret in every place."""
    forms = [
        {"grant_type": "client_credentials", "client_id": "orders", "client_secret": secret},
        {"grant_type": secret, "client_id": secret, "client_secret": secret, "scope": secret},
        {"token": secret, "client_id": "orders", "client_secret": secret},
        {secret: secret},
    ]
    async with http_of(front) as http:
        for path in ("/oauth/token", "/oauth/revoke", "/oauth/introspect", f"/oauth/{secret}"):
            for form in forms:
                await posted(said, http, path, data=form, params={"client_secret": secret})
            for header in (basic("orders", secret), bearer(secret), {"Authorization": secret}):
                await posted(said, http, path, data=forms[0], headers=dict(header))
            await posted(said, http, path, data=secret)
            await posted(said, http, path, json={"client_secret": secret})
