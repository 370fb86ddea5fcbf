"""What a worker is told on its command line: who it is, and where its private sockets are.

A value and its text form; secrets never travel here, since a command line is public.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Assignment:
    """One worker's place among its siblings.

    `index` is small and is taken again by a successor; `number` names this process alone, as long
    as the supervisor lives. `control` is the descriptor of its line to the supervisor, `listen`
    the shared gRPC address, `directory` holds the private sockets.
    """

    index: int
    number: int
    control: int
    listen: str
    directory: str

    def to_argument(self) -> str:
        """As one command line argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, text: str) -> Assignment:
        """The assignment in `to_argument`'s text. Raises ValueError or TypeError for another."""
        return cls(**json.loads(text))

    @property
    def grpc_socket(self) -> str:
        """The gRPC target at which its siblings reach it."""
        return grpc_socket(self.directory, self.number)

    @property
    def http_socket(self) -> str:
        """The path at which the supervisor reads its metrics."""
        return http_socket(self.directory, self.number)

    def remove_sockets(self) -> None:
        """Removes the private sockets, and the directory once no sibling has any there.

        A supervisor does that for all; this is for workers that outlive theirs.
        """
        for path in (self.grpc_socket.removeprefix("unix:"), self.http_socket):
            Path(path).unlink(missing_ok=True)
        with suppress(OSError):
            Path(self.directory).rmdir()


def grpc_socket(directory: str, number: int) -> str:
    """The gRPC target of the private listener of the worker with this number."""
    return f"unix:{directory}/{number}.grpc"


def http_socket(directory: str, number: int) -> str:
    """The path of the private HTTP socket of the worker with this number."""
    return f"{directory}/{number}.http"
