"""State space layers against their formulas: what the cases of all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.case import Case, Figure, Outputs, Size, Work, draw, register
from benchmarks.cases.fft_conv import one_shot
from benchmarks.differentiable import Function, Inputs, differentiable, values

# Float32 products on a GPU in three TF32 passes, each at half the speed of bfloat16.
THREE_PASSES = 6


def plain_output(tensors: Inputs, kernel: Tensor) -> Tensor:
    """Convolve ``u`` (B, H, L) with a kernel (H, L) in one go, then mix the channels."""
    return plain_mix(tensors, one_shot({"u": tensors["u"], "kernel": kernel, "skip": tensors["D"][0]}))


def plain_mix(tensors: Inputs, y: Tensor) -> Tensor:
    """Apply GELU, the pointwise convolution of a layer and GLU to (B, H, L)."""
    weight = tensors["output.weight"].unsqueeze(-1)
    return F.glu(F.conv1d(F.gelu(y), weight, tensors["output.bias"]), dim=1)


def layer_work(layer: nn.Module, plain: Function, size: Size, tolerance: float, flops: float) -> Work:
    """Compare a layer with its formulas and the same parameters, forward and backward.

    Each side works in its own layout, (B, *lengths, H) and (B, H, *lengths), on contiguous tensors.

    Args:
        layer: The layer.
        plain: Its formulas, from ``u`` (B, H, *lengths), ``lags`` (the greatest length,) and the parameters by name to
            (B, H, *lengths).
        size: ``batch``, ``d_model`` and ``length``, or ``height`` and ``width``.
        tolerance: See `Work`.
        flops: See `Work`.
    """
    lengths = [size[axis] for axis in ("length", "height", "width") if axis in size]
    parameters = by_equation(layer)
    u, cotangent = (draw(size["batch"], *lengths, size["d_model"]) for _ in range(2))
    inputs = {"u": u.requires_grad_(), **parameters}
    turned_u, turned_cotangent = (x.detach().movedim(-1, 1).contiguous() for x in (u, cotangent))
    turned = {"u": turned_u.requires_grad_(), "lags": torch.arange(max(lengths), dtype=torch.float32), **parameters}

    def turn_back(found: Outputs) -> Outputs:
        return {name: x.movedim(1, -1) if name in {"output", "gradient of u"} else x for name, x in found.items()}

    peer = differentiable(
        {"peer": plain}, plain, turned, turned_cotangent, training=True, tolerance=tolerance, flops=flops
    )

    def truth() -> Mapping[str, Outputs]:
        return dict.fromkeys(("ours", "peer"), turn_back(peer.truth()["peer"]))

    def ours() -> Outputs:
        return values(lambda tensors: layer(tensors["u"]), inputs, cotangent)

    return replace(
        peer,
        sides={"ours": ours, "peer": lambda: turn_back(peer.sides["peer"]())},
        truth=truth,
        tolerances=dict.fromkeys(("ours", "peer"), tolerance),
        part=dict,
    )


def by_equation(layer: nn.Module) -> dict[str, Tensor]:
    """A layer's parameters by the names that they have in its equations."""
    return {name.removeprefix("filter.").removeprefix("mix."): p for name, p in layer.named_parameters()}


def kernel_share(kernel: Work, layer: nn.Module, size: Size) -> Work:
    """A kernel alone against its whole layer under bfloat16 autocast, forward and backward."""
    u = draw(size["batch"], size["length"], size["d_model"], gradient=True)
    cotangent = draw(*u.shape, dtype=torch.bfloat16)
    inputs = {"u": u, **by_equation(layer)}

    def run(tensors: Inputs) -> Tensor:
        with torch.autocast(u.device.type, dtype=torch.bfloat16):
            y: Tensor = layer(tensors["u"])
            return y.to(cotangent.dtype)

    return replace(
        kernel,
        sides={"ours": kernel.sides["ours"], "peer": lambda: values(run, inputs, cotangent)},
        # The layer itself has its own tests.
        truth=lambda: {"ours": kernel.truth()["ours"]},
    )


def register_large(name: str, build: Callable[..., Work], peer: str, bar: float) -> None:
    """The two cases of a kernel on a GPU: alone, and its share of its layer's time."""
    size, tiny = {"d_model": 1024, "d_state": 64, "length": 16384}, {"d_model": 4, "d_state": 8, "length": 70}
    make = partial(build, triton=True)
    what = f"{name.upper()} kernel, H 1024, N 64, L 16384, forward and backward"
    register(
        Case(f"{name}-kernel", what, peer, Figure.TRAINING, make, size, tiny, bar, device="cuda", shrinks="d_model")
    )
    register(
        Case(
            f"{name}-share",
            f"the kernel of an {name.upper()} layer, forward and backward",
            "the whole layer, bf16 autocast: the kernel takes under 15% of it",
            Figure.TRAINING,
            partial(build, triton=True, share=True),
            {"batch": 16, **size},
            {"batch": 1, **tiny},
            1 / 0.15,
            device="cuda",
            shrinks="batch",
        )
    )
