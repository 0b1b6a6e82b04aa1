"""Huge pages are a request that never changes a result."""

import ctypes
import mmap
import sys

import pytest
import torch

from milkweed import ops
from milkweed.ops import _huge_pages


@pytest.fixture
def advised(monkeypatch):
    """Records what would have been said to the system."""
    calls = []
    monkeypatch.setattr(_huge_pages, "_madvise", lambda: lambda *arguments: calls.append(arguments))
    return calls


def test_only_large_memory_is_advised_and_nothing_beyond_it(advised):
    _huge_pages.on_huge_pages(torch.empty(100))
    assert not advised
    tensor = _huge_pages.on_huge_pages(torch.empty(_huge_pages._LARGE // 4 + 1))
    ((start, size, advice),) = advised
    assert advice == mmap.MADV_HUGEPAGE
    assert start % mmap.PAGESIZE == size % mmap.PAGESIZE == 0
    assert tensor.data_ptr() <= start
    assert start + size <= tensor.data_ptr() + 4 * tensor.numel()
    assert size > 4 * tensor.numel() - 2 * mmap.PAGESIZE


def test_a_system_without_it_is_left_alone(monkeypatch):
    _huge_pages._madvise.cache_clear()
    monkeypatch.setattr(sys, "platform", "win32")
    assert _huge_pages._madvise() is None
    _huge_pages._madvise.cache_clear()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert _huge_pages._madvise() is None
    _huge_pages._madvise.cache_clear()


def test_large_results_are_right(monkeypatch):
    monkeypatch.setattr(_huge_pages, "_LARGE", 1)
    u, kernel = torch.randn(2, 3, 5000, dtype=torch.float64), torch.randn(3, 5000, dtype=torch.float64)
    torch.testing.assert_close(ops.fft_conv(u, kernel), ops.fft_conv(u, kernel, backend="reference"))
