"""Access rules of RPCs, read from the `(access)` option beside each RPC in the contracts.

Pure look-up: says what a method demands, not whether a caller has it. A method
without a rule is closed to everybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from grpc_channelz.v1 import channelz_pb2

from anabranch.v1 import (
    admin_pb2,
    auth_pb2,
    model_admin_pb2,
    model_pb2,
    operations_pb2,
    options_pb2,
)


@dataclass(frozen=True, slots=True)
class Access:
    """What an RPC demands: nothing, any credential, or one of some scopes.

    `own_tenant_scope` opens it too, for what is of the caller's own tenant. `model_bound`: the
    model that the request names must be one that the caller may ask.
    """

    public: bool = False
    any_scope: frozenset[str] = frozenset()
    own_tenant_scope: frozenset[str] = frozenset()
    model_bound: bool = False

    @property
    def scopes(self) -> frozenset[str]:
        """Those that open it at all; empty: any credential does."""
        return self.any_scope | self.own_tenant_scope


# The generated stubs type an extension as a plain descriptor.
_ACCESS: Any = options_pb2.access

# Infrastructure protocols carry no option of ours. Health must answer Consul and
# Kubernetes, which hold no credential; descriptors are published with the source.
_INFRASTRUCTURE = ("grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
                   "grpc.reflection.v1alpha.ServerReflection")  # fmt: skip


def rules_of(files: Iterable[FileDescriptor]) -> Mapping[str, Access]:
    """Maps "/package.Service/Method" to its rule, for every annotated RPC of the files."""
    rules: dict[str, Access] = {}
    for file in files:
        for service in file.services_by_name.values():
            for method in service.methods:
                options = method.GetOptions()
                if not options.HasExtension(_ACCESS):
                    continue
                rule = options.Extensions[_ACCESS]
                rules[f"/{service.full_name}/{method.name}"] = Access(
                    rule.public,
                    frozenset(rule.any_scope),
                    frozenset(rule.own_tenant_scope),
                    rule.model_bound,
                )
    return rules


# Nor has channelz, which tells where every caller of every tenant calls from.
_CHANNELZ = {
    f"/{service.full_name}/{method.name}": Access(any_scope=frozenset({"admin"}))
    for service in channelz_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
_CONTRACTS = (model_pb2, model_admin_pb2, auth_pb2, admin_pb2, operations_pb2)
RULES = {**rules_of(file.DESCRIPTOR for file in _CONTRACTS), **_CHANNELZ}


def access_of(method: str, rules: Mapping[str, Access] = RULES) -> Access | None:
    """The rule of a dispatched method, or None when nobody may call it."""
    service = method.rpartition("/")[0].lstrip("/")
    if service in _INFRASTRUCTURE:
        return Access(public=True)
    return rules.get(method)
