"""Hands on a job's outputs that are nothing but tokens, as bytes of the wire where those are taken.

What comes first and last, and whatever is out of the ordinary, is jobs.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.local_engine import plain_chunks
from services.local_engine.engine import OnPlain
from services.local_engine.job_output import JobOutput
from services.local_engine.load_meter import JobLoad
from services.local_engine.on_vllm.token_bytes import ByteText, TokenBytes


class TokenChunks:
    """What a chunk of one token says but for its position, made when a token first comes."""

    def __init__(self, tokens: TokenBytes) -> None:
        self._whole = tokens.whole
        self.known: list[bytes | None] = [None] * len(tokens.whole)

    def tail(self, token_ids: Sequence[int], text: ByteText) -> bytes:
        """As plain_chunks.tail, of the text that the tokens complete."""
        alone = len(token_ids) == 1 and not text.pending
        tail = plain_chunks.tail(text.feed(token_ids), token_ids)
        if alone and self._whole[token_ids[0]] is not None:
            self.known[token_ids[0]] = tail
        return tail


class PlainOutput:
    """One job of one choice after its first output. `failed` hears what went wrong.

    `text` is None for a job whose text vLLM makes.
    """

    __slots__ = ("_chunks", "_failed", "_known", "_load", "_on_plain", "_output", "_text")

    def __init__(
        self,
        output: JobOutput,
        load: JobLoad,
        text: ByteText | None,
        chunks: TokenChunks | None,
        on_plain: OnPlain | None,
        failed: Callable[[Exception], None],
    ) -> None:
        self._output = output
        self._load = load
        self._text = text
        self._chunks = chunks
        self._known: list[bytes | None] = [] if chunks is None else chunks.known
        self._on_plain = on_plain
        self._failed = failed

    def take(self, token_ids: Sequence[int], made: str) -> None:
        """Tokens of a step, and the text that vLLM made of them where it does. Never raises."""
        output = self._output
        if output.ended:
            return
        try:
            count = len(token_ids)
            self._load.produced(count)
            on_plain, text = self._on_plain, self._text
            if on_plain is None:
                output.emit(0, token_ids, made if text is None else text.feed(token_ids).decode())
                return
            tail = None
            if text is not None and count == 1 and not text.pending:
                tail = self._known[token_ids[0]]
            if tail is None:
                tail = self._tail(token_ids, made)
            on_plain(plain_chunks.head(output.advance(count)) + tail, count)
        except Exception as error:  # noqa: BLE001 - the edge: this runs inside vLLM's output loop
            self._failed(error)

    def _tail(self, token_ids: Sequence[int], made: str) -> bytes:
        if self._text is None or self._chunks is None:
            return plain_chunks.tail(made.encode(), token_ids)
        return self._chunks.tail(token_ids, self._text)
