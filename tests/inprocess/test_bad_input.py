"""Bad input and bad credentials at the router's door: each its exact status, with one ErrorInfo."""

import asyncio
import base64
import json
import math
import time
import urllib.request
from pathlib import Path

import grpc
import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import error_details_pb2, status_pb2

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2, relay_pb2, session_pb2
from tests.support.auth import ISSUER, bearer, real_key
from tests.support.inprocess import MODEL, Cluster, cluster, model_stub

Code = grpc.StatusCode


def good(**fields) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        **{
            "model": MODEL,
            "prompt": "hello",
            "sampling": pb.Sampling(max_tokens=3, ignore_eos=True),
            **fields,
        }
    )


class Door:
    """A router, and a caller with a good token."""

    def __init__(self, running: Cluster, channel: grpc.aio.Channel, token: str) -> None:
        self.running = running
        self.channel = channel
        self.stub = model_stub(channel)
        self.token = token

    async def refusal(self, request, token: str | None = None, **how) -> status_pb2.Status:
        """The status of a Generate that must fail; `token` empty sends none."""
        metadata = bearer(self.token if token is None else token) if token != "" else ()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.stub.Generate(request, metadata=metadata, **how)
        return details_of(caught.value)


def details_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return status_pb2.Status.FromString(value)
    return status_pb2.Status(code=error.code().value[0], message=error.details())


def check(status: status_pb2.Status, code: grpc.StatusCode, reason: str) -> None:
    assert status.code == code.value[0], status
    infos = []
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            infos.append(info)
    assert [(i.reason, i.domain) for i in infos] == [(reason, "anabranch")]
    assert infos[0].metadata["work"] == "not_dispatched"


def violations(status: status_pb2.Status) -> set[str]:
    for detail in status.details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            return {violation.field for violation in bad.field_violations}
    return set()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory):
    directory: Path = tmp_path_factory.mktemp("door")
    async with cluster(directory, engines=({"max_model_len": 2048},)) as running:
        secret = await running.new_client("shop", "generate")
        token = await running.token("shop", secret)
        async with running.channel(running.router) as channel:
            yield Door(running, channel, token)


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_good_request_passes(door):
    answer = await door.stub.Generate(good(), metadata=bearer(door.token))
    assert len(answer.choices[0].token_ids) == 3


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (good(prompt=""), {"messages"}),
        (good(sampling=pb.Sampling(temperature=math.nan)), {"sampling.temperature"}),
        (pb.GenerateRequest(model=MODEL, messages=[pb.Message()]),
         {"messages[0].role", "messages[0].content"}),
        (good(model="", sampling=pb.Sampling(n=10**6, logprobs=10**6)),
         {"model", "sampling.n", "sampling.logprobs"}),
        (good(prompt="x" * (3 * 1024 * 1024)), {"messages"}),
    ],
    ids=["empty messages", "NaN temperature", "no role", "three at once", "3 MiB prompt"],
)  # fmt: skip
async def test_every_violation_of_a_bad_request_is_named_at_once(door, request_, fields):
    status = await door.refusal(request_)
    check(status, Code.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert violations(status) == fields


async def test_a_message_of_5_mib_is_refused_as_too_large(door):
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(door.running.router.address, options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await model_stub(channel).Generate(
                good(prompt="x" * (5 * 1024 * 1024)), metadata=bearer(door.token)
            )
    check(details_of(caught.value), Code.RESOURCE_EXHAUSTED, "TOO_LARGE")


async def test_a_message_far_beyond_the_limit_is_cut_off_by_the_transport(door):
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(door.running.router.address, options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await model_stub(channel).Generate(
                good(prompt="x" * (12 * 1024 * 1024)), metadata=bearer(door.token)
            )
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED


async def test_9_kb_of_metadata_are_refused_every_time(door):
    metadata = (*bearer(door.token), ("x-filler", "y" * 9 * 1024))
    for _ in range(5):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.stub.Generate(good(), metadata=metadata)
        assert caught.value.code() is Code.RESOURCE_EXHAUSTED


async def test_bytes_that_are_no_message_are_an_invalid_argument(door):
    call = door.channel.unary_unary("/anabranch.v1.ModelService/Generate")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff\xff\xff", metadata=bearer(door.token))
    check(details_of(caught.value), Code.INVALID_ARGUMENT, "INVALID_REQUEST")
    call = door.channel.unary_unary("/anabranch.v1.ModelService/ListModels")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff\xff\xff", metadata=bearer(door.token))
    check(details_of(caught.value), Code.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_thousands_of_violations_still_arrive_as_an_error_with_details(door):
    status = await door.refusal(pb.GenerateRequest(model=MODEL, messages=[pb.Message()] * 4000))
    check(status, Code.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert "messages[0].role" in violations(status)
    assert "7995 more" in status.message


async def test_a_huge_model_name_is_not_repeated_whole(door):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.stub.Embed(
            model_pb2.EmbedRequest(model="m" * 100_000, inputs=["x"]), metadata=bearer(door.token)
        )
    check(details_of(caught.value), Code.NOT_FOUND, "MODEL_NOT_FOUND")


@pytest.mark.parametrize("method", ["/anabranch.v1.ModelService/Nope", "/nobody.v1.Nobody/Nope"])
async def test_a_method_that_does_not_exist_is_refused_as_everything_else_is(door, method):
    call = door.channel.unary_unary(method)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")
    check(details_of(caught.value), Code.UNAUTHENTICATED, "CREDENTIAL_REJECTED")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", metadata=bearer(door.token))
    check(details_of(caught.value), Code.UNIMPLEMENTED, "UNSUPPORTED")


async def test_an_unknown_model_is_not_found(door):
    check(await door.refusal(good(model="unheard-of")), Code.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_a_prompt_beyond_the_context_is_out_of_range(door):
    status = await door.refusal(good(prompt="", prompt_token_ids=[1] * 3000))
    assert status.code == Code.OUT_OF_RANGE.value[0]


async def test_a_reused_request_id_with_another_body_already_exists(door):
    first = good(request_id="once")
    await door.stub.Generate(first, metadata=bearer(door.token))
    await door.stub.Generate(first, metadata=bearer(door.token))
    status = await door.refusal(good(request_id="once", prompt="another"))
    check(status, Code.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_admin_rpcs_are_closed_to_other_scopes(door):
    from anabranch.v1 import admin_pb2, admin_pb2_grpc

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await admin_pb2_grpc.RouterAdminServiceStub(door.channel).ListBackends(
            admin_pb2.ListBackendsRequest(), metadata=bearer(door.token)
        )
    check(details_of(caught.value), Code.PERMISSION_DENIED, "ACCESS_DENIED")


def _b64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _claims(**changes) -> dict:
    now = int(time.time())
    return {
        "iss": ISSUER, "aud": "anabranch", "sub": "shop", "client_id": "shop", "tenant": "shop",
        "scope": "generate", "jti": "x", "iat": now, "exp": now + 300, "models": ["*"], **changes,
    }  # fmt: skip


async def _forgeries(door) -> dict[str, str]:
    url = f"http://{door.running.auth.http_address}/.well-known/jwks.json"
    body = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read())
    key = json.loads(body)["keys"][0]
    header = {"typ": "at+jwt", "kid": key["kid"]}
    public = base64.urlsafe_b64decode(key["x"] + "==")
    own = Ed25519PrivateKey.generate()
    _, real = real_key(door.running.directory / "auth")

    def signed(**changes) -> str:
        return jwt.encode(_claims(**changes), real, "EdDSA", headers=header)

    now = int(time.time())
    await door.stub.Generate(good(), metadata=bearer(signed()))
    none = _b64(json.dumps({**header, "alg": "none"}).encode())
    body64 = _b64(json.dumps(_claims()).encode())
    head, payload, signature = door.token.split(".")
    flipped = ("A" if signature[10] != "A" else "B").join([signature[:10], signature[11:]])
    return {
        "none": f"{none}.{body64}.",
        "none with the real signature": f"{none}.{payload}.{signature}",
        "HMAC with the public key": jwt.encode(_claims(), public, "HS256", headers=header),
        "another key under our kid": jwt.encode(_claims(), own, "EdDSA", headers=header),
        "unknown kid": jwt.encode(_claims(), own, "EdDSA", headers={**header, "kid": "zz"}),
        "changed signature": f"{head}.{payload}.{flipped}",
        "changed claims": f"{head}.{body64}.{signature}",
        "expired": signed(iat=now - 400, exp=now - 100),
        "another audience": signed(aud="somebody-else"),
        "another issuer": signed(iss="https://auth.example"),
        "not a token": "abc",
        "two parts": f"{head}.{payload}",
        "huge": "a" * 5000,
    }


async def test_forged_tokens_are_refused_with_one_text(door):
    texts = set()
    for name, token in (await _forgeries(door)).items():
        status = await door.refusal(good(), token)
        check(status, Code.UNAUTHENTICATED, "CREDENTIAL_REJECTED")
        texts.add(status.message)
        assert name
    texts.add((await door.refusal(good(), "")).message)
    assert len(texts) == 1


async def test_a_missing_token_is_refused(door):
    check(await door.refusal(good(), ""), Code.UNAUTHENTICATED, "CREDENTIAL_REJECTED")


async def test_every_engine_checks_for_itself(door):
    engine = door.running.engines[0].host
    async with door.running.channel(engine) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await model_stub(channel).Generate(good())
        check(details_of(caught.value), Code.UNAUTHENTICATED, "CREDENTIAL_REJECTED")


# Sessions


async def _session_end(door, *messages) -> status_pb2.Status:
    """Sends messages over a session and returns the status that ends it."""
    call = door.channel.stream_stream(
        "/anabranch.v1.ModelService/Session",
        request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
        response_deserializer=session_pb2.SessionResponse.FromString,
    )(metadata=bearer(door.token))
    assert (await call.read()).HasField("ready")
    for message in messages:
        await call.write(message)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await call.read() is not grpc.aio.EOF:
            pass
    return details_of(caught.value)


def _frame(stream: int, **action) -> session_pb2.SessionRequestFrame:
    return session_pb2.SessionRequestFrame(stream=stream, **action)


@pytest.mark.parametrize(
    "frames",
    [
        [_frame(0, start=good())],
        [_frame(1)],
        [_frame(5, cancel=session_pb2.SessionCancel())],
        [_frame(1, start=good(sampling=pb.Sampling(max_tokens=500, ignore_eos=True)))] * 2,
    ],
    ids=["stream 0", "no action", "cancel of nothing", "start twice"],
)
async def test_frames_out_of_order_end_the_session(door, frames):
    status = await _session_end(door, session_pb2.SessionRequest(frames=frames))
    check(status, Code.FAILED_PRECONDITION, "SESSION_PROTOCOL")


async def test_garbage_on_a_session_ends_it(door):
    check(await _session_end(door, b"\xff\xff"), Code.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_a_bad_renewal_ends_the_session(door):
    status = await _session_end(door, session_pb2.SessionRequest(authorization="Bearer nonsense"))
    check(status, Code.UNAUTHENTICATED, "CREDENTIAL_REJECTED")


async def test_a_bad_request_ends_only_its_own_stream(door):
    call = door.stub.Session(metadata=bearer(door.token))
    await call.read()
    bad = good(sampling=pb.Sampling(temperature=math.nan))
    await call.write(
        session_pb2.SessionRequest(
            frames=[_frame(1, start=bad), _frame(2, start=good()),
                    _frame(3, start=good(), on_behalf_of=session_pb2.Caller(tenant="other"))]
        )
    )  # fmt: skip
    errors, tokens = {}, 0
    done: set[int] = set()
    while done != {1, 2, 3}:
        for frame in (await call.read()).frames:
            if frame.HasField("error"):
                errors[frame.stream] = frame.error
            tokens += len(frame.chunk.token_ids)
            if frame.last:
                done.add(frame.stream)
    check(errors[1], Code.INVALID_ARGUMENT, "INVALID_REQUEST")
    check(errors[3], Code.PERMISSION_DENIED, "ACCESS_DENIED")
    assert tokens == 3
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_a_chunk_of_garbage_instead_of_a_request_is_its_streams_error(door):
    call = door.channel.stream_stream(
        "/anabranch.v1.ModelService/Session",
        request_serializer=relay_pb2.RelaySessionRequest.SerializeToString,
        response_deserializer=session_pb2.SessionResponse.FromString,
    )(metadata=bearer(door.token))
    await call.read()
    frame = relay_pb2.RelaySessionRequestFrame(stream=1, start=b"\xff\xff")
    await call.write(relay_pb2.RelaySessionRequest(frames=[frame]))
    answer = (await call.read()).frames[0]
    check(answer.error, Code.INVALID_ARGUMENT, "INVALID_REQUEST")
    call.cancel()
