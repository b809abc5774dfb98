"""Builds the image that the docker backend's interpreters live in.

From the project's Dockerfile where the engine can reach a registry of images and of Python packages; from Debian packages
with ``debootstrap`` where a Debian mirror is all there is. Progress goes line by line to whoever asked for the image.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import io
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence

from sandboxes.faults import SandboxFault
from sandboxes.python.docker.client import DockerClient

DEBIAN_PACKAGES = ("python3-numpy", "python3-scipy", "python3-sympy")
BUILD_SECONDS = 3600.0
"""How long a build may be silent."""
LAST_LINES = 12

NOT_NEEDED = (
    # what a Python without a compiler, a manual or a package manager's memory does not read
    *("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/include", "usr/lib/gcc"),
    *("var/cache/apt", "var/lib/apt/lists", "var/log"),
)

Report = Callable[[str], None]


def build_from_dockerfile(tag: str, base: str | None, packages: Sequence[str] | None, report: Report) -> str:
    """Builds the project's Dockerfile.

    Args:
        tag: Name of the new image.
        base: The image to build on, with python3 and pip; the Dockerfile's own by default.
        packages: Python packages to install; the Dockerfile's own by default.
        report: Takes each line of progress.

    Returns:
        The image's id.

    Raises:
        SandboxFault: The engine cannot be reached, or the build failed.
    """
    text = importlib.resources.files("sandboxes.python.docker").joinpath("Dockerfile").read_bytes()
    arguments = {} if base is None else {"BASE": base}
    if packages is not None:
        arguments["PACKAGES"] = " ".join(packages)
    with _client() as client, client.lend("build an image", BUILD_SECONDS) as engine:
        said: list[str] = []
        steps = engine.build(fileobj=io.BytesIO(text), tag=tag, buildargs=arguments, rm=True, forcerm=True, decode=True)
        for step in steps:
            for line in str(step.get("stream") or step.get("error") or step.get("status") or "").splitlines():
                if line.strip() and (not said or line != said[-1]):
                    said.append(line.rstrip())
                    report(said[-1])
            if "error" in step:
                raise SandboxFault(f"the image could not be built from the Dockerfile: {step['error'].strip()}")
        identity: str = engine.inspect_image(tag)["Id"]
    return identity


def build_from_debian(tag: str, release: str, mirror: str | None, packages: Sequence[str] | None, report: Report) -> str:
    """Builds an image of Debian packages, without any registry of images.

    Args:
        tag: Name of the new image.
        release: Name of a Debian release with Python 3.11 or newer, such as ``bookworm``.
        mirror: Address of a Debian mirror; by default the one that this machine's apt uses.
        packages: Debian packages besides python3; `DEBIAN_PACKAGES` by default.
        report: Takes each line of progress.

    Returns:
        The image's id.

    Raises:
        SandboxFault: The engine cannot be reached, or the build failed; the message says what is needed.
    """
    if os.geteuid() != 0:
        raise SandboxFault("an image of Debian packages is made with debootstrap, which needs root: run this as root")
    if shutil.which("debootstrap") is None:
        raise SandboxFault("an image of Debian packages needs the program debootstrap: apt-get install debootstrap")
    mirror = mirror or mirror_of(release)
    names = ",".join(["python3", *(DEBIAN_PACKAGES if packages is None else packages)])
    with _client() as client, tempfile.TemporaryDirectory(prefix="agent-envs-image-") as folder:
        root = os.path.join(folder, "root")
        command = ["debootstrap", "--variant=minbase", "--force-check-gpg", f"--include={names}", release, root, mirror]
        _run(command, report)
        report("importing it into the engine")
        with client.lend("import an image", BUILD_SECONDS) as engine, _packed(root) as archive:
            answer = engine.import_image_from_data(archive, repository=tag, changes=['CMD ["python3"]'])
            refused = [part["error"] for line in answer.splitlines() if "error" in (part := json.loads(line))]
            if refused:
                raise SandboxFault(f"the engine did not import the image: {refused[0]}")
            identity: str = engine.inspect_image(tag)["Id"]
    return identity


def mirror_of(release: str) -> str:
    """The mirror from which this machine's apt takes packages of a Debian release.

    Raises:
        SandboxFault: It takes none from anywhere.
    """
    listed = ""
    with contextlib.suppress(OSError):
        command = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"]
        listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        name, _, address = line.strip().partition(" ")
        if name == release and address:
            return address
    raise SandboxFault(f"this machine's apt knows no mirror of Debian {release}: name one with --mirror")


def _run(command: list[str], report: Report) -> None:
    """Runs a program; its output is the progress, and the end of it the reason if it fails."""
    said: list[str] = []
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    environment["PATH"] = environment.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line.rstrip())
            report(said[-1])
    if process.returncode:
        last = "\n".join(said[-LAST_LINES:])
        raise SandboxFault(f"{command[0]} ended with status {process.returncode}:\n{last}")


@contextlib.contextmanager
def _packed(root: str) -> Iterator[Iterator[bytes]]:
    """A folder as a tar archive, as it is being made."""
    left_out = [f"--exclude=./{path}/*" for path in NOT_NEEDED]
    command = ["tar", "--create", "--numeric-owner", "--anchored", *left_out, "--directory", root, "."]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        pipe = process.stdout
        assert pipe is not None
        yield iter(lambda: pipe.read(1 << 20), b"")
    if process.returncode:
        raise SandboxFault(f"tar ended with status {process.returncode} while the image was packed")


@contextlib.contextmanager
def _client() -> Iterator[DockerClient]:
    with contextlib.closing(DockerClient()) as client:
        yield client
