"""docker-compose.yml says only what Compose and the services understand; no container is started.

The file is read by podman-compose, an implementation of Compose, and checked against the schema of
the Compose specification. `make images-check` builds and runs the images.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.chassis.settings import load
from tests.support.compose import OURS, ROOT, config, every_service, mounts, resolved, written
from tests.support.dockerfile import STAGES, TARGETS, lineage
from tools.identities import IDENTITIES

FILES = ["docker-compose.yml", "deploy/docker/keychains.yaml"]
HOST = re.compile(r"127\.0\.0\.1:\d+:\d+")


def environment(service: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    """A container's variables, its mounted files replaced by those of this machine."""
    values = {key: str(value) for key, value in service["environment"].items()}
    for target, (source, _) in mounts(service).items():
        for key, value in values.items():
            if value == target or value.startswith(target + "/"):
                here = ROOT / source if source.startswith(".") else tmp_path
                values[key] = str(here) + value.removeprefix(target)
                if not source.startswith(".") and key.endswith("_FILE"):
                    Path(values[key]).write_text("a-secret\n", encoding="utf-8")
    return values


@pytest.mark.parametrize("path", FILES)
def test_the_file_is_what_the_specification_of_compose_allows(path):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*command, str(ROOT / path)], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting_of_its_service(name, tmp_path):
    package, prefix = OURS[name]
    settings = importlib.import_module(f"{package}.settings").Settings
    service = every_service()[name]
    values = environment(service, tmp_path)
    ours = {key: value for key, value in values.items() if key.startswith("ANABRANCH_")}
    assert all(key.startswith(prefix) for key in ours)
    assert set(values) - set(ours) <= {"HF_HOME", "HF_TOKEN"}
    load(settings, prefix, ours)


@pytest.mark.parametrize("name", OURS)
def test_others_are_told_the_containers_own_name_and_port(name):
    package, prefix = OURS[name]
    values = every_service()[name]["environment"]
    settings = importlib.import_module(f"{package}.settings").Settings
    port = settings.__dataclass_fields__["listen"].default.rpartition(":")[2]
    assert values[f"{prefix}ADVERTISE"] == f"{name}:{port}"
    # All listen on 0.0.0.0, which as part of a name would make two engines one.
    assert values[f"{prefix}SERVICE_ID"] == name


@pytest.mark.parametrize("name", ["auth", "router"])
def test_every_keychain_is_named_by_a_setting_and_mounted_where_it_is(name):
    package, prefix = OURS[name]
    service = resolved("cpu", overlay="deploy/docker/keychains.yaml")["services"][name]
    key = "KEY_ENCRYPTION_KEYS_FILE" if name == "auth" else "ENCRYPTION_KEYS_FILE"
    settings = importlib.import_module(f"{package}.settings").Settings
    assert key.lower() in settings.__dataclass_fields__
    named = Path(service["environment"][prefix + key])
    assert mounts(service)[str(named.parent)] == (f"./keychains/{name}", "ro")


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_a_profile_has_two_engines_of_its_kind_and_no_other(profile):
    services = resolved(profile)["services"]
    engines = {name for name in services if name.startswith("engine")}
    assert engines == {f"engine-{profile}-1", f"engine-{profile}-2"}
    assert set(services) > {"consul", "postgres", "redis", "prometheus", "grafana", "collector"}
    assert "alertmanager" not in services
    for name in engines:
        # Prometheus finds each of them under the one name.
        assert services[name]["networks"]["default"]["aliases"] == ["engine"]


def test_without_a_kind_of_engines_it_says_what_to_do(tmp_path):
    env_file = tmp_path / "env"
    env_file.write_text(written(COMPOSE_PROFILES=""), encoding="utf-8")
    done = config(env_file, "docker-compose.yml")
    assert done.returncode != 0
    assert "set it in .env to the kind of engines, cpu or gpu" in done.stderr


@pytest.mark.parametrize(
    ("profiles", "status"),
    [("cpu", 0), ("gpu", 0), ("cpu,alerts", 0), ("alerts, gpu", 0), ("cpu,gpu", 1), ("cup", 1)],
)
def test_nothing_starts_unless_exactly_one_kind_of_engines_is_chosen(profiles, status):
    (code,) = every_service()["preflight"]["command"]
    done = subprocess.run(
        [sys.executable, "-c", code.replace("$$", "$")],
        env={"PROFILES": profiles},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status
    assert ("COMPOSE_PROFILES must name one of cpu and gpu" in done.stderr) is bool(status)
    assert "preflight" in waits_for("auth", "service_completed_successfully")


@pytest.mark.parametrize("name", TARGETS)
def test_every_image_is_built_once_from_a_target_that_exists(name):
    built = [
        service
        for service in every_service().values()
        if service.get("build", {}).get("target") == name
    ]
    (service,) = built
    assert service["build"]["dockerfile"] == "deploy/docker/Dockerfile"
    with_torch = any(
        "PIP_EXTRA_INDEX_URL" in stage.all("ARG")
        for copied in [name, *re.findall(r"--from=(\S+)", " ".join(STAGES[name].all("COPY")))]
        for stage in lineage(copied)
    )
    assert any("PIP_EXTRA_INDEX_URL" in arg for arg in service["build"]["args"]) is with_torch


def test_who_uses_an_image_built_for_another_service_never_fetches_it():
    services = every_service()
    built = {service["image"] for service in services.values() if "build" in service}
    for name, service in services.items():
        if service["image"].startswith("anabranch/") and "build" not in service:
            assert service["image"] in built, name
            assert service["pull_policy"] == "never", name
        if not service["image"].startswith("anabranch/"):
            assert re.search(r":v?\d+\.\d+(\.\d+)?$", service["image"]), name


def waits_for(name: str, condition: str) -> set[str]:
    """What a service waits for on that condition."""
    needs = every_service()[name].get("depends_on", {})
    return {other for other, need in needs.items() if need["condition"] == condition}


def test_everything_starts_in_the_order_of_health():
    engines = {name for name in OURS if name.startswith("engine")}
    assert waits_for("router", "service_healthy") == {"auth", "redis", "cloud-proxy", *engines}
    assert waits_for("router", "service_completed_successfully") == {"identities"}
    for name in engines:
        # The engines of the other profile do not exist.
        assert every_service()["router"]["depends_on"][name]["required"] is False
    assert waits_for("auth", "service_healthy") == {"consul", "postgres"}
    assert waits_for("cloud-proxy", "service_healthy") == {"auth", "redis", "provider-simulator"}
    assert waits_for("identities", "service_healthy") == {"auth"}
    for name in ("engine-cpu-1", "engine-cpu-2"):
        assert waits_for(name, "service_healthy") == {"auth", "redis"}
        assert waits_for(name, "service_completed_successfully") == {"model"}
    assert waits_for("engine-gpu-1", "service_healthy") == {"auth", "redis"}
    assert waits_for("engine-gpu-2", "service_healthy") == {"engine-gpu-1"}


def test_what_is_waited_for_can_say_how_it_is():
    services = every_service()
    for name, service in services.items():
        for other in waits_for(name, "service_healthy"):
            target = services[other].get("build", {}).get("target", "")
            own = services[other].get("healthcheck", {}).get("test")
            asked = target in TARGETS and any(s.all("HEALTHCHECK") for s in lineage(target))
            assert own or asked or other.startswith("engine"), other
        for other in waits_for(name, "service_completed_successfully"):
            assert services[other]["restart"] == "no", other
        assert set(service.get("depends_on", {})) <= set(services), name


def test_nothing_is_published_beyond_this_machine():
    published = [port for service in every_service().values() for port in service.get("ports", ())]
    assert len(published) > 8
    assert all(HOST.fullmatch(port) for port in published), published
    assert len({port.split(":")[1] for port in published}) == len(published)


def test_our_containers_give_up_every_privilege():
    for name, service in every_service().items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if name != "consul":  # whose image starts as root, and then is nobody in particular
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name


def seconds(text: str) -> float:
    number, unit = float(text[:-1]), text[-1]
    return number * {"s": 1, "m": 60}[unit]


@pytest.mark.parametrize("name", OURS)
def test_a_container_is_given_longer_to_end_than_its_service_takes(name):
    settings = importlib.import_module(f"{OURS[name][0]}.settings").Settings
    drain = settings.__dataclass_fields__["drain_timeout"].default
    # vLLM takes some 10 s to end its own processes.
    more = 20.0 if name.startswith("engine") else 5.0
    assert seconds(every_service()[name]["stop_grace_period"]) >= drain + more


@pytest.mark.parametrize("name", [name for name in OURS if name.startswith("engine")])
def test_an_engine_has_shared_memory_and_may_map_what_it_compiles(name):
    service = every_service()[name]
    assert service["shm_size"] == ("1gb" if "cpu" in name else "8gb")
    assert service["tmpfs"] == ["/tmp:exec"]
    assert service["environment"]["HF_HOME"].startswith("/models/")
    assert mounts(service)["/models"] == ("models", "rw")
    (kind, number) = name.split("-")[1:]
    devices = service.get("deploy", {}).get("resources", {}).get("reservations", {})
    if kind == "cpu":
        assert devices == {}
    else:
        (device,) = devices["devices"]
        assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    assert mounts(service)["/var/lib/anabranch"] == (f"engine-{number}", "rw")


def test_the_router_finds_its_policy_where_it_is_mounted():
    router = every_service()["router"]
    path = router["environment"]["ANABRANCH_ROUTER_POLICY"].removeprefix("file:")
    source, mode = mounts(router)[path.rpartition("/")[0]]
    assert (ROOT / source / path.rpartition("/")[2]).is_file()
    assert mode == "ro"


@pytest.mark.parametrize("name", ["models.yaml", "models-simulator.yaml"])
def test_the_cloud_offers_what_the_policy_names(name, tmp_path):
    module = importlib.import_module("services.cloud_proxy.settings")
    values = environment(every_service()["cloud-proxy"], tmp_path) | {
        "ANABRANCH_CLOUD_MODELS_FILE": str(ROOT / "deploy/docker" / name),
        "ANABRANCH_CLOUD_API_KEYS": "simulator=simulator-key,deepseek=some-key",
    }
    routes = load(module.Settings, "ANABRANCH_CLOUD_", values).routes()
    assert set(routes) == {"smollm2-135m-instruct", "cloud-large"}
    policy = (ROOT / "deploy/docker/policy.yaml").read_text(encoding="utf-8")
    assert all(route in policy for route in routes)
    simulated = {route.profile.simulated for route in routes.values()}
    assert simulated == {name == "models-simulator.yaml"}


def test_without_a_providers_key_the_cloud_is_the_labelled_simulator(tmp_path):
    services = every_service()
    values = environment(services["cloud-proxy"], tmp_path)
    assert values["ANABRANCH_CLOUD_MODELS_FILE"].endswith("/models-simulator.yaml")
    text = Path(values["ANABRANCH_CLOUD_MODELS_FILE"]).read_text(encoding="utf-8")
    listen = services["provider-simulator"]["command"][0].rpartition(":")[2]
    assert f"base_url: http://provider-simulator:{listen}" in text


def holders(volume: str) -> dict[str, str]:
    """Which services mount the volume, and how."""
    return {
        name: mode
        for name, service in every_service().items()
        for source, mode in mounts(service).values()
        if source == volume
    }


def test_the_administrators_secret_lies_where_only_those_who_need_it_look():
    auth = every_service()["auth"]
    admin = Path(auth["environment"]["ANABRANCH_AUTH_BOOTSTRAP_SECRET_FILE"])
    volume, _ = mounts(auth)[str(admin.parent)]
    assert holders(volume) == {"auth": "rw", "identities": "rw", "admin": "ro"}


@pytest.mark.parametrize(("identity", "reader"), [("router", "router"), ("demo", "cli")])
def test_an_identitys_secret_lies_alone_where_its_user_cannot_write(identity, reader):
    assert identity in {known.client_id for known in IDENTITIES}
    services = every_service()
    key = "ANABRANCH_ROUTER_CLIENT_SECRET_FILE" if reader == "router" else ""
    secret = Path(services[reader]["environment"][key or "ANABRANCH_CLIENT_SECRET_FILE"])
    assert secret.name == identity
    volume, mode = mounts(services[reader])[str(secret.parent)]
    assert mode == "ro"
    assert set(holders(volume)) == {"identities", reader}
    (target,) = (
        target for target, (source, _) in mounts(services["identities"]).items() if source == volume
    )
    assert f"--copy={identity}={target}" in services["identities"]["command"]


@pytest.mark.parametrize("name", ["auth", "router"])
def test_a_volume_of_ours_takes_its_owner_from_a_folder_of_the_image(name):
    made = " ".join(STAGES["runtime"].all("RUN"))
    for target, (source, _) in mounts(every_service()[name]).items():
        if not source.startswith("."):
            assert f" {target} " in f"{made} ", target


def test_redis_is_told_its_password_on_no_command_line_and_shared_by_all_who_count():
    services = every_service()
    redis = services["redis"]
    password = redis["environment"]["REDISCLI_AUTH"]
    assert len(password) == 64
    assert password not in str(redis["command"])
    assert "requirepass" in str(redis["command"])
    for name, (_, prefix) in OURS.items():
        if name != "auth":
            url = services[name]["environment"][f"{prefix}REDIS_URL"]
            assert url == f"redis://:{password}@redis:6379/0", name


def test_named_volumes_exist_and_mounted_folders_are_of_the_repository():
    model = resolved("cpu", "gpu", "alerts", "cli")
    named = set()
    for name, service in model["services"].items():
        for source, mode in mounts(service).values():
            if source.startswith("./"):
                assert mode == "ro", name
                # The chart's files may come with another change.
                assert (ROOT / source).is_dir() or "/helm/" in source, source
            else:
                named.add(source)
    assert named == set(model["volumes"])


def test_the_example_has_exactly_the_variables_that_are_taken_and_a_comment_for_each_group():
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    taken = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    assert set(re.findall(r"^(\w+)=", example, re.MULTILINE)) == taken
    for block in example.strip().split("\n\n"):
        assert block.startswith("#")
