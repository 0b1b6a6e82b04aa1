"""What `gpu.py` checks beside speed: numbers that are not finite, one launch in place of two, a second GPU.

In these cases the baseline is milkweed itself, done the other way, and a ratio near 1 is what is hoped for.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from gpu_cases import Case, NotHereError, Work, device, draw
from torch import Tensor

import milkweed as mw
from milkweed.benchmarks.cases import monarch
from milkweed.benchmarks.pairs import in_float64
from milkweed.benchmarks.registry import Outputs, Size

_HALF = 1e-2


def _by_lags(u: Tensor, kernel: Tensor) -> Tensor:
    """A causal convolution lag by lag: something not finite reaches what depends on it only."""
    length = u.shape[-1]
    return sum((F.pad(kernel[:, j, None] * u[..., : length - j], (j, 0)) for j in range(length)), torch.zeros_like(u))


def _parts(outputs: Outputs) -> Outputs:
    """Two channels: which numbers are finite, and those that are."""
    y = outputs["output"][:, :2]
    return {"finite": y.isfinite().double(), "output": y.nan_to_num(0, 0, 0)}


def _guard(size: Size, *, bad: bool) -> Work:
    """The search for what is not finite: its cost where there is nothing, or where every signal has something."""
    from milkweed.ops.fft_conv import triton

    batch, channels, length = size["batch"], size["channels"], size["length"]
    finite = draw(batch, channels, length, dtype=torch.bfloat16)
    kernel = draw(channels, length, scale=length**-0.5)
    u = finite.clone()
    if bad:
        place = torch.arange(batch * channels, device=device()).view(batch, channels, 1) % length
        u = u.scatter(-1, place, float("nan"))

    def call(signal: Tensor, guarded: bool) -> Outputs:
        with torch.no_grad(), nullcontext() if guarded else triton.unguarded():
            return {"output": mw.ops.fft_conv(signal, kernel, backend="triton")}

    def exact(side: str) -> Outputs:
        signal = finite if side == "baseline" else u
        return _parts({"output": _by_lags(signal[:, :2].double(), kernel[:2].double())})

    return Work(
        {"triton": partial(call, u, True), "baseline": partial(call, finite, False)},
        exact,
        _parts,
        dict.fromkeys(("triton", "baseline"), 2 * _HALF),
        bytes=2 * 2 * u.numel() + 4 * kernel.numel(),
        operations=0,
    )


def _one_launch(size: Size) -> Work:
    """Both factors of a Monarch matrix in one launch, which is not taken before it was right here, against two."""
    from milkweed.ops.monarch import _triton_plan as plan

    tokens, n, nblocks = size["tokens"], size["features"], size["nblocks"]
    side = n // nblocks
    inputs = {"x": draw(tokens, n, dtype=torch.bfloat16)}
    inputs |= {name: draw(nblocks, side, side, dtype=torch.bfloat16, scale=side**-0.5) for name in ("right", "left")}

    def call(together: bool) -> Outputs:
        with torch.no_grad(), plan.one_launch() if together else nullcontext():
            return {"output": mw.ops.monarch_mm(*inputs.values(), backend="triton")}

    entries = 2 * nblocks * side**2
    return Work(
        {"triton": partial(call, True), "baseline": partial(call, False)},
        lambda _: {"output": monarch.two_bmm(in_float64({**inputs, "x": inputs["x"][:64]}))},
        lambda outputs: {name: y[:64] for name, y in outputs.items()},
        dict.fromkeys(("triton", "baseline"), _HALF),
        bytes=2 * (2 * tokens * n + entries),
        operations=2 * tokens * entries,
    )


def _second_gpu(size: Size) -> Work:
    """Tensors on a GPU that is not the current one."""
    if device().type == "cuda" and torch.cuda.device_count() < 2:
        raise NotHereError("there is one GPU only")
    second = torch.device("cuda", 1) if device().type == "cuda" else device()
    u = draw(size["batch"], size["channels"], size["length"], dtype=torch.bfloat16)
    kernel = draw(size["channels"], size["length"], scale=size["length"] ** -0.5)
    there = u.to(second), kernel.to(second)

    def call(u: Tensor, kernel: Tensor) -> Outputs:
        with torch.no_grad():
            y = mw.ops.fft_conv(u, kernel, backend="triton")
        if u.device.type == "cuda":
            torch.cuda.synchronize(u.device)
        return {"output": y}

    return Work(
        {"triton": partial(call, *there), "baseline": partial(call, u, kernel)},
        lambda _: {"output": _by_lags(u[:, :2].double(), kernel[:2].double())},
        lambda outputs: {name: y[:, :2].to(u.device) for name, y in outputs.items()},
        dict.fromkeys(("triton", "baseline"), 2 * _HALF),
        bytes=2 * 2 * u.numel() + 4 * kernel.numel(),
        operations=0,
    )


def safety_cases() -> list[Case]:
    """The cases that come before the table: what is wrong here makes figures worthless.

    Returns:
        All of them.
    """
    size, tiny = {"batch": 64, "channels": 768, "length": 1024}, {"batch": 3, "channels": 2, "length": 40}
    monarch_size, monarch_tiny = (
        {"tokens": tokens, "features": features, "nblocks": 4} for tokens, features in ((32768, 512), (70, 64))
    )
    return [
        Case(
            "conv-guard-1024",
            "fft_conv, causal, 1024 steps, bf16: the search for what is not finite",
            "the same without it",
            partial(_guard, bad=False),
            size,
            tiny,
            None,
            "batch",
        ),
        Case(
            "conv-guard-nan-1024",
            "the same with a NaN in every signal",
            "finite signals, without the search",
            partial(_guard, bad=True),
            size,
            tiny,
            None,
            "batch",
        ),
        Case(
            "monarch-512-one-launch",
            "monarch_mm, n = 512, 4 blocks, bf16, in one launch",
            "two launches",
            _one_launch,
            monarch_size,
            monarch_tiny,
            None,
            "tokens",
        ),
        Case(
            "conv-second-gpu",
            "fft_conv, causal, 1024 steps, bf16, on the second GPU while the first is current",
            "on the first",
            _second_gpu,
            size,
            tiny,
            None,
            "batch",
        ),
    ]
