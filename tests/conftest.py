"""What every test can rely on."""

from __future__ import annotations

import os
import signal

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background would not heed it
THREADS = 1  # enough for models so small; more would wait for each other, spinning, where tests run side by side
torch.set_num_threads(THREADS)  # of what fixtures of more than one test compute, too


@pytest.fixture(autouse=True)
def one_arithmetic() -> None:
    """The same number of threads in every test, since the last bits of a sum depend on it."""
    torch.set_num_threads(THREADS)
