"""Learnable transforms: they start at the transform they name, and leave it."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from milkweed.nn import LearnableTransform, LearnableTransform2d

STARTS = ["dft", "dct", "dst", "hadamard", "random"]
SIZES = [1, 2, 7, 36, 63, 168, 1000, 1024]
starts = pytest.mark.parametrize("start", STARTS)
modes = pytest.mark.parametrize("unitary", [False, True], ids=["free", "unitary"])


def dense(start, n, inverse=False, norm="ortho"):
    """The transform by its definition, in float64."""
    if start == "dft":
        return (torch.fft.ifft if inverse else torch.fft.fft)(torch.eye(n, dtype=torch.complex128), dim=0, norm=norm)
    if start == "hadamard":
        matrix = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)]).double()
        scale = 1 / math.sqrt(n)
    else:
        k, t = torch.arange(n)[:, None], torch.arange(n)
        turns = ((k + (start == "dst")) * (2 * t + 1) % (4 * n)).double() * (math.pi / (2 * n))
        matrix = 2 * (turns.cos() if start == "dct" else turns.sin())
        scale = torch.full((n, 1), math.sqrt(1 / (2 * n)), dtype=torch.float64)
        scale[0 if start == "dct" else -1] = math.sqrt(1 / (4 * n))
    matrix = matrix * scale if norm == "ortho" else matrix
    return torch.linalg.inv(matrix) if inverse else matrix


def perturb(module, by=0.3):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += by * torch.randn_like(parameter)
    return module


@modes
@pytest.mark.parametrize("start", ["dft", "dct", "dst"])
@pytest.mark.parametrize("n", SIZES)
def test_starts_exactly(start, n, unitary):
    layer = LearnableTransform(n, start, unitary=unitary, dtype=torch.float64)
    expected = dense(start, n)
    found = layer(torch.eye(n, dtype=torch.float64)).mT
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= 1e-13 * expected.abs().max()
    x = torch.randn(2, 3, n, dtype=torch.complex128)
    torch.testing.assert_close(layer(x), x @ expected.mT.to(x.dtype), rtol=1e-11, atol=1e-11)


@modes
@pytest.mark.parametrize("n", [1, 2, 8, 64, 1024])
def test_starts_exactly_at_hadamard(n, unitary):
    layer = LearnableTransform(n, "hadamard", unitary=unitary, dtype=torch.float64)
    torch.testing.assert_close(layer(torch.eye(n).double()), dense("hadamard", n), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("start", ["dft", "dct", "dst", "hadamard"])
@pytest.mark.parametrize("norm", ["ortho", "backward"])
def test_starts_at_the_inverse(start, norm):
    layer = LearnableTransform(16, start, inverse=True, norm=norm, dtype=torch.float64)
    expected = dense(start, 16, inverse=True, norm=norm)
    torch.testing.assert_close(layer(torch.eye(16).double()).mT, expected, rtol=1e-12, atol=1e-12)
    if norm == "ortho":
        turning = perturb(LearnableTransform(16, start, inverse=True, unitary=True, dtype=torch.float64))
        check_unitary(turning, 1e-12)


@starts
@modes
def test_matrix_is_what_it_applies(start, unitary):
    layer = perturb(LearnableTransform(16, start, unitary=unitary, dtype=torch.float64))
    x = torch.randn(5, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.matrix()(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(x), x.to(layer(x).dtype) @ layer.matrix().to_dense().mT, rtol=1e-12, atol=1e-12)
    layer.matrix().to_dense().abs().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_leading_dimensions_and_strides():
    layer = LearnableTransform(6, "dct")
    for lead in [(), (1,), (2, 3), (0,)]:
        assert layer(torch.randn(*lead, 6)).shape == (*lead, 6)
    x = torch.randn(6, 4)
    torch.testing.assert_close(layer(x.T), layer(x.T.contiguous()))


@pytest.mark.sampled
@starts
@modes
def test_gradients(start, unitary):
    layer = perturb(LearnableTransform(4, start, unitary=unitary, dtype=torch.float64))
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert gradcheck(function, (x, *values))


@starts
@modes
def test_everything_stored_is_real(start, unitary):
    layer = LearnableTransform(16, start, unitary=unitary)
    assert all(parameter.dtype == torch.float32 for parameter in layer.parameters())
    assert all(not tensor.is_complex() for tensor in layer.state_dict().values())
    assert layer(torch.randn(16)).is_complex() == (start == "dft")


def fit(layer, target, steps, lr=0.03):
    """Relative error of the matrix before and after training on random vectors."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=lr)

    def error():
        with torch.no_grad():
            return float((layer.matrix().to_dense() - target).norm() / target.norm())

    before = error()
    for _ in range(steps):
        x = torch.randn(64, target.shape[1])
        optimizer.zero_grad()
        (layer(x) - x.to(target.dtype) @ target.mT).abs().square().mean().backward()
        optimizer.step()
    return before, error()


@pytest.mark.parametrize(("start", "goal"), [("dct", "dst"), ("random", "hadamard")])
def test_learns_another_transform(start, goal):
    target = LearnableTransform(16, goal).matrix().to_dense().detach()
    before, after = fit(LearnableTransform(16, start), target, 150)
    assert before > 0.3
    assert after < 0.1 * before


@pytest.mark.parametrize("start", ["dft", "dct", "hadamard"])
def test_learns_another_unitary_and_stays_unitary(start):
    target = perturb(LearnableTransform(16, start, unitary=True), 0.4).matrix().to_dense().detach()
    layer = LearnableTransform(16, start, unitary=True)
    before, after = fit(layer, target, 150)
    assert before > 0.3
    assert after < 0.1 * before
    check_unitary(layer, 1e-5)


def check_unitary(layer, tolerance):
    matrix = layer.matrix().to_dense().detach()
    unit = torch.eye(len(matrix), dtype=matrix.dtype)
    assert (matrix @ matrix.mH - unit).abs().max() < tolerance
    x = torch.randn(7, len(matrix), dtype=matrix.dtype)
    assert (layer(x).norm(dim=1) / x.norm(dim=1) - 1).abs().max() < tolerance


@starts
@pytest.mark.parametrize("n", [7, 64])
def test_unitary_wherever_the_parameters_are(start, n):
    n = 8 if start == "hadamard" and n == 7 else n
    layer = LearnableTransform(n, start, unitary=True)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        (layer(torch.randn(8, n)) - 1).abs().square().sum().backward()
        optimizer.step()
    check_unitary(layer, 1e-5)
    # The factors stay those of the transform's own class.
    free = LearnableTransform(n, start)
    assert [factor.shape for factor in layer._factors()] == [factor.shape for factor in free._factors()]


@pytest.mark.sampled
@pytest.mark.parametrize("start", ["dft", "dct"])
@modes
def test_compiles(start, unitary):
    layer, x = perturb(LearnableTransform(12, start, unitary=unitary)), torch.randn(3, 12)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = layer(x)
    torch.testing.assert_close(compiled(x), expected)
    wanted = torch.autograd.grad(expected.abs().sum(), list(layer.parameters()))
    found = torch.autograd.grad(compiled(x).abs().sum(), list(layer.parameters()))
    torch.testing.assert_close(found, wanted)


@starts
@modes
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_does_not_round(start, unitary, low):
    layer, x = LearnableTransform(16, start, unitary=unitary), torch.randn(3, 16)
    with torch.autocast("cpu", dtype=low):
        y = layer(x)
        rounded = layer(x.to(low))
        matrix = layer.matrix()
    assert y.dtype == rounded.dtype == matrix.dtype == (torch.complex64 if start == "dft" else torch.float32)
    assert torch.equal(y, layer(x))
    assert torch.equal(matrix.to_dense(), layer.matrix().to_dense())
    rounded.abs().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in layer.parameters())


def test_half_precision_parameters():
    for start in ("dft", "dct"):
        layer = LearnableTransform(12, start, dtype=torch.bfloat16)
        y = layer(torch.randn(2, 12, dtype=torch.bfloat16))
        assert y.dtype == (torch.complex64 if start == "dft" else torch.float32)
        y.abs().sum().backward()
        assert layer.right.grad.dtype == torch.bfloat16


@starts
@modes
def test_copies(start, unitary):
    layer, x = perturb(LearnableTransform(16, start, unitary=unitary)), torch.randn(3, 16)
    expected = layer(x)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = LearnableTransform(16, start, unitary=unitary)
    assert not torch.equal(fresh(x), expected)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for copied in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(x), expected)


@starts
@modes
def test_meta(start, unitary):
    layer = LearnableTransform(16, start, unitary=unitary, device="meta")
    with torch.device("meta"):
        same = LearnableTransform(16, start, unitary=unitary)
    for module in (layer, same):
        assert all(tensor.is_meta for tensor in module.state_dict().values())
        assert module(torch.empty(2, 16, device="meta")).shape == (2, 16)
        torch.manual_seed(3)
        module.to_empty(device="cpu").reset_parameters()
        torch.manual_seed(3)
        direct = LearnableTransform(16, start, unitary=unitary)
        x = torch.randn(2, 16)
        assert torch.equal(module(x), direct(x))


def test_reset_goes_back_to_the_start():
    layer, x = LearnableTransform(12, "dst", unitary=True), torch.randn(3, 12)
    before = layer(x)
    perturb(layer)
    assert not torch.allclose(layer(x), before)
    layer.reset_parameters()
    assert torch.equal(layer(x), before)


def test_random_start_is_orthogonal_and_drawn_anew():
    layer = LearnableTransform(12, "random")
    check_unitary(layer, 1e-5)
    before = layer(torch.ones(12))
    layer.reset_parameters()
    assert not torch.equal(layer(torch.ones(12)), before)


@modes
@pytest.mark.parametrize("sizes", [(6, 35), (1, 8), (7, 12)])
def test_two_dimensions(sizes, unitary):
    layer = LearnableTransform2d(*sizes, unitary=unitary, dtype=torch.float64)
    x = torch.randn(2, 3, *sizes, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.fft.fft2(x, norm="ortho"), rtol=1e-12, atol=1e-12)
    back = LearnableTransform2d(*sizes, inverse=True, unitary=unitary, dtype=torch.float64)
    torch.testing.assert_close(back(layer(x)).real, x, rtol=1e-12, atol=1e-12)
    real = LearnableTransform2d(*sizes, "dct", norm="backward", dtype=torch.float64)
    expected = dense("dct", sizes[0], norm="backward") @ x @ dense("dct", sizes[1], norm="backward").mT
    torch.testing.assert_close(real(x), expected, rtol=1e-12, atol=1e-12)


def test_two_dimensions_train_compile_and_reset():
    layer, x = LearnableTransform2d(4, 6, device="meta"), torch.randn(2, 4, 6)
    layer.to_empty(device="cpu").reset_parameters()
    before = layer(x)
    torch.testing.assert_close(before, torch.fft.fft2(x, norm="ortho"))
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), before)
    layer(x).abs().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    fresh = perturb(LearnableTransform2d(4, 6))
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), before)


def test_in_a_model():
    model = nn.Sequential(LearnableTransform(8, "dct"), nn.Linear(8, 2))
    model(torch.randn(3, 8)).sum().backward()
    assert repr(model[0]) == "LearnableTransform(n=8, start='dct', inverse=False, norm='ortho', unitary=False)"


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: LearnableTransform(8, "hadamar"), ValueError, "start='hadamar' is unknown; did you mean 'hadamard'"),
        (lambda: LearnableTransform(0), ValueError, "n must be a whole number of at least 1; got n=0"),
        (lambda: LearnableTransform(0, "random"), ValueError, "n must be a whole number of at least 1"),
        (lambda: LearnableTransform(12, "hadamard"), ValueError, "power of two .* the nearest is 16"),
        (lambda: LearnableTransform(8, norm="forwards"), ValueError, "did you mean 'forward'"),
        (lambda: LearnableTransform(8, "random", norm="backward"), ValueError, "norm must be 'ortho' for start='rand"),
        (lambda: LearnableTransform(8, norm="backward", unitary=True), ValueError, "unitary=True needs .*norm='ortho'"),
        (lambda: LearnableTransform(8, dtype=torch.complex64), TypeError, "use torch.float32, complex numbers"),
        (lambda: LearnableTransform(8, dtype=torch.int64), TypeError, "dtype must be real floating point; got"),
        (lambda: LearnableTransform(8)(torch.randn(7)), ValueError, r"x must be \(\.\.\., n=8\); got shape \(7,\)"),
        (lambda: LearnableTransform(8)(torch.tensor(1.0)), ValueError, r"got shape \(\)"),
        (lambda: LearnableTransform(8)(torch.arange(8)), TypeError, r"got torch.int64; use x.float\(\)"),
        (lambda: LearnableTransform2d(3, 4)(torch.randn(4, 3)), ValueError, r"height=3, width=4\); got shape \(4, 3\)"),
        (lambda: LearnableTransform2d(3, 4)(torch.randn(4)), ValueError, r"got shape \(4,\)"),
    ],
)
def test_bad_input(build, error, message):
    with pytest.raises(error, match=message):
        build()
