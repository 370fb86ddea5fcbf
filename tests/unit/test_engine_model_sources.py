"""Where weights may come from: nothing leads out of what is allowed, nor is waited for for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from anabranch.v1 import errors_pb2
from services.chassis.errors import Fault
from services.local_engine.model_refusal import refused
from services.local_engine.model_sources import ModelSources


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "config.json").write_text("{}")
    model = tmp_path / "allowed" / "model"
    (model / "1_Pooling").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    return tmp_path / "allowed"


def reason(allowed: Path, source: str = "model") -> int:
    with pytest.raises(Fault) as fault:
        ModelSources([str(allowed)]).find(source)
    return fault.value.reason


def test_links_within_what_is_allowed_are_followed(allowed: Path) -> None:
    """As the hub's cache has them: files that are links to blobs beside."""
    (allowed / "blobs").mkdir()
    (allowed / "blobs" / "0").write_text("{}")
    (allowed / "model" / "tokenizer.json").symlink_to("../blobs/0")
    (allowed / "model" / "round").symlink_to("..")
    (allowed / "latest").symlink_to("model")
    assert ModelSources([str(allowed)]).find("latest").directory == allowed / "model"


@pytest.mark.parametrize("where", ["x", "1_Pooling/config.json", "1_Pooling/x"])
def test_a_link_out_is_found_however_deep_it_is(allowed: Path, where: str) -> None:
    (allowed / "model" / where).symlink_to(allowed.parent / "secret" / "config.json")
    assert reason(allowed) == errors_pb2.ERROR_REASON_ACCESS_DENIED


def test_a_link_out_behind_an_allowed_link_is_found(allowed: Path) -> None:
    (allowed / "other").mkdir()
    (allowed / "other" / "out").symlink_to(allowed.parent / "secret")
    (allowed / "model" / "beside").symlink_to(allowed / "other")
    assert reason(allowed) == errors_pb2.ERROR_REASON_ACCESS_DENIED


def test_a_pipe_among_the_files_is_refused_before_anybody_waits_for_it(allowed: Path) -> None:
    os.mkfifo(allowed / "model" / "tokenizer.json")
    assert reason(allowed) == errors_pb2.ERROR_REASON_MODEL_REFUSED


@pytest.mark.parametrize("source", ["..", "../secret", "model/../../secret", "/", "model\0"])
def test_what_is_not_within_is_denied(allowed: Path, source: str) -> None:
    assert reason(allowed, source) == errors_pb2.ERROR_REASON_ACCESS_DENIED


def test_what_a_file_names_makes_no_status_that_is_too_long_to_send() -> None:
    told = refused("x" * 1_000_000 + " is missing").message
    assert len(told) < 512
    assert told.endswith("is missing")
