"""Forms of answers are judged in processes that can be killed: real ones, with a real tokenizer."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from services.local_engine.engine import Constraint, ConstraintKind
from services.local_engine.forms import FormLimits
from services.local_engine.on_vllm import form_guard
from services.local_engine.on_vllm.form_guard import FairQueue, FormGuard
from tests.support.engines import MODEL
from tests.support.waiting import BOUND_S

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
]

# In a test machine's moments of load a limit of half a second says little about a form.
AMPLE = FormLimits(seconds=5.0)
BOMB = "(([a-z]*)*)*x"
"""Compiles in 2 ms, and then holds up the fourth token for longer than anybody has waited."""


@pytest.fixture(scope="module")
def tokenizer() -> str:
    if not MODEL.is_dir():
        pytest.skip("no model: run tools/fetch_model.py")
    from transformers import AutoTokenizer

    from services.local_engine.on_vllm.structured import serialised_tokenizer

    return serialised_tokenizer(AutoTokenizer.from_pretrained(str(MODEL)), 49152)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guard(tokenizer) -> AsyncIterator[FormGuard]:
    async with guarding(tokenizer) as running:
        yield running


@asynccontextmanager
async def guarding(tokenizer: str, limits: FormLimits = AMPLE) -> AsyncIterator[FormGuard]:
    guard = FormGuard(tokenizer, limits)
    task = asyncio.create_task(guard.run())
    try:
        async with asyncio.timeout(60):
            await guard.ready.wait()
        yield guard
    finally:
        task.cancel()
        await asyncio.wait([task])


def schema(**parts: object) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(parts))


ENDLESS = schema(**{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"})


def regex(text: str) -> Constraint:
    return Constraint(ConstraintKind.REGEX, text)


def grammar(text: str) -> Constraint:
    return Constraint(ConstraintKind.GRAMMAR, text)


def choice(*options: str) -> Constraint:
    return Constraint(ConstraintKind.CHOICE, options=options)


async def refusal(guard: FormGuard, form: Constraint) -> Fault:
    with pytest.raises(Fault) as refused:
        async with asyncio.timeout(BOUND_S):
            await guard.check(form, "tenant")
    return refused.value


def children_of(pid: int) -> set[int]:
    """Living descendants of a process, those that have ended but were not yet collected too."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text("ascii", "replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.add(int(stat.parent.name))
    return found


async def test_usual_forms_pass_and_a_repeated_one_costs_nothing(guard):
    usual = [
        Constraint(ConstraintKind.JSON_OBJECT),
        schema(type="object", properties={"name": {"type": "string"}, "age": {"type": "integer"}}),
        schema(),
        schema(type="string", maxLength=10),
        regex(r"[0-9]{3}-[a-z]+"),
        choice("yes", "no", 'a "quoted"\none'),
        grammar('root ::= "a" | "b" root'),
    ]
    before = guard.compiled
    for _ in range(3):
        for form in usual:
            await guard.check(form, "tenant")
    assert guard.compiled == before + len(usual)


@pytest.mark.parametrize(
    ("form", "field", "cause"),
    [
        (regex("(never closed"), "regex", "parenthesis is not closed"),
        (regex(BOMB), "regex", "each token"),
        (regex("(([a-z]+){1,40}){1,40}"), "regex", "each token"),
        (grammar("root ::= missing"), "grammar", "not defined"),
        (grammar('root ::= x x\nx ::= x x | [a-z]* | ""'), "grammar", "each token"),
        (grammar("root ::= " + "(" * 30_000 + '"a"'), "grammar", "Nest"),
        (schema(type="strng"), "json_schema", "strng"),
        (schema(type="string", pattern="("), "json_schema", "parenthesis"),
        (schema(type="number", multipleOf=7), "json_schema", "multipleOf cannot be enforced"),
        (ENDLESS, "json_schema", "no answer"),
    ],
    ids=lambda given: given if isinstance(given, str) else given.text[:12],
)  # fmt: skip
async def test_what_cannot_be_used_is_refused_by_field_and_cause(guard, form, field, cause):
    fault = await refusal(guard, form)
    assert fault.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
    (violation,) = fault.violations
    assert violation.field == f"response_format.{field}"
    assert cause in violation.description


async def test_a_compilation_beyond_its_time_is_killed_and_others_are_judged_meanwhile(tokenizer):
    hard = [schema(type="string", maxLength=5000 + n) for n in range(6)]
    others = children_of(os.getpid())
    async with guarding(tokenizer, FormLimits(seconds=0.25)) as guard:
        (zygote,) = children_of(os.getpid()) - others
        faults = asyncio.gather(
            *(guard.check(form, "noisy") for form in hard), return_exceptions=True
        )
        await guard.check(choice("yes", "no"), "quiet")
        assert not faults.done()  # it did not wait for all of the other tenant's
        for fault in await faults:
            assert isinstance(fault, Fault)
            assert "takes longer than 0.25 s" in str(fault)
        assert children_of(zygote) == set()
    assert children_of(os.getpid()) == others


async def test_the_event_loop_is_not_held_up(tokenizer):
    worst = 0.0

    async def watch() -> None:
        nonlocal worst
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            worst = max(worst, time.thread_time() - before)
            await asyncio.sleep(0.001)

    async with guarding(tokenizer, FormLimits(seconds=0.25)) as guard:
        watching = asyncio.create_task(watch())
        forms = [schema(type="string", maxLength=5000 + n) for n in range(2)]
        await asyncio.gather(*(guard.check(f, "t") for f in forms), return_exceptions=True)
        watching.cancel()
    assert worst < 0.2  # of this thread's own time, whatever else the machine does


async def test_memory_is_bounded(tokenizer):
    async with guarding(tokenizer, FormLimits(seconds=20.0, memory=1 << 20)) as guard:
        fault = await refusal(guard, schema(type="string", maxLength=20_000))
    assert "memory" in str(fault)


async def test_a_form_that_was_too_slow_may_be_tried_again_later(tokenizer):
    now = [0.0]
    form = schema(type="string", maxLength=5000)
    guard = FormGuard(tokenizer, FormLimits(seconds=0.1), clock=lambda: now[0])
    task = asyncio.create_task(guard.run())
    try:
        for moment, judged in ((0.0, 1), (59.0, 1), (61.0, 2)):
            now[0] = moment
            await refusal(guard, form)
            assert guard.compiled == judged
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_those_who_ask_for_the_same_form_share_its_verdict_and_may_give_up(guard):
    before = guard.compiled
    form = schema(type="string", maxLength=30)
    asking = [asyncio.create_task(guard.check(form, "t")) for _ in range(5)]
    await asyncio.sleep(0)
    asking[0].cancel()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [None] * 4
    assert guard.compiled == before + 1


async def test_a_guard_whose_process_dies_starts_another(tokenizer):
    others = children_of(os.getpid())
    async with guarding(tokenizer) as guard:
        (zygote,) = children_of(os.getpid()) - others
        asking = asyncio.create_task(guard.check(schema(type="string", maxLength=5000), "t"))
        while not children_of(zygote):
            await asyncio.sleep(0.01)
        os.kill(zygote, 9)
        with pytest.raises(Fault) as lost:
            await asking
        assert lost.value.reason == errors_pb2.ERROR_REASON_OVERLOADED
        assert lost.value.retry_after
        await guard.check(choice("yes", "no"), "t")
    assert children_of(os.getpid()) == others


async def test_a_tenant_with_too_many_forms_is_told_so_while_another_is_served(guard, monkeypatch):
    monkeypatch.setattr(guard, "_queue", FairQueue(30, 10))
    forms = [choice("a", str(n)) for n in range(20)]
    asking = [asyncio.create_task(guard.check(form, "noisy")) for form in forms]
    await asyncio.sleep(0)
    await guard.check(choice("yes"), "quiet")
    results = await asyncio.gather(*asking, return_exceptions=True)
    refused = [r for r in results if isinstance(r, Fault)]
    assert len(refused) == 20 - 10 - AMPLE.processes
    assert {r.reason for r in refused} == {errors_pb2.ERROR_REASON_OVERLOADED}


async def test_a_kind_of_form_that_the_operator_does_not_offer_is_unsupported():
    guard = FormGuard("", FormLimits(kinds=frozenset({"choice"})))
    fault = await refusal(guard, grammar('root ::= "a"'))
    assert fault.reason == errors_pb2.ERROR_REASON_UNSUPPORTED
    assert fault.metadata["feature"] == "response_format.grammar"


async def test_cve_2025_32381_verdicts_are_forgotten_before_they_fill_the_memory():
    guard = FormGuard("", FormLimits())
    for number in range(3 * form_guard._MOST_VERDICTS):
        guard._remember(number.to_bytes(16), form_guard._Verdict(""))
    assert len(guard._verdicts) == form_guard._MOST_VERDICTS


async def test_keys_of_the_queue_have_turns():
    queue: FairQueue[str] = FairQueue(6, 4)
    for item in ("a1", "a2", "a3", "a4"):
        assert queue.put("a", item)
    assert not queue.put("a", "a5")
    assert queue.put("b", "b1")
    assert queue.put("c", "c1")
    assert not queue.put("d", "d1")
    assert [queue.next() for _ in range(7)] == ["a1", "b1", "c1", "a2", "a3", "a4", None]
