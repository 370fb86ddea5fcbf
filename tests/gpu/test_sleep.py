"""A model that sleeps gives the GPU's memory back, takes nothing, and wakes as the same model."""

from __future__ import annotations

import shutil
import subprocess

import grpc
import pytest

from anabranch.v1 import generation_pb2 as pb
from tests.support.gpu_engines import NAME, engine, greedy

admin = pytest.importorskip("anabranch.v1.model_admin_pb2", reason="no models at run time here")
stubs = pytest.importorskip("anabranch.v1.model_admin_pb2_grpc")

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def used_mib() -> int:
    """Memory of the first GPU in use, by everybody."""
    tool = shutil.which("nvidia-smi")
    assert tool is not None
    said = subprocess.run(
        [tool, "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return int(said.stdout.split()[0])


@pytest.mark.parametrize("level", [1, 2])
async def test_a_sleeping_model_frees_its_memory_and_wakes_as_it_was(level, tmp_path):
    question = pb.Message(
        role=pb.ROLE_USER, content=[pb.ContentPart(text="What is the capital of France?")]
    )
    request = pb.GenerateRequest(model=NAME, messages=[question], sampling=greedy(24))
    async with engine(tmp_path, sleep_mode=True) as caller:
        models = stubs.ModelAdminServiceStub(caller.channel)
        metadata = caller.admin_metadata
        before = await caller.generate(request)
        full = used_mib()
        slept = await models.Sleep(
            admin.SleepRequest(name=NAME, level=level), metadata=metadata, timeout=120
        )
        asleep = used_mib()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await caller.generate(request)
        await models.Wake(admin.WakeRequest(name=NAME), metadata=metadata, timeout=300)
        after = await caller.generate(request)
    assert slept.model.sleep_level == level
    # Weights and KV cache are gigabytes; what stays is the process's own.
    assert asleep < full / 2
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert after.choices[0].text == before.choices[0].text
