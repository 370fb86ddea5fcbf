"""Settings: what is accepted, and that every mistake is reported at once and without secrets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from services.chassis.common_settings import CommonSettings
from services.chassis.settings import Secret, SettingsError, describe, load, setting


@dataclass(frozen=True, kw_only=True)
class Sample(CommonSettings):
    listen: str = setting("0.0.0.0:50051", help="where")
    size: int = setting(help="a required number", minimum=1, maximum=10)
    ratio: float = setting(0.5, help="a share")
    pause: float = setting(1.0, help="a time", minimum=0)
    eager: bool = setting(False, help="a switch")
    models: tuple[str, ...] = setting((), help="names", choices=("a", "b"))
    ports: tuple[int, ...] = setting((1, 2), help="numbers", minimum=1)
    mode: Literal["fast", "slow"] = setting("fast", help="a mode")
    limit: int | None = setting(None, help="optional", minimum=2)
    keys_file: Path | None = setting(None, help="a path")
    pepper: Secret | None = setting(None, help="a secret")

    def __post_init__(self) -> None:
        if self.mode == "slow" and self.eager:
            raise ValueError("X_MODE=slow cannot be eager")


def read(**variables: str) -> Sample:
    return load(Sample, "X_", {"X_SIZE": "3", **{f"X_{k}": v for k, v in variables.items()}})


def problems(**variables: str) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        read(**variables)
    return refused.value.problems


def test_defaults_apply_and_a_service_overrides_the_common_ones():
    settings = read()
    assert settings.listen == "0.0.0.0:50051"
    assert settings.size == 3
    assert settings.drain_timeout == 30.0
    assert settings.max_message_bytes == 4 * 1024 * 1024


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("30s", 30), ("500ms", 0.5), ("2m", 120), ("1.5h", 5400), ("250us", 0.00025)],
)
def test_durations_are_seconds_with_or_without_a_unit(text, seconds):
    assert read(PAUSE=text).pause == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "fast", "5 parsecs", "nan", "inf", "1,5", "0x10", "1e999"])
def test_a_number_that_is_none_is_refused(text):
    assert problems(PAUSE=text)[0].startswith("X_PAUSE must be a number or a duration")


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("ON", True), ("false", False), ("no", False)]
)
def test_switches_accept_the_usual_words(text, value):
    assert read(EAGER=text).eager is value


@pytest.mark.parametrize("text", ["", "2", "y", "enabled", "truee"])
def test_switches_refuse_anything_else(text):
    assert "must be true or false" in problems(EAGER=text)[0]


@pytest.mark.parametrize("text", ["", "1.0", "1e3", "ten", "٣"])
def test_integers_are_strict(text):
    assert "must be a whole number" in problems(SIZE=text)[0]


def test_lists_are_comma_separated_and_each_item_is_checked():
    assert read(MODELS="a, b,").models == ("a", "b")
    assert read(PORTS="").ports == ()
    assert problems(MODELS="a,c") == ["X_MODELS must be one of a, b"]
    assert problems(PORTS="5,0") == ["X_PORTS must be at least 1, not 0"]


def test_optional_values_are_absent_when_empty():
    assert read(LIMIT="").limit is None
    assert read(LIMIT="4").limit == 4
    assert problems(LIMIT="1") == ["X_LIMIT must be at least 2, not 1"]


def test_every_problem_is_reported_at_once_with_the_likely_name():
    with pytest.raises(SettingsError) as refused:
        load(Sample, "X_", {"X_MODE": "warp", "X_PAUSE": "-1", "X_LISTEM": "y", "HOME": "/"})
    assert sorted(refused.value.problems) == [
        "X_LISTEM is not a setting; did you mean X_LISTEN?",
        "X_MODE must be one of fast, slow, not 'warp'",
        "X_PAUSE must be at least 0, not -1.0",
        "X_SIZE is required: a required number",
    ]


def test_a_refused_combination_is_a_settings_problem():
    assert problems(MODE="slow", EAGER="true") == ["X_MODE=slow cannot be eager"]


def test_any_value_may_come_from_a_file(tmp_path):
    path = tmp_path / "secret"
    path.write_text("hunter2\n")
    assert read(CLIENT_SECRET_FILE=str(path)).client_secret == Secret("hunter2")
    path.write_text("7")
    assert load(Sample, "X_", {"X_SIZE_FILE": str(path)}).size == 7


def test_a_value_given_twice_or_unreadable_is_refused(tmp_path):
    path = tmp_path / "missing"
    assert "cannot be read from X_PEPPER_FILE" in problems(PEPPER_FILE=str(path))[0]
    assert "are both set" in problems(PEPPER="a", PEPPER_FILE=str(path))[0]


def test_a_field_named_file_keeps_its_own_variable(tmp_path):
    assert read(KEYS_FILE="/etc/keys").keys_file == Path("/etc/keys")


def test_kubernetes_service_links_are_not_mistaken_for_settings():
    links = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "50051",
        "SERVICE_PORT_GRPC": "50051",
        "PORT": "tcp://10.0.0.1:50051",
        "PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "PORT_50051_TCP_PORT": "50051",
        "PORT_50051_TCP_ADDR": "10.0.0.1",
        "METRICS_SERVICE_HOST": "10.0.0.1",
    }
    assert read(**links).size == 3
    assert problems(PORT="50051")[0].startswith("X_PORT is not a setting")


def test_secrets_show_themselves_nowhere():
    settings = read(PEPPER="hunter2", CLIENT_SECRET="hunter2")
    shown = [repr(settings), str(settings.pepper), f"{settings.pepper}", describe(Sample, "X_")]
    shown += problems(PEPPER="hunter2", SIZE="no")
    assert not any("hunter2" in text for text in shown)
    assert settings.pepper is not None
    assert settings.pepper.reveal() == "hunter2"


def test_the_help_names_every_variable_its_type_default_and_meaning():
    text = describe(Sample, "X_")
    assert "X_SIZE  (integer; default none, required; at least 1; at most 10)" in text
    assert "a required number" in text
    assert "X_PEPPER  (optional secret; default empty)" in text
    assert "X_MODE  (fast|slow; default fast)" in text
