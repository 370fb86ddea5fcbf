"""The commands of docs/models-at-run-time.md, run as printed."""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path

from click.testing import CliRunner

from anabranch.cli import main
from services.local_engine.app import running
from services.local_engine.settings import Settings
from tests.support.local_keys import LocalKeys
from tests.support.runbook import commands
from tests.support.weights import write_adapter

PAGE = Path(__file__).resolve().parents[2] / "docs/models-at-run-time.md"


async def test_the_page_s_commands_do_what_it_says(tmp_path: Path) -> None:
    (block,) = commands(PAGE.read_text(encoding="utf-8"))
    lines = [line.replace("/models/", f"{tmp_path}/") for line in block.script.splitlines()]
    assert len(lines) == 8
    (tmp_path / "small").mkdir()
    write_adapter(tmp_path / "lora/support", {"layers.0.q_proj": (8, 8)}, rank=4)
    keys = LocalKeys()
    settings = Settings(
        listen="127.0.0.1:0",
        http_listen="127.0.0.1:0",
        engine="sim",
        served_model_name="river",
        model_sources=(str(tmp_path),),
        max_adapters=1,
        sleep_mode=True,
        drain_timeout=5.0,
    )
    said: list[str] = []
    async with running(settings, key_source=keys) as host:
        environment = {"ANABRANCH_TARGET": host.address, "ANABRANCH_TOKEN": keys.token("admin")}
        for line in lines:
            program, *words = shlex.split(line)
            assert program == "anabranch"
            done = await asyncio.to_thread(CliRunner().invoke, main, words, env=environment)
            assert done.exit_code == 0, (line, done.output, done.exception)
            said.append(done.output)
    assert "tiny" in said[1]
    assert "4096" in said[1]
    names = [one["model"]["name"] for one in json.loads(said[3])]
    assert names == ["river", "small", "small:support"]
    assert "tiny" in said[4], "the alias stays"
    assert "asleep (level 1)" in said[5]
    assert "serving" in said[6]
    assert "out of service" in said[7]
