"""Where a new secret goes: alone on stdout, or into a file that its owner alone may read.

A secret is shown once. So the file is made before the service is asked for the secret: what
cannot be written to is found out while nothing has happened yet.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from anabranch.cli.connection import EXIT_REFUSED
from anabranch.cli.render import print_json


class SecretOutput:
    """The place for one secret. Call `show` once."""

    def __init__(self, path: Path | None, descriptor: int, temporary: str) -> None:
        self._path = path
        self._descriptor = descriptor
        self._temporary = temporary

    def show(
        self, secret: str, what: str, *, name: str, public: Mapping[str, object], as_json: bool
    ) -> None:
        """Hands over the secret. `what` says on stderr what it is; with `as_json`, `public` is
        printed with it, and the secret is called `name` there (`name`_file: where it lies)."""
        if self._path is None:
            click.echo(f"{what}: shown only now, so keep it.", err=True)
            shown = {name: secret}
        else:
            self._write(secret, what)
            click.echo(f"{what}: in {self._path}, readable by you alone.", err=True)
            shown = {f"{name}_file": str(self._path)}
        if as_json:
            print_json({**public, **shown})
        elif self._path is None:
            click.echo(secret)

    def _write(self, secret: str, what: str) -> None:
        try:
            with os.fdopen(self._descriptor, "w", encoding="utf-8") as file:
                self._descriptor = -1
                file.write(f"{secret}\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(self._temporary, str(self._path))
            self._temporary = ""
        except OSError as error:
            # Printing it instead would put it where nobody expects a secret.
            click.secho(
                f"error: {what} was made, but {self._path} cannot be written: {error.strerror}. "
                "It is lost: make another one.",
                err=True,
                fg="red",
            )
            raise SystemExit(EXIT_REFUSED) from None

    def discard(self) -> None:
        """Leaves nothing behind where no secret came."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._temporary:
            with suppress(FileNotFoundError):
                os.unlink(self._temporary)


@contextmanager
def secret_output(file: str | None, *, replace: bool = False) -> Iterator[SecretOutput]:
    """The place for a secret: `file`, or stdout when None.

    The file appears whole, with mode 0600, when the secret is there. Raises click.UsageError when
    it exists already, unless `replace`, and when nothing can be written there.
    """
    if file is None:
        yield SecretOutput(None, -1, "")
        return
    path = Path(file)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise click.UsageError(f"--secret-file: {file} is not a plain file")
    if path.exists() and not replace:
        raise click.UsageError(f"--secret-file: {file} exists already")
    try:
        # mkstemp gives mode 0600, whatever the umask.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise click.UsageError(f"--secret-file: cannot write {file}: {error.strerror}") from None
    output = SecretOutput(path, descriptor, temporary)
    try:
        yield output
    finally:
        output.discard()
