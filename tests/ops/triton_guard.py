"""A memory checker for Triton's interpreter: kernels may touch nothing but the elements of the tensors they were given.

Results and scratch lie between canaries and hold NaN until they are written; every address that a kernel loads from or
stores to is compared with the addresses of its tensors' elements, strides and all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch

_MARGIN = 64
_GARBAGE = -77777777


def _filled(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.fill_(float("nan") if tensor.is_floating_point() else _GARBAGE)


class Guard:
    """What was allocated and touched inside a `guarded` block."""

    def __init__(self) -> None:
        self.allocated: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.readable = self.writable = np.empty(0, np.uint64)
        self.launches = 0

    def unwritten(self, like: torch.Tensor, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Stands for `_triton_launch.unwritten`."""
        size = int(np.prod(shape))
        whole = _filled(torch.empty(size + 2 * _MARGIN, dtype=dtype or like.dtype))
        self.allocated.append((whole, whole[_MARGIN : _MARGIN + size]))
        return torch.as_strided(whole, shape, torch.empty(shape, device="meta").stride(), _MARGIN)

    def enter(self, tensors: list[torch.Tensor]) -> None:
        """A kernel with these arguments starts."""
        self.launches += 1
        own = {whole.untyped_storage().data_ptr() for whole, _ in self.allocated}
        self.readable = _elements(tensors)
        self.writable = _elements([t for t in tensors if t.untyped_storage().data_ptr() in own])

    def check_canaries(self) -> None:
        """Nothing was written beside what was allocated."""
        for whole, inside in self.allocated:
            sides = torch.cat([whole[:_MARGIN], whole[_MARGIN + inside.numel() :]])
            intact = sides.isnan() if whole.is_floating_point() else sides == _GARBAGE
            assert intact.all(), f"written beside an allocation of {inside.numel()} {whole.dtype}"


def _elements(tensors: list[torch.Tensor]) -> np.ndarray:
    """Addresses of all elements, sorted."""
    found = [np.empty(0, np.uint64)]
    for tensor in tensors:
        address = np.full((), tensor.data_ptr(), np.uint64)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            step = np.arange(size, dtype=np.uint64) * np.uint64(stride * tensor.element_size())
            address = address[..., None] + step
        found.append(address.ravel())
    return np.unique(np.concatenate(found))


def _check(kind: str, allowed: np.ndarray, addresses: np.ndarray, mask: np.ndarray) -> None:
    touched = np.broadcast_to(addresses, np.shape(mask))[mask] if np.ndim(mask) else addresses[mask]
    place = np.searchsorted(allowed, touched)
    place[place == len(allowed)] = 0
    outside = (allowed[place] != touched) if len(allowed) else np.ones(touched.shape, bool)
    if outside.any():
        raise AssertionError(
            f"a kernel would {kind} {int(outside.sum())} of {touched.size} numbers outside its tensors"
        )


@contextlib.contextmanager
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guard]:
    """Check every kernel launched inside the block, and at its end what surrounds their memory.

    Yields:
        The guard, with the number of launches.
    """
    from triton.runtime import interpreter

    from milkweed.ops import _triton_launch

    guard = Guard()
    execute = interpreter.GridExecutor.__call__
    load = interpreter.InterpreterBuilder.create_masked_load
    store = interpreter.InterpreterBuilder.create_masked_store

    def run(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        guard.enter([arg for arg in (*args, *kwargs.values()) if isinstance(arg, torch.Tensor)])
        return execute(self, *args, **kwargs)

    def checked_load(self, ptrs, mask, *rest):  # type: ignore[no-untyped-def]
        _check("read", guard.readable, ptrs.data, mask.data)
        return load(self, ptrs, mask, *rest)

    def checked_store(self, ptrs, value, mask, *rest):  # type: ignore[no-untyped-def]
        _check("write", guard.writable, ptrs.data, mask.data)
        return store(self, ptrs, value, mask, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", run)
        patch.setattr(interpreter.InterpreterBuilder, "create_masked_load", checked_load)
        patch.setattr(interpreter.InterpreterBuilder, "create_masked_store", checked_store)
        patch.setattr(_triton_launch, "unwritten", guard.unwritten)
        yield guard
    guard.check_canaries()
