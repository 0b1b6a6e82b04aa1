import math
import re

import pytest
import torch

from milkweed.benchmarks import Figure, all_cases
from milkweed.benchmarks.cases import fft_conv, monarch, s4d
from milkweed.benchmarks.run import relative_errors

CASES = all_cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_sides_pass_their_check(case):
    pair = case.build(case.tiny)
    expected = pair.reference()
    for side in (pair.ours, pair.baseline):
        errors = relative_errors(side(), expected)
        assert errors.keys() == expected.keys()
        assert all(error <= pair.tolerance for error in errors.values()), errors
    assert all(truth.dtype is torch.float64 for truth in expected.values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case_is_well_described(case):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", case.name)
    assert case.size.keys() == case.tiny.keys()
    assert case.description
    assert case.against


@pytest.mark.parametrize("name", ["fft-conv-train", "fft-conv-gated-train", "s4d-kernel-train", "monarch-train-4"])
def test_training_differentiates_every_input(name):
    (case,) = (case for case in CASES if case.name == name)
    outputs = case.build(case.tiny).reference()
    assert case.figure is Figure.TRAINING
    assert sum(key.startswith("gradient of ") for key in outputs) >= 2
    assert all(torch.count_nonzero(x) for x in outputs.values())


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def test_one_shot_convolution_is_the_sum_over_lags():
    length = 6
    tensors = {
        "u": draw(2, 3, length),
        "kernel": draw(3, length),
        "reverse_kernel": draw(3, length) + 1,
        "skip": draw(3),
        "pre_gate": draw(2, 3, length) + 2,
        "post_gate": draw(2, 3, length) + 3,
    }
    v = tensors["pre_gate"] * tensors["u"]
    expected = tensors["skip"][:, None] * v
    for t in range(length):
        for s in range(length):
            lag = tensors["kernel"][:, t - s] if s <= t else tensors["reverse_kernel"][:, s - t - 1]
            expected[..., t] += lag * v[..., s]
    expected *= tensors["post_gate"]
    torch.testing.assert_close(fft_conv.one_shot(tensors), expected)


def test_two_bmm_is_the_monarch_matrix():
    k, q, p, blocks, s = 3, 4, 5, 2, 7
    right, left = draw(k, q, p), draw(blocks, s, k * q // blocks)
    matrix = torch.zeros(s * blocks, k * p, dtype=torch.float64)
    for hidden in range(k * q):
        block, column = hidden % blocks, hidden // blocks
        for out in range(s):
            for i in range(p):
                source = hidden // q
                matrix[out * blocks + block, source * p + i] += left[block, out, column] * right[source, hidden % q, i]
    x = draw(6, k * p)
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
