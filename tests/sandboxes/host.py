"""A host of interpreters in a process of its own, driven over its standard input and output by JSON lines.

The tests start it as another user, or with system calls refused that a sandbox would like to have, since neither can be
undone within the process that runs the tests.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import sys
from dataclasses import asdict

import pyseccomp

from sandboxes.faults import SandboxFault
from sandboxes.python import ForkRefused, Interpreter, Limits, open_interpreter
from sandboxes.python.inside.kernel import NAMESPACES

LANDLOCK_CREATE_RULESET = 444


def refuse(names: list[str]) -> None:
    """Makes this process and all its children live on a kernel without ``names``."""
    table = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for name in names:
        if name == "namespaces":
            table.add_rule(pyseccomp.ERRNO(errno.EPERM), "unshare")
            for flag in NAMESPACES.values():
                table.add_rule(pyseccomp.ERRNO(errno.EPERM), "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
        elif name == "landlock":
            table.add_rule(pyseccomp.ERRNO(errno.ENOSYS), LANDLOCK_CREATE_RULESET)
        elif name == "seccomp":
            # prctl(PR_SET_SECCOMP); this very filter is loaded by the system call seccomp
            table.add_rule(pyseccomp.ERRNO(errno.EINVAL), "prctl", pyseccomp.Arg(0, pyseccomp.EQ, 22))
        else:
            raise ValueError(name)
    table.load()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--refuse", nargs="*", default=[])
    logging.basicConfig(level=logging.INFO)
    refuse(parser.parse_args().refuse)
    interpreters: dict[str, Interpreter] = {}
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("name", "")
        operation = request.pop("operation")
        answer: dict[str, object] = {}
        try:
            if operation == "open":
                limits = Limits(**request.pop("limits", {}))
                interpreters[name] = open_interpreter(limits=limits, **request)
            elif operation == "run":
                answer = asdict(interpreters[name].run(**request))
            elif operation == "fork":
                interpreters[name] = interpreters[request["of"]].fork()
            elif operation == "reset":
                interpreters[name].reset(**request)
            elif operation == "close":
                interpreters.pop(name).close()
            elif operation == "describe":
                answer = asdict(interpreters[name].describe())
        except SandboxFault as fault:
            answer = {"fault": str(fault)}
        except ForkRefused as refusal:
            answer = {"refused": str(refusal)}
        print(json.dumps(answer), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
