"""The OpenAI chat codec with the profiles that its tests ask by, and requests to encode."""

from anabranch.v1 import generation_pb2 as pb
from services.cloud_proxy.config import Route
from services.cloud_proxy.dialects.openai_chat import OpenAiChat
from tests.support.provider import route

MODELS = {
    "deepseek": "deepseek-v4-flash",
    "openai": "gpt-4.1",
    "azure-openai": "gpt",
    "moonshot": "kimi-k2",
    "openai-compatible": "x/y",
    "simulator": "sim-chat",
}
BASE = {"azure-openai": "https://r.openai.azure.com", "openai-compatible": "https://h",
        "simulator": "http://127.0.0.1:1"}  # fmt: skip
CODEC = OpenAiChat()


READ: dict[str, Route] = {}


def routed(tmp_path, provider):
    if provider not in READ:
        where = {"base_url": BASE[provider]} if provider in BASE else {}
        READ[provider] = route(tmp_path, provider, MODELS[provider], **where)
    return READ[provider]


def asked(**fields) -> pb.GenerateRequest:
    fields.setdefault("messages", [said("hello")])
    return pb.GenerateRequest(model="m", **fields)


def said(text: str, role=pb.ROLE_USER) -> pb.Message:
    return pb.Message(role=role, content=[pb.ContentPart(text=text)])
