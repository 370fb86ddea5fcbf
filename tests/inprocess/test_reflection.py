"""Reflection over a real server, in both versions, with comments; and read by a real tool."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2 as r
from grpc_tools import protoc

from services.chassis.reflection import V1, V1ALPHA, add_reflection
from tests.support.waiting import BOUND_S

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ["anabranch.v1.ModelService", "anabranch.v1.AuthService"]


@pytest.fixture(scope="module")
def protoset(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("protoset") / "x.protoset"
    imports = Path(status_pb2.__file__).parents[2]
    grpc_imports = Path(protoc.__file__).parent / "_proto"
    files = [str(p) for p in sorted((ROOT / "protos/anabranch/v1").glob("*.proto"))]
    arguments = [f"-I{ROOT / 'protos'}", f"-I{imports}", f"-I{grpc_imports}", *files]
    flags = ["--include_imports", "--include_source_info", f"--descriptor_set_out={out}"]
    assert protoc.main(["protoc", *flags, *arguments]) == 0
    return out.read_bytes()


@pytest.fixture
async def address(protoset: bytes) -> AsyncIterator[str]:
    server = grpc.aio.server()
    add_reflection(server, protoset, SERVICES)
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def ask(address: str, *requests: r.ServerReflectionRequest, version: str = V1) -> list[Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(
            f"/{version}/ServerReflectionInfo",
            request_serializer=r.ServerReflectionRequest.SerializeToString,
            response_deserializer=r.ServerReflectionResponse.FromString,
        )
        return [answer async for answer in call(iter(requests), timeout=BOUND_S)]


def files(answer: r.ServerReflectionResponse) -> list[FileDescriptorProto]:
    raw = answer.file_descriptor_response.file_descriptor_proto
    return [FileDescriptorProto.FromString(one) for one in raw]


@pytest.mark.parametrize("version", [V1, V1ALPHA])
async def test_every_service_is_listed_in_both_versions(address: str, version: str):
    (answer,) = await ask(address, r.ServerReflectionRequest(list_services=""), version=version)
    names = [service.name for service in answer.list_services_response.service]
    assert names == sorted([*SERVICES, "grpc.health.v1.Health", V1, V1ALPHA])


@pytest.mark.parametrize(
    "symbol",
    [
        "anabranch.v1.ModelService",
        "anabranch.v1.ModelService.Generate",
        "anabranch.v1.GenerateRequest",
        ".anabranch.v1.GenerateRequest",
        "anabranch.v1.GenerateRequest.model",
        "anabranch.v1.FINISH_REASON_CANCELLED",
        "grpc.health.v1.Health",
        "grpc.health.v1.HealthCheckResponse.ServingStatus",
        V1,
        V1ALPHA,
        "google.protobuf.FieldOptions",
        # What errors carry: tools that print them look their types up here.
        "google.rpc.ErrorInfo",
        "google.rpc.RetryInfo",
    ],
)
async def test_a_symbol_brings_its_file_and_all_its_imports(address: str, symbol: str):
    request = r.ServerReflectionRequest(file_containing_symbol=symbol)
    (answer,) = await ask(address, request)
    found = files(answer)
    pool = descriptor_pool.DescriptorPool()
    left = {file.name: file for file in found}
    added: set[str] = set()
    while left:  # in the order of their imports; one that is missing makes this fail
        ready = next(f for f in left.values() if added.issuperset(f.dependency))
        pool.AddSerializedFile(left.pop(ready.name).SerializeToString())
        added.add(ready.name)
    assert pool.FindFileByName(found[0].name)
    assert answer.original_request == request


async def test_comments_survive(address: str):
    request = r.ServerReflectionRequest(file_by_filename="anabranch/v1/model.proto")
    (answer,) = await ask(address, request)
    comments = [place.leading_comments for place in files(answer)[0].source_code_info.location]
    assert sum(bool(comment.strip()) for comment in comments) > 5


async def test_extensions_are_found_by_number(address: str):
    numbers, unknown = await ask(
        address,
        r.ServerReflectionRequest(all_extension_numbers_of_type="google.protobuf.MethodOptions"),
        r.ServerReflectionRequest(all_extension_numbers_of_type="anabranch.v1.Nothing"),
    )
    found = list(numbers.all_extension_numbers_response.extension_number)
    assert found
    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    wanted = r.ExtensionRequest(
        containing_type="google.protobuf.MethodOptions", extension_number=found[0]
    )
    (answer,) = await ask(address, r.ServerReflectionRequest(file_containing_extension=wanted))
    assert files(answer)[0].package == "anabranch.v1"


async def test_what_is_unknown_is_an_answer_and_the_stream_goes_on(address: str):
    answers = await ask(
        address,
        r.ServerReflectionRequest(file_by_filename="no.proto"),
        r.ServerReflectionRequest(file_containing_symbol="no.Thing"),
        r.ServerReflectionRequest(
            file_containing_extension=r.ExtensionRequest(containing_type="no.T", extension_number=1)
        ),
        r.ServerReflectionRequest(),
        r.ServerReflectionRequest(list_services=""),
    )
    codes = [answer.error_response.error_code for answer in answers]
    assert codes == [5, 5, 5, 3, 0]


async def buf_curl(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("buf")),
        "curl",
        "--http2-prior-knowledge",
        "--protocol=grpc",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


@pytest.mark.parametrize("protocol", ["grpc-v1", "grpc-v1alpha"])
async def test_buf_curl_reads_it(address: str, protocol: str):
    code, out = await buf_curl(
        "--reflect-protocol", protocol, "--list-methods", f"http://{address}"
    )
    assert code == 0, out
    assert "anabranch.v1.ModelService/Generate" in out
    code, out = await buf_curl(
        "--reflect-protocol",
        protocol,
        "--data",
        "{}",
        f"http://{address}/grpc.health.v1.Health/Check",
    )
    assert code == 0, out
    assert json.loads(out) == {"status": "SERVING"}
