"""State space layers against their formulas: what the cases of all of them share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from milkweed.benchmarks.cases.fft_conv import one_shot
from milkweed.benchmarks.pairs import Inputs, in_float64, outputs_and_gradients
from milkweed.benchmarks.registry import Outputs, Pair, Size


def plain_output(tensors: Inputs, kernel: Tensor) -> Tensor:
    """Convolve in one go, then mix the channels.

    Args:
        tensors: ``u`` (B, H, L) and the parameters ``D``, ``output.weight`` and ``output.bias`` of a layer.
        kernel: (H, L).

    Returns:
        (B, H, L).
    """
    return plain_mix(tensors, one_shot({"u": tensors["u"], "kernel": kernel, "skip": tensors["D"][0]}))


def plain_mix(tensors: Inputs, y: Tensor) -> Tensor:
    """Apply GELU, a pointwise convolution and GLU.

    Args:
        tensors: ``output.weight`` and ``output.bias`` of a layer.
        y: (B, H, L).

    Returns:
        (B, H, L).
    """
    weight = tensors["output.weight"].unsqueeze(-1)
    return F.glu(F.conv1d(F.gelu(y), weight, tensors["output.bias"]), dim=1)


def layer_pair(layer: nn.Module, plain: Callable[[Inputs], Tensor], size: Size, tolerance: float) -> Pair:
    """Make a pair from a layer and its formulas with the same parameters, forward and backward.

    Each side works in its own layout, (B, *lengths, H) and (B, H, *lengths), on contiguous tensors.

    Args:
        layer: The layer.
        plain: Its formulas, from ``u`` (B, H, *lengths), ``lags`` (the greatest length,) and the parameters by name to
            (B, H, *lengths).
        size: ``batch``, ``d_model`` and ``length``, or ``height`` and ``width``.
        tolerance: The largest error allowed, relative to the largest entry of each reference.

    Returns:
        The pair, with gradients of the signal and of all parameters.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = [size[axis] for axis in ("length", "height", "width") if axis in size]
    parameters = dict(layer.named_parameters())
    u, cotangent = (torch.randn(size["batch"], *lengths, size["d_model"], generator=generator) for _ in range(2))
    inputs = {"u": u.requires_grad_(), **parameters}
    turned_u, turned_cotangent = (x.detach().movedim(-1, 1).contiguous() for x in (u, cotangent))
    turned = {"u": turned_u.requires_grad_(), "lags": torch.arange(max(lengths), dtype=torch.float32), **parameters}

    def in_turn(tensors: Inputs, back: Tensor) -> Outputs:
        found = outputs_and_gradients(plain, tensors, back)
        return {name: x.movedim(1, -1) if name in {"output", "gradient of u"} else x for name, x in found.items()}

    return Pair(
        ours=lambda: outputs_and_gradients(lambda tensors: layer(tensors["u"]), inputs, cotangent),
        baseline=lambda: in_turn(turned, turned_cotangent),
        reference=lambda: in_turn(in_float64(turned), turned_cotangent.double()),
        tolerance=tolerance,
    )
