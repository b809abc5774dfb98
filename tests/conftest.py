"""What every test can rely on."""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def one_arithmetic() -> None:
    """The same number of threads in every test, since the last bits of a sum depend on it."""
    torch.set_num_threads(2)
