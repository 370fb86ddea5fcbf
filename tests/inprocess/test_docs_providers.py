"""docs/providers.md can be followed to the letter: its files, through its proxy, to its answer."""

from __future__ import annotations

import re
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner

from anabranch.cli import main
from anabranch.v1 import generation_pb2 as pb
from anabranch.v1 import model_pb2
from anabranch.v1.model_pb2_grpc import ModelServiceStub
from services.chassis.errors import Fault, reason_name
from services.chassis.settings import load
from services.cloud_proxy.app import running
from services.cloud_proxy.profile_files import built_in_profiles
from services.cloud_proxy.providers_command import providers
from services.cloud_proxy.settings import Settings
from tests.support.cloud import Proxy, ask
from tests.support.local_keys import LocalKeys
from tests.support.provider import simulator
from tests.support.waiting import BOUND_S

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/providers.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8400"
KEY = "simulator-key"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Every command line of the page that begins with `program`, split into words."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(program)]


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the page's files, as its steps leave them; the working directory."""
    for block in blocks("yaml"):
        first, _ = block.split("\n", 1)
        path = tmp_path / first.removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block, encoding="utf-8")
    (line,) = re.findall(r"echo '(.*)' > river/keys", PAGE)
    (tmp_path / "river/keys").write_text(line + "\n", encoding="ascii")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings_of_the_page() -> dict[str, str]:
    """The proxy's settings as the page's command line gives them."""
    (command,) = (block for block in blocks("sh") if "services.cloud_proxy" in block)
    return dict(re.findall(r"(ANABRANCH_CLOUD_\w+)=(\S+)", command))


@asynccontextmanager
async def proxy_of_the_page(saved: Path) -> AsyncIterator[Proxy]:
    """The proxy with the page's settings, on a free port, and the simulator that it asks."""
    async with simulator(KEY) as provider:
        path = saved / "river/profiles/river-ai.yaml"
        written = path.read_text(encoding="utf-8")
        assert ADDRESS in written
        path.write_text(written.replace(ADDRESS, provider.url), encoding="utf-8")
        free = {
            "ANABRANCH_CLOUD_LISTEN": "127.0.0.1:0",
            "ANABRANCH_CLOUD_HTTP_LISTEN": "127.0.0.1:0",
        }
        settings = load(Settings, "ANABRANCH_CLOUD_", {**settings_of_the_page(), **free})
        keys = LocalKeys()
        async with (
            running(settings, key_source=keys) as host,
            grpc.aio.insecure_channel(host.address) as channel,
        ):
            yield Proxy(ModelServiceStub(channel), provider, host, keys)


async def test_the_steps_lead_to_an_answer_from_the_new_provider(saved: Path) -> None:
    async with proxy_of_the_page(saved) as proxy:
        answer = await proxy.answer(ask("hello", model="river"))
        assert answer.choices[0].text.startswith("[provider simulator]")
        assert answer.receipt.served_model == "sim-chat"
        usage = answer.usage
        assert answer.receipt.cost_microusd == -(
            -(usage.prompt_tokens * 250_000 + usage.completion_tokens * 1_000_000) // 1_000_000
        )
        chunks, fault = await proxy.chunks(ask("words=5", model="river-latest"))
        assert fault is None
        assert "".join(chunk.text for chunk in chunks).startswith("[provider simulator]")
        assert chunks[-1].finish_reason == pb.FINISH_REASON_STOP


async def test_what_the_page_says_of_parameters_is_so(saved: Path) -> None:
    async with proxy_of_the_page(saved) as proxy:
        await proxy.answer(ask(model="river", sampling=pb.Sampling(seed=1, temperature=0)))
        (sent,) = (await proxy.provider.state())["requests"]
        assert sent["temperature"] == 0
        assert "seed" not in sent
        for sampling, feature in (
            (pb.Sampling(top_k=3), "sampling.top_k"),
            (pb.Sampling(stop=list("abcde")), "sampling.stop"),
        ):
            with pytest.raises(Fault) as caught:
                await proxy.answer(ask(model="river", sampling=sampling))
            assert reason_name(caught.value.reason) == "UNSUPPORTED"
            assert caught.value.metadata["feature"] == feature


async def test_the_model_that_only_the_routes_file_knows_answers_too(saved: Path) -> None:
    async with proxy_of_the_page(saved) as proxy:
        answer = await proxy.answer(ask("hello", model="river-reasoner"))
        assert answer.usage.reasoning_tokens > 0
        assert answer.receipt.cost_microusd > 0
        models = await proxy.stub.ListModels(
            model_pb2.ListModelsRequest(), metadata=proxy.metadata, timeout=BOUND_S
        )
        assert {model.name for model in models.models} == {"river", "river-reasoner"}


async def test_another_key_is_refused_by_the_provider(saved: Path) -> None:
    (saved / "river/keys").write_text("river-ai=some-other-key\n", encoding="ascii")
    async with proxy_of_the_page(saved) as proxy:
        with pytest.raises(Fault) as caught:
            await proxy.answer(ask(model="river"))
        assert "some-other-key" not in caught.value.message
        assert "credential" in caught.value.message


def test_every_command_about_providers_works_as_written(saved: Path) -> None:
    found = [words[1:] for words in commands("anabranch ") if words[0] == "providers"]
    assert len(found) >= 5
    for words in found:
        result = CliRunner().invoke(providers, words)
        assert result.exit_code == 0, (words, result.output)


def test_the_other_commands_exist() -> None:
    asked = [words for words in commands("anabranch ") if words[0] != "providers"]
    assert asked
    for words in asked:
        name = next(word for word in words if word in main.commands)
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0
        options = {o for p in main.params for o in p.opts}
        assert {w for w in words[: words.index(name)] if w.startswith("--")} <= options


def test_settings_that_the_page_names_exist() -> None:
    known = {f"ANABRANCH_CLOUD_{name.upper()}" for name in Settings.__dataclass_fields__}
    named = set(re.findall(r"ANABRANCH_CLOUD_[A-Z_]+[A-Z]", PAGE))
    assert {name.removesuffix("_FILE") for name in named} <= {
        name.removesuffix("_FILE") for name in known
    }


def test_the_pages_table_of_providers_is_of_real_ones() -> None:
    table = PAGE.split("| provider | dialect |")[1]
    named = re.findall(r"^\| \[?([a-z0-9-]+)[\] ]", table, re.MULTILINE)
    openai_chat = {n for n, p in built_in_profiles().items() if p.dialect == "openai_chat"}
    assert openai_chat <= set(named) <= set(built_in_profiles())


def test_the_readme_leads_to_the_page() -> None:
    section = (ROOT / "README.md").read_text().split("## Running a service by itself")[1]
    assert "docs/providers.md" in section.split("\n## ")[0]
