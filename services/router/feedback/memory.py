"""The latest answers in this process's memory: lost with it, and known to no other."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from services.router.feedback.answers import (
    Answered,
    Judged,
    Judgement,
    judged_otherwise,
    unknown,
)

_NOTHING = Judgement()
_MOST_KINDS = 4096


class MemoryAnswers:
    """At most `most` answers for `window` seconds of `clock`; the oldest make room. See Answers.

    An answer takes some 250 bytes. Nothing in here is a container that the garbage collector
    would have to visit again and again.
    """

    shared = False

    def __init__(self, most: int, window: float, clock: Callable[[], float]) -> None:
        self._most = most
        self._window = window
        self._clock = clock
        # A request id holds no blank, so no two pairs of ids make the same key.
        self._given: OrderedDict[str, tuple[float, Answered]] = OrderedDict()
        self._judged: dict[str, Judgement] = {}
        # The same few values stand behind most answers, and are held once.
        self._kinds: dict[Answered, Answered] = {}

    def __len__(self) -> int:
        return len(self._given)

    def remember(self, client_id: str, request_id: str, answered: Answered) -> None:
        """See Answers."""
        kind = self._kinds.get(answered)
        if kind is None:
            kind = self._new_kind(answered)
        given = self._given
        given[f"{request_id} {client_id}"] = (self._clock(), kind)
        if len(given) > self._most:
            oldest, _ = given.popitem(last=False)
            self._judged.pop(oldest, None)

    async def judge(self, client_id: str, request_id: str, judgement: Judgement) -> Judged:
        """See Answers."""
        key = f"{request_id} {client_id}"
        found = self._given.get(key)
        if found is None or self._clock() - found[0] > self._window:
            raise unknown()
        known = self._judged.get(key, _NOTHING)
        if judgement.contradicts(known):
            raise judged_otherwise()
        self._judged[key] = judgement.joined(known)
        return Judged(found[1], judgement.beyond(known))

    def _new_kind(self, answered: Answered) -> Answered:
        if len(self._kinds) >= _MOST_KINDS:
            self._kinds.clear()
        return self._kinds.setdefault(answered, answered)
