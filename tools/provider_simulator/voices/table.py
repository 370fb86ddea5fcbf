"""Every voice of the simulator, by the name of its dialect. Nothing else is here."""

from __future__ import annotations

from collections.abc import Mapping

from tools.provider_simulator.voices import Voice
from tools.provider_simulator.voices.anthropic import Anthropic
from tools.provider_simulator.voices.bedrock_converse import BedrockConverse
from tools.provider_simulator.voices.gemini import Gemini
from tools.provider_simulator.voices.ollama import Ollama
from tools.provider_simulator.voices.openai_chat import OpenAiChat

_ALL: tuple[Voice, ...] = (OpenAiChat(), Anthropic(), Gemini(), Ollama(), BedrockConverse())
VOICES: Mapping[str, Voice] = {voice.name: voice for voice in _ALL}
