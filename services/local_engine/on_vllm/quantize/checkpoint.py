"""Writes the smaller checkpoint, file by file, in the form of the compressed-tensors package.

That package, which every vLLM brings along, rounds the weights and describes the scheme; here the
files are read, written and put in place. The directory appears whole or not at all. One file of
weights is in memory at a time.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.local_engine.on_vllm.quantize.schemes import (
    CannotQuantize,
    Layers,
    Scheme,
    TensorInfo,
    chosen_layers,
    expected_bytes,
)
from services.local_engine.on_vllm.quantize.source import (
    CONFIG,
    INDEX,
    Source,
    model_layers,
    read_header,
    read_source,
    sha256_of,
)

RECORD = "anabranch-quantization.json"
"""How the checkpoint was made; vLLM does not read it."""

KEEP = "keep"
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""What else is in a checkpoint can be stored as, with the bytes of a number."""

_SPARE = 1.02
"""Disk space asked for beyond what is expected: headers, tokenizer."""


@dataclass(frozen=True, slots=True)
class Made:
    """A finished checkpoint. Bytes are those of the weight files' tensors."""

    path: Path
    scheme: Scheme
    layers: int
    kept: tuple[str, ...]
    source_bytes: int
    source_elements: int
    bytes: int

    @property
    def bf16_bytes(self) -> int:
        """What the source's numbers would take in 16 bits each."""
        return 2 * self.source_elements


def quantize(
    source_path: Path,
    out: Path,
    scheme: Scheme,
    *,
    dtype: str = KEEP,
    force: bool = False,
    tell: Callable[[str, float], None] = lambda _text, _share: None,
) -> Made:
    """Makes the checkpoint at `out`. Raises CannotQuantize; `tell` hears what is done and how far.

    `dtype` is what tensors that are not quantised are stored as.
    """
    out, source_path = out.absolute(), source_path.absolute()
    if out == source_path or source_path in out.parents or out in source_path.parents:
        raise CannotQuantize("the new checkpoint needs a directory of its own, beside the source")
    if out.exists() and not force:
        raise CannotQuantize(f"{out} is there already: --force replaces it")
    if out.exists() and not (out.is_dir() and (out / CONFIG).is_file()):
        raise CannotQuantize(f"{out} is there and is no checkpoint: it will not be replaced")
    tell("reading the model's headers", 0.0)
    source = read_source(source_path)
    layers = model_layers(source)
    chosen = chosen_layers(source.tensors, layers)
    width = {} if dtype == KEEP else dict.fromkeys(("F64", "F32", "F16", "BF16"), DTYPES[dtype])
    size = expected_bytes(source.tensors, chosen, width)
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < size * _SPARE:
        raise CannotQuantize(
            f"{out.parent} has {free / 1e9:.1f} GB free, and the checkpoint takes {size / 1e9:.1f}"
        )
    with _scratch(out) as built:
        hashes = _write_weights(source, built, chosen, scheme, dtype, tell)
        for file in source.beside():
            shutil.copy2(file, built / file.name)
        _write_config(source, built, layers, scheme, dtype)
        _write_record(source, built, scheme, dtype, chosen, layers, hashes)
        written = _checked(built, source, chosen)
        _put_in_place(built, out)
    tell("done", 1.0)
    return Made(
        path=out,
        scheme=scheme,
        layers=len(chosen),
        kept=layers.kept,
        source_bytes=source.weight_bytes,
        source_elements=sum(info.elements for info in source.tensors.values()),
        bytes=written,
    )


def _scheme_arguments(scheme: Scheme) -> dict[str, Any]:
    from compressed_tensors.quantization import QuantizationArgs

    kind = "float" if scheme is Scheme.FP8 else "int"
    weights = QuantizationArgs(num_bits=8, type=kind, strategy="channel", symmetric=True)
    if scheme is Scheme.INT8_WEIGHTS:
        return {"weights": weights}
    inputs = QuantizationArgs(
        num_bits=8, type=kind, strategy="token", symmetric=True, dynamic=True, observer=None
    )
    return {"weights": weights, "input_activations": inputs}


def _write_weights(
    source: Source,
    built: Path,
    chosen: Sequence[str],
    scheme: Scheme,
    dtype: str,
    tell: Callable[[str, float], None],
) -> dict[str, str]:
    """Writes every file of weights; returns the hashes of those that they came from."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    compress = _compressor(scheme)
    target = None if dtype == KEEP else getattr(torch, dtype)
    weights = {f"{name}.weight": name for name in chosen}
    done, total, size = 0, 2 * source.weight_bytes, 0
    where: dict[str, str] = {}
    hashes: dict[str, str] = {}

    def progress(count: int) -> None:
        nonlocal done
        done += count
        tell(f"quantising {name}", min(1.0, done / total))

    for name in source.files:
        hashes[name] = sha256_of(source.path / name, progress)
        tensors: dict[str, Any] = {}
        with safe_open(source.path / name, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - it is no mapping
                tensor = opened.get_tensor(key)
                if key in weights:
                    for part, value in compress(key, tensor).items():
                        tensors[f"{weights[key]}.{part}"] = value
                elif target is not None and tensor.is_floating_point():
                    tensors[key] = tensor.to(target)
                else:
                    tensors[key] = tensor.clone()
                progress(source.tensors[key].bytes)
        save_file(tensors, built / name, metadata={"format": "pt"})
        (built / name).chmod(0o644)  # an engine often runs as another user
        size += sum(value.nbytes for value in tensors.values())
        where |= dict.fromkeys(tensors, name)
    if len(source.files) > 1 or (source.path / INDEX).is_file():
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        (built / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return hashes


def _compressor(scheme: Scheme) -> Callable[[str, Any], dict[str, Any]]:
    """What makes a layer's weight into the tensors that are stored for it."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    described = QuantizationScheme(targets=["Linear"], **_scheme_arguments(scheme))
    kind = BaseCompressor.get_value_from_registry(_format(scheme))

    def compress(key: str, weight: Any) -> dict[str, Any]:
        weight = weight.to(torch.float32)
        low, high = weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True)
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise CannotQuantize(f"{key} holds numbers that are not finite")
        scale, _ = calculate_qparams(low, high, described.weights)
        parts: dict[str, Any] = kind.compress({"weight": weight, "weight_scale": scale}, described)
        return {part: value.contiguous() for part, value in parts.items()}

    return compress


def _format(scheme: Scheme) -> str:
    return {
        Scheme.INT8: "int-quantized",
        Scheme.INT8_WEIGHTS: "pack-quantized",
        Scheme.FP8: "float-quantized",
    }[scheme]


def _write_config(source: Source, built: Path, layers: Layers, scheme: Scheme, dtype: str) -> None:
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme

    described = QuantizationScheme(
        targets=["Linear"], format=_format(scheme), **_scheme_arguments(scheme)
    )
    quantization = QuantizationConfig(
        config_groups={"group_0": described},
        format=_format(scheme),
        quantization_status="compressed",
        ignore=list(layers.kept),
    )
    config = dict(source.config)
    if dtype != KEEP:
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    config["quantization_config"] = {
        "version": importlib.metadata.version("compressed-tensors"),
        **json.loads(quantization.model_dump_json()),
    }
    (built / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def _write_record(
    source: Source,
    built: Path,
    scheme: Scheme,
    dtype: str,
    chosen: Sequence[str],
    layers: Layers,
    hashes: dict[str, str],
) -> None:
    record = {
        "made_by": "anabranch quantize",
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "scheme": scheme.value,
        "other_tensors": dtype,
        "layers": len(chosen),
        "kept": list(layers.kept),
        "source": {
            "name": source.path.name,
            "revision": source.revision,
            "architectures": source.config.get("architectures", []),
            "sha256": hashes,
        },
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("compressed-tensors", "safetensors", "torch", "transformers")
        },
    }
    (built / RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")


def _checked(built: Path, source: Source, chosen: Sequence[str]) -> int:
    """Reads back what is on disk; returns its size. Raises CannotQuantize when it is not whole."""
    found: dict[str, TensorInfo] = {}
    for name in source.files:
        found |= read_header(built / name)
    for name in chosen:
        if f"{name}.weight_scale" not in found:
            raise CannotQuantize(f"{name} came out without its scales: nothing was put in place")
    missing = set(source.tensors) - set(found) - {f"{name}.weight" for name in chosen}
    if missing:
        raise CannotQuantize(f"{min(missing)} is missing: nothing was put in place")
    return sum(info.bytes for info in found.values())


def _put_in_place(built: Path, out: Path) -> None:
    """The directory takes its name; what had it before goes once it has."""
    before = built.with_name(f"{built.name}.before")
    if out.exists():
        out.rename(before)
    built.chmod(0o755)
    built.rename(out)
    shutil.rmtree(before, ignore_errors=True)


@contextlib.contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A directory beside `out`, so that renaming it stays within a file system."""
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
