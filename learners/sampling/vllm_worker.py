"""What the engine's worker processes can do beside what vLLM taught them. This module is imported there.

New weights: vLLM's ``reload_weights`` takes them up in place and repeats what it made of the first ones (fused, sharded,
packed copies), layer by layer as their weights come in. An output layer that shares its weights with the embeddings has none
that come in: where the CPU has packed them for it, it would go on with the old ones.

The end: vLLM's processes notice when one of them dies, but the first of them does not notice the death of the program that
began it. After a kill it would keep its memory, and on a GPU a resumed run would find none; and weights that were on their
way would stay where they were.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any


class WorkerExtension:
    """Methods that vLLM adds to its worker (``worker_extension_cls``)."""

    model_runner: Any  # the worker's
    reload_weights: Callable[..., None]  # the worker's

    def take_weights(self, folder: str) -> None:
        """Takes up the weights of a checkpoint in place of those that it has.

        Args:
            folder: The checkpoint, with every weight that the first one had.
        """
        self.reload_weights(weights_path=folder)
        sharing = defaultdict(list)
        for layer in self.model_runner.get_model().modules():
            if hasattr(layer, "quant_method") and getattr(layer, "weight", None) is not None:
                sharing[id(layer.weight)].append(layer)
        for layers in sharing.values():
            if len(layers) > 1:
                for layer in layers:
                    layer.quant_method.process_weights_after_loading(layer)

    def end_with(self, program: int, folder: str) -> None:
        """Has the engine's processes end when a process does, however it ends.

        Args:
            program: The process id of the one that began the engine, alive at the time of this call.
            folder: Is deleted then.
        """
        handle = os.pidfd_open(program)
        threading.Thread(target=_end_after, args=(handle, program, folder), name="lifeline", daemon=True).start()


def _end_after(handle: int, program: int, folder: str) -> None:
    engine = os.getppid()
    waiting = select.poll()
    waiting.register(handle, select.POLLIN)
    waiting.poll()
    shutil.rmtree(folder, ignore_errors=True)
    # A worker is a child of the engine's process, or, where there is a single one on a GPU, that process itself.
    if engine not in (1, program) and os.getppid() == engine:
        os.kill(engine, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
