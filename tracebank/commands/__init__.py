"""The command line: ``python -m tracebank build|import|query|stats|check|compact|export``.

What a user gets wrong ends in one line on stderr and exit code 2, with nothing overwritten; a file that is damaged, or what
broke on the way, in one line and exit code 1.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import cast

import tyro
from rich.console import Console

from tracebank.commands.asking import Export, Query, Stats
from tracebank.commands.making import Build, Import
from tracebank.commands.mending import Check, Compact
from tracebank.faults import BankError
from tracebank.importers import FormatError
from tracebank.trajectory import TrajectoryError

Command = Build | Import | Query | Stats | Check | Compact | Export

COMMANDS: dict[str, Callable[..., object]] = {
    "build": Build,
    "import": Import,
    "query": Query,
    "stats": Stats,
    "check": Check,
    "compact": Compact,
    "export": Export,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
        arguments: What follows ``python -m tracebank``; default: the process's.

    Returns:
        The exit code: 0, 1 where something is damaged, 2 where the command line is wrong.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    command = cast(
        Command,
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="python -m tracebank",
            description="A bank of steps that agents have taken, to be asked by what led to them.",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
        ),
    )
    try:
        return command.run(Console())
    except KeyboardInterrupt:
        return _failed("stopped; what was added stays, and the same command with --append adds the rest", 130)
    except (TrajectoryError, FormatError, BankError) as problem:
        return _failed(problem, 1)
    except (ValueError, FileNotFoundError, FileExistsError, ImportError) as problem:
        return _failed(problem, 2)
    except OSError as problem:
        return _failed(problem, 1)


def _failed(problem: object, code: int) -> int:
    sys.stderr.write(f"error: {' '.join(str(problem).split())}\n")
    return code
