"""Examples in docstrings run as tests: each in a folder of its own, from the same random numbers, with these names."""

import copy
import math

import pytest
import torch

import milkweed

# Per example that needs more than the base install, by a part of its module's name: what it needs.
_EXTRAS = {"milkweed.models.hf.": "transformers"}


@pytest.fixture(autouse=True)
def _example(request, doctest_namespace, tmp_path, monkeypatch):
    for part, needed in _EXTRAS.items():
        if request.node.name.startswith(part):
            pytest.importorskip(needed)
    doctest_namespace |= {
        "torch": torch,
        "nn": torch.nn,
        "mw": milkweed,
        "milkweed": milkweed,
        "math": math,
        "copy": copy,
    }
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
