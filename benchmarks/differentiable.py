"""The usual kind of work: differentiable functions of the same tensors, and the cost of their parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.case import Outputs, Work

Inputs = Mapping[str, Tensor]
Function = Callable[[Inputs], Tensor]


def differentiable(
    sides: Mapping[str, Function],
    plain: Function,
    inputs: Inputs,
    cotangent: Tensor,
    *,
    training: bool,
    tolerance: float | Mapping[str, float],
    flops: float,
    part: Callable[[str, Tensor], Tensor] = lambda name, x: x,
) -> Work:
    """Make the work of functions whose truth is a plain formula in float64.

    Args:
        sides: The functions by side.
        plain: The formula, for any floating dtype.
        inputs: What all are called with. In training, those that require a gradient are differentiated.
        cotangent: The gradient that comes back to the output, and like it in shape and dtype.
        training: Whether to measure the backward pass too. The forward pass alone records no graph.
        tolerance: See `Work`; one number for all sides or one each.
        flops: Of the forward pass and, in training, the backward pass.
        part: Takes, by the name of an input or ``output``, what is compared where all of it is too much for float64.
    """

    def truth() -> Mapping[str, Outputs]:
        few = {name: part(name, x).detach().double().requires_grad_(x.requires_grad) for name, x in inputs.items()}
        return dict.fromkeys(sides, values(plain, few, part("output", cotangent).double() if training else None))

    differentiated = [x for x in inputs.values() if x.requires_grad] if training else []
    passes = 2 if training else 1
    # Each pass reads all inputs; the output is written and, in training, its gradient is read.
    moved = passes * sum(x.nbytes for x in (*inputs.values(), cotangent)) + sum(x.nbytes for x in differentiated)
    return Work(
        {side: _call(function, inputs, cotangent if training else None) for side, function in sides.items()},
        truth,
        tolerance if isinstance(tolerance, Mapping) else dict.fromkeys(sides, tolerance),
        flops,
        moved,
        lambda outputs: {name: part(name.removeprefix("gradient of "), x) for name, x in outputs.items()},
    )


def _call(function: Function, inputs: Inputs, cotangent: Tensor | None) -> Callable[[], Outputs]:
    return lambda: values(function, inputs, cotangent)


def values(function: Function, inputs: Inputs, cotangent: Tensor | None) -> Outputs:
    """``output`` and, with a cotangent, ``gradient of NAME`` for every input that requires one."""
    if cotangent is None:
        with torch.no_grad():
            return {"output": function(inputs)}
    leaves = {name: x for name, x in inputs.items() if x.requires_grad}
    output = function(inputs)
    gradients = torch.autograd.grad(output, list(leaves.values()), cotangent)
    return {"output": output.detach()} | {
        f"gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)
    }


def by_backend(
    function: Callable[[Inputs, str | None], Tensor], plain: Function, *, triton: bool = True
) -> dict[str, Function]:
    """The sides on a GPU: the Triton kernel, the plain PyTorch of milkweed, and the formula; or two, without Triton."""
    if not triton:
        return {"ours": lambda tensors: function(tensors, None), "peer": plain}
    return {
        "ours": lambda tensors: function(tensors, "triton"),
        "eager": lambda tensors: function(tensors, "eager"),
        "peer": plain,
    }


def fft_flops(points: int) -> float:
    """Of one transform of real numbers."""
    return 2.5 * points * math.log2(points)


def conv_flops(batch: int, channels: int, length: int, *, training: bool, spectra: int = 1) -> float:
    """Of a padded convolution: signal and output, with gradients too, and the spectra of kernels."""
    passes = 2 if training else 1
    return passes * channels * (2 * batch + spectra) * fft_flops(2 * length)


def mix_flops(positions: int, d_model: int) -> float:
    """Of the map from D to 2 D channels after a state space layer, forward and backward."""
    return 3 * 2 * positions * d_model * 2 * d_model


def diagonal_kernel_flops(channels: int, d_state: int, length: int, *, training: bool) -> float:
    """Of diagonal kernels as one real (length / r, N) by (N, r) product each."""
    return (3 if training else 1) * 2.0 * channels * d_state * length


def dense_kernel_flops(channels: int, d_state: int, length: int) -> float:
    """Of kernels of dense systems, forward and backward: squarings of A, and one product with N for every lag."""
    squarings = max(math.ceil(math.log2(length)) - 4, 1)
    return 2.0 * channels * d_state * (3 * squarings * d_state**2 + 3 * length)
