"""Names the beginnings of a prompt, so that router and engine can speak of cached prefixes.

Its text is cut into blocks of BLOCK_BYTES; each block's name is a chain hash over the model's name
and all blocks up to it, as prefix caches name theirs, but independent of any tokenizer: models and
adapters share no cache. Pure.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from hashlib import blake2b

from anabranch.v1 import generation_pb2 as pb

BLOCK_BYTES = 256
MOST_BLOCKS = 512
"""Beyond these a longer prompt has no more names: what follows changes no choice."""
TYPICAL_BYTES_PER_TOKEN = 4
TOKEN_BYTES = 4
"""Of a prompt that is given as token ids."""


def prompt_blocks(request: pb.GenerateRequest, model: str = "") -> tuple[int, ...]:
    """The names of the whole blocks of a request's prompt, 64-bit, from its beginning.

    `model` is the name by which a backend is asked for it; the request's own by default. Empty for
    prompts shorter than a block.
    """
    if request.ByteSize() < BLOCK_BYTES:
        return ()
    return block_names(_text(request), model or request.model)


def prompt_bytes(request: pb.GenerateRequest) -> int:
    """The size of all the text that a request's blocks are cut from, the rest without names too."""
    if request.prompt_token_ids:
        return TOKEN_BYTES * len(request.prompt_token_ids)
    if request.prompt:
        return len(request.prompt.encode())
    return sum(map(len, _turns(request.messages, sys.maxsize)))


def bytes_before_images(request: pb.GenerateRequest) -> int:
    """How much of the text that a request's blocks are cut from comes before its first image."""
    size = 0
    for message in request.messages:
        size += len(_head(message))
        for part in message.content:
            if part.HasField("image"):
                return size
            size += len(part.text.encode())
    return size


def block_names(text: bytes, model: str = "") -> tuple[int, ...]:
    """The names of the whole blocks of a text, for a model of that name."""
    whole = min(len(text) // BLOCK_BYTES, MOST_BLOCKS)
    names = []
    chain = blake2b(model.encode(), digest_size=8)
    for start in range(0, whole * BLOCK_BYTES, BLOCK_BYTES):
        chain.update(text[start : start + BLOCK_BYTES])
        names.append(int.from_bytes(chain.digest(), "little"))
    return tuple(names)


def _text(request: pb.GenerateRequest) -> bytes:
    """What a tokenizer would see, roughly: prompts that begin alike do so here too."""
    limit = BLOCK_BYTES * MOST_BLOCKS
    if request.prompt_token_ids:
        ids = request.prompt_token_ids[: limit // TOKEN_BYTES]
        return b"".join([token.to_bytes(TOKEN_BYTES, "little", signed=True) for token in ids])
    if request.prompt:
        return request.prompt[:limit].encode()[:limit]
    return b"".join(_turns(request.messages, limit))[:limit]


def _turns(messages: Iterable[pb.Message], limit: int) -> Iterable[bytes]:
    size = 0
    for message in messages:
        head = _head(message)
        size += len(head)
        yield head
        for part in message.content:
            piece = part.text.encode() if part.text else part.image.data or part.image.uri.encode()
            size += len(piece)
            yield piece
        if size >= limit:
            return


def _head(message: pb.Message) -> bytes:
    return b"\x1e%d\x1f" % message.role
