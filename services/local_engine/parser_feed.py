"""When a parser gets how much of an answer's text and tokens. Pure.

Bounds the work of parsers that read all text so far again for each delta, which would cost the
square of an answer's length; and keeps tokens back whose text has not come yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from services.local_engine.text_stream import Decode, IncrementalText

AT_ONCE = 2048
"""Characters of an answer that are parsed delta by delta, whatever the parser costs."""
SHARE = 64
"""Beyond them new text waits until it is this part of it all: then no character is read more
often than about so many times, however long the answer becomes."""


class ParserFeed:
    """Text and tokens of one choice that its parser has not seen yet.

    An `incremental` parser is never made to wait. With `decode` tokens wait for their text, which
    comes later where stop strings are looked for, and text for the end of its token: parsers look
    for a marker's text where its token is. `context` are the tokens before the answer.
    """

    def __init__(
        self, *, incremental: bool, decode: Decode | None = None, context: Sequence[int] = ()
    ) -> None:
        self._incremental = incremental
        self._texts: list[str] = []
        self._waiting = 0
        self._taken = 0
        self._size = 0
        self._ids: list[int] = []
        self._incoming = None if decode is None else IncrementalText(decode, context)
        # Tokens, each with the length of the answer's text up to its end.
        self._ahead: deque[tuple[int, int]] = deque()
        self._length = 0

    def add(self, text: str, token_ids: Sequence[int]) -> None:
        """Takes what the engine has sent."""
        self._texts.append(text)
        self._waiting += len(text)
        self._size += len(text)
        if self._incoming is None:
            self._ids.extend(token_ids)
            return
        for token_id in token_ids:
            self._length += len(self._incoming.push((token_id,)))
            self._ahead.append((token_id, self._length))

    @property
    def due(self) -> bool:
        """Whether the parser should get it now."""
        if self._incremental or self._size <= AT_ONCE:
            return True
        return self._waiting * SHARE >= self._size - AT_ONCE

    def take(self, *, rest: bool = False) -> tuple[str, list[int]]:
        """What the parser gets now; with `rest` also tokens whose text will not come."""
        text, end = "".join(self._texts), self._size
        if self._incoming is not None and not rest:
            end = self._taken
            while self._ahead and self._ahead[0][1] <= self._size:
                token_id, end = self._ahead.popleft()
                self._ids.append(token_id)
        elif rest:
            self._ids.extend(token_id for token_id, _ in self._ahead)
            self._ahead.clear()
        now, later = text[: end - self._taken], text[end - self._taken :]
        ids, self._ids = self._ids, []
        self._texts, self._waiting, self._taken = [later] if later else [], len(later), end
        return now, ids
