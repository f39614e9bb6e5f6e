"""What every test runs under: no network, no cache of the user's, one thread per worker, a fixed seed."""

from __future__ import annotations

import gc
import os
import random
import sys
import tempfile
from collections.abc import Iterator

import pytest

# before torch or datasets are imported anywhere
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one worker per core; more threads than cores make all of them slow
pytest_plugins = [
    "tests.recipes",
    "tests.command_line",
    "tests.docs.worked_example",
]  # their fixtures serve several folders
_CACHE = tempfile.TemporaryDirectory(prefix="peftcli-tests-", ignore_cleanup_errors=True)
os.environ["XDG_CACHE_HOME"] = _CACHE.name


@pytest.fixture(autouse=True, scope="module")
def _survivors_set_aside() -> Iterator[None]:
    """Spare later garbage collections what outlives a module: each merge asks for some, and in a worker that has loaded
    hundreds of model types each took seconds."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Seed every random source before each test, torch only where it is loaded already."""
    random.seed(0)
    if "numpy" in sys.modules:
        import numpy

        numpy.random.seed(0)
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)
    yield
