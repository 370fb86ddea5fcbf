"""Shows the first administrator's secret once: on standard output, or in a file of mode 0600."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from services.chassis.private_files import put_over


def announcer(secret_file: Path | None, out: TextIO) -> Callable[[str, str], None]:
    """What Directory.bootstrap calls with id and secret. It may raise OSError."""

    def announce(client_id: str, client_secret: str) -> None:
        if secret_file is None:
            shown = client_secret
            note = "It is shown only this once. Keep it, or rotate it with RotateClientSecret."
        else:
            secret_file.parent.mkdir(parents=True, exist_ok=True)
            # Over one that an earlier database left there.
            put_over(secret_file, f"{client_secret}\n".encode())
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
