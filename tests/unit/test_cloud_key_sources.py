"""Keys from settings and files: what is read, what is refused, and what a change takes up."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.cloud_proxy.config import read_routes
from services.cloud_proxy.configuration import BadConfiguration
from services.cloud_proxy.key_reload import open_keys
from services.cloud_proxy.key_sources import BadKeys, parse_key_file, parse_keys, read_key_file
from services.cloud_proxy.keys import AccountKey
from services.cloud_proxy.profile_files import built_in_profiles

AWS = "AKIDEXAMPLE:wJalr/XUt+nFEMI=K7@MDENG=="


def shown(keys: Any) -> list[tuple[str, str]]:
    return [(key.quota, key.secret.reveal()) for key in keys]


def secrets(pool: Any) -> set[str]:
    """What the pool hands out, over a few turns."""
    picked = [pool.pick("m", 1) for _ in range(8)]
    return {key.secret.reveal() for key in picked if key is not None and key.secret}


def test_keys_in_settings_have_a_name_and_perhaps_a_quota():
    found = parse_keys(f"deepseek=sk-1, openai@team-a=sk-2\ndeepseek=sk-3= bedrock={AWS}")
    assert shown(found["deepseek"]) == [("", "sk-1"), ("", "sk-3=")]
    assert shown(found["openai"]) == [("team-a", "sk-2")]
    assert shown(found["bedrock"]) == [("", AWS)]


@pytest.mark.parametrize(
    "entry", ["sk-naked-key", "=sk-naked-key", "a=", "a@=sk-naked-key", "@q=sk-naked-key", "a=sk-é"]
)
def test_bad_entries_are_refused_by_number_and_not_repeated(entry):
    with pytest.raises(BadKeys) as caught:
        parse_keys(f"openai=ok {entry}")
    (problem,) = caught.value.problems
    assert "entry 2" in problem
    assert "sk-" not in problem


def test_a_file_holds_a_key_a_line_perhaps_after_its_quota():
    found = parse_key_file(f"sk-1\r\n\n  team-a sk-2\nteam-a\tsk-3\n{AWS}".encode())
    assert shown(found) == [("", "sk-1"), ("team-a", "sk-2"), ("team-a", "sk-3"), ("", AWS)]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        ("sk-secret-é".encode(), "is not plain ASCII"),
        (b"ok\na b sk-secret", "line 2 is not a key"),
        (b"sk-secret\x00", "line 1 is not a key"),
    ],
)
def test_bad_files_are_refused_and_not_repeated(content, problem):
    with pytest.raises(BadKeys) as caught:
        parse_key_file(content)
    assert problem in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_what_is_no_file_of_sensible_size_is_not_read(tmp_path):
    (tmp_path / "large").write_bytes(b"x" * (64 * 1024 + 1))
    os.mkfifo(tmp_path / "pipe")
    for name, problem in (
        ("large", "is larger than 64 KiB"), ("pipe", "is not a file"),
        ("", "cannot be read"), ("absent", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(BadKeys, match=f"{problem}|is not a file"):
            read_key_file(tmp_path / name)


def routes(directory: Path, *entries: dict[str, Any], keys=(), keys_dir=None):
    path = directory / "routes.yaml"
    models = [
        {"name": f"m{number}", "provider": "openai", "model": "x", **entry}
        for number, entry in enumerate(entries)
    ]
    path.write_text(yaml.safe_dump({"models": models}))
    return read_routes(path, built_in_profiles(), keys, keys_dir)


def opened(directory: Path, *entries: dict[str, Any], stated=None, keys_dir=None):
    stated = stated or {}
    found = routes(directory, *entries, keys=stated, keys_dir=keys_dir)
    return open_keys(found.values(), stated, lambda: 0.0)


def test_accounts_have_their_keys_from_settings_from_the_directory_or_from_a_file(tmp_path):
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (mounted / "second").write_text("sk-mounted\n")
    (tmp_path / "own").write_text("sk-own\n")
    keys = opened(
        tmp_path,
        {}, {"api_key": "second"}, {"api_key_file": "own"}, {"api_key": "second", "model": "y"},
        stated=parse_keys("openai=sk-stated"), keys_dir=mounted,
    )  # fmt: skip
    found = {account: secrets(pool) for account, pool in keys.pools.items()}
    assert found == {
        "key:openai": {"sk-stated"},
        "key:second": {"sk-mounted"},
        f"file:{tmp_path / 'own'}": {"sk-own"},
    }


def test_a_server_that_asks_for_no_key_is_sent_none(tmp_path):
    keys = opened(tmp_path, {"provider": "lm-studio"})
    (pool,) = keys.pools.values()
    assert pool.pick("m", 1).secret is None
    assert not keys.files


@pytest.mark.parametrize(
    ("content", "stated", "problem"),
    [
        (None, (), "there is no key called openai in api_keys or keys_dir"),
        (b"", (), "keys_dir: openai: is empty"),
        (b"sk-1", ("openai",), "the keys called openai are in api_keys and keys_dir"),
    ],
)
def test_routes_without_usable_keys_stop_the_start(tmp_path, content, stated, problem):
    if content is not None:
        (tmp_path / "openai").write_bytes(content)
    with pytest.raises(BadConfiguration) as caught:
        routes(tmp_path, {}, keys=stated, keys_dir=tmp_path)
    assert problem in str(caught.value)


def swap(mounted: Path, version: str, content: str) -> None:
    """As Kubernetes updates a mounted secret: a new directory, then one link to it replaced."""
    (mounted / version).mkdir()
    (mounted / version / "openai").write_text(content)
    (mounted / "..new").symlink_to(version)
    (mounted / "..new").replace(mounted / "..data")


async def test_a_swapped_link_is_taken_up_and_known_keys_keep_their_state(tmp_path):
    swap(tmp_path, "..v1", "sk-1\nsk-2\n")
    (tmp_path / "openai").symlink_to("..data/openai")
    keys = opened(tmp_path, {}, keys_dir=tmp_path)
    (file,) = keys.files
    (pool,) = keys.pools.values()
    assert await file.changed() is None
    pool.rejected(pool.pick("m", 1))
    assert secrets(pool) == {"sk-2"}
    swap(tmp_path, "..v2", "sk-1\nsk-3\n")
    found = await file.changed()
    assert shown(found) == [("", "sk-1"), ("", "sk-3")]
    pool.replace(found)
    assert secrets(pool) == {"sk-3"}
    assert await file.changed() is None


async def test_a_file_rewritten_with_the_same_time_and_size_is_taken_up(tmp_path):
    path = tmp_path / "openai"
    path.write_text("sk-1")
    times = path.stat()
    keys = opened(tmp_path, {}, keys_dir=tmp_path)
    path.write_text("sk-2")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert shown(await keys.files[0].changed()) == [("", "sk-2")]


@pytest.mark.parametrize(
    "content", [None, b"", b"sk-planted \xff", b"a b sk-planted", b"sk-planted" * 7000]
)
async def test_an_unusable_file_is_warned_of_once_and_changes_nothing(tmp_path, caplog, content):
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "openai"
    path.write_text("sk-1")
    keys = opened(tmp_path, {}, keys_dir=tmp_path)
    (file,) = keys.files
    path.unlink() if content is None else path.write_bytes(content)
    for _ in range(3):
        assert await file.changed() is None
    records = [r for r in caplog.records if r.name.startswith("services.")]
    (warning,) = records
    assert warning.levelno == logging.WARNING
    assert warning.__dict__["account"] == "key:openai"
    assert "sk-" not in str(warning.__dict__)
    path.write_text("sk-2")
    assert shown(await file.changed()) == [("", "sk-2")]
    path.unlink()
    assert await file.changed() is None
    assert len([r for r in caplog.records if r.name.startswith("services.")]) == 2


async def test_a_file_that_is_still_being_written_is_left_for_the_next_look(tmp_path, monkeypatch):
    path = tmp_path / "openai"
    path.write_text("sk-1")
    keys = opened(tmp_path, {}, keys_dir=tmp_path)
    (file,) = keys.files
    contents = iter([b"sk-2\nsk-tr", b"sk-2\nsk-truncated", b"sk-2\nsk-truncated",
                     b"sk-2\nsk-truncated"])  # fmt: skip
    monkeypatch.setattr(
        "services.cloud_proxy.key_reload.read_key_file", lambda path: next(contents)
    )
    assert await file.changed() is None
    assert shown(await file.changed()) == [("", "sk-2"), ("", "sk-truncated")]


def test_keys_show_nothing_of_themselves():
    assert "sk-secret" not in repr(parse_keys("a=sk-secret"))
    assert "sk-secret" not in repr(AccountKey(parse_keys("a=sk-secret")["a"][0].secret))
