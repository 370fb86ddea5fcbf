"""Shows the first administrator's secret once: on standard output, or in a file of mode 0600."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from services.auth.vault import write_private


def announcer(secret_file: Path | None, out: TextIO) -> Callable[[str, str], None]:
    """What Directory.bootstrap calls with id and secret. It may raise OSError."""

    def announce(client_id: str, client_secret: str) -> None:
        if secret_file is None:
            shown = client_secret
            note = "It is shown only this once. Keep it, or rotate it with RotateClientSecret."
        else:
            _replace(secret_file, client_secret)
            shown = f"(written to {secret_file}, mode 0600)"
            note = "Delete the file once the secret is kept elsewhere."
        line = "=" * 72
        out.write(
            f"\n{line}\n"
            "  First administrator of this Anabranch cluster\n\n"
            f"    client_id:      {client_id}\n"
            f"    client_secret:  {shown}\n\n"
            f"  {note}\n{line}\n\n"
        )
        out.flush()

    return announce


def _replace(path: Path, text: str) -> None:
    """Puts a private file in place whole, over one that an earlier database left there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    write_private(draft, text + "\n")
    draft.replace(path)
