"""The pool of keys of every account, and the task that follows the files that hold them.

What a file says is taken up whole or not at all: while it is missing or bad, the last good keys
stay in use.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from services.cloud_proxy.config import Route
from services.cloud_proxy.configuration import BadConfiguration
from services.cloud_proxy.key_sources import BadKeys, parse_key_file, read_key_file
from services.cloud_proxy.keys import AccountKey, Blocked, KeyPool

_log = logging.getLogger(__name__)

# A changed file is read again after so many seconds: whoever writes it in place may be half done.
_SETTLING = 0.05


class KeyFile:
    """One account's file, and what was last seen in it. `content` is what is in use."""

    def __init__(self, account: str, path: Path, content: bytes) -> None:
        self.account = account
        self.content = content
        self._path = path
        self._warned = ""

    async def changed(self) -> Sequence[AccountKey] | None:
        """The keys of a file that changed; None where it did not, or cannot be used."""
        try:
            content = await asyncio.to_thread(read_key_file, self._path)
            if content == self.content:
                self._warned = ""
                return None
            await asyncio.sleep(_SETTLING)
            if content != await asyncio.to_thread(read_key_file, self._path):
                # Still being written; the next look will tell.
                return None
            keys = parse_key_file(content)
        except BadKeys as bad:
            self._warn(str(bad))
            return None
        self.content = content
        self._warned = ""
        return keys

    def _warn(self, cause: str) -> None:
        if cause != self._warned:
            facts = {"account": self.account, "cause": cause}
            _log.warning("the file of keys cannot be used; the last good keys stay", extra=facts)
        self._warned = cause


class Keys:
    """The pools by account, shared by an account's routes, since their limits are shared."""

    def __init__(
        self, pools: Mapping[str, KeyPool], providers: Mapping[str, str], files: Sequence[KeyFile]
    ) -> None:
        self.pools = pools
        self.files = files
        self._providers = providers

    async def follow(self, interval: float) -> None:
        """Looks at the files every `interval` seconds, until cancelled."""
        while True:
            await asyncio.sleep(interval)
            for file in self.files:
                keys = await file.changed()
                if keys is not None:
                    self.pools[file.account].replace(keys)
                    facts = {"account": file.account, "keys": len(keys)}
                    _log.info("keys were taken up from a changed file", extra=facts)

    def observe(self, meter: Meter) -> None:
        """Creates the gauge; it looks at the pools at each scrape."""
        meter.create_observable_gauge(
            "anabranch.cloud.keys",
            callbacks=[self._count],
            unit="{key}",
            description="Provider keys by what keeps them from being used",
        )
        meter.create_observable_gauge(
            "anabranch.cloud.breaker_open",
            callbacks=[self._breakers],
            description="Whether no key of a provider is tried because it has been failing",
        )

    def _count(self, _: CallbackOptions) -> Iterable[Observation]:
        counts: Counter[tuple[str, str]] = Counter()
        for account, pool in self.pools.items():
            for key in pool.states():
                state = "usable" if key.blocked is None else key.blocked.name.lower()
                counts[self._providers[account], state] += 1
        for (provider, state), count in counts.items():
            labels = {"gen_ai.provider.name": provider, "anabranch.key.state": state}
            yield Observation(count, labels)

    def _breakers(self, _: CallbackOptions) -> Iterable[Observation]:
        resting: dict[str, bool] = {}
        for account, pool in self.pools.items():
            states = pool.states()
            rests = bool(states) and all(key.blocked is Blocked.FAILING for key in states)
            provider = self._providers[account]
            resting[provider] = resting.get(provider, True) and rests
        return [Observation(int(rests), {"provider": name}) for name, rests in resting.items()]


def open_keys(
    routes: Iterable[Route],
    stated: Mapping[str, Sequence[AccountKey]],
    clock: Callable[[], float],
) -> Keys:
    """The keys that these routes need. `stated` are those of the settings, by name.

    Raises BadConfiguration where a file of keys is not usable.
    """
    pools: dict[str, KeyPool] = {}
    providers: dict[str, str] = {}
    files: list[KeyFile] = []
    by_account: dict[str, list[Route]] = {}
    for route in routes:
        by_account.setdefault(route.account, []).append(route)
    for account, sharing in by_account.items():
        path = sharing[0].key_file
        if path is None:
            keys = stated.get(account.removeprefix("key:"), ())
        else:
            content, keys = _read(path)
            files.append(KeyFile(account, path, content))
        # Where profiles disagree, the wider limit is the one to be careful of.
        per_model = all(route.profile.limits == "model" for route in sharing)
        pools[account] = KeyPool(keys, clock, per_model=per_model)
        providers[account] = sharing[0].profile.name
    return Keys(pools, providers, files)


def _read(path: Path) -> tuple[bytes, Sequence[AccountKey]]:
    try:
        content = read_key_file(path)
        return content, parse_key_file(content)
    except BadKeys as bad:
        raise BadConfiguration([f"{path.name}: {bad}"]) from None
