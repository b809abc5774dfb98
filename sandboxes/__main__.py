"""The sandboxes' commands: build the interpreter's image, say how well code is shut in here, remove what was left behind."""

from __future__ import annotations

import argparse
import logging
import sys

from sandboxes.faults import SandboxFault
from sandboxes.python import open_interpreter
from sandboxes.python.docker.image import DEBIAN_PACKAGES, build_from_debian, build_from_dockerfile
from sandboxes.python.docker.settings import DEFAULT_IMAGE
from sandboxes.python.reaper import reap


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: The command line, without the program; this process's own by default.

    Returns:
        The exit status.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        for line in options.command(options):
            _say(line)
    except (SandboxFault, ValueError) as problem:
        print(f"error: {problem}", file=sys.stderr)  # noqa: T201 - a command line talks
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sandboxes", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    build = commands.add_parser("build-image", help="build the image of the docker backend's interpreters")
    build.add_argument("--tag", default=DEFAULT_IMAGE, help="name of the new image (%(default)s)")
    kind = build.add_mutually_exclusive_group()
    kind.add_argument("--base", metavar="IMAGE", help="image to build on, with python3 and pip")
    kind.add_argument(
        "--debian", metavar="RELEASE", help="build it from Debian packages instead, where there is no registry"
    )
    build.add_argument(
        "--mirror", metavar="URL", help="with --debian: where the packages come from (where apt takes them from)"
    )
    build.add_argument(
        "--package",
        action="append",
        dest="packages",
        metavar="NAME",
        help="what to install; repeat it for more. With --debian a Debian package, else one for pip "
        f"(with --debian: {', '.join(DEBIAN_PACKAGES)}; else what the Dockerfile says)",
    )
    build.set_defaults(command=_build_image)

    describe = commands.add_parser("describe", help="say which protections are on")
    describe.add_argument("--backend", choices=("auto", "docker", "local"), default="auto")
    describe.add_argument("--image", help=f"of the docker backend ({DEFAULT_IMAGE})")
    describe.add_argument("--runtime", help="of the docker backend, such as runsc")
    describe.set_defaults(command=_describe)

    tidy = commands.add_parser("reap", help="remove the containers and files that killed processes have left")
    tidy.set_defaults(command=_reap)
    return parser


def _build_image(options: argparse.Namespace) -> list[str]:
    if options.mirror and not options.debian:
        raise SandboxFault("--mirror says where Debian packages come from: name a release with --debian too")
    if options.debian:
        identity = build_from_debian(options.tag, options.debian, options.mirror, options.packages, _say)
    else:
        identity = build_from_dockerfile(options.tag, options.base, options.packages, _say)
    return [f"{options.tag} is image {identity}"]


def _describe(options: argparse.Namespace) -> list[str]:
    with open_interpreter(
        options.backend, image=options.image, runtime=options.runtime
    ) as python:  # which looks whether its walls stand
        return [str(python.describe())]


def _reap(options: argparse.Namespace) -> list[str]:
    return reap() or ["nothing was left behind"]


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a command line talks


if __name__ == "__main__":
    sys.exit(main())
