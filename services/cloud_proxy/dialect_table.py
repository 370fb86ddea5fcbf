"""Which codec speaks each dialect, and which reader cuts each framing. Nothing else is here."""

from __future__ import annotations

from collections.abc import Mapping

from services.cloud_proxy.dialects import Dialect, Framing
from services.cloud_proxy.dialects.anthropic import Anthropic
from services.cloud_proxy.dialects.bedrock_converse import BedrockConverse
from services.cloud_proxy.dialects.gemini import Gemini
from services.cloud_proxy.dialects.ollama import Ollama
from services.cloud_proxy.dialects.openai_chat import OpenAiChat
from services.cloud_proxy.streams import StreamReader
from services.cloud_proxy.streams.aws_event_stream import AwsEventStreamReader
from services.cloud_proxy.streams.ndjson import NdjsonReader
from services.cloud_proxy.streams.sse import SseReader

DIALECTS: Mapping[str, Dialect] = {
    "gemini": Gemini(),
    "anthropic": Anthropic(),
    "openai_chat": OpenAiChat(),
    "bedrock_converse": BedrockConverse(),
    "ollama": Ollama(),
}
"""Codecs hold no state of their own, so that one each is enough."""


def reader_for(framing: Framing, *, max_line: int, max_event: int) -> StreamReader:
    """A fresh reader for one response; the caps are in bytes."""
    if framing is Framing.AWS_EVENT_STREAM:
        return AwsEventStreamReader(max_event=max_event)
    if framing is Framing.NDJSON:
        return NdjsonReader(max_line=max_line)
    return SseReader(max_line=max_line, max_event=max_event)
