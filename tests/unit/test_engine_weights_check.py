"""Files of models and adapters that cannot be served are found by their headers alone."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.local_engine import checkpoint_check
from services.local_engine.adapter_check import check_adapter
from services.local_engine.checkpoint_check import read_checkpoint
from services.local_engine.safetensors_header import BadFile, read_header
from tests.support.weights import write_adapter, write_safetensors

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TENSORS = {
    "model.embed_tokens.weight": (16, 8),
    "model.layers.0.q_proj.weight": (8, 8),
    "model.layers.1.q_proj.weight": (8, 8),
}


def checkpoint(directory: Path, **config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | config))
    write_safetensors(directory / "model.safetensors", TENSORS)
    return directory


def test_a_sound_checkpoint_tells_its_shapes(tmp_path):
    found = read_checkpoint(checkpoint(tmp_path))
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == TENSORS


def raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(**changes: Any) -> dict[str, Any]:
    return {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "only 0 bytes"),
        (b"\xff" * 64, "would have"),
        (struct.pack("<Q", 1 << 40), "would have"),
        (raw(b"[not json"), "no JSON"),
        (raw(b"[" * 50_000), "no JSON"),
        (raw([1]), "no JSON object"),
        (raw({"t": {"dtype": "F32"}}), "too little"),
        (raw(one(dtype="X9"), bytes(8)), "unknown type"),
        (raw(one(shape=[-2]), bytes(8)), "cannot be"),
        (raw(one(shape="ab"), bytes(8)), "cannot be"),
        (raw(one(shape=[True]), bytes(8)), "cannot be"),
        (raw(one(shape=[2**63]), bytes(8)), "cannot be"),
        (raw(one(shape=[1] * 100_000), bytes(8)), "cannot be"),
        (raw(b'{"t":[' + b"[]," * 3_000_000 + b"0]}"), "more parts"),
        (raw(one(shape=[3]), bytes(8)), "takes 12 bytes"),
        (raw(one(data_offsets=[4, 12]), bytes(12)), "does not follow"),
        (raw(one(), bytes(4)), "cut off"),
        (raw(one(), bytes(12)), "damaged"),
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(tmp_path, content, why):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadFile, match=why):
        read_header(path)


def test_numbers_that_are_no_sizes_are_not_multiplied(tmp_path):
    """A product of such numbers takes minutes, and the whole process waits for it."""
    path = tmp_path / "model.safetensors"
    shape = "[" + ",".join(["9" * 4000] * 2000) + "]"
    header = f'{{"t": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, 8]}}}}'
    path.write_bytes(raw(header.encode(), bytes(8)))
    began = time.process_time()
    with pytest.raises(BadFile, match="cannot be"):
        read_header(path)
    assert time.process_time() - began < 20


def test_files_that_name_more_tensors_than_any_model_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_check, "_MOST_TENSOR_BYTES", 3 * (256 + 40))
    read_checkpoint(checkpoint(tmp_path))
    write_safetensors(tmp_path / "more.safetensors", {"another.weight": (1,)})
    with pytest.raises(BadFile, match="more tensors than any model"):
        read_checkpoint(tmp_path)


def no_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def pickles(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def index(directory: Path, weights: dict[str, str]) -> None:
    text = json.dumps({"weight_map": weights})
    (directory / "model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (no_config, "no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json is no JSON"),
        (lambda d: checkpoint(d, architectures=[], model_type=""), "neither architectures"),
        (lambda d: checkpoint(d, speculators_config={}), "another model to load"),
        (lambda d: os.mkfifo(d / "more.safetensors"), "more.safetensors is no file"),
        (pickles, "weights of other kinds"),
        (lambda d: checkpoint(d, hidden_size=12), "different models"),
        (lambda d: checkpoint(d, num_hidden_layers=4), "layer 2 of 4"),
        (lambda d: index(d, {"a": "missing.safetensors"}), "missing.safetensors is missing"),
        (lambda d: index(d, {"a": "model.safetensors"}), "a is not in model.safetensors"),
        (lambda d: index(d, {"a": "../x.safetensors"}), "not beside it"),
    ],
)
def test_a_checkpoint_that_does_not_hold_together_is_refused(
    tmp_path: Path, spoil: Callable[[Path], Any], why: str
):
    checkpoint(tmp_path)
    spoil(tmp_path)
    with pytest.raises(BadFile, match=why):
        read_checkpoint(tmp_path)


FITS = {"model.layers.0.q_proj": (8, 8)}


def test_an_adapter_that_fits_tells_its_rank(tmp_path):
    base = read_checkpoint(checkpoint(tmp_path / "base"))
    adapter = write_adapter(tmp_path / "lora", FITS, rank=4)
    assert check_adapter(adapter, most_rank=4, base=base) == 4


@pytest.mark.parametrize(
    ("modules", "config", "why"),
    [
        (FITS, {"r": 8}, "ranks 4 and 4"),
        (FITS, {"r": 64}, "rank is 64, and at most 16"),
        (FITS, {"r": 0}, "from 1 up"),
        (FITS, {"peft_type": "IA3"}, "of the kind IA3"),
        (FITS, {"task_type": "SEQ_CLS"}, "SEQ_CLS"),
        (FITS, {"use_dora": True}, "DoRA"),
        (FITS, {"modules_to_save": ["lm_head"]}, "modules_to_save"),
        (FITS, {"bias": "all"}, "biases"),
        ({"model.layers.0.q_proj": (16, 8)}, {}, "16x8 in the adapter and 8x8 in the model"),
        ({"model.layers.7.q_proj": (8, 8)}, {}, "the model has no model.layers.7.q_proj"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_what_does_not(tmp_path, modules, config, why):
    base = read_checkpoint(checkpoint(tmp_path / "base"))
    adapter = write_adapter(tmp_path / "lora", modules, rank=4, config=config)
    with pytest.raises(BadFile, match=why):
        check_adapter(adapter, most_rank=16, base=base)


def test_an_adapter_with_half_of_a_pair_is_refused(tmp_path):
    adapter = write_adapter(tmp_path, FITS, rank=4)
    name = "base_model.model.model.layers.0.q_proj.lora_A.weight"
    write_safetensors(adapter / "adapter_model.safetensors", {name: (4, 8)})
    with pytest.raises(BadFile, match="no matrix lora_B"):
        check_adapter(adapter, most_rank=16, base=None)
