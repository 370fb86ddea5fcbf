"""Starts the local engine on a GPU, as a process, and calls it as a service would."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2_grpc, session_pb2
from bench.engine.arguments import as_settings
from bench.processes import Processes
from tests.support.engines import MODEL
from tools import identities

NAME = "small"
ARGUMENTS: Mapping[str, Any] = {
    "dtype": "bfloat16",
    "max_num_seqs": 32,
    "max_model_len": 1024,
    "max_num_batched_tokens": 2048,
    "gpu_memory_utilization": 0.2,
    "seed": 0,
}
"""The same for the engine and for vllm.LLM."""

START_S = 420.0


@dataclass
class Answer:
    """What came for one request, in order."""

    chunks: list[pb.GenerateChunk] = field(default_factory=list)
    error: str = ""

    @property
    def tokens(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def finish(self) -> str:
        """Why its last choice ended, by name."""
        last = self.chunks[-1].finish_reason if self.chunks else pb.FINISH_REASON_UNSPECIFIED
        return pb.FinishReason.Name(last)


class Caller:
    """A caller of one engine."""

    def __init__(
        self, target: str, authorization: str, admin: str, channel: grpc.aio.Channel
    ) -> None:
        self.target = target
        self.authorization = authorization
        self.channel = channel
        self.admin_metadata = (("authorization", admin),)
        self._metadata = (("authorization", authorization),)
        self._stub = model_pb2_grpc.ModelServiceStub(channel)

    async def generate(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        """A whole answer."""
        answer: pb.GenerateResponse = await self._stub.Generate(
            request, metadata=self._metadata, timeout=120
        )
        return answer

    async def session(self, *requests: pb.GenerateRequest) -> list[Answer]:
        """Every request at once over one session."""
        call = self._stub.Session(metadata=self._metadata, timeout=300)
        answers = {number: Answer() for number in range(1, len(requests) + 1)}
        open_ones = set(answers)
        await call.write(
            session_pb2.SessionRequest(
                frames=[
                    session_pb2.SessionRequestFrame(stream=number, start=request)
                    for number, request in enumerate(requests, 1)
                ]
            )
        )
        while open_ones:
            message = await call.read()
            assert message is not grpc.aio.EOF, "the session ended early"
            for frame in message.frames:
                answer = answers[frame.stream]
                if frame.HasField("error"):
                    answer.error = frame.error.message
                else:
                    answer.chunks.append(frame.chunk)
                if frame.last:
                    open_ones.discard(frame.stream)
        await call.done_writing()
        call.cancel()
        return list(answers.values())


@asynccontextmanager
async def engine(folder: Path, **more: Any) -> AsyncIterator[Caller]:
    """An engine with ARGUMENTS and further arguments of vLLM."""
    async with Processes(folder) as processes:
        auth = await processes.auth(identities.IDENTITIES)
        settings = {
            "AUTH_TARGET": auth,
            "MODEL": str(MODEL),
            "SERVED_MODEL_NAME": NAME,
            # White space has no end of its own; and no test is of a machine's moments of load.
            "COMPACT_JSON": "true",
            "GRAMMAR_TIMEOUT": "10",
        }
        target = await processes.service(
            "engine",
            "services.local_engine",
            "ANABRANCH_ENGINE_",
            settings | as_settings({**ARGUMENTS, **more}),
            start_timeout=START_S,
            drain=30.0,
        )
        async with grpc.aio.insecure_channel(target) as channel:
            yield Caller(
                target,
                await processes.authorization(),
                await processes.authorization(identities.ADMIN),
                channel,
            )


def greedy(tokens: int, **more: Any) -> pb.Sampling:
    """So many tokens, the likeliest each time."""
    return pb.Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True, **more)
