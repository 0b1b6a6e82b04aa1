"""The usual kind of pair: two differentiable functions of the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from milkweed.benchmarks.registry import Outputs, Pair

Inputs = Mapping[str, Tensor]


def tensor_pair(
    ours: Callable[[Inputs], Tensor],
    plain: Callable[[Inputs], Tensor],
    inputs: Inputs,
    *,
    cotangent: Tensor | None,
    tolerance: float,
) -> Pair:
    """Make a pair from milkweed's function and the plain formula, which in float64 is the reference too.

    Args:
        ours: milkweed's side.
        plain: The formula, for any floating dtype.
        inputs: What both are called with. With a cotangent, those that require a gradient are differentiated.
        cotangent: The gradient that comes back to the output, for forward + backward. None measures the forward pass
            alone, without recording a graph.
        tolerance: The largest error allowed on either side, relative to the largest entry of each reference.

    Returns:
        The pair. Its outputs are ``output`` and, with a cotangent, one ``gradient of NAME`` per input.
    """
    return Pair(
        ours=lambda: outputs_and_gradients(ours, inputs, cotangent),
        baseline=lambda: outputs_and_gradients(plain, inputs, cotangent),
        reference=lambda: outputs_and_gradients(
            plain, in_float64(inputs), None if cotangent is None else cotangent.double()
        ),
        tolerance=tolerance,
    )


def in_float64(inputs: Inputs) -> Inputs:
    """Copy inputs to float64.

    Args:
        inputs: The tensors.

    Returns:
        Leaves that require a gradient where the originals do.
    """
    return {name: x.detach().double().requires_grad_(x.requires_grad) for name, x in inputs.items()}


def outputs_and_gradients(function: Callable[[Inputs], Tensor], inputs: Inputs, cotangent: Tensor | None) -> Outputs:
    """Call a function forward, or forward and backward.

    Args:
        function: Of the inputs.
        inputs: Its tensors.
        cotangent: The gradient that comes back to the output; None for the forward pass alone, without a graph.

    Returns:
        ``output`` and, with a cotangent, ``gradient of NAME`` for every input that requires one.
    """
    if cotangent is None:
        with torch.no_grad():
            return {"output": function(inputs)}
    leaves = {name: x for name, x in inputs.items() if x.requires_grad}
    output = function(inputs)
    gradients = torch.autograd.grad(output, list(leaves.values()), cotangent)
    return {"output": output.detach()} | {
        f"gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)
    }
