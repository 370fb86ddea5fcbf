"""Writes .env for docker-compose.yml: .env.example with a random value for each secret.

    python3 tools/compose_env.py [--profile cpu|gpu] [--torch-index URL]

It needs nothing but Python. The file is the owner's alone (mode 0600) and is never overwritten: its
secrets are what volumes were made with. PIP_INDEX_URL and PIP_EXTRA_INDEX_URL are taken over from
the environment, so that images are built from where this machine gets its packages.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECRETS = (
    "ANABRANCH_POSTGRES_PASSWORD",
    "ANABRANCH_KEY_ENCRYPTION_SECRET",
    "ANABRANCH_REDIS_PASSWORD",
    "ANABRANCH_GRAFANA_PASSWORD",
)
"""What nobody should have to think up."""

TAKEN_OVER = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
"""What decides where packages come from."""

PROFILES = ("cpu", "gpu")
_LINE = re.compile(r"^([A-Z][A-Z0-9_]*)=(.*)$", re.MULTILINE)


def filled(example: str, values: Mapping[str, str]) -> str:
    """`example` with these values in place of its own; its comments stay.

    Raises KeyError for a name that the example does not have.
    """
    known = {name for name, _ in _LINE.findall(example)}
    for name in values:
        if name not in known:
            raise KeyError(name)
    return _LINE.sub(lambda found: f"{found[1]}={values.get(found[1], found[2])}", example)


def values(profile: str, torch_index: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What replaces the example's own values: new secrets, and what was asked for."""
    chosen = {name: secrets.token_hex(32) for name in SECRETS}
    chosen |= {name: environ[name] for name in TAKEN_OVER if environ.get(name)}
    if torch_index:
        chosen["PIP_EXTRA_INDEX_URL"] = torch_index
    return chosen | {"COMPOSE_PROFILES": profile}


def write(path: Path, text: str) -> None:
    """Writes a new file that only its owner can read. Raises FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def main(arguments: list[str] | None = None) -> int:
    """Runs the tool; 1 with the reason when it writes nothing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=PROFILES, default="cpu", help="the kind of engines")
    parser.add_argument(
        "--torch-index",
        default="",
        metavar="URL",
        help="PyTorch's own CPU index, which building the CPU engine needs: the address that "
        "https://pytorch.org/get-started/locally names for Linux, pip, CPU",
    )
    parser.add_argument("--out", type=Path, default=ROOT / ".env", help="the file (.env)")
    options = parser.parse_args(arguments)
    chosen = values(options.profile, options.torch_index, os.environ)
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    try:
        write(options.out, filled(example, chosen))
    except FileExistsError:
        print(
            f"compose_env: {options.out} exists and stays as it is: the volumes were made with its "
            "secrets.\nTo start anew: docker compose down --volumes, then remove it.",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        print(f"compose_env: {options.out} cannot be written: {error}", file=sys.stderr)
        return 1
    print(f"{options.out} is written, for engines of the kind {options.profile}.")
    if options.profile == "cpu" and "PIP_EXTRA_INDEX_URL" not in chosen:
        print(
            "Before the first build: set PIP_EXTRA_INDEX_URL in it to PyTorch's CPU index\n"
            "(https://pytorch.org/get-started/locally: Linux, pip, CPU)."
        )
    print("Then: docker compose up --build --detach")
    return 0


if __name__ == "__main__":
    sys.exit(main())
