"""docs/install/compose.md names what is there: variables, addresses, services, files, goals."""

from __future__ import annotations

import re

import pytest

from tests.support.compose import ROOT, every_service

PAGE = (ROOT / "docs/install/compose.md").read_text(encoding="utf-8")
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
CLIENT = {
    "ANABRANCH_TARGET",
    "ANABRANCH_AUTH_TARGET",
    "ANABRANCH_CLIENT_ID",
    "ANABRANCH_CLIENT_SECRET_FILE",
}


def test_every_variable_is_in_the_example():
    known = set(re.findall(r"^(\w+)=", EXAMPLE, re.MULTILINE))
    named = set(re.findall(r"\b((?:ANABRANCH|COMPOSE|PIP|HF)_[A-Z0-9_]+)\b", PAGE))
    assert named - CLIENT <= known


def test_every_address_is_published_and_every_published_page_is_named():
    published = {
        port.split(":")[1] for s in every_service().values() for port in s.get("ports", ())
    }
    named = set(re.findall(r"127\.0\.0\.1:(\d+)", PAGE)) | set(re.findall(r"`(9\d{3})`", PAGE))
    assert named == published


def test_every_service_that_a_command_names_exists():
    services = set(every_service())
    started = re.findall(r"docker compose run --rm (?:--[\w-]+ (?:cat )?)*(\w+)", PAGE)
    watched = re.findall(r"docker compose logs (?:--follow )?(\w+)", PAGE)
    assert len(started) >= 4
    assert {*started, *watched} <= services


def test_every_goal_of_make_and_every_file_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for goal in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)$", PAGE, re.MULTILINE):
        assert f"\n{''.join(goal)}:" in makefile, goal
    for path in re.findall(r"`((?:deploy|tools|docs)/[\w./-]+)`", PAGE):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("message", ["run make compose-env, or set it in .env"])
def test_messages_to_look_up_are_those_that_are_given(message):
    assert message in PAGE
    assert message in (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
