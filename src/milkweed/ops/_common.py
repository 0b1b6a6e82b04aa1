"""Small pieces shared by the operations: precision, autocast, and the differentiable way through a fast backward."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad


def register_differentiable(
    op: torch.library.CustomOpDef,
    plain: Callable[..., Tensor],
    fast: Callable[..., Sequence[Tensor]],
    derivable: Callable[..., Sequence[Tensor | None]] | None = None,
) -> None:
    """Attach to a custom op its fast backward pass, and a differentiable one for where it is derived again."""
    # All tensor inputs are saved, and what ``op`` returns beside its result as ``kept``. ``fast(grad, inputs, kept,
    # needed)`` gives one gradient for each tensor input that is not None; one that is not ``needed`` may be any tensor.
    # Under ``create_graph=True`` the gradients come from ``derivable``, which is called as ``fast`` is, or else from
    # ``plain``, the result alone in differentiable torch functions of the same inputs.

    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        kept = output[1:] if isinstance(output, tuple) else ()
        ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]
        ctx.values = [None if tensor else value for value, tensor in zip(inputs, ctx.is_tensor, strict=True)]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*[value for value in inputs if isinstance(value, Tensor)], *kept)

    def backward(ctx, grad, *_):  # type: ignore[no-untyped-def]
        if grad is None:
            return (None,) * len(ctx.is_tensor)
        count = sum(ctx.is_tensor)
        tensors = ctx.saved_tensors  # once: activation checkpointing recomputes at every access
        saved, kept = tensors[:count], tensors[count:]
        needed = [n for n, tensor in zip(ctx.needs_input_grad, ctx.is_tensor, strict=True) if tensor]

        def arguments(tensors: Sequence[Tensor]) -> list[object]:
            remaining = iter(tensors)
            return [next(remaining) if t else v for v, t in zip(ctx.values, ctx.is_tensor, strict=True)]

        if torch.is_grad_enabled() and derivable is not None:
            found = derivable(grad, arguments(saved), kept, needed)
            grads = [g if need else None for g, need in zip(found, needed, strict=True)]
        elif torch.is_grad_enabled():
            views = [tensor.view_as(tensor) for tensor in saved]
            result = plain(*arguments(views))
            wanted = [view for view, need in zip(views, needed, strict=True) if need]
            each = iter(torch.autograd.grad(result, wanted, grad, create_graph=True, allow_unused=True))
            grads = [next(each) if need else None for need in needed]
        else:
            computed = fast(grad, arguments(saved), kept, needed)
            grads = [g if need else None for g, need in zip(computed, needed, strict=True)]
        remaining = iter(grads)
        return tuple(next(remaining) if tensor else None for tensor in ctx.is_tensor)

    op.register_autograd(backward, setup_context=setup_context)


def needs_plain_formula(*args: object) -> str | None:
    """Say why a custom op cannot run on these arguments while the plain formula can."""
    # A custom op would lose forward-mode derivatives without a word, ``torch.func`` cannot look inside it, and the fast
    # algorithms are for real numbers.
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if any(tensor.is_complex() for tensor in tensors):
        return "it is for real numbers; backend='reference' takes complex ones"
    if torch.compiler.is_compiling():
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch.func transforms cannot look inside it; use backend='reference'"
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        return "it has no forward-mode derivative; use backend='reference'"
    return None


def check_no_empty_block(**factors: Tensor) -> None:
    """Refuse factors without entries.

    Args:
        **factors: Tensors by argument name.

    Raises:
        ValueError: A size is 0.
    """
    for name, factor in factors.items():
        if 0 in factor.shape:
            raise ValueError(f"{name} must have no dimension of size 0; got shape {tuple(factor.shape)}")


def is_known(size: int) -> bool:
    """Tell whether a size is a plain number in the graph that is being traced, if one is."""
    if not torch.compiler.is_compiling():
        return True
    from torch.fx.experimental.symbolic_shapes import has_static_value  # here, as its import takes a second

    return has_static_value(size)


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of an fp32 island: float32 at least, float64 if any tensor is."""
    wide = any(tensor is not None and tensor.dtype in {torch.float64, torch.complex128} for tensor in tensors)
    return torch.float64 if wide else torch.float32


def widest_dtype(tensor: Tensor) -> torch.dtype:
    """float64, or the tensor's own dtype on a device without it: for powers and phases, whose errors grow in use."""
    return tensor.dtype if tensor.device.type == "mps" else torch.float64


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast gives matrix products on this tensor's device; None where it is off."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def autocast_together(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Cast floating tensors to the autocast dtype where autocast is on, as matrix multiplication does."""
    dtype = autocast_dtype(x)
    if dtype is None:
        return (x, *weights)
    return tuple(t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in (x, *weights))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Turn autocast off in a block: it reaches into custom ops too and would round the factors of their products."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def rows_per_block(rows: int, row_bytes: int, device: torch.device, *, budget: int, least: int = 1) -> int:
    """How many rows to take at a time so that a CPU's cache (``budget`` bytes) holds them; all of them elsewhere."""
    if device.type != "cpu":
        return max(rows, 1)
    return max(1, min(rows, max(least, budget // max(row_bytes, 1))))


def slices(count: int, step: int) -> Iterator[slice]:
    """Slices of ``step``, the last one shorter, that cover 0 .. count - 1."""
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Warn the first time this process meets the message; layers repeat their forward too often for more."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=3)
