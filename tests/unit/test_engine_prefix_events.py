"""What routers are told of a prefix cache is what a prompt would find in it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.v1 import generation_pb2 as pb
from services.chassis.prefix_log import PrefixLog, PrefixReader
from services.chassis.prompt_blocks import prompt_blocks, prompt_bytes
from services.local_engine.prefix_events import ROOT, PrefixNames, chain_keys
from services.local_engine.simulation.model import PrefixBlocks

BLOCK = 16


def names_of(token_ids: Sequence[int]) -> tuple[tuple[int, ...], int]:
    request = pb.GenerateRequest(prompt_token_ids=token_ids)
    return prompt_blocks(request), prompt_bytes(request)


def new(block: int = BLOCK, **more: int) -> PrefixNames:
    return PrefixNames(PrefixLog(), block, **more)


def admit(names: PrefixNames, token_ids: Sequence[int]) -> int:
    return names.admit(*names_of(token_ids), token_ids)


def store(
    names: PrefixNames, token_ids: Sequence[int], blocks: int = 10**6, *, after: int = 0
) -> list[int]:
    """Stores the prompt's first blocks, but for so many at its beginning."""
    keys = list(chain_keys(token_ids, names.block))[:blocks]
    for parent, key in list(pairwise([ROOT, *keys]))[after:]:
        names.store(key, parent)
    return keys[after:]


PROMPT = list(range(1000, 1000 + 200))  # 800 bytes: three whole blocks of text, twelve of tokens


def test_a_name_is_held_once_the_blocks_that_cover_its_text_are():
    names = new()
    three, _ = names_of(PROMPT)
    assert len(three) == 3
    admit(names, PROMPT)
    assert names.log.held() == ()
    store(names, PROMPT, 3)
    assert names.log.held() == ()
    store(names, PROMPT, 4)  # 64 tokens of four bytes
    assert names.log.held() == three[:1]
    store(names, PROMPT)
    assert names.log.held() == three


def test_a_name_is_held_no_more_once_one_block_is_gone():
    names = new()
    three, _ = names_of(PROMPT)
    admit(names, PROMPT)
    keys = store(names, PROMPT)
    names.remove(keys[8])
    assert names.log.held() == three[:2]
    names.remove(keys[0])
    assert names.log.held() == ()


def test_what_comes_back_is_held_again_with_all_that_follows_it():
    names = new()
    three, _ = names_of(PROMPT)
    admit(names, PROMPT)
    keys = store(names, PROMPT)
    names.remove(keys[0])
    names.store(keys[0], ROOT)
    assert set(names.log.held()) == set(three)


def test_a_text_in_other_tokens_is_rounded_to_what_is_certainly_covered():
    # 1000 bytes in 130 tokens: a block of 16 tokens covers 123 bytes.
    names = new()
    request = pb.GenerateRequest(prompt="river " * 166 + "sea.")
    tokens = list(range(130))
    names.admit(prompt_blocks(request), prompt_bytes(request), tokens)
    held = []
    for blocks in range(1, 9):
        store(names, tokens, blocks)
        held.append(len(names.log.held()))
    assert held == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_text_after_the_last_whole_block_of_tokens_is_not_held():
    names = new(block=128)  # 200 tokens: one whole block, 512 bytes
    three, _ = names_of(PROMPT)
    admit(names, PROMPT)
    store(names, PROMPT)
    assert names.log.held() == three[:2]


def test_a_prompt_that_begins_like_an_earlier_one_is_held_as_far_at_once():
    names = new()
    admit(names, PROMPT)
    store(names, PROMPT)
    other = [*PROMPT[:140], *range(60)]
    assert admit(names, other) == 128
    shared = set(names_of(PROMPT)[0]) & set(names_of(other)[0])
    assert len(shared) == 2
    assert shared < set(names.log.held())


def test_the_last_token_is_never_found():
    names = new()
    prompt = PROMPT[:160]
    admit(names, prompt)
    store(names, prompt)
    assert admit(names, prompt) == 144


def test_a_prompt_without_names_is_found_too():
    names = new()
    store(names, PROMPT[:48])
    assert names.admit((), 100, PROMPT[:48]) == 32
    assert names.log.held() == ()


def test_an_emptied_cache_holds_nothing_and_forgets_no_name_that_waits():
    names = new()
    three, _ = names_of(PROMPT)
    admit(names, PROMPT)
    store(names, PROMPT)
    names.clear()
    assert names.log.held() == ()
    store(names, PROMPT)
    assert set(names.log.held()) == set(three)


def test_no_more_names_are_remembered_than_allowed():
    names = new(most_names=4)
    first, second = PROMPT, [*range(5000, 5200)]
    admit(names, first)
    store(names, first)
    admit(names, second)
    store(names, second)
    assert set(names.log.held()) == {*names_of(first)[0][2:], *names_of(second)[0]}


def test_nothing_is_kept_of_what_has_gone():
    names = new()
    for number in range(50):
        prompt = [number] * 100
        names.admit((), 400, prompt)
        for key in reversed(store(names, prompt)):
            names.remove(key)
    assert not names._blocks


BEGINNING = list(range(70))
# Few, long enough for names, and alike at their beginnings: so that they meet.
prompts = st.sampled_from(
    [
        BEGINNING,
        BEGINNING + list(range(1000, 1080)),
        BEGINNING + list(range(2000, 2130)),
        BEGINNING + list(range(1000, 1064)) + list(range(3000, 3064)),
        list(range(4000, 4130)),
        list(range(5000, 5010)),
    ]
)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("admit"), prompts),
            st.tuples(st.just("store"), prompts),
            st.tuples(st.just("store the end"), prompts),
            st.tuples(st.just("remove"), st.integers(0, 10**6)),
            st.tuples(st.just("clear"), st.just(None)),
        ),
        max_size=60,
    )
)
def test_a_listener_reconstructs_what_the_cache_holds(events):
    names = new(block=4)
    reader = PrefixReader(names.log)
    heard: set[int] = set()
    cache: set[int] = set()
    needs: dict[int, list[int]] = {}  # of each name, the blocks that its text takes
    for what, with_ in events:
        if what == "admit":
            blocks, _ = names_of(with_)
            admit(names, with_)
            keys = list(chain_keys(with_, 4))
            needs |= {name: keys[: 16 * n] for n, name in enumerate(blocks, 1)}
        elif what == "store":
            cache.update(store(names, with_))
        elif what == "store the end":
            cache.update(store(names, with_, after=3))
        elif what == "clear":
            names.clear()
            cache.clear()
        elif cache:
            gone = sorted(cache)[with_ % len(cache)]
            names.remove(gone)
            cache.discard(gone)
        while (news := reader.next(3)) is not None:
            heard = set() if news.cleared else heard
            heard.update(news.stored)
            heard.difference_update(news.removed)
        assert heard == {name for name, keys in needs.items() if cache.issuperset(keys)}


@given(st.lists(prompts, max_size=30), st.integers(1, 40))
def test_what_the_simulation_s_cache_would_find_is_what_is_told(asked, capacity):
    names = new(block=4)
    cache = PrefixBlocks(4, capacity, names)
    for prompt in asked:
        assert admit(names, prompt) == cache.match(prompt)
        cache.add(prompt)
        for earlier in asked:
            tokens = [*earlier, -1]
            found = cache.match(tokens) // 64
            blocks, _ = names_of(earlier)
            held = set(names.log.held())
            known = [name for name in blocks if name in names._keys]
            assert [name in held for name in known] == [n < found for n in range(len(known))]


@pytest.mark.parametrize("request_of", ["prompt", "messages", "token_ids"])
def test_the_size_of_a_text_is_that_of_what_its_names_are_of(request_of):
    text = "Grüße! " * 200
    if request_of == "prompt":
        request = pb.GenerateRequest(prompt=text)
    elif request_of == "messages":
        parts = [pb.ContentPart(text=text), pb.ContentPart(text=text)]
        request = pb.GenerateRequest(messages=[pb.Message(role=pb.ROLE_USER, content=parts)])
    else:
        request = pb.GenerateRequest(prompt_token_ids=range(1000))
    assert len(prompt_blocks(request)) == prompt_bytes(request) // 256
