"""Verifiers: what decides whether an answer is right.

A verifier sees the text of the policy's answer and the task, and where a task asks for a change, what has changed: no tool
output and no earlier turn can earn anything. It is safe to call from any thread, takes bounded time, and returns a verdict
whatever the answer's text is; if it cannot do its work at all, it raises an ``EnvironmentFault``.
"""

from agent_envs.task import Verdict, Verifier

__all__ = ["Verdict", "Verifier"]
