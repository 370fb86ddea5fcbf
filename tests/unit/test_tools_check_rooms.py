"""The rules of the rooms: what the checker lets pass and what it refuses."""

from __future__ import annotations

import ast

import pytest

from tools import check_rooms


def found(check, name: str, source: str) -> list[str]:
    return list(check(name, ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio",
        "import time",
        "from os import path",
        "import grpc",
        "from anabranch.v1 import generation_pb2",
        "from services.chassis import errors",
        "from services.auth.core import claims",
        "def f():\n    import grpc",
    ],
)
def test_core_may_not_import_what_reaches_the_world(source):
    assert found(check_rooms._core_problems, "services/router/core/decide.py", source)


@pytest.mark.parametrize(
    "source",
    ["from random import Random", "import math", "from services.router.core.values import Pool"],
)
def test_core_may_import_values_and_itself(source):
    assert not found(check_rooms._core_problems, "services/router/core/decide.py", source)


@pytest.mark.parametrize(
    "source", ["import os\nos.environ['X']", "import os\nos.getenv('X')", "from os import environ"]
)
def test_the_environment_is_read_where_a_process_starts_alone(source):
    check = check_rooms._environment_problems
    assert found(check, "services/router/app.py", source)
    assert not found(check, "services/router/__main__.py", source)


def test_a_library_may_be_told_through_the_environment():
    source = "import os\nos.environ.setdefault('OMP_NUM_THREADS', '2')"
    check = check_rooms._environment_problems
    assert not found(check, "services/local_engine/on_vllm/engine.py", source)


def test_a_package_that_no_image_installs_is_refused():
    check = check_rooms._dependency_problems
    assert found(check, "services/router/app.py", "import pytest")
    assert not found(
        check, "services/router/app.py", "import aiohttp\nfrom google.rpc import code_pb2"
    )


def test_vllm_is_for_one_file():
    check = check_rooms._dependency_problems
    assert found(check, "services/local_engine/handler.py", "import vllm")
    assert not found(check, "services/local_engine/on_vllm/engine.py", "import vllm")


def test_the_client_library_needs_little():
    check = check_rooms._dependency_problems
    assert found(check, "anabranch/client.py", "import aiohttp")
    assert not found(check, "anabranch/client.py", "import grpc")


def test_a_long_file_or_one_without_purpose_is_refused():
    check = check_rooms._shape_problems
    assert list(check("a.py", ast.parse('"""Does this."""'), 401))
    assert list(check("a.py", ast.parse("x = 1"), 1))
    assert not list(check("a.py", ast.parse('"""Does this."""\nx = 1'), 400))
    assert not list(check("__init__.py", ast.parse(""), 0))
