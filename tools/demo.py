"""The demonstration: a whole cluster on this machine, shown at work, then gone without a trace.

    (a) a real model answers, token by token, found through Consul, paid for with a JWT;
    (b) its engine is full: the next request goes through the cloud proxy, a private one waits;
    (c) an engine is killed in the middle of an answer, and the answer goes on elsewhere;
    (d) everything ends, and nothing is left.

It only watches and checks: everything it shows is done by the services themselves.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path

from anabranch import AnabranchError, AsyncClient
from anabranch.streams import AnswerStream
from anabranch.types import Answer, Receipt
from anabranch.vocabulary import OverflowReason, Residency, Tier
from tools.cluster import Cluster, ClusterError, EngineKind, EngineSpec
from tools.cluster.ports import is_free
from tools.cluster.process import ProcessRecord
from tools.cluster.recipes import MODEL, ROOT, SIM_MODEL, at
from tools.narration import Narrator

RUN_DIR = ROOT / ".run/demo"
QUESTION = "What is the capital of France?"
SLOTS = 4
"""Requests that the vLLM engine takes at once here: few, so that it is soon full."""

ENGINES = (
    EngineSpec("vllm-1", EngineKind.VLLM, MODEL, {"MAX_NUM_SEQS": str(SLOTS)}),
    EngineSpec("sim-1", EngineKind.SIM, SIM_MODEL, {"SIM_SLOWDOWN": "6"}),
    EngineSpec("sim-2", EngineKind.SIM, SIM_MODEL, {"SIM_SLOWDOWN": "6"}),
)
SOON = 1.0
"""Seconds to the first token that a full engine cannot promise, and the cloud can."""
RIVER_TOKENS = 120
KILL_AFTER = 40
"""Tokens of the river answer before the engine is killed."""


class DemoFailed(Exception):
    """What was shown is not what should have happened."""


def expect(condition: bool, otherwise: str) -> None:
    """Raises DemoFailed with `otherwise` unless the condition holds."""
    if not condition:
        raise DemoFailed(otherwise)


class Demo:
    """The chapters, on a running cluster."""

    def __init__(self, cluster: Cluster, tell: Narrator) -> None:
        self._cluster = cluster
        self._tell = tell
        self._caller = self._client("demo")
        self._operator = self._client("admin")

    def _client(self, client_id: str) -> AsyncClient:
        return AsyncClient(
            self._cluster.router,
            auth_target=self._cluster.auth,
            client_id=client_id,
            client_secret=self._cluster.credentials[client_id],
        )

    async def run(self) -> None:
        """All chapters that need the cluster."""
        async with self._caller, self._operator:
            with self._tell.chapter("(a) A real model answers"):
                await self._a_real_answer()
            with self._tell.chapter("(b) The engine is full: the branch through the cloud"):
                await self._overflow()
            with self._tell.chapter("(c) An engine is killed in the middle of an answer"):
                await self._killed_midway()

    async def _a_real_answer(self) -> None:
        self._tell.asked("you", QUESTION)
        stream = self._caller.stream(model=MODEL, messages=QUESTION, temperature=0.0, max_tokens=48)
        answer = await self._show(stream, f"{MODEL} (vLLM)")
        receipt = _receipt(answer)
        self._tell.receipt(receipt)
        expect("Paris" in answer.text, f"the model did not say Paris but {answer.text!r}")
        expect(receipt.tier is Tier.LOCAL, f"it was answered by tier {receipt.tier}, not local")
        expect(receipt.backend_id == "vllm-1", f"it was answered by {receipt.backend_id}")
        self._tell.done("answered by the engine that the router found in Consul, over a session")

    async def _overflow(self) -> None:
        self._tell.say(f"{SLOTS} long answers fill all {SLOTS} slots of the engine …")
        async with AsyncExitStack() as fillers:
            async with asyncio.TaskGroup() as starting:
                for number in range(SLOTS):
                    filler = await fillers.enter_async_context(self._long_answer(number))
                    starting.create_task(anext(filler))
            self._tell.done("the engine is full")
            before = await self._provider_requests()

            private = asyncio.create_task(
                self._caller.generate(
                    model=MODEL,
                    messages=QUESTION,
                    temperature=0.0,
                    max_tokens=24,
                    residency=Residency.LOCAL_ONLY,
                )
            )
            try:
                self._tell.asked("you, privately (LOCAL_ONLY)", QUESTION)
                self._tell.say("   … waits for a slot of the local engine")
                self._tell.asked(f"you, wanting a first token within {SOON:g} s", QUESTION)
                stream = self._caller.stream(
                    model=MODEL, messages=QUESTION, max_tokens=32, ttft_slo=SOON
                )
                answer = await self._show(stream, "provider simulator (NOT a model)")
                receipt = _receipt(answer)
                self._tell.receipt(receipt)
                expect(receipt.tier is Tier.CLOUD, f"it was answered by tier {receipt.tier}")
                expect(
                    receipt.overflow_reason is OverflowReason.SATURATED,
                    f"the overflow reason was {receipt.overflow_reason}",
                )
                self._tell.done("answered through the cloud proxy, because local is saturated")
                expect(not private.done(), "the private request did not wait")
                self._tell.done("meanwhile the private request waited")

                self._tell.say("\nThe long answers are cancelled, which frees their slots …")
                await fillers.aclose()
                self._tell.answering(f"{MODEL} (vLLM), to the private request")
                waited = await private
            finally:
                private.cancel()
        self._tell.streamed(waited.text)
        self._tell.end_of_answer()
        receipt = _receipt(waited)
        self._tell.receipt(receipt)
        expect(receipt.tier is Tier.LOCAL, f"the private request left: tier {receipt.tier}")
        sent = await self._provider_requests() - before
        expect(sent == 1, f"the provider saw {sent} requests instead of 1")
        self._tell.done("the provider saw one request: the private one never left")

    def _long_answer(self, number: int) -> AnswerStream:
        return self._caller.stream(
            model=MODEL,
            messages=f"Tell me a long story about river number {number}.",
            max_tokens=1200,
            ignore_eos=True,
            residency=Residency.LOCAL_ONLY,
        )

    async def _killed_midway(self) -> None:
        self._tell.say(f"Two engines of the simulated kind serve {SIM_MODEL}. First, undisturbed:")
        calm = await self._show(self._river(), f"{SIM_MODEL} (simulated)")
        expected = calm.choices[0].token_ids
        expect(len(expected) == RIVER_TOKENS, f"the undisturbed run has {len(expected)} tokens")

        self._tell.say("\nOnce more, and its engine is killed (SIGKILL) on the way:")
        self._tell.answering(f"{SIM_MODEL} (simulated)")
        victim, killed_at = "", 0.0
        longest, last = 0.0, time.monotonic()
        async with self._river() as stream:
            async for chunk in stream:
                now = time.monotonic()
                if victim:
                    longest = max(longest, now - last)
                last = now
                self._tell.streamed(chunk.text)
                if not victim and len(stream.answer.choices[0].token_ids) >= KILL_AFTER:
                    victim = await self._serving_now()
                    killed_at = time.monotonic()
                    await self._cluster.kill(victim)
                    delivered = len(stream.answer.choices[0].token_ids)
                    self._tell.event(f"{victim} killed after {delivered} tokens")
            answer = stream.answer
        self._tell.end_of_answer()
        receipt = _receipt(answer)
        self._tell.receipt(receipt)
        got = answer.choices[0].token_ids
        expect(bool(victim), "the answer was over before the engine could be killed")
        expect(got == expected, _difference(expected, got))
        expect(
            bool(receipt.resumed_at_tokens), "the answer was not resumed but came from one engine"
        )
        self._tell.done(
            f"all {len(got)} tokens are those of the undisturbed run: none lost, none repeated"
        )
        self._tell.done(
            f"the longest pause after the kill was {longest * 1000:,.0f} ms; "
            f"{answer.receipt.backend_id if answer.receipt else ''} finished it "
            f"{time.monotonic() - killed_at:.1f} s later"
        )

    def _river(self) -> AnswerStream:
        return self._caller.stream(
            model=SIM_MODEL,
            messages="How does a river find the sea?",
            max_tokens=RIVER_TOKENS,
            ignore_eos=True,
            temperature=0.0,
            residency=Residency.LOCAL_ONLY,
        )

    async def _serving_now(self) -> str:
        """The name of the engine that works on the river answer."""
        busy = [
            backend.backend_id
            for backend in await self._operator.backends()
            if backend.in_flight and SIM_MODEL in backend.models
        ]
        expect(len(busy) == 1, f"engines at work on it: {busy or 'none'}")
        return busy[0]

    async def _show(self, stream: AnswerStream, who: str) -> Answer:
        """Prints an answer as it comes."""
        self._tell.answering(who)
        async with stream:
            async for chunk in stream:
                self._tell.streamed(chunk.text)
        self._tell.end_of_answer()
        return stream.answer

    async def _provider_requests(self) -> int:
        """How many requests have reached the provider simulator."""
        url = f"http://{at(self._cluster.ports.provider)}/_sim/state"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        answer = await asyncio.to_thread(opener.open, url, None, 5.0)
        with answer:
            return int(json.load(answer)["seen"])


def _receipt(answer: Answer) -> Receipt:
    if answer.receipt is None:
        raise DemoFailed("the answer came without a receipt")
    return answer.receipt


def _difference(expected: tuple[int, ...], got: tuple[int, ...]) -> str:
    for place, (one, other) in enumerate(zip(expected, got, strict=False)):
        if one != other:
            return f"token {place} is {other}, {one} in the undisturbed run"
    return f"{len(got)} tokens instead of {len(expected)}"


async def _show_end(cluster: Cluster, tell: Narrator) -> None:
    records: list[ProcessRecord] = [running.record for running in cluster.processes.values()]
    forced = await cluster.stop()
    left = [f"{record.name} ({record.pid})" for record in records if record.members()]
    expect(not left, f"still running: {', '.join(left)}")
    expect(not forced, f"had to be killed: {', '.join(forced)}")
    taken = [who for who, port in cluster.ports.numbers().items() if not is_free(port)]
    expect(not taken, f"ports still taken: {', '.join(taken)}")
    tell.done(f"{len(records)} processes ended in order; none is left, and no port is taken")


async def demonstrate(run_dir: Path, tell: Narrator) -> None:
    """All of it; leaves no process. Raises DemoFailed, ClusterError or AnabranchError."""
    cluster = Cluster(run_dir, engines=ENGINES, tell=tell.done)
    try:
        with tell.chapter("Starting: Consul, auth, three engines, cloud proxy, router"):
            tell.say(f"Separate processes on free ports; their logs: {cluster.logs}")
            tell.say("vLLM loads its model in about half a minute.")
            await cluster.start()
        await Demo(cluster, tell).run()
        with tell.chapter("(d) Everything ends"):
            await _show_end(cluster, tell)
    finally:
        await asyncio.shield(cluster.stop())


async def _main(tell: Narrator) -> int:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await demonstrate(RUN_DIR, tell)
    except (DemoFailed, ClusterError, AnabranchError) as error:
        tell.failed(str(error), str(RUN_DIR / "logs"))
        return 1
    tell.times()
    return 0


def main() -> int:
    """Exit status 0 when everything was as it should be, 1 when not, 130 when interrupted."""
    tell = Narrator()
    try:
        return asyncio.run(_main(tell))
    except (KeyboardInterrupt, asyncio.CancelledError):
        tell.failed("interrupted; every process was stopped", str(RUN_DIR / "logs"))
        return 130


if __name__ == "__main__":
    sys.exit(main())
