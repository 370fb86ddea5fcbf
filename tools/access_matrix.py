"""Renders who may call what, from the descriptors, as a Markdown table: docs/access-matrix.md.

    python -m tools.access_matrix > docs/access-matrix.md

It reads the `(access)` options alone. That the services keep them is tested elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from anabranch.v1 import (
    admin_pb2,
    auth_pb2,
    model_admin_pb2,
    model_pb2,
    operations_pb2,
    options_pb2,
)

_FILES = tuple(
    file.DESCRIPTOR for file in (model_pb2, model_admin_pb2, admin_pb2, operations_pb2, auth_pb2)
)
_SCOPES = ("generate", "relay", "observe", "audit", "tenant-admin", "admin")
# The generated stubs type an extension as a plain descriptor.
_ACCESS: Any = options_pb2.access

_HEAD = """\
# Who may call what

Rendered from the `(access)` options in `protos/` by `python -m tools.access_matrix`. A test
compares this page with them, and another one calls every RPC of the running services with every
scope and role (`tests/inprocess/test_access_matrix.py`).

- **yes**: the scope opens the RPC. Without any credential it is `UNAUTHENTICATED`, with another
  scope `PERMISSION_DENIED`.
- **own**: only for what is of the caller's own tenant. Anything else is refused in the same words
  whether it exists or not, and lists leave it out.
- **any**: a live credential is enough. **public**: none is needed.
- *model*: the model in the request must be one of the caller's. Any other is `PERMISSION_DENIED`,
  whether it exists or not; for `relay`, which has checked its own callers, every model passes.

Health and reflection (`grpc.health.v1`, `grpc.reflection.v1` and `v1alpha`) are public,
`grpc.channelz.v1` is for `admin`. A method
without a rule is closed to everybody.
"""


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(_table(service) for service in _services())


def _services() -> Iterator[ServiceDescriptor]:
    for file in _FILES:
        yield from file.services_by_name.values()


def _table(service: ServiceDescriptor) -> str:
    lines = [
        f"\n## {service.name}\n",
        "| RPC | nobody | " + " | ".join(f"`{scope}`" for scope in _SCOPES) + " |",
        "|---|" + "---|" * (len(_SCOPES) + 1),
        *(_row(method) for method in service.methods),
    ]
    return "\n".join(lines) + "\n"


def _row(method: MethodDescriptor) -> str:
    rule = method.GetOptions().Extensions[_ACCESS]
    bound = " *model*" if rule.model_bound else ""
    if rule.public:
        cells = ["public"] * (len(_SCOPES) + 1)
    elif not rule.any_scope:
        cells = ["", *["any"] * len(_SCOPES)]
    else:
        cells = ["", *(_cell(rule, scope) for scope in _SCOPES)]
    return f"| {method.name}{bound} | " + " | ".join(cells) + " |"


def _cell(rule: Any, scope: str) -> str:
    if scope in rule.any_scope:
        return "yes"
    return "own" if scope in rule.own_tenant_scope else ""


if __name__ == "__main__":
    print(page(), end="")
