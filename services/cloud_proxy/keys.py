"""The keys of one account: whose turn it is, and which are left alone for how long. Pure.

Time is passed in and counts in seconds. Where keys come from is not known here, and no secret
shows in anything but `Key.secret`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum

from services.chassis.settings import Secret
from services.cloud_proxy.key_breaker import ROUNDING, KeyBreaker, Rest
from services.cloud_proxy.rate_limits import LimitKind, RateLimit

# No provider's word holds longer than this; after it, one request finds out anew.
_LONGEST_COOLING = 60.0
_FIRST_REST = 30.0
_LONGEST_REST = 600.0


@dataclass(frozen=True, slots=True)
class AccountKey:
    """A key as it is configured. Keys of the same `quota` share limits and credit; "" is a quota
    of the key's own."""

    secret: Secret | None
    quota: str = ""


class Blocked(IntEnum):
    """Why a key is not used now, the gravest last."""

    LIMITED = 1
    FAILING = 2
    NO_CREDIT = 3
    REJECTED = 4


@dataclass(slots=True)
class _Left:
    """What is left of a limit until `until`, less what was sent since it was read."""

    amount: int
    until: float


@dataclass(slots=True)
class _Quota:
    """What keys have in common whose limits are one. By model, or under "" for all of them."""

    cooling: dict[str, float] = field(default_factory=dict)
    limits: dict[str, dict[LimitKind, _Left]] = field(default_factory=dict)
    credit: Rest = field(default_factory=lambda: Rest(_FIRST_REST, _LONGEST_REST))


class Key:
    """One key in use. `number` names it in logs and spans, and is never given to another."""

    __slots__ = ("breaker", "in_flight", "number", "quota", "quota_name", "rejection", "secret")

    def __init__(self, number: int, secret: Secret | None, quota_name: str, quota: _Quota) -> None:
        self.number = number
        self.secret = secret
        self.quota_name = quota_name
        self.quota = quota
        self.breaker = KeyBreaker()
        self.rejection = Rest(_FIRST_REST, _LONGEST_REST)
        self.in_flight = 0


@dataclass(frozen=True, slots=True)
class KeyState:
    """How a key is, without what it is. `blocked` None: usable, if perhaps not for every model."""

    number: int
    blocked: Blocked | None
    in_flight: int


class KeyPool:
    """Hands out keys in turn. Without keys it hands out one that has no secret."""

    def __init__(
        self, keys: Sequence[AccountKey], clock: Callable[[], float], *, per_model: bool
    ) -> None:
        """`per_model` says whether limits hold for each model or for all of them together."""
        self._clock = clock
        self._per_model = per_model
        self._keys: list[Key] = []
        self._made = 0
        self._next = 0
        self.replace(keys)

    def replace(self, keys: Sequence[AccountKey]) -> None:
        """Uses these keys from now on. What is known of keys and quotas that stay is kept;
        attempts that are under way end with the keys they have."""
        known = {key.secret: key for key in self._keys}
        quotas = {key.quota_name: key.quota for key in self._keys if key.quota_name}
        wanted = {key.secret: key for key in keys} or {None: AccountKey(None)}
        following = self._keys[self._next :] + self._keys[: self._next]
        self._keys = [self._kept(key, known.get(key.secret), quotas) for key in wanted.values()]
        # Whose turn it was keeps it, so that frequent changes starve no key.
        places = {id(key): place for place, key in enumerate(self._keys)}
        self._next = next((places[id(key)] for key in following if id(key) in places), 0)

    def _kept(self, wanted: AccountKey, known: Key | None, quotas: dict[str, _Quota]) -> Key:
        if known is not None and known.quota_name == wanted.quota:
            return known
        quota = quotas.setdefault(wanted.quota, _Quota()) if wanted.quota else _Quota()
        if known is not None:
            # The key itself is the same, it only shares its limits with others now.
            known.quota_name, known.quota = wanted.quota, quota
            return known
        self._made += 1
        return Key(self._made - 1, wanted.secret, wanted.quota, quota)

    def pick(self, model: str, tokens: int, prefer: Key | None = None) -> Key | None:
        """The next key that may be used for a request of about so many tokens; None for none.
        `prefer` is taken if it may be.

        What is picked counts as used only within `using`.
        """
        now = self._clock()
        if prefer in self._keys and not any(self._obstacles(prefer, model, tokens, now)):
            return prefer
        for step in range(len(self._keys)):
            place = (self._next + step) % len(self._keys)
            key = self._keys[place]
            if not any(self._obstacles(key, model, tokens, now)):
                self._next = (place + 1) % len(self._keys)
                return key
        return None

    @contextmanager
    def using(self, key: Key, model: str, tokens: int) -> Iterator[None]:
        """Around one attempt with a key that was just picked, with no wait in between.

        However the attempt ends, a probe's place is given back.
        """
        for kind, left in key.quota.limits.get(self._scope(model), {}).items():
            left.amount -= _need(kind, tokens)
        place = key.breaker.enter(self._clock())
        key.in_flight += 1
        try:
            yield
        finally:
            key.in_flight -= 1
            key.breaker.leave(place)

    def observe(self, key: Key, model: str, limits: Sequence[RateLimit]) -> None:
        """What a response's headers say is left; to be told as soon as they are read."""
        now = self._clock()
        if limits:
            known = key.quota.limits.setdefault(self._scope(model), {})
            for limit in limits:
                until = now + min(limit.resets_in, _LONGEST_COOLING)
                known[limit.kind] = _Left(limit.remaining, until)

    def good(self, key: Key) -> None:
        """The provider answered and took the key."""
        now = self._clock()
        key.breaker.good(now)
        key.rejection.forget(now)
        key.quota.credit.forget(now)

    def failed(self, key: Key) -> None:
        """The provider did not answer, or not properly."""
        key.breaker.failed(self._clock())

    def limited(self, key: Key, model: str, seconds: float) -> None:
        """The provider wants to be left alone for so long, at most a minute is granted."""
        now = self._clock()
        key.breaker.good(now)
        until = now + min(max(seconds, 0.0), _LONGEST_COOLING)
        cooling = key.quota.cooling
        scope = self._scope(model)
        cooling[scope] = max(until, cooling.get(scope, 0.0))

    def rejected(self, key: Key) -> None:
        """The provider does not know this key, or not any more; its siblings may be well."""
        now = self._clock()
        key.breaker.good(now)
        key.rejection.begin(now)

    def out_of_credit(self, key: Key) -> None:
        """What the key and its siblings draw on is used up."""
        now = self._clock()
        key.breaker.good(now)
        key.quota.credit.begin(now)

    def wait(self, model: str, tokens: int) -> float:
        """Seconds until a key can be picked if nothing else happens; 0 when one can now."""
        now = self._clock()
        return min(
            max((left for _, left in self._obstacles(key, model, tokens, now)), default=0.0)
            for key in self._keys
        )

    def blocked_by(self, model: str, tokens: int) -> Blocked:
        """Why no key can be picked, by the key that is best off."""
        now = self._clock()
        return min(
            max(
                (why for why, _ in self._obstacles(key, model, tokens, now)),
                default=Blocked.LIMITED,
            )
            for key in self._keys
        )

    def states(self) -> list[KeyState]:
        """How every key is, for metrics and logs. A limit on any model counts."""
        now = self._clock()
        found = []
        for key in self._keys:
            scopes = {*key.quota.cooling, *key.quota.limits} or {""}
            whys = [why for scope in scopes for why, _ in _obstacles(key, scope, 1, now)]
            found.append(KeyState(key.number, max(whys, default=None), key.in_flight))
        return found

    def _scope(self, model: str) -> str:
        return model if self._per_model else ""

    def _obstacles(
        self, key: Key, model: str, tokens: int, now: float
    ) -> Iterator[tuple[Blocked, float]]:
        return _obstacles(key, self._scope(model), tokens, now)


def _obstacles(key: Key, scope: str, tokens: int, now: float) -> Iterator[tuple[Blocked, float]]:
    """Everything that keeps a key from being used, each with the seconds that it still will."""
    quota = key.quota
    for why, left in (
        (Blocked.REJECTED, key.rejection.left(now)),
        (Blocked.NO_CREDIT, quota.credit.left(now)),
        (Blocked.FAILING, key.breaker.left(now)),
        (Blocked.LIMITED, quota.cooling.get(scope, 0.0) - now),
    ):
        if left > ROUNDING:
            yield why, left
    for kind, rest in quota.limits.get(scope, {}).items():
        if rest.until - now > ROUNDING and rest.amount < max(_need(kind, tokens), 1):
            yield Blocked.LIMITED, rest.until - now


def _need(kind: LimitKind, tokens: int) -> int:
    """What a request takes of a limit. Only the sum of its tokens is known, so that limits on
    those of the prompt or of the answer alone bind once nothing is left of them."""
    if kind is LimitKind.REQUESTS:
        return 1
    return tokens if kind is LimitKind.TOKENS else 0
