"""The runbook is whole: its links lead somewhere, each alert and each RPC has its place."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from google.protobuf.descriptor import ServiceDescriptor

from anabranch.v1 import admin_pb2, auth_pb2, model_pb2, operations_pb2
from services.auth.settings import Settings as Auth
from services.cloud_proxy.settings import Settings as Cloud
from services.local_engine.settings import Settings as Engine
from services.router.settings import Settings as Router
from tests.support.runbook import Command, anchors, commands, difference, rows

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
RULES = ROOT / "deploy/helm/anabranch/files/rules/anabranch.yaml"
BIDIRECTIONAL = {"anabranch.v1.ModelService.Session"}
"""Nobody types this one: the client library speaks it."""


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        page = PAGE if not file else (ROOT / "docs" / file).read_text(encoding="utf-8")
        assert not anchor or anchor in anchors(page), target


def test_every_section_is_named_once():
    found = anchors(PAGE)
    assert sorted(found) == sorted(set(found))


def test_every_alert_has_its_section_and_every_section_its_alert():
    if not RULES.exists():
        pytest.skip("there are no rules")
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    alerts = {
        f"alert-{rule['alert'].lower()}"
        for group in groups
        for rule in group["rules"]
        if "alert" in rule
    }
    assert alerts == {anchor for anchor in anchors(PAGE) if anchor.startswith("alert-")}


def test_every_rpc_is_called_on_the_page():
    services: list[ServiceDescriptor] = [
        model_pb2.DESCRIPTOR.services_by_name["ModelService"],
        admin_pb2.DESCRIPTOR.services_by_name["RouterAdminService"],
        operations_pb2.DESCRIPTOR.services_by_name["OperationsService"],
        auth_pb2.DESCRIPTOR.services_by_name["AuthService"],
    ]
    scripts = "\n".join(command.script for command in commands(PAGE) if not command.where)
    for service in services:
        for method in service.methods:
            called = f"{service.full_name}/{method.name}"
            assert called in scripts or method.full_name in BIDIRECTIONAL, called


def test_every_setting_that_is_named_exists():
    known = {
        field.name.upper()
        for settings in (Auth, Cloud, Engine, Router)
        for field in dataclasses.fields(settings)
    }
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    named = {
        word.removeprefix(f"ANABRANCH_{service}_")
        for word in re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?:=[^`]*)?`", prose)
        for service in re.findall(r"ANABRANCH_([A-Z]+)_", word) or [""]
    }
    statuses = {
        cell for row in rows(PAGE, "Refusals") for cell in re.findall(r"`([A-Z_]+)`", row[0])
    }
    reasons = {
        cell for row in rows(PAGE, "Refusals") for cell in re.findall(r"`([A-Z_]+)`", row[1])
    }
    words = re.compile(
        r"(BACKEND_STATE|BREAKER_STATE|OVERFLOW_REASON|TIER|RESIDENCY|PRIORITY|FINISH_REASON"
        r"|CAPABILITY|PHASE|SOURCE|LOCAL|CLOUD)_.*|NOT_SERVING|ENHANCE_YOUR_CALM|WRONG_VERSION_NUMBER"
        r"|CERTIFICATE_VERIFY_FAILED|TSI_PROTOCOL_FAILURE|FILE|(TOKEN|SECRET)_FILE"
    )
    assert {n for n in named - known - statuses - reasons if not words.fullmatch(n)} == set()


def compared(form: str, expected: str, printed: str) -> bool:
    return not difference(Command("s", 1, "", "", expected, form), printed)


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ('{"a": 1}', '{"a": 1}', True),
        ('{"a": 1}', '{"a": 2}', False),
        ('{"a": 1}', '{"a": true}', False),
        ('{"a": 1}', '{"a": 1, "b": 2}', False),
        ('{"a": 1, "…": "…"}', '{"a": 1, "b": 2}', True),
        ('{"a": "…"}', "{}", False),
        ('{"a": "…s"}', '{"a": "0.5s"}', True),
        ('{"a": "…s"}', '{"a": "0.5"}', False),
        ('["…"]', "[]", False),
        ('["…"]', "[1, 2]", False),
        ('[1, "…"]', "[1, 2, 3]", True),
        ('[1, "…"]', "[2]", False),
        ("{}\n{}", "{}", False),
        ("{}", "not JSON", False),
    ],
)
def test_what_is_printed_is_compared_as_json(expected: str, printed: str, same: bool):
    assert compared("json", expected, printed) is same


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("a\nb", "a\n  b\n", True),
        ("a\nb", "a\nc", False),
        ("a\n…\nb", "a\nx\ny\nb", True),
        ("a\n…", "a", True),
        ("a … c", "a b c", True),
        ("a", "a\nb", False),
    ],
)
def test_what_is_printed_is_compared_as_text(expected: str, printed: str, same: bool):
    assert compared("text", expected, printed) is same
