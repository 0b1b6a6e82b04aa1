"""What is no tensor is refused by its name, before anything else is asked of it."""

import numpy as np
import pytest
import torch

from milkweed import ops

ONES = torch.ones


@pytest.mark.parametrize("wrong", [None, 3.0, [1.0], "x", np.ones(2)], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("u", lambda x: ops.fft_conv(x, ONES(1, 2))),
        ("kernel", lambda x: ops.fft_conv(ONES(1, 1, 2), x)),
        ("kernel", lambda x: ops.FrozenKernel(x, length=2)),
        ("x", lambda x: ops.monarch_mm(x, ONES(1, 1, 1), ONES(1, 1, 1))),
        ("right", lambda x: ops.monarch_mm(ONES(1, 1), x, ONES(1, 1, 1))),
        ("left", lambda x: ops.monarch_mm(ONES(1, 1), ONES(1, 1, 1), x)),
        ("weight", lambda x: ops.block_diagonal_mm(ONES(1, 1), x)),
        ("c", lambda x: ops.diagonal_ssm_kernel(x, ONES(1, 2), 3)),
        ("u", lambda x: ops.diagonal_ssm_state(x, ONES(1, 1, 2))),
        ("a", lambda x: ops.dense_ssm_kernel(x, ONES(1), ONES(1), 3)),
        ("b", lambda x: ops.dense_ssm_state(ONES(1, 3), ONES(1, 1, 1), x)),
        ("x", lambda x: ops.dense_ssm_advance(x, ONES(1, 1, 1), 2)),
        ("a", lambda x: ops.linear_recurrence(x, ONES(3))),
        ("features", lambda x: ops.implicit_kernel(x, ONES(1), [ONES(1)] * 7, ONES(1))),
    ],
)
def test_no_tensor(name, call, wrong):
    with pytest.raises(TypeError, match=rf"^{name} must be a tensor; got {type(wrong).__name__}; use torch\.as_tensor"):
        call(wrong)


@pytest.mark.parametrize("name", ["reverse_kernel", "skip", "pre_gate", "post_gate"])
def test_what_may_be_missing_must_not_be_something_else(name):
    with pytest.raises(TypeError, match=f"{name} must be a tensor; got float"):
        ops.fft_conv(ONES(1, 1, 2), ONES(1, 2), **{name: 2.0})
    with pytest.raises(TypeError, match=f"{name} must be real floating point; got torch.int64"):
        ops.fft_conv(ONES(1, 1, 2), ONES(1, 2), **{name: torch.ones(1, 2, dtype=torch.int64)})


def test_bias_must_be_a_tensor():
    for call in (
        lambda: ops.block_diagonal_mm(ONES(1, 1), ONES(1, 1, 1), bias=2.0),
        lambda: ops.monarch_mm(ONES(1, 1), ONES(1, 1, 1), ONES(1, 1, 1), bias=2.0),
    ):
        with pytest.raises(TypeError, match="bias must be a tensor; got float"):
            call()
