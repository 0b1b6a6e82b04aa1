"""The contract of monarch_mm and block_diagonal_mm over every backend, dtype and shape, against float64.

Triton's kernels run in its interpreter; tests/ops/test_triton_compiles.py compiles them for GPUs.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ops.test_monarch import dense_monarch, shapes
from torch._subclasses import FakeTensorMode

from milkweed import ops

BACKENDS = ["eager", "reference", "triton"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# In units of the dtype's precision, relative to the norm of the result. Operands are exact; the middle, the sum, what
# an activation gives and the gradients of each are rounded once, by half a unit. Float32 rounds within the sums and
# activations too.
LIMITS = {torch.float32: 4, torch.bfloat16: 2.5, torch.float16: 2.5}
# k, q, p, l, s, rows
SHAPES = {
    "one": (1, 1, 1, 1, 1, 1),
    "square": (4, 16, 16, 4, 16, 70),
    "odd sizes": (4, 8, 5, 4, 7, 63),
    "uneven ranks": (3, 7, 5, 3, 7, 9),
    "primes": (2, 37, 31, 2, 41, 67),
    "rank one": (8, 8, 9, 8, 16, 33),
    "more left blocks": (4, 16, 5, 8, 3, 40),
    "one block": (1, 20, 17, 1, 18, 9),
}
ACTIVATIONS = {
    "gelu": lambda z: z * (1 + torch.erf(z / 2**0.5)) / 2,
    "gelu_tanh": lambda z: z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3))) / 2,
    "relu": lambda z: z.clamp(min=0),
    "silu": lambda z: z / (1 + torch.exp(-z)),
    None: lambda z: z,
}

pytest.importorskip("triton")


def draw(shape, dtype=torch.float32):
    k, q, p, l, s, rows = shape  # noqa: E741
    sizes = (rows, k * p), (k, q, p), (l, s, k * q // l), (l * s,)
    scales = 1, p**-0.5, (k * q // l) ** -0.5, 1
    return [(torch.randn(size) * scale).to(dtype) for size, scale in zip(sizes, scales, strict=True)]


def exact(x, right, left, bias, activation):
    return ACTIVATIONS[activation](x @ dense_monarch(right, left).T + bias)


def exact_block_diagonal(x, weight, bias, activation):
    return ACTIVATIONS[activation](x @ torch.block_diag(*weight).T + bias)


def assert_near(found, expected, more=1.0):
    assert found.shape == expected.shape
    limit = more * LIMITS[found.dtype] * torch.finfo(found.dtype).eps
    assert (found.double() - expected).norm() <= limit * expected.norm()


def check(function, truth, tensors, activation, backend):
    """Values and all gradients."""
    wide = [t.double().requires_grad_() for t in tensors]
    expected = truth(*wide, activation)
    cotangent = torch.randn_like(expected).to(tensors[0].dtype)
    grads = torch.autograd.grad(expected, wide, cotangent.double())
    active = [t.clone().requires_grad_() for t in tensors]
    *first, bias = active
    y = function(*first, bias=bias, activation=activation, backend=backend)
    assert y.dtype == tensors[0].dtype
    assert_near(y, expected)
    for found, wanted in zip(torch.autograd.grad(y, active, cotangent), grads, strict=True):
        assert_near(found, wanted)


@pytest.fixture(params=["one launch", "two launches"])
def launches(request, monkeypatch):
    from milkweed.ops.monarch import triton

    if request.param == "two launches":
        monkeypatch.setattr(triton, "fused_tile", lambda right, left: None)
    return request.param


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_values_and_gradients(backend, shape, dtype):
    check(ops.monarch_mm, exact, draw(shape, dtype), "gelu", backend)


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_values_and_gradients_in_triton(shape, dtype, launches):
    check(ops.monarch_mm, exact, draw(shape, dtype), "gelu", "triton")


@pytest.mark.sampled
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_activations(backend, activation):
    tensors = draw(SHAPES["odd sizes"])
    check(ops.monarch_mm, exact, tensors, activation, backend)
    x, weight = tensors[:2]
    bias = torch.randn(weight.shape[0] * weight.shape[1])
    check(ops.block_diagonal_mm, exact_block_diagonal, [x, weight, bias], activation, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_block_diagonal(backend, dtype):
    x, weight = torch.randn(67, 93), torch.randn(3, 37, 31) / 31**0.5
    tensors = [t.to(dtype) for t in (x, weight, torch.randn(111))]
    check(ops.block_diagonal_mm, exact_block_diagonal, tensors, "silu", backend)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(shape=shapes(), rows=st.integers(0, 5))
def test_any_shape_in_triton(shape, rows):
    tensors = draw((*shape, rows))
    if rows:
        check(ops.monarch_mm, exact, tensors, None, "triton")
    else:
        *first, bias = (t.requires_grad_() for t in tensors)
        y = ops.monarch_mm(*first, bias=bias, activation="relu", backend="triton")
        assert y.shape == (0, bias.numel())
        grads = torch.autograd.grad(y, [*first, bias], torch.ones_like(y))
        assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)


@pytest.mark.sampled
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_some_inputs_only(backend, wanted):
    tensors = draw((4, 4, 3, 2, 5, 6))
    active = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
    wide = [t.double().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
    *first, bias = active
    ops.monarch_mm(*first, bias=bias, activation="silu", backend=backend).sum().backward()
    exact(*wide, "silu").sum().backward()
    for i, (found, expected) in enumerate(zip(active, wide, strict=True)):
        if i in wanted:
            assert_near(found.grad, expected.grad)
        else:
            assert found.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_leading_dimensions(backend, launches):
    _, right, left, bias = draw((4, 8, 5, 4, 7, 1))
    for lead in ((), (1,), (2, 3), (0,), (2, 0)):
        x = torch.randn(20, *lead).movedim(0, -1)
        y = ops.monarch_mm(x, right, left, bias=bias, backend=backend)
        assert_near(y, exact(x.double(), right.double(), left.double(), bias.double(), None))
    # Transposed factors, a slice of a wider input, and a gradient whose rows are one.
    right, left = right.mT.contiguous().mT, left.transpose(0, 2).contiguous().transpose(0, 2)
    x = torch.randn(9, 41)[:, 1::2].requires_grad_()
    wide = x.detach().double().requires_grad_()
    ops.monarch_mm(x, right, left, backend=backend).sum().backward()
    (wide @ dense_monarch(right.double(), left.double()).T).sum().backward()
    assert_near(x.grad, wide.grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives(backend):
    def curvature(function, tensors):
        y = function(*tensors)
        grads = torch.autograd.grad(y.sin().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), tensors)

    tensors = [t.requires_grad_() for t in draw((2, 4, 3, 2, 3, 5))]
    found = curvature(
        lambda x, right, left, bias: ops.monarch_mm(x, right, left, bias=bias, activation="gelu", backend=backend),
        tensors,
    )
    wide = [t.detach().double().requires_grad_() for t in tensors]
    expected = curvature(lambda *tensors: exact(*tensors, "gelu"), wide)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 2e-6 * b.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles(backend):
    def train(function, tensors):
        *first, bias = (t.clone().requires_grad_() for t in tensors)
        y = function(*first, bias=bias, activation="gelu", backend=backend)
        return torch.autograd.grad(y, [*first, bias], torch.ones_like(y))

    tensors = draw((2, 4, 3, 2, 3, 5))
    compiled = torch.compile(ops.monarch_mm, fullgraph=True, backend="aot_eager")
    for found, expected in zip(train(compiled, tensors), train(ops.monarch_mm, tensors), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast(backend, dtype):
    tensors = draw((4, 16, 16, 4, 16, 8))
    x, right, left, bias = (t.requires_grad_() for t in tensors)
    with torch.autocast("cpu", dtype=dtype):
        y = ops.monarch_mm(x, right, left, bias=bias, activation="gelu", backend=backend)
    assert y.dtype == dtype
    assert_near(y, exact(*(t.double() for t in tensors), "gelu"), more=1.5)  # the operands are rounded too
    y.float().sum().backward()
    assert {t.grad.dtype for t in (x, right, left, bias)} == {torch.float32}


def test_custom_ops_keep_their_promises():
    from milkweed.ops.block_diagonal import triton as block_diagonal
    from milkweed.ops.monarch import triton as monarch

    x, right, left, bias = (t.requires_grad_() for t in draw((2, 4, 3, 2, 3, 5)))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(monarch._forward, (x, right, left, bias, "gelu", True, True), test_utils=checks)
    torch.library.opcheck(monarch._forward, (x, right, left, None, None, False, False), test_utils=checks)
    torch.library.opcheck(block_diagonal._forward, (x, right, bias[:0].new_zeros(8), "relu", True), test_utils=checks)


def test_groups_of_rows_equal_all_at_once(monkeypatch):
    from milkweed.ops.monarch import triton

    x, right, left, bias = draw(SHAPES["uneven ranks"])
    whole = ops.monarch_mm(x, right, left, bias=bias, activation="gelu", backend="triton")
    monkeypatch.setattr(triton, "rows_at_a_time", lambda x, right: 4)  # the last group is partial
    parts = ops.monarch_mm(x, right, left, bias=bias, activation="gelu", backend="triton")
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)


def test_many_rows_are_shared_out():
    check(ops.monarch_mm, exact, draw((2, 3, 3, 2, 3, 1100)), None, "triton")


def test_exported_without_gradients_then_trained():
    x, right, left, bias = draw((2, 4, 3, 2, 3, 5))

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.factors = torch.nn.ParameterList([right, left, bias])

        def forward(self, x):
            right, left, bias = self.factors
            return ops.monarch_mm(x, right, left, bias=bias, activation="gelu", backend="triton")

    layer = Layer()
    with torch.no_grad():
        exported = torch.export.export(layer, (x,)).module()
    exported(x).sum().backward()
    layer(x).sum().backward()
    for found, expected in zip(exported.parameters(), layer.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_what_triton_refuses(monkeypatch):
    x, right, left, bias = draw((2, 4, 3, 2, 3, 5), torch.float64)
    with pytest.raises(ValueError, match=r"takes float32, bfloat16 and float16, got torch\.float64"):
        ops.monarch_mm(x, right, left, bias=bias, backend="triton")
    x, weight = x.float(), right.float()
    choice = ops.explain("block_diagonal_mm", x, weight, activation="gelu")
    assert choice.backend == "eager"
    assert "it runs only if asked for by name" in choice.refused["triton"]
    monkeypatch.setattr("milkweed.ops._triton.INTERPRETING", False)
    with pytest.raises(ValueError, match="it needs a GPU, got a tensor on cpu"):
        ops.block_diagonal_mm(x, weight, backend="triton")


@pytest.mark.parametrize(("capability", "chosen"), [((9, 0), "triton"), ((8, 0), "triton"), ((7, 5), "eager")])
def test_a_gpu_takes_triton(monkeypatch, capability, chosen):
    monkeypatch.setattr("milkweed.ops._triton.INTERPRETING", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    with FakeTensorMode():
        x, weight = torch.empty(3, 8, device="cuda"), torch.empty(2, 4, 4, device="cuda")
    choice = ops.explain("block_diagonal_mm", x, weight)
    assert choice.backend == chosen
    if chosen == "eager":
        assert "compute capability 8.0 or above, got a GPU" in choice.refused["triton"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_epilogue(backend):
    x, right, left, bias = draw((2, 4, 3, 2, 3, 5))
    for change, error, message in (
        ({"bias": bias[:3]}, ValueError, r"bias must be \(6,\), one number per output; got shape \(3,\)"),
        ({"bias": bias.double()}, TypeError, r"bias must have x's dtype torch.float32; got torch.float64"),
        ({"activation": "gelo"}, ValueError, "activation='gelo' is unknown; did you mean 'gelu'"),
    ):
        with pytest.raises(error, match=message):
            ops.monarch_mm(x, right, left, backend=backend, **change)


def test_plan():
    from milkweed.ops._triton_gemm import PLAIN, Tile, _group
    from milkweed.ops.monarch.triton import Fused, _between, fused_tile

    def factors(n, nblocks, dtype=torch.bfloat16):
        side = n // nblocks
        return [torch.empty(nblocks, side, side, dtype=dtype, device="meta") for _ in range(2)]

    # Small factors in one launch, with as many rows as registers hold; wide ones in two.
    assert fused_tile(*factors(512, 4)) == Fused(64, 4, 4, 32, 32, 32)
    assert fused_tile(*factors(1024, 16)) == Fused(32, 16, 16, 4, 16, 16)
    assert fused_tile(*factors(256, 4, torch.float32)) == Fused(32, 4, 4, 16, 32, 32)
    assert fused_tile(*factors(4096, 4)) is None
    assert fused_tile(*factors(4096, 16)) is None
    # With many blocks a program writes neighbours of several.
    tile = Tile(128, 256, 64)
    chosen = [_group(min(nblocks, 8), nblocks, tile, 4096 // nblocks, 4096 // nblocks, 2) for nblocks in (4, 16, 64)]
    assert chosen == [(1, 256), (4, 64), (8, 32)]
    assert _group(1, 15, tile, 20, 20, 2) == (1, 32)
    assert _between(torch.empty(2, 5, 3), torch.empty(1, 2, 10)) == PLAIN
