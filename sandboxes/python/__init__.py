"""Python interpreters for code that nobody vouches for.

`open_interpreter` is the way in, `interpreter` the contract. The host's side of the local backend is `local`; inside run,
from the outside in, `zygote` (warm, forks episodes), `supervisor` (keeps time and order) and `worker` (runs the code);
`confinement` has the walls, and `probe` finds out which of them this machine grants.
"""

from sandboxes.python.interpreter import Done, ForkRefused, Interpreter, Limits, Protection
from sandboxes.python.opening import open_interpreter

__all__ = ["Done", "ForkRefused", "Interpreter", "Limits", "Protection", "open_interpreter"]
