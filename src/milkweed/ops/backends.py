"""Which implementation of an operation runs, and why.

Every operation has a ``reference`` backend (the literal definition) and an ``eager`` backend (fast pure PyTorch, any
device). The choice is explicit: the ``backend=`` argument, then the innermost [`use_backend`][milkweed.ops.use_backend]
block, then the first backend in the operation's order that can take the arguments. A backend that was asked for by name
and cannot run raises; it is never replaced in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from milkweed._suggest import unknown


@dataclass(frozen=True)
class Backend:
    """One implementation of an operation.

    Attributes:
        name: ``"reference"``, ``"eager"``, ...
        run: The function, with the operation's own signature.
        refusal: Given the operation's arguments, ``None`` if ``run`` can take them, else the reason with the fix.
        passed_over: The same for arguments that ``run`` can take, but takes only if it is asked for by name.
    """

    name: str
    run: Callable[..., Tensor]
    refusal: Callable[..., str | None] | None = None
    passed_over: Callable[..., str | None] | None = None


@dataclass(frozen=True)
class Choice:
    """What [`explain`][milkweed.ops.explain] answers.

    Attributes:
        operation: The operation's name.
        backend: The backend that runs.
        reason: Why this one.
        refused: Backends before it in the order, with the reason each gave.
    """

    operation: str
    backend: str
    reason: str
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.operation}: {self.backend} ({self.reason})"]
        lines += [f"  not {name}: {why}" for name, why in self.refused.items()]
        return "\n".join(lines)


_operations: dict[str, tuple[Backend, ...]] = {}
# Process-wide, like torch.use_deterministic_algorithms: torch.compile can guard on a global, not on a context variable.
_context: list[str | None] = [None]


def register(operation: str, *backends: Backend) -> None:
    """Name the backends of an operation, the preferred one first.

    Args:
        operation: The public function's name.
        *backends: Its implementations in order of preference.
    """
    _operations[operation] = backends


def available_backends(operation: str) -> tuple[str, ...]:
    """List the backends of an operation in their order of preference.

    Args:
        operation: The public function's name, e.g. ``"fft_conv"``.

    Returns:
        The backends' names.

    Raises:
        ValueError: The operation is unknown.
    """
    return tuple(backend.name for backend in _find(operation))


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run every operation inside the block with one backend; ``None`` returns to automatic choice.

    The setting is process-wide. A ``backend=`` argument at a call still wins.

    Args:
        name: The backend, e.g. ``"reference"``.

    Yields:
        Nothing.

    Raises:
        ValueError: No operation has a backend of this name.
    """
    known = {backend.name for group in _operations.values() for backend in group}
    if name is not None and name not in known:
        raise ValueError(unknown("backend", name, known))
    _context.append(name)
    try:
        yield
    finally:
        _context.pop()


def explain(operation: str, *args: Any, backend: str | None = None, **kwargs: Any) -> Choice:
    """Tell which backend a call would use, and why, without running it.

    Args:
        operation: The public function's name, e.g. ``"fft_conv"``.
        *args: The call's positional arguments.
        backend: The call's ``backend=`` argument.
        **kwargs: The call's other keyword arguments.

    Returns:
        The choice; printing it gives one line for the backend and one for each that was passed over.

    Raises:
        ValueError: The operation or the backend is unknown, or the backend asked for cannot take these arguments.
    """
    return _choose(operation, backend, args, kwargs)[1]


def dispatch(operation: str, backend: str | None, *args: Any, **kwargs: Any) -> Tensor:
    """Run an operation with the backend that the arguments, the context and the order decide.

    Args:
        operation: The public function's name.
        backend: The caller's ``backend=`` argument.
        *args: Passed to the backend.
        **kwargs: Passed to the backend.

    Returns:
        The backend's result.

    Raises:
        ValueError: The tensors are on several devices, or no backend can run.
    """
    devices = {value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
    if len(devices) > 1:
        # Some of torch's own functions return memory that nothing was written to.
        raise ValueError(f"all tensors of {operation} must be on one device; got {sorted(map(str, devices))}")
    return _choose(operation, backend, args, kwargs)[0].run(*args, **kwargs)


def _find(operation: str) -> tuple[Backend, ...]:
    if operation not in _operations:
        raise ValueError(unknown("operation", operation, _operations))
    return _operations[operation]


def _choose(operation: str, backend: str | None, args: Any, kwargs: Any) -> tuple[Backend, Choice]:
    candidates = _find(operation)
    wanted, reason = (backend, "asked for by backend=") if backend else (_context[-1], "asked for by use_backend")
    if wanted:
        for candidate in candidates:
            if candidate.name == wanted:
                why = candidate.refusal(*args, *kwargs.values()) if candidate.refusal else None
                if why:
                    raise ValueError(f"backend={wanted!r} cannot run {operation}: {why}")
                return candidate, Choice(operation, wanted, reason)
        raise ValueError(unknown("backend", wanted, [candidate.name for candidate in candidates]))
    refused: dict[str, str] = {}
    for candidate in candidates:
        why = candidate.refusal(*args, *kwargs.values()) if candidate.refusal else None
        why = why or (candidate.passed_over(*args, *kwargs.values()) if candidate.passed_over else None)
        if not why:
            return candidate, Choice(operation, candidate.name, "first in order that can run", refused)
        refused[candidate.name] = why
    raise ValueError(f"no backend can run {operation}: " + "; ".join(f"{n}: {w}" for n, w in refused.items()))
