"""What runs in vLLM's engine core for us, with the real one: draws by position, and a step that
runs out of memory."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault, Work
from services.local_engine.engine import OUT_OF_MEMORY, Continuation, SamplingSpec
from services.local_engine.on_vllm.engine import VllmEngine
from services.local_engine.on_vllm.options import VllmOptions
from services.local_engine.on_vllm.seeding import DRAWS
from tests.support.engines import MODEL, RunningJob, run_job, until_idle

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]

ROOT = Path(__file__).parents[2]
TOKENS = 24
PROMPT = "Once upon a time there was a river that"


def small_engine() -> VllmEngine:
    from tests.support.memory_shortage import SHORTAGE

    return VllmEngine(
        VllmOptions(
            str(MODEL),
            "smollm2",
            max_num_seqs=16,
            max_model_len=1024,
            kv_cache_gib=1,
            further={"logits_processors": [SHORTAGE]},
        )
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    if not MODEL.is_dir():
        pytest.skip("no model: run tools/fetch_model.py")
    chosen = small_engine()
    await chosen.start()
    yield chosen
    await chosen.close()


def seeded(max_tokens: int = TOKENS, **more: Any) -> SamplingSpec:
    fields: dict[str, Any] = {
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": 50,
        "seed": 7,
        "ignore_eos": True,
    }
    return SamplingSpec(max_tokens=max_tokens, **(fields | more))


def greedy(max_tokens: int) -> SamplingSpec:
    return SamplingSpec(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


@pytest.mark.parametrize("cut", [1, 2, 7, 16, TOKENS - 1])
async def test_a_sampled_answer_cut_anywhere_goes_on_with_the_tokens_it_would_have_had(engine, cut):
    prompt = await engine.encode_text(PROMPT)
    whole = await run_job(engine, prompt, seeded())
    tokens = whole.tokens()
    sent = "".join(d.text for d in whole.deltas if d.first_token < cut)
    rest = await run_job(
        engine, prompt, seeded(TOKENS - cut), continuation=Continuation(tuple(tokens[:cut]), sent)
    )
    assert rest.tokens() == tokens[cut:]
    assert sent + rest.text() == whole.text()


async def test_another_process_goes_on_with_the_same_tokens(engine):
    prompt = await engine.encode_text(PROMPT)
    tokens = (await run_job(engine, prompt, seeded())).tokens()
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.resumed_elsewhere"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    cuts = {str(cut): tokens[:cut] for cut in (3, 11)}
    asked = {"prompt": prompt, "cuts": cuts, "tokens": TOKENS}
    out, _ = await program.communicate(json.dumps(asked).encode())
    found = json.loads(out.splitlines()[-1])
    assert found == {cut: tokens[int(cut) :] for cut in cuts}


@pytest.mark.parametrize("limits", [{}, {"top_k": 0}, {"top_p": 1.0}, {"min_p": 0.1}])
async def test_the_same_seed_gives_the_same_and_another_something_else(engine, limits):
    prompt = await engine.encode_text(PROMPT)
    first = await run_job(engine, prompt, seeded(**limits))
    again = await run_job(engine, prompt, seeded(**limits))
    other = await run_job(engine, prompt, seeded(**limits | {"seed": 8}))
    assert first.tokens() == again.tokens() != other.tokens()


async def test_choices_differ_and_the_first_is_what_one_alone_would_be(engine):
    prompt = await engine.encode_text(PROMPT)
    alone = await run_job(engine, prompt, seeded())
    three = await run_job(engine, prompt, seeded(n=3))
    assert three.tokens(0) == alone.tokens()
    assert len({tuple(three.tokens(n)) for n in range(3)}) == 3


async def test_what_runs_beside_it_does_not_change_a_seeded_answer(engine):
    prompt = await engine.encode_text(PROMPT)
    alone = await run_job(engine, prompt, seeded())
    noise = [
        RunningJob(engine, prompt[: 3 + n], SamplingSpec(max_tokens=5 + 3 * n, temperature=1.2))
        for n in range(4)
    ] + [RunningJob(engine, prompt, greedy(9)), RunningJob(engine, prompt, seeded(13, seed=3))]
    beside = await run_job(engine, prompt, seeded())
    await asyncio.gather(*(job.result() for job in noise))
    assert beside.tokens() == alone.tokens()


async def test_penalties_and_log_probabilities_go_with_draws_by_position(engine):
    prompt = await engine.encode_text(PROMPT)
    spec: dict[str, Any] = {"presence_penalty": 1.5, "logprobs": 3}
    first = await run_job(engine, prompt, seeded(**spec))
    again = await run_job(engine, prompt, seeded(**spec))
    plain = await run_job(engine, prompt, seeded())
    assert first.tokens() == again.tokens() != plain.tokens()
    rows = [row for delta in first.deltas for row in delta.logprobs]
    assert [row[0].token_id for row in rows] == first.tokens()
    assert min(row[0].logprob for row in rows) < -0.01  # the model's own, not those of the draw


@pytest.mark.parametrize("mark", ["IN_FORWARD", "IN_SAMPLING", "ON_THE_CPU"])
async def test_a_request_that_runs_out_of_memory_fails_alone(engine, mark, caplog):
    from tests.support import memory_shortage

    await until_idle(engine)
    prompts = [await engine.encode_text(f"{PROMPT} {n}") for n in range(3)]
    specs = [greedy(40), greedy(40), seeded(40)]
    alone = [(await run_job(engine, *pair)).tokens() for pair in zip(prompts, specs, strict=True)]
    streams = [RunningJob(engine, *pair) for pair in zip(prompts, specs, strict=True)]
    for stream in streams:
        await stream.until(tokens=5)
    marked = [getattr(memory_shortage, mark), *(prompts[0] * 4)]
    with caplog.at_level(logging.ERROR), pytest.raises(Fault) as failed:
        await run_job(engine, marked, greedy(5))
    fault = failed.value
    assert fault.reason == errors_pb2.ERROR_REASON_OVERLOADED
    assert fault.metadata["cause"] == OUT_OF_MEMORY
    assert fault.work is Work.MAYBE_BILLED
    assert fault.retry_after
    assert [r.getMessage() for r in caplog.records].count(
        "out of memory: one request failed, the others are computed again"
    ) == 1
    answers = await asyncio.gather(*(stream.result() for stream in streams))
    assert [answer.tokens() for answer in answers] == alone
    await until_idle(engine)
    assert engine.load().kv_used_tokens == 0
    assert (await run_job(engine, prompts[0], greedy(40))).tokens() == alone[0]


async def test_the_only_request_that_runs_out_of_memory_leaves_an_idle_engine(engine):
    from tests.support.memory_shortage import IN_FORWARD

    await until_idle(engine)
    prompt = await engine.encode_text(PROMPT)
    with pytest.raises(Fault):
        await run_job(engine, [IN_FORWARD, *prompt], greedy(5))
    await until_idle(engine)
    load = engine.load()
    assert (load.running, load.waiting, load.kv_used_tokens) == (0, 0, 0)
    assert len((await run_job(engine, prompt, greedy(5))).tokens()) == 5


@pytest.mark.asyncio(loop_scope="module")
async def test_rows_are_followed_through_every_change_of_the_batch():
    torch = pytest.importorskip("torch")
    from vllm.v1.sample.logits_processor import BatchUpdateBuilder, MoveDirectionality

    from services.local_engine.on_vllm.in_core.exponential_race import Draw, draw
    from services.local_engine.on_vllm.in_core.position_seeds import PositionSeeds

    def request(number: int) -> SimpleNamespace:
        """Every third has no seed, every fifth is greedy, some are second choices."""
        key, choice = 1000 + number, number % 2
        draws = {"seed": key, "first": number % 7, "top_k": number % 4, "top_p": 1.0}
        return SimpleNamespace(
            choice=choice,
            draws=draws,
            seeded=bool(number % 3 and number % 5),
            params=SimpleNamespace(
                extra_args={DRAWS: draws} if number % 3 else None,
                temperature=1.0 if number % 5 else 0.0,
                seed=key + choice if choice else None,
            ),
            output=list(range(number % 11)),
        )

    for trial in range(60):
        chance = random.Random(trial)
        processor, builder = PositionSeeds(None, torch.device("cpu"), False), BatchUpdateBuilder()
        slots: list[SimpleNamespace | None] = []
        for _ in range(30):
            for index, held in enumerate(slots):  # removed first, as vLLM does
                if held is not None and chance.random() < 0.3:
                    slots[index] = None
                    builder.removed_append(index)
            for _ in range(chance.randrange(3)):
                new, free = request(chance.randrange(1000)), builder.pop_removed()
                index = len(slots) if free is None else free
                slots[index : index + 1] = [new]
                builder.added.append((index, new.params, [1], new.output))
            while None in slots:  # condensed: the last one into the first gap
                if slots[-1] is None:
                    slots.pop()
                    continue
                gap = slots.index(None)
                builder.moved.append((len(slots) - 1, gap, MoveDirectionality.UNIDIRECTIONAL))
                slots[gap] = slots.pop()
            if len(slots) > 1 and chance.random() < 0.5:  # reordered
                a, b = chance.sample(range(len(slots)), 2)
                slots[a], slots[b] = slots[b], slots[a]
                builder.moved.append((a, b, MoveDirectionality.SWAP))
            processor.update_state(builder.get_and_reset(len(slots)))
            if not slots:
                continue
            logits = torch.randn(len(slots), 32)
            changed = processor.apply(logits.clone())
            for index, held in enumerate(slots):
                assert held is not None
                if not held.seeded:
                    assert torch.equal(changed[index], logits[index])
                    continue
                position = held.draws["first"] + len(held.output)
                wanted = Draw(held.draws["seed"], held.choice, position, held.draws["top_k"])
                (token,) = draw(logits[index : index + 1], [wanted]).tolist()
                assert changed[index].isfinite().nonzero().flatten().tolist() == [token]
            for held in slots:
                if held is not None and chance.random() < 0.7:
                    held.output.append(0)
