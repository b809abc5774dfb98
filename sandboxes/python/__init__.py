"""Python interpreters for code that nobody vouches for.

`open_interpreter` is the way in, `open_async` the same for asyncio, `interpreter` the contract. Two backends, `local` and
`docker`, start the same program, `inside`, behind walls of their own; `family` is the wire to it, and `sandboxed` what the
caller holds. `pool` keeps interpreters ready, and `reaper` removes what killed processes left.
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
