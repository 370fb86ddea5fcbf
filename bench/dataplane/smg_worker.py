"""A fake vLLM worker that speaks SMG's gRPC contract; its arguments are ADDRESS and MODEL.

It runs in SMG's own environment, beside the package that holds the contract, and so imports
nothing of Anabranch but the steps. As vLLM's servicer: token ids alone, a message for each token
and a last one with the finish reason; the gateway tokenizes and detokenizes, with what it finds in
the model's folder. The seed of a request is the time of a step in ms.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import aclosing
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from smg_grpc_proto import vllm_engine_pb2 as pb  # type: ignore[import-not-found]

from bench.dataplane.steps import LONGEST, Steps

MODEL = "fake"
_TOKEN_IDS = (3, 4)
"""The ids of the words that the gateway is to write; see gateways.py for the vocabulary."""

_PROMPT_TOKENS = 64


def _chunk(at: int) -> bytes:
    chunk = pb.GenerateStreamChunk(
        token_ids=[_TOKEN_IDS[at & 1]], prompt_tokens=_PROMPT_TOKENS, completion_tokens=at + 1
    )
    return bytes(pb.GenerateResponse(chunk=chunk).SerializeToString())


_CHUNKS = tuple(_chunk(at) for at in range(LONGEST))


class Worker:
    """What SMG asks of a worker; the rest is refused as unimplemented."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._steps: dict[int, Steps] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def steps(self, pace_ms: int) -> Steps:
        """The steps of one pace, running from the first question on."""
        if pace_ms not in self._steps:
            self._steps[pace_ms] = Steps(pace_ms)
            self._tasks.append(asyncio.create_task(self._steps[pace_ms].run()))
        return self._steps[pace_ms]

    async def close(self) -> None:
        """Ends the steps."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def generate(self, raw: bytes, context: Any) -> None:
        """Answers with as many tokens as asked for."""
        sampling = pb.GenerateRequest.FromString(raw).sampling_params
        tokens = min(sampling.max_tokens or LONGEST, LONGEST)
        async with aclosing(self.steps(sampling.seed).each(tokens)) as positions:
            async for at in positions:
                await context.write(_CHUNKS[at])
        complete = pb.GenerateComplete(
            finish_reason="length", prompt_tokens=_PROMPT_TOKENS, completion_tokens=tokens
        )
        await context.write(pb.GenerateResponse(complete=complete).SerializeToString())

    def handler(self) -> grpc.GenericRpcHandler:
        """The service. Not by the generated servicer: answers stay bytes."""
        calls = {
            "Generate": grpc.unary_stream_rpc_method_handler(self.generate),
            "HealthCheck": _always(pb.HealthCheckResponse(healthy=True, message="Health")),
            "Abort": _always(pb.AbortResponse()),
            "GetModelInfo": _always(self._information()),
            "GetServerInfo": _always(
                pb.GetServerInfoResponse(
                    server_type="vllm-grpc", data_parallel_size=1, max_num_seqs=20_000
                )
            ),
        }
        return grpc.method_handlers_generic_handler("vllm.grpc.engine.VllmEngine", calls)

    def _information(self) -> Any:
        return pb.GetModelInfoResponse(
            model_path=self._model,
            tokenizer_path=self._model,
            served_model_name=MODEL,
            is_generation=True,
            max_context_length=32_768,
            max_req_input_len=32_768,
            vocab_size=LONGEST,
            model_type="llama",
            architectures=["LlamaForCausalLM"],
            eos_token_ids=[2],
            bos_token_id=1,
            default_sampling_params_json="{}",
        )


def _always(answer: Any) -> grpc.RpcMethodHandler:
    raw = answer.SerializeToString()

    async def say(_: bytes, __: Any) -> bytes:
        return bytes(raw)

    return grpc.unary_unary_rpc_method_handler(say)


async def serve(address: str, model: str) -> None:
    """Serves until SIGTERM."""
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    worker = Worker(model)
    server.add_generic_rpc_handlers((worker.handler(),))
    health = HealthServicer()
    health.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    server.add_insecure_port(address)
    await server.start()
    try:
        await over.wait()
    finally:
        await server.stop(0.2)
        await worker.close()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:3]))
