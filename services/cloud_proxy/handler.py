"""What the cloud proxy does with requests: refuses, routes by model name, starts calls.

The wire side is the chassis's, the provider side the loop of attempts. No request marked
LOCAL_ONLY passes here, whoever sent it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from anabranch.v1 import errors_pb2, model_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault
from services.chassis.model_handler import CallContext, Cancel, Outlet, ids_of
from services.chassis.quotas.money import money_quotas
from services.cloud_proxy import estimates
from services.cloud_proxy.account import cost_of
from services.cloud_proxy.answer import Embedded, ProviderFailure, ProviderUsage
from services.cloud_proxy.asks import Ask, is_advisory
from services.cloud_proxy.attempts import Attempts
from services.cloud_proxy.budgets import Budgets
from services.cloud_proxy.call import Call
from services.cloud_proxy.candidates import Candidate, Directory
from services.cloud_proxy.chunks import ChunkWriter
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import Dialect, EncodedRequest
from services.cloud_proxy.dialects.requests import unsupported
from services.cloud_proxy.failures import to_fault
from services.cloud_proxy.gathering import Gathering
from services.cloud_proxy.masking.embedding import mask_inputs
from services.cloud_proxy.masking.request import Masked, Masker, Unmaskable
from services.cloud_proxy.models import describe
from services.cloud_proxy.observe import Observer
from services.cloud_proxy.refusals import affordable, check_images, check_residency
from services.cloud_proxy.spending import Money, embedding_cost_at_most

_log = logging.getLogger(__name__)

# Providers answer within seconds; a slot is likely free by then.
_BUSY_RETRY_AFTER = 1.0


class TaskStarter(Protocol):
    """Starts work that somebody awaits."""

    def create_task(
        self, work: Coroutine[Any, Any, Any], *, name: str | None = None
    ) -> asyncio.Task[Any]:
        """As asyncio.TaskGroup.create_task."""


class CloudProxy:
    """The ModelHandler of this service."""

    def __init__(
        self,
        directory: Directory,
        attempts: Attempts,
        masker: Masker,
        observer: Observer,
        budgets: Budgets,
        tasks: TaskStarter,
        *,
        identity: Callable[[], session_pb2.SessionReady],
        max_in_flight: int,
        image_hosts: frozenset[str],
        gather: float,
    ) -> None:
        self._directory = directory
        self._attempts = attempts
        self._masker = masker
        self._observer = observer
        self._budgets = budgets
        self._tasks = tasks
        self._identity = identity
        self._max_in_flight = max_in_flight
        self._image_hosts = image_hosts
        self._running = 0
        self._gathering = Gathering(gather, lambda: self._running)
        self._reports = 0

    def open(self, request: pb.GenerateRequest, context: CallContext, outlet: Outlet) -> Cancel:
        """See ModelHandler. Raises Fault to refuse."""
        check_residency(request)
        route = self._directory.find(request.model)
        if "generate" not in route.model.capabilities:
            raise unsupported("generate", f"{route.name} gives vectors only")
        check_images(request, self._image_hosts)
        masked = self._mask(request, context)
        # What leaves is what is billed.
        leaving = masked.request if masked is not None else request
        candidates = self._candidates(leaving, route, context)
        # Encoded before there is a task, so that what cannot be asked is refused at once.
        first = next(candidates)
        self._check_room()
        if masked is not None:
            self._observer.masked(route, masked.counts)
        restorer = masked.restorer() if masked is not None else None
        writer = ChunkWriter(request, context.request_id, restorer, outlet, self._gathering)
        call = Call(
            request,
            leaving,
            _chained(first, candidates),
            route,
            writer,
            context,
            self._observer,
            self._money(context, request.model),
            sum(masked.counts.values()) if masked is not None else 0,
        )
        task = self._tasks.create_task(call.run(self._attempts), name=f"call {context.request_id}")
        self._count(1)

        def ended(_: asyncio.Task[Any]) -> None:
            # Here, not in the task: one that is cancelled before its first step never runs.
            self._count(-1)
            call.cut_off()

        task.add_done_callback(ended)

        def stop() -> None:
            task.cancel()

        return lambda: call.cancelled(stop)

    def _money(self, context: CallContext, model: str) -> Money:
        """Of whoever asks for the model, by the name that the request has for it."""
        caller = context.caller
        return Money(self._budgets, caller.tenant, money_quotas(caller, model))

    async def embed(
        self, request: model_pb2.EmbedRequest, context: CallContext
    ) -> model_pb2.EmbedResponse:
        """See ModelHandler."""
        route = self._directory.find(request.model)
        leaving = self._mask_inputs(request, context)

        def decode(candidate: Candidate, body: bytes) -> Embedded:
            return candidate.dialect.decode_embed(leaving, candidate.route, body)

        size = sum(estimates.tokens_of(len(text.encode())) for text in leaving.inputs)
        money = self._money(context, request.model)
        most = embedding_cost_at_most(leaving, route)
        ask = Ask("embeddings", decode, context, self._observer)
        dialect = self._directory.dialect(route)
        # Never elsewhere: vectors of another model cannot be compared with this one's.
        candidate = Candidate(route, dialect, dialect.encode_embed(leaving, route), size)
        with self._occupied(), money:
            await money.reserve(route.profile.name, most)
            try:
                found = await ask.answer([candidate], self._attempts)
            except ProviderFailure as failure:
                raise to_fault(failure, route, 0, size) from None
            usage = found.usage or ProviderUsage(size, 0, 0, 0)
            cost = cost_of(usage, route)
            money.settle(cost)
        self._observer.usage(route, usage, cost, "embeddings")
        return model_pb2.EmbedResponse(
            embeddings=[model_pb2.Embedding(values=vector) for vector in found.vectors],
            usage=pb.Usage(
                prompt_tokens=usage.prompt,
                source=pb.Usage.SOURCE_PROVIDER if found.usage else pb.Usage.SOURCE_ESTIMATED,
            ),
        )

    async def count_tokens(
        self, request: model_pb2.CountTokensRequest, context: CallContext
    ) -> model_pb2.CountTokensResponse:
        """The provider's own count where it offers one, else an estimate labelled so."""
        asked = request.request
        check_residency(asked)
        check_images(asked, self._image_hosts)
        route = self._directory.find(request.model)
        masked = self._mask(asked, context)
        leaving = masked.request if masked is not None else asked
        dialect = self._directory.dialect(route)
        encoded = dialect.encode_count(leaving, route)
        tokens, source = estimates.prompt_tokens(asked), pb.Usage.SOURCE_ESTIMATED
        if encoded is not None:
            ask = Ask("count_tokens", _decode_count, context, self._observer)
            with self._occupied():
                try:
                    candidate = Candidate(route, dialect, encoded)
                    tokens = await ask.answer([candidate], self._attempts)
                    source = pb.Usage.SOURCE_PROVIDER
                except ProviderFailure as failure:
                    if not is_advisory(failure):
                        raise to_fault(failure, route, 0, tokens) from None
        return model_pb2.CountTokensResponse(
            prompt_tokens=tokens, context_length=route.model.context_length, source=source
        )

    async def list_models(self) -> Sequence[pb.ModelInfo]:
        """See ModelHandler."""
        return [describe(route) for route in self._directory.routes]

    def ready(self) -> session_pb2.SessionReady:
        """See ModelHandler."""
        ready = self._identity()
        ready.tier = pb.TIER_CLOUD
        ready.models.extend(describe(route) for route in self._directory.routes)
        return ready

    def load(self) -> session_pb2.LoadReport:
        """Requests at providers; nothing waits here."""
        self._reports += 1
        return session_pb2.LoadReport(
            sequence=self._reports, running=self._running, max_running=self._max_in_flight
        )

    def _candidates(
        self, request: pb.GenerateRequest, route: Route, context: CallContext
    ) -> Iterator[Candidate]:
        def encode(dialect: Dialect, route: Route) -> EncodedRequest:
            limit = affordable(request, route)
            encoded = dialect.encode_request(request, route, max_tokens=limit)
            for parameter in encoded.dropped:
                self._observer.dropped(route, parameter)
                _log.warning(
                    "parameter left out: the provider ignores it",
                    extra={
                        **ids_of(context),
                        "model": route.name,
                        "parameter": parameter,
                    },
                )
            return encoded

        tokens = estimates.prompt_tokens(request) + request.sampling.max_tokens
        return self._directory.candidates(route, encode, tokens)

    def _check_room(self) -> None:
        if self._running >= self._max_in_flight:
            raise Fault(
                errors_pb2.ERROR_REASON_OVERLOADED,
                f"{self._max_in_flight} requests are at providers already",
                retry_after=_BUSY_RETRY_AFTER,
            )

    def _count(self, change: int) -> None:
        self._running += change
        self._observer.running(change)

    @contextmanager
    def _occupied(self) -> Iterator[None]:
        """One request at a provider, while it lasts. Raises Fault where there is no room."""
        self._check_room()
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _mask(self, request: pb.GenerateRequest, context: CallContext) -> Masked | None:
        try:
            return self._masker.mask(request, context.mask)
        except Unmaskable as cannot:
            raise unsupported(cannot.feature, cannot.why) from None

    def _mask_inputs(
        self, request: model_pb2.EmbedRequest, context: CallContext
    ) -> model_pb2.EmbedRequest:
        try:
            return mask_inputs(self._masker, request, context.mask)
        except Unmaskable as cannot:
            raise unsupported(cannot.feature, cannot.why) from None


def _decode_count(candidate: Candidate, body: bytes) -> int:
    return candidate.dialect.decode_count(candidate.route, body)


def _chained(first: Candidate, others: Iterable[Candidate]) -> Iterator[Candidate]:
    yield first
    yield from others
