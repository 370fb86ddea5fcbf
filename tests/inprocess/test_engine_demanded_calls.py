"""Calls that are demanded of models whose calls have no form of their own in vLLM: real engines.

vLLM has such calls sampled as JSON, under a schema that it writes itself.
"""

from __future__ import annotations

import json

import jsonschema
import pytest

from anabranch.v1 import generation_pb2 as pb
from tests.inprocess.test_engine_tools import NAMED, SCHEMA, WEATHER, request, whole
from tests.inprocess.test_local_engine import engine
from tests.support.engines import MODEL
from tests.support.tool_model import write_tool_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

CLOCK = pb.Tool(
    name="get_time",
    parameters_json_schema=json.dumps(
        {"type": "object", "properties": {}, "additionalProperties": False}
    ),
)
REQUIRED = pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)


@pytest.mark.parametrize("parser", ["pythonic", "llama4_pythonic"])
async def test_a_call_of_some_tool_or_of_a_named_one_can_be_demanded(parser, tmp_path):
    if not MODEL.is_dir():
        pytest.skip("no model: run tools/fetch_model.py")
    settings = {
        "engine": "vllm",
        "model": str(write_tool_model(tmp_path / "tool-model")),
        "step_model": "",
        "max_num_seqs": 8,
        "max_model_len": 1024,
        "cpu_kv_cache_gib": 1,
        "compact_json": True,
        "grammar_timeout": 10.0,
        "tool_parser": parser,
    }
    async with engine(None, **settings) as caller:
        for choice in (REQUIRED, NAMED):
            text = "The weather in Bern, please."
            asked = request(text, tools=[WEATHER, CLOCK], tool_choice=choice)
            answer = (await whole(caller, asked)).choices[0]
            assert answer.tool_calls, answer
            # As many as come to its mind: the last one may be cut.
            first = answer.tool_calls[0]
            assert first.name in (
                ("get_weather", "get_time") if choice is REQUIRED else (NAMED.name,)
            )
            if first.name == "get_weather":
                jsonschema.validate(json.loads(first.arguments), SCHEMA)
