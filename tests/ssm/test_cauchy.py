import pytest
import torch

from milkweed import ops, ssm


@pytest.mark.parametrize("name", ["legs", "legt", "fout"])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 1000])
@pytest.mark.parametrize("dt", [1e-4, 1e-2, 1e-1])
def test_both_routes_are_the_unrolled_recurrence(name, length, dt):
    Lambda, P, B, _ = ssm.nplr(name, 16)
    Lambda = Lambda - 1e-3  # the normal parts of LegT and FouT do not decay, and have a pole at ω = 1
    C = torch.randn(8, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    step = torch.tensor([dt], dtype=torch.float64)
    found = ssm.cauchy_kernel(Lambda[None], P[:, None], B[None], C[None], step, length)[0]
    A, b = ssm.real_dplr(Lambda, P, B)
    a, b = ssm.discretize(A, b, dt, "bilinear")
    c = torch.cat([2 * C.real, -2 * C.imag])
    x, expected = b, []
    for _ in range(length):
        expected.append(c @ x)
        x = a @ x
    expected = torch.stack(expected)
    scale = expected.abs().max()
    assert (found - expected).abs().max() < 1e-9 * scale
    assert (ops.dense_ssm_kernel(a, b, c, length) - expected).abs().max() < 1e-10 * scale
