"""What `gpu.py` measures: the sides of every case, what they must give, and what they cost at least."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import milkweed as mw
from milkweed.benchmarks.cases import m2_bert, monarch, s4, s4d
from milkweed.benchmarks.cases.fft_conv import one_shot
from milkweed.benchmarks.pairs import Inputs, in_float64, outputs_and_gradients
from milkweed.benchmarks.registry import Outputs, Size

# Of half-precision results, relative to the largest: one rounding is 0.002.
_HALF, _SINGLE = 1e-2, 1e-4
# Float32 products in three TF32 passes, each at half the speed of bfloat16.
_THREE_PASSES = 6


@dataclasses.dataclass(frozen=True)
class Work:
    """The sides of a case at one size.

    Attributes:
        sides: By name: ``triton``, ``baseline``, and where it says something ``eager``, milkweed in plain PyTorch.
        exact: Given a side's name, the part of its outputs in float64; nothing to compare if empty.
        part: Takes that part from a side's outputs.
        tolerances: By side, the largest error relative to the largest entry.
        bytes: That have to move between memory and chip.
        operations: On matrix units, in bfloat16 operations.
    """

    sides: Mapping[str, Callable[[], Outputs]]
    exact: Callable[[str], Outputs]
    part: Callable[[Outputs], Outputs]
    tolerances: Mapping[str, float]
    bytes: int
    operations: int


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: Unique.
        description: One line.
        against: What the baseline is.
        build: Makes its sides for a size.
        size: On a GPU.
        tiny: In the interpreter.
        goal: The least ratio baseline / triton; None where none was set.
        shrinks: The entry of the size that is halved where memory does not suffice.
    """

    name: str
    description: str
    against: str
    build: Callable[[Size], Work]
    size: Size
    tiny: Size
    goal: float | None
    shrinks: str


class NotHereError(Exception):
    """What a case needs is not on this machine."""


def device() -> torch.device:
    """Where everything runs: on the GPU, or in Triton's interpreter on the CPU."""
    return torch.device("cuda" if os.environ["TRITON_INTERPRET"] == "0" else "cpu")


def draw(*shape: int, dtype: torch.dtype = torch.float32, gradient: bool = False, scale: float = 1.0) -> Tensor:
    """Draw normal numbers on the device."""
    drawn = torch.randn(shape, device=device(), dtype=torch.float32) * scale
    return drawn.to(dtype).requires_grad_(gradient)


def _monarch(size: Size, *, dense: bool) -> Work:
    tokens, n, nblocks = size["tokens"], size["features"], size["nblocks"]
    side = n // nblocks
    x = draw(tokens, n, dtype=torch.bfloat16)
    right, left = (draw(nblocks, side, side, dtype=torch.bfloat16, scale=side**-0.5) for _ in range(2))
    inputs = {"x": x, "right": right, "left": left}
    weight = draw(n, n, dtype=torch.bfloat16, scale=n**-0.5) if dense else None

    def ours(backend: str) -> Outputs:
        with torch.no_grad():
            return {"output": mw.ops.monarch_mm(x, right, left, backend=backend)}

    def baseline() -> Outputs:
        with torch.no_grad():
            return {"output": monarch.two_bmm(inputs) if weight is None else F.linear(x, weight)}

    def exact(side: str) -> Outputs:
        few = {**inputs, "x": x[:64]}
        if side == "baseline" and weight is not None:
            return {"output": F.linear(few["x"].double(), weight.double())}
        return {"output": monarch.two_bmm(in_float64(few))}

    entries = 2 * nblocks * side**2
    return Work(
        {"triton": partial(ours, "triton"), "eager": partial(ours, "eager"), "baseline": baseline},
        exact,
        lambda outputs: {name: y[:64] for name, y in outputs.items()},
        dict.fromkeys(("triton", "eager", "baseline"), _HALF),
        bytes=2 * (2 * tokens * n + entries),
        operations=2 * tokens * entries,
    )


def _torch_conv(tensors: Inputs) -> Tensor:
    """The formula as it is written in torch: gates and skip in the input's dtype, transforms in float32 at least."""
    u = tensors["u"]
    v = tensors["pre_gate"] * u
    wide = {name: tensors[name] for name in ("kernel", "reverse_kernel") if name in tensors}
    y = one_shot({"u": v if v.dtype == torch.float64 else v.float(), **wide}).to(u.dtype)
    return tensors["post_gate"] * (y + tensors["skip"].to(u.dtype)[:, None] * v)


def _conv(size: Size, *, training: bool) -> Work:
    shape, lags = (size["batch"], size["channels"], size["length"]), (size["channels"], size["length"])
    half = partial(draw, *shape, dtype=torch.bfloat16, gradient=training)
    decay = torch.exp(-4 * torch.arange(lags[1], device=device()) / lags[1])
    inputs = {"u": half(), "pre_gate": half(), "post_gate": half()}
    for name in ("kernel", "reverse_kernel") if training else ("kernel",):
        inputs[name] = (draw(*lags, scale=lags[1] ** -0.5) * decay).requires_grad_(training)
    inputs["skip"] = draw(lags[0], gradient=training)
    cotangent = draw(*shape, dtype=torch.bfloat16) if training else None

    def ours(tensors: Inputs, backend: str) -> Tensor:
        options = {name: x for name, x in tensors.items() if name not in {"u", "kernel"}}
        return mw.ops.fft_conv(tensors["u"], tensors["kernel"], backend=backend, **options)

    def few(x: Tensor) -> Tensor:
        return x[:, :2] if x.ndim == 3 else x[:2]

    def exact(side: str) -> Outputs:
        part = {name: few(x).detach().requires_grad_(training) for name, x in inputs.items()}
        back = None if cotangent is None else few(cotangent).double()
        return outputs_and_gradients(_torch_conv, in_float64(part), back)

    def call(backend: str) -> Outputs:
        return outputs_and_gradients(partial(ours, backend=backend), inputs, cotangent)

    signals, kernels = math.prod(shape) * 2, math.prod(lags) * 4
    return Work(
        {
            "triton": partial(call, "triton"),
            "eager": partial(call, "eager"),
            "baseline": lambda: outputs_and_gradients(_torch_conv, inputs, cotangent),
        },
        exact,
        lambda outputs: {name: few(x) for name, x in outputs.items()},
        dict.fromkeys(("triton", "eager", "baseline"), 2 * _HALF),
        # Forward three signals are read and one is written, backward four and three.
        bytes=11 * signals + 6 * kernels if training else 4 * signals + kernels,
        operations=0,
    )


def _s4d_inputs(channels: int, modes: int, length: int) -> dict[str, Tensor]:
    dt = 10 ** (-3 + 2 * torch.rand(channels, 1, 1, device=device()))
    a = torch.stack([torch.full((modes,), -0.5), math.pi * torch.arange(modes)], -1).to(device())
    return {
        "c": draw(channels, modes, 2, gradient=True),
        "dt_a": (dt * a).requires_grad_(),
        "lags": torch.arange(length, dtype=torch.float32, device=device()),
    }


def _s4d_kernel(size: Size) -> Work:
    channels, modes, length = size["channels"], size["d_state"] // 2, size["length"]
    inputs, cotangent = _s4d_inputs(channels, modes, length), draw(channels, length)

    def ours(tensors: Inputs, backend: str) -> Tensor:
        return mw.ops.diagonal_ssm_kernel(tensors["c"], tensors["dt_a"], length, backend=backend)

    def exact(side: str) -> Outputs:
        part = {name: inputs[name][:4].detach().requires_grad_() for name in ("c", "dt_a")}
        return outputs_and_gradients(
            s4d.plain_kernel, in_float64({**part, "lags": inputs["lags"]}), cotangent[:4].double()
        )

    def call(backend: str) -> Outputs:
        return outputs_and_gradients(partial(ours, backend=backend), inputs, cotangent)

    return Work(
        {
            "triton": partial(call, "triton"),
            "eager": partial(call, "eager"),
            "baseline": lambda: outputs_and_gradients(s4d.plain_kernel, inputs, cotangent),
        },
        exact,
        lambda outputs: {name: x[:4] for name, x in outputs.items()},
        # The plain formula multiplies angles and steps in float32.
        {"triton": _SINGLE, "eager": _SINGLE, "baseline": 1e-2},
        bytes=2 * 4 * channels * length,
        operations=12 * channels * modes * length * _THREE_PASSES,
    )


def _s4_kernel(size: Size) -> Work:
    channels, modes, length = size["channels"], size["d_state"], size["length"]
    layer = _layer("S4", size)
    own = ("log_dt", "A_real", "A_imag", "P", "B", "C")
    inputs = {name: p for name, p in layer.named_parameters() if name in own}
    inputs["lags"] = torch.arange(length, dtype=torch.float32, device=device())
    cotangent = draw(channels, length)

    def few(name: str, x: Tensor) -> Tensor:
        return x[:, :4] if name.removeprefix("gradient of ") in {"P", "C"} else x[:4]

    def exact(side: str) -> Outputs:
        part = {name: few(name, x).detach().requires_grad_() for name, x in inputs.items() if name != "lags"}
        return outputs_and_gradients(
            s4.plain_kernel, in_float64({**part, "lags": inputs["lags"]}), cotangent[:4].double()
        )

    def ours(backend: str) -> Outputs:
        with mw.ops.use_backend(backend):
            return outputs_and_gradients(lambda _: layer.system().kernel(length)[0], inputs, cotangent)

    squarings = max(math.ceil(math.log2(length)) - 4, 1)
    return Work(
        {
            "triton": partial(ours, "triton"),
            "eager": partial(ours, "eager"),
            "baseline": lambda: outputs_and_gradients(s4.plain_kernel, inputs, cotangent),
        },
        exact,
        lambda outputs: {name: few(name, x) for name, x in outputs.items()},
        # Tensors of a slow mode, differentiated: the generating function in float32 errs by 1e-2 and more.
        {"triton": 1e-3, "eager": 1e-3, "baseline": 0.2},
        bytes=2 * 4 * channels * length,
        operations=2 * channels * modes * (3 * squarings * modes**2 + 3 * length) * _THREE_PASSES,
    )


def _layer(kind: str, size: Size) -> nn.Module:
    torch.manual_seed(0)
    return getattr(mw.nn, kind)(size["channels"], d_state=size["d_state"]).to(device())


def _share(size: Size, *, kind: str) -> Work:
    """The kernel's part in the time of its layer: the layer stands as the baseline."""
    layer, length = _layer(kind, size), size["length"]
    u = draw(size["batch"], length, size["channels"], gradient=True)
    cotangent = draw(*u.shape, dtype=torch.bfloat16)
    inputs = {"u": u, **dict(layer.named_parameters())}

    def run(tensors: Inputs) -> Tensor:
        with torch.autocast(device().type, dtype=torch.bfloat16):
            return layer(tensors["u"]).to(cotangent.dtype)

    alone = _s4d_kernel(size) if kind == "S4D" else _s4_kernel(size)
    return dataclasses.replace(
        alone,
        sides={"triton": alone.sides["triton"], "baseline": lambda: outputs_and_gradients(run, inputs, cotangent)},
        # The layer itself has its own tests.
        exact=lambda side: alone.exact(side) if side == "triton" else {},
    )


def _m2_bert(size: Size) -> Work:
    tokens = torch.randint(0, 30528, (size["batch"], size["length"]), device=device())
    torch.manual_seed(0)
    sizes = {"length": size["length"], "d_model": size["d_model"], "depth": size["depth"]}
    m2 = mw.models.M2Bert(30528, **sizes, head="none").eval().to(device())
    bert = m2_bert._bert(size).to(device(), torch.bfloat16)

    def ours(backend: str | None) -> Outputs:
        # The model's own operations have different sets of backends; None lets each take the fastest.
        with torch.inference_mode(), torch.autocast(device().type, dtype=torch.bfloat16):
            return {"output": m2(tokens)}

    def baseline() -> Outputs:
        with torch.inference_mode():
            return {"output": bert(tokens).last_hidden_state}

    @cache
    def exact(side: str) -> Outputs:
        with torch.inference_mode():
            if side == "baseline":
                return {"output": copy.deepcopy(bert).double()(tokens[:1]).last_hidden_state}
            return {"output": copy.deepcopy(m2).double()(tokens[:1])}

    width, depth, total = size["d_model"], size["depth"], tokens.numel()
    return Work(
        {"triton": partial(ours, None), "baseline": baseline},
        exact,
        lambda outputs: {name: y[:1] for name, y in outputs.items()},
        # Twelve layers in bfloat16.
        {"triton": 0.1, "baseline": 0.1},
        bytes=0,
        # Per token and layer: four dense projections of the mixer, and a GLU of 4 d with four blocks.
        operations=2 * total * depth * (4 * width**2 + 3 * 4 * width**2 // 4),
    )


def all_cases() -> list[Case]:
    """The cases of the table, the most telling first.

    Returns:
        All of them.
    """
    cases = []
    for nblocks, goal in ((4, 0.7 * 4 / 2), (16, None)):
        size = {"tokens": 8192, "features": 4096, "nblocks": nblocks}
        tiny = {"tokens": 70, "features": 64, "nblocks": 4}
        what = f"monarch_mm, n = 4096, {nblocks} blocks, bf16"
        for name, against, dense, least in (
            ("linear", "torch.nn.Linear", True, goal),
            ("formula", "two bmm with full-size permutes", False, 2.0),
        ):
            build = partial(_monarch, dense=dense)
            cases.append(Case(f"monarch-{nblocks}-{name}", what, against, build, size, tiny, least, "tokens"))
    for length, goal in ((1024, 8.0), (4096, 7.0), (8192, 6.0), (32768, 3.5)):
        cases.append(
            Case(
                f"conv-gated-{length}",
                f"fft_conv, causal, gated, {length} steps, bf16, forward",
                "rfft and irfft of the whole signal in float32",
                partial(_conv, training=False),
                {"batch": 64, "channels": 768, "length": length},
                {"batch": 1, "channels": 2, "length": 40},
                goal,
                "batch",
            )
        )
    kernel = {"channels": 1024, "d_state": 64, "length": 16384}
    tiny_kernel = {"channels": 4, "d_state": 8, "length": 70}
    for name, build, against in (
        ("s4d", _s4d_kernel, "the (H, N/2, L) array of exponentials"),
        ("s4", _s4_kernel, "the generating function by Cauchy sums"),
    ):
        what = f"{name.upper()} kernel, H 1024, N 64, L 16384, forward and backward"
        cases.append(Case(f"{name}-kernel", what, against, build, kernel, tiny_kernel, 30.0, "channels"))
    cases.append(
        Case(
            "m2-bert-4096",
            "M2-BERT 80M, 4096 tokens, bf16, forward",
            "transformers' BERT-base with scaled_dot_product_attention in bf16",
            _m2_bert,
            {"batch": 8, "length": 4096, "d_model": 768, "depth": 12, "heads": 12},
            {"batch": 1, "length": 16, "d_model": 16, "depth": 1, "heads": 2},
            2.5,
            "batch",
        )
    )
    for length in (1024, 4096, 8192):
        cases.append(
            Case(
                f"conv-bidirectional-train-{length}",
                f"fft_conv, both directions, gated, {length} steps, bf16, forward and backward",
                "rfft and irfft of the whole signal in float32",
                partial(_conv, training=True),
                {"batch": 64, "channels": 768, "length": length},
                {"batch": 1, "channels": 2, "length": 40},
                5.0,
                "batch",
            )
        )
    for name in ("s4d", "s4"):
        cases.append(
            Case(
                f"{name}-share",
                f"the kernel of an {name.upper()} layer, forward and backward",
                "the whole layer, bf16 autocast: the kernel takes under 15% of it",
                partial(_share, kind=name.upper()),
                {"batch": 16, **kernel},
                {"batch": 1, **tiny_kernel},
                1 / 0.15,
                "batch",
            )
        )
    return cases
