"""Answers that must have a form have it: the real engine, a real model, one start for all."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import jsonschema
import pytest
import pytest_asyncio
from google.protobuf import json_format

from anabranch.v1 import errors_pb2, session_pb2
from anabranch.v1 import generation_pb2 as pb
from services.chassis.errors import Fault, fault_from_status
from tests.inprocess.test_local_engine import MODEL_NAME, Caller, engine, refusal
from tests.support.engines import MODEL
from tests.support.random_schemas import random_schema

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
]
LONG_S = 600.0
BOMB = "(([a-z]*)*)*x"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller() -> AsyncIterator[Caller]:
    if not MODEL.is_dir():
        pytest.skip("no model: run tools/fetch_model.py")
    started: asyncio.Future[Caller] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def serve() -> None:  # a fixture's two halves may run in different tasks
        settings: dict[str, Any] = {
            "engine": "vllm",
            "model": str(MODEL),
            "step_model": "",
            "max_num_seqs": 32,
            "max_model_len": 1024,
            "cpu_kv_cache_gib": 1,
            "compact_json": True,
            "grammar_timeout": 10.0,  # what a busy machine needs for half a second of work
        }
        async with engine(None, **settings) as found:
            started.set_result(found)
            await stop.wait()

    serving = asyncio.create_task(serve())
    await asyncio.wait([serving, started], return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        await serving
    yield started.result()
    stop.set()
    await serving


def asked(form: pb.ResponseFormat, prompt: str = "Answer:", **sampling: Any) -> pb.GenerateRequest:
    given = {"max_tokens": 400, "temperature": 1.0, "seed": 7} | sampling
    return pb.GenerateRequest(
        model=MODEL_NAME, prompt=prompt, sampling=pb.Sampling(**given), response_format=form
    )


def schema(document: Any) -> pb.ResponseFormat:
    return pb.ResponseFormat(json_schema=json.dumps(document))


def choices(*options: str) -> pb.ResponseFormat:
    return pb.ResponseFormat(choice=pb.ResponseFormat.Choice(options=options))


async def ask(caller: Caller, request: pb.GenerateRequest) -> pb.GenerateResponse:
    answer: pb.GenerateResponse = await caller.stub.Generate(
        request, metadata=caller.metadata, timeout=LONG_S
    )
    return answer


async def ask_all(
    caller: Caller, requests: Sequence[pb.GenerateRequest]
) -> list[tuple[str, int, Fault | None]]:
    """Text, finish reason and error of each, all asked in one session."""
    call = caller.stub.Session(metadata=caller.metadata, timeout=LONG_S)
    await call.write(
        session_pb2.SessionRequest(
            frames=[
                session_pb2.SessionRequestFrame(stream=number, start=request)
                for number, request in enumerate(requests, 1)
            ]
        )
    )
    await call.done_writing()
    texts, ends = [""] * len(requests), [0] * len(requests)
    faults: list[Fault | None] = [None] * len(requests)
    async for message in call:
        for frame in message.frames:
            at = frame.stream - 1
            if frame.HasField("error"):
                faults[at] = fault_from_status(frame.error)
            texts[at] += frame.chunk.text
            ends[at] = frame.chunk.finish_reason or ends[at]
    return list(zip(texts, ends, faults, strict=True))


async def refused(caller: Caller, form: pb.ResponseFormat, **sampling: Any) -> Fault:
    call = caller.stub.Generate(asked(form, **sampling), metadata=caller.metadata, timeout=LONG_S)
    fault: Fault = await refusal(call)
    return fault


async def test_answers_to_a_hundred_random_schemas_parse_and_satisfy_them(caller):
    documents = [random_schema(seed) for seed in range(100)]
    assert len({json.dumps(document) for document in documents}) == 100
    assert sum(_parts(document) >= 5 for document in documents) >= 35, "they are too simple"
    answers = await ask_all(caller, [asked(schema(d)) for d in documents])
    for document, (text, finish, fault) in zip(documents, answers, strict=True):
        assert fault is None, (document, fault)
        assert finish == pb.FINISH_REASON_STOP, (document, text)
        jsonschema.validate(json.loads(text), document)


def _parts(schema: Any) -> int:
    """How many schemas it is made of."""
    if isinstance(schema, list):
        return sum(map(_parts, schema))
    if not isinstance(schema, dict):
        return 0
    inner = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("prefixItems")]
    return 1 + _parts([*inner, schema.get("anyOf")])


@pytest.mark.parametrize("pattern", [r"[0-9]{3}-[a-z]{2,4}", r"(yes|no)( maybe)?", r"[A-Z]\.[^a]b"])
async def test_an_answer_matches_its_regular_expression_whole(caller, pattern):
    answer = await ask(caller, asked(pb.ResponseFormat(regex=pattern)))
    assert answer.choices[0].finish_reason == pb.FINISH_REASON_STOP
    assert re.fullmatch(pattern, answer.choices[0].text)


@pytest.mark.parametrize(
    "options", [("no", "yes"), ('say "hi"', "back\\slash"), ("two\nlines", "日本", "a#b//c")]
)
async def test_an_answer_is_one_of_its_choices(caller, options):
    answer = await ask(caller, asked(choices(*options)))
    assert answer.choices[0].text in options


async def test_an_answer_is_of_its_grammar(caller):
    form = pb.ResponseFormat(grammar='root ::= term ("+" term)? \nterm ::= [0-9] | "(" root ")"')
    answer = await ask(caller, asked(form, max_tokens=60))
    text = answer.choices[0].text
    assert answer.choices[0].finish_reason in (pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH)
    assert re.fullmatch(r"[0-9+()]+", text)
    if answer.choices[0].finish_reason == pb.FINISH_REASON_STOP:
        assert re.sub(r"[0-9]", "1", text).count("(") == text.count(")")


async def test_any_json_is_json(caller):
    form = pb.ResponseFormat(json_object=pb.ResponseFormat.JsonObject())
    answer = await ask(caller, asked(form, prompt='JSON: {"name": "Ann"}. Another one:'))
    if answer.choices[0].finish_reason == pb.FINISH_REASON_STOP:
        json.loads(answer.choices[0].text)
    assert answer.choices[0].text.startswith("{")


async def test_each_of_several_choices_has_the_form_streamed_or_whole(caller):
    document = {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 3}
    request = asked(schema(document), n=4)
    whole = await ask(caller, request)
    assert len(whole.choices) == 4
    for choice in whole.choices:
        jsonschema.validate(json.loads(choice.text), document)
    stream = caller.stub.StreamGenerate(request, metadata=caller.metadata, timeout=LONG_S)
    texts = dict.fromkeys(range(4), "")
    async for chunk in stream:
        texts[chunk.index] += chunk.text
    for text in texts.values():
        jsonschema.validate(json.loads(text), document)


async def test_a_stop_string_cuts_an_answer_and_says_so(caller):
    answer = await ask(caller, asked(pb.ResponseFormat(regex="abc-def"), stop=["-d"]))
    choice = answer.choices[0]
    assert (choice.text, choice.matched_stop) == ("abc", "-d")
    assert choice.finish_reason == pb.FINISH_REASON_STOP


async def test_an_answer_that_is_cut_by_its_length_says_so(caller):
    answer = await ask(caller, asked(pb.ResponseFormat(regex="[a-z]{100}"), max_tokens=5))
    assert answer.choices[0].finish_reason == pb.FINISH_REASON_LENGTH


@pytest.mark.parametrize("field", ["min_tokens", "ignore_eos"])
async def test_what_would_keep_a_complete_answer_from_ending_is_refused(caller, field):
    fault = await refused(caller, choices("yes"), **{field: 1})
    assert [v.field for v in fault.violations] == [f"sampling.{field}"]


async def test_forms_that_would_hang_the_engine_do_not_disturb_a_running_answer(caller):
    """vLLM hangs over the expression: it compiles in no time, its fourth token never ends."""
    story = pb.GenerateRequest(
        model=MODEL_NAME,
        prompt="Tell me of the river.",
        sampling=pb.Sampling(max_tokens=60, temperature=0.0, ignore_eos=True),
    )
    bombs = [asked(pb.ResponseFormat(regex=BOMB + "y" * n)) for n in range(4)]
    bombs += [asked(pb.ResponseFormat(grammar='root ::= x x\nx ::= x x | [a-z]* | ""'))]
    answers = await ask_all(caller, [story, *bombs, asked(choices("yes", "no"))])
    assert answers[0][1] == pb.FINISH_REASON_LENGTH
    for _, _, fault in answers[1:-1]:
        assert fault is not None
        assert fault.reason == errors_pb2.ERROR_REASON_INVALID_REQUEST
        assert fault.violations[0].field in ("response_format.regex", "response_format.grammar")
    assert answers[-1][0] in ("yes", "no")


async def test_the_requests_that_the_documentation_shows_are_answered_in_their_form(caller):
    page = (Path(__file__).parents[2] / "docs/structured-output.md").read_text(encoding="utf-8")
    texts = re.findall(r"-d '(.*)'", page)
    forms = ("yes|no", r"[0-9]{3}-[0-9]{4}", r"[1-9]\+[1-9]")
    for text, form in zip(texts, forms, strict=True):
        request = json_format.Parse(text, pb.GenerateRequest())
        request.model = MODEL_NAME
        assert re.fullmatch(form, (await ask(caller, request)).choices[0].text)


async def test_cve_2025_48942_a_schema_that_does_not_compile_ends_its_request_only(caller):
    for document in ({"type": "strng"}, {"type": "array", "items": {"type": 7}}, {"$ref": "#/no"}):
        fault = await refused(caller, schema(document))
        assert fault.code == grpc.StatusCode.INVALID_ARGUMENT, document
        assert fault.violations[0].field == "response_format.json_schema"
    assert (await ask(caller, asked(choices("yes")))).choices[0].text == "yes"


async def test_cve_2025_48943_an_invalid_expression_ends_its_request_only(caller):
    for pattern in ("(", "[", "a{2,1}", "*"):
        fault = await refused(caller, pb.ResponseFormat(regex=pattern))
        assert fault.code == grpc.StatusCode.INVALID_ARGUMENT, pattern
        assert fault.violations[0].field == "response_format.regex"
    assert (await ask(caller, asked(choices("yes")))).choices[0].text == "yes"


async def test_cve_2026_105757_every_form_goes_to_the_one_backend_it_was_checked_against(caller):
    """What another backend would have been asked for is refused, and xgrammar goes on."""
    for document in (
        {"type": "integer", "multipleOf": 3},
        {"type": "array", "items": {}, "uniqueItems": True},
        {"type": "string", "format": "no-such-format"},
    ):
        fault = await refused(caller, schema(document))
        assert fault.violations[0].field == "response_format.json_schema"
    fault = await refused(caller, pb.ResponseFormat(grammar=" "))
    assert fault.violations[0].field == "response_format.grammar"
    answer = await ask(caller, asked(schema({"type": "integer", "minimum": 1, "maximum": 9})))
    assert answer.choices[0].text in set("123456789")


async def test_cve_2026_55574_an_expression_that_explodes_is_refused_in_bounded_time(caller):
    async with asyncio.timeout(60):
        fault = await refused(caller, pb.ResponseFormat(regex="(([a-z]+){1,60}){1,60}"))
    assert fault.violations[0].field == "response_format.regex"


async def test_cve_2026_25048_grammars_of_rules_within_rules_never_reach_the_engine(caller):
    """xgrammar refuses many parentheses by itself; many rules it compiles, given time for it."""
    rules = "".join(f'r{n} ::= r{n + 1} "b" | "c"\n' for n in range(2600))
    for grammar in ("root ::= " + "(" * 30_000 + '"a"', f"root ::= r0\n{rules}r2600 ::= root"):
        fault = await refused(caller, pb.ResponseFormat(grammar=grammar))
        assert fault.violations[0].field == "response_format.grammar"
    assert (await ask(caller, asked(choices("yes")))).choices[0].text == "yes"


async def test_cve_2025_48944_a_malformed_pattern_or_type_ends_its_request_only(caller):
    for inner in ({"type": "string", "pattern": "("}, {"type": "something"}, {"pattern": "[a-"}):
        fault = await refused(caller, schema({"type": "object", "properties": {"x": inner}}))
        assert fault.violations[0].field == "response_format.json_schema", inner
    assert (await ask(caller, asked(choices("yes")))).choices[0].text == "yes"


async def test_cve_2025_58446_a_huge_enumeration_is_judged_in_bounded_time(caller):
    names = [f"a value with number {number}" for number in range(2000)]
    async with asyncio.timeout(120):
        answer = await ask(caller, asked(schema({"enum": names})))
    assert json.loads(answer.choices[0].text) in names


async def test_a_text_whose_bytes_alone_exceed_the_context_is_not_tokenised(
    caller,
):
    request = pb.GenerateRequest(
        model=MODEL_NAME, prompt=" " * 200_000, sampling=pb.Sampling(max_tokens=1)
    )
    fault = await refusal(caller.stub.Generate(request, metadata=caller.metadata, timeout=LONG_S))
    assert fault.code == grpc.StatusCode.OUT_OF_RANGE
    assert "200000 bytes" in fault.message


async def test_cve_2025_32444_no_socket_of_the_engine_can_be_reached_from_another_machine(caller):
    """Also CVE-2025-30165 and CVE-2025-47277: vLLM reads pickles from its own sockets."""
    ours = {int(a.rpartition(":")[2]) for a in (caller.host.address, caller.host.http_address)}
    found = _listening(_tree(os.getpid()))
    assert {port for _, port in found} >= ours
    assert [(at, port) for at, port in found if not at.startswith("127.")] == []


def _tree(pid: int) -> set[int]:
    """A process and all that it has begun."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text("ascii", "replace").rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _listening(pids: set[int]) -> set[tuple[str, int]]:
    """Address and port of each TCP socket that one of these processes listens on."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text("ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:  # LISTEN
                address, _, port = fields[1].partition(":")
                found.add((_readable(address), int(port, 16)))
    return found


def _readable(address: str) -> str:
    raw = b"".join(bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8))
    if len(raw) == 4 or raw[:12] == bytes(10) + b"\xff\xff":
        return ".".join(map(str, raw[-4:]))
    return "127.::1" if raw == bytes(15) + b"\x01" else raw.hex(":", 2)
