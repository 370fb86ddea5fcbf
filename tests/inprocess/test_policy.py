"""The routing policy of a real router: from its settings, its file and its operators."""

from __future__ import annotations

import asyncio
import os
import re
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from anabranch import AsyncClient, InvalidRequestError
from anabranch.errors import AccessDeniedError
from services.chassis.settings import SettingsError, load
from services.router.core.policy import AdmissionRules, Objective, Policy
from services.router.policy.document import read
from services.router.settings import PREFIX, Settings
from tests.support.inprocess import MODEL, Cluster, cluster
from tests.support.waiting import until

GOOD = "version: 1\nslow_start: 3s # as it was written\n"
OTHER = "version: 1\nslow_start: 4s\n"
BAD = "version: 1\nslow_start: soon\nmodels: {m: {locl: x}}\n"
BAD_FAULTS = [
    "slow_start: must be a duration such as 250ms, 2s, 1m or 1d, or a number of seconds (line 2)",
    "models.m.locl: is not known; did you mean local? (line 3)",
]


def version_of(text: str) -> str:
    return read(text, Policy()).policy.version


@asynccontextmanager
async def router(
    folder: Path, engines: tuple[dict[str, float], ...] = (), **settings: object
) -> AsyncIterator[tuple[Cluster, AsyncClient]]:
    """A cluster, and an operator of its router."""
    settings = {"patient": False, **settings}
    async with cluster(folder, engines=engines, router=settings) as running:
        assert running.router is not None
        async with AsyncClient(running.router.address, token=await running.token()) as admin:
            yield running, admin


async def in_force(admin: AsyncClient, text: str) -> None:
    async def so() -> bool:
        return (await admin.policy()).text == text

    await until(so)


async def refused(admin: AsyncClient) -> tuple[str, ...]:
    """The faults of a newer document, once there are any; without the line of when and where."""

    async def so() -> bool:
        return bool((await admin.policy()).rejected)

    await until(so)
    return (await admin.policy()).rejected[1:]


async def not_refused(admin: AsyncClient) -> None:
    async def so() -> bool:
        return not (await admin.policy()).rejected

    await until(so)


def replace(path: Path, text: str) -> None:
    """Another file at the path, as careful programs do it."""
    new = path.with_name("new")
    new.write_text(text, encoding="utf-8")
    new.rename(path)


async def test_without_a_document_the_settings_decide_and_are_shown_as_one(tmp_path):
    settings = {"ttft_slo": 7.5, "max_queue_time": 9.0, "max_waiting": 11}
    async with router(tmp_path, **settings) as (_, admin):
        shown = await admin.policy()
    assert (shown.source, shown.rejected) == ("default", ())
    expected = Policy(objective=Objective(7.5), admission=AdmissionRules(11, 9.0))
    document = read(shown.text, Policy())
    assert document.policy.version == shown.version == read("version: 1", expected).policy.version


async def test_what_an_operator_writes_is_in_force_at_once_and_kept_as_written(tmp_path):
    async with router(tmp_path) as (_, admin):
        before = await admin.policy()
        version = await admin.update_policy(GOOD)
        shown = await admin.policy()
    assert version == version_of(GOOD) != before.version
    assert (shown.text, shown.version, shown.source) == (GOOD, version, "admin")


async def test_the_next_request_is_decided_by_the_new_policy(tmp_path):
    async with router(tmp_path, engines=({},)) as (running, admin):
        secret = await running.new_client("web", "generate")
        token = await running.token("web", secret)
        assert running.router is not None
        async with AsyncClient(running.router.address, token=token) as caller:
            with pytest.raises(InvalidRequestError):
                await admin.update_policy(f"version: 1\naliases: {{chat: [{{model: {MODEL}}}, x]}}")
            version = await admin.update_policy(
                f"version: 1\naliases: {{chat: [{{model: {MODEL}}}]}}"
            )
            answer = await caller.generate(model="chat", prompt="hello", max_tokens=3)
            assert answer.receipt is not None
            assert answer.receipt.backend_id.startswith("engine-")
            explained = await admin.explain(model="chat", prompt="hello")
            assert explained.backend_id
            # Requests under way go on as they began.
            async with caller.stream(
                model="chat", prompt="hello", max_tokens=400, ignore_eos=True
            ) as stream:
                async for _ in stream:
                    await admin.update_policy(OTHER, expected_version=version)
                    break
                answer = await stream.finish()
            assert len(answer.choices[0].token_ids) == 400


async def test_a_bad_update_changes_nothing_and_names_every_fault(tmp_path):
    async with router(tmp_path) as (_, admin):
        await admin.update_policy(GOOD)
        with pytest.raises(InvalidRequestError) as bad:
            await admin.update_policy(BAD)
        with pytest.raises(InvalidRequestError) as empty:
            await admin.update_policy("")
        shown = await admin.policy()
    assert bad.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert bad.value.reason == "INVALID_REQUEST"
    assert [f"{v.field}: {v.description}" for v in bad.value.violations] == BAD_FAULTS
    assert [v.field for v in empty.value.violations] == ["policy_yaml"]
    # It was refused to its face: there is nothing more to say of it.
    assert (shown.text, shown.source, shown.rejected) == (GOOD, "admin", ())


async def test_an_update_of_another_version_than_expected_is_refused(tmp_path):
    async with router(tmp_path) as (_, admin):
        first = await admin.policy()
        version = await admin.update_policy(GOOD, expected_version=first.version)
        with pytest.raises(InvalidRequestError) as late:
            await admin.update_policy(OTHER, expected_version=first.version)
        assert (await admin.policy()).text == GOOD
        # Repeating an update is no harm, and neither is expecting what one has made oneself.
        assert await admin.update_policy(GOOD, expected_version=version) == version
        assert await admin.update_policy(GOOD) == version
    assert late.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert late.value.reason == "VERSION_MISMATCH"
    assert late.value.metadata["version"] == version


async def test_only_administrators_read_and_write_it(tmp_path):
    async with router(tmp_path) as (running, _):
        secret = await running.new_client("web", "generate")
        assert running.router is not None
        token = await running.token("web", secret)
        async with AsyncClient(running.router.address, token=token) as caller:
            with pytest.raises(AccessDeniedError):
                await caller.policy()
            with pytest.raises(AccessDeniedError):
                await caller.update_policy(GOOD)


async def test_a_file_is_followed_and_a_bad_one_is_not(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    async with router(tmp_path, policy=f"file:{path}") as (running, admin):
        shown = await admin.policy()
        assert (shown.text, shown.source, shown.version) == (GOOD, "file", version_of(GOOD))
        replace(path, OTHER)
        await in_force(admin, OTHER)
        replace(path, BAD)
        assert list(await refused(admin)) == BAD_FAULTS
        shown = await admin.policy()
        assert (shown.text, shown.version) == (OTHER, version_of(OTHER))
        when = rf"file {path} at \d{{4}}-\d\d-\d\dT[\d:]+\+00:00 was refused:"
        assert re.fullmatch(when, shown.rejected[0])
        assert running.router is not None
        assert await asyncio.to_thread(metrics, running.router.http_address) == {
            f'info{{source="file",version="{version_of(OTHER)}"}}': 1.0,
            "rejected": 1.0,
            "rejections_total": 1.0,
        }
        replace(path, GOOD)
        await in_force(admin, GOOD)
        assert (await admin.policy()).rejected == ()


def metrics(address: str) -> dict[str, float]:
    """What /metrics says of the policy."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = re.findall(r"^anabranch_router_policy_(\S+) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


async def test_a_file_that_returns_to_what_is_in_force_is_no_longer_called_bad(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    async with router(tmp_path, policy=f"file:{path}") as (_, admin):
        replace(path, BAD)
        await refused(admin)
        replace(path, GOOD)
        await not_refused(admin)
        assert (await admin.policy()).text == GOOD


async def test_a_file_changed_in_place_is_followed(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    async with router(tmp_path, policy=f"file:{path}") as (_, admin):
        path.write_text(OTHER)
        await in_force(admin, OTHER)


async def test_a_swapped_symbolic_link_is_followed(tmp_path):
    # As Kubernetes renews a ConfigMap: policy.yaml → ..data/policy.yaml, ..data → ..<date>.
    mount = tmp_path / "mount"
    for name, text in (("..1", GOOD), ("..2", OTHER)):
        (mount / name).mkdir(parents=True)
        (mount / name / "policy.yaml").write_text(text)
    (mount / "..data").symlink_to("..1")
    (mount / "policy.yaml").symlink_to("..data/policy.yaml")
    async with router(tmp_path, policy=f"file:{mount}/policy.yaml") as (_, admin):
        assert (await admin.policy()).text == GOOD
        (mount / "..tmp").symlink_to("..2")
        os.replace(mount / "..tmp", mount / "..data")
        await in_force(admin, OTHER)


async def test_a_file_that_is_gone_leaves_the_last_good_policy(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    async with router(tmp_path, policy=f"file:{path}") as (_, admin):
        path.unlink()
        assert await refused(admin) == ("cannot be read: No such file or directory",)
        assert (await admin.policy()).text == GOOD
        path.mkdir()

        async def is_no_file() -> bool:
            return "is no regular file" in (await admin.policy()).rejected

        await until(is_no_file)
        path.rmdir()
        path.write_text(OTHER)
        await in_force(admin, OTHER)


async def test_an_update_holds_until_the_file_changes(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    last = "version: 1\nslow_start: 5s\n"
    async with router(tmp_path, policy=f"file:{path}") as (_, admin):
        replace(path, BAD)
        await refused(admin)
        # Made in view of the bad file: that does not come back, and is not spoken of any more.
        await admin.update_policy(OTHER)
        shown = await admin.policy()
        assert (shown.text, shown.source, shown.rejected) == (OTHER, "admin", ())
        replace(path, last)
        await in_force(admin, last)
        assert (await admin.policy()).source == "file"


@pytest.mark.parametrize(
    ("text", "faults"),
    [(BAD, BAD_FAULTS), (None, ["cannot be read: No such file or directory"])],
    ids=["bad", "missing"],
)
async def test_a_router_does_not_start_with_a_bad_file(tmp_path, text, faults):
    path = tmp_path / "policy.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises((SettingsError, ExceptionGroup)) as stopped:
        async with router(tmp_path, policy=f"file:{path}"):
            pass
    error: BaseException = stopped.value
    while isinstance(error, ExceptionGroup):
        assert len(error.exceptions) == 1
        error = error.exceptions[0]
    assert isinstance(error, SettingsError)
    assert error.problems == [f"file {path}: {fault}" for fault in faults]


@pytest.mark.parametrize(
    "text", ["policy.yaml", "file:", "consul:", "consul:/a", "consul:a/../b", "consul:a b", "x:y"]
)
def test_a_setting_that_names_no_place_is_refused(text):
    with pytest.raises(SettingsError, match=f"{PREFIX}POLICY"):
        load(Settings, PREFIX, {f"{PREFIX}POLICY": text})


def test_a_key_needs_a_registry_that_holds_keys():
    environ = {f"{PREFIX}POLICY": "consul:a/b", f"{PREFIX}REGISTRY": "none"}
    with pytest.raises(SettingsError, match=f"{PREFIX}REGISTRY must be consul"):
        load(Settings, PREFIX, environ)
    load(Settings, PREFIX, environ | {f"{PREFIX}REGISTRY": "consul://127.0.0.1:8500"})
