# %% [markdown]
# # S4D from HiPPO
#
# A diagonal state space layer, S4D, starts from N/2 complex numbers and a vector of ones, and works. This script
# derives them: from a basis in which a signal's past is remembered, over a matrix that cannot be diagonalised in
# floating point, to its normal part, which can, and on to the kernel and the layer. Every claim it prints is asserted
# on the way.
#
#     python examples/s4d_from_hippo.py --figures docs/results/s4d-convergence
#
# takes seconds and needs rich; the figure is optional and needs matplotlib.

# %%
import argparse
import math
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import milkweed as mw

torch.set_num_threads(1)  # such small matrices are done before they are shared out
torch.manual_seed(0)
console = Console()

# Jupyter passes arguments of its own; without abbreviations none of them can be mistaken for --figures.
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--figures", type=Path, help="folder for the figure of section 6")
figures = parser.parse_known_args()[0].figures


def show(headings, rows):
    table = Table()
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, str) else f"{cell:.3g}" for cell in row))
    console.print(table)


def section(number, title):
    console.print(f"\n[bold]{number}. {title}[/bold]")


def largest(x):
    return x.abs().max().item()


# %% [markdown]
# ## 1. A state space is a set of filters
#
# The states of x' = A x + B u are x_n(t) = ∫ K_n(s) u(t − s) ds with kernels K(s) = e^{sA} B. HiPPO chooses A and B so
# that K_n = p_n ω, with functions p_n that are orthonormal under a measure ω. Then x_n = ⟨past of u, p_n⟩_ω: the states
# are the coefficients of the past in a basis. For LegS,
#
#     A_nk = −√(2n+1) √(2k+1) below the diagonal, −(n+1) on it, 0 above;   B_n = √(2n+1)
#     p_n(t) = √(2n+1) P_n(2e^{−t} − 1)   with Legendre's P_n,   ω(t) = e^{−t}

# %%
N = 64
t = torch.linspace(0, 6, 301, dtype=torch.float64)


def legendre(n):
    """P_n(2z − 1) on 0 ≤ z ≤ 1."""
    return np.polynomial.Legendre.basis(n, domain=[0, 1])


def legs_functions(count, times):
    """(count, T): p_n."""
    z = np.exp(-times.numpy())
    return torch.from_numpy(np.stack([math.sqrt(2 * n + 1) * legendre(n)(z) for n in range(count)]))


A, B = mw.ssm.hippo("legs", N)
kernels = mw.ssm.basis(A, B, t)  # e^{tA} B
formula_error = largest(kernels - legs_functions(N, t) * torch.exp(-t))

# ∫ p_n p_m ω dt = ∫ p_n p_m dz with z = e^{−t} from 0 to 1: a polynomial, on which Gauss' quadrature is exact.
nodes, weights = np.polynomial.legendre.leggauss(N)
p = legs_functions(N, torch.from_numpy(-np.log((nodes + 1) / 2)))
orthonormality_error = largest(p * torch.from_numpy(weights / 2) @ p.T - torch.eye(N))

section(1, f"LegS, N = {N}")
print(f"e^(tA) B is √(2n+1) e^-t P_n(2e^-t - 1) within {formula_error:.0e} on 0 ≤ t ≤ 6,")
print(f"the functions are orthonormal under e^-t within {orthonormality_error:.0e}.")

assert formula_error < 1e-11
assert orthonormality_error < 1e-12
# A is lower triangular: a larger N adds functions and leaves the first ones as they are.
assert torch.equal(A[:4, :4], mw.ssm.hippo("legs", 4)[0])
assert not A.triu(1).any()

# %% [markdown]
# ## 2. A signal's past, online
#
# One product per sample keeps the coefficients up to date, and u(now − s) ≈ Σ x_n p_n(s) reads the past back. As the
# basis is orthonormal, no other combination of the first N functions is closer in the norm of ω, and what is missing
# follows from the coefficients alone: ‖u‖² − Σ x_n².

# %%
dt = 0.005
time = (torch.arange(1000, dtype=torch.float64) + 0.5) * dt
u = torch.sin(3 * time) + torch.sin(11 * time) / 2
edges = torch.arange(len(u) + 1, dtype=torch.float64).flip(0) * dt  # of the samples, how long ago


def legs_integrals(count, times):
    """(count, T): ∫_0^t K_n(s) ds = √(2n+1) ∫_{e^{−t}}^1 P_n(2z − 1) dz, the response to a step."""
    z = np.exp(-times.numpy())
    integrals = [math.sqrt(2 * n + 1) * legendre(n).integ() for n in range(count)]
    return torch.from_numpy(np.stack([f(1) - f(z) for f in integrals]))


exact = -legs_integrals(N, edges).diff(dim=1) @ u  # ⟨u, p_n⟩_ω of a signal that is held over each sample
energy = (torch.exp(-edges).diff() @ u.square()).item()  # ‖u‖²

ago = (torch.arange(4 * len(u), dtype=torch.float64) + 0.5) * dt  # back to before there was a signal
past = torch.cat([u.flip(0), torch.zeros(3 * len(u))])
memory, states = [], {}
for size in (8, 16, 32, 64):
    reconstruction = mw.ssm.Reconstruction("legs", size, dt=dt)
    states[size] = reconstruction.coefficients(u)
    x = states[size][-1]
    wrong = reconstruction.past(x, ago) - past
    missing = math.sqrt((energy - x.square().sum().item()) / energy)
    measured = math.sqrt((wrong.square() @ torch.exp(-ago)).item() * dt / energy)
    memory.append((str(size), largest(x - exact[:size]), missing, measured))

section(2, "A signal of 1,000 samples as N numbers")
show(("N", "coefficients, against ⟨u, p_n⟩", "‖u‖² - Σ x_n²", "error of the past"), memory)
print("The last two relative to ‖u‖, the first of them as its root: one number, found in two ways.")

for _, error, missing, measured in memory:
    assert error < 1e-13
    assert abs(missing - measured) < 1e-2 * measured
assert memory[-1][2] < 0.1 < 0.4 < memory[0][2]

# %% [markdown]
# ## 3. Why not simply diagonalise A
#
# A is triangular with eigenvalues −1 … −N, all distinct. Its eigenvectors are known: p_n ω is a sum of powers z^{k+1}
# of z = e^{−t}, that is of exponentials e^{−(k+1)t}. So V holds the coefficients of Legendre polynomials, its inverse
# those of powers in Legendre polynomials, and K(t) = V e^{−(k+1)t}. But the coefficients alternate in sign and are
# huge. Whatever the length of the eigenvectors v_k, with w_k the rows of the inverse, the condition number of their
# matrix (in Frobenius norm) is at least κ = Σ ‖v_k‖ ‖w_k‖.


# %%
def eigenvectors(size):
    """V and its inverse, by the closed forms."""
    n, k = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    gap = torch.lgamma((n - k).clamp_min(0) + 1)
    root = torch.log(2 * n + 1) / 2
    v = torch.exp(root + torch.lgamma(n + k + 1) - gap - 2 * torch.lgamma(k + 1)) * (1 - 2 * ((n + k) % 2))
    w = torch.exp(root.T + 2 * torch.lgamma(n + 1) - gap - torch.lgamma(n + k + 2))
    return v.tril(), w.tril()


def kernel_by_eigenvalues(A, B):
    """e^{tA} B from the eigenvectors that LAPACK finds."""
    eigenvalues, found = torch.linalg.eig(A)
    return (found * torch.linalg.solve(found, B.to(found)) @ torch.exp(eigenvalues[:, None] * t)).real


v, w = eigenvectors(8)
A8, B8 = mw.ssm.hippo("legs", 8)
assert largest(A8 @ v + v * torch.arange(1, 9)) < 1e-13 * largest(v)
assert largest(w @ v - torch.eye(8)) < 1e-9
assert largest(w @ B8 - 1) < 1e-12

kappa, by_eigenvalues = {}, {}
for size in (8, 16, 32, 64):
    v, w = eigenvectors(size)
    kappa[size] = (v.norm(dim=0) @ w.norm(dim=1)).item()
    A_size, B_size = mw.ssm.hippo("legs", size)
    difference = kernel_by_eigenvalues(A_size, B_size) - legs_functions(size, t) * torch.exp(-t)
    by_eigenvalues[size] = largest(difference)

# %% [markdown]
# ## 4. Normal plus low rank
#
# A matrix with unitary eigenvectors is called normal, and A becomes normal by adding one outer product: with
# P_n = √(n + ½), 2 P_n P_k is just what stands below the diagonal of −A, so that
#
#     A + P Pᵀ = −½ I + S   with S skew.
#
# −iS is Hermitian: real eigenvalues, orthonormal eigenvectors, both as exact as floating point can be.
# `mw.ssm.nplr` keeps one of each conjugate pair, A = 2 Re(V Λ V*) − P Pᵀ.

# %%
normal_part = {}
for size in (8, 16, 32, 64):
    A_size, _ = mw.ssm.hippo("legs", size)
    P = torch.sqrt(torch.arange(size, dtype=torch.float64) + 0.5)
    skew = A_size + torch.outer(P, P) + torch.eye(size) / 2
    Lambda, _, _, V = mw.ssm.nplr("legs", size)
    whole = torch.cat([V, V.conj()], 1)
    again = 2 * ((V * Lambda) @ V.mH).real - torch.outer(P, P)
    normal_part[size] = largest(whole.mH @ whole - torch.eye(size)), largest(again - A_size) / largest(A_size)
    assert largest(skew + skew.T) < 1e-12
    assert torch.equal(Lambda.real, torch.full_like(Lambda.real, -0.5))

section("3 and 4", "Eigenvectors of A, and of its normal part A + P Pᵀ = -½ I + skew")
rows = [(str(s), f"{kappa[s]:.0e}", f"{by_eigenvalues[s]:.0e}", *map("{:.0e}".format, normal_part[s])) for s in kappa]
show(("N", "κ of A", "kernel through them", "normal: V*V - I", "A put together again"), rows)
growth = (kappa[64] / kappa[32]) ** (1 / 32)
print(f"With every further coefficient κ grows {growth:.2f}-fold; (1 + √2)² = {(1 + math.sqrt(2)) ** 2:.2f}.")

assert abs(growth - (1 + math.sqrt(2)) ** 2) < 0.1
assert kappa[16] > 1e10
assert kappa[64] > 1e40
for size in (32, 64):
    assert not by_eigenvalues[size] < 1  # not a digit is right
for unitary, put_together in normal_part.values():
    assert unitary < 1e-11
    assert put_together < 1e-13

# %% [markdown]
# ## 5. The rank-one term is half the input
#
# P = B/√2, so the term in the way is P Pᵀ x = ½ B (B·x). And B·x = Σ x_n p_n(0) is the reconstruction of the past at
# "0 ago": of u(t) itself. If N is large enough for that, ½ B (B·x) ≈ ½ B u, and
#
#     x' = A x + B u = (A + P Pᵀ) x − ½ B (B·x) + B u ≈ (A + P Pᵀ) x + ½ B u.
#
# The low-rank term is gone and B is halved: S4D-LegS, `mw.ssm.hippo("legsd", N)`.

# %%
P = torch.sqrt(torch.arange(N, dtype=torch.float64) + 0.5)
A_diagonal, B_diagonal = mw.ssm.hippo("legsd", N)
torch.testing.assert_close(torch.outer(P, P), torch.outer(B, B) / 2)
torch.testing.assert_close(A_diagonal, A + torch.outer(P, P))
assert torch.equal(B_diagonal, B / 2)

present = {size: (x @ mw.ssm.hippo("legs", size)[1] - u).square().mean().sqrt().item() for size, x in states.items()}
section(5, "How well B·x is u, root mean square over the signal of section 2")
show([f"N = {size}" for size in present], [list(present.values())])

assert all(present[2 * size] < 0.6 * present[size] for size in (8, 16, 32))
assert present[64] < 0.05

# %% [markdown]
# ## 6. In which sense it converges
#
# *Weakly.* Integrated against anything smooth, the kernels of the diagonal system become those of LegS: the response to
# a step, which integrates them, converges. So does a discretised kernel, which averages over steps of length Δ, once
# most frequencies are far beyond 1/Δ. Below, the first four functions: the step response on 0 ≤ t ≤ 6, its largest
# error; kernels discretised with Δ = 0.02 on 0 ≤ t < 3 against the integrals of the true ones over each step, relative
# error in L2. What the bilinear transform has left at the end is its own error: that of true LegS is the same.
#
# *Never pointwise.* At t = 0 the kernels are B/2 instead of B, for every N. Later they stay as wrong: the energy of the
# error, ∫ (K_n − K̂_n)² dt, does not fall to 0 but tends to (2n + 1)/4, against ∫ K_n² dt = ½. It only moves to higher
# frequencies, and these decay no faster: every mode like e^{−t/2}.

# %%
COUNT, STEP, STEPS = 4, 0.02, 150
SIZES = (16, 32, 64, 128, 256, 512, 1024)
Lambdas, readouts = {}, {}
for size in SIZES:
    Lambda, _, b, V = mw.ssm.nplr("legs", size)
    Lambdas[size], readouts[size] = Lambda, V[:COUNT] * b / 2  # the first states are 2 Re Σ readout · mode


def diagonal_step_response(size, times):
    modes = torch.expm1(Lambdas[size][:, None] * times) / Lambdas[size][:, None]
    return 2 * (readouts[size] @ modes).real


def diagonal_kernel(size, times):
    return 2 * (readouts[size] @ torch.exp(Lambdas[size][:, None] * times)).real


def discrete_kernel(size, method):
    pairs = torch.view_as_real(STEP * Lambdas[size])
    exponent, scale = map(torch.view_as_complex, mw.ssm.discretize_diagonal(pairs, method))
    return 2 * STEP * (readouts[size] * scale @ torch.exp(exponent[:, None] * torch.arange(STEPS))).real


def error_energy(size):
    """(COUNT,): ∫ (K_n − K̂_n)² dt over all t ≥ 0, in closed form."""
    modes = torch.cat([Lambdas[size], Lambdas[size].conj(), -torch.arange(1, COUNT + 1)])
    amplitudes = torch.cat([readouts[size], readouts[size].conj(), -eigenvectors(COUNT)[0]], 1)
    return energy_of(modes, amplitudes)


def energy_of(modes, amplitudes):
    gram = -1 / (modes[:, None] + modes.conj())  # ∫ e^{λt} e^{μ̄t} dt
    return (amplitudes @ gram * amplitudes.conj()).sum(1).real


def relative(x, expected):
    return ((x - expected).norm() / expected.norm()).item()


averages = legs_integrals(COUNT, STEP * torch.arange(STEPS + 1, dtype=torch.float64)).diff(dim=1)
responses = legs_integrals(COUNT, t)
errors = {
    "step response, largest": {s: largest(diagonal_step_response(s, t) - responses) for s in SIZES},
    "bilinear, relative L2": {s: relative(discrete_kernel(s, "bilinear"), averages) for s in SIZES},
    "zoh, relative L2": {s: relative(discrete_kernel(s, "zoh"), averages) for s in SIZES},
}
energies = {size: error_energy(size) for size in SIZES}
a_bar, b_bar = mw.ssm.discretize(*mw.ssm.hippo("legs", COUNT), STEP, "bilinear")
powers = torch.stack([torch.linalg.matrix_power(a_bar, step) @ b_bar for step in range(STEPS)], 1)
limit = relative(powers, averages)

section(6, "The normal part with B/2 against LegS, first four functions")
show(
    ("N", *errors, "energy of K_0 - K̂_0", "of K_3 - K̂_3"),
    [
        (str(s), *(by_size[s] for by_size in errors.values()), f"{energies[s][0]:.4f}", f"{energies[s][3]:.4f}")
        for s in SIZES
    ],
)
print(f"bilinear of true LegS: {limit:.3g}. The energies tend to 1/4 and 7/4; K_n itself has 1/2.")

known = {
    "step response, largest": (0.0461, 0.00844, 0.00157, 0.00019),
    "bilinear, relative L2": (1.28, 0.393, 0.0014, 0.0014),
    "zoh, relative L2": (1.23, 0.276, 0.058, 0.0061),
}
for name, values in known.items():
    for size, value in zip((16, 64, 256, 1024), values, strict=True):
        assert abs(errors[name][size] / value - 1) < 0.04  # half a unit of the last of two digits
assert abs(limit / errors["bilinear, relative L2"][1024] - 1) < 0.01
for size in SIZES:
    torch.testing.assert_close(diagonal_kernel(size, t[:1])[:, 0], B[:COUNT] / 2)
torch.testing.assert_close(energies[1024], (2 * torch.arange(COUNT) + 1).double() / 4, rtol=1e-3, atol=0)
of_legs = energy_of(-torch.arange(1.0, COUNT + 1, dtype=torch.float64), eigenvectors(COUNT)[0])
torch.testing.assert_close(of_legs, torch.full_like(of_legs, 0.5))

# %% [markdown]
# ## 7. It does not work for every basis
#
# FouT, the Fourier basis of a sliding window of length 2, is normal plus rank one too, with P = B. But a Fourier series
# has at an edge the *mean* of both ends: B·x = ½ (u(t) + û(t − 2)). The low-rank term also holds what has to leave the
# window. Without it nothing ever leaves: A + P Pᵀ only turns, so the kernels keep their length for ever, with whatever
# B. The first function is the window itself: its step response is a ramp t/2 that ends at 1, and now goes on.


# %%
def step_response(A, B):
    """The first state for u = 1; zoh is exact for it."""
    a_bar, b_bar = mw.ssm.discretize(A, B, 0.02, "zoh")
    x, found = torch.zeros_like(B), []
    for _ in range(300):
        found.append(x[0])
        x = a_bar @ x + b_bar
    return torch.stack(found)


ramp = (torch.arange(300, dtype=torch.float64) * 0.01).clamp(max=1)
window = []
for size in (17, 65, 257):
    A_size, B_size = mw.ssm.hippo("fout", size)
    normal = A_size + torch.outer(B_size, B_size)
    systems = (A_size, B_size), (normal, B_size / 2), (normal, B_size)
    window.append((str(size), *(largest(step_response(*system) - ramp) for system in systems)))
    lengths = mw.ssm.basis(normal, B_size, t).norm(dim=0)
    torch.testing.assert_close(lengths, B_size.norm().expand_as(lengths))

section(7, "FouT: largest error of the first function's step response, 0 ≤ t < 6")
show(("N", "A, B", "without low rank, B/2", "without low rank, B"), window)

assert window[0][1] > window[1][1] > window[2][1]
assert window[2][1] < 0.001
for _, _, halved, full in window:
    assert abs(halved - (2.99 - 1)) < 1e-9  # t/2 at the last of the times, 5.98, instead of 1
    assert abs(full - (5.98 - 1)) < 1e-9

# %% [markdown]
# ## 8. The spectrum, and two formulas for it
#
# The largest frequency of LegS' normal part is N²/π − π/6, up to something like 1/N². *S4D-Inv*,
# (N/π)(N/(2n+1) − 1), is a formula for the largest ones: that of any fixed n becomes exact as N grows, while the
# smallest get worse. *S4D-Lin*, πn, is no approximation of this spectrum. It is FouT's, with a damping of ½, and
# that is another memory: every kernel it can make repeats itself after a time of 2, times 1/e.
#
# What is close for a layer, which learns its readout? The distance of LegS' first kernels K_n to the *span* of
# the modes e^{λt}, in L2 over all t ≥ 0 relative to ‖K_n‖: the best that any readout can do. Two things come out.
# The spectrum of LegS spans them closer and closer, although the readout of section 6 does not converge: weak
# convergence is a property of B and C, not of the modes. And Inv, without a single eigenvalue computed, spans them
# about as well, while Lin stays 24 % off K_0 for any N because of its period.


# %%
def distances(eigenvalues):
    """(COUNT,): relative distance of K_n to the real span of e^{λt}, from inner products in closed form."""
    modes = torch.cat([eigenvalues, eigenvalues[eigenvalues.imag != 0].conj()])
    gram = -1 / (modes.conj()[:, None] + modes)
    projections = torch.zeros(COUNT, len(modes), dtype=modes.dtype)
    for k, column in enumerate(eigenvectors(COUNT)[0].T):
        projections += column[:, None] / (k + 1 - modes.conj())
    explained = (projections.conj() * torch.linalg.solve(gram, projections.T).T).sum(1).real
    return torch.sqrt(1 - 2 * explained)  # ‖K_n‖² = ½


spectra, spans = [], {}
for size in (16, 64, 256):
    legs = Lambdas[size].imag.flip(0)
    inv = mw.ssm.diagonal("inv", size).imag
    law = size**2 / math.pi - math.pi / 6
    off = (inv / legs - 1).abs()
    spans[size] = {name: distances(mw.ssm.diagonal(name, size)) for name in ("legs", "inv", "lin")}
    spectra.append((str(size), f"{legs[0]:.3f}", f"{legs[0] - law:.0e}", off[0].item(), off[4].item(), largest(off)))
    assert abs(legs[0] - law) < 1 / size**2

section(8, "Frequencies, largest first")
show(("N", "LegS, n = 0", "minus (N²/π - π/6)", "Inv is off, n = 0", "n = 4", "any n"), spectra)
show(
    ("N", "modes", *(f"K_{n}" for n in range(COUNT))),
    [(str(s), name, *found.tolist()) for s, by_name in spans.items() for name, found in by_name.items()],
)
print("LegS' kernels: relative distance to what the modes span.")

assert np.allclose(mw.ssm.diagonal("legs", 4).imag, [0.556501, 4.603293], atol=1e-6)
assert np.allclose(mw.ssm.diagonal("legs", 8).imag, [0.427489, 1.957794, 5.354209, 19.857410], atol=1e-6)
assert spectra[2][3] < spectra[1][3] / 3 < spectra[0][3] / 9  # like 1/N
assert spectra[2][5] > spectra[1][5] > spectra[0][5] > 0.2
for name in ("legs", "inv"):
    assert (spans[64][name] < 0.6 * spans[16][name]).all()
    assert (spans[256][name] < 0.65 * spans[64][name]).all()
assert all((by_name["inv"] < 3 * by_name["legs"]).all() for by_name in spans.values())
# The best f with f(t + 2) = f(t)/e for e^{−t}.
q2, q3, q4 = (1 - math.exp(-power) for power in (2, 3, 4))
best = math.sqrt(1 - q2 * q4 / q3**2)
assert all(best < spans[size]["lin"][0] < best + 0.2 / size for size in spans)
lin, fout = mw.ssm.diagonal("lin", N), mw.ssm.nplr("fout", N + 1).Lambda
torch.testing.assert_close(lin.imag, fout.imag[: N // 2], rtol=1e-12, atol=1e-12)
repeats = torch.exp(2 * lin)
torch.testing.assert_close(repeats, torch.full_like(repeats, 1 / math.e))

# %% [markdown]
# ## 9. Steps
#
# Zero-order hold takes u for constant over each step Δ. Mode by mode it is exact and elementary, as the matrix is
# diagonal:
#
#     Ā = e^{ΔΛ},   B̄ = (e^{ΔΛ} − 1)/Λ · B,   x_l = Ā x_{l−1} + B̄ u_l,   K̄_l = C Ā^l B̄.
#
# The dense system needs an exponential of a matrix for the same. K̄_l is the integral of the kernel over its step.

# %%
Lambda, _, b, V = mw.ssm.nplr("legs", N)
A_step = torch.exp(STEP * Lambda)
B_step = (A_step - 1) / Lambda * b / 2
a_bar, b_bar = mw.ssm.discretize(A_diagonal, B_diagonal, STEP, "zoh")
dense_error = max(largest(2 * ((V * A_step) @ V.mH).real - a_bar), largest(2 * (V @ B_step).real - b_bar))
exponent, scale = map(torch.view_as_complex, mw.ssm.discretize_diagonal(torch.view_as_real(STEP * Lambda), "zoh"))
integrals = diagonal_step_response(N, STEP * torch.arange(STEPS + 1, dtype=torch.float64)).diff(dim=1)
integral_error = largest(discrete_kernel(N, "zoh") - integrals)

section(9, "Zero-order hold")
print(f"Mode by mode it is the dense one within {dense_error:.0e};")
print(f"the discrete kernel is the kernel's integral over each step within {integral_error:.0e}.")

assert dense_error < 1e-12
assert integral_error < 1e-13
torch.testing.assert_close(torch.exp(exponent), A_step)
torch.testing.assert_close(STEP * scale * b / 2, B_step)

# %% [markdown]
# ## 10. The kernel is a Vandermonde product, and that is a product of small blocks
#
# K̄_l = 2 Re Σ_n (C B̄)_n Ā_n^l: a vector times the N/2 × L matrix of powers of Ā, N L/2 complex exponentials for every
# channel. Split the exponent instead, l = i L₁ + j with L = L₂ L₁:
#
#     Ā^{i L₁ + j} = (Ā^{L₁})^i · Ā^j,   so   K̄[i, j] = Σ_n 2 Re( (C B̄ Ā^{i L₁})_n · Ā_n^j ).
#
# With real and imaginary parts side by side, [Re, −Im] times [Re; Im], that is one real (L₂ × N)(N × L₁) product, and
# only N (L₁ + L₂)/2 exponentials. `mw.ops.diagonal_ssm_kernel` is this product for all channels.

# %%
L1, L2 = 128, 32
L = L1 * L2
z = 0.001 * Lambda  # Δ Λ
coefficients = torch.randn(N // 2, dtype=torch.complex128)  # C B̄
vandermonde = torch.exp(z[:, None] * torch.arange(L))
literal = 2 * (coefficients @ vandermonde).real

rows = coefficients * torch.exp(z * L1 * torch.arange(L2)[:, None])
columns = torch.exp(z * torch.arange(L1)[:, None])
left = torch.cat([rows.real, -rows.imag], 1)
right = torch.cat([columns.real, columns.imag], 1)
product = 2 * (left @ right.T).flatten()

operation = mw.ops.diagonal_ssm_kernel(coefficients, z, L)
single = mw.ops.diagonal_ssm_kernel(coefficients.to(torch.complex64), z.to(torch.complex64), L)
section(10, f"A kernel of L = {L:,}, N = {N}")
print(f"Vandermonde matrix: {vandermonde.numel():,} complex exponentials")
shapes = " × ".join(str(tuple(matrix.shape)) for matrix in (left, right.T))
print(f"split exponents: {rows.numel() + columns.numel():,}, and one real {shapes} product")
print(f"which is the same within {relative(product, literal):.0e}; mw.ops.diagonal_ssm_kernel")
print(f"within {relative(operation, literal):.0e}, and {relative(single, literal):.0e} in float32")

assert vandermonde.numel() == N // 2 * L
assert rows.numel() + columns.numel() == N // 2 * (L1 + L2)
assert relative(product, literal) < 1e-13
assert relative(operation, literal) < 1e-13
assert relative(single, literal) < 1e-4

# %% [markdown]
# ## 11. The layer
#
# `mw.nn.S4D` has a system of its own per channel, computes its kernel as above and convolves by FFT; then a skip, a
# nonlinearity, and a gated mix of the channels. That it all is still x_l = Ā x_{l−1} + B̄ u_l is best seen by a loop
# with its parameters, in float64 and with nothing of this package in it. (`b_init` puts V*B/2 there; as B only
# multiplies C, which is trained, it is 1 by default.)

# %%
layer = mw.nn.S4D(4, N, init="legs", b_init="legs")
inputs = torch.randn(2, 1000, 4)


def by_recurrence(layer, inputs):
    values = {name: value.detach().double().numpy() for name, value in layer.filter.named_parameters()}
    dt = np.exp(values["log_dt"])[:, None]
    A = -np.exp(values["A_real"]) + 1j * values["A_imag"]
    B, C = (values[name][..., 0] + 1j * values[name][..., 1] for name in "BC")
    A_step = np.exp(dt * A)
    B_step = (A_step - 1) / A * B
    x = np.zeros((len(inputs), *A.shape), dtype=complex)
    outputs = []
    for u in inputs.double().numpy().swapaxes(0, 1):
        x = A_step * x + B_step * u[..., None]
        outputs.append(2 * (C[0] * x).sum(-1).real + values["D"][0] * u)
    y = torch.nn.functional.gelu(torch.from_numpy(np.stack(outputs, 1)))
    output = layer.mix.output
    mixed = y @ output.weight.double().T + output.bias.double()
    value, gate = mixed.chunk(2, -1)
    return value * torch.sigmoid(gate)


with torch.no_grad():
    expected = by_recurrence(layer, inputs)
    single = relative(layer(inputs), expected)
    double = relative(layer.double()(inputs.double()), expected)

# %% [markdown]
# And the derivation can be walked back: give the layer the eigenvectors as its readout, C = V, and no skip, mix or
# nonlinearity, and its four channels are the first four coefficients of the past, those of section 2, out of a
# diagonal system.

# %%
projection = mw.nn.S4D(COUNT, N, init="legs", b_init="legs", dt_min=dt, dt_max=dt, activation="none", output="none")
with torch.no_grad():
    projection.filter.C.copy_(torch.view_as_real(V[:COUNT].contiguous())[None])
    projection.filter.D.zero_()
    found = projection(u.float()[None, :, None].expand(-1, -1, COUNT))[0]
remembered = states[N][:, :COUNT]

section(11, "mw.nn.S4D against a float64 loop over 1,000 steps")
print(f"relative difference {single:.0e} in float32, {double:.0e} in float64")
print(f"with C = V it remembers: four coefficients of LegS within {relative(found, remembered):.1%}")

assert single < 1e-4  # float32 cannot hold a phase of up to 130 rad per step any better
assert double < 1e-12
assert relative(found, remembered) < 0.03

# %%
if figures:
    from milkweed.plots.convergence import Approach, save_convergence

    shown, instants = (16, 64, 256, 1024), torch.linspace(0, 4, 4001, dtype=torch.float64)
    save_convergence(
        [
            Approach(
                "step responses",
                instants,
                legs_integrals(COUNT, instants),
                {size: diagonal_step_response(size, instants) for size in shown},
            ),
            Approach(
                "kernel K_0",
                instants,
                torch.exp(-instants)[None],
                {size: diagonal_kernel(size, instants)[:1] for size in shown},
            ),
        ],
        errors,
        figures / "convergence.png",
        "Diagonal LegS with B/2 against LegS (dotted), first four functions: weak convergence, and no other",
    )
    print(f"figure in {figures / 'convergence.png'}")
