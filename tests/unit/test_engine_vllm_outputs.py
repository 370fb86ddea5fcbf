"""Which way of vLLM's outputs is taken, and that what is unknown of vLLM is said."""

from __future__ import annotations

import pytest

from services.local_engine.on_vllm.output_ways import outputs_for
from services.local_engine.on_vllm.outputs import StreamedOutputs, TappedOutputs


@pytest.mark.parametrize("version", ["0.25.0", "0.25.1+cu130", "0.32.0+cpu", "0.33.9"])
def test_known_versions_without_what_the_lane_needs_are_tapped_and_what_is_missing_named(
    version: str, caplog
):
    assert isinstance(outputs_for(None, version), TappedOutputs)
    (record,) = caplog.records
    assert (record.levelname, record.missing) == ("WARNING", "output_processor")


@pytest.mark.parametrize("version", ["0.24.9", "0.34.0", "1.0.0", "0.9.1", "dev", ""])
def test_unknown_versions_are_streamed_and_named(version: str, caplog):
    assert isinstance(outputs_for(None, version), StreamedOutputs)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert (record.version, record.known) == (version, "0.25 to below 0.34")
