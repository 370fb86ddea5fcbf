"""The asynchronous client: generation over one multiplexed session, the rest as plain RPCs.

    async with AsyncClient("router:50051", token=token) as client:
        answer = await client.generate(model="qwen", messages="Why is the sky blue?")
        async with client.stream(model="qwen", messages="Tell me a story.") as stream:
            async for chunk in stream:
                print(chunk.text, end="")

Reads no environment, except in from_env.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from anabranch import wire
from anabranch.dial import ChannelOptions, dialler
from anabranch.environment import client_arguments
from anabranch.errors import (
    AnabranchError,
    AuthenticationError,
    Work,
    error_for,
    error_from_rpc,
)
from anabranch.inflight import CANCELLED, Inflight
from anabranch.link import Link
from anabranch.request import RequestOptions, build_request
from anabranch.session import SessionSettings
from anabranch.spans import RequestSpan, Tracing
from anabranch.streams import AnswerStream
from anabranch.tokens import ClientCredentials, FixedToken, TokenSource
from anabranch.transcript import Transcript
from anabranch.types import (
    Answer,
    Backend,
    Embeddings,
    Explanation,
    Model,
    RoutingPolicy,
    TokenCount,
)
from anabranch.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    generation_pb2,
    model_pb2,
    model_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
)

DEFAULT_TIMEOUT = 600.0
MAX_REQUEST_BYTES = 4 * 1024 * 1024 - 64 * 1024


class AsyncClient:
    """A client of a router, or of anything else that serves ModelService.

    target: host:port. Credentials: `token` (a JWT or an API key), or `client_id` and
    `client_secret`, with which tokens are fetched from the auth service at `auth_target` and
    renewed; none of them for a service without authentication. credentials: TLS, see
    grpc.ssl_channel_credentials; None is plaintext. channel_options replace the defaults of
    dial.py. timeout: seconds that a request may take unless it says otherwise.
    max_buffered_bytes: how much of one answer may wait to be read. tracing: makes a span of each
    request, and tells the service of it, see anabranch.tracing; traceparent: only gives the W3C
    trace context of the moment, for one who traces otherwise. resume: answers pause while the
    connection is lost, and go on once it is back, where the service offers that; without it they
    fail at once.

    Opens nothing before the first call. Use it in one event loop, and close it, best with
    `async with`. Every method raises AnabranchError.
    """

    def __init__(
        self,
        target: str,
        *,
        auth_target: str | None = None,
        client_id: str | None = None,
        client_secret: str | None = None,
        token: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        channel_options: ChannelOptions = (),
        timeout: float = DEFAULT_TIMEOUT,
        connect_timeout: float = 5.0,
        max_buffered_bytes: int = 4 * 1024 * 1024,
        traceparent: Callable[[], str] | None = None,
        tracing: Tracing | None = None,
        resume: bool = True,
    ) -> None:
        self._target = target
        self._dial = dialler(target, credentials, channel_options)
        self._tokens: TokenSource
        if client_id:
            if token:
                raise ValueError("give either a token or client_id and client_secret")
            if not client_secret or not auth_target:
                raise ValueError("client_id needs client_secret and auth_target")
            dial_auth = dialler(auth_target, credentials, channel_options)
            self._tokens = ClientCredentials(dial_auth, auth_target, client_id, client_secret)
        else:
            self._tokens = FixedToken(token or "")
        self._timeout = timeout
        self._max_buffered = max_buffered_bytes
        self._traceparent = traceparent or str
        self._tracing = tracing
        self._link = Link(
            SessionSettings(target, self._dial, self._tokens, connect_timeout, resume)
        )
        self._channel: grpc.aio.Channel | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **arguments: Any) -> Self:
        """Reads ANABRANCH_TARGET and its companions, see anabranch.environment.

        Keyword arguments win over the environment. Raises ValueError when it contradicts itself.
        """
        return cls(**client_arguments(environ, **arguments))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._target!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels what still runs and closes every connection."""
        await self._link.close()
        await self._tokens.close()
        if self._channel is not None:
            await self._channel.close()

    def stream(
        self,
        request: generation_pb2.GenerateRequest | None = None,
        /,
        **options: Unpack[RequestOptions],
    ) -> AnswerStream:
        """Answers one request chunk by chunk.

        Takes a GenerateRequest or the keywords of anabranch.request.build_request. Use the
        result with `async with`; leaving it early cancels the request.
        """
        return AnswerStream(self.open, self.prepare(request, options))

    async def generate(
        self,
        request: generation_pb2.GenerateRequest | None = None,
        /,
        **options: Unpack[RequestOptions],
    ) -> Answer:
        """Answers one request whole. Arguments as for stream."""
        async with self.stream(request, **options) as stream:
            return await stream.finish()

    async def count_tokens(
        self,
        request: generation_pb2.GenerateRequest | None = None,
        /,
        **options: Unpack[RequestOptions],
    ) -> TokenCount:
        """Counts the tokens of a request's prompt. Arguments as for stream."""
        made = self.prepare(request, options)
        ask = model_pb2.CountTokensRequest(model=made.model, request=made)
        return wire.token_count(await self._call(self._models().CountTokens, ask))

    async def embed(
        self, model: str, inputs: str | Sequence[str], *, dimensions: int | None = None
    ) -> Embeddings:
        """Returns one vector for each input."""
        texts = [inputs] if isinstance(inputs, str) else inputs
        ask = model_pb2.EmbedRequest(model=model, inputs=texts, dimensions=dimensions)
        return wire.embeddings(await self._call(self._models().Embed, ask))

    async def models(self) -> list[Model]:
        """Lists every model that can be asked for, ordered by name."""
        found: list[Model] = []
        token = ""
        while True:
            ask = model_pb2.ListModelsRequest(page_token=token)
            page = await self._call(self._models().ListModels, ask)
            found += [wire.model(m) for m in page.models]
            token = page.next_page_token
            if not token:
                return found

    async def feedback(
        self,
        answer: str | Answer | Transcript,
        *,
        rating: int | None = None,
        completed: bool | None = None,
    ) -> None:
        """Says how good an answer was: one of this client's, or its request id.

        rating: 1 (not at all satisfying) to 5. completed: whether it did what it was asked for.
        At least one of them; the other may follow, and saying the same again changes nothing.
        Raises NotFoundError for an answer that the router does not know, or no longer, and
        InvalidRequestError with the reason ALREADY_EXISTS where it was told otherwise before.
        """
        request_id = answer if isinstance(answer, str) else answer.request_id
        ask = model_pb2.FeedbackRequest(request_id=request_id, rating=rating, completed=completed)
        await self._call(self._models().Feedback, ask)

    async def backends(self) -> list[Backend]:
        """Lists the backends that the router knows. Needs the scope `admin`."""
        answer = await self._call(self._admin().ListBackends, admin_pb2.ListBackendsRequest())
        return [wire.backend(b) for b in answer.backends]

    async def drain(self, backend_id: str) -> Backend:
        """Stops new work for a backend; running streams finish. Needs the scope `admin`."""
        ask = admin_pb2.DrainBackendRequest(backend_id=backend_id)
        return wire.backend((await self._call(self._admin().DrainBackend, ask)).backend)

    async def undrain(self, backend_id: str) -> Backend:
        """Gives new work to a drained backend again. Needs the scope `admin`."""
        ask = admin_pb2.UndrainBackendRequest(backend_id=backend_id)
        return wire.backend((await self._call(self._admin().UndrainBackend, ask)).backend)

    async def explain(
        self,
        request: generation_pb2.GenerateRequest | None = None,
        /,
        **options: Unpack[RequestOptions],
    ) -> Explanation:
        """Says what the router would do with a request, without doing it. Needs `admin`."""
        ask = admin_pb2.ExplainRouteRequest(request=self.prepare(request, options))
        return wire.explanation(await self._call(self._admin().ExplainRoute, ask))

    async def log_level(self) -> str:
        """Returns how much the process at the target logs. Needs `admin` or `observe`."""
        ask = operations_pb2.GetLogLevelRequest()
        return str((await self._call(self._operations().GetLogLevel, ask)).level)

    async def set_log_level(self, level: str) -> str:
        """Changes it until the process restarts, and returns the level before. Needs `admin`."""
        ask = operations_pb2.UpdateLogLevelRequest(level=level)
        return str((await self._call(self._operations().UpdateLogLevel, ask)).previous_level)

    async def policy(self) -> RoutingPolicy:
        """Returns the routing policy in force. Needs the scope `admin`."""
        return wire.routing_policy(
            await self._call(self._admin().GetPolicy, admin_pb2.GetPolicyRequest())
        )

    async def update_policy(self, text: str, *, expected_version: str = "") -> str:
        """Replaces the routing policy, whole or not at all, and returns the version now in force.

        With `expected_version` only if that one is in force. Raises InvalidRequestError, whose
        `violations` name every fault of a bad document by its path. Needs the scope `admin`.
        """
        ask = admin_pb2.UpdatePolicyRequest(policy_yaml=text, expected_version=expected_version)
        return str((await self._call(self._admin().UpdatePolicy, ask)).version)

    def prepare(
        self, request: generation_pb2.GenerateRequest | None, options: RequestOptions
    ) -> generation_pb2.GenerateRequest:
        """Makes the request that is sent: with an id and a time limit. For sync.py."""
        if request is None:
            request = build_request(**options)
        elif options:
            raise TypeError("give either a GenerateRequest or keywords, not both")
        else:
            mine = generation_pb2.GenerateRequest()
            mine.CopyFrom(request)
            request = mine
            request.request_id = request.request_id or build_request().request_id
        if not request.HasField("timeout"):
            request.timeout.FromNanoseconds(round(self._timeout * 1e9))
        return request

    def open(self, request: generation_pb2.GenerateRequest) -> Inflight:
        """Puts a prepared request on its way; needs the running loop. For sync.py."""
        size = request.ByteSize()
        if size > MAX_REQUEST_BYTES:
            # One message beyond the limit would end the session for every other request.
            raise error_for(
                "TOO_LARGE",
                f"the request has {size} bytes, {MAX_REQUEST_BYTES} are allowed",
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                work=Work.NOT_DISPATCHED,
            )
        inflight = Inflight(
            request,
            timeout=wire.seconds(request.timeout),
            max_buffered_bytes=self._max_buffered,
            traceparent=self._traceparent(),
            span=None if self._tracing is None else _begin(self._tracing, request),
        )
        try:
            self._link.start(inflight)
        except AnabranchError:
            inflight.abandon()
            raise
        return inflight

    def _unary(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = self._dial()
        return self._channel

    def _models(self) -> Any:
        return model_pb2_grpc.ModelServiceStub(self._unary())

    def _admin(self) -> Any:
        return admin_pb2_grpc.RouterAdminServiceStub(self._unary())

    def _operations(self) -> Any:
        return operations_pb2_grpc.OperationsServiceStub(self._unary())

    async def _call(self, method: Any, request: Any) -> Any:
        if self._tracing is None:
            return await self._call_renewed(method, request, self._traceparent())
        # The name of the RPC is that of its request.
        span = self._tracing.begin(type(request).__name__.removesuffix("Request"), {})
        ended: AnabranchError | None = CANCELLED
        try:
            answer = await self._call_renewed(method, request, span.traceparent)
            ended = None
            return answer
        except AnabranchError as error:
            ended = error
            raise
        finally:
            span.end(ended, {})

    async def _call_renewed(self, method: Any, request: Any, traceparent: str) -> Any:
        authorization = await self._tokens.authorization()
        try:
            return await self._call_once(method, request, authorization, traceparent)
        except AuthenticationError:
            if not self._tokens.reject(authorization):
                raise
        authorization = await self._tokens.authorization()
        return await self._call_once(method, request, authorization, traceparent)

    async def _call_once(
        self, method: Any, request: Any, authorization: str, traceparent: str
    ) -> Any:
        metadata = [("authorization", authorization)] if authorization else []
        if traceparent:
            metadata.append(("traceparent", traceparent))
        try:
            return await method(request, timeout=self._timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, self._target) from None


def _begin(tracing: Tracing, request: generation_pb2.GenerateRequest) -> RequestSpan:
    """The span of a request, with nothing of its prompt."""
    attributes: dict[str, str | int] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": request.model,
        "anabranch.request_id": request.request_id,
    }
    if request.sampling.HasField("max_tokens"):
        attributes["gen_ai.request.max_tokens"] = request.sampling.max_tokens
    return tracing.begin(f"chat {request.model}", attributes)
