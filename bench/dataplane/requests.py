"""The requests that the load generator sends: the same for every path. Pure."""

from __future__ import annotations

import json

from anabranch.v1 import generation_pb2 as pb

PROMPT = (
    "A branch of a river leaves the main channel and rejoins it downstream. Describe, in the "
    "voice of a patient teacher, what a traveller on the bank would see where the waters part "
    "and where they meet again, and what the fish would say of it."
)

WORD = " river"
WORDS = (WORD, WORD + "s")
"""The texts of the tokens over HTTP, in turns: LiteLLM cuts off who says the same over and over."""

OPENAI_MODEL = "fake"
"""The one model that gateways know; the pace of its steps travels as the seed."""


def request(model: str, tokens: int) -> bytes:
    """A serialised GenerateRequest for an answer of exactly so many tokens."""
    return pb.GenerateRequest(
        model=model,
        messages=[pb.Message(role=pb.ROLE_USER, content=[pb.ContentPart(text=PROMPT)])],
        sampling=pb.Sampling(max_tokens=tokens, ignore_eos=True),
    ).SerializeToString()


def chat(pace_ms: int, tokens: int) -> bytes:
    """The body of a streamed chat completion of exactly so many tokens."""
    return json.dumps(
        {
            "model": OPENAI_MODEL,
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": tokens,
            "seed": pace_ms,
            "stream": True,
        }
    ).encode()
