"""The ways that a token may take from vLLM's engine core to a caller, each set up and run alike.

Every one begins its requests and returns once all of them have their last token.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from anabranch.v1 import generation_pb2 as pb
from bench.engine_frontend.core import SyntheticCore
from services.chassis.errors import Fault
from services.chassis.model_handler import CallContext
from services.chassis.principal import Principal
from services.local_engine.app import running
from services.local_engine.engine import Delta, Job, SamplingSpec
from services.local_engine.on_vllm.engine import VllmEngine
from services.local_engine.settings import Settings
from tests.support.local_keys import LocalKeys

MODEL = "bench"


@dataclass(frozen=True, slots=True)
class Load:
    """So many requests at once, of so many tokens each."""

    streams: int
    tokens: int
    prompt: Sequence[int]


Way = Callable[[SyntheticCore, Load], Awaitable[None]]


def _params(load: Load) -> SamplingParams:
    return SamplingParams(
        temperature=0.0,
        max_tokens=load.tokens,
        ignore_eos=True,
        output_kind=RequestOutputKind.DELTA,
    )


def _prompt(load: Load) -> Any:
    return {"type": "token", "prompt_token_ids": list(load.prompt)}


async def async_llm(model: str, core: SyntheticCore, load: Load) -> None:
    """AsyncLLM in process, a task a request; what comes is counted and dropped."""
    llm = _new_llm(model)

    async def one(number: int) -> None:
        async for _ in llm.generate(_prompt(load), _params(load), f"{number}"):
            pass

    await _held(core, load, [one(n) for n in range(load.streams)])
    llm.shutdown()


async def openai(model: str, core: SyntheticCore, load: Load) -> None:
    """As `async_llm`, each output made an event of vLLM's completions API; no HTTP."""
    llm = _new_llm(model)
    serving = OpenAIServingCompletion.__new__(OpenAIServingCompletion)
    serving.enable_force_include_usage = False
    serving.enable_prompt_tokens_details = False
    serving.system_fingerprint = None
    serving.model_config = llm.model_config

    async def one(number: int) -> None:
        name = f"{number}"
        request = CompletionRequest(
            model=MODEL, prompt=list(load.prompt), max_tokens=load.tokens, stream=True
        )
        outputs = _numbered(llm.generate(_prompt(load), _params(load), name))
        events: Any = serving.completion_stream_generator(
            request, [_prompt(load)], outputs, name, int(time.time()), MODEL, 1, None, _Metadata()
        )
        async for event in events:
            event.encode()

    await _held(core, load, [one(n) for n in range(load.streams)])
    llm.shutdown()


def jobs(**options: Any) -> Callable[[str, SyntheticCore, Load], Awaitable[None]]:
    """Our engine's jobs: vLLM's outputs made deltas, which are dropped."""

    async def run(model: str, core: SyntheticCore, load: Load) -> None:
        engine = VllmEngine(_options(model, load), **options)
        await engine.start()

        async def one(number: int) -> None:
            end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            spec = SamplingSpec(temperature=0.0, max_tokens=load.tokens, ignore_eos=True)
            job = Job(f"{number}", load.prompt, spec, load.tokens)
            engine.submit(job, _ends(end), end.set_exception)
            await end

        await _held(core, load, [one(n) for n in range(load.streams)])
        await engine.close()

    return run


def handler(**options: Any) -> Callable[[str, SyntheticCore, Load], Awaitable[None]]:
    """Our service without its session: chunks as bytes, metrics, load reports."""

    async def run(model: str, core: SyntheticCore, load: Load) -> None:
        async with _service(model, load, options) as (host, _):
            caller = Principal("bench", "bench", frozenset({"generate"}), time.time() + 300, "")
            served = host.model_service.requests._handler

            async def one(number: int) -> None:
                end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                context = CallContext(caller, f"{number}", time.monotonic() + 300)
                served.open(_request(load), context, _Sink(end))
                await end

            await _held(core, load, [one(n) for n in range(load.streams)])

    return run


def session(**options: Any) -> Callable[[str, SyntheticCore, Load], Awaitable[None]]:
    """Our whole service: one session over a socket to another process, which reads all of it."""

    async def run(model: str, core: SyntheticCore, load: Load) -> None:
        async with _service(model, load, options) as (host, token):
            reader = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "bench.engine_frontend.reader"),
                *(host.address, token, str(load.streams)),
                stdin=asyncio.subprocess.PIPE,
            )
            await _held(core, load, [reader.communicate(_request(load).SerializeToString())])
            assert reader.returncode == 0

    return run


async def _held(core: SyntheticCore, load: Load, ends: Sequence[Awaitable[Any]]) -> None:
    """Lets the core run once it has all requests, so that every step is a full one."""
    core.held = True
    started = time.thread_time()
    full = asyncio.Event()
    core.full = (load.streams, full)
    waiting = asyncio.gather(*ends)
    begun = asyncio.ensure_future(full.wait())
    either: list[asyncio.Future[Any]] = [waiting, begun]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    core.beginning = time.thread_time() - started
    core.steps.clear()
    core.release()
    await waiting


def _new_llm(model: str) -> AsyncLLM:
    arguments = AsyncEngineArgs(model=model, dtype="float32", enforce_eager=True)
    return AsyncLLM.from_vllm_config(arguments.create_engine_config())


def _options(model: str, load: Load) -> Any:
    from services.local_engine.on_vllm.options import VllmOptions

    return VllmOptions(model, MODEL, max_num_seqs=load.streams, prefix_events=False)


@asynccontextmanager
async def _service(model: str, load: Load, options: dict[str, Any]) -> Any:
    keys = LocalKeys()
    settings = Settings(
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        engine="sim",  # the engine is given below
        served_model_name=MODEL,
        max_num_seqs=load.streams,
        max_waiting=4 * load.streams,
        drain_timeout=1.0,
    )
    engine = VllmEngine(_options(model, load), **options)
    async with running(settings, key_source=keys, engine=engine) as host:
        yield host, keys.token("generate")


def _request(load: Load) -> pb.GenerateRequest:
    sampling = pb.Sampling(temperature=0.0, max_tokens=load.tokens, ignore_eos=True)
    return pb.GenerateRequest(model=MODEL, prompt_token_ids=load.prompt, sampling=sampling)


def _ends(end: asyncio.Future[None]) -> Callable[[Delta], None]:
    def on_delta(delta: Delta) -> None:
        if delta.usage is not None:
            end.set_result(None)

    return on_delta


class _Sink:
    """An outlet that drops everything but the end."""

    def __init__(self, end: asyncio.Future[None]) -> None:
        self._end = end

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        if last:
            self._end.set_result(None)

    def fail(self, fault: Fault) -> None:
        self._end.set_exception(fault)


class _Metadata:
    """Where vLLM's server leaves the usage of a request."""

    final_usage_info: Any = None


async def _numbered(outputs: Any) -> Any:
    async for output in outputs:
        yield 0, output
