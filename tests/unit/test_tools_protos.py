"""The check of the contracts refuses an RPC that does not say who may call it, or says it badly."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from anabranch.v1 import options_pb2
from tools.protos import _without_access


def problems(change: Callable[[dict[str, Any]], None]) -> list[str]:
    """What is said of the contracts after a change of their RPCs' options, by name."""
    raw = importlib.resources.files("anabranch.v1").joinpath("anabranch.protoset").read_bytes()
    files = descriptor_pb2.FileDescriptorSet.FromString(raw)
    methods = {
        method.name: method.options
        for file in files.file
        if file.package == "anabranch.v1"
        for service in file.service
        for method in service.method
    }
    change(methods)
    return list(_without_access(files.SerializeToString()))


def test_the_contracts_as_they_are_pass():
    assert problems(lambda methods: None) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("DrainBackend", "anabranch.v1.RouterAdminService.DrainBackend has no (access) option"),
        ("IssueToken", "anabranch.v1.AuthService.IssueToken has no (access) option"),
    ],
)
def test_an_rpc_without_a_rule_is_named(name, said):
    assert problems(lambda methods: methods[name].ClearExtension(options_pb2.access)) == [said]


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("GetJwks", {"any_scope": ["admin"]}, "is public and names scopes"),
        ("GetJwks", {"own_tenant_scope": ["audit"]}, "is public and names scopes"),
        ("Embed", {"model_bound": False}, "names a model and is not model_bound"),
        ("Generate", {"model_bound": False}, "names a model and is not model_bound"),
        ("ListQuotas", {"any_scope": []}, "opens for a tenant's own, and for nobody else"),
    ],
)
def test_a_rule_that_contradicts_itself_is_named(name, fields, said):
    def change(methods: dict[str, Any]) -> None:
        rule = methods[name].Extensions[options_pb2.access]
        for field, value in fields.items():
            if isinstance(value, list):
                getattr(rule, field)[:] = value
            else:
                setattr(rule, field, value)

    assert any(said in problem for problem in problems(change))
