"""What comes before speed on a GPU: numbers that are not finite, one launch in place of two, a second GPU.

In these cases the peer is milkweed itself, done the other way, and a ratio near 1 is what is hoped for.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case, Figure, NotHereError, Outputs, Size, Work, draw, register
from milkweed import ops

_SIDES = ("ours", "peer")
_SIGNALS = {"batch": 64, "channels": 768, "length": 1024}, {"batch": 3, "channels": 2, "length": 40}
_TOKENS = {"tokens": 32768, "features": 512, "nblocks": 4}, {"tokens": 70, "features": 64, "nblocks": 4}


def _by_lags(u: Tensor, kernel: Tensor) -> Tensor:
    """A causal convolution lag by lag: something not finite reaches what depends on it only."""
    length = u.shape[-1]
    return sum((F.pad(kernel[:, j, None] * u[..., : length - j], (j, 0)) for j in range(length)), torch.zeros_like(u))


def _exact(u: Tensor, kernel: Tensor) -> Outputs:
    return {"output": _by_lags(u[:, :2].double(), kernel[:2].double())}


def _signals(size: Size) -> tuple[Tensor, Tensor]:
    u = draw(size["batch"], size["channels"], size["length"], dtype=torch.bfloat16)
    return u, draw(size["channels"], size["length"], scale=size["length"] ** -0.5)


def _finite(outputs: Outputs) -> Outputs:
    """Two channels: which numbers are finite, and those that are."""
    y = outputs["output"][:, :2]
    return {"finite": y.isfinite().double(), "output": y.nan_to_num(0, 0, 0)}


def build_guard(size: Size, *, bad: bool) -> Work:
    """The search for what is not finite: its cost where there is nothing, or where every signal has something."""
    from milkweed.ops.fft_conv import triton

    finite, kernel = _signals(size)
    place = torch.arange(size["batch"] * size["channels"]).view(size["batch"], -1, 1) % size["length"]
    u = finite.scatter(-1, place, float("nan")) if bad else finite

    def call(signal: Tensor, guarded: bool) -> Outputs:
        with torch.no_grad(), nullcontext() if guarded else triton.unguarded():
            return {"output": ops.fft_conv(signal, kernel, backend="triton")}

    def truth() -> Mapping[str, Outputs]:
        return {side: _finite(_exact(x, kernel)) for side, x in (("ours", u), ("peer", finite))}

    return Work(
        {"ours": partial(call, u, True), "peer": partial(call, finite, False)},
        truth,
        dict.fromkeys(_SIDES, 2e-2),
        bytes=2 * u.nbytes + kernel.nbytes,
        part=_finite,
    )


def build_one_launch(size: Size) -> Work:
    """Both factors of a Monarch matrix in one launch, which is not taken before it was right here, against two."""
    from benchmarks.cases.monarch import two_bmm  # here, as its cases come after these
    from milkweed.ops.monarch import _triton_plan as plan

    tokens, n, nblocks = size["tokens"], size["features"], size["nblocks"]
    side, half = n // nblocks, torch.bfloat16
    inputs = {"x": draw(tokens, n, dtype=half)}
    inputs |= {name: draw(nblocks, side, side, dtype=half, scale=side**-0.5) for name in ("right", "left")}

    def call(together: bool) -> Outputs:
        with torch.no_grad(), plan.one_launch() if together else nullcontext():
            return {"output": ops.monarch_mm(*inputs.values(), backend="triton")}

    def truth() -> Mapping[str, Outputs]:
        few = {name: (x[:64] if name == "x" else x).double() for name, x in inputs.items()}
        return {side: {"output": two_bmm(few)} for side in _SIDES}

    return Work(
        {"ours": partial(call, True), "peer": partial(call, False)},
        truth,
        dict.fromkeys(_SIDES, 1e-2),
        flops=2 * tokens * 2 * nblocks * side**2,
        bytes=sum(x.nbytes for x in inputs.values()) + inputs["x"].nbytes,
        part=lambda outputs: {name: y[:64] for name, y in outputs.items()},
    )


def build_second_gpu(size: Size) -> Work:
    """Tensors on a GPU that is not the current one."""
    on_gpu = torch.get_default_device().type == "cuda"
    if on_gpu and torch.cuda.device_count() < 2:
        raise NotHereError("there is one GPU only")
    here = _signals(size)
    there = tuple(x.to(torch.device("cuda", 1)) if on_gpu else x for x in here)

    def call(u: Tensor, kernel: Tensor) -> Outputs:
        with torch.no_grad():
            y = ops.fft_conv(u, kernel, backend="triton")
        if on_gpu:
            torch.cuda.synchronize(u.device)
        return {"output": y}

    return Work(
        {"ours": partial(call, *there), "peer": partial(call, *here)},
        lambda: dict.fromkeys(_SIDES, _exact(*here)),
        dict.fromkeys(_SIDES, 2e-2),
        bytes=2 * here[0].nbytes + here[1].nbytes,
        part=lambda outputs: {name: y[:, :2].to(here[0].device) for name, y in outputs.items()},
    )


for _name, _what, _peer, _build, (_size, _tiny), _shrinks in (
    (
        "conv-guard-1024",
        "fft_conv, causal, 1024 steps, bf16: the search for what is not finite",
        "the same without it",
        partial(build_guard, bad=False),
        _SIGNALS,
        "batch",
    ),
    (
        "conv-guard-nan-1024",
        "the same with a NaN in every signal",
        "finite signals, without the search",
        partial(build_guard, bad=True),
        _SIGNALS,
        "batch",
    ),
    (
        "monarch-512-one-launch",
        "monarch_mm, n = 512, 4 blocks, bf16, in one launch",
        "two launches",
        build_one_launch,
        _TOKENS,
        "tokens",
    ),
    (
        "conv-second-gpu",
        "fft_conv, causal, 1024 steps, bf16, on the second GPU while the first is current",
        "on the first",
        build_second_gpu,
        _SIGNALS,
        "batch",
    ),
):
    register(Case(_name, _what, _peer, Figure.FORWARD, _build, _size, _tiny, device="cuda", shrinks=_shrinks))
