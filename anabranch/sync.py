"""The blocking client: AsyncClient's surface with plain `with` and `for`.

    with Client("router:50051", token=token) as client:
        print(client.generate(model="qwen", messages="Why is the sky blue?").text)

Runs an AsyncClient on the process's one background loop; decides nothing itself. Do not use
it after a fork that happened while it was open, nor inside an event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from anabranch.client import AsyncClient
from anabranch.environment import client_arguments
from anabranch.loop_thread import LoopThread
from anabranch.request import RequestOptions
from anabranch.streams import BlockingAnswerStream
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
from anabranch.v1 import generation_pb2


class Client:
    """A blocking client, usable from several threads at once. Arguments as for AsyncClient."""

    def __init__(self, target: str, **arguments: Any) -> None:
        self._client = AsyncClient(target, **arguments)
        self._loop = LoopThread()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **arguments: Any) -> Self:
        """As AsyncClient.from_env."""
        return cls(**client_arguments(environ, **arguments))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._client!r})"

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
        """Cancels what still runs and closes every connection. May be repeated."""
        try:
            if not self._loop.released:
                self._loop.run(self._client.close())
        finally:
            self._loop.release()

    def stream(
        self,
        request: generation_pb2.GenerateRequest | None = None,
        /,
        **options: Unpack[RequestOptions],
    ) -> BlockingAnswerStream:
        """As AsyncClient.stream, for `with` and `for`."""
        made = self._client.prepare(request, options)
        return BlockingAnswerStream(self._loop, self._client.open, made)

    def generate(
        self,
        request: generation_pb2.GenerateRequest | None = None,
        /,
        **options: Unpack[RequestOptions],
    ) -> Answer:
        """As AsyncClient.generate."""
        return self._loop.run(self._client.generate(request, **options))

    def count_tokens(
        self,
        request: generation_pb2.GenerateRequest | None = None,
        /,
        **options: Unpack[RequestOptions],
    ) -> TokenCount:
        """As AsyncClient.count_tokens."""
        return self._loop.run(self._client.count_tokens(request, **options))

    def embed(
        self, model: str, inputs: str | Sequence[str], *, dimensions: int | None = None
    ) -> Embeddings:
        """As AsyncClient.embed."""
        return self._loop.run(self._client.embed(model, inputs, dimensions=dimensions))

    def models(self) -> list[Model]:
        """As AsyncClient.models."""
        return self._loop.run(self._client.models())

    def feedback(
        self,
        answer: str | Answer | Transcript,
        *,
        rating: int | None = None,
        completed: bool | None = None,
    ) -> None:
        """As AsyncClient.feedback."""
        self._loop.run(self._client.feedback(answer, rating=rating, completed=completed))

    def backends(self) -> list[Backend]:
        """As AsyncClient.backends."""
        return self._loop.run(self._client.backends())

    def drain(self, backend_id: str) -> Backend:
        """As AsyncClient.drain."""
        return self._loop.run(self._client.drain(backend_id))

    def undrain(self, backend_id: str) -> Backend:
        """As AsyncClient.undrain."""
        return self._loop.run(self._client.undrain(backend_id))

    def explain(
        self,
        request: generation_pb2.GenerateRequest | None = None,
        /,
        **options: Unpack[RequestOptions],
    ) -> Explanation:
        """As AsyncClient.explain."""
        return self._loop.run(self._client.explain(request, **options))

    def log_level(self) -> str:
        """As AsyncClient.log_level."""
        return self._loop.run(self._client.log_level())

    def set_log_level(self, level: str) -> str:
        """As AsyncClient.set_log_level."""
        return self._loop.run(self._client.set_log_level(level))

    def policy(self) -> RoutingPolicy:
        """As AsyncClient.policy."""
        return self._loop.run(self._client.policy())

    def update_policy(self, text: str, *, expected_version: str = "") -> str:
        """As AsyncClient.update_policy."""
        return self._loop.run(self._client.update_policy(text, expected_version=expected_version))
