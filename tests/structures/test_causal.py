"""Causal Monarch maps against polynomials evaluated at their nodes, entry by entry, in float64."""

import math

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.autograd.functional import jacobian

from milkweed.ops import use_backend
from milkweed.structures.causal import (
    BivariateBasis,
    ChebyshevBasis,
    KroneckerBasis,
    balanced_digits,
    causal_product,
    triangular,
)

KINDS = {"kronecker": KroneckerBasis, "bivariate": BivariateBasis, "chebyshev": ChebyshevBasis}
kinds = pytest.mark.parametrize("kind", KINDS)
# The lowest digit first: b × b blocks with N = 2 n, the sizes of order 2 that the theory names, and order 3 and 4.
DIGITS = [(4, 2), (8, 4), (16, 8), (5, 3), (2, 1), (6, 6, 3), (3, 2, 4), (3, 3, 3, 2), (3, 2, 2, 3)]
every_size = pytest.mark.parametrize("digits", DIGITS, ids=str)


# ---------------------------------------------------------------------- the literal definition


def full_factors(kind, digits, scale=0.4):
    """Random f⁰, f¹, ... of all N = 2 n basis elements (for ``bivariate`` 2 b_a per digit), with the paper's cap."""
    sizes = [2 * b for b in digits] if kind == "bivariate" else [*digits[:-1], 2 * digits[-1]]
    factors = []
    for a, size in enumerate(sizes):
        lower = torch.randn(*sizes[:a], size, size, dtype=torch.float64).tril(-1) * scale / math.sqrt(size)
        factor = lower + torch.diag_embed(0.7 + 0.6 * torch.rand(*sizes[:a], size, dtype=torch.float64))
        if kind == "chebyshev":
            factor = factor.mT
        elif kind == "bivariate" or a == len(digits) - 1:
            factor[..., digits[a] :, : digits[a]] = 0
        factors.append(factor)
    return factors, sizes


def literal_matrix(kind, factors, sizes):
    """M[i, j] = q_j(node i), by the definition of q_j."""
    total = math.prod(sizes)
    if kind == "bivariate":
        index = torch.cartesian_prod(*(torch.arange(size) for size in reversed(sizes))).view(total, -1).flip(1)
        variables = [torch.exp(-2j * math.pi * index[:, a].double() / size) for a, size in enumerate(sizes)]
    elif kind == "kronecker":
        node = torch.exp(-2j * math.pi * torch.arange(total).double() / total)
        variables = [node ** math.prod(sizes[:a]) for a in range(len(sizes))]
    else:
        node = torch.cos(math.pi * (torch.arange(total).double() + 0.5) / total)
        variables = [torch.cos(math.prod(sizes[:a]) * node.acos()) for a in range(len(sizes))]
    j = torch.arange(total)
    digits = [j // math.prod(sizes[:a]) % size for a, size in enumerate(sizes)]
    matrix = torch.ones(total, total, dtype=variables[0].dtype)
    for a, (factor, variable) in enumerate(zip(factors, variables, strict=True)):
        powers = torch.arange(sizes[a], dtype=torch.float64)
        if kind == "chebyshev":
            terms = torch.cos(powers * variable.clamp(-1, 1).acos()[:, None])
        else:
            terms = variable[:, None] ** powers
        # Column j of this digit's polynomials: its block is chosen by the digits below.
        coefficients = factor.movedim(-2, 0)[(slice(None), *digits[: a + 1])]
        matrix = matrix * (terms @ coefficients.to(terms.dtype))
    return matrix


def slots(kind, digits, sizes):
    """Where inputs go among the N basis elements, and where outputs are read."""
    n, total = math.prod(digits), math.prod(sizes)
    if kind == "chebyshev":
        return n - 1 - torch.arange(n), 2 * n - 2 - torch.arange(n)
    if kind == "kronecker":
        return torch.arange(n), torch.arange(n)
    places = torch.zeros(n, dtype=torch.int64)
    for a in range(len(digits)):
        places += torch.arange(n) // math.prod(digits[:a]) % digits[a] * math.prod(sizes[:a])
    assert places.max() < total
    return places, places


def literal_product(kind, digits, sizes, matrices, k, u):
    """y = [M₀⁻¹(M₁[k; 0] ⊙ M₂[u; 0])]_{0:n}, and what is lost when it is taken as real."""
    into, out = slots(kind, digits, sizes)
    m0, m1, m2 = matrices
    values = (m1[:, into] @ k.to(m1.dtype)) * (m2[:, into] @ u.to(m2.dtype))
    y = torch.linalg.solve(m0, values)[out]
    return (y.real, y.imag.abs().max()) if y.is_complex() else (y, torch.zeros(()))


def basis_of(kind, digits, factors, sizes, output=False):
    """What the library needs of the full factors, in its own order."""
    kept = []
    for a, factor in enumerate(factors):
        if kind == "chebyshev":
            top = a == len(digits) - 1
            start = digits[a] - 1 if top and output else 0
            stop = sizes[a] if not top or output else digits[a]
            block = factor[..., start:stop, start:stop]
            kept.append(block.flip(list(range(block.ndim))))
        else:
            kept.append(factor[tuple(slice(b) for b in (*digits[: a + 1], digits[a]))])
    cls = KINDS[kind]
    return (cls.for_output if output else cls)(tuple(f[None] for f in kept))


def setup(kind, digits):
    sets = [full_factors(kind, digits) for _ in range(3)]
    sizes = sets[0][1]
    matrices = [literal_matrix(kind, factors, sizes) for factors, _ in sets]
    bases = [basis_of(kind, digits, factors, sizes, output=i == 0) for i, (factors, _) in enumerate(sets)]
    return sizes, matrices, dict(zip(("output_basis", "kernel_basis", "input_basis"), bases, strict=True))


# ---------------------------------------------------------------------- values


@kinds
@every_size
def test_product_is_the_literal_one(kind, digits):
    sizes, matrices, bases = setup(kind, digits)
    n = math.prod(digits)
    k, u = torch.randn(2, n, dtype=torch.float64)
    expected, imaginary = literal_product(kind, digits, sizes, matrices, k, u)
    found = causal_product(k[None], u[None, None], **bases)[0, 0]
    assert found.dtype == torch.float64
    assert imaginary < 1e-10  # real coefficients give real outputs
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    for length in {1, 2, n // 2 + 1, n - 1} & set(range(1, n)):
        short = causal_product(k[None, :length], u[None, None, :length], **bases)[0, 0]
        torch.testing.assert_close(short, expected[:length], rtol=1e-9, atol=1e-10)


@kinds
@every_size
def test_evaluates_and_interpolates(kind, digits):
    factors, sizes = full_factors(kind, digits)
    matrix, basis = literal_matrix(kind, factors, sizes), basis_of(kind, digits, factors, sizes)
    into, out = slots(kind, digits, sizes)
    x = torch.randn(2, 3, math.prod(digits), dtype=torch.float64)
    values = basis.evaluate(x)
    torch.testing.assert_close(values, x.to(matrix.dtype) @ matrix[:, into].mT, rtol=1e-10, atol=1e-10)
    assert values.is_complex() == (kind != "chebyshev")
    torch.testing.assert_close(basis.interpolate(values), x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(basis.from_polynomial(basis.to_polynomial(x)), x, rtol=1e-10, atol=1e-10)
    # Any values of a real polynomial of the output's degrees, read by M₀.
    anything = (torch.randn(math.prod(sizes), dtype=torch.float64).to(matrix.dtype) @ matrix.mT)[None, None]
    reader = basis_of(kind, digits, factors, sizes, output=True)
    expected = torch.linalg.solve(matrix, anything[0, 0])[out].real
    found = reader.interpolate(anything)[0, 0, reader.lead :][: len(out)]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("digits", [(4, 2), (8, 4), (16, 8)], ids=str)
def test_kronecker_is_a_monarch_matrix(digits):
    """R_{j₁} = F_b R̃_{j₁}, L_{i₀} = [ω_N^{(i₁ b + i₀) a}] L̃: two block-diagonal factors and permutations."""
    from milkweed.structures import Monarch

    b, total = digits[0], math.prod(digits) * 2
    (low, high), sizes = full_factors("kronecker", digits)
    roots = torch.exp(-2j * math.pi * torch.arange(total).double() / total)
    index = torch.arange(b)
    right = roots[index[:, None] * index % b * (total // b)] @ high.to(roots.dtype)
    rows = index[None, :, None] * b + index[:, None, None]  # i₁ b + i₀ as (i₀, i₁, 1)
    left = roots[rows * index % total] @ low.to(roots.dtype)
    monarch = Monarch(right, left).to_dense()
    # The Monarch's input is in the order (j₁, j₀), digits exchanged.
    order = torch.arange(total).view(b, b).T.flatten()
    matrix = literal_matrix("kronecker", (low, high), sizes)
    torch.testing.assert_close(monarch, matrix[:, order], rtol=1e-12, atol=1e-12)


def identity_bases(kind, digits, dtype=torch.float64):
    def factors(sizes):
        return tuple(torch.eye(b, dtype=dtype).expand(1, *sizes[:a], b, b) for a, b in enumerate(sizes))

    cls = KINDS[kind]
    output = cls.for_output(factors(cls.output_digits(digits)))
    return {"output_basis": output, "kernel_basis": cls(factors(digits)), "input_basis": cls(factors(digits))}


def direct_convolution(k, u):
    return torch.stack([sum(k[..., t - s] * u[..., s] for s in range(t + 1)) for t in range(u.shape[-1])], -1)


@every_size
def test_identity_factors_convolve(digits):
    n = math.prod(digits)
    k, u = torch.randn(3, n, dtype=torch.float64), torch.randn(2, 3, n, dtype=torch.float64)
    found = causal_product(k, u, **identity_bases("kronecker", digits))
    torch.testing.assert_close(found, direct_convolution(k, u), rtol=1e-10, atol=1e-10)


@every_size
def test_identity_factors_convolve_the_grid_without_carry(digits):
    n, b = math.prod(digits), digits[0]
    k, u = torch.randn(2, n, dtype=torch.float64)
    expected = torch.zeros(n, dtype=torch.float64)

    def split(t):
        return [t // math.prod(digits[:a]) % size for a, size in enumerate(digits)]

    for t in range(n):
        for s in range(t + 1):
            if all(x <= y for x, y in zip(split(s), split(t), strict=True)):
                expected[t] += k[s] * u[t - s]
    found = causal_product(k[None], u[None, None], **identity_bases("bivariate", digits))[0, 0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    # Within the first row nothing could carry.
    torch.testing.assert_close(found[:b], direct_convolution(k[:b], u[:b]), rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------- causality


@kinds
@every_size
def test_nothing_comes_from_the_future(kind, digits):
    sets = [full_factors(kind, digits) for _ in range(3)]
    output, first, second = (basis_of(kind, digits, *pair, output=i == 0) for i, pair in enumerate(sets))
    bases = {"output_basis": output, "kernel_basis": first, "input_basis": second}
    k, u = torch.randn(2, math.prod(digits), dtype=torch.float64)
    for found in (
        jacobian(lambda u: causal_product(k[None], u[None, None], **bases)[0, 0], u),
        jacobian(lambda k: causal_product(k[None], u[None, None], **bases)[0, 0], k),
    ):
        found *= 15 / found.abs().max()
        assert found.triu(1).abs().max() <= 1e-11
        assert (found.diagonal().abs() > 0).all()


@pytest.mark.parametrize("kind", ["kronecker", "bivariate"])
@pytest.mark.parametrize("digits", [(4, 2), (8, 4), (4, 4, 2)], ids=str)
def test_without_the_degree_cap_the_future_leaks(kind, digits):
    """The negative control, and the same literal map with the cap."""

    def jacobian_of(cap):
        torch.manual_seed(1)
        sets = [full_factors(kind, digits, scale=1.5) for _ in range(3)]
        sizes = sets[0][1]
        for factors, _ in sets:
            for a, factor in enumerate(factors):
                if not cap and (kind == "bivariate" or a == len(digits) - 1):
                    lower = torch.randn(*factor.shape, dtype=torch.float64)
                    factor[..., digits[a] :, : digits[a]] = lower[..., digits[a] :, : digits[a]]
        matrices = [literal_matrix(kind, factors, sizes) for factors, _ in sets]
        k, u = 2 * torch.randn(2, math.prod(digits), dtype=torch.float64)
        return jacobian(lambda u: literal_product(kind, digits, sizes, matrices, k, u)[0], u)

    assert jacobian_of(cap=True).triu(1).abs().max() <= 1e-11
    assert jacobian_of(cap=False).triu(1).abs().max() > 1


# ---------------------------------------------------------------------- precision, gradients, sizes


@kinds
@pytest.mark.parametrize("digits", [(32, 32), (10, 10, 10), (6, 6, 6, 5)], ids=str)
def test_float32(kind, digits):
    def bases(dtype):
        torch.manual_seed(2)
        cls = KINDS[kind]

        def factors(sizes):
            frees = [0.2 * torch.randn(1, *sizes[:a], b, b, dtype=torch.float64) for a, b in enumerate(sizes)]
            return tuple(triangular(f / math.sqrt(f.shape[-1])).to(dtype) for f in frees)

        output = cls.for_output(factors(cls.output_digits(digits)))
        return {"output_basis": output, "kernel_basis": cls(factors(digits)), "input_basis": cls(factors(digits))}

    n = math.prod(digits)
    k, u = torch.randn(4, n, dtype=torch.float64), torch.randn(2, 4, n, dtype=torch.float64)
    exact = causal_product(k, u, **bases(torch.float64))
    single = causal_product(k.float(), u.float(), **bases(torch.float32))
    assert single.dtype == torch.float32
    assert (single.double() - exact).norm() <= 1e-5 * exact.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = causal_product(k.float(), u.bfloat16(), **bases(torch.float32))
    assert half.dtype == torch.bfloat16
    assert (half.double() - exact).norm() <= 8e-3 * exact.norm()


@pytest.mark.sampled
@kinds
@pytest.mark.parametrize("digits", [(3, 2), (2, 2, 2)], ids=str)
def test_gradients(kind, digits):
    cls, length = KINDS[kind], math.prod(digits) - 1

    def free(sizes):
        frees = [0.5 * torch.randn(2, *sizes[:a], b, b, dtype=torch.float64) for a, b in enumerate(sizes)]
        return [f.requires_grad_() for f in frees]

    output, first, second = free(cls.output_digits(digits)), free(digits), free(digits)
    k = torch.randn(2, length, dtype=torch.float64, requires_grad=True)
    u = torch.randn(2, 2, length, dtype=torch.float64, requires_grad=True)
    p = len(digits)

    def function(k, u, *frees):
        made = tuple(triangular(f) for f in frees)
        return causal_product(
            k,
            u,
            output_basis=cls.for_output(made[:p]),
            kernel_basis=cls(made[p : 2 * p]),
            input_basis=cls(made[2 * p :]),
        )

    inputs = (k, u, *output, *first, *second)
    assert gradcheck(function, inputs)
    # At this size the literal map is cheap to differentiate as well: the whole chain through triangular.
    y = function(*inputs)
    grads = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    assert all(g.isfinite().all() for g in grads)
    sum(g.square().sum() for g in grads).backward()
    assert u.grad.isfinite().all()


@kinds
def test_gradients_are_those_of_the_literal_product(kind):
    digits = (4, 3)
    sizes, matrices, bases = setup(kind, digits)
    k, u, cotangent = torch.randn(3, math.prod(digits), dtype=torch.float64)
    k.requires_grad_(), u.requires_grad_()
    expected, _ = literal_product(kind, digits, sizes, matrices, k, u)
    wanted = torch.autograd.grad(expected @ cotangent, (k, u))
    found = causal_product(k[None], u[None, None], **bases)[0, 0]
    torch.testing.assert_close(torch.autograd.grad(found @ cotangent, (k, u)), wanted, rtol=1e-9, atol=1e-10)


@kinds
@pytest.mark.parametrize("length", [1, 63, 251, 1000])
def test_sizes_strides_heads_and_empty_batches(kind, length):
    cls, heads = KINDS[kind], 3
    digits = balanced_digits(length + 1, 2)

    def factors(sizes):
        return tuple(triangular(0.1 * torch.randn(heads, *sizes[:a], b, b).double()) for a, b in enumerate(sizes))

    def part(basis, head):
        made = tuple(f[head : head + 1] for f in basis.factors)
        return cls.for_output(made) if basis is bases["output_basis"] else cls(made)

    output = cls.for_output(factors(cls.output_digits(digits)))
    bases = {"output_basis": output, "kernel_basis": cls(factors(digits)), "input_basis": cls(factors(digits))}
    k, u = torch.randn(6, length).double(), torch.randn(2, 6, length).double()
    y = causal_product(k, u, **bases)
    strided = u.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(causal_product(k, strided, **bases), y, rtol=1e-12, atol=1e-12)
    for head in range(heads):
        own = {name: part(basis, head) for name, basis in bases.items()}
        rows = slice(2 * head, 2 * head + 2)
        torch.testing.assert_close(causal_product(k[rows], u[:, rows], **own), y[:, rows], rtol=1e-10, atol=1e-10)
    assert causal_product(k, u[:0], **bases).shape == (0, 6, length)


@kinds
def test_compiles(kind):
    bases = identity_bases(kind, (4, 4), torch.float32)

    def function(k, u, free):
        own = {name: basis for name, basis in bases.items() if name != "input_basis"}
        changed = KINDS[kind]((triangular(free), bases["input_basis"].factors[1]))
        return causal_product(k, u, **own, input_basis=changed)

    k, u, free = torch.randn(3, 13), torch.randn(2, 3, 13), torch.randn(1, 4, 4, requires_grad=True)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    y = function(k, u, free)
    torch.testing.assert_close(compiled(k, u, free), y)
    wanted = torch.autograd.grad(y.square().sum(), free)
    torch.testing.assert_close(torch.autograd.grad(compiled(k, u, free).square().sum(), free), wanted)


def test_triangular():
    free = torch.randn(2, 5, 5) * 100
    made = triangular(free)
    assert torch.equal(made, made.tril())
    assert torch.equal(made.tril(-1), free.tril(-1))
    diagonal = made.diagonal(dim1=-2, dim2=-1)
    assert (diagonal >= 0.5).all()
    assert (diagonal <= 2).all()
    assert torch.equal(triangular(torch.zeros(3, 3)), torch.eye(3))
    assert triangular(torch.zeros(3, 3, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000, 1024, 65536])
def test_balanced_digits(size, order):
    digits = balanced_digits(size, order)
    assert len(digits) == order
    assert math.prod(digits) >= size
    assert max(digits) <= math.ceil(round(size ** (1 / order), 6))
    # The work is that of even digits, within what rounding up costs.
    assert sum(digits) <= order * (size ** (1 / order) + 1)


def test_work_grows_as_promised():
    """Multiply-adds per channel by the basis: p n^{1 + 1/p}."""
    for order in (2, 3, 4):
        counts = []
        for size in (2**12, 2**24):
            digits = balanced_digits(size, order)
            shapes = tuple(torch.empty(1, *digits[:a], b, b, device="meta") for a, b in enumerate(digits))
            basis = KroneckerBasis(shapes)
            # Every block is applied once for every value of the digits above it.
            above = [basis.length // math.prod(digits[: a + 1]) for a in range(order)]
            assert basis.flops == 2 * sum(s.numel() * times for s, times in zip(shapes, above, strict=True))
            counts.append(basis.flops)
        slope = math.log(counts[1] / counts[0]) / math.log(2**12)
        assert abs(slope - (1 + 1 / order)) < 0.02


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: KroneckerBasis(list(f)), TypeError, "factors must be a tuple of tensors, one per digit; got list"),
        (lambda f: KroneckerBasis(()), TypeError, "factors must be a tuple"),
        (lambda f: KroneckerBasis((f[0], f[1][:, :2])), ValueError, r"factors\[1\] must be .*\(1, 3, 2, 2\); got"),
        (lambda f: KroneckerBasis((f[0].long(), f[1])), TypeError, "factors.0. must be a floating-point"),
        (lambda f: KroneckerBasis((f[0].cfloat(), f[1])), TypeError, "factors.0. must be real; got torch.complex64"),
        (lambda f: KroneckerBasis(f).to_polynomial(torch.randn(1, 1, 7)), ValueError, "L <= 6; got shape"),
        (lambda f: KroneckerBasis(f).to_polynomial(torch.randn(1, 6)), ValueError, r"\(B, H, L\).*got shape \(1, 6\)"),
        (lambda f: product(f, k=torch.ones(1, 5).long()), TypeError, "kernel must be real floating point; got torch.i"),
        (lambda f: product(f, k=torch.randn(1, 4)), ValueError, r"kernel must be \(H, L\) = \(1, 5\)"),
        (lambda f: product(f, u=torch.randn(1, 5)), ValueError, "u must be .B, H, L. with L >= 1"),
        (lambda f: product(f, output=BivariateBasis(f)), ValueError, "one construction; got BivariateBasis, Kron"),
        (lambda f: product(f, output=KroneckerBasis(f[:1])), ValueError, r"output_basis \(3, 2\) for them"),
        (
            lambda f: ChebyshevBasis.for_output(f3(4, 3)).evaluate(torch.randn(1, 1, 12)),
            ValueError,
            "cannot be evaluated",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(f3(3, 2))


def f3(low, high):
    return torch.eye(low)[None], torch.eye(high).expand(1, low, -1, -1)


def product(factors, k=None, u=None, output=None):
    basis = KroneckerBasis(factors)
    k, u = torch.randn(1, 5) if k is None else k, torch.randn(1, 1, 5) if u is None else u
    return causal_product(k, u, output_basis=output or basis, kernel_basis=basis, input_basis=basis)


def test_parameters_can_be_factors():
    basis = KroneckerBasis(tuple(nn.Parameter(f) for f in f3(3, 2)))
    basis.to_polynomial(torch.randn(1, 1, 6)).sum().backward()
    assert basis.factors[0].grad is not None


@pytest.mark.parametrize("kind", [KroneckerBasis, BivariateBasis, ChebyshevBasis])
def test_values_at_other_nodes_are_refused(kind):
    basis = kind((triangular(torch.zeros(1, 3, 3)), triangular(torch.zeros(1, 3, 4, 4))))
    values = basis.evaluate(torch.randn(1, 1, 12))
    basis.interpolate(values)
    for given in (values[..., :5], values[0]):
        with pytest.raises(ValueError, match=r"values must be \(B, H, N\) at N = \d+.* nodes; got shape"):
            basis.interpolate(given)
    with pytest.raises(TypeError, match=r"a sequence must be torch.float32 as the factors are; got torch.float64"):
        basis.to_polynomial(torch.randn(1, 1, 12, dtype=torch.float64))


def test_sizes_that_make_no_digits_and_no_blocks():
    for size, order in ((0, 2), (-3, 2), (5, 0)):
        with pytest.raises(ValueError, match=f"at least 1; got size={size}, order={order}"):
            balanced_digits(size, order)
    for shape in ((3,), (2, 3)):
        with pytest.raises(ValueError, match=r"free must be \(..., b, b\), square blocks; got shape"):
            triangular(torch.zeros(shape))


@kinds
def test_a_spike_leaves_the_past_alone_in_float64_transforms(kind):
    torch.manual_seed(0)
    digits, length = (8, 8), 64
    blocks = [torch.randn(1, 8, 8) / 8, torch.randn(1, 8, 8, 8) / 8]
    basis = KINDS[kind](tuple(map(triangular, blocks)))
    output = KINDS[kind](
        tuple(
            triangular(torch.zeros(1, *basis.output_digits(digits)[: a + 1][:-1], d, d))
            for a, d in enumerate(basis.output_digits(digits))
        )
    )
    kernel, u = torch.randn(3, length), torch.randn(2, 3, length) * 1e-3
    spike = u.clone()
    spike[..., 40] = 1e6
    bases = {"output_basis": output, "kernel_basis": basis, "input_basis": basis}
    with use_backend("float64"):
        quiet, loud = (causal_product(kernel, each, **bases)[..., :40] for each in (u, spike))
    torch.testing.assert_close(loud, quiet, rtol=1e-5, atol=1e-5 * float(quiet.abs().max()))
