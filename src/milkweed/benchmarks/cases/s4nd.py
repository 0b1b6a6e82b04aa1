"""State spaces along both axes of an image, against one two-dimensional transform with the whole kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from milkweed import nn
from milkweed.benchmarks.cases.s4d import layer_kernels
from milkweed.benchmarks.layers import layer_pair, plain_mix
from milkweed.benchmarks.pairs import Inputs
from milkweed.benchmarks.registry import Case, Figure, Pair, Size, register

_TOLERANCE = 1e-4


def plain_layer(tensors: Inputs) -> Tensor:
    """Run the layer by its formulas, on (B, H, L1, L2) throughout.

    Args:
        tensors: ``u`` (B, H, L1, L2), ``lags`` (max(L1, L2),) and the parameters of [`S4ND`][milkweed.nn.S4ND] under
            their names there, with axes of kind ``"s4d"``.

    Returns:
        The output (B, H, L1, L2).
    """
    u = tensors["u"]
    rows, columns = (_around_zero(tensors, axis, length) for axis, length in enumerate(u.shape[2:]))
    kernel = rows[:, :, None] * columns[:, None]
    size = kernel.shape[1:]
    y = torch.fft.irfft2(torch.fft.rfft2(u, size) * torch.fft.rfft2(kernel), size)[..., : u.shape[2], : u.shape[3]]
    y = y + tensors["D"][0, :, None, None] * u
    return plain_mix(tensors, y.flatten(2)).view_as(u)


def _around_zero(tensors: Inputs, axis: int, length: int) -> Tensor:
    """The kernel of one axis (H, 2 L) for lags 0 .. L - 1 and then -L .. -1."""
    prefix = f"axes.{axis}."
    own = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    past, future = layer_kernels({**own, "lags": tensors["lags"][:length]})
    return torch.cat([past, future.flip(-1)], -1)


def build(size: Size) -> Pair:
    """Make a two-dimensional layer and the plain formulas with its parameters, forward and backward.

    Args:
        size: ``batch``, ``d_model``, ``d_state``, ``height`` and ``width``.

    Returns:
        The pair, with gradients of the image and of all parameters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.S4ND(size["d_model"], 2, size["d_state"], "lin", kind="s4d")
    return layer_pair(layer, plain_layer, size, _TOLERANCE)


register(
    Case(
        "s4nd-layer-train",
        "S4ND layer (S4D on both axes) on images, all gradients",
        "N x L exponentials per axis, their outer product, one rfft2 of image and kernel, pointwise convolution, GLU",
        Figure.TRAINING,
        build,
        {"batch": 8, "d_model": 64, "d_state": 64, "height": 64, "width": 64},
        {"batch": 2, "d_model": 4, "d_state": 8, "height": 11, "width": 6},
    )
)
