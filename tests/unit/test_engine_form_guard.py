"""Forms of answers are judged in processes that can be killed: real ones, with a real tokenizer."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from services.local_engine.engine import Constraint, ConstraintKind
from services.local_engine.forms import FormLimits
from services.local_engine.on_vllm import form_guard
from services.local_engine.on_vllm.form_guard import FormGuard
from services.local_engine.on_vllm.form_queue import FairQueue, Verdicts
from tests.support.engines import MODEL
from tests.support.waiting import BOUND_S, until

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
async def guarding(
    tokenizer: str, limits: FormLimits = AMPLE, **more: Any
) -> AsyncIterator[FormGuard]:
    guard = FormGuard(tokenizer, limits, **more)
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


async def test_any_object_is_judged_before_anybody_asks_for_it(tokenizer):
    async with guarding(tokenizer) as guard:

        async def judged() -> bool:
            return len(guard._verdicts) == 1

        await until(judged)
        await guard.check(Constraint(ConstraintKind.JSON_OBJECT), "tenant")
        assert guard.compiled == 1


async def test_usual_forms_pass_and_a_repeated_one_costs_nothing(guard):
    usual = [
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
        (schema(type="string", pattern='a"b'), "json_schema", "that JSON escapes"),
        (regex("(?!no)[a-z]+"), "regex", "a lookaround cannot be enforced"),
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


async def test_an_expression_that_this_xgrammar_would_not_escape_is_refused(tokenizer, tmp_path):
    """What judges says which xgrammar it has: here the one of vLLM 0.25, which escapes nothing."""
    program = tmp_path / "older.py"
    program.write_text(OLDER.format(path=str(form_guard._PROGRAM)))
    doubted = schema(type="string", pattern="yes|no")
    async with guarding(tokenizer) as guard:
        if not guard._raw_patterns:
            await guard.check(doubted, "t")
    async with guarding(tokenizer, program=program) as guard:
        fault = await refusal(guard, doubted)
        assert "a choice that is not in parentheses" in str(fault)
        await guard.check(schema(type="string", pattern="(yes|no)"), "t")


OLDER = """
import runpy
names = runpy.run_path({path!r}, run_name="form_compiler")
names["Compiler"].raw_patterns = property(lambda self: True, lambda self, value: None)
names["main"]()
"""


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


DEEP = "root ::= r0\n" + "".join(f'r{n} ::= "b" r{n + 1} | r{n + 1}\n' for n in range(2000))
DEEP += 'r2000 ::= "a"'
"""A grammar of rules within rules, which takes some hundred MiB to compile."""


@pytest.mark.parametrize(
    ("limits", "form", "cause"),
    [
        (FormLimits(seconds=10.0, memory=1 << 20), grammar(DEEP), "more memory"),
        (FormLimits(seconds=0.1), schema(type="string", maxLength=5000), "takes longer"),
    ],
    ids=["memory", "time"],
)
async def test_what_the_machine_lacked_is_not_held_against_a_form_for_ever(
    tokenizer, limits, form, cause
):
    now = [0.0]
    async with guarding(tokenizer, limits, clock=lambda: now[0]) as guard:
        if "memory" in cause and guard._raw_patterns:
            pytest.skip("this version of xgrammar takes less memory for it than is left")
        before = guard.compiled
        for moment, judged in ((0.0, 1), (59.0, 1), (61.0, 2), (180.0, 2), (182.0, 3)):
            now[0] = moment
            assert cause in str(await refusal(guard, form))
            assert guard.compiled == before + judged


async def test_what_is_wrong_with_a_form_is_remembered(tokenizer):
    now = [0.0]
    async with guarding(tokenizer, clock=lambda: now[0]) as guard:
        await refusal(guard, regex("(never closed"))
        before = guard.compiled
        now[0] = 1e6
        await refusal(guard, regex("(never closed"))
        assert guard.compiled == before


async def test_the_size_of_the_machine_s_stacks_is_not_taken_from_a_form_s_memory(tokenizer):
    """Eight threads of 64 MiB each are as much as a form may take: xgrammar then hangs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if hard != resource.RLIM_INFINITY and hard < 1 << 26:
        pytest.skip("the stack cannot be made larger here")
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 26, hard))
    try:
        async with guarding(tokenizer, FormLimits(seconds=10.0, memory=32 << 20)) as guard:
            await guard.check(schema(type="string", maxLength=30), "t")
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


CRASHING = """
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("form_compiler", {path!r})
program = importlib.util.module_from_spec(spec)
sys.modules["form_compiler"] = program
spec.loader.exec_module(program)
judge = program.Compiler._compile
def compile(self, kind, text):
    if "crash" in text:
        os.kill(os.getpid(), signal.SIGSEGV)
    return judge(self, kind, text)
program.Compiler._compile = compile
program.main()
"""
"""What judges, but that some forms crash it."""


async def test_cve_2026_25048_a_form_that_crashes_its_compiler_ends_alone_and_is_told_of(
    tokenizer, tmp_path, caplog
):
    program = tmp_path / "crashing.py"
    program.write_text(CRASHING.format(path=str(form_guard._PROGRAM)))
    now = [0.0]
    with caplog.at_level(logging.INFO, "services.local_engine.on_vllm.form_guard"):
        async with guarding(tokenizer, clock=lambda: now[0], program=program) as guard:
            (zygote,) = [pid for pid in children_of(os.getpid()) if is_running(pid, program)]
            before = guard.compiled
            for moment, judged in ((0.0, 1), (30.0, 1), (90.0, 2)):
                now[0] = moment
                fault = await refusal(guard, choice("crash"))
                assert fault.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
                assert "crashes the compiler (SIGSEGV)" in str(fault)
                assert guard.compiled == before + judged
            await guard.check(choice("yes", "no"), "t")
            assert is_running(zygote, program)
    told = [record for record in caplog.records if "could not be judged" in record.message]
    assert len(told) == 2
    assert "SIGSEGV" in told[0].cause  # type: ignore[attr-defined]
    assert "crash" not in caplog.text.replace("crashes the compiler", "")


def is_running(pid: int, program: Path) -> bool:
    try:
        return str(program) in Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace")
    except OSError:
        return False


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


async def test_a_guard_that_cannot_begin_its_process_says_so_and_tries_again(
    tokenizer, monkeypatch, caplog
):
    begin, refused = asyncio.create_subprocess_exec, asyncio.Event()

    async def refusing(*command: Any, **more: Any) -> Any:
        if not refused.is_set():
            refused.set()
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return await begin(*command, **more)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refusing)
    guard = FormGuard(tokenizer, AMPLE)
    early = asyncio.create_task(guard.check(choice("early"), "t"))
    await asyncio.sleep(0)
    task = asyncio.create_task(guard.run())
    try:
        with pytest.raises(Fault) as told:
            await early
        assert told.value.reason == errors_pb2.ERROR_REASON_OVERLOADED
        assert os.strerror(errno.EAGAIN) in str(told.value)
        fault = await refusal(guard, choice("at once"))
        assert os.strerror(errno.EAGAIN) in str(fault)
        assert fault.retry_after
        assert os.strerror(errno.EAGAIN) in caplog.records[-1].cause  # type: ignore[attr-defined]
        async with asyncio.timeout(BOUND_S):
            await guard.ready.wait()
        await guard.check(choice("early"), "t")
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("raise SystemExit(3)", "status 3"),
        ("""print('{"failed": "ImportError: no xgrammar"}')""", "ImportError: no xgrammar"),
        ("print('nonsense')", "nobody understands"),
    ],
)
async def test_a_guard_whose_process_comes_to_nothing_says_why(tmp_path, caplog, text, cause):
    program = tmp_path / "program.py"
    program.write_text(text)
    guard = FormGuard("", AMPLE, program=program)
    task = asyncio.create_task(guard.run())
    try:
        fault = await refusal(guard, choice("yes"))
        assert cause in str(fault)
        assert cause in caplog.records[-1].cause  # type: ignore[attr-defined]
    finally:
        task.cancel()
        await asyncio.wait([task])
    # And once it has been ended nobody waits for it.
    assert "the engine ends" in str(await refusal(guard, choice("yes")))


async def test_a_tokenizer_that_cannot_be_read_is_told_as_the_cause(caplog):
    guard = FormGuard("not a tokenizer", AMPLE)
    task = asyncio.create_task(guard.run())
    try:
        fault = await refusal(guard, choice("yes"))
        assert "InvalidJSONError" in str(fault)
    finally:
        task.cancel()
        await asyncio.wait([task])


class Busy:
    """A guard one of whose forms takes long, so that others wait. It judges one at a time."""

    def __init__(self, guard: FormGuard) -> None:
        self.guard = guard
        self.done: list[str] = []
        self._asking: list[asyncio.Task[None]] = []

    async def ask(self, tenant: str, word: str) -> asyncio.Task[None]:
        async def asking() -> None:
            await self.guard.check(choice(word), tenant)
            self.done.append(f"{tenant} {word}")

        task = asyncio.create_task(asking())
        self._asking.append(task)
        await asyncio.sleep(0)
        return task


@pytest_asyncio.fixture(loop_scope="module")
async def busy(tokenizer) -> AsyncIterator[Busy]:
    async with guarding(tokenizer, FormLimits(seconds=5.0, processes=1)) as guard:
        await guard.check(choice("the guard's own form is through"), "t")
        slow = asyncio.create_task(guard.check(schema(type="string", maxLength=3000), "slow"))
        await asyncio.sleep(0)
        assert len(guard._judged) == 1
        yield Busy(guard)
        await asyncio.wait([slow])


async def test_a_form_that_another_tenant_waits_for_is_judged_when_one_s_own_turn_comes(busy):
    noisy = [await busy.ask("noisy", str(number)) for number in range(20)]
    quiet = await busy.ask("quiet", "19")  # the last of the other's
    await asyncio.gather(quiet, *noisy)
    assert busy.done.index("quiet 19") <= 3
    assert busy.done.index("noisy 19") <= 3
    assert busy.done[-1] == "noisy 18"
    assert len(busy.guard._queue) == 0


async def test_a_form_that_nobody_waits_for_any_more_is_not_judged(busy):
    before = busy.guard.compiled
    gone = [await busy.ask("gone", str(number)) for number in range(5)]
    shared = await busy.ask("stays", "4")
    for task in gone:
        task.cancel()
    await asyncio.wait(gone)
    assert len(busy.guard._queue) == 1
    assert len(busy.guard._open) == 2
    await shared
    assert busy.done == ["stays 4"]
    assert busy.guard.compiled == before + 1


async def test_a_tenant_with_too_many_forms_is_told_so_while_another_is_served(guard, monkeypatch):
    monkeypatch.setattr(guard, "_queue", FairQueue(30, 10))
    forms = [choice("a", str(n)) for n in range(20)]
    asking = [asyncio.create_task(guard.check(form, "noisy")) for form in forms]
    await asyncio.sleep(0)
    await guard.check(choice("yes"), "quiet")
    results = await asyncio.gather(*asking, return_exceptions=True)
    refused = [r for r in results if isinstance(r, Fault)]
    assert len(refused) == 20 - 10 - AMPLE.processes
    assert len(guard._queue) == 0
    assert {r.reason for r in refused} == {errors_pb2.ERROR_REASON_OVERLOADED}


async def test_a_kind_of_form_that_the_operator_does_not_offer_is_unsupported():
    guard = FormGuard("", FormLimits(kinds=frozenset({"choice"})))
    fault = await refusal(guard, grammar('root ::= "a"'))
    assert fault.reason == errors_pb2.ERROR_REASON_UNSUPPORTED
    assert fault.metadata["feature"] == "response_format.grammar"


async def test_a_refusal_that_costs_nothing_takes_nobody_s_place_among_what_is_remembered():
    guard = FormGuard("", FormLimits())
    for number in range(3):
        await refusal(guard, schema(type="number", multipleOf=number))
        await refusal(guard, regex(f"(?=a){number}"))
    assert len(guard._verdicts) == 0


async def test_cve_2025_32381_verdicts_are_forgotten_before_they_fill_the_memory():
    verdicts = Verdicts(form_guard._MOST_VERDICTS)
    for number in range(3 * form_guard._MOST_VERDICTS):
        verdicts.add(number.to_bytes(16), "", 0.0)
    assert len(verdicts) == form_guard._MOST_VERDICTS


async def test_keys_of_the_queue_have_turns():
    queue: FairQueue[str] = FairQueue(6, 4)
    for item in ("a1", "a2", "a3", "a4"):
        assert queue.put("a", item)
    assert not queue.put("a", "a5")
    assert queue.put("b", "b1")
    assert queue.put("c", "c1")
    assert not queue.put("d", "d1")
    assert [queue.next() for _ in range(7)] == ["a1", "b1", "c1", "a2", "a3", "a4", None]
