"""buildah and podman with a store of their own below .build: builds images, runs containers.

It knows nothing of Anabranch. Nothing outside the store is changed; what was started is removed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.install_consul import CannotInstall, machine_sources, mirror_of, sources

TOOLS = {
    "podman": "podman",
    "buildah": "buildah",
    "runc": "runc",
    "catatonit": "catatonit",
    "debootstrap": "debootstrap",
}
"""Programs, and the Debian packages that have them."""

_RELEASE = "bookworm"
_TRUST = "/etc/ssl/certs"


class EngineError(Exception):
    """A build or a container failed; the text says what and why."""


@dataclass(frozen=True)
class Image:
    """What the engine says of an image; sizes in bytes."""

    name: str
    size: int
    user: str
    entrypoint: tuple[str, ...]


@dataclass(frozen=True)
class Engine:
    """One store of images below `directory`."""

    directory: Path

    def prepare(self) -> None:
        """Makes the store. Raises EngineError when this machine cannot run containers."""
        if os.geteuid() != 0:
            raise EngineError("images are built and run as root here: use sudo")
        missing = [
            package
            for program, package in TOOLS.items()
            if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/usr/libexec/podman")
            is None
        ]
        if missing:
            raise EngineError(f"install first: tools/install_debian.sh {' '.join(missing)}")
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.directory}/store"\n'
            f'runroot = "{self.directory}/run"\n',
            encoding="utf-8",
        )
        # The limits are those that every machine allows; runc runs under any kind of cgroups.
        (self.directory / "containers.conf").write_text(
            '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n',
            encoding="utf-8",
        )

    def stand_in(self, name: str) -> None:
        """Makes, once, an image of Debian bookworm with Python 3.11, laid out like Python's own.

        Raises EngineError.
        """
        if self._run("podman", "image", "exists", name, check=False).returncode == 0:
            return
        root = self.directory / "root"
        shutil.rmtree(root, ignore_errors=True)
        packages = "python3,python3-venv,python3-pip,ca-certificates,netbase"
        self._run(
            *("debootstrap", "--variant=minbase", f"--include={packages}"),
            *(_RELEASE, str(root), _mirror()),
        )
        self._run("chroot", str(root), "python3", "-m", "venv", "/usr/local")
        archive = self.directory / "root.tar"
        self._run("tar", "--create", "--file", str(archive), "--directory", str(root), ".")
        self._run("podman", "import", str(archive), name)
        shutil.rmtree(root)
        archive.unlink()

    def build(
        self,
        dockerfile: Path,
        target: str,
        name: str,
        arguments: Mapping[str, str],
        volumes: Sequence[str] = (),
    ) -> None:
        """Builds one target; layers that are there are taken. Raises EngineError."""
        command = ["buildah", "bud", "--layers", "--format", "docker", "--isolation", "chroot"]
        command += ["--pull-never", "--file", str(dockerfile), "--target", target, "--tag", name]
        # The machine's authorities: whatever packages come through, it is trusted here too.
        for volume in (f"{_TRUST}:{_TRUST}", *volumes):
            command += ["--volume", f"{volume}:ro"]
        for key, value in arguments.items():
            command += ["--build-arg", f"{key}={value}"]
        self._run(*command, str(dockerfile.parent.parent.parent))

    def inspect(self, name: str) -> Image:
        """What the image is. Raises EngineError."""
        form = '{{.Size}}\t{{.Config.User}}\t{{join .Config.Entrypoint " "}}'
        said = self._run("podman", "image", "inspect", "--format", form, name).stdout.strip("\n")
        size, user, entrypoint = said.split("\t")
        return Image(name, int(size), user, tuple(entrypoint.split()))

    def once(self, image: str, *command: str, options: Sequence[str] = ()) -> str:
        """Runs a container to its end and returns its output. Raises EngineError."""
        return self._run("podman", "run", "--rm", *_LOCKED, *options, image, *command).stdout

    def start(self, name: str, image: str, *command: str, options: Sequence[str] = ()) -> None:
        """Starts a container that goes on. Raises EngineError."""
        self.remove(name)
        self._run("podman", "run", "--detach", "--name", name, *_LOCKED, *options, image, *command)

    def running(self, name: str) -> bool:
        """Whether it runs."""
        asked = ("podman", "inspect", "--format", "{{.State.Running}}", name)
        return self._run(*asked, check=False).stdout.strip() == "true"

    def logs(self, name: str) -> str:
        """What it has written."""
        done = self._run("podman", "logs", name, check=False)
        return done.stdout + done.stderr

    def is_healthy(self, name: str) -> bool:
        """What the image's own health check says now."""
        return self._run("podman", "healthcheck", "run", name, check=False).returncode == 0

    def stop(self, name: str, seconds: int) -> int:
        """Stops it as Docker does, by SIGTERM, and returns its exit status. Raises EngineError."""
        self._run("podman", "stop", "--time", str(seconds), name)
        asked = self._run("podman", "inspect", "--format", "{{.State.ExitCode}}", name)
        return int(asked.stdout.strip())

    def remove(self, name: str) -> None:
        """Removes a container, running or not."""
        self._run("podman", "rm", "--force", "--ignore", name)

    def remove_volumes(self, names: Sequence[str]) -> None:
        """Removes volumes; those that are not there are no error."""
        for name in names:
            self._run("podman", "volume", "rm", "--force", name, check=False)

    def _run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "CONTAINERS_STORAGE_CONF": str(self.directory / "storage.conf"),
            "CONTAINERS_CONF": str(self.directory / "containers.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
        }
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if check and done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
            raise EngineError(f"{' '.join(command[:3])} … failed ({done.returncode}):\n{tail}")
        return done


# What Compose and Kubernetes lock a container down to.
_LOCKED = (
    *("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges"),
    *("--network", "host", "--init"),
)


def _mirror() -> str:
    """The archive that this machine's apt gets the release from. Raises EngineError."""
    try:
        return mirror_of(sources(machine_sources()), _RELEASE).uri
    except CannotInstall as lacking:
        raise EngineError(str(lacking)) from lacking
