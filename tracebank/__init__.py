"""The memory of steps: what agents did, kept so that it can be asked for by what led to it.

This package imports none of its neighbours and is useful alone. A `Trajectory` is what an agent did, from the question to
the end; learners write trajectories, one JSON line each. A `TraceBank` holds their steps and answers "what did somebody do
in a situation like this?". ``python -m tracebank`` makes banks and asks them from a command line.
"""

from tracebank.bank import Hits, TraceBank
from tracebank.faults import BankError
from tracebank.nearest import Filters
from tracebank.step import Hit, StepTrace, render_history, render_step, steps_of
from tracebank.trajectory import Segment, Trajectory, TrajectoryError, Turn, read_trajectories, write_trajectories

__all__ = [
    "BankError",
    "Filters",
    "Hit",
    "Hits",
    "Segment",
    "StepTrace",
    "TraceBank",
    "Trajectory",
    "TrajectoryError",
    "Turn",
    "read_trajectories",
    "render_history",
    "render_step",
    "steps_of",
    "write_trajectories",
]
