"""What the cloud proxy does with requests: refuses, routes by model name, starts calls.

The wire side is the chassis's, the provider side the upstream client's. No request marked
LOCAL_ONLY passes here, whoever sent it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from anabranch.v1 import errors_pb2, model_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, Violation, invalid
from services.chassis.model_handler import CallContext, Cancel, Outlet
from services.cloud_proxy import estimates
from services.cloud_proxy.budgets import Budgets
from services.cloud_proxy.call import Call
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import Dialect
from services.cloud_proxy.masking.request import Masked, Masker, Unmaskable
from services.cloud_proxy.observe import Observer
from services.cloud_proxy.spending import Money, cost_at_most
from services.cloud_proxy.upstream import Upstream

_log = logging.getLogger(__name__)

_CAPABILITIES = {
    "generate": pb.CAPABILITY_GENERATE,
    "tools": pb.CAPABILITY_TOOLS,
    "structured_output": pb.CAPABILITY_STRUCTURED_OUTPUT,
    "images": pb.CAPABILITY_IMAGES,
    "reasoning": pb.CAPABILITY_REASONING,
    "resume_text": pb.CAPABILITY_RESUME_TEXT,
}
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
        routes: Mapping[str, Route],
        dialects: Mapping[str, Dialect],
        upstream: Upstream,
        masker: Masker,
        observer: Observer,
        budgets: Budgets,
        tasks: TaskStarter,
        *,
        identity: Callable[[], session_pb2.SessionReady],
        max_in_flight: int,
        image_hosts: frozenset[str],
    ) -> None:
        self._routes = dict(routes)
        self._names = {alias: r for r in routes.values() for alias in (r.name, *r.aliases)}
        self._dialects = dialects
        self._upstream = upstream
        self._masker = masker
        self._observer = observer
        self._budgets = budgets
        self._tasks = tasks
        self._identity = identity
        self._max_in_flight = max_in_flight
        self._image_hosts = image_hosts
        self._running = 0
        self._reports = 0

    def open(self, request: pb.GenerateRequest, context: CallContext, outlet: Outlet) -> Cancel:
        """See ModelHandler. Raises Fault to refuse."""
        _check_residency(request)
        route = self._route(request.model)
        self._check_images(request)
        masked = self._mask(request, context)
        # What leaves is what is billed.
        leaving = masked.request if masked is not None else request
        dialect = self._dialects[route.profile.dialect]
        max_tokens = _affordable(leaving, route)
        encoded = dialect.encode_request(leaving, route, max_tokens=max_tokens)
        if self._running >= self._max_in_flight:
            raise Fault(
                errors_pb2.ERROR_REASON_OVERLOADED,
                f"{self._max_in_flight} requests are at providers already",
                retry_after=_BUSY_RETRY_AFTER,
            )
        for parameter in encoded.dropped:
            self._observer.dropped(route, parameter)
            _log.warning(
                "parameter left out: the provider ignores it",
                extra={
                    "request_id": context.request_id,
                    "model": route.name,
                    "parameter": parameter,
                },
            )
        if masked is not None:
            self._observer.masked(route, masked.counts)
        money = Money(self._budgets, context.caller.tenant)
        most = None
        if money.is_limited(route.profile.name):
            # Only where it matters: it takes a walk through the request.
            most = cost_at_most(leaving, route, max_tokens)
        call = Call(
            *(request, route, dialect, encoded, masked, context, outlet, self._observer),
            *(money, most),
        )
        task = self._tasks.create_task(call.run(self._upstream), name=f"call {context.request_id}")
        self._running += 1
        self._observer.running(1)

        def ended(_: asyncio.Task[Any]) -> None:
            # Here, not in the task: one that is cancelled before its first step never runs.
            self._running -= 1
            self._observer.running(-1)
            call.cut_off()

        task.add_done_callback(ended)
        return lambda: _cancel(task)

    async def embed(
        self, request: model_pb2.EmbedRequest, context: CallContext
    ) -> model_pb2.EmbedResponse:
        """Refuses: no dialect embeds yet."""
        route = self._route(request.model)
        raise Fault(
            errors_pb2.ERROR_REASON_UNSUPPORTED,
            f"{route.name} cannot embed",
            metadata={"feature": "embed"},
        )

    async def count_tokens(
        self, request: model_pb2.CountTokensRequest, context: CallContext
    ) -> model_pb2.CountTokensResponse:
        """An estimate: providers keep their tokenizers to themselves."""
        _check_residency(request.request)
        route = self._route(request.model)
        return model_pb2.CountTokensResponse(
            prompt_tokens=estimates.prompt_tokens(request.request),
            context_length=route.model.context_length,
            source=pb.Usage.SOURCE_ESTIMATED,
        )

    async def list_models(self) -> Sequence[pb.ModelInfo]:
        """See ModelHandler."""
        return [_info(route) for route in self._routes.values()]

    def ready(self) -> session_pb2.SessionReady:
        """See ModelHandler."""
        ready = self._identity()
        ready.tier = pb.TIER_CLOUD
        ready.models.extend(_info(route) for route in self._routes.values())
        return ready

    def load(self) -> session_pb2.LoadReport:
        """Requests at providers; nothing waits here."""
        self._reports += 1
        return session_pb2.LoadReport(
            sequence=self._reports, running=self._running, max_running=self._max_in_flight
        )

    def _route(self, name: str) -> Route:
        route = self._names.get(name)
        if route is None:
            raise Fault(
                errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
                "no such model here; ListModels lists them",
                metadata={"model": name[:256]},
            )
        return route

    def _mask(self, request: pb.GenerateRequest, context: CallContext) -> Masked | None:
        try:
            return self._masker.mask(request, context.mask)
        except Unmaskable as cannot:
            raise Fault(
                errors_pb2.ERROR_REASON_UNSUPPORTED,
                str(cannot),
                metadata={"feature": cannot.feature},
            ) from None

    def _check_images(self, request: pb.GenerateRequest) -> None:
        """The provider fetches image addresses, so only hosts the operator trusts are named."""
        found = [
            Violation(f"messages[{m}].content[{p}].image.uri", "is not on the allow-list of hosts")
            for m, message in enumerate(request.messages)
            for p, part in enumerate(message.content)
            if part.image.uri and not self._is_allowed(part.image.uri)
        ]
        if found:
            raise invalid(found)

    def _is_allowed(self, uri: str) -> bool:
        try:
            parts = urlsplit(uri)
            return (
                parts.scheme == "https"
                and parts.hostname in self._image_hosts
                and parts.username is None
                and parts.port in (None, 443)
            )
        except ValueError:
            return False


def _check_residency(request: pb.GenerateRequest) -> None:
    if request.routing.residency == pb.RESIDENCY_LOCAL_ONLY:
        raise Fault(
            errors_pb2.ERROR_REASON_ACCESS_DENIED,
            "this request must not leave: its residency is LOCAL_ONLY",
        )


def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()


def _affordable(request: pb.GenerateRequest, route: Route) -> int | None:
    """The max_tokens that keeps a request within its max_cost; None when it needs no change.

    Raises Fault when prices are unknown, or the prompt alone may cost more.
    """
    if not request.routing.HasField("max_cost_microusd"):
        return None
    prices = route.model.prices
    if prices is None:
        raise Fault(
            errors_pb2.ERROR_REASON_UNSUPPORTED,
            f"what {route.name} costs is not known here, so max_cost_microusd cannot be kept",
            metadata={"feature": "routing.max_cost_microusd"},
        )
    if not (prices.input or prices.output):
        return None
    tokens = estimates.affordable_tokens(request, prices, request.routing.max_cost_microusd)
    if tokens < 1:
        raise Fault(
            errors_pb2.ERROR_REASON_UNSUPPORTED,
            f"{route.name} may cost more than max_cost_microusd for the prompt alone",
            metadata={"feature": "routing.max_cost_microusd"},
        )
    wanted = request.sampling.max_tokens if request.sampling.HasField("max_tokens") else None
    if wanted is not None and wanted <= tokens:
        return None
    rule = route.model.parameters.get("max_tokens")
    caps = [route.model.context_length or tokens, (rule and rule.maximum) or tokens, tokens]
    return int(min(caps))


def _info(route: Route) -> pb.ModelInfo:
    prices = route.model.prices
    return pb.ModelInfo(
        name=route.name,
        context_length=route.model.context_length,
        tiers=[pb.TIER_CLOUD],
        aliases=route.aliases,
        capabilities=sorted(_CAPABILITIES[c] for c in route.model.capabilities),
        provider=route.profile.name,
        served_model=route.model.name,
        prices=None
        if prices is None
        else pb.TokenPrices(
            # What a router allots must also cover prompts that the provider's cache takes in.
            input=max(prices.input, prices.cache_write or 0),
            cached_input=prices.cached_input,
            output=prices.output,
        ),
    )
