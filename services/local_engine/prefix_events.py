"""Which prompt blocks an engine's prefix cache holds, by the names that routers know. Pure.

An engine caches blocks of tokens; routers speak of blocks of text (chassis/prompt_blocks.py),
whatever the tokenizer. A job brings both, its prompt's tokens and the names of its text's blocks,
and so tells which engine blocks each name needs. What has become of those is the engine's to say.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from services.chassis.prefix_log import MOST_NAMES, PrefixLog
from services.chassis.prompt_blocks import BLOCK_BYTES

ROOT = 0
"""The parent of a prompt's first block."""


def chain_keys(token_ids: Sequence[int], block: int) -> Iterator[int]:
    """A key for each whole block of tokens, which covers all blocks before it as well."""
    key = ROOT
    for start in range(0, len(token_ids) - block + 1, block):
        key = next_key(key, token_ids[start : start + block])
        yield key


def next_key(parent: int, token_ids: Sequence[int]) -> int:
    """The key of one block after its parent's."""
    return hash((parent, tuple(token_ids)))


class _Block:
    """An engine block. `live` is one that is held and whose ancestors all are.

    One that was never held is there for its names or its children; its parent is not known.
    """

    __slots__ = ("children", "held", "live", "names", "parent")

    def __init__(self) -> None:
        self.parent = ROOT
        self.held = False
        self.live = False
        self.children: set[int] = set()
        self.names: dict[int, None] = {}


class PrefixNames:
    """Follows one engine's cache and keeps a `PrefixLog` of the names that it holds.

    A name is held while a prompt that begins with its text would find all of the text's tokens
    in the cache. Where in the tokens a text block ends is estimated by its share of the bytes,
    and rounded up to a whole engine block: what is said to be held is. At most `most_names` names
    are remembered; the ones not asked for the longest go first.
    """

    def __init__(self, log: PrefixLog, block: int, most_names: int = MOST_NAMES) -> None:
        self.log = log
        self.block = block
        self._most_names = most_names
        self._blocks: dict[int, _Block] = {}
        self._keys: OrderedDict[int, int] = OrderedDict()  # of each name, the block that it needs

    def admit(self, names: Sequence[int], text_bytes: int, token_ids: Sequence[int]) -> int:
        """A job was taken: learns what its names need, and returns how many tokens are held.

        `text_bytes` is the size of the text that the names are of.
        """
        tokens_held = 0
        needs = _Depths(names, text_bytes, len(token_ids), self.block)
        live = True
        for depth, key in enumerate(chain_keys(token_ids, self.block), 1):
            known = self._blocks.get(key)
            live = live and known is not None and known.live
            if live:
                tokens_held += self.block
            elif needs.done:
                break
            for name in needs.within(depth):
                self._need(name, key)
        self._trim()
        # The last token is computed in any case, and with it the block that it is in.
        return min(tokens_held, max(0, len(token_ids) - 1) // self.block * self.block)

    def store(self, key: int, parent: int) -> None:
        """The engine holds this block now, which comes after its parent."""
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = _Block()
        if block.held:
            return
        block.held = True
        if parent == ROOT:
            self._enliven(block)
            return
        # A parent that is not known is not held: it is there for its children's sake.
        above = self._blocks.get(parent)
        if above is None:
            above = self._blocks[parent] = _Block()
        above.children.add(key)
        block.parent = parent
        if above.live:
            self._enliven(block)

    def remove(self, key: int) -> None:
        """The engine holds this block no more. One that it never held is no error."""
        block = self._blocks.get(key)
        if block is None or not block.held:
            return
        block.held = False
        if block.live:
            self._deaden(block)
        self._settle(key)

    def clear(self) -> None:
        """The engine holds nothing now."""
        self.log.clear()
        for block in self._blocks.values():
            block.held = block.live = False
        for key in tuple(self._blocks):
            self._settle(key)

    def _need(self, name: int, key: int) -> None:
        before = self._keys.get(name)
        if before is not None:
            self._keys.move_to_end(name)
            # Prompts that begin alike may estimate differently; one way to hold it is enough.
            if before == key or self._blocks[before].live:
                return
            self._release(name, before)
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = _Block()
        block.names[name] = None
        self._keys[name] = key
        if block.live:
            self.log.stored(name)

    def _release(self, name: int, key: int) -> None:
        block = self._blocks[key]
        del block.names[name]
        if block.live:
            self.log.removed(name)
        self._settle(key)

    def _trim(self) -> None:
        while len(self._keys) > self._most_names:
            self._release(*self._keys.popitem(last=False))

    def _settle(self, key: int) -> None:
        """Of a block that is not held only its names stay, once no block comes after it."""
        while key != ROOT:
            block = self._blocks.get(key)
            if block is None or block.held or block.children:
                return
            if not block.names:
                del self._blocks[key]
            parent, block.parent = block.parent, ROOT
            if parent != ROOT:
                self._blocks[parent].children.discard(key)
            key = parent

    def _enliven(self, block: _Block) -> None:
        waiting = [block]
        while waiting:
            block = waiting.pop()
            block.live = True
            for name in block.names:
                self.log.stored(name)
            below = (self._blocks[key] for key in block.children)
            waiting.extend(child for child in below if child.held)

    def _deaden(self, block: _Block) -> None:
        waiting = [block]
        while waiting:
            block = waiting.pop()
            block.live = False
            for name in block.names:
                self.log.removed(name)
            below = (self._blocks[key] for key in block.children)
            waiting.extend(child for child in below if child.live)


class _Depths:
    """Hands out a prompt's names by the number of engine blocks that each needs."""

    def __init__(self, names: Sequence[int], text_bytes: int, tokens: int, block: int) -> None:
        self._names = names
        self._next = 0
        self._bytes = text_bytes * block
        self._tokens = tokens

    @property
    def done(self) -> bool:
        return self._next >= len(self._names)

    def within(self, depth: int) -> Iterator[int]:
        """The names not handed out yet whose text so many engine blocks cover."""
        covered = depth * self._bytes // self._tokens // BLOCK_BYTES
        while self._next < min(covered, len(self._names)):
            yield self._names[self._next]
            self._next += 1
