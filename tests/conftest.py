"""Every test starts from the same random state, on one thread: the suite runs in as many processes as cores."""

import os

# Before torch is imported anywhere: worker processes on few cores must not spin for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton kernels run in its interpreter, on the CPU; it must be asked for before a kernel is defined.
os.environ.setdefault("TRITON_INTERPRET", "1")

import gc
import tempfile

import pytest
import torch

from tests.sampling import left_out

# What the library keeps of texts goes where it is cleared away, and is shared by all tests of a process.
_cache = tempfile.TemporaryDirectory(prefix="milkweed-tests-")
os.environ["MILKWEED_CACHE"] = _cache.name

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch._dynamo.reset()


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", dest="all_cases", help="run every case of the sampled tests too")


def pytest_collection_modifyitems(config, items):
    # A test that is named itself runs whole.
    if config.option.all_cases or any("::" in argument for argument in config.args):
        return
    leave = left_out(items)
    config.hook.pytest_deselected(items=[item for item in items if item in leave])
    items[:] = [item for item in items if item not in leave]


def pytest_collection_finish():
    # What is imported by now stays: without this every `gc.collect()` of a test would look through all of it.
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()


@pytest.fixture
def table(monkeypatch):
    """The names that classes are registered by, put back afterwards."""
    from milkweed import _registry

    # Which imports what registers the library's own classes: a first import in a test would be lost with its names.
    names = {kind: _registry.registered(kind) for kind in _registry.KINDS}
    monkeypatch.setattr(_registry, "_classes", names)
