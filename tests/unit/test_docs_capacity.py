"""What docs/capacity.md shows is what the command prints."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from anabranch.cli import main

PAGE = (Path(__file__).resolve().parents[2] / "docs/capacity.md").read_text(encoding="utf-8")


def test_the_example_prints_what_the_page_shows():
    command = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    shown = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert command is not None
    assert shown is not None
    program, *arguments = shlex.split(command[1].replace("\\\n", ""))
    assert program == ".venv/bin/anabranch"
    clean = {name: None for name in os.environ if name.startswith("ANABRANCH_")}
    result = CliRunner().invoke(main, arguments, env=clean)
    printed = "\n".join(line.rstrip() for line in result.stdout.splitlines())
    assert printed == shown[1].rstrip("\n")
