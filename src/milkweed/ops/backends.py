"""Which implementation of an operation runs, and why.

Every operation has a ``reference`` backend (the literal definition), an ``eager`` backend (fast pure PyTorch, any
device), a ``float64`` backend (the eager one on tensors widened to float64) and an ``export`` backend (plain torch
functions, arranged for other runtimes). The choice is explicit: the ``backend=`` argument, then the innermost
`milkweed.ops.use_backend` block, then ``export`` while ``torch.export`` or ``torch.onnx.export`` traces, then the first
backend in the operation's order that can take the arguments. A backend that was asked for by name and cannot run
raises; it is never replaced in silence.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from milkweed._arguments import check_kind, checked
from milkweed._suggest import unknown


@dataclass(frozen=True)
class Backend:
    """One implementation of an operation.

    Attributes:
        name: ``"reference"``, ``"eager"``, ...
        run: The function, with the operation's own signature.
        refusal: Given the operation's arguments, ``None`` if ``run`` can take them, else the reason with the fix.
        passed_over: The same for arguments that ``run`` can take, but takes only if it is asked for by name.

    Example:
        >>> double = mw.ops.Backend("doubling", lambda x: 2 * x)
        >>> double.run(torch.ones(3))
        tensor([2., 2., 2.])
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

    Example:
        >>> choice = mw.ops.explain("linear_recurrence", torch.rand(2, 8), torch.rand(2, 8), backend="reference")
        >>> choice.backend, choice.operation
        ('reference', 'linear_recurrence')
    """

    operation: str
    backend: str
    reason: str
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.operation}: {self.backend} ({self.reason})"]
        lines += [f"  not {name}: {why}" for name, why in self.refused.items()]
        return "\n".join(lines)


# The backend of programs that run elsewhere: its graph holds torch's own operations, so it needs no milkweed.
EXPORT = "export"

_operations: dict[str, tuple[Backend, ...]] = {}


def export_backend(run: Callable[..., Tensor]) -> Backend:
    """Make an operation's backend for exported programs, which an automatic choice takes there and nowhere else."""
    return Backend(EXPORT, run, passed_over=_not_exporting)


def _not_exporting(*args: object) -> str | None:
    return None if torch.compiler.is_exporting() else "it is made for exported programs; it runs only if asked for"


def arranged_for_export() -> bool:
    """Whether a program is traced that other runtimes are to run: unless the context asks for another backend."""
    return torch.compiler.is_exporting() and chosen_backend() in {None, EXPORT}


def register(operation: str, *backends: Backend) -> None:
    """Name the backends of an operation, the preferred one first; float64 is made of eager if it is not there."""
    names = [backend.name for backend in backends]
    wide = () if "float64" in names or "eager" not in names else (_in_float64(backends[names.index("eager")]),)
    _operations[operation] = (*backends, *wide)


def lacks_float64(*args: object) -> str | None:
    """Say why tensors cannot be widened to float64."""
    if any(isinstance(arg, Tensor) and arg.device.type == "mps" for arg in args):
        return "this device has no float64; move the tensors to the CPU"
    return None


def _in_float64(eager: Backend) -> Backend:
    """The eager backend on tensors widened to float64; the result has the first tensor's dtype, as the eager one's."""

    def run(*args: Any, **kwargs: Any) -> Tensor:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        wide = [arg.double() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args]
        return eager.run(*wide, **kwargs).to(tensors[0].dtype)

    def refusal(*args: Any) -> str | None:
        return lacks_float64(*args) or (eager.refusal(*args) if eager.refusal else None)

    return Backend("float64", run, refusal)


@checked
def available_backends(operation: str) -> tuple[str, ...]:
    """List the backends of an operation in their order of preference.

    Args:
        operation: The public function's name, e.g. ``"fft_conv"``.

    Returns:
        The backends' names.

    Raises:
        ValueError: The operation is unknown.

    Example:
        >>> mw.ops.available_backends("linear_recurrence")
        ('eager', 'reference', 'export', 'float64')
        >>> mw.ops.linear_recurrence(torch.ones(1, 3), torch.ones(1, 3), backend="float64")
        tensor([[1., 2., 3.]])
    """
    return tuple(backend.name for backend in _find(operation))


class BackendBlock(AbstractContextManager[None]):
    """A block, or a function, in which one backend runs; `milkweed.ops.use_backend` makes it.

    Args:
        name: The backend, or None for automatic choice.
    """

    def __init__(self, name: str | None) -> None:
        self._name = name

    @override
    def __enter__(self) -> None:
        if torch.compiler.is_dynamo_compiling():
            _traced.append(self._name)
        else:
            _blocks.set((*_blocks.get(), (self, self._name)))

    @override
    def __exit__(self, *error: object) -> None:
        if torch.compiler.is_dynamo_compiling():
            _traced.pop()
            return
        # Its own entry, not the last one: suspended generators end in any order, and perhaps in another context.
        blocks = _blocks.get()
        for index in reversed(range(len(blocks))):
            if blocks[index][0] is self:
                _blocks.set(blocks[:index] + blocks[index + 1 :])
                return

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Run every call of a function with the backend; of a generator, whatever runs between two of its values."""
        if inspect.isasyncgenfunction(function):
            raise TypeError(
                f"use_backend cannot decorate the asynchronous generator {function.__qualname__}; "
                "use a with block between two of its values"
            )

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with BackendBlock(self._name):
                return function(*args, **kwargs)

        @functools.wraps(function)
        def generate(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            return _generated(self._name, function(*args, **kwargs))

        @functools.wraps(function)
        async def wait(*args: Any, **kwargs: Any) -> Any:
            with BackendBlock(self._name):
                return await function(*args, **kwargs)

        if inspect.iscoroutinefunction(function):
            return wait
        return generate if inspect.isgeneratorfunction(function) else call


# The blocks that are open in this context, the innermost last: threads and asyncio tasks have contexts of their own.
_blocks: ContextVar[tuple[tuple[BackendBlock, str | None], ...]] = ContextVar("milkweed_backend", default=())
# The same for blocks inside a function that torch.compile traces, which is the only one to change the list.
_traced: list[str | None] = []


def use_backend(name: str | None) -> BackendBlock:
    """Run every operation inside a block, or inside a decorated function, with one backend.

    ``with use_backend("reference"): ...``, or ``@use_backend("reference")`` above a function; ``None`` returns to
    automatic choice. A ``backend=`` argument at a call still wins.

    The setting is a context variable: other threads and other asyncio tasks do not see it. What is started inside the
    block has what Python gives it: an asyncio task and ``asyncio.to_thread`` inherit the setting, a new thread starts
    with automatic choice unless it runs in ``contextvars.copy_context()``, a worker process of a data loader inherits
    it if it is forked and not if it is spawned. As with any context variable, a generator that yields inside a ``with``
    block leaves the setting to its caller until it goes on; decorate the generator function instead.

    Args:
        name: The backend, e.g. ``"reference"``, or ``"float64"`` for more digits.

    Returns:
        The block.

    Raises:
        ValueError: No operation has a backend of this name.

    Example:
        >>> with mw.ops.use_backend("reference"):
        ...     print(mw.ops.explain("linear_recurrence", torch.rand(1, 4), torch.rand(1, 4)).backend)
        reference
    """
    check_kind(str, optional=True, name=name)
    known = {backend.name for group in _operations.values() for backend in group}
    if name is not None and name not in known:
        raise ValueError(unknown("name: backend", name, known))
    return BackendBlock(name)


def chosen_backend() -> str | None:
    """The backend that the context asks for, that of the innermost block; None for automatic choice."""
    if torch.compiler.is_dynamo_compiling():
        return _traced[-1] if _traced else _guarded_choice()
    blocks = _blocks.get()
    return blocks[-1][1] if blocks else None


def checkpoint_options() -> dict[str, Any]:
    """Arguments of ``torch.utils.checkpoint`` with which it recomputes with the forward pass's backend."""
    if torch.compiler.is_compiling():
        return {}  # what is compiled recomputes as it was traced
    name = chosen_backend()
    return {"context_fn": lambda: (nullcontext(), BackendBlock(name))}


def _guarded_choice() -> str | None:
    """The context's choice while torch.compile traces, which calls this and keeps the answer as a constant."""
    try:
        # torch.compile cannot read a context variable, but its guards can call a function: a compiled function is
        # traced again where the choice is another. There is no public way to ask for such a guard.
        from torch._dynamo.guards import GuardBuilder, install_guard
        from torch._dynamo.source import AttrSource, CallFunctionNoArgsSource
        from torch._dynamo.symbolic_convert import InstructionTranslator

        module = InstructionTranslator.current_tx().import_source(__name__)
        source = CallFunctionNoArgsSource(AttrSource(module, chosen_backend.__name__))
        install_guard(source.make_guard(GuardBuilder.EQUALS_MATCH))
    except (ImportError, AttributeError):
        pass  # Another version of torch: the choice of the first call stays.
    return chosen_backend()


# What torch.compiler.assume_constant_result sets; that would import the whole compiler.
_guarded_choice._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _generated(name: str | None, inner: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Run a generator inside blocks that are never open while it waits."""
    resume: Callable[[], Any] = functools.partial(next, inner)
    while True:
        try:
            with BackendBlock(name):
                value = resume()
        except StopIteration as stop:
            return stop.value
        try:
            resume = functools.partial(inner.send, (yield value))
        except GeneratorExit:
            with BackendBlock(name):
                inner.close()
            raise
        except BaseException as error:
            resume = functools.partial(inner.throw, error)


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
        TypeError: The operation does not take these arguments.

    Example:
        >>> x, right, left = torch.ones(3, 16), torch.ones(4, 4, 4), torch.ones(4, 4, 4)
        >>> print(mw.ops.explain("monarch_mm", x, right, left, backend="reference"))
        monarch_mm: reference (asked for by backend=)
    """
    check_kind(str, operation=operation)
    check_kind(str, optional=True, backend=backend)
    try:
        return _choose(operation, backend, args, kwargs)[1]
    except (AttributeError, IndexError, RuntimeError, TypeError) as error:
        raise TypeError(f"args must be what {operation} takes; {error}") from error


def dispatch(operation: str, backend: str | None, *args: Any, **kwargs: Any) -> Tensor:
    """Run an operation with the backend that the arguments, the context and the order decide."""
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
    if backend is not None:
        check_kind(str, backend=backend)
    wanted, reason = (backend, "asked for by backend=") if backend else (chosen_backend(), "asked for by use_backend")
    if wanted:
        for candidate in candidates:
            if candidate.name == wanted:
                why = candidate.refusal(*args, *kwargs.values()) if candidate.refusal else None
                if why:
                    raise ValueError(f"backend={wanted!r} cannot run {operation}: {why}")
                return candidate, Choice(operation, wanted, reason)
        raise ValueError(unknown("backend", wanted, [candidate.name for candidate in candidates]))
    refused: dict[str, str] = {}
    if torch.compiler.is_exporting():
        for candidate in candidates:
            if candidate.name == EXPORT:
                return candidate, Choice(operation, EXPORT, "the program is being exported", refused)
    for candidate in candidates:
        why = candidate.refusal(*args, *kwargs.values()) if candidate.refusal else None
        why = why or (candidate.passed_over(*args, *kwargs.values()) if candidate.passed_over else None)
        if not why:
            return candidate, Choice(operation, candidate.name, "first in order that can run", refused)
        refused[candidate.name] = why
    raise ValueError(f"no backend can run {operation}: " + "; ".join(f"{n}: {w}" for n, w in refused.items()))
