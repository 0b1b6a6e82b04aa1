"""Normal plus low rank: equal to the matrices, unitary, contractive in real coordinates."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from milkweed import ssm

NORMAL = [name for name, entry in ssm.BASES.items() if entry.correction]


def dense(name, d_state):
    return ssm.hippo(name, d_state - 1 if ssm.BASES[name].fourier and d_state % 2 == 0 else d_state)


@pytest.mark.parametrize("d_state", [1, 2, 5, 16, 63, 64])
@pytest.mark.parametrize("name", NORMAL)
def test_nplr_is_the_matrix(name, d_state):
    A, B = dense(name, d_state)
    Lambda, P, b, V = ssm.nplr(name, d_state)
    modes = (d_state + 1) // 2
    assert (Lambda.shape, P.shape, b.shape, V.shape) == (
        (modes,), (ssm.BASES[name].rank, modes), (modes,), (len(A), modes),
    )  # fmt: skip
    assert all(value.dtype == torch.complex128 for value in (Lambda, P, b, V))
    whole = torch.cat([V, V.conj()], 1)
    core = torch.diag(torch.cat([Lambda, Lambda.conj()]))
    for row in torch.cat([P, P.conj()], 1):
        core = core - torch.outer(row, row.conj())
    scale = A.abs().max().clamp_min(1)
    assert (whole @ core @ whole.conj().T - A).abs().max() < 1e-13 * scale
    assert (2 * (V @ b).real - B).abs().max() < 1e-12
    # V and its conjugate are an orthonormal basis; a real mode is split over both.
    assert (whole @ whole.conj().T - torch.eye(len(A))).abs().max() < 1e-13
    assert (Lambda.real == ssm.BASES[name].damping).all()
    assert (Lambda.imag.diff() > 0).all()
    assert (Lambda.imag[0] == 0) == (len(A) % 2 == 1)
    assert b.imag.abs().max() < 1e-12 * d_state
    assert (b.real >= 0).all()


@pytest.mark.parametrize("d_state", [2, 5, 16, 64])
@pytest.mark.parametrize("name", NORMAL)
def test_real_coordinates_have_the_same_kernel(name, d_state):
    A, B = dense(name, d_state)
    Lambda, P, b, V = ssm.nplr(name, d_state, rank=3)
    real_a, real_b = ssm.real_dplr(Lambda, P, b)
    assert real_a.shape == (2 * len(Lambda), 2 * len(Lambda))
    C = torch.randn(len(A), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c = C.to(V) @ V
    times = torch.linspace(0, 1, 5).double()
    expected = C @ ssm.basis(A, B, times)
    got = torch.cat([2 * c.real, -2 * c.imag]) @ ssm.basis(real_a, real_b, times)
    assert (got - expected).abs().max() < 1e-10


def test_real_coordinates_by_hand():
    a, p, b = -0.5 + 3j, 1 + 2j, 1 - 1j
    A, B = ssm.real_dplr(*(torch.tensor(v, dtype=torch.complex128) for v in ([a], [[p]], [b])))
    # z' = a z - p · 2 Re(p* z) + b u at z = 1 and z = i.
    for z, column in ((1, A[:, 0]), (1j, A[:, 1])):
        change = a * z - p * 2 * (p.conjugate() * z).real
        assert column.tolist() == pytest.approx([change.real, change.imag])
    assert B.tolist() == [1, -1]


def test_real_coordinates_never_grow():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.complex128, generator=generator)

    Lambda = torch.complex(-draw(6, 4).real.abs(), 100 * draw(6, 4).real)
    A, B = ssm.real_dplr(Lambda, 5 * draw(6, 2, 4), draw(6, 4))
    assert (A.shape, B.shape) == ((6, 8, 8), (6, 8))
    assert torch.linalg.eigvalsh(A + A.mT).max() < 1e-12
    for method in ("zoh", "bilinear"):
        a_bar, _ = ssm.discretize(A, B, torch.full((6,), 0.1), method)
        assert torch.linalg.matrix_norm(a_bar, 2).max() <= 1 + 1e-12


def test_real_dplr_is_differentiable():
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(*shape, dtype=torch.complex128, generator=generator).requires_grad_()
        for shape in ((3,), (2, 3), (3,))
    ]
    assert torch.autograd.gradcheck(ssm.real_dplr, inputs)


def test_rank_is_padded_with_zeros():
    plain, padded = ssm.nplr("legs", 8), ssm.nplr("legs", 8, rank=3)
    assert torch.equal(padded.P[:1], plain.P)
    assert (padded.P[1:] == 0).all()
    assert ssm.nplr("legsd", 8).P.shape == (0, 4)
    assert ssm.nplr("legsd", 8, rank=1).P.shape == (1, 4)


def test_odd_and_even_sizes_of_fourier_bases_are_one():
    for one, other in zip(ssm.nplr("fout", 63), ssm.nplr("fout", 64), strict=True):
        assert torch.equal(one, other)
    assert torch.allclose(ssm.nplr("fout", 64).Lambda.imag, torch.pi * torch.arange(32).double())


def test_energy_of_b():
    for d_state in (4, 64):
        assert 2 * ssm.nplr("legs", d_state).B.abs().square().sum() == pytest.approx(d_state**2, rel=1e-12)


@pytest.mark.parametrize("name", ["legs", "legt", "fout"])
@pytest.mark.parametrize("d_state", [7, 64])
def test_clipping_b(name, d_state):
    B = dense(name, d_state)[1]
    Lambda, P, b, V = ssm.nplr(name, d_state, 3, b_clip=2.0)
    plain = ssm.nplr(name, d_state, 3)
    # The same eigenvectors but for their phases, with those of public code: the first entry is real.
    assert V[0].imag.abs().max() < 1e-14
    assert (V @ V.conj().T - plain.V @ plain.V.conj().T).abs().max() < 1e-13
    assert torch.equal(Lambda, plain.Lambda)
    assert (
        P - ssm.nplr(name, d_state, 3).P * (V.conj() * plain.V).sum(0) / V.abs().square().sum(0)
    ).abs().max() < 1e-12
    unclipped = V.conj().T @ B.to(V)
    assert (b - torch.complex(unclipped.real, unclipped.imag.clamp(-2, 2))).abs().max() < 1e-12 * d_state
    lost = (2 * (V @ b).real - B).norm() / B.norm()
    assert lost > 0.5 if (name, d_state) == ("legs", 64) else lost < 1


def test_clipping_is_what_a_layer_of_version_4_started_from():
    # The file's B is the clipped one plus noise of 0.05; signs of eigenvectors are arbitrary, and it holds conjugates.
    stored = load_file(Path(__file__).parents[1] / "golden" / "s4_dplr_legs.safetensors")
    theirs = torch.view_as_complex(stored["layer.kernel.B"])[0].to(torch.complex128).flip(-1)
    ours = ssm.nplr("legs", 16, b_clip=2.0).B.conj()
    signs = torch.sign((theirs * ours.conj()).real)
    assert (theirs * signs - ours).abs().max() < 0.3
    assert (theirs * signs - ours).abs().mean() < 0.1
    assert ssm.nplr("legs", 16).B.abs().max() > 10


def test_output_variance_is_near_the_inputs():
    # With an orthonormal basis |x|² is the mean square of the past, and C ~ CN(0, I) reads it out unchanged.
    generator = np.random.default_rng(0)
    t = np.arange(3000) * 0.01
    u = sum(np.sqrt(2 / 30) * np.cos(w * t + phase) for w, phase in generator.uniform(0, 2 * np.pi, (30, 2)))
    Lambda, P, b, _ = ssm.nplr("legs", 64)
    A, B = ssm.real_dplr(Lambda, P, b)
    a_bar, b_bar = ssm.discretize(A, B, 0.01)
    state, states = torch.zeros_like(b_bar), []
    for value in u:
        state = a_bar @ state + b_bar * value
        states.append(state)
    C = torch.randn(64, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5**0.5
    y = 2 * torch.stack(states[500:]) @ C
    assert y.var() == pytest.approx(np.var(u[500:]), rel=0.15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ssm.nplr("lmu", 4), "not normal plus low rank; use 'legt'.*fout, .*legs"),
        (lambda: ssm.nplr("chebt", 4), "name='chebt' is not normal plus low rank. These are: foud"),
        (lambda: ssm.nplr("legss", 4), "did you mean 'legs'"),
        (lambda: ssm.nplr("legt", 4, rank=1), "name='legt' needs rank >= 2; got rank=1"),
        (lambda: ssm.nplr("legs", 4, b_clip=0.0), "b_clip must be above 0, or None for the basis as it is; got 0.0"),
        (lambda: ssm.nplr("fout", 0), "d_state must be at least 1; got 0"),
        (lambda: ssm.real_dplr(*[torch.zeros(1, 1)] * 3), "must be complex; got torch.float32"),
        (
            lambda: ssm.real_dplr(torch.zeros(3) + 0j, torch.zeros(3) + 0j, torch.zeros(3) + 0j),
            r"P \(..., rank, M\).*got \(3,\), \(3,\)",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
