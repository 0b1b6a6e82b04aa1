# %% [markdown]
# # From the Fourier matrix to its Monarch factors to a trained transform
#
# The matrix of the discrete Fourier transform (DFT) is dense, and yet it is made of two layers of small blocks. This
# script finds them in the entries of the matrix, meets the same matrix as an object that never is dense, and ends with
# a transform that starts at the DFT and learns what the DFT cannot know. Every claim is asserted on the way.
#
#     python examples/monarch_transforms.py --figure monarch_transforms.png
#
# takes a few seconds; the figure is optional and needs matplotlib.

# %%
import argparse
from pathlib import Path

import numpy as np
import torch

import milkweed as mw

torch.set_num_threads(1)  # such small blocks are done before they are shared out

# Jupyter passes arguments of its own; without abbreviations none of them can be mistaken for --figure.
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--figure", type=Path, help="where to save a figure, e.g. monarch_transforms.png")
figure_path = parser.parse_known_args()[0].figure

# %% [markdown]
# ## 1. Rank one, slice by slice
#
# F[k, t] = exp(-2πi k t / n). With n = n₁ n₂, split both indices, in opposite orders: t = t₂ n₁ + t₁ and
# k = k₁ n₂ + k₂. Of the four products in k t, k₁ t₂ counts whole turns and drops out:
#
#     k t / n = k₂ t₂ / n₂ + k₂ t₁ / n + k₁ t₁ / n₁   (modulo 1)
#
# Hold k₂ and t₁ fixed. What is left is (a function of k₁) · (a function of t₂): the slice of F with these rows and
# columns has rank one. A Monarch matrix is a matrix of such slices, of rows k ≡ k₂ (mod n₂) and of *neighbouring*
# columns. The rows fit; the columns of one t₁ lie n₁ apart, so they have to be brought together first.

# %%
n1 = n2 = 6
n = n1 * n2
dense = torch.from_numpy(np.fft.fft(np.eye(n)))
order = torch.arange(n).view(n2, n1).T.flatten()  # the t of column t₁ n₂ + t₂
permuted = dense[:, order]


def slices(matrix):
    """(k₂, column block, k₁, column in block)."""
    return matrix.view(n1, n2, n1, n2).permute(1, 2, 0, 3)


def rank(singular_values):
    return int((singular_values > 1e-10 * singular_values.amax()).sum(-1).max())


spectra = {"as it is": torch.linalg.svdvals(slices(dense)), "columns permuted": torch.linalg.svdvals(slices(permuted))}
projections = {
    "as it is": mw.project_monarch(dense, nblocks=n1),
    "columns permuted": mw.project_monarch(permuted, nblocks=n1),
}
print(f"1. DFT of n = {n}: {n * n:,} entries in {n1 * n2} slices of {n1} × {n2}")
for name, spectrum in spectra.items():
    error = projections[name].relative_error
    print(f"   {name + ':':<17} slices of rank {rank(spectrum)}, nearest Monarch matrix {error:.2g} away")

assert rank(spectra["columns permuted"]) == 1
# Without the permutation it could not be worse: every slice is a multiple of a unitary matrix. All its singular values
# are equal, and the best of them holds one n₁-th of the energy.
assert torch.allclose(spectra["as it is"], torch.full_like(spectra["as it is"], n1**0.5))
assert abs(projections["as it is"].relative_error - (1 - 1 / n1) ** 0.5) < 1e-12

# %% [markdown]
# ## 2. The factors
#
# The projection takes each slice's leading singular vectors. Here they are the slice, so the projection is no
# approximation: it *reads the factors off*. `mw.monarch_dft` writes down the same matrix from the formula above. (The
# factors may differ by a number moved from one to the other, the matrix they make cannot.)

# %%
found = projections["columns permuted"].matrix
fourier = mw.monarch_dft(n, dtype=torch.complex128)
monarch, permutation = fourier.factors
difference = (found.to_dense() - monarch.to_dense()).abs().max()
print(f"2. read off: {found.num_parameters} numbers instead of {n * n:,}, within {difference:.0e} of the formula")
print(f"   one product: {fourier.flops()} complex operations instead of {2 * n * n:,}")

assert torch.equal(permutation.index, order)
assert difference < 1e-13
# n₁ + n₂ numbers a column instead of n: the gain grows with √n.
assert found.num_parameters == fourier.num_parameters == n * (n1 + n2)
assert fourier.flops() == 2 * fourier.num_parameters

# %% [markdown]
# ## 3. The matrix as an object
#
# It multiplies, transposes and inverts without ever becoming dense. And since it diagonalises every circular
# convolution, C = F⁻¹ Λ F, a circulant is a product of two Monarch matrices, M₁ M₂*, with Λ inside M₁: the convolution
# theorem as a statement about structure. The way back exists too: `mw.factorize_monarch_product` recovers factors from
# nothing but the entries of C.

# %%
rng = np.random.default_rng(0)
x, kernel = torch.from_numpy(rng.standard_normal((2, n)))
i = torch.arange(n)
circulant = kernel[(i[:, None] - i) % n]  # by definition: entry (i, j) is kernel[(i - j) mod n]
convolution = mw.structures.monarch_circulant(kernel)
recovered = mw.factorize_monarch_product(circulant, block_size=n1)
print(f"3. {convolution!r} is the circulant;")
print(f"   from its entries alone the factors come back with a relative error of {recovered.relative_error:.0e}")

close = {"rtol": 0.0, "atol": 1e-12}
torch.testing.assert_close(fourier @ x, torch.fft.fft(x), **close)
torch.testing.assert_close(fourier.inverse() @ (fourier @ x), x.to(torch.complex128), **close)
torch.testing.assert_close(fourier.T @ x, fourier @ x, **close)  # F is symmetric
torch.testing.assert_close(fourier.H @ x / n, torch.fft.ifft(x), **close)
torch.testing.assert_close(convolution.to_dense(), circulant.to(torch.complex128), **close)
torch.testing.assert_close(convolution @ x, torch.fft.ifft(torch.fft.fft(kernel) * torch.fft.fft(x)), **close)
first, second = recovered.factors
torch.testing.assert_close((first @ second.H).to_dense(), circulant.to(torch.complex128), **close)

# %% [markdown]
# ## 4. A transform that is trained
#
# An interferometer or a radar sees an echo at depth z as a tone exp(2πi z s) along the frequencies s that it sweeps
# over. The DFT turns a tone into a peak, so a few echoes should be a few large coefficients. But the light has passed
# glass in one arm only, or the wave an ionised layer, and all records carry one phase that bends with frequency. Every
# echo is smeared over many coefficients. Nobody has measured that phase.
#
# So learn the transform. It starts *at* the DFT, and the loss is the mean modulus of its coefficients: for a given
# energy, small if few are large. `unitary=True` is what makes this loss honest. The transform cannot shrink the
# coefficients or drop some, as it keeps every record's energy; it can only gather it.

# %%
n = 256
sweep = np.linspace(-1, 1, n)
phase = 30 * sweep**2 + 20 * sweep**3  # known to the generator and, at the end, to the judge


def records(count, echoes=5, noise=0.1):
    """(count, n): echoes of random depth and strength behind the same glass."""
    depth = rng.uniform(0, 1, (count, echoes, 1))
    strength, noises = (
        rng.standard_normal(shape) + 1j * rng.standard_normal(shape) for shape in ((count, echoes, 1), (count, n))
    )
    tones = (strength * np.exp(2j * np.pi * depth * np.arange(n))).sum(1)
    return torch.from_numpy((tones * np.exp(1j * phase) + noise * noises) / n**0.5).to(torch.complex64)


train, held_out = records(1000), records(1000)
transform = mw.nn.LearnableTransform(n, "dft", unitary=True)


def loss(coefficients):
    return coefficients.abs().mean()


start = loss(transform(train)).item()
assert abs(start - loss(torch.fft.fft(train, norm="ortho"))) < 1e-6  # it is the DFT

steps = 150
optimizer = torch.optim.Adam(transform.parameters(), lr=0.02)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
for _ in range(steps):
    optimizer.zero_grad()
    value = loss(transform(train))
    value.backward()
    optimizer.step()
    schedule.step()

# %% [markdown]
# Two yardsticks on records that training never saw. Principal components, the best transform for a *known covariance*,
# are of no use: depths are spread evenly, so the covariance is that of white noise. And the DFT of someone who was told
# the phase and removes it.

# %%
principal = torch.linalg.eigh(train.T @ train.conj()).eigenvectors.conj()
with torch.no_grad():
    coefficients = {
        "DFT": torch.fft.fft(held_out, norm="ortho"),
        "principal components": held_out @ principal,
        "trained": transform(held_out),
        "DFT, told the phase": torch.fft.fft(held_out * torch.from_numpy(np.exp(-1j * phase)), norm="ortho"),
    }
    q = transform.matrix().to_dense()


def held(values):
    """(n,): the part of the energy that the 1, 2, ... n largest coefficients of each record hold."""
    energy = values.abs().square().sort(dim=1, descending=True).values.double()
    return energy.sum(0).cumsum(0) / energy.sum()


compaction = {name: held(values) for name, values in coefficients.items()}
print(f"4. {transform}: loss {start:.4f} -> {value.item():.4f} in {steps} steps")
print(f"   held-out records       loss   energy in the 5 and in the 16 largest of {n} coefficients")
for name, curve in compaction.items():
    print(f"   {name:<20} {loss(coefficients[name]):>8.4f}   {curve[4]:.1%}   {curve[15]:.1%}")

assert (q @ q.mH - torch.eye(n)).abs().max() < 1e-5
assert loss(coefficients["trained"]) < 0.5 * loss(coefficients["DFT"])
at_16 = {name: curve[15] for name, curve in compaction.items()}
assert at_16["trained"] > 0.9 > 0.6 > at_16["DFT"] > at_16["principal components"]
assert abs(at_16["trained"] - at_16["DFT, told the phase"]) < 0.01

# %% [markdown]
# A phase that undoes the glass is a diagonal matrix, and diagonal matrices fold into the right factor, so the answer
# was within reach; that plain gradient descent gets there from the DFT is what had to be seen. The told transform has
# more in the very largest coefficients, the trained one fewer small ones. Depths between two coefficients leak into
# others, and blocks can dampen that where a diagonal cannot (with all depths *on* a coefficient the told one has the
# lower loss, too). One thing the loss does not ask for: the coefficients are few, but not in the order of depth.

# %%
if figure_path:
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    figure = Figure(figsize=(12, 4), layout="constrained")
    before, after, curves = figure.subplots(1, 3)
    for axes, matrix, title in (
        (before, dense, "phase of F, rows by k₂: tiles of full rank"),
        (after, permuted, "columns permuted: tiles of rank one"),
    ):
        tiles = slices(matrix).permute(0, 2, 1, 3).reshape(n1 * n2, n1 * n2)
        axes.imshow(tiles.angle().numpy(), cmap="twilight", interpolation="nearest")
        axes.set(title=title, xticks=np.arange(n1) * n2 - 0.5, yticks=np.arange(n2) * n1 - 0.5)
        axes.set(xticklabels=[], yticklabels=[])
        axes.grid(color="black", linewidth=1)
    for name, curve in compaction.items():
        curves.plot(range(1, 65), curve[:64].numpy(), "--" if "told" in name else "-", label=name)
    curves.set(title="held-out energy in the largest coefficients", xlabel="how many of 256", ylim=(0, 1))
    curves.legend(loc="lower right")
    figure.savefig(figure_path, dpi=120)
    print(f"figure in {figure_path}")
