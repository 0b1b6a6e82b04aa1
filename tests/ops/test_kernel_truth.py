"""Every route to a state space kernel against the unrolled recurrence in float64: all bases, steps and lengths."""

import pytest
import torch
from torch import Tensor

from milkweed import ops, ssm
from milkweed.ops import pairs

DT = torch.tensor([1e-4, 1e-3, 1e-2, 1e-1], dtype=torch.float64)
LENGTHS = (1, 2, 63, 1000, 4096, 16384)
MODES = 64
NORMAL = [name for name, basis in ssm.BASES.items() if basis.correction is not None]
# Chebyshev kernels grow after their window as t^(N-1), at N = 64 to 1e25 within this range and beyond float64 at
# dt = 0.1; and the float64 recurrence itself then has no digit that is right. Four functions grow to 1e9 only.
DENSE_SIZES = {"chebt": 4}


def unrolled(a: Tensor, b: Tensor, c: Tensor, length: int, block: int = 128) -> Tensor:
    """c a^l b for a (S, N, N): a loop over vectors for the first lags, then all of these by a plain power of a."""
    columns, power = [b[..., None]], a
    for _ in range(min(block, length) - 1):
        columns.append(a @ columns[-1])
        power = power @ a
    x, lags = torch.cat(columns, -1), []
    for _ in range(-(-length // block)):
        lags.append((c[:, None] @ x)[:, 0])
        x = power @ x
    return torch.cat(lags, -1)[:, :length]


def errors(found: Tensor, exact: Tensor) -> Tensor:
    """The largest error of each kernel relative to its largest entry up to this length."""
    exact = exact[:, : found.shape[-1]]
    return (found.double() - exact).abs().amax(-1) / exact.abs().amax(-1)


def assert_dense_route(a: Tensor, b: Tensor, c: Tensor, tolerance: float = 1e-4) -> Tensor:
    """The dense operation in both precisions, each on the system as that precision has it. Returns the truth."""
    exact, narrow = unrolled(a, b, c, max(LENGTHS)), [t.float() for t in (a, b, c)]
    exact_of_narrow = unrolled(*(t.double() for t in narrow), max(LENGTHS))
    for length in LENGTHS:
        assert (errors(ops.dense_ssm_kernel(a, b, c, length), exact) < 1e-9).all()
        assert (errors(ops.dense_ssm_kernel(*narrow, length), exact_of_narrow) < tolerance).all()
    return exact


def test_the_blocks_of_the_truth_are_a_plain_loop():
    A, B = ssm.hippo("legt", MODES)
    a, b = ssm.discretize(A.expand(4, -1, -1), B.expand(4, -1), DT, "bilinear")
    c = torch.randn(4, MODES, dtype=torch.float64)
    x, lags = b, []
    for _ in range(1000):
        lags.append((c * x).sum(-1))
        x = (a @ x[..., None])[..., 0]
    assert (errors(unrolled(a, b, c, 1000), torch.stack(lags, -1)) < 1e-12).all()


@pytest.mark.parametrize("method", ssm.DISCRETIZATIONS)
@pytest.mark.parametrize("name", ssm.BASES)
def test_dense_route(name, method):
    A, B = ssm.hippo(name, DENSE_SIZES.get(name, MODES - ssm.BASES[name].fourier))
    a, b = ssm.discretize(A.expand(4, -1, -1), B.expand(4, -1), DT, method)
    assert_dense_route(a, b, torch.randn(b.shape, dtype=torch.float64), 1e-4)


@pytest.mark.sampled
@pytest.mark.parametrize("method", ssm.DISCRETIZATIONS)
@pytest.mark.parametrize("name", NORMAL)
def test_dense_and_cauchy_routes_in_the_coordinates_of_layers(name, method):
    Lambda, P, B, _ = ssm.nplr(name, MODES)
    # Where the normal part does not decay, the generating function has a pole at ω = 1.
    Lambda = torch.complex(Lambda.real.clamp_max(-1e-3), Lambda.imag)
    C = torch.randn(4, MODES // 2, dtype=torch.complex128)
    A, b = ssm.real_dplr(Lambda, P, B)
    a, b = ssm.discretize(A.expand(4, -1, -1), b.expand(4, -1), DT, method)
    exact = assert_dense_route(a, b, torch.cat([2 * C.real, -2 * C.imag], -1))
    if method == "bilinear":
        # In float64 only: in float32, I - a^L loses the digits of slow modes, and errors reach 1e-2.
        system = [Lambda.expand(4, -1), P[:, None].expand(-1, 4, -1), B.expand(4, -1), C, DT]
        for length in LENGTHS:
            assert (errors(ssm.cauchy_kernel(*system, length), exact) < 1e-9).all()


@pytest.mark.sampled
@pytest.mark.parametrize("method", ssm.DISCRETIZATIONS)
@pytest.mark.parametrize("name", ssm.DIAGONAL_INITS)
def test_diagonal_route(name, method):
    """With the discretisation of layers, from the same A, dt and C; a loop over complex numbers is the truth."""
    dt_a = ssm.diagonal(name, MODES).to(torch.complex128) * DT[:, None]
    c = torch.randn(dt_a.shape, dtype=torch.complex128)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        narrow_dt_a, narrow_c = (torch.view_as_real(t).to(dtype) for t in (dt_a, c))
        z, weight = (torch.view_as_complex(t.double()) for t in (narrow_dt_a, narrow_c))
        step = torch.exp(z) if method == "zoh" else (1 + z / 2) / (1 - z / 2)
        x = weight * (torch.expm1(z) / z if method == "zoh" else 1 / (1 - z / 2))
        lags = []
        for _ in range(max(LENGTHS)):
            lags.append(x)
            x = x * step
        exact = 2 * torch.stack(lags).real.sum(-1).T
        exponent, scale = ssm.discretize_diagonal(narrow_dt_a, method)
        for length in LENGTHS:
            found = ops.diagonal_ssm_kernel(pairs.multiply(narrow_c, scale), exponent, length)
            assert (errors(found, exact) < tolerance).all()
