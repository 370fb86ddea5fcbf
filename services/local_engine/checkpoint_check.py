"""Whether a checkpoint's directory holds a model that can be loaded: only headers are read.

It finds what is damaged, missing or does not belong together before anything is started. What only
the engine can find out, it finds when it loads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.local_engine.safetensors_header import BadFile, Tensor, read_header

_MOST_CONFIG_BYTES = 4 * 1024 * 1024
_MOST_INDEX_BYTES = 64 * 1024 * 1024
_MOST_FILES = 2000
_MOST_TENSOR_BYTES = 256 * 1024 * 1024
_BYTES_OF_TENSOR = 256
"""What one takes here beside its name; the largest models have some hundred thousand."""
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:^|\.)embed_tokens\.weight$")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What its files say: the parsed config.json, and every tensor by name."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The part of the configuration that is about the language model."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config


def read_checkpoint(directory: Path) -> Checkpoint:
    """Looks at every file of a checkpoint. Raises BadFile, and OSError for what cannot be read."""
    config = read_object(directory / "config.json", _MOST_CONFIG_BYTES)
    if not config.get("architectures") and not config.get("model_type"):
        raise BadFile("config.json names neither architectures nor a model_type")
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise BadFile("there is no .safetensors file: weights of other kinds are not loaded")
    if len(files) > _MOST_FILES:
        raise BadFile(f"there are {len(files)} .safetensors files, more than {_MOST_FILES}")
    index = directory / "model.safetensors.index.json"
    wanted = _index(index) if index.exists() else None
    if wanted is not None:
        missing = sorted(set(wanted.values()) - {file.name for file in files})
        if missing:
            raise BadFile(f"{missing[0]} is missing, which the index names")
        files = [file for file in files if file.name in set(wanted.values())]
    if "speculators_config" in config:
        # vLLM would load that one in its stead, from wherever it is said to be.
        raise BadFile("config.json names another model to load (speculators_config)")
    tensors: dict[str, Tensor] = {}
    room = _MOST_TENSOR_BYTES
    for file in files:
        found = read_header(file)
        room -= sum(map(len, found)) + _BYTES_OF_TENSOR * len(found)
        if room < 0:
            raise BadFile("its files name more tensors than any model has")
        for name in found:
            if wanted is not None and wanted.get(name, file.name) != file.name:
                raise BadFile(f"{name} is in {file.name}, and the index says {wanted[name]}")
        tensors |= found
    for name, file_name in (wanted or {}).items():
        if name not in tensors:
            raise BadFile(f"{name} is not in {file_name}, though the index says so")
    checkpoint = Checkpoint(config, tensors)
    _check_plausible(checkpoint)
    return checkpoint


def read_object(path: Path, most_bytes: int) -> dict[str, Any]:
    """A JSON object from a file. Raises BadFile and OSError."""
    if not path.is_file():
        raise BadFile(f"there is no {path.name}")
    if path.stat().st_size > most_bytes:
        raise BadFile(f"{path.name} has more than {most_bytes} bytes")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise BadFile(f"{path.name} is no JSON") from None
    if not isinstance(found, dict):
        raise BadFile(f"{path.name} is no JSON object")
    return found


def _index(path: Path) -> dict[str, str]:
    found = read_object(path, _MOST_INDEX_BYTES).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise BadFile(f"{path.name} has no weight_map")
    for name, file in found.items():
        if not isinstance(file, str) or "/" in file or file.startswith("."):
            raise BadFile(f"{path.name} gives {name} a file that is not beside it")
    return found


def _check_plausible(checkpoint: Checkpoint) -> None:
    """Raises BadFile where configuration and weights are not of one model."""
    config, tensors = checkpoint.text_config, checkpoint.tensors
    hidden, layers = config.get("hidden_size"), config.get("num_hidden_layers")
    if isinstance(hidden, int):
        for name, tensor in tensors.items():
            if _EMBEDDING.search(name) and len(tensor.shape) == 2 and tensor.shape[1] != hidden:
                raise BadFile(
                    f"{name} has {tensor.shape[1]} columns, and config.json a hidden_size of "
                    f"{hidden}: they are of different models"
                )
    if isinstance(layers, int):
        found = {int(match[1]) for name in tensors if (match := _LAYER.search(name))}
        missing = sorted(set(range(layers)) - found) if 0 < layers < 100_000 and found else []
        if missing:
            raise BadFile(f"layer {missing[0]} of {layers} has no weights")
