"""dense_ssm_kernel, dense_ssm_state and dense_ssm_advance against float64 loops."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from milkweed import ops, ssm
from milkweed.ops.dense_ssm_kernel import eager

BACKENDS = ["eager", "reference"]
LENGTHS = [1, 2, 3, 63, 997, 1000, 4096]


def legs(n):
    k = torch.arange(n, dtype=torch.float64)
    root = (2 * k + 1).sqrt()
    return -torch.tril(root[:, None] * root, -1) - torch.diag(k + 1), root


def fout(n):
    b = torch.zeros(n, dtype=torch.float64)
    b[0], b[1::2] = 1, 2**0.5
    a = -torch.outer(b, b)
    for k in range(1, n - 1, 2):
        frequency = math.pi * (k + 1) / 2
        a[k, k + 1] -= frequency
        a[k + 1, k] += frequency
    return a, b


def draw(*lead, system=legs, modes=6, dt=None, dtype=torch.float64):
    """A bilinear discretisation with steps between 1e-4 and 1e-1, and a random readout."""
    a, b = system(modes)
    exponent = -4 + 3 * torch.rand(*lead, 1, 1, dtype=torch.float64)
    step = 10**exponent if dt is None else torch.full_like(exponent, dt)
    below, above = torch.eye(modes) - step / 2 * a, torch.eye(modes) + step / 2 * a
    b = torch.linalg.solve(below, (step * b[:, None]).expand(*lead, modes, 1))[..., 0]
    c = torch.randn(*lead, modes, dtype=torch.float64)
    return torch.linalg.solve(below, above).to(dtype), b.to(dtype), c.to(dtype)


def kernel(a, b, c, length):
    lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-1], c.shape[:-1])
    a, x, c = a.double(), b.double().expand(*lead, -1)[..., None], c.double()
    lags = []
    for _ in range(length):
        lags.append((c * x[..., 0]).sum(-1))
        x = a @ x
    return torch.stack(lags, -1)


def state(u, a, b, initial=None):
    a, b = a.double(), b.double()
    x = torch.zeros(*u.shape[:-1], a.shape[-1], dtype=torch.float64) if initial is None else initial.double()
    for t in range(u.shape[-1]):
        x = (a @ x[..., None])[..., 0] + b * u[..., t, None].double()
    return x


def relative(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


def assert_same_gradients(found, expected, inputs):
    cotangent = torch.randn_like(expected)
    found, expected = (
        torch.autograd.grad(y, inputs, cotangent, allow_unused=True, materialize_grads=True) for y in (found, expected)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_kernel(length, backend):
    a, b, c = draw(3)
    found = ops.dense_ssm_kernel(a, b, c, length, backend=backend)
    assert relative(found, kernel(a, b, c, length)) < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 2, 63, 997])
def test_state(length, backend):
    a, b, _ = draw(3)
    u = torch.randn(2, 3, length, dtype=torch.float64)
    assert relative(ops.dense_ssm_state(u, a, b, backend=backend), state(u, a, b)) < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("steps", [0, 1, 2, 63, 997])
def test_advance(steps, backend):
    a, b, _ = draw(3)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    found = ops.dense_ssm_advance(x, a, steps, backend=backend)
    assert relative(found, state(torch.zeros(2, 3, steps), a, b, x)) < 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
def test_advance_by_different_steps(backend):
    a, b, _ = draw(3)
    x = torch.randn(2, 2, 3, 6, dtype=torch.float64)
    steps = torch.tensor([[0, 7], [100, 1]])
    found = ops.dense_ssm_advance(x, a, steps, backend=backend)
    for i in range(2):
        for j in range(2):
            zeros = torch.zeros(3, int(steps[i, j]))
            torch.testing.assert_close(found[i, j], state(zeros, a, b, x[i, j]))


def test_slow_modes_keep_their_digits():
    # Squared with the identity in, this errs by 1e-3.
    a, b, c = draw(1, system=fout, modes=64, dt=1e-4, dtype=torch.float32)
    assert relative(ops.dense_ssm_kernel(a, b, c, 16384), kernel(a, b, c, 16384)) < 1e-5


def test_stream_in_chunks():
    a, b, c = draw(3)
    u = torch.randn(2, 3, 150, dtype=torch.float64)
    whole = ops.fft_conv(u, ops.dense_ssm_kernel(a, b, c, 150))
    x, parts = None, []
    for chunk in u.split([80, 1, 69], -1):
        length = chunk.shape[-1]
        y = ops.fft_conv(chunk, ops.dense_ssm_kernel(a, b, c, length))
        final = ops.dense_ssm_state(chunk, a, b)
        if x is not None:
            y = y + ops.dense_ssm_kernel(a, x, torch.einsum("hn,hnm->hm", c, a), length)
            final = final + ops.dense_ssm_advance(x, a, length)
        x = final
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, -1), whole)
    torch.testing.assert_close(x, state(u, a, b))


@pytest.mark.parametrize("length", [1, 2, 63, 1000])
def test_gradients(length):
    a, b, c = (t.requires_grad_() for t in draw(3))
    assert_same_gradients(ops.dense_ssm_kernel(a, b, c, length), kernel(a, b, c, length), (a, b, c))
    wide = torch.randn(5, 3, 6, dtype=torch.float64, requires_grad=True)
    assert_same_gradients(ops.dense_ssm_kernel(a, b, wide, length), kernel(a, b, wide, length), (a, b, wide))
    assert_same_gradients(ops.dense_ssm_kernel(a, wide, c, length), kernel(a, wide, c, length), (a, wide, c))


@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)])
def test_some_gradients(needed):
    inputs = [t.requires_grad_(bool(need)) for t, need in zip(draw(3), needed, strict=True)]
    wanted = [t for t in inputs if t.requires_grad]
    assert_same_gradients(ops.dense_ssm_kernel(*inputs, 77), kernel(*inputs, 77), wanted)
    a, b, _ = inputs
    u = torch.randn(2, 3, 77, dtype=torch.float64, requires_grad=bool(needed[2]))
    assert_same_gradients(ops.dense_ssm_state(u, a, b), state(u, a, b), [t for t in (u, a, b) if t.requires_grad])


@pytest.mark.parametrize("length", [1, 63, 400])
def test_state_and_advance_gradients(length):
    a, b, _ = (t.requires_grad_() for t in draw(3))
    u = torch.randn(2, 3, length, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert_same_gradients(ops.dense_ssm_state(u, a, b), state(u, a, b), (u, a, b))
    found = torch.stack([ops.dense_ssm_advance(x, a, torch.tensor([length, 5]))[i] for i in range(2)])
    zeros = torch.zeros(3, max(length, 5))
    expected = torch.stack([state(zeros[:, :length], a, b, x[0]), state(zeros[:, :5], a, b, x[1])])
    assert_same_gradients(found, expected, (x, a))


def test_float32_gradients():
    a, b, c = draw(4, modes=64, dtype=torch.float32)
    wide = [t.double().requires_grad_() for t in (a, b, c)]
    narrow = [t.requires_grad_() for t in (a, b, c)]
    cotangent = torch.randn(4, 1000, dtype=torch.float64)
    expected = torch.autograd.grad(kernel(*wide, 1000), wide, cotangent)
    found = torch.autograd.grad(ops.dense_ssm_kernel(*narrow, 1000), narrow, cotangent.float())
    for x, y in zip(found, expected, strict=True):
        assert relative(x, y) < 1e-5


def test_first_and_second_derivatives():
    a, b, c = (t.requires_grad_() for t in draw(2, modes=2, dt=0.1))
    u = torch.randn(1, 2, 6, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    steps = torch.tensor([5, 2])
    for function, inputs in (
        (lambda a, b, c: ops.dense_ssm_kernel(a, b, c, 7), (a, b, c)),
        (ops.dense_ssm_state, (u, a, b)),
        (lambda x, a: ops.dense_ssm_advance(x, a, steps), (x, a)),
    ):
        assert gradcheck(function, inputs)
        assert gradgradcheck(function, inputs)


def test_forward_mode_takes_the_plain_formula():
    a, b, c = draw(2, modes=2)
    _, found = torch.func.jvp(lambda c: ops.dense_ssm_kernel(a, b, c, 9), (c,), (torch.ones_like(c),))
    torch.testing.assert_close(found, kernel(a, b, torch.ones_like(c), 9))


@pytest.mark.parametrize(
    ("a_lead", "b_lead", "c_lead"),
    [
        ((), (), ()),
        ((3,), (3,), (5, 2, 3)),
        ((3,), (5, 2, 3), (3,)),
        ((3,), (5, 3), (5, 3)),
        ((), (3,), (3,)),
        ((3,), (), (4, 1)),
        ((5, 1), (3,), (3,)),
        ((2, 3), (3,), (2, 1)),
        ((3,), (3,), (0, 3)),
        ((0,), (0,), (0,)),
    ],
)
def test_leading_dimensions_broadcast(a_lead, b_lead, c_lead):
    a, (_, b, _), (_, _, c) = draw(*a_lead)[0], draw(*b_lead), draw(*c_lead)
    found = ops.dense_ssm_kernel(a, b, c, 20)
    torch.testing.assert_close(found, kernel(a, b, c, 20))


def test_state_without_leading_dimension_and_without_batch():
    a, b, _ = draw(3)
    u = torch.randn(3, 20, dtype=torch.float64)
    torch.testing.assert_close(ops.dense_ssm_state(u, a, b), state(u, a, b))
    assert ops.dense_ssm_state(torch.randn(0, 3, 20), a, b).shape == (0, 3, 6)
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(ops.dense_ssm_advance(x, a, 4), state(torch.zeros(3, 4), a, b, x))
    assert ops.dense_ssm_advance(torch.randn(0, 3, 6), a, 4).shape == (0, 3, 6)


def test_strides():
    a, b, c = draw(3)
    turned = a.mT.contiguous().mT
    strided = torch.stack([c, c], -1)[..., 0]
    torch.testing.assert_close(ops.dense_ssm_kernel(turned, b, strided, 50), kernel(a, b, c, 50))
    u = torch.randn(2, 50, 3, dtype=torch.float64).transpose(1, 2)
    torch.testing.assert_close(ops.dense_ssm_state(u, turned, b), state(u, a, b))


def test_blocks_change_nothing(monkeypatch):
    monkeypatch.setattr(eager, "_BLOCK_BYTES", 1)
    a, b, c = (t.requires_grad_() for t in draw(5))
    u = torch.randn(2, 5, 77, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert_same_gradients(ops.dense_ssm_kernel(a, b, c, 77), kernel(a, b, c, 77), (a, b, c))
    assert_same_gradients(ops.dense_ssm_state(u, a, b), state(u, a, b), (u, a, b))
    assert_same_gradients(ops.dense_ssm_advance(x, a, 9), state(torch.zeros(5, 9), a, b, x), (x, a))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, backend):
    a, b, c = draw(3, dtype=torch.float32)
    half = c.to(dtype)
    u = torch.randn(2, 3, 100).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.dense_ssm_kernel(a, b, half, 100, backend=backend)
        exact_y = ops.dense_ssm_kernel(a, b, c, 100, backend=backend)
        x = ops.dense_ssm_state(u, a, b, backend=backend)
        later = ops.dense_ssm_advance(x, a, 100, backend=backend)
    assert y.dtype == dtype
    assert relative(y, kernel(a, b, half, 100)) < torch.finfo(dtype).eps
    assert relative(exact_y, kernel(a, b, c, 100)) < 1e-5
    assert x.dtype == later.dtype == torch.float32
    assert relative(x, state(u, a, b)) < 1e-5
    assert relative(later, state(torch.zeros(3, 100), a, b, x)) < 1e-5


def test_backward_under_autocast_stays_in_float32():
    a, b, c = (t.requires_grad_() for t in draw(3, dtype=torch.float32))
    expected = torch.autograd.grad(ops.dense_ssm_kernel(a, b, c, 100).sum(), (a, b, c))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(ops.dense_ssm_kernel(a, b, c, 100).sum(), (a, b, c))
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_meta():
    a, b, c = (t.to("meta") for t in draw(3))
    assert ops.dense_ssm_kernel(a, b, c, 100).shape == (3, 100)
    u = torch.empty(2, 3, 50, device="meta")
    x = ops.dense_ssm_state(u, a, b)
    assert x.shape == ops.dense_ssm_advance(x, a, 5).shape == (2, 3, 6)


def chunk(u, x, a, b, c):
    """What a layer does with a chunk of a stream."""
    length = u.shape[-1]
    y = ops.fft_conv(u, ops.dense_ssm_kernel(a, b, c, length))
    y = y + ops.dense_ssm_kernel(a, x, torch.einsum("hn,hnm->hm", c, a), length)
    return y, ops.dense_ssm_state(u, a, b) + ops.dense_ssm_advance(x, a, length)


def test_compiles_with_changing_length():
    compiled = torch.compile(chunk, fullgraph=True, backend="aot_eager", dynamic=True)
    system = [t.requires_grad_() for t in draw(3)]
    for batch, length in ((2, 10), (3, 33), (4, 100)):
        u = torch.randn(batch, 3, length, dtype=torch.float64)
        x = torch.randn(batch, 3, 6, dtype=torch.float64, requires_grad=True)
        found, expected = (
            torch.cat([part.flatten() for part in function(u, x, *system)]) for function in (compiled, chunk)
        )
        torch.testing.assert_close(found, expected)
        assert_same_gradients(found, expected, (x, *system))


def test_exports_with_dynamic_sizes():
    class Chunk(torch.nn.Module):
        def forward(self, u, x, a, b, c):
            return chunk(u, x, a, b, c)

    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=1 << 20)
    system = draw(3)
    example = (torch.randn(2, 3, 50, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64), *system)
    shapes = ({0: batch, 2: length}, {0: batch}, None, None, None)
    exported = torch.export.export(Chunk(), example, dynamic_shapes=shapes).module()
    u, x = torch.randn(5, 3, 333, dtype=torch.float64), torch.randn(5, 3, 6, dtype=torch.float64)
    for y, z in zip(exported(u, x, *system), chunk(u, x, *system), strict=True):
        torch.testing.assert_close(y, z)


A, B, C = torch.eye(4).expand(3, 4, 4), torch.zeros(3, 4), torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("a", "b", "c", "length", "error", "message"),
    [
        (
            torch.zeros(3, 4, 5),
            B,
            C,
            8,
            ValueError,
            r"a must be square, \(..., N, N\) with N >= 1; got shape \(3, 4, 5\)",
        ),
        (torch.zeros(4), B, C, 8, ValueError, "a must be square"),
        (torch.zeros(3, 0, 0), B, C, 8, ValueError, "a must be square"),
        (A, torch.zeros(3, 5), C, 8, ValueError, r"b must be \(..., N\) with N = 4 as in a; got shape \(3, 5\)"),
        (A, B, torch.zeros(3, 5), 8, ValueError, r"c must be \(..., N\) with N = 4"),
        (
            A,
            B,
            torch.zeros(2, 4),
            8,
            ValueError,
            r"leading dimensions must broadcast; got a \(3, 4, 4\), b \(3, 4\), c",
        ),
        (A, B, C, 0, ValueError, "length must be an integer of at least 1; got 0"),
        (A, B, C, 2.0, ValueError, "length must be an integer of at least 1; got 2.0"),
        (A.long(), B, C, 8, TypeError, "a must be real floating point; got torch.int64"),
        (A, B.cfloat(), C, 8, TypeError, "b must be real floating point; got torch.complex64"),
        (A, B, C.bool(), 8, TypeError, "c must be real floating point; got torch.bool"),
    ],
)
def test_bad_input(a, b, c, length, error, message):
    with pytest.raises(error, match=message):
        ops.dense_ssm_kernel(a, b, c, length)


def test_bad_state_input():
    u = torch.zeros(2, 3, 8)
    with pytest.raises(ValueError, match=r"u, a and b must be \(..., H, L\), \(H, N, N\) and \(H, N\); got shapes"):
        ops.dense_ssm_state(torch.zeros(2, 5, 8), A, B)
    with pytest.raises(ValueError, match="u, a and b must be"):
        ops.dense_ssm_state(u, A[0], B[0])
    with pytest.raises(ValueError, match="u must have length 1 at least"):
        ops.dense_ssm_state(u[..., :0], A, B)
    with pytest.raises(TypeError, match=r"u must be real floating point; got torch.int64"):
        ops.dense_ssm_state(u.long(), A, B)


def test_bad_steps():
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"x and a must be \(..., H, N\) and \(H, N, N\)"):
        ops.dense_ssm_advance(x, A[0], 1)
    with pytest.raises(ValueError, match="steps must be an integer of at least 0; got -1"):
        ops.dense_ssm_advance(x, A, -1)
    with pytest.raises(ValueError, match="steps must be at least 0; got -3"):
        ops.dense_ssm_advance(x, A, torch.tensor([2, -3]))
    with pytest.raises(ValueError, match=r"steps must be one for each state, \(2,\); got shape \(3,\)"):
        ops.dense_ssm_advance(x, A, torch.tensor([1, 2, 3]))
    with pytest.raises(TypeError, match=r"steps must be integers; got torch.float32"):
        ops.dense_ssm_advance(x, A, torch.ones(2))


def test_mixed_dtypes_are_computed_in_the_widest():
    a, b, c = draw(3)
    found = ops.dense_ssm_kernel(a, b.float(), c.float(), 50)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, kernel(a, b.float(), c.float(), 50).float())


def test_flops_are_those_of_the_products():
    from torch.utils.flop_counter import FlopCounterMode

    def in_place(total, x, y, out_shape=None, **kwargs):  # torch counts baddbmm only
        return 2 * math.prod(x) * y[-1]

    def products(function, *args):
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: in_place}) as counter:
            function(*args)
        return counter.get_total_flops()

    a, b, c = draw(3)
    c, u = c[None], torch.randn(2, 3, 1000, dtype=torch.float64)
    shapes = (a.shape, b.shape, c.shape)
    assert products(eager._kernel, a, b, c, 1000) == eager._kernel_flops(*shapes, 1000)
    assert products(eager._state, u, a, b) == eager._state_flops(u.shape, a.shape, b.shape)
    for needed in ((True, True, True), (False, True, True), (True, False, False), (False, False, True)):
        counted = products(eager._gradients, u[:1], a, b, c, *needed)
        assert counted == eager._kernel_backward_flops((1, 3, 1000), *shapes, *needed)
    for t in (a, b, c, u):
        t.requires_grad_()

    def train(function, *args):
        with FlopCounterMode(display=False) as counter:
            function(*args).sum().backward()
        return counter.get_total_flops()

    forward = eager._kernel_flops(*shapes, 1000)
    assert train(ops.dense_ssm_kernel, a, b, c, 1000) == forward + eager._kernel_backward_flops(
        (1, 3, 1000), *shapes, True, True, True
    )
    assert train(ops.dense_ssm_state, u, a, b) > 2 * eager._state_flops(u.shape, a.shape, b.shape)


@pytest.mark.parametrize("init", ["legs", "legt", "lagt"])
@pytest.mark.parametrize("steps", [1, 100, 1000])
def test_decayed_states_keep_their_digits(init, steps):
    for dt in (1e-3, 1e-1):
        a, _ = ssm.discretize(*ssm.hippo(init, 8), dt, method="bilinear")
        a = torch.as_tensor(a).float().expand(3, 8, 8)
        x = torch.randn(2, 3, 8)
        exact = x.double()
        for _ in range(steps):
            exact = torch.einsum("hmn,bhn->bhm", a.double(), exact)
        found = ops.dense_ssm_advance(x, a, steps)
        kept = exact.abs() > torch.finfo(torch.float32).tiny
        torch.testing.assert_close(found[kept].double(), exact[kept], rtol=3e-7, atol=0)


def test_decayed_states_of_slow_and_fast_modes():
    a = torch.diag_embed(torch.tensor([[1 - 2**-20, 0.99, 0.5, -0.9, 0.0]]))
    x, steps = torch.randn(1, 1, 5, requires_grad=True), 3000
    a.requires_grad_()
    wide = [t.detach().double().requires_grad_() for t in (x, a)]
    exact = wide[0] * wide[1].diagonal(dim1=-2, dim2=-1) ** steps
    found = ops.dense_ssm_advance(x, a, steps)
    torch.testing.assert_close(found.double(), exact, rtol=2e-7, atol=1e-37)
    cotangent = torch.randn(1, 1, 5)
    (by_x, by_a), (true_x, true_a) = (
        torch.autograd.grad(y, inputs, cotangent.to(y.dtype)) for y, inputs in ((found, (x, a)), (exact, wide))
    )
    torch.testing.assert_close(by_x.double(), true_x, rtol=2e-7, atol=1e-37)
    diagonal = [g.diagonal(dim1=-2, dim2=-1).double() for g in (by_a, true_a)]
    torch.testing.assert_close(*diagonal, rtol=2e-6, atol=1e-36)
