"""A pool of keys and its clock, for tests of whose turn it is."""

from __future__ import annotations

from services.chassis.settings import Secret
from services.cloud_proxy.keys import AccountKey, Key, KeyPool
from services.cloud_proxy.rate_limits import LimitKind, RateLimit


class Scene:
    """A pool and its clock. Keys are "secret" or "quota secret"."""

    def __init__(self, *keys: str, per_model: bool = False) -> None:
        self.now = 1000.0
        self.pool = KeyPool(configured(*keys), lambda: self.now, per_model=per_model)

    def pick(self, model: str = "m", tokens: int = 10) -> Key:
        key = self.pool.pick(model, tokens)
        assert key is not None
        return key

    def picked(self, count: int = 4, model: str = "m", tokens: int = 10) -> set[str]:
        """The secrets that come up."""
        keys = [self.pool.pick(model, tokens) for _ in range(count)]
        return {key.secret.reveal() for key in keys if key is not None and key.secret}

    def by(self, secret: str) -> Key:
        """The key with this secret, whatever its state."""
        (found,) = [k for k in self.pool._keys if k.secret == Secret(secret)]
        return found

    def fail(self, secret: str, times: int) -> None:
        for _ in range(times):
            self.pool.failed(self.by(secret))


def configured(*keys: str) -> list[AccountKey]:
    words = [key.split() for key in keys]
    return [AccountKey(Secret(w[-1]), w[0] if len(w) == 2 else "") for w in words]


def left(remaining: int, resets_in: float, kind: LimitKind = LimitKind.TOKENS) -> list[RateLimit]:
    return [RateLimit(kind, remaining, resets_in)]
