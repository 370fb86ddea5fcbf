"""Several engines as one process: their load, what their caches hold, and what dead ones said."""

from __future__ import annotations

import asyncio

import pytest

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from services.chassis.prefix_log import PrefixLog, PrefixReader
from services.local_engine.engine import EngineLoad
from services.local_engine.joint_prefixes import JointPrefixLog
from services.local_engine.on_vllm.model_load import cause_in
from services.local_engine.registry_meta import listed
from services.local_engine.roster import Served, total
from services.local_engine.simulation.engine import SimEngine


def test_counts_of_engines_add_up_and_the_pace_is_the_busiest_ones():
    idle = EngineLoad(kv_total_tokens=100, max_running=8, step_time=0.5)
    busy = EngineLoad(running=3, waiting=1, kv_total_tokens=50, max_running=4, step_time=0.1)
    both = total([idle, busy])
    assert (both.running, both.waiting, both.kv_total_tokens, both.max_running) == (3, 1, 150, 12)
    assert both.step_time == 0.1
    assert total([busy]) is busy


def told(reader: PrefixReader, known: set[int]) -> set[int]:
    """What a session knows after it has heard everything."""
    while (events := reader.next()) is not None:
        if events.cleared:
            known.clear()
        known.update(events.stored)
        known.difference_update(events.removed)
    return known


def test_a_name_is_held_while_any_engine_holds_it():
    one, two, joint = PrefixLog(), PrefixLog(), JointPrefixLog()
    joint.add(one)
    reader, known = PrefixReader(joint), set[int]()
    one.stored(1)
    one.stored(2)
    assert told(reader, known) == {1, 2}
    joint.add(two)
    two.stored(2)
    two.stored(3)
    assert told(reader, known) == {1, 2, 3}
    one.clear()
    assert told(reader, known) == {2, 3}
    one.stored(1)
    joint.discard(two)
    assert told(reader, known) == {1}
    assert not reader.waits


def test_the_cause_is_the_last_error_that_says_something():
    lines = [
        "INFO loading",
        "(EngineCore pid=7) Traceback (most recent call last):",
        "(EngineCore pid=7) ValueError: No available memory for the cache blocks.",
        "Process EngineCore:",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    assert cause_in(lines) == "No available memory for the cache blocks."
    assert cause_in(["torch.OutOfMemoryError: CUDA out of memory."]) == "CUDA out of memory."
    assert cause_in(["nothing"]) == ""


def test_the_registry_is_told_whole_names_and_no_more_than_it_holds():
    assert listed(["a", "b"]) == "a,b"
    names = [f"model-{number:03}" for number in range(100)]
    text = listed(names)
    assert len(text) <= 512
    assert text.split(",") == names[: len(text.split(","))]


async def asks(served: Served) -> None:
    with served.asked():
        await asyncio.Event().wait()


async def test_a_question_that_is_cut_fails_as_lost_and_one_whose_asker_leaves_is_cancelled():
    served = Served("river", SimEngine())
    cut, gone = (asyncio.create_task(asks(served)) for _ in range(2))
    await asyncio.sleep(0)
    assert served.in_flight == 2
    gone.cancel()
    await asyncio.wait({gone})
    assert gone.cancelled()
    assert served.cut("it leaves") == 1
    with pytest.raises(Fault, match="it leaves") as lost:
        await cut
    assert lost.value.reason == errors_pb2.ERROR_REASON_BACKEND_LOST
    assert served.in_flight == 0
    await served.idle()


async def test_a_question_that_is_cut_and_whose_asker_leaves_as_well_is_cancelled():
    served = Served("river", SimEngine())
    asking = asyncio.create_task(asks(served))
    await asyncio.sleep(0)
    asking.cancel()
    served.cut("it leaves")
    await asyncio.wait({asking})
    assert asking.cancelled()
