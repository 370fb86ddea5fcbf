"""Asks providers as their official SDKs do: the oracle for what an answer says.

No SDK repeats a request here, since a fault is to be seen once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anthropic
import botocore.session
import ollama
import openai
from botocore.config import Config
from google import genai
from google.genai import types

SECRET = "wJalrXUtnFEMI/K7MDENG"
AWS_KEY = f"AKIDSIMULATED:{SECRET}"
_SCHEMA = {"type": "object", "properties": {"asked": {"type": "string"}}}


@dataclass(frozen=True)
class Question:
    """What is asked. `tools` are names; `stop` a stop sequence."""

    text: str = "hello"
    model: str = "sim-chat"
    tools: tuple[str, ...] = ()
    stream: bool = True
    stop: str = ""
    max_tokens: int = 1000


@dataclass
class Said:
    """What an SDK made of the answer. `prompt` excludes what the dialect excludes."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    finish: str | None = None
    prompt: int | None = None
    cached: int | None = None
    completion: int | None = None
    sealed: str = ""


def openai_client(url: str, key: str) -> openai.AsyncOpenAI:
    """OpenAI's own."""
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def anthropic_client(url: str, key: str) -> anthropic.AsyncAnthropic:
    """Anthropic's own."""
    return anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0)


def gemini_client(url: str, key: str) -> genai.Client:
    """Google's own."""
    return genai.Client(api_key=key, vertexai=False, http_options=types.HttpOptions(base_url=url))


def ollama_client(url: str, key: str) -> ollama.AsyncClient:
    """Ollama's own."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return ollama.AsyncClient(host=url, headers=headers)


def bedrock_client(url: str, key: str) -> Any:
    """AWS's own. `key` is ID:SECRET; it blocks, so it is for threads."""
    identity, _, secret = key.partition(":")
    return botocore.session.Session().create_client(
        "bedrock-runtime",
        region_name="eu-central-1",
        endpoint_url=url,
        aws_access_key_id=identity,
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}, read_timeout=30),
    )


async def _openai(url: str, key: str, question: Question) -> Said:
    asked: dict[str, Any] = {
        "model": question.model,
        "messages": [{"role": "user", "content": question.text}],
        "max_tokens": question.max_tokens,
    }
    if question.tools:
        asked["tools"] = [
            {"type": "function", "function": {"name": name, "parameters": _SCHEMA}}
            for name in question.tools
        ]
    if question.stop:
        asked["stop"] = [question.stop]
    said = Said()
    async with openai_client(url, key) as client:
        if not question.stream:
            whole = await client.chat.completions.create(**asked)
            message = whole.choices[0].message
            said.text = message.content or ""
            said.reasoning = getattr(message, "reasoning_content", "")
            for call in message.tool_calls or ():
                arguments = json.loads(call.function.arguments or "{}")
                said.calls.append((call.function.name, arguments))
            said.finish, usage = whole.choices[0].finish_reason, whole.usage
        else:
            usage, fragments = None, {}
            stream = await client.chat.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}
            )
            async for chunk in stream:
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    said.text += choice.delta.content or ""
                    said.reasoning += getattr(choice.delta, "reasoning_content", None) or ""
                    said.finish = choice.finish_reason or said.finish
                    for part in choice.delta.tool_calls or ():
                        call = fragments.setdefault(part.index, ["", ""])
                        call[0] += part.function.name or ""
                        call[1] += part.function.arguments or ""
            said.calls = [(name, json.loads(text or "{}")) for name, text in fragments.values()]
    if usage is not None:
        said.prompt, said.completion = usage.prompt_tokens, usage.completion_tokens
        said.cached = usage.prompt_tokens_details.cached_tokens
    return said


async def _anthropic(url: str, key: str, question: Question) -> Said:
    asked: dict[str, Any] = {
        "model": question.model,
        "messages": [{"role": "user", "content": question.text}],
        "max_tokens": question.max_tokens,
    }
    if question.tools:
        asked["tools"] = [{"name": name, "input_schema": _SCHEMA} for name in question.tools]
    if question.stop:
        asked["stop_sequences"] = [question.stop]
    async with anthropic_client(url, key) as client:
        if question.stream:
            async with client.messages.stream(**asked) as stream:
                message = await stream.get_final_message()
        else:
            message = await client.messages.create(**asked)
    said = Said(finish=message.stop_reason)
    for block in message.content:
        if block.type == "text":
            said.text += block.text
        elif block.type == "thinking":
            said.reasoning, said.sealed = block.thinking, block.signature
        elif block.type == "tool_use":
            said.calls.append((block.name, block.input))
    said.prompt, said.completion = message.usage.input_tokens, message.usage.output_tokens
    said.cached = message.usage.cache_read_input_tokens
    return said


async def _gemini(url: str, key: str, question: Question) -> Said:
    config = types.GenerateContentConfig(
        max_output_tokens=question.max_tokens,
        stop_sequences=[question.stop] if question.stop else None,
        thinking_config=types.ThinkingConfig(include_thoughts=True),
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        tools=[
            types.Tool(
                function_declarations=[
                    types.FunctionDeclaration(name=name, parameters_json_schema=_SCHEMA)
                    for name in question.tools
                ]
            )
        ]
        if question.tools
        else None,
    )
    said = Said()
    models = gemini_client(url, key).aio.models
    asked: dict[str, Any] = {
        "model": question.model,
        "contents": question.text,
        "config": config,
    }
    if question.stream:
        found = [one async for one in await models.generate_content_stream(**asked)]
    else:
        found = [await models.generate_content(**asked)]
    for one in found:
        for candidate in one.candidates or ():
            said.finish = candidate.finish_reason.name if candidate.finish_reason else said.finish
            for part in candidate.content.parts or ():
                if part.thought:
                    said.reasoning += part.text
                else:
                    said.text += part.text or ""
                if part.function_call:
                    said.calls.append((part.function_call.name, part.function_call.args or {}))
                if part.thought_signature:
                    said.sealed = part.thought_signature.decode("latin-1")
        if one.usage_metadata:
            usage = one.usage_metadata
            said.prompt = usage.prompt_token_count
            said.cached = usage.cached_content_token_count or 0
            said.completion = (usage.candidates_token_count or 0) + (
                usage.thoughts_token_count or 0
            )
    return said


async def _ollama(url: str, key: str, question: Question) -> Said:
    options: dict[str, Any] = {"num_predict": question.max_tokens}
    if question.stop:
        options["stop"] = [question.stop]
    asked: dict[str, Any] = {
        "model": question.model,
        "messages": [{"role": "user", "content": question.text}],
        "options": options,
        "tools": [
            {"type": "function", "function": {"name": name, "parameters": _SCHEMA}}
            for name in question.tools
        ],
    }
    client = ollama_client(url, key)
    if question.stream:
        found = [one async for one in await client.chat(**asked, stream=True)]
    else:
        found = [await client.chat(**asked)]
    said = Said()
    for one in found:
        said.text += one.message.content or ""
        said.reasoning += one.message.thinking or ""
        for call in one.message.tool_calls or ():
            said.calls.append((call.function.name, dict(call.function.arguments)))
        said.finish = one.done_reason or said.finish
    said.prompt, said.completion = found[-1].prompt_eval_count, found[-1].eval_count
    return said


async def _bedrock(url: str, key: str, question: Question) -> Said:
    return await asyncio.to_thread(_bedrock_now, url, key, question)


def _bedrock_now(url: str, key: str, question: Question) -> Said:
    settings: dict[str, Any] = {"maxTokens": question.max_tokens}
    if question.stop:
        settings["stopSequences"] = [question.stop]
    asked: dict[str, Any] = {
        "modelId": question.model,
        "messages": [{"role": "user", "content": [{"text": question.text}]}],
        "inferenceConfig": settings,
    }
    if question.tools:
        specs = [{"name": name, "inputSchema": {"json": _SCHEMA}} for name in question.tools]
        asked["toolConfig"] = {"tools": [{"toolSpec": spec} for spec in specs]}
    client = bedrock_client(url, key)
    if not question.stream:
        return _bedrock_whole(client.converse(**asked))
    said, calls = Said(), {}
    for event in client.converse_stream(**asked)["stream"]:
        ((kind, value),) = event.items()
        if kind == "contentBlockStart":
            calls[value["contentBlockIndex"]] = [value["start"]["toolUse"]["name"], ""]
        elif kind == "contentBlockDelta":
            delta = value["delta"]
            said.text += delta.get("text", "")
            said.reasoning += delta.get("reasoningContent", {}).get("text", "")
            said.sealed += delta.get("reasoningContent", {}).get("signature", "")
            if "toolUse" in delta:
                calls[value["contentBlockIndex"]][1] += delta["toolUse"]["input"]
        elif kind == "messageStop":
            said.finish = value.get("stopReason")
        elif kind == "metadata":
            _bedrock_usage(said, value["usage"])
    said.calls = [(name, json.loads(text or "{}")) for name, text in calls.values()]
    return said


def _bedrock_whole(answer: Mapping[str, Any]) -> Said:
    said = Said(finish=answer["stopReason"])
    for block in answer["output"]["message"]["content"]:
        if "text" in block:
            said.text += block["text"]
        elif "toolUse" in block:
            said.calls.append((block["toolUse"]["name"], block["toolUse"]["input"]))
        else:
            thought = block["reasoningContent"]["reasoningText"]
            said.reasoning, said.sealed = thought["text"], thought["signature"]
    _bedrock_usage(said, answer["usage"])
    return said


def _bedrock_usage(said: Said, usage: Mapping[str, Any]) -> None:
    said.prompt, said.completion = usage["inputTokens"], usage["outputTokens"]
    said.cached = usage["cacheReadInputTokens"]


ASK: Mapping[str, Callable[[str, str, Question], Awaitable[Said]]] = {
    "openai_chat": _openai,
    "anthropic": _anthropic,
    "gemini": _gemini,
    "ollama": _ollama,
    "bedrock_converse": _bedrock,
}
"""By dialect: asks at an address with a key. Raises the SDK's own exceptions."""
