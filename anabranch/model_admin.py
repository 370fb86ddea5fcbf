"""The blocking client of an engine's ModelAdminService: the contract's own messages.

    with ModelAdmin("engine-7:50052", token=token) as engine:
        wanted = model_admin_pb2.LoadModelRequest(name="qwen", source="/models/qwen")
        for step in engine.load(wanted):
            print(step.phase, step.detail)

Adds the credential and translates errors, and decides nothing. What the messages mean is told in
protos/anabranch/v1/model_admin.proto. Reads no environment.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from anabranch.dial import ChannelOptions, dialler
from anabranch.errors import AnabranchError, error_from_rpc
from anabranch.loop_thread import LoopThread
from anabranch.tokens import ClientCredentials, FixedToken, TokenSource
from anabranch.v1 import model_admin_pb2 as pb
from anabranch.v1 import model_admin_pb2_grpc

DEFAULT_TIMEOUT = 3900.0
"""Above the longest drain: a load takes as long as its weights are large."""


class ModelAdmin:
    """A blocking client of one engine.

    target: host:port of the engine. Credentials: `token`, or `client_id` and `client_secret` with
    the auth service's `auth_target`. credentials: TLS, see grpc.ssl_channel_credentials; None is
    plaintext. timeout: seconds that a call may take.

    Opens nothing before the first call. Close it, best with `with`. Every call raises
    AnabranchError. As Client, it is not for use inside an event loop or after a fork.
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
        self._loop = LoopThread()
        self._channel: grpc.aio.Channel | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._target!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. May be repeated."""
        try:
            if not self._loop.released:
                self._loop.run(self._close())
        finally:
            self._loop.release()

    def served(self) -> list[pb.ServedModel]:
        """What the engine serves."""
        return list(self._ask(pb.ListServedModelsRequest()).models)

    def load(self, request: pb.LoadModelRequest) -> Iterator[pb.LoadModelResponse]:
        """Loads a model, or swaps; a message each time that it got further.

        Leaving the loop before PHASE_SERVING cancels the load.
        """
        call = self._loop.run(self._begin_load(request))
        try:
            while (step := self._loop.run(self._next(call))) is not None:
                yield step
        finally:
            self._loop.call(call.cancel)

    def unload(self, request: pb.UnloadModelRequest) -> pb.UnloadModelResponse:
        """Takes a model out of service."""
        answer: pb.UnloadModelResponse = self._ask(request)
        return answer

    def load_adapter(self, request: pb.LoadAdapterRequest) -> pb.LoadAdapterResponse:
        """Loads an adapter."""
        answer: pb.LoadAdapterResponse = self._ask(request)
        return answer

    def unload_adapter(self, request: pb.UnloadAdapterRequest) -> pb.UnloadAdapterResponse:
        """Takes an adapter out of service."""
        answer: pb.UnloadAdapterResponse = self._ask(request)
        return answer

    def sleep(self, request: pb.SleepRequest) -> pb.SleepResponse:
        """Puts a model to sleep."""
        answer: pb.SleepResponse = self._ask(request)
        return answer

    def wake(self, request: pb.WakeRequest) -> pb.WakeResponse:
        """Brings a model back."""
        answer: pb.WakeResponse = self._ask(request)
        return answer

    def _ask(self, request: Any) -> Any:
        return self._loop.run(self._call(request))

    async def _call(self, request: Any) -> Any:
        rpc = type(request).__name__.removesuffix("Request")
        metadata = await self._metadata()
        try:
            return await getattr(self._stub(), rpc)(
                request, timeout=self._timeout, metadata=metadata
            )
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from None

    async def _begin_load(self, request: pb.LoadModelRequest) -> Any:
        metadata = await self._metadata()
        return self._stub().LoadModel(request, timeout=self._timeout, metadata=metadata)

    async def _next(self, call: Any) -> pb.LoadModelResponse | None:
        try:
            step = await call.read()
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from None
        return None if step is grpc.aio.EOF else step

    def _translated(self, error: grpc.aio.AioRpcError) -> AnabranchError:
        return error_from_rpc(error, self._target)

    async def _metadata(self) -> list[tuple[str, str]]:
        authorization = await self._tokens.authorization()
        return [("authorization", authorization)] if authorization else []

    def _stub(self) -> Any:
        if self._channel is None:
            self._channel = self._dial()
        return model_admin_pb2_grpc.ModelAdminServiceStub(self._channel)

    async def _close(self) -> None:
        await self._tokens.close()
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
