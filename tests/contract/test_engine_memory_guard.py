"""A step that runs out of memory, anywhere among requests that come, end and are aborted: vLLM's
own scheduler and steps, planned ahead and not, for both of its model runners."""

from __future__ import annotations

import gc
import random
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from services.local_engine.on_vllm.core_failures import OUT_OF_MEMORY
from tests.support.engines import MODEL

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def little_garbage():
    """The guard collects garbage after each shortage: not that of all tests before, each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


VERSION = "0.32.0"


def config(*, is_async: bool) -> Any:
    if not MODEL.is_dir():
        pytest.skip("no model: run tools/fetch_model.py")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    from services.local_engine.on_vllm.in_core import memory_guard

    found = EngineArgs(
        model=str(MODEL),
        max_model_len=512,
        max_num_seqs=6,
        max_num_batched_tokens=64,
        distributed_executor_backend=UniProcExecutor,
        enable_prefix_caching=True,
    ).create_engine_config()
    found.scheduler_config.async_scheduling = is_async  # which this vLLM has off on a CPU
    assert memory_guard.install(found, VERSION) == ""
    return found


def drive(core: Any, work: list[Any], abort: Any) -> dict[str, list[Any]]:
    """Runs all of `work`, three new ones a step; every output by request."""
    found: dict[str, list[Any]] = {request.request_id: [] for request in work}
    todo = list(work)
    for _ in range(3000):
        for _ in range(min(3, len(todo))):
            core.scheduler.add_request(todo.pop(0))
        if not (todo or core.batch_queue or core.scheduler.has_requests()):
            return found
        abort(core)
        outputs, _ = core.step_fn()
        for client, batch in (outputs or {}).items():
            for output in batch.outputs:
                assert client == 3
                found[output.request_id].append(output)
    raise AssertionError("the work does not end")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("second_runner", [False, True])
def test_every_other_request_gets_the_tokens_that_it_would_have_got(is_async, second_runner):
    from vllm.v1.engine import FinishReason

    from tests.support.stand_in_worker import core_of, next_token, request

    chosen = config(is_async=is_async)
    shortages = 0
    for trial in range(6):
        chance = random.Random(trial)
        in_a_row = failed = 0

        def shortage(step: Any, chance: random.Random = chance) -> str:
            nonlocal in_a_row, failed
            if in_a_row == 2 or chance.random() > 0.08:
                in_a_row = 0
                return ""
            in_a_row, failed = in_a_row + 1, failed + 1
            return chance.choice(("forward", "sampling"))

        aborted: set[str] = set()

        def abort(core: Any, chance: random.Random = chance, aborted: set[str] = aborted) -> None:
            if core.scheduler.requests and chance.random() < 0.05:
                name = chance.choice(sorted(core.scheduler.requests))
                aborted.add(name)
                core.aborts_queue.put_nowait([name])

        # Few blocks: some are preempted for want of them as well.
        core, runner = core_of(chosen, shortage, second_runner=second_runner, blocks=40)
        lengths = {f"r{n}": chance.randrange(1, 40) for n in range(14)}
        work = [request(name, chance, length) for name, length in lengths.items()]
        prompts = {r.request_id: list(r.prompt_token_ids or ()) for r in work}
        outputs = drive(core, work, abort)
        shortages += failed
        victims = 0
        for name, parts in outputs.items():
            tokens = [token for part in parts for token in part.new_token_ids]
            context = list(prompts[name])
            for token in tokens:
                assert token == next_token(context), (trial, name)
                context.append(token)
            ends = [part for part in parts if part.finish_reason is not None]
            if name in aborted and not ends:
                continue
            (end,) = ends
            assert end is parts[-1]
            if end.finish_reason == FinishReason.ERROR:
                victims += 1
                assert end.stop_reason.startswith(OUT_OF_MEMORY)
            else:
                assert end.finish_reason == FinishReason.LENGTH
                assert len(tokens) == lengths[name]
        assert failed - len(aborted) <= victims <= failed
        assert core.scheduler.kv_cache_manager.usage == 0
        assert not core.scheduler.requests
        assert runner.execute_model_state is None
    assert shortages > 12


@pytest.mark.parametrize("is_async", [False, True])
def test_the_third_shortage_in_a_row_is_the_end(is_async):
    from tests.support.stand_in_worker import core_of, request

    steps = []

    def always(step: Any) -> str:
        steps.append(step)
        return "forward"

    core, _ = core_of(config(is_async=is_async), always, second_runner=False, blocks=40)
    work = [request(f"r{n}", random.Random(n), 5) for n in range(6)]
    with pytest.raises(MemoryError, match="3 steps in a row"):
        drive(core, work, lambda _: None)
    assert len(steps) == 3


def test_what_is_no_lack_of_memory_is_not_survived():
    from tests.support.stand_in_worker import core_of, request

    def broken(step: Any) -> str:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    core, _ = core_of(config(is_async=False), broken, second_runner=False, blocks=40)
    with pytest.raises(RuntimeError, match="illegal"):
        drive(core, [request("r", random.Random(0), 5)], lambda _: None)


def test_where_the_guard_is_unsafe_it_stays_off_and_says_why():
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    from services.local_engine.on_vllm.in_core.memory_guard import install

    def asked(backend: Any = "uni", **more: Any) -> SimpleNamespace:
        return SimpleNamespace(
            parallel_config=SimpleNamespace(
                distributed_executor_backend=backend, data_parallel_size=more.pop("cores", 1)
            ),
            scheduler_config=SimpleNamespace(
                scheduler_cls=more.pop("scheduler", None), async_scheduling=True
            ),
            **more,
        )

    assert install(asked(UniProcExecutor), VERSION) == install(asked(), "0.25.1") == ""
    for wrong in (
        asked("mp"),
        asked(cores=2),
        asked(scheduler="other.Scheduler"),
        asked(speculative_config=object()),
        asked(kv_transfer_config=object()),
    ):
        before = wrong.parallel_config.distributed_executor_backend
        assert install(wrong, VERSION)
        assert wrong.parallel_config.distributed_executor_backend is before
    assert "unknown" in install(asked(), "0.34.0")


@pytest.mark.parametrize(
    ("module", "owner", "method", "other"),
    [
        ("core.sched.scheduler", "Scheduler", "reset_prefix_cache", lambda self: True),
        ("executor.uniproc_executor", "UniProcExecutor", "sample_tokens", lambda self, grammar: 0),
        ("executor.uniproc_executor", "UniProcExecutor", "execute_model", None),
    ],
)
def test_a_vllm_whose_parts_are_called_otherwise_is_left_unguarded_and_they_are_named(
    module, owner, method, other, monkeypatch
):
    from services.local_engine.on_vllm.in_core.memory_guard import install

    monkeypatch.setattr(f"vllm.v1.{module}.{owner}.{method}", other)
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(distributed_executor_backend="uni"),
        scheduler_config=SimpleNamespace(scheduler_cls=None, async_scheduling=True),
    )
    assert f"{owner}.{method}" in install(config, VERSION)
    assert config.parallel_config.distributed_executor_backend == "uni"


def test_a_vllm_without_the_guard_s_parts_starts_without_it(monkeypatch):
    from services.local_engine.on_vllm.loading import guard_memory

    monkeypatch.delitem(
        sys.modules, "services.local_engine.on_vllm.in_core.memory_guard", raising=False
    )
    monkeypatch.delattr("services.local_engine.on_vllm.in_core.memory_guard", raising=False)
    monkeypatch.setitem(sys.modules, "vllm.v1.core.sched.async_scheduler", None)
    assert "vllm.v1.core.sched.async_scheduler" in guard_memory(None, VERSION)
