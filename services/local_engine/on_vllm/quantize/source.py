"""A model directory as it is before: its configuration, its tensors, its other files.

Reads headers only; refuses what cannot be made smaller before anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.local_engine.on_vllm.quantize.schemes import CannotQuantize, Layers, TensorInfo

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
OWN_PREFIX = "anabranch-"
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_BESIDE = frozenset({".json", ".jinja", ".md", ".model", ".tiktoken", ".txt"})
_LONGEST_HEADER = 100 * 2**20  # bytes; as much as the format itself allows


@dataclass(frozen=True, slots=True)
class Source:
    """A model directory that can be quantised. `files` are those with weights, in order."""

    path: Path
    config: dict[str, Any]
    files: tuple[str, ...]
    tensors: dict[str, TensorInfo]

    @property
    def weight_bytes(self) -> int:
        """Size of all tensors."""
        return sum(info.bytes for info in self.tensors.values())

    @property
    def revision(self) -> str:
        """The commit that a Hugging Face cache holds it under; empty elsewhere."""
        here = self.path.resolve()
        found = re.fullmatch(r"[0-9a-f]{40}", here.name)
        return here.name if found and here.parent.name == "snapshots" else ""

    def beside(self) -> Iterator[Path]:
        """Files to take along: tokenizer, chat template, generation defaults, licence."""
        for file in sorted(self.path.iterdir()):
            plain = file.is_file() and not file.name.startswith((".", OWN_PREFIX))
            licence = file.name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))
            if plain and (file.suffix in _BESIDE or licence) and file.name not in (CONFIG, INDEX):
                yield file


def read_source(path: Path) -> Source:
    """What the directory holds. Raises CannotQuantize."""
    if path.suffix == ".gguf" or (path.is_dir() and any(path.glob("*.gguf"))):
        raise CannotQuantize(
            f"{path} holds GGUF weights, which are quantised already: begin with the original "
            "checkpoint, in safetensors"
        )
    if not path.is_dir():
        raise CannotQuantize(
            f"{path} is no directory: fetch the model first, for example with `hf download NAME "
            "--local-dir DIR`"
        )
    config = _config(path)
    names = sorted(file.name for file in path.glob("*.safetensors"))
    index = path / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CannotQuantize(f"{index} is no index of safetensors files") from None
    if not names:
        raise CannotQuantize(
            f"{path} has no weights in safetensors: load it with transformers and save it again "
            "with save_pretrained, which writes them"
        )
    tensors: dict[str, TensorInfo] = {}
    for name in names:
        if Path(name).name != name:
            raise CannotQuantize(f"{index} names {name!r}, which is no file beside it")
        tensors |= read_header(path / name)
    odd = sorted({info.dtype for info in tensors.values() if len(info.shape) > 1} - _FLOATS)
    if odd:
        raise CannotQuantize(f"{path} has weights in {', '.join(odd)}: it is quantised already")
    return Source(path, config, tuple(names), tensors)


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file: eight bytes of length, JSON, data (the format's own
    description: https://huggingface.co/docs/safetensors). Raises CannotQuantize."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = file.stat().st_size
            if not 0 < length <= min(size, _LONGEST_HEADER):
                raise ValueError("its header has no sound length")
            entries = json.loads(stream.read(length))
        found = {}
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            if not 0 <= start <= end <= size - 8 - length:
                raise ValueError(f"{name} lies outside of it: the file is cut off")
            shape = tuple(map(int, entry["shape"]))
            found[str(name)] = TensorInfo(file.name, str(entry["dtype"]), shape, end - start)
    except OSError as error:
        raise CannotQuantize(f"{file} cannot be read: {error.strerror}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CannotQuantize(f"{file} is no safetensors file: {error}") from None
    return found


def model_layers(source: Source) -> Layers:
    """The model's layers, from its architecture alone. Raises CannotQuantize."""
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(source.path)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
    except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        kind = source.config.get("architectures") or source.config.get("model_type")
        first = str(error).strip().splitlines()[0]
        raise CannotQuantize(
            f"transformers does not know the architecture {kind}: {first}"
        ) from None
    linear = [n for n, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    heads = {id(part) for part in (model.get_output_embeddings(),) if part is not None}
    entrances = {id(part) for part in (model.get_input_embeddings(),) if part is not None}
    named = list(model.named_modules())
    head = [n for n, part in named if id(part) in heads]
    # Routers of experts are small, and a wrong choice of expert is no small error.
    routers = [name for name in linear if name.rpartition(".")[2] in ("gate", "router")]
    embeddings = [n for n, part in named if id(part) in entrances]
    return Layers(tuple(linear), (*head, *routers), tuple(embeddings))


def sha256_of(file: Path, tell: Callable[[int], None]) -> str:
    """The file's hash; `tell` hears of each piece's bytes."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
            tell(len(piece))
    return digest.hexdigest()


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG).read_text("utf-8"))
    except OSError:
        raise CannotQuantize(f"{path} has no {CONFIG}: it is no model directory") from None
    except ValueError as error:
        raise CannotQuantize(f"{path / CONFIG} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise CannotQuantize(f"{path / CONFIG} is no JSON object")
    if found := config.get("quantization_config"):
        method = found.get("quant_method", "?") if isinstance(found, dict) else "?"
        raise CannotQuantize(
            f"{path} is quantised already ({method}): begin with the original checkpoint"
        )
    return config
