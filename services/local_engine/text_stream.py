"""Turns tokens into text as they come, and finds stop strings in it. Pure.

vLLM does both for ordinary jobs. This serves the jobs that it cannot: those that resume after
text which another backend has sent, where a stop string or a character may be cut in two by the
seam, and prompts that end inside a character; and all jobs of the simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_PARTIAL = "\N{REPLACEMENT CHARACTER}"
_CONTEXT_TOKENS = 8
_UNSETTLED = 3
"""Replacement characters at a text's end that may still become one of several bytes: some
tokenizers show each of those by itself."""


class IncrementalText:
    """Decodes a growing list of tokens; a token's text may depend on its neighbours.

    Characters that are spread over several tokens appear once complete. A window of tokens is
    decoded with and without the new one, and the difference is new text: the prefix-offset
    method of Hugging Face's text-generation-inference.
    """

    def __init__(self, decode: Decode, context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(context[-_CONTEXT_TOKENS:])
        self._known = len(self._window)

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete."""
        pieces = []
        for token_id in token_ids:
            before = _settled(self._decode(self._window[: self._known]))
            self._window.append(token_id)
            after = self._decode(self._window)
            if after.endswith(_PARTIAL):
                if len(self._window) - self._known <= _CONTEXT_TOKENS:
                    continue
                # Bytes that never become a character are not waited for.
                after = _settled(after)
            if len(after) > len(before):
                pieces.append(after[len(before) :])
                del self._window[:-_CONTEXT_TOKENS]
                self._known = len(self._window)
        return "".join(pieces)


def _settled(text: str) -> str:
    """Without what may still become another character."""
    return text[: max(len(text.rstrip(_PARTIAL)), len(text) - _UNSETTLED)]


def ends_inside_character(decode: Decode, token_ids: Sequence[int]) -> bool:
    """Whether the text of these tokens breaks off within a character."""
    return decode(token_ids[-_CONTEXT_TOKENS:]).endswith(_PARTIAL)


class StopScanner:
    """Holds text back while it may be the beginning of a stop string.

    `sent` is text that has left already: a stop string that began there still ends the answer,
    though its beginning cannot be taken back.
    """

    def __init__(self, stops: Sequence[str], sent: str = "") -> None:
        self._stops = tuple(stops)
        self._hold = max((len(stop) for stop in self._stops), default=1) - 1
        self._text = sent[-self._hold :] if self._hold else ""
        self._released = len(self._text)
        self._checked = len(self._text)

    def push(self, text: str, *, armed: bool = True, last: bool = False) -> tuple[str, str]:
        """Adds text; returns what may be sent, and the stop string that ended it, if one did.

        Only a stop string that ends within text added while `armed` counts.
        """
        self._text += text
        if armed and self._stops and text:
            found = self._find()
            if found is not None:
                start, stop = found
                ready = self._text[self._released : start]
                self._text = ""
                return ready, stop
        self._checked = len(self._text)
        end = len(self._text) - (0 if last else self._hold)
        if end <= self._released:
            return "", ""
        ready = self._text[self._released : end]
        # What is still held back is all that a later stop string may begin in.
        self._text = self._text[end:]
        self._released = 0
        self._checked -= end
        return ready, ""

    def _find(self) -> tuple[int, str] | None:
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = self._text.find(stop, max(0, self._checked - len(stop) + 1))
            if start >= 0 and (best is None or start + len(stop) < best[0]):
                best = (start + len(stop), start, stop)
        return None if best is None else (best[1], best[2])


class AnswerText:
    """The text of one choice from its tokens: decoding, continuation, stop strings.

    Raises ValueError when `continued_text` is not the beginning of the text of `continued`.
    """

    def __init__(
        self,
        decode: Decode,
        context: Sequence[int],
        *,
        stops: Sequence[str] = (),
        min_tokens: int = 0,
        continued: Sequence[int] = (),
        continued_text: str = "",
    ) -> None:
        self._incremental = IncrementalText(decode, context)
        self._min_tokens = min_tokens
        self._count = len(continued)
        existing = self._incremental.push(continued)
        if not existing.startswith(continued_text):
            raise ValueError("is not the beginning of the text of its token_ids")
        self._scanner = StopScanner(stops, sent=continued_text)
        # Not armed: the backend that produced this text has already looked at it.
        self._held, _ = self._scanner.push(existing[len(continued_text) :], armed=False)

    def push(self, token_ids: Sequence[int], *, last: bool = False) -> tuple[str, str, int]:
        """Text to send, the matched stop string or "", and how many of the tokens count.

        Tokens after the one that completes a stop string do not count.
        """
        pieces, self._held = [self._held], ""
        for number, token_id in enumerate(token_ids, 1):
            self._count += 1
            text, stop = self._scanner.push(
                self._incremental.push((token_id,)), armed=self._count > self._min_tokens
            )
            pieces.append(text)
            if stop:
                return "".join(pieces), stop, number
        if last:
            pieces.append(self._scanner.push("", last=True)[0])
        return "".join(pieces), "", len(token_ids)
