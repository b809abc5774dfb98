"""Python interpreters for code that nobody vouches for.

`open_interpreter` is the way in, `open_async` the same for asyncio, and `interpreter` the contract. The host's side of the
local backend is `local`; inside run, from the outside in, `zygote` (warm, forks episodes), `supervisor` (keeps time and
order) and `worker` (runs the code); `confinement` has the walls, and `probe` finds out which of them this machine grants.
`pool` keeps interpreters ready, and `reaper` removes what killed processes left.
"""

from sandboxes.python.asynchronous import AsyncInterpreter, open_async
from sandboxes.python.interpreter import Done, ForkRefused, Interpreter, Limits, Protection
from sandboxes.python.opening import open_interpreter

__all__ = [
    "AsyncInterpreter",
    "Done",
    "ForkRefused",
    "Interpreter",
    "Limits",
    "Protection",
    "open_async",
    "open_interpreter",
]
