"""What the simulator answers: deterministic text, tool calls and token counts. Pure.

A "token" here is a word with the space before it; counts are exact in these terms, so a test can
compute the usage that must be reported. A prompt with ECHO in it is said back, in every part of an
answer, in pieces of three characters, so that whatever it holds is cut in the middle.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

LABEL = "[provider simulator]"
ECHO = "say it back"
_WORDS = (
    "river", "branch", "channel", "delta", "water", "stone", "bank",
    "current", "mouth", "source", "ford", "island", "reed", "silt",
    "bridge", "meander", "rapid", "pool", "spring", "estuary",
)  # fmt: skip
_PIECES = re.compile(r"\s*\S+|\s+\Z")
_ECHOED = re.compile(r"(?s).{1,3}")


@dataclass(frozen=True)
class Call:
    """One tool call."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Answer:
    """One choice, split into the pieces that a stream sends. `finish` is OpenAI's word; `matched`
    is the stop string that ended the text."""

    text: tuple[str, ...]
    reasoning: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    finish: str = "stop"
    matched: str = ""


@dataclass(frozen=True)
class Usage:
    """Tokens, cached ones included in `prompt` and reasoning in `completion`."""

    prompt: int
    completion: int
    cached: int
    reasoning: int


@dataclass(frozen=True)
class Reply:
    """All choices and what they took."""

    answers: tuple[Answer, ...]
    usage: Usage = field(default=Usage(0, 0, 0, 0))


def pieces(text: str) -> tuple[str, ...]:
    """Words, each with the white space before it; joined they are the text again."""
    return tuple(_PIECES.findall(text))


def signature(pieces: tuple[str, ...]) -> str:
    """What a provider would seal its reasoning with: opaque, and a function of the text."""
    digest = hashlib.sha256("".join(pieces).encode()).digest()
    return base64.b64encode(b"simulated " + digest).decode()


def text_of(content: Any) -> str:
    """The text of a message's content, images as a mark."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(
            part.get("text", "<image>") if isinstance(part, dict) else "" for part in content
        )
    return ""


def reply(body: dict[str, Any]) -> Reply:
    """The answer to a request in OpenAI's form. Raises ValueError for one that makes no sense."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list with at least one entry")
    prefix = ""
    if messages[-1].get("role") == "assistant" and messages[-1].get("prefix"):
        prefix = text_of(messages[-1].get("content"))
        messages = messages[:-1]
    prompt = " ".join(text_of(m.get("content")) for m in messages)
    answers = tuple(
        _answer(body, prompt, prefix, number) for number in range(int(body.get("n") or 1))
    )
    prompt_tokens = len(pieces(prompt)) + len(pieces(prefix))
    completion = sum(
        len(a.text) + len(a.reasoning) + sum(len(pieces(c.arguments)) for c in a.calls)
        for a in answers
    )
    # Half of the leading message counts as cached once it is long enough to be worth it.
    head = len(pieces(text_of(messages[0].get("content"))))
    cached = head // 2 if head >= 64 else 0
    reasoning = sum(len(a.reasoning) for a in answers)
    return Reply(answers, Usage(prompt_tokens, completion, cached, reasoning))


def _answer(body: dict[str, Any], prompt: str, prefix: str, number: int) -> Answer:
    called = _calls(body, prompt)
    echo = prompt if ECHO in prompt else ""
    reasoning: tuple[str, ...] = ()
    effort = body.get("reasoning_effort")
    if "reasoner" in str(body.get("model")) or effort in ("low", "medium", "high"):
        reasoning = pieces("thinking as a simulator does: not at all.") + _echoed(echo)
    if called:
        spoken = pieces(f"{LABEL} calling") if body.get("tool_choice") != "required" else ()
        return Answer(spoken, reasoning, called, "tool_calls")
    wanted = (body.get("response_format") or {}).get("type")
    if wanted in ("json_object", "json_schema"):
        said = {"said": echo} if echo else {}
        text = json.dumps({"simulator": True, "note": LABEL, **said})
    elif echo:
        text = f"{LABEL} {echo}"
    else:
        text = _prose(prompt, number, _length_of(prompt))
    text = text.removeprefix(prefix)
    finish, matched = "stop", ""
    for stop in _stops(body):
        if stop in text:
            text, matched = text[: text.index(stop)], stop
    spoken = _echoed(text) if echo else pieces(text)
    limit = body.get("max_tokens") or body.get("max_completion_tokens")
    if isinstance(limit, int) and len(spoken) > limit:
        spoken, finish, matched = spoken[:limit], "length", ""
    return Answer(spoken, reasoning, (), finish, matched)


def _stops(body: dict[str, Any]) -> list[str]:
    stops = body.get("stop") or []
    return [stops] if isinstance(stops, str) else list(stops)


def _echoed(text: str) -> tuple[str, ...]:
    return tuple(_ECHOED.findall(text))


def _length_of(prompt: str) -> int:
    """Words of the answer: 16, or what a prompt containing "words=N" asks for."""
    asked = re.search(r"\bwords=(\d{1,5})\b", prompt)
    return int(asked.group(1)) if asked else 16


def _prose(prompt: str, number: int, length: int) -> str:
    words = []
    for position in range(length):
        seed = f"{prompt}\0{number}\0{position}".encode()
        words.append(_WORDS[hashlib.sha256(seed).digest()[0] % len(_WORDS)])
    return f"{LABEL} " + " ".join(words)


def _calls(body: dict[str, Any], prompt: str) -> tuple[Call, ...]:
    """Calls every tool whose name the prompt contains as "call NAME"; with a required choice,
    at least the first one."""
    tools = [t["function"]["name"] for t in body.get("tools") or ()]
    choice = body.get("tool_choice")
    if not tools or choice == "none":
        return ()
    if isinstance(choice, dict):
        wanted = [choice["function"]["name"]]
    else:
        wanted = [name for name in tools if f"call {name}" in prompt]
        if not wanted and choice == "required":
            wanted = tools[:1]
    asked = prompt if ECHO in prompt else prompt[:40]
    arguments = "" if "without arguments" in prompt else json.dumps({"asked": asked})
    return tuple(Call(f"call_sim_{n}", name, arguments) for n, name in enumerate(wanted))
