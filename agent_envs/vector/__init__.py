"""Many environments at once, a thread each: Gymnasium's vector API, and work that goes out and comes back one by one.

- `threads`: `ThreadVectorEnv` as its callers see it; `make`: `make_threads`, which makes one of a registered id.
- `episodes`: what an action means to an environment whose episode may be over.
- `crew`: the workers, who of them owes a result, and how they end.
- `worker`: one environment, the thread that it lives in, and how its faults become results.

Processes are Gymnasium's own business (``AsyncVectorEnv``); environments that wait for their tools need none.
"""

from agent_envs.vector.make import make_threads
from agent_envs.vector.threads import ThreadVectorEnv

__all__ = ["ThreadVectorEnv", "make_threads"]
