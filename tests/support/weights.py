"""Writes LoRA adapters in PEFT's layout, and checkpoints byte by byte. No library is needed."""

from __future__ import annotations

import json
import random
import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_safetensors(
    path: Path, tensors: Mapping[str, tuple[int, ...]], scale: float = 0.0
) -> None:
    """Float32 tensors of these shapes; `scale` 0 makes them of zeros, others of the same noise."""
    header: dict[str, Any] = {}
    at = 0
    for name, shape in tensors.items():
        size = 4
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    random_of = random.Random(7)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        if scale:
            values = [random_of.gauss(0.0, scale) for _ in range(at // 4)]
            file.write(struct.pack(f"<{at // 4}f", *values))
        else:
            file.write(bytes(at))


def write_adapter(
    directory: Path,
    modules: Mapping[str, tuple[int, int]],
    *,
    rank: int,
    scale: float = 0.0,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """An adapter for modules of these outputs and inputs."""
    directory.mkdir(parents=True, exist_ok=True)
    said = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
        "bias": "none",
        "use_dora": False,
        "modules_to_save": None,
    }
    (directory / "adapter_config.json").write_text(json.dumps({**said, **(config or {})}))
    tensors: dict[str, tuple[int, ...]] = {}
    for name, (outputs, inputs) in modules.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = (rank, inputs)
        tensors[f"base_model.model.{name}.lora_B.weight"] = (outputs, rank)
    write_safetensors(directory / "adapter_model.safetensors", tensors, scale)
    return directory


def write_shorter_model(source: Path, target: Path, layers: int) -> Path:
    """A copy of a checkpoint of one file with its first layers alone: small, and another model."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.is_file():
            shutil.copy(path, target / path.name)
    config = json.loads((source / "config.json").read_text())
    config["num_hidden_layers"] = layers
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = config["layer_types"][:layers]
    (target / "config.json").write_text(json.dumps(config))
    with (source / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        kept: dict[str, Any] = {}
        parts: list[bytes] = []
        at = 0
        for name, entry in header.items():
            match = re.search(r"layers\.(\d+)\.", name)
            if match is not None and int(match[1]) >= layers:
                continue
            begin, end = entry["data_offsets"]
            file.seek(8 + length + begin)
            parts.append(file.read(end - begin))
            kept[name] = {**entry, "data_offsets": [at, at + end - begin]}
            at += end - begin
    raw = json.dumps({"__metadata__": {"format": "pt"}, **kept}).encode()
    raw += b" " * (-len(raw) % 8)
    whole = struct.pack("<Q", len(raw)) + raw + b"".join(parts)
    (target / "model.safetensors").write_bytes(whole)
    return target
