"""A small real server of the Session contract for client tests: scripted, over a real socket.

What it does to a request is in its own prompt or last message, so a test reads as one line:
    "say N"          N tokens "w0 w1 …", one message a token for all running requests
    "silent"         never answers
    "die N"          N tokens, then the session ends as if the process died (attempt 1 only)
    "refuse REASON"  an error frame
    "flood N"        N chunks of 1 KiB at once
    "cancelled N"    N tokens, then FINISH_REASON_CANCELLED
    "unfinished"     the last chunk carries no finish reason
    "repeat"         the request's form, tools and choice of tools in JSON, and a call of each tool
Run as a module it prints its address, for tests whose client needs another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import grpc
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from anabranch.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    auth_pb2,
    auth_pb2_grpc,
    generation_pb2,
    model_pb2,
    model_pb2_grpc,
    session_pb2,
)


def status_of(
    reason: str, code: grpc.StatusCode, message: str, work: str = "not_dispatched"
) -> status_pb2.Status:
    """A status as the services send it."""
    status = status_pb2.Status(code=code.value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=reason, domain="anabranch", metadata={"work": work})
    status.details.add().Pack(info)
    return status


async def abort(context: grpc.aio.ServicerContext, status: status_pb2.Status) -> None:
    """Fails an RPC with a rich status."""
    code = next(c for c in grpc.StatusCode if c.value[0] == status.code)
    await context.abort(
        code,
        status.message,
        trailing_metadata=(("grpc-status-details-bin", status.SerializeToString()),),
    )


@dataclass
class Script:
    """What happened, and what shall happen; shared by all sessions of one server."""

    sessions: int = 0
    messages_in: int = 0
    starts: list[generation_pb2.GenerateRequest] = field(default_factory=list)
    traceparents: list[str] = field(default_factory=list)
    cancels: list[int] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    renewals: list[str] = field(default_factory=list)
    tokens_issued: int = 0
    token_life: float = 300.0
    accepts: str = ""  # the only credential accepted; empty accepts all
    live: set[Conversation] = field(default_factory=set)
    attempts: dict[str, int] = field(default_factory=dict)
    pace: float = 0.0  # seconds between steps
    refuse_sessions: int = 0  # so many sessions are refused as DRAINING
    page: int = 2


class Conversation:
    """One session."""

    def __init__(self, script: Script, context: grpc.aio.ServicerContext) -> None:
        self.script = script
        self.context = context
        self.running: dict[int, Iterator[session_pb2.SessionResponseFrame]] = {}
        self.changed = asyncio.Event()
        self.go_away = False
        self.cut = False
        self.hung_up = False

    async def listen(self, requests: AsyncIterator[session_pb2.SessionRequest]) -> None:
        async for message in requests:
            self.script.messages_in += 1
            if message.authorization:
                self.script.renewals.append(message.authorization)
            for frame in message.frames:
                if frame.WhichOneof("action") == "cancel":
                    self.script.cancels.append(frame.stream)
                    if self.running.pop(frame.stream, None):
                        self.running[frame.stream] = iter([_last(frame.stream, 0, 5)])
                else:
                    self.script.starts.append(frame.start)
                    self.script.traceparents.append(frame.traceparent)
                    self.running[frame.stream] = self.answer(frame.stream, frame.start)
            self.changed.set()
        self.hung_up = True
        self.changed.set()

    def answer(
        self, stream: int, request: generation_pb2.GenerateRequest
    ) -> Iterator[session_pb2.SessionResponseFrame]:
        said = request.prompt or request.messages[-1].content[0].text
        verb, _, argument = said.partition(" ")
        attempt = self.script.attempts[request.request_id] = (
            self.script.attempts.get(request.request_id, 0) + 1
        )
        if verb == "die" and attempt > 1:
            verb = "say"
        if verb in ("say", "die", "cancelled"):
            for position in range(int(argument)):
                chunk = generation_pb2.GenerateChunk(
                    first_token=position, text=f"w{position} ", token_ids=[position]
                )
                yield session_pb2.SessionResponseFrame(stream=stream, chunk=chunk, tokens=1)
            if verb == "die":
                self.cut = True
                return
            yield _last(stream, int(argument), 5 if verb == "cancelled" else 1)
        elif verb == "silent":
            while True:
                yield session_pb2.SessionResponseFrame()
        elif verb == "refuse":
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
            status = status_of(argument, code, f"refused: {argument}")
            if argument == "DRAINING" and attempt > 1:
                yield _last(stream, 0, 1)
            yield session_pb2.SessionResponseFrame(stream=stream, error=status, last=True)
        elif verb == "flood":
            for position in range(int(argument)):
                chunk = generation_pb2.GenerateChunk(first_token=position, text="x" * 1024)
                yield session_pb2.SessionResponseFrame(stream=stream, chunk=chunk, tokens=1)
            yield _last(stream, int(argument), 1)
        elif verb == "repeat":
            yield session_pb2.SessionResponseFrame(stream=stream, chunk=_repeated(request))
            yield _last(stream, 0, 3)
        elif verb == "unfinished":
            chunk = generation_pb2.GenerateChunk(text="half", token_ids=[1])
            yield session_pb2.SessionResponseFrame(stream=stream, chunk=chunk, last=True, tokens=1)

    async def speak(self) -> AsyncIterator[session_pb2.SessionResponse]:
        yield session_pb2.SessionResponse(ready=session_pb2.SessionReady(backend_id="scripted"))
        said_go_away = False
        while self.running or not self.hung_up:
            message = session_pb2.SessionResponse()
            for stream, frames in list(self.running.items()):
                frame = next(frames, None)
                if frame is None or frame.last:
                    self.running.pop(stream, None)
                if frame is not None and frame.stream:
                    message.frames.append(frame)
            if self.go_away and not said_go_away:
                said_go_away = True
                message.go_away.time_left.FromSeconds(30)
            if message.frames or message.HasField("go_away"):
                yield message
            if self.cut:
                # What a killed process looks like: a status that no service of ours sends.
                await self.context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            if not self.running or not message.frames:
                self.changed.clear()
                # Not wait_for: Python 3.11's swallows a cancellation that meets the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await self.changed.wait()
            else:
                await asyncio.sleep(self.script.pace)


def _repeated(request: generation_pb2.GenerateRequest) -> generation_pb2.GenerateChunk:
    asked = generation_pb2.GenerateRequest(
        tools=request.tools,
        tool_choice=request.tool_choice if request.HasField("tool_choice") else None,
        response_format=request.response_format if request.HasField("response_format") else None,
    )
    chunk = generation_pb2.GenerateChunk(text=json.dumps(json_format.MessageToDict(asked)))
    for index, tool in enumerate(request.tools):
        chunk.tool_calls.add(index=index, id=f"call-{index}", name=tool.name, arguments='{"a": 1}')
    return chunk


def _last(stream: int, tokens: int, finish: int) -> session_pb2.SessionResponseFrame:
    chunk = generation_pb2.GenerateChunk(
        first_token=tokens,
        finish_reason=finish,  # type: ignore[arg-type]
        usage=generation_pb2.Usage(
            prompt_tokens=3, completion_tokens=tokens, source="SOURCE_PROVIDER"
        ),
        receipt=generation_pb2.RouteReceipt(
            tier="TIER_LOCAL",
            backend_id="scripted",
            ttft=Duration(nanos=5_000_000),
        ),
    )
    return session_pb2.SessionResponseFrame(stream=stream, chunk=chunk, last=True)


class ScriptedModels(model_pb2_grpc.ModelServiceServicer):
    """ModelService by script."""

    def __init__(self, script: Script) -> None:
        self.script = script

    async def admit(self, context: grpc.aio.ServicerContext) -> None:
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        self.script.authorizations.append(str(given))
        if self.script.accepts and given != self.script.accepts:
            code = grpc.StatusCode.UNAUTHENTICATED
            await abort(
                context, status_of("CREDENTIAL_REJECTED", code, "the credential is no good")
            )

    async def Session(self, request_iterator, context):
        self.script.sessions += 1
        await self.admit(context)
        if self.script.refuse_sessions > 0:
            self.script.refuse_sessions -= 1
            code = grpc.StatusCode.UNAVAILABLE
            await abort(context, status_of("DRAINING", code, "the process is draining"))
        conversation = Conversation(self.script, context)
        self.script.live.add(conversation)
        listener = asyncio.create_task(conversation.listen(request_iterator))
        try:
            async for message in conversation.speak():
                yield message
        finally:
            self.script.live.discard(conversation)
            listener.cancel()
            await asyncio.wait([listener])

    async def CountTokens(self, request, context):
        await self.admit(context)
        words = len(request.request.prompt.split())
        return model_pb2.CountTokensResponse(
            prompt_tokens=words, context_length=99, source="SOURCE_PROVIDER"
        )

    async def Embed(self, request, context):
        await self.admit(context)
        vectors = [model_pb2.Embedding(values=[float(len(t)), 1.0]) for t in request.inputs]
        return model_pb2.EmbedResponse(embeddings=vectors)

    async def ListModels(self, request, context):
        await self.admit(context)
        names = [f"model-{i}" for i in range(5)]
        first = int(request.page_token or 0)
        after = first + self.script.page
        return model_pb2.ListModelsResponse(
            models=[
                generation_pb2.ModelInfo(name=n, tiers=["TIER_LOCAL"]) for n in names[first:after]
            ],
            next_page_token=str(after) if after < len(names) else "",
        )


class ScriptedAdmin(admin_pb2_grpc.RouterAdminServiceServicer):
    """RouterAdminService with one backend."""

    def __init__(self) -> None:
        self.backend = admin_pb2.BackendStatus(
            backend_id="engine-1",
            address="127.0.0.1:1",
            tier="TIER_LOCAL",
            state="BACKEND_STATE_READY",
            models=["model-0"],
        )
        self.policy = "version: 1 # as it was written\n"
        self.rejected = ["file p.yaml was refused:", "slow_start: must be a duration"]

    async def ListBackends(self, request, context):
        return admin_pb2.ListBackendsResponse(backends=[self.backend])

    async def DrainBackend(self, request, context):
        if request.backend_id != self.backend.backend_id:
            code = grpc.StatusCode.NOT_FOUND
            await abort(context, status_of("NOT_FOUND", code, f"no backend {request.backend_id}"))
        self.backend.drained = True
        return admin_pb2.DrainBackendResponse(backend=self.backend)

    async def UndrainBackend(self, request, context):
        self.backend.drained = False
        return admin_pb2.UndrainBackendResponse(backend=self.backend)

    async def ExplainRoute(self, request, context):
        return admin_pb2.ExplainRouteResponse(
            verdict="VERDICT_DISPATCH",
            backend_id="engine-1",
            explanation="the only one",
            candidates=[
                admin_pb2.RouteCandidate(backend_id="engine-1", tier="TIER_LOCAL", feasible=True)
            ],
        )

    async def GetPolicy(self, request, context):
        return admin_pb2.GetPolicyResponse(
            policy_yaml=self.policy, version="v1", source="file", rejected=self.rejected
        )

    async def UpdatePolicy(self, request, context):
        if request.expected_version not in ("", "v1"):
            code = grpc.StatusCode.FAILED_PRECONDITION
            await abort(context, status_of("VERSION_MISMATCH", code, "v1 is in force"))
        if "bad" in request.policy_yaml:
            code = grpc.StatusCode.INVALID_ARGUMENT
            refused = status_of("INVALID_REQUEST", code, "the request is not valid: …")
            faults = [{"field": f"models.{n}", "description": "must be good"} for n in "ab"]
            refused.details.add().Pack(error_details_pb2.BadRequest(field_violations=faults))
            await abort(context, refused)
        return admin_pb2.UpdatePolicyResponse(version="v2")


class ScriptedAuth(auth_pb2_grpc.AuthServiceServicer):
    """Issues token-1, token-2 … to the client "me" with the secret "right"."""

    def __init__(self, script: Script) -> None:
        self.script = script

    async def IssueToken(self, request, context):
        if (request.client_id, request.client_secret) != ("me", "right"):
            code = grpc.StatusCode.UNAUTHENTICATED
            await abort(
                context, status_of("CREDENTIAL_REJECTED", code, "the credential is no good")
            )
        self.script.tokens_issued += 1
        life = Duration()
        life.FromNanoseconds(round(self.script.token_life * 1e9))
        return auth_pb2.IssueTokenResponse(
            access_token=f"token-{self.script.tokens_issued}", token_type="Bearer", expires_in=life
        )


@contextlib.asynccontextmanager
async def scripted_server(script: Script, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serves the script at the address that it yields."""
    server = grpc.aio.server(
        options=(
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
        )
    )
    model_pb2_grpc.add_ModelServiceServicer_to_server(ScriptedModels(script), server)
    admin_pb2_grpc.add_RouterAdminServiceServicer_to_server(ScriptedAdmin(), server)
    auth_pb2_grpc.add_AuthServiceServicer_to_server(ScriptedAuth(script), server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@contextlib.contextmanager
def server_process(address: str = "127.0.0.1:0") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The same in a process of its own: for clients with their own loop, and to be killed."""
    command = [sys.executable, "-m", "tests.support.session_server", address]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip(), server
    finally:
        server.terminate()
        server.wait(60)
        server.stdout.close()


def words(count: int) -> str:
    """What "say N" is answered with."""
    return "".join(f"w{i} " for i in range(count))


async def _serve_alone(address: str) -> None:
    async with scripted_server(Script(pace=0.005), address) as bound:
        print(bound, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve_alone(sys.argv[1]))
