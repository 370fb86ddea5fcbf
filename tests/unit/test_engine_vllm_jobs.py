"""Jobs at vLLM's edge: whose text is made how, which choices end, whose fault a failure is.

vLLM is played: the outputs that matter here are ones that it gives rarely.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from services.local_engine import wire
from services.local_engine.engine import Delta, Finish, Job, SamplingSpec
from services.local_engine.load_meter import LoadMeter
from services.local_engine.on_vllm.jobs import VllmJobs
from services.local_engine.on_vllm.token_bytes import TokenBytes

SPECIAL = 256


class Tokenizer:
    """A byte a token, and one special token."""

    vocabulary = 257
    token_bytes = TokenBytes([*(bytes((n,)) for n in range(256)), b""])

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(t for t in token_ids if t < SPECIAL).decode("utf-8", "replace")

    decode_all = decode

    def check(self, token_ids: Sequence[int], field: str) -> None:
        wire.check_vocabulary(token_ids, self.vocabulary, field)


class Played:
    """vLLM and its outputs: takes everything, and gives what the test says."""

    refuses_late = False

    def __init__(self) -> None:
        self.errored = False
        self.aborted: list[str] = []
        self.made_by_vllm: list[bool] = []
        self.receive: dict[str, Any] = {}

    async def __aenter__(self) -> Played:
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def begin(self, request_id, tokens, params, priority, receive, further, plain=None):
        self.made_by_vllm.append(params)
        self.receive[request_id] = receive

    def forget(self, request_id: str) -> None:
        return

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        # As vLLM does: what runs of it ends as aborted.
        self.receive[request_id](outputs((0, b"", "abort"), (1, b"", "abort")))


def outputs(*parts: tuple[int, bytes, str | None]) -> SimpleNamespace:
    return SimpleNamespace(
        num_cached_tokens=0,
        outputs=[
            SimpleNamespace(
                index=index,
                token_ids=list(tokens),
                text="",
                finish_reason=finish,
                stop_reason=None,
                logprobs=None,
            )
            for index, tokens, finish in parts
        ],
    )


class Caller:
    """What a job has brought."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.faults: list[Fault] = []

    def finishes(self) -> dict[int, Finish]:
        return {d.index: d.finish for d in self.deltas if d.finish is not None}

    def text(self, index: int) -> str:
        return "".join(d.text for d in self.deltas if d.index == index)

    def tokens(self) -> int:
        return sum(len(d.token_ids) for d in self.deltas)


@asynccontextmanager
async def running() -> AsyncIterator[tuple[VllmJobs, Played]]:
    vllm = Played()
    jobs = VllmJobs(
        vllm,
        Tokenizer(),  # type: ignore[arg-type]
        LoadMeter(time.monotonic),
        lambda _job, detokenize: detokenize,
        (ValueError, TypeError),
        vllm,
        lambda: None,
        None,
    )
    passing = asyncio.create_task(jobs.run())
    try:
        yield jobs, vllm
    finally:
        passing.cancel()
        await asyncio.wait({passing})


async def begun(jobs: VllmJobs, vllm: Played, prompt: bytes, spec: SamplingSpec) -> Caller:
    caller = Caller()
    job = Job("job", tuple(prompt), spec, 9)
    jobs.submit(job, caller.deltas.append, caller.faults.append)
    await settled()
    assert not caller.faults
    return caller


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("ends", ["length", "stop string"])
async def test_a_stop_string_of_one_choice_leaves_the_others_alone(ends):
    """The prompt ends inside a character, so stop strings are not vLLM's to find."""
    async with running() as (jobs, vllm):
        spec = SamplingSpec(n=2, stop=("!",))
        caller = await begun(jobs, vllm, "日".encode()[:-1], spec)
        give = vllm.receive["job"]
        give(outputs((0, "日".encode()[-1:], None), (1, "日".encode()[-1:], None)))
        give(outputs((0, b"a!", None), (1, b"b", None)))
        await settled()
        assert caller.finishes() == {0: Finish.STOP}
        # vLLM goes on with the first choice, of which nothing is wanted any more.
        give(outputs((0, b"more!", None), (1, b"c", None)))
        last: tuple[bytes, str | None] = (b"d!", None) if ends == "stop string" else (b"d", ends)
        give(outputs((0, b"x", "length"), (1, *last)))
        await settled()
        expected = Finish.STOP if ends == "stop string" else Finish.LENGTH
        assert caller.finishes() == {0: Finish.STOP, 1: expected}
        assert (caller.text(0), caller.text(1)) == ("日a", "日bcd")
        usage = caller.deltas[-1].usage
        assert usage is not None
        assert not usage.partial
        assert usage.completion == caller.tokens() == 3 + 4 + (ends == "stop string")
        assert vllm.aborted == ["job"]


async def test_vllm_makes_the_text_that_keeps_special_tokens():
    async with running() as (jobs, vllm):
        await begun(jobs, vllm, b"a", SamplingSpec(special_tokens=True))
        await begun(jobs, vllm, b"a", SamplingSpec())
        assert vllm.made_by_vllm == [True, False]


async def test_an_abort_that_vllm_does_not_take_holds_up_no_other_job(monkeypatch, caplog):
    async def broken(_: str) -> None:
        raise RuntimeError("no socket")

    async with running() as (jobs, vllm):
        caller = await begun(jobs, vllm, b"a", SamplingSpec())
        monkeypatch.setattr(vllm, "abort", broken)
        jobs.abort("job")
        assert caller.finishes() == {0: Finish.CANCELLED}
        await begun(jobs, vllm, b"a", SamplingSpec())
        assert len(vllm.made_by_vllm) == 2
        (record,) = caplog.records
        assert (record.levelname, record.cause) == ("WARNING", "RuntimeError")


@pytest.mark.parametrize("error", [ValueError("bad"), RuntimeError("bad")])
async def test_the_end_of_vllm_s_outputs_is_no_fault_of_a_request_that_has_had_none(error):
    async with running() as (jobs, vllm):
        caller = await begun(jobs, vllm, b"a", SamplingSpec())
        vllm.receive["job"](error)  # vLLM does not call itself dead yet
        (fault,) = caller.faults
        assert fault.reason == errors_pb2.ERROR_REASON_BACKEND_LOST
        assert fault.metadata["tokens_delivered"] == "0"


async def test_where_refusals_come_as_outputs_they_are_the_request_s_fault():
    async with running() as (jobs, vllm):
        vllm.refuses_late = True
        caller = await begun(jobs, vllm, b"a", SamplingSpec())
        vllm.receive["job"](ValueError("bad"))
        assert caller.faults[0].reason == errors_pb2.ERROR_REASON_INVALID_REQUEST


async def test_an_answer_that_vllm_breaks_off_is_no_fault_of_the_request():
    async with running() as (jobs, vllm):
        caller = await begun(jobs, vllm, b"a", SamplingSpec())
        vllm.receive["job"](outputs((0, b"ok", None)))
        vllm.receive["job"](outputs((0, b"", "error")))
        await settled()
        assert [f.reason for f in caller.faults] == [errors_pb2.ERROR_REASON_INTERNAL]
        assert vllm.aborted == ["job"]
