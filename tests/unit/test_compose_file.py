"""docker-compose.yml says only what the services understand; no container is started."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.chassis.settings import load

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
KEYCHAINS: dict[str, Any] = yaml.safe_load(
    (ROOT / "deploy/docker/keychains.yaml").read_text(encoding="utf-8")
)
OURS = {
    "router": ("services.router", "ANABRANCH_ROUTER_"),
    "engine": ("services.local_engine", "ANABRANCH_ENGINE_"),
    "cloud-proxy": ("services.cloud_proxy", "ANABRANCH_CLOUD_"),
    "auth": ("services.auth", "ANABRANCH_AUTH_"),
}
GIVEN = {
    "ANABRANCH_POSTGRES_PASSWORD": "0123456789abcdef",
    "ANABRANCH_KEY_ENCRYPTION_SECRET": "0123456789abcdef0123456789abcdef",
    "ANABRANCH_CLOUD_API_KEYS": "deepseek=some-key",
}


def substituted(text: str) -> str:
    """`${NAME:-default}` and `${NAME:?message}`, with the values of a filled-in .env."""
    return re.sub(
        r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}",
        lambda found: GIVEN.get(found[1], found[2] or ""),
        text,
    )


def environment(service: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    """A container's variables, its mounted files replaced by those of this machine."""
    values = {key: substituted(str(value)) for key, value in service["environment"].items()}
    for volume in service.get("volumes", ()):
        source, target = volume.split(":")[:2]
        for key, value in values.items():
            if value == target or value.startswith(target + "/"):
                here = ROOT / source if source.startswith(".") else tmp_path
                values[key] = str(here) + value.removeprefix(target)
                if not source.startswith(".") and value != target:
                    Path(values[key]).write_text("a-secret\n", encoding="utf-8")
    return values


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting_of_its_service(name, tmp_path):
    package, prefix = OURS[name]
    settings = importlib.import_module(f"{package}.settings").Settings
    values = environment(COMPOSE["services"][name], tmp_path)
    assert all(key.startswith(prefix) for key in values)
    load(settings, prefix, values)


@pytest.mark.parametrize("name", KEYCHAINS["services"])
def test_every_keychain_is_named_by_a_setting_and_mounted_where_it_is(name):
    package, prefix = OURS[name]
    service = KEYCHAINS["services"][name]
    settings = load(
        importlib.import_module(f"{package}.settings").Settings,
        prefix,
        {"ANABRANCH_AUTH_DATABASE_URL": "postgresql://host/name"} | service["environment"]
        if name == "auth"
        else service["environment"],
    )
    named = settings.key_encryption_keys_file if name == "auth" else settings.encryption_keys_file
    ((_, mounted, mode),) = (volume.split(":") for volume in service["volumes"])
    assert (str(named.parent), mode) == (mounted, "ro")


@pytest.mark.parametrize("name", ["auth", "router"])
def test_the_trails_folder_is_in_the_image_for_its_volume_to_get_the_owner_from(name):
    service = COMPOSE["services"][name]
    directory = service["environment"][f"{OURS[name][1]}AUDIT_DIR"]
    assert f"audit-{name}:{directory}" in service["volumes"]
    text = (ROOT / service["build"]["dockerfile"]).read_text(encoding="utf-8")
    made = re.search(r"install --directory --owner anabranch .*", text)
    assert made is not None
    assert directory in made[0].split()


@pytest.mark.parametrize("name", OURS)
def test_others_are_told_the_containers_own_name_and_port(name):
    package, prefix = OURS[name]
    values = COMPOSE["services"][name]["environment"]
    settings = importlib.import_module(f"{package}.settings").Settings
    port = settings.__dataclass_fields__["listen"].default.rpartition(":")[2]
    assert values[f"{prefix}ADVERTISE"] == f"{name}:{port}"


def test_every_build_names_a_dockerfile_and_a_stage_that_exist():
    for service in COMPOSE["services"].values():
        build = service.get("build")
        if build:
            text = (ROOT / build["dockerfile"]).read_text(encoding="utf-8")
            assert "target" not in build or f" AS {build['target']}\n" in text


@pytest.mark.parametrize("path", sorted((ROOT / "deploy/docker").glob("*.Dockerfile")), ids=str)
def test_an_image_runs_unprivileged_and_copies_only_its_own_service(path):
    text = path.read_text(encoding="utf-8")
    room = re.search(r'ENTRYPOINT \["python3?", "-m", "services\.(\w+)"\]', text)
    assert room
    copied = set(re.findall(r"^COPY services/(\w+) ", text, re.MULTILINE))
    assert copied == {"chassis", room[1]}
    final = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    for copy in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for source in copy.split():
            assert source == "README.md" or (ROOT / source).exists(), source


def test_the_router_finds_its_policy_where_it_is_mounted():
    router = COMPOSE["services"]["router"]
    path = router["environment"]["ANABRANCH_ROUTER_POLICY"].removeprefix("file:")
    mounts = dict(volume.split(":")[:2][::-1] for volume in router["volumes"])
    source = mounts[path.rpartition("/")[0]]
    assert (ROOT / source / path.rpartition("/")[2]).is_file()


def test_the_administrators_secret_lies_where_only_those_who_need_it_look():
    services = COMPOSE["services"]
    admin = services["auth"]["environment"]["ANABRANCH_AUTH_BOOTSTRAP_SECRET_FILE"]
    mounts = dict(volume.split(":")[:2][::-1] for volume in services["auth"]["volumes"])
    volume = mounts[str(Path(admin).parent)]
    holders = {
        name
        for name, service in services.items()
        if volume in {mount.split(":")[0] for mount in service.get("volumes", ())}
    }
    assert holders == {"auth", "identities"}


def test_the_router_finds_its_secret_alone_in_a_volume_that_it_cannot_write():
    services = COMPOSE["services"]
    secret = Path(services["router"]["environment"]["ANABRANCH_ROUTER_CLIENT_SECRET_FILE"])
    (volume,) = (
        source
        for source, target, *mode in (v.split(":") for v in services["router"]["volumes"])
        if (target, mode) == (str(secret.parent), ["ro"])
    )
    mounts = dict(mount.split(":")[:2] for mount in services["identities"]["volumes"])
    copies = [word for word in services["identities"]["command"] if word.startswith("--copy=")]
    assert copies == [f"--copy={secret.name}={mounts[volume]}"]
    image = (ROOT / services["auth"]["build"]["dockerfile"]).read_text(encoding="utf-8")
    made = re.search(r"install --directory --owner anabranch .*", image)
    assert made is not None
    assert mounts[volume] in made[0].split()


def test_redis_is_told_its_password_on_no_command_line():
    redis = COMPOSE["services"]["redis"]
    assert "${" not in str(redis["command"])
    assert redis["environment"]["REDISCLI_AUTH"] == "${ANABRANCH_REDIS_PASSWORD:-}"
    assert "requirepass" in str(redis["command"])


@pytest.mark.parametrize("name", ["router", "engine", "cloud-proxy"])
def test_what_counts_quotas_can_be_given_redis(name):
    key = f"{OURS[name][1]}REDIS_URL"
    assert COMPOSE["services"][name]["environment"][key] == f"${{{key}:-}}"


def test_our_containers_give_up_every_privilege():
    for name in OURS:
        service = COMPOSE["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_dependencies_and_volumes_exist():
    services, volumes = COMPOSE["services"], COMPOSE["volumes"]
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source.startswith("./") or source in volumes, volume


def test_every_variable_that_must_be_set_is_in_the_example():
    example = (ROOT / "deploy/docker/env.example").read_text(encoding="utf-8")
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    for name in set(re.findall(r"\$\{(\w+)", text)):
        assert re.search(rf"^{name}=", example, re.MULTILINE), name


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "deploy/docker").glob("*.Dockerfile")), ids=str)
def test_a_service_starts_from_what_its_image_copies(path, tmp_path):
    copies = re.findall(r"^COPY (\S+) /app/(\S*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    ignore = shutil.ignore_patterns("__pycache__")
    for source, target in copies:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / target, ignore=ignore)
        else:
            (tmp_path / target).mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, tmp_path / target)
    room = re.findall(r'"services\.(\w+)"\]$', path.read_text(encoding="utf-8"), re.MULTILINE)[-1]
    done = subprocess.run(
        [sys.executable, "-m", f"services.{room}", "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "ANABRANCH_" in done.stdout
