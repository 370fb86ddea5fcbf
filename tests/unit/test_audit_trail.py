"""What a trail does while its sinks work, fail and hang: acts are recorded or refused, requests are
noted or refused, and nothing is lost or written twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import grpc
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from anabranch.v1 import errors_pb2, generation_pb2
from services.chassis.audit.detail import AuditDetail
from services.chassis.audit.entry import GENESIS, Act, ChainedEntry, chain
from services.chassis.audit.otlp_sink import OtlpSink
from services.chassis.audit.refusals import MOST_PER_SECOND, Refusals
from services.chassis.audit.requests import LONGEST_CONTENT, RequestAudit
from services.chassis.audit.sink import SinkError
from services.chassis.audit.trail import OMITTED, Trail
from services.chassis.audit.verify import SKIPPED, verify
from services.chassis.errors import Fault, Work
from services.chassis.principal import Principal
from tests.support.audit import SIGNER, MemorySink, act, running
from tests.support.waiting import until


def intact(sink: MemorySink) -> bool:
    lines = [entry.line() for entry in sink.entries]
    heads = [head.line() for head in sink.heads]
    report = verify(lines, heads, public_keys=[SIGNER.public_key])
    assert report.intact, report.findings
    return report.signed == report.last > 0


async def test_a_recorded_act_is_safe_and_under_a_signed_head_when_that_returns() -> None:
    sink = MemorySink()
    async with running(sink) as trail:
        for number in range(3):
            entry = await trail.record(act(number))
            assert entry is not None
            assert sink.entries[-1] == entry
            assert sink.heads[-1].hash == entry.hash


async def test_what_is_noted_is_written_in_its_order_and_signed_at_the_end() -> None:
    sink = MemorySink()
    async with running(sink) as trail:
        for number in range(5000):
            assert trail.note(act(number))
    assert [e.entry.act.details["n"] for e in sink.entries] == list(range(5000))
    assert intact(sink)
    assert sink.calls < 50  # many entries share one writing
    assert len(sink.heads) >= 5


async def test_one_sink_suffices_and_the_other_catches_up() -> None:
    good, bad = MemorySink("good"), MemorySink("bad")
    bad.broken = True
    async with running(good, bad) as trail:
        for number in range(10):
            await trail.record(act(number))
        assert len(good.entries) == 10
        assert trail.accepts
        assert not trail.down
        await until(_is(lambda: trail.lanes[1].failing))
        bad.broken = False
        await until(_is(lambda: not trail.lanes[1].failing))
    assert bad.entries == good.entries
    assert intact(good)
    assert intact(bad)


async def test_acts_are_refused_while_every_sink_fails_and_are_not_done() -> None:
    one, two = MemorySink("one"), MemorySink("two")
    one.broken = two.broken = True
    done = []
    async with running(one, two) as trail:
        for _ in range(3):
            with pytest.raises(Fault) as caught:
                async with trail.act(act(action="backend.drain")):
                    done.append(1)
            assert caught.value.reason == errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
            assert caught.value.work is Work.NOT_DISPATCHED
        one.broken = False
        await until(_is(lambda: not trail.down))
        async with trail.act(act(action="backend.drain")):
            done.append(2)
    assert done == [2]
    # The one that may have been written when it was refused says that it was not done.
    outcomes = [e.entry.act.succeeded for e in one.entries if _phase(e) == "ended"]
    assert outcomes == [False, True]
    assert intact(one)


async def test_an_act_is_in_the_trail_before_it_is_done_and_its_outcome_before_it_is_answered() -> (
    None
):
    sink = MemorySink()
    async with running(sink) as trail:
        async with trail.act(act(action="policy.update")) as outcome:
            assert _phase(sink.entries[-1]) == "begun"
            assert not sink.entries[-1].entry.act.succeeded
            outcome["version"] = "v7"
        ended = sink.entries[-1].entry.act
        assert (ended.succeeded, ended.details["version"]) == (True, "v7")
        assert ended.details["begun"] == sink.entries[-2].entry.sequence
        with pytest.raises(Fault, match="no such"):
            async with trail.act(act(action="policy.update")):
                raise Fault(errors_pb2.ERROR_REASON_NOT_FOUND, "no such policy")
        ended = sink.entries[-1].entry.act
        assert (ended.succeeded, ended.details["error"]) == (False, "NOT_FOUND")


async def test_an_act_whose_outcome_cannot_be_recorded_says_that_it_was_done() -> None:
    sink = MemorySink()
    async with running(sink) as trail:
        with pytest.raises(Fault) as caught:
            async with trail.act(act()):
                sink.broken = True
        assert caught.value.work is Work.MAYBE_BILLED
        sink.broken = False
        await until(_is(lambda: not trail.down))
    assert [_phase(entry) for entry in sink.entries] == ["begun", "ended"]
    assert sink.entries[-1].entry.act.succeeded


async def test_a_cancelled_act_is_written_as_not_done() -> None:
    sink = MemorySink()
    async with running(sink) as trail:
        begun = asyncio.Event()

        async def endless() -> None:
            async with trail.act(act()):
                begun.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(endless())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    ended = sink.entries[-1].entry.act
    assert (ended.succeeded, ended.details["error"]) == (False, "CancelledError")


async def test_a_sink_that_hangs_counts_as_failed_and_is_not_written_to_twice() -> None:
    sink = MemorySink()
    sink.open.clear()
    async with running(sink, timeout=0.05) as trail:
        with pytest.raises(Fault, match="audit trail"):
            await trail.record(act(1))
        assert trail.down
        trail.note(act(2))
        sink.open.set()
        await until(_is(lambda: not trail.down))
        await trail.record(act(3))
    assert [e.entry.act.details["n"] for e in sink.entries] == [1, 2, 3]
    assert intact(sink)


async def test_requests_are_noted_in_memory_then_refused_and_all_are_written_afterwards() -> None:
    sink = MemorySink()
    sink.broken = True
    async with running(sink, spool=100) as trail:
        audit = RequestAudit(trail)
        for number in range(100):
            watched = audit.watch(_request(number), _caller(), _Outlet())
            assert watched is not None
            watched.chunk(_last(), last=True, tokens=1)
        assert not trail.accepts
        with pytest.raises(Fault) as caught:
            audit.watch(_request(0), _caller(), _Outlet())
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        # Those that run may end, until there is no room at all; what is left out is counted.
        notes = [trail.note(act(number)) for number in range(150)]
        assert notes.count(False) == 50
        sink.broken = False
        await until(_is(lambda: trail.accepts))
        assert audit.watch(_request(0), _caller(), _Outlet()) is not None
        await until(_is(lambda: OMITTED in sink.actions))
    assert len(sink.entries) == 201
    assert sink.entries[-1].entry.act.details["count"] == 50
    assert intact(sink)


async def test_a_sink_that_fails_for_too_long_lacks_some_and_the_trail_says_which() -> None:
    good, bad = MemorySink("good"), MemorySink("bad")
    bad.broken = True
    async with running(good, bad, spool=100) as trail:
        await trail.record(act(0))
        await until(_is(lambda: trail.lanes[1].failing))
        for number in range(1, 500):
            await trail.record(act(number))
        assert len(trail.lanes[1]) <= 202
        bad.broken = False
        await until(_is(lambda: SKIPPED in bad.actions))
    assert len(good.entries) > len(bad.entries)
    assert intact(good)
    assert intact(bad)
    # Without that entry the gap is a finding.
    lines = [e.line() for e in bad.entries if e.entry.act.action != SKIPPED]
    assert not verify(lines, [head.line() for head in bad.heads]).intact


async def test_what_is_not_written_at_the_end_does_not_hold_the_process() -> None:
    sink = MemorySink()
    sink.open.clear()
    async with running(sink, timeout=0.01) as trail:
        trail.note(act())
        await until(_is(lambda: trail.down))
    assert sink.entries == []


async def test_without_a_sink_nothing_is_kept_and_nothing_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trail = Trail()
    caplog.set_level("INFO", "anabranch.audit")
    assert trail.note(act())
    assert trail.accepts
    async with trail.act(Act("backend.drain", client_id="admin", target="e1")):
        pass
    (record,) = [r for r in caplog.records if r.name == "anabranch.audit"]
    assert (record.action, record.client, record.target) == ("backend.drain", "admin", "e1")  # type: ignore[attr-defined]
    assert RequestAudit(trail).watch(_request(0), _caller(), _Outlet()) is None


class StoringChain:
    """A chain that keeps what it places, as a database does."""

    stores = True

    def __init__(self) -> None:
        self.rows: list[ChainedEntry] = []
        self.broken = False

    async def extend(self, acts: Sequence[tuple[Act, float]]) -> Sequence[ChainedEntry]:
        if self.broken:
            raise OSError("the database is away")
        placed = []
        for one, when in acts:
            last = self.rows[-1] if self.rows else None
            self.rows.append(chain(last, one, trail="auth", time=when))
            placed.append(self.rows[-1])
        return placed


async def test_a_chain_that_stores_needs_no_sink_and_acts_are_refused_without_it() -> None:
    store, copy = StoringChain(), MemorySink("copy")
    trail = Trail([copy], store, SIGNER)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(trail.run())
        copy.broken = True
        assert await trail.record(act(1)) == store.rows[0]
        store.broken = True
        with pytest.raises(Fault, match="audit trail"):
            await trail.record(act(2))
        store.broken = copy.broken = False
        await until(_is(lambda: not trail.down))
        await trail.record(act(3))
        await trail.finish(30)
        task.cancel()
    assert copy.entries == store.rows
    assert [e.entry.act.details["n"] for e in store.rows] == [1, 2, 3]


# Requests


async def test_a_request_is_one_entry_with_what_it_used_and_without_what_it_said() -> None:
    sink = MemorySink()
    outlet = _Outlet()
    async with running(sink) as trail:
        watched = RequestAudit(trail).watch(_request(7), _caller(), outlet)
        assert watched is not None
        watched.chunk(b"\x1a\x06secret", last=False, tokens=1)
        watched.chunk(_last(), last=True, tokens=1)
        watched.abandoned()
    (entry,) = sink.entries
    one = entry.entry.act
    assert (one.action, one.client_id, one.tenant, one.target) == (
        *("model.generate", "bot", "acme", "river"),
    )
    assert one.succeeded
    assert one.details.pop("ms") >= 0  # type: ignore[attr-defined]
    assert dict(one.details) == {
        "request_id": "r7",
        "finish": "STOP",
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "tier": "CLOUD",
        "backend": "cloud-1",
        "served_model": "river-1",
        "cost_microusd": 12,
    }
    assert outlet.chunks == 2
    assert b"secret" not in entry.line()


async def test_failed_cancelled_and_abandoned_requests_are_entries_too() -> None:
    sink = MemorySink()
    async with running(sink) as trail:
        audit = RequestAudit(trail)
        watched = [audit.watch(_request(n), _caller(), _Outlet()) for n in range(3)]
        assert watched[0] is not None
        assert watched[1] is not None
        assert watched[2] is not None
        watched[0].fail(Fault(errors_pb2.ERROR_REASON_OVERLOADED, "later"))
        watched[1].abandoned()
        cancelled = generation_pb2.GenerateChunk(
            finish_reason=generation_pb2.FINISH_REASON_CANCELLED
        )
        watched[2].chunk(cancelled.SerializeToString(), last=True, tokens=0)
    acts = [entry.entry.act for entry in sink.entries]
    assert [a.succeeded for a in acts] == [False] * 3
    assert [a.details.get("error") for a in acts] == ["OVERLOADED", "CANCELLED", None]


async def test_a_tenant_that_wants_nothing_written_has_nothing_written() -> None:
    sink = MemorySink()
    async with running(sink) as trail:
        assert RequestAudit(trail).watch(_request(0), _caller(AuditDetail.NONE), _Outlet()) is None
    assert sink.entries == []


async def test_contents_are_sealed_for_their_tenant_and_cut() -> None:
    sink = MemorySink()
    sealed: list[tuple[bytes, str, str]] = []

    def seal(plain: bytes, tenant: str, cipher: str) -> bytes:
        sealed.append((plain, tenant, cipher))
        return b"sealed"

    async with running(sink) as trail:
        audit = RequestAudit(trail, seal)
        for text in ("river bank", "\x00é\n" * 100_000):
            request = generation_pb2.GenerateRequest(model="river", prompt=text)
            watched = audit.watch(request, _caller(AuditDetail.CONTENT), _Outlet())
            assert watched is not None
            chunk = generation_pb2.GenerateChunk(text="water " * 3)
            watched.chunk(chunk.SerializeToString(), last=False, tokens=1)
            watched.chunk(_last(), last=True, tokens=1)
    assert [e.entry.act.details["content"] for e in sink.entries] == ["c2VhbGVk"] * 2
    assert sealed[0] == (
        b'{"prompt": "river bank", "answer": "water water water secret", "cut": false}',
        *("acme", "AES_256_GCM"),
    )
    assert len(sealed[1][0]) <= LONGEST_CONTENT
    assert b'"cut": true' in sealed[1][0]
    assert b"water water" in sealed[1][0]


async def test_without_encryption_contents_are_not_written_and_one_warning_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = MemorySink()
    async with running(sink) as trail:
        audit = RequestAudit(trail)
        for number in range(3):
            watched = audit.watch(_request(number), _caller(AuditDetail.CONTENT), _Outlet())
            assert watched is not None
            watched.chunk(_last(), last=True, tokens=1)
    assert all("content" not in e.entry.act.details for e in sink.entries)
    assert len([r for r in caplog.records if "no encryption" in r.message]) == 1


async def test_a_sealer_that_fails_costs_the_content_alone() -> None:
    sink = MemorySink()

    def seal(*_: object) -> bytes:
        raise OSError("no key")

    async with running(sink) as trail:
        watched = RequestAudit(trail, seal).watch(
            _request(0), _caller(AuditDetail.CONTENT), _Outlet()
        )
        assert watched is not None
        watched.chunk(_last(), last=True, tokens=1)
    assert sink.entries[0].entry.act.details["content_omitted"] is True


# Refusals


async def test_refused_callers_are_noted_up_to_a_rate_and_then_counted() -> None:
    sink = MemorySink()
    rejected = Fault(errors_pb2.ERROR_REASON_CREDENTIAL_REJECTED, "no")
    async with running(sink) as trail:
        refusals = Refusals(trail)
        for _ in range(MOST_PER_SECOND + 30):
            refusals("/a.B/C", rejected, "ipv4:10.0.0.1:5")
            refusals("/a.B/C", Fault(errors_pb2.ERROR_REASON_OVERLOADED, "busy"), "x")
        await until(_is(lambda: "refusals.omitted" in sink.actions))
    assert sink.actions == ["rpc.refused"] * MOST_PER_SECOND + ["refusals.omitted"]
    assert sink.entries[-1].entry.act.details["count"] == 30
    assert sink.entries[0].entry.act.peer == "ipv4:10.0.0.1:5"


async def test_refused_callers_do_not_fill_the_memory_that_requests_need() -> None:
    sink = MemorySink()
    sink.broken = True
    async with running(sink, spool=100) as trail:
        refusals = Refusals(trail)
        for _ in range(1000):
            refusals("/a.B/C", Fault(errors_pb2.ERROR_REASON_ACCESS_DENIED, "no"), "")
        assert trail.spooled <= 50
        assert trail.accepts
        sink.broken = False
        await until(_is(lambda: "refusals.omitted" in sink.actions))


# The collector


async def test_a_collector_gets_every_entry_and_head_and_they_verify() -> None:
    bodies: list[tuple[str, str]] = []
    broken = True

    async def take(request: web.Request) -> web.Response:
        got = ExportLogsServiceRequest.FromString(await request.read())
        if broken:
            return web.Response(status=400)
        for resource in got.resource_logs:
            for scope in resource.scope_logs:
                bodies.extend((r.event_name, r.body.string_value) for r in scope.log_records)
        return web.Response(body=b"", content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/v1/logs", take)
    async with TestServer(app) as server:
        sink = OtlpSink(str(server.make_url("")), "router", "router-1")
        with pytest.raises(SinkError):
            await sink.append([chain(None, act(), trail="t", time=1.0)], None)
        async with running(sink) as trail:
            with pytest.raises(Fault):
                await trail.record(act(0))
            broken = False
            await until(_is(lambda: not trail.down))
            for number in range(1, 5):
                await trail.record(act(number))
    lines = [body.encode() + b"\n" for name, body in bodies if name == "anabranch.audit.entry"]
    heads = [body.encode() + b"\n" for name, body in bodies if name == "anabranch.audit.head"]
    report = verify(lines, heads, public_keys=[SIGNER.public_key])
    assert report.intact, report.findings
    assert (report.entries, report.signed) == (5, 5)


# Parts


class _Outlet:
    def __init__(self) -> None:
        self.chunks = 0
        self.faults: list[Fault] = []

    def chunk(self, raw: bytes, *, last: bool, tokens: int) -> None:
        self.chunks += 1

    def fail(self, fault: Fault) -> None:
        self.faults.append(fault)


def _request(number: int) -> generation_pb2.GenerateRequest:
    return generation_pb2.GenerateRequest(
        model="river", request_id=f"r{number}", prompt="secret thoughts"
    )


def _last() -> bytes:
    chunk = generation_pb2.GenerateChunk(
        text="secret", finish_reason=generation_pb2.FINISH_REASON_STOP
    )
    chunk.usage.prompt_tokens, chunk.usage.completion_tokens = 3, 4
    chunk.receipt.tier = generation_pb2.TIER_CLOUD
    chunk.receipt.backend_id, chunk.receipt.served_model = "cloud-1", "river-1"
    chunk.receipt.cost_microusd = 12
    return chunk.SerializeToString()


def _caller(detail: AuditDetail = AuditDetail.METADATA) -> Principal:
    return Principal("bot", "acme", frozenset({"generate"}), 2e9, "jti", audit_detail=detail)


def _phase(chained: ChainedEntry) -> object:
    return chained.entry.act.details.get("phase")


def _is(condition: Callable[[], object]) -> Callable[[], Awaitable[bool]]:
    async def asked() -> bool:
        return bool(condition())

    return asked


def test_the_first_entry_follows_zeros() -> None:
    first = chain(None, act(), trail="t", time=1.0)
    assert first.hash == first.entry.hash_after(GENESIS)
