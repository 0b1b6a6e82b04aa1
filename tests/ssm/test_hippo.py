"""HiPPO matrices: entries, normal corrections, fixed points, Gramians, delays and kernels' step responses."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from milkweed import ssm

SIZES = (1, 2, 3, 16, 64)


def fits(name, d_state):
    """The next smaller size that the basis has."""
    return d_state - 1 if ssm.BASES[name].fourier and d_state % 2 == 0 else d_state


def matrices(name, d_state, **options):
    return tuple(value.numpy() for value in ssm.hippo(name, d_state, **options))


def step_response(A, B, times):
    """∫_0^t e^{sA} B ds = A^-1 (e^{tA} - 1) B, one column per time."""
    return np.stack([np.linalg.solve(A, (scipy.linalg.expm(t * A) - np.eye(len(A))) @ B) for t in times], 1)


def test_legs_entries():
    A, B = matrices("legs", 64)
    n = np.arange(64)
    assert np.allclose(A.diagonal(), -(n + 1))
    assert A[5, 2] == -math.sqrt(11) * math.sqrt(5)
    assert (np.triu(A, 1) == 0).all()
    assert np.allclose(B, np.sqrt(2 * n + 1))


def test_legt_lmu_and_fout_entries():
    A, B = matrices("legt", 6)
    for n in range(6):
        assert B[n] == math.sqrt(2 * n + 1) / 2
        for k in range(6):
            assert A[n, k] == pytest.approx(
                -math.sqrt((2 * n + 1) * (2 * k + 1)) / 2 * (1 if k <= n else (-1) ** (n - k))
            )
    A, B = matrices("lmu", 6)
    for i in range(6):
        assert B[i] == (-1) ** i * (2 * i + 1)
        for j in range(6):
            assert A[i, j] == (2 * i + 1) * (-1 if i < j else (-1) ** (i - j + 1))
    A, B = matrices("fout", 5)
    assert np.allclose(B, [1, 2**0.5, 0, 2**0.5, 0])
    S = A + np.outer(B, B)
    assert np.allclose(np.sort(np.linalg.eigvals(S).imag), np.pi * np.array([-2, -1, 0, 1, 2]))
    # sin grows from cos: d/dt [cos, sin] = w [-sin, cos].
    assert S[1, 2] == -math.pi
    assert S[4, 3] == 2 * math.pi


@pytest.mark.parametrize("d_state", SIZES)
@pytest.mark.parametrize("name", [name for name, entry in ssm.BASES.items() if entry.correction])
def test_normal_correction(name, d_state):
    d_state, entry = fits(name, d_state), ssm.BASES[name]
    A, _ = matrices(name, d_state)
    P = entry.correction(d_state).numpy()
    skew = A + P.T @ P - entry.damping * np.eye(d_state)
    assert np.abs(skew + skew.T).max() < 1e-12
    assert P.shape == (entry.rank, d_state)


def test_ranks_are_those_of_the_matrices():
    ranks = {name: entry.rank for name, entry in ssm.BASES.items()}
    assert ranks == {
        "legs": 1, "legsd": 0, "legt": 2, "lmu": None, "fout": 1, "fourier_decay": 1, "foud": 0, "lagt": 1, "glagt": 1,
        "chebt": None,
    }  # fmt: skip
    # No multiple of the identity beside a low rank: the symmetric part has many different eigenvalues.
    for name in ("lmu", "chebt"):
        A, _ = matrices(name, 16)
        values = np.linalg.eigvalsh(A + A.T)
        assert len(np.unique(values.round(6))) > 8
    A, _ = matrices("glagt", 16, alpha=0.5)
    assert len(np.unique(np.linalg.eigvalsh(A + A.T).round(6))) > 8


def test_corrections_of_the_spec():
    n = np.arange(8)
    assert np.allclose(ssm.BASES["legs"].correction(8), np.sqrt(n + 0.5))
    expected = np.stack([np.where(n % 2 == 1, np.sqrt(n + 0.5), 0), np.where(n % 2 == 0, np.sqrt(n + 0.5), 0)])
    assert np.allclose(ssm.BASES["legt"].correction(8), expected)
    assert np.allclose(ssm.BASES["fout"].correction(9), matrices("fout", 9)[1])


def test_legsd_is_the_normal_part_of_legs():
    A, B = matrices("legs", 16)
    normal, half = matrices("legsd", 16)
    assert np.allclose(normal, A + np.outer(B, B) / 2, atol=1e-13)
    assert np.allclose(half, B / 2)


def test_fourier_decay_and_foud():
    A, B = matrices("fout", 9)
    S = A + np.outer(B, B)
    decay, half = matrices("fourier_decay", 9)
    assert np.allclose(decay, S - np.outer(B, B) / 2)
    assert np.allclose(half, B / 2)
    damped, half = matrices("foud", 9)
    assert np.allclose(damped, 2 * S - np.eye(9) / 2)
    assert np.allclose(half, B / 2)


def test_legs_eigenvalues():
    A, _ = matrices("legs", 16)
    assert np.sort(-np.linalg.eigvals(A).real) == pytest.approx(np.arange(1, 17))


@pytest.mark.parametrize("name", ["legs", "legsd", "legt", "lmu", "fout", "fourier_decay"])
@pytest.mark.parametrize("d_state", [1, 3, 17, 63])
def test_a_constant_settles_at_the_first_coefficient(name, d_state):
    A, B = ssm.hippo(name, d_state)
    first = torch.eye(d_state, dtype=torch.float64)[0]
    assert (-torch.linalg.solve(A, B) - first).abs().max() < 1e-12
    for method in ("zoh", "bilinear"):
        a_bar, b_bar = ssm.discretize(A, B, 0.05, method)
        kept = a_bar @ first + b_bar
        assert (kept - first).abs().max() < 1e-12


def test_gramians():
    A, B = matrices("legs", 16)
    X = scipy.linalg.solve_continuous_lyapunov(A, -np.outer(B, B))
    assert np.abs(X.diagonal() - 0.5).max() < 1e-12
    assert X[0, 1] == pytest.approx(0.288675, abs=1e-6)
    A, B = matrices("fout", 63)
    X = scipy.linalg.solve_continuous_lyapunov(A, -np.outer(B, B))
    assert np.abs(X - np.eye(63) / 2).max() < 1e-12


def test_lmu_is_legt_in_other_coordinates():
    A, B = matrices("legt", 64)
    n = np.arange(64)
    D = (-1.0) ** n * np.sqrt(2 * n + 1)
    lmu, b = matrices("lmu", 64)
    assert np.abs((D[:, None] * 2 * A / D - lmu) / lmu).max() < 1e-14
    assert np.abs((D * 2 * B - b) / b).max() < 1e-14


def test_fout_step_response_is_two_halves():
    # The kernel of C = B is half a delta now and half one that leaves the window.
    inside, after = np.linspace(0.2, 1.8, 9), np.linspace(2.2, 5, 8)
    errors = []
    for d_state in (33, 129):
        A, B = matrices("fout", d_state)
        errors.append(
            max(np.abs(B @ step_response(A, B, inside) - 0.5).max(), np.abs(B @ step_response(A, B, after) - 1).max())
        )
    assert errors[1] < 0.004
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize(("name", "d_state"), [("legt", 32), ("fout", 129)])
def test_delay_readout(name, d_state):
    A, B = matrices(name, d_state)
    n = np.arange(d_state)
    C, D = (np.sqrt(2 * n + 1) * (-1.0) ** n, 0) if name == "legt" else (2 * B, -1)
    # The transfer function of a pure delay of 2 is e^{-2iw}.
    for omega in (0.1, 1.0, 3.0, 8.0):
        transfer = C @ np.linalg.solve(1j * omega * np.eye(d_state) - A, B) + D
        assert abs(transfer - np.exp(-2j * omega)) < (1e-9 if name == "legt" else 0.06)
    if name == "fout":
        errors = []
        for size in (33, 129):
            A, B = matrices(name, size)
            errors.append(abs(2 * B @ np.linalg.solve(3j * np.eye(size) - A, B) - 1 - np.exp(-6j)))
        assert errors[1] < errors[0] / 3


def test_mean_memory():
    # sum over t of K_0(t) t = (A^-2 B)_0: the mean of the measure, as p_0 = 1.
    for name, mean in (("legs", 1), ("legt", 1), ("fout", 1), ("lmu", 0.5), ("fourier_decay", 2)):
        A, B = matrices(name, 63)
        tolerance = 0.01 if ssm.BASES[name].fourier else 1e-9
        assert np.linalg.solve(A, np.linalg.solve(A, B))[0] == pytest.approx(mean, abs=tolerance)


def test_a_scaled_system_stretches_its_kernels():
    A, B = ssm.hippo("legs", 8)
    times = torch.linspace(0, 4, 9, dtype=torch.float64)
    stretched = ssm.basis(0.25 * A, 0.25 * B, 4 * times)
    assert (stretched - 0.25 * ssm.basis(A, B, times)).abs().max() < 1e-12


def test_chebt_forgets_nothing():
    A, _ = matrices("chebt", 6)
    assert (np.linalg.matrix_power(A, 6) == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ssm.hippo("legss", 4), "did you mean 'legs'"),
        (lambda: ssm.hippo("legs", 0), "d_state must be at least 1; got 0"),
        (lambda: ssm.hippo("fout", 64), "odd d_state.*got d_state=64; use 63 or 65"),
        (lambda: ssm.hippo("foud", 2), "use 1 or 3"),
        (lambda: ssm.hippo("legs", 4, alpha=0.5), "belong to name='glagt'; got alpha=0.5"),
        (lambda: ssm.hippo("glagt", 4, alpha=1.0), "-1 < alpha < 1 and beta > 0; got alpha=1.0"),
        (lambda: ssm.hippo("glagt", 4, beta=0.0), "beta=0.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
