"""State spaces along both axes of an image, against one two-dimensional transform with the whole kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.case import Case, Figure, Size, Work, register
from benchmarks.cases.s4d import layer_kernels
from benchmarks.differentiable import Inputs, conv_flops, diagonal_kernel_flops, mix_flops
from benchmarks.state_space import layer_work, plain_mix
from milkweed import nn

_TOLERANCE = 1e-4


def plain_layer(tensors: Inputs) -> Tensor:
    """The layer by its formulas, on (B, H, L1, L2) throughout; its axes are of the kind ``"s4d"``."""
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


def build(size: Size) -> Work:
    """A two-dimensional layer, with gradients of the image and of all parameters."""
    batch, d_model, d_state, height, width = (size[name] for name in ("batch", "d_model", "d_state", "height", "width"))
    # One axis after the other: every row of every image is a signal of its own, then every column.
    flops = mix_flops(batch * height * width, d_model)
    for length, lines in ((width, height), (height, width)):
        flops += conv_flops(batch * lines, d_model, length, training=True)
        flops += 2 * diagonal_kernel_flops(d_model, d_state, length, training=True)
    layer = nn.S4ND(d_model, 2, d_state, "lin", kind="s4d")
    return layer_work(layer, plain_layer, size, _TOLERANCE, flops)


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
