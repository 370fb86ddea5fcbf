"""The routes that a request may take, in order: its own, then what its route falls back to.

Chooses by name and encodes; asks nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects import Dialect, EncodedRequest

_log = logging.getLogger(__name__)

Encode = Callable[[Dialect, Route], EncodedRequest]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request as one route's provider wants it.

    `tokens` estimates what it asks of the provider's rate limits: prompt and answer. `others` says
    whether another provider may be asked instead.
    """

    route: Route
    dialect: Dialect
    encoded: EncodedRequest
    tokens: int = 0
    others: bool = False


class Directory:
    """The routes by every name that they answer to, and the codecs that speak to them."""

    def __init__(self, routes: Mapping[str, Route], dialects: Mapping[str, Dialect]) -> None:
        self.routes = list(routes.values())
        self._names = {alias: r for r in self.routes for alias in (r.name, *r.aliases)}
        self._dialects = dialects

    def find(self, name: str) -> Route:
        """The route of this name. Raises Fault MODEL_NOT_FOUND."""
        route = self._names.get(name)
        if route is None:
            raise Fault(
                errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
                "no such model here; ListModels lists them",
                metadata={"model": name[:256]},
            )
        return route

    def dialect(self, route: Route) -> Dialect:
        """The codec that speaks to a route's provider."""
        return self._dialects[route.profile.dialect]

    def candidates(self, route: Route, encode: Encode, tokens: int) -> Iterator[Candidate]:
        """Encodes lazily, so that a fallback costs nothing until it is needed.

        Raises Fault for the first one only: a fallback that cannot do what is asked is no
        equivalent, and is passed over.
        """
        dialect = self.dialect(route)
        left = len(route.fallbacks)
        yield Candidate(route, dialect, encode(dialect, route), tokens, left > 0)
        for name in route.fallbacks:
            left -= 1
            other = self._names[name]
            dialect = self.dialect(other)
            try:
                yield Candidate(other, dialect, encode(dialect, other), tokens, left > 0)
            except Fault as cannot:
                _log.info(
                    "fallback passed over",
                    extra={"model": route.name, "fallback": name, "cause": cannot.message},
                )
