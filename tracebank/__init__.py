"""The memory of steps: what agents did, written down so that anybody can ask for it later.

This package imports none of its neighbours and is useful alone. So far it holds the one definition of a trajectory
(`tracebank.trajectory`), which learners write and everything that looks back reads.
"""

from tracebank.trajectory import Segment, Trajectory, TrajectoryError, Turn, read_trajectories, write_trajectories

__all__ = ["Segment", "Trajectory", "TrajectoryError", "Turn", "read_trajectories", "write_trajectories"]
