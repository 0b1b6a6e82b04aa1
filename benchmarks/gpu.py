"""Measures the Triton backends on a GPU against torch and the plain formulas: ``python benchmarks/gpu.py``.

Every kernel is first compared with float64, then both sides are timed in turn with CUDA events. The table and the JSON
file also say what fraction of the floor was reached: the time that the device's memory, or its matrix units, need at
least. ``--tune`` measures tiles; ``--interpret`` runs tiny sizes on a CPU in Triton's interpreter, to try the script.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import gc
import json
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

# Triton decides when a kernel is defined, so before anything imports one.
os.environ["TRITON_INTERPRET"] = "1" if "--interpret" in sys.argv else "0"
# Works in a checkout that is not installed, too.
sys.path.append(str(Path(__file__).parents[1] / "src"))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import milkweed as mw
from milkweed._files import atomic_write
from milkweed.benchmarks.cases import m2_bert, monarch, s4, s4d
from milkweed.benchmarks.cases.fft_conv import one_shot
from milkweed.benchmarks.environment import describe_environment
from milkweed.benchmarks.pairs import Inputs, in_float64, outputs_and_gradients
from milkweed.benchmarks.registry import Outputs, Size, UnknownCaseError, select
from milkweed.benchmarks.run import relative_errors

FORMAT_VERSION = 1
_BUDGET_SECONDS = 540.0
# Kept for writing results, and for a case that compiles longer than it measures.
_RESERVE_SECONDS = 45.0
_REPEATS, _SAMPLE_SECONDS, _CASE_SECONDS = 20, 0.02, 6.0
_FAILED, _REFUSED = 1, 2
# Of half-precision results, relative to the largest: one rounding is 0.002.
_HALF, _SINGLE = 1e-2, 1e-4
# Float32 products in three TF32 passes, each at half the speed of bfloat16.
_THREE_PASSES = 6


@dataclasses.dataclass(frozen=True)
class Peaks:
    """What a device can do at most, by its data sheet.

    Attributes:
        bandwidth: Bytes a second between memory and chip.
        operations: Dense bfloat16 operations a second; None if unknown.
    """

    bandwidth: float
    operations: float | None


# By the start of the device's name; longer names first.
_PEAKS = {
    "NVIDIA H200": Peaks(4.8e12, 989e12),
    "NVIDIA H100 NVL": Peaks(3.9e12, 835e12),
    "NVIDIA H100 PCIe": Peaks(2.0e12, 756e12),
    "NVIDIA H100": Peaks(3.35e12, 989e12),
    "NVIDIA A100-SXM4-80GB": Peaks(2.039e12, 312e12),
    "NVIDIA A100 80GB PCIe": Peaks(1.935e12, 312e12),
    "NVIDIA A100": Peaks(1.555e12, 312e12),
}


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


@dataclasses.dataclass
class Side:
    """What came out of one side."""

    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: list[float] = dataclasses.field(default_factory=list)
    calls: int = 1
    failure: str = ""

    @property
    def median(self) -> float | None:
        """Seconds of a call; None where there is no figure."""
        return None if self.failure or not self.seconds else statistics.median(self.seconds)

    def record(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "median_s": self.median,
            "samples_s": self.seconds,
            "calls_per_sample": self.calls,
            "errors": {output: x if math.isfinite(x) else str(x) for output, x in self.errors.items()},
            "failure": self.failure or None,
        }


@dataclasses.dataclass
class Result:
    """What came out of one case; ``skipped`` says why it did not run."""

    case: Case
    size: Size
    sides: dict[str, Side] = dataclasses.field(default_factory=dict)
    failure: str = ""
    skipped: str = ""
    floor: float | None = None
    bytes: int = 0
    operations: int = 0

    def record(self) -> dict[str, Any]:
        """All of it as JSON values."""
        medians = {name: side.median for name, side in self.sides.items()}
        ours, theirs = medians.get("triton"), medians.get("baseline")

        def ratio(side: str) -> float | None:
            median = medians.get(side)
            return None if median is None or theirs is None else theirs / median

        return {
            "name": self.case.name,
            "description": self.case.description,
            "against": self.case.against,
            "size": dict(self.size),
            "reduced": dict(self.size) not in (dict(self.case.size), dict(self.case.tiny)),
            "goal": self.case.goal,
            "ratio": ratio("triton"),
            "ratio_of_eager": ratio("eager"),
            "bytes": self.bytes,
            "operations": self.operations,
            "floor_s": self.floor,
            "fraction_of_floor": None if ours is None or self.floor is None else self.floor / ours,
            "failure": self.failure or None,
            "skipped": self.skipped or None,
            "sides": {name: side.record() for name, side in self.sides.items()},
        }


def _device() -> torch.device:
    return torch.device("cuda" if os.environ["TRITON_INTERPRET"] == "0" else "cpu")


def _draw(*shape: int, dtype: torch.dtype = torch.float32, gradient: bool = False, scale: float = 1.0) -> Tensor:
    drawn = torch.randn(shape, device=_device(), dtype=torch.float32) * scale
    return drawn.to(dtype).requires_grad_(gradient)


# The cases --------------------------------------------------------------------------------------------------------


def _monarch(size: Size, *, dense: bool) -> Work:
    tokens, n, nblocks = size["tokens"], size["features"], size["nblocks"]
    side = n // nblocks
    x = _draw(tokens, n, dtype=torch.bfloat16)
    right, left = (_draw(nblocks, side, side, dtype=torch.bfloat16, scale=side**-0.5) for _ in range(2))
    inputs = {"x": x, "right": right, "left": left}
    weight = _draw(n, n, dtype=torch.bfloat16, scale=n**-0.5) if dense else None

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
    half = partial(_draw, *shape, dtype=torch.bfloat16, gradient=training)
    decay = torch.exp(-4 * torch.arange(lags[1], device=_device()) / lags[1])
    inputs = {"u": half(), "pre_gate": half(), "post_gate": half()}
    for name in ("kernel", "reverse_kernel") if training else ("kernel",):
        inputs[name] = (_draw(*lags, scale=lags[1] ** -0.5) * decay).requires_grad_(training)
    inputs["skip"] = _draw(lags[0], gradient=training)
    cotangent = _draw(*shape, dtype=torch.bfloat16) if training else None

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
    dt = 10 ** (-3 + 2 * torch.rand(channels, 1, 1, device=_device()))
    a = torch.stack([torch.full((modes,), -0.5), math.pi * torch.arange(modes)], -1).to(_device())
    return {
        "c": _draw(channels, modes, 2, gradient=True),
        "dt_a": (dt * a).requires_grad_(),
        "lags": torch.arange(length, dtype=torch.float32, device=_device()),
    }


def _s4d_kernel(size: Size) -> Work:
    channels, modes, length = size["channels"], size["d_state"] // 2, size["length"]
    inputs, cotangent = _s4d_inputs(channels, modes, length), _draw(channels, length)

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
    inputs["lags"] = torch.arange(length, dtype=torch.float32, device=_device())
    cotangent = _draw(channels, length)

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
    return getattr(mw.nn, kind)(size["channels"], d_state=size["d_state"]).to(_device())


def _share(size: Size, *, kind: str) -> Work:
    """The kernel's part in the time of its layer: the layer stands as the baseline."""
    layer, length = _layer(kind, size), size["length"]
    u = _draw(size["batch"], length, size["channels"], gradient=True)
    cotangent = _draw(*u.shape, dtype=torch.bfloat16)
    inputs = {"u": u, **dict(layer.named_parameters())}

    def run(tensors: Inputs) -> Tensor:
        with torch.autocast(_device().type, dtype=torch.bfloat16):
            return layer(tensors["u"]).to(cotangent.dtype)

    alone = _s4d_kernel(size) if kind == "S4D" else _s4_kernel(size)
    return dataclasses.replace(
        alone,
        sides={"triton": alone.sides["triton"], "baseline": lambda: outputs_and_gradients(run, inputs, cotangent)},
        # The layer itself has its own tests.
        exact=lambda side: alone.exact(side) if side == "triton" else {},
    )


def _m2_bert(size: Size) -> Work:
    tokens = torch.randint(0, 30528, (size["batch"], size["length"]), device=_device())
    torch.manual_seed(0)
    sizes = {"length": size["length"], "d_model": size["d_model"], "depth": size["depth"]}
    m2 = mw.models.M2Bert(30528, **sizes, head="none").eval().to(_device())
    bert = m2_bert._bert(size).to(_device(), torch.bfloat16)

    def ours(backend: str | None) -> Outputs:
        # The model's own operations have different sets of backends; None lets each take the fastest.
        with torch.inference_mode(), torch.autocast(_device().type, dtype=torch.bfloat16):
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


# Measuring --------------------------------------------------------------------------------------------------------


def _seconds(call: Callable[[], object], calls: int) -> float:
    if _device().type == "cpu":
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def _check(name: str, work: Work) -> Side:
    """Run a side once and compare it with float64."""
    side = Side()
    found = {output: x.detach().clone() for output, x in work.part(work.sides[name]()).items()}
    exact = work.exact(name)
    if exact:
        side.errors = relative_errors(found, exact)
        tolerance = work.tolerances[name]
        # Written so that NaN fails too.
        wrong = [f"{output} is off by {error:.1e}" for output, error in side.errors.items() if not error <= tolerance]
        if wrong:
            side.failure = f"wrong: {', '.join(wrong)}; allowed is {tolerance:.0e}"
    return side


def _time_in_turn(work: Work, sides: Mapping[str, Side], repeats: int) -> None:
    """Time every side that is right, one after the other, again and again."""
    right = {name: side for name, side in sides.items() if not side.failure}
    for name, side in right.items():
        once = _seconds(work.sides[name], 1)
        side.calls = max(1, min(100, round(_SAMPLE_SECONDS / max(once, 1e-6))))
    end = time.monotonic() + _CASE_SECONDS
    for done in range(repeats):
        if done >= 3 and time.monotonic() > end:
            return
        for name, side in right.items():
            side.seconds.append(_seconds(work.sides[name], side.calls))


def _measure(case: Case, size: Size, peaks: Peaks, repeats: int) -> Result:
    result = Result(case, size)
    torch.manual_seed(0)
    work = case.build(size)
    result.bytes, result.operations = work.bytes, work.operations
    times = [work.bytes / peaks.bandwidth, work.operations / peaks.operations if peaks.operations else 0.0]
    result.floor = max(times) or None
    for name in work.sides:
        try:
            result.sides[name] = _check(name, work)
        except torch.OutOfMemoryError:
            if name != "eager":
                raise
            result.sides[name] = Side(failure="out of memory")
        except Exception as error:
            # What Triton's compiler says runs over pages.
            result.sides[name] = Side(failure=f"{type(error).__name__}: {str(error)[:500]}")
    _time_in_turn(work, result.sides, repeats)
    broken = [f"{name}: {side.failure}" for name, side in result.sides.items() if side.failure and name != "eager"]
    result.failure = "; ".join(broken)
    return result


def _device_is_lost() -> bool:
    """Whether an error has left the device unusable for this process, as a wrong address does."""
    if _device().type == "cpu":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _measure_what_fits(case: Case, size: Size, peaks: Peaks, repeats: int) -> Result:
    """Halve the size until it fits in memory; whatever else goes wrong becomes the result."""
    while True:
        try:
            return _measure(case, size, peaks, repeats)
        except torch.OutOfMemoryError:
            if size[case.shrinks] < 2:
                return Result(case, size, failure=f"out of memory at {case.shrinks} 1")
            size = {**size, case.shrinks: size[case.shrinks] // 2}
        except ModuleNotFoundError as error:
            return Result(case, size, skipped=str(error))
        except Exception as error:
            return Result(case, size, failure=f"{type(error).__name__}: {str(error)[:500]}")
        finally:
            gc.collect()
            with contextlib.suppress(RuntimeError):  # of a lost device
                torch.cuda.empty_cache()


def _peaks() -> tuple[Peaks, float | None]:
    """The device's peaks, and the bandwidth of a copy as measured."""
    if _device().type == "cpu":
        return Peaks(1e10, None), None
    name = torch.cuda.get_device_name()
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / min(_seconds(lambda: target.copy_(source), 5) for _ in range(4))
    return next((peaks for start, peaks in _PEAKS.items() if name.startswith(start)), Peaks(copied, None)), copied


# Reporting --------------------------------------------------------------------------------------------------------


def _milliseconds(side: Mapping[str, Any] | None) -> str:
    if side is None:
        return "-"
    return "failed" if side["failure"] else "-" if side["median_s"] is None else f"{side['median_s'] * 1e3:.3g}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _verdict(goal: float | None, ratio: float | None) -> str:
    if goal is None or _device().type == "cpu":
        return "-"
    return f">= {goal:.3g}x" + ("" if ratio is None else " met" if ratio >= goal else " missed")


def _row(record: Mapping[str, Any]) -> list[str]:
    sides, ratio = record["sides"], record["ratio"]
    errors = [float(error) for error in sides.get("triton", {}).get("errors", {}).values()]
    worst = max(errors, key=lambda error: (math.isnan(error), error), default=None)
    return [
        record["name"],
        *(_milliseconds(sides.get(name)) for name in ("triton", "eager", "baseline")),
        "skipped" if record["skipped"] else "failed" if record["failure"] else _times(ratio),
        _times(record["ratio_of_eager"]),
        _verdict(record["goal"], ratio),
        "-" if record["fraction_of_floor"] is None else f"{record['fraction_of_floor']:.0%}",
        "-" if worst is None else f"{worst:.0e}",
    ]


def _show(records: Sequence[Mapping[str, Any]]) -> None:
    heading = ["case", "triton ms", "eager ms", "baseline ms", "ratio", "of eager", "goal", "of floor", "error"]
    rows = [_row(record) for record in records]
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        widths = [max(len(row[i]) for row in [heading, *rows]) for i in range(len(heading))]
        for row in [heading, *rows]:
            sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + "\n")
    else:
        table = Table(*heading, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        console = Console()
        (console if console.is_terminal else Console(width=160)).print(table)
    for record in records:
        if record["failure"] or record["skipped"]:
            sys.stdout.write(f"{record['name']}: {record['failure'] or record['skipped']}\n")
        if record["reduced"]:
            sys.stdout.write(f"{record['name']}: measured at {record['size']}, which fits in memory\n")


# The command ------------------------------------------------------------------------------------------------------


def _tune(out: Path | None) -> int:
    """Time the tiles of block-diagonal products on Monarch factors, and print what to check in."""
    from milkweed.ops import _triton_configs as configs

    on_gpu = _device().type == "cuda"
    tokens, features, nblocks, calls = (8192, 4096, 4, 10) if on_gpu else (16, 64, 4, 1)
    best = {}
    for kernel in ("multiply", "sum_outer"):
        x = _draw(tokens, features, dtype=torch.bfloat16)
        weight = _draw(nblocks, features // nblocks, features // nblocks, dtype=torch.bfloat16, gradient=True)

        def call(training: bool = kernel == "sum_outer", x: Tensor = x, weight: Tensor = weight) -> object:
            y = mw.ops.block_diagonal_mm(x, weight, backend="triton")
            return torch.autograd.grad(y, weight, x) if training else y

        seconds = {}
        for tile in configs.candidates(kernel):
            with configs.forced_tile(kernel, tile):
                try:
                    seconds[tile] = min(_seconds(call, calls) for _ in range(calls + 1))
                except Exception as error:
                    sys.stdout.write(f"{kernel} {tile}: {type(error).__name__}: {str(error)[:100]}\n")
                    continue
            sys.stdout.write(f"{kernel} {tile}: {seconds[tile] * 1e3:.3f} ms\n")
        if seconds:
            best[kernel] = min(seconds, key=seconds.__getitem__)
    name = torch.cuda.get_device_name() if on_gpu else "interpreter"
    entries = "\n".join(f'        "{kernel}": {tile},' for kernel, tile in best.items())
    sys.stdout.write(f'Entry for _MEASURED in _triton_configs.py:\n    "{name}": {{\n{entries}\n    }},\n')
    _write(out, {"device": name, "tiles": {kernel: dataclasses.asdict(tile) for kernel, tile in best.items()}})
    return 0 if best else _FAILED


def _write(path: Path | None, content: Mapping[str, object]) -> None:
    if path is None:
        return
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.py", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="cases by name or shell pattern")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="where results go (default benchmarks/results/DEVICE.json)"
    )
    parser.add_argument(
        "--seconds", type=float, default=_BUDGET_SECONDS, help="for all cases; what is left then is skipped"
    )
    parser.add_argument("--resume", action="store_true", help="keep the cases that --out holds, and run the others")
    parser.add_argument("--tune", action="store_true", help="measure tiles instead, and print entries to check in")
    parser.add_argument("--interpret", action="store_true", help="tiny sizes on the CPU, to try this script")
    return parser


def _default_out() -> Path | None:
    if _device().type == "cpu":
        return None
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return Path(__file__).parent / "results" / f"{name}.json"


def _environment(peaks: Peaks, copied: float | None) -> dict[str, object]:
    found = describe_environment()
    with contextlib.suppress(ModuleNotFoundError):
        import triton

        found["triton"] = triton.__version__
    if _device().type == "cuda":
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "gpu_memory_bytes": torch.cuda.get_device_properties(0).total_memory,
            "cuda": torch.version.cuda,
            "copy_bandwidth": copied,
        }
    return found | {"peaks": dataclasses.asdict(peaks)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The exit status: 0 if every case that ran was right, 1 if one failed, 2 for a request that cannot be served.
    """
    begin = time.monotonic()
    options = _parser().parse_args(argv)
    try:
        cases = select(options.only, all_cases())
    except UnknownCaseError as error:
        sys.stderr.write(f"{error}\n")
        return _REFUSED
    if options.list:
        sys.stdout.writelines(f"{case.name}: {case.description}; against {case.against}\n" for case in cases)
        return 0
    if not options.interpret and not torch.cuda.is_available():
        sys.stderr.write("this needs a GPU that torch can use; --interpret tries the script on a CPU, at tiny sizes\n")
        return _REFUSED
    out = options.out or _default_out()
    if options.tune:
        return _tune(options.out)
    peaks, copied = _peaks()
    document = {"format": FORMAT_VERSION, "environment": _environment(peaks, copied), "interpreted": options.interpret}
    records = json.loads(out.read_text(encoding="utf-8"))["cases"] if options.resume and out else []
    for case in cases:
        if case.name in {record["name"] for record in records}:
            continue
        size = case.tiny if options.interpret else case.size
        left = options.seconds - (time.monotonic() - begin)
        if left < min(_RESERVE_SECONDS, options.seconds / 4):
            result = Result(case, size, skipped=f"the {options.seconds:.0f} s were over")
        else:
            sys.stderr.write(f"{case.name} ...\n")
            # Written first, so that a case that ends the process is neither lost nor tried again.
            started = Result(case, size, failure="it ended the process")
            _write(out, {**document, "cases": [*records, started.record()]})
            result = _measure_what_fits(case, size, peaks, 1 if options.interpret else _REPEATS)
        records.append(result.record())
        _write(out, {**document, "cases": records})
        if result.failure and _device_is_lost():
            sys.stderr.write("the device was lost; the other cases go on in a new process\n")
            left = options.seconds - (time.monotonic() - begin)
            again = [*(argv if argv is not None else sys.argv[1:]), "--resume", "--seconds", str(left)]
            os.execv(sys.executable, [sys.executable, __file__, *again])
    _show(records)
    if out is not None:
        sys.stderr.write(f"written to {out}\n")
    return _FAILED if any(record["failure"] for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
