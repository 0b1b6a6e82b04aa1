"""Every case at its tiny size on the CPU, and the plain formulas that the others are measured against."""

import math

import pytest
import torch

from benchmarks.case import Figure, all_cases, draw
from benchmarks.cases import fft_conv, monarch, s4d
from benchmarks.differentiable import by_backend, conv_flops, differentiable, values
from benchmarks.runner import relative_errors

ON_CPU = [case for case in all_cases() if case.device == "cpu"]


def tiny(case):
    return case.make({**case.tiny, "length": 16} if case.lengths else case.tiny)


@pytest.mark.parametrize("case", ON_CPU, ids=lambda case: case.name)
def test_both_sides_pass_their_check_and_have_a_floor(case):
    work = tiny(case)
    truth = work.truth()
    assert work.sides.keys() == {"ours", "peer"} == truth.keys() == work.tolerances.keys()
    for side, call in work.sides.items():
        errors = relative_errors(work.part(call()), truth[side])
        assert errors.keys() == truth[side].keys()
        assert all(error <= work.tolerances[side] for error in errors.values()), errors
        assert all(true.dtype is torch.float64 for true in truth[side].values())
    if case.figure is Figure.EXTRA_SECONDS:
        assert work.flops == work.bytes == 0
    else:
        assert work.flops > 0
        assert work.bytes > 0


@pytest.mark.parametrize("name", ["fft-conv-train", "fft-conv-gated-train", "s4d-kernel-train", "monarch-train-4"])
def test_training_differentiates_every_input(name):
    (case,) = (case for case in ON_CPU if case.name == name)
    outputs = case.make(case.tiny).truth()["ours"]
    assert case.figure is Figure.TRAINING
    assert sum(key.startswith("gradient of ") for key in outputs) >= 2
    assert all(torch.count_nonzero(x) for x in outputs.values())


def test_floors_count_what_must_be_done():
    by_name = {case.name: case for case in ON_CPU}
    size = {"batch": 3, "features": 64, "nblocks": 4}
    forward, training = (by_name[f"monarch-{kind}-4"].make(size) for kind in ("forward", "train"))
    entries = 2 * 64 * 64 // 4
    assert forward.flops == 2 * 3 * entries
    assert training.flops == 3 * forward.flops
    assert forward.bytes == 4 * (2 * 3 * 64 + entries)
    # Input and factors are read in each pass, the output is written, its gradient read, and three gradients written.
    assert training.bytes == 4 * (2 * (3 * 64 + entries) + 2 * 3 * 64 + 3 * 64 + entries)
    # Two transforms of 2 L numbers for every signal and one for every kernel; twice that with gradients.
    once = 2.5 * 64 * math.log2(64)
    assert conv_flops(2, 5, 32, training=False) == pytest.approx(5 * (2 * 2 + 1) * once)
    assert conv_flops(2, 5, 32, training=True) == pytest.approx(2 * 5 * (2 * 2 + 1) * once)
    gated = by_name["fft-conv-gated-train"].make({"batch": 2, "channels": 5, "length": 32})
    signal, kernel = 4 * 2 * 5 * 32, 4 * 5 * 32
    # As above, with four signals, two kernels and the skip term.
    assert gated.bytes == 2 * 3 * signal + 2 * signal + 3 * signal + 3 * (2 * kernel + 4 * 5)


def test_only_the_part_that_is_asked_for_is_compared():
    inputs = {"x": draw(6, 3, gradient=True), "weight": draw(3, 3, gradient=True)}

    def product(tensors):
        return tensors["x"] @ tensors["weight"]

    work = differentiable(
        by_backend(lambda tensors, backend: product(tensors), product),
        product,
        inputs,
        torch.ones(6, 3),
        training=True,
        tolerance=1e-6,
        flops=1,
        part=lambda name, x: x[:2] if name in {"x", "output"} else x,
    )
    assert list(work.sides) == ["ours", "eager", "peer"]
    found, truth = work.part(work.sides["ours"]()), work.truth()["ours"]
    for outputs in (found, truth):
        assert {name: tuple(x.shape) for name, x in outputs.items()} == {
            "output": (2, 3),
            "gradient of x": (2, 3),
            "gradient of weight": (3, 3),
        }
    torch.testing.assert_close(found["output"].double(), truth["output"])
    assert values(product, inputs, None).keys() == {"output"}


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def test_one_shot_convolution_is_the_sum_over_lags():
    length = 6
    tensors = {
        "u": random(2, 3, length),
        "kernel": random(3, length),
        "reverse_kernel": random(3, length) + 1,
        "skip": random(3),
        "pre_gate": random(2, 3, length) + 2,
        "post_gate": random(2, 3, length) + 3,
    }
    v = tensors["pre_gate"] * tensors["u"]
    expected = tensors["skip"][:, None] * v
    for t in range(length):
        for s in range(length):
            lag = tensors["kernel"][:, t - s] if s <= t else tensors["reverse_kernel"][:, s - t - 1]
            expected[..., t] += lag * v[..., s]
    expected *= tensors["post_gate"]
    torch.testing.assert_close(fft_conv.one_shot(tensors), expected)
    torch.testing.assert_close(fft_conv.half_one_shot(tensors), expected)


def test_two_bmm_is_the_monarch_matrix():
    k, q, p, blocks, s = 3, 4, 5, 2, 7
    right, left = random(k, q, p), random(blocks, s, k * q // blocks)
    matrix = torch.zeros(s * blocks, k * p, dtype=torch.float64)
    for hidden in range(k * q):
        block, column = hidden % blocks, hidden // blocks
        for out in range(s):
            for i in range(p):
                source = hidden // q
                matrix[out * blocks + block, source * p + i] += left[block, out, column] * right[source, hidden % q, i]
    x = random(6, k * p)
    torch.testing.assert_close(monarch.two_bmm({"x": x, "right": right, "left": left}), x @ matrix.T)


def test_plain_kernel_is_the_sum_of_damped_cosines():
    decay, frequency, size, phase = 0.3, 1.1, 0.7, 0.4
    lags = torch.arange(5, dtype=torch.float64)
    kernel = s4d.plain_kernel(
        {
            "c": torch.tensor([[[size * math.cos(phase), size * math.sin(phase)]]], dtype=torch.float64),
            "dt_a": torch.tensor([[[-decay, frequency]]], dtype=torch.float64),
            "lags": lags,
        }
    )
    expected = 2 * size * torch.exp(-decay * lags) * torch.cos(frequency * lags + phase)
    torch.testing.assert_close(kernel, expected[None])
