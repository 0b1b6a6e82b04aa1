"""linear_recurrence against float64 loops."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from milkweed import ops
from milkweed.ops.recurrence import eager

BACKENDS = ["eager", "reference"]
LENGTHS = [1, 2, 3, 63, 997, 1000, 4096]


def draw(*lead, length=100, dtype=torch.float64):
    """Factors between -1 and 1, some of them 0."""
    a = (2 * torch.rand(*lead, length, dtype=torch.float64) - 1) * (torch.rand(*lead, length) > 0.1)
    x, initial = torch.randn(*lead, length, dtype=torch.float64), torch.randn(lead, dtype=torch.float64)
    return a.to(dtype), x.to(dtype), initial.to(dtype)


def loop(a, x, initial=None):
    wide = torch.complex128 if x.is_complex() else torch.float64
    a, x = a.to(wide).expand(x.shape), x.to(wide)
    h = torch.zeros(x.shape[:-1], dtype=wide) if initial is None else initial.to(wide)
    states = []
    for t in range(x.shape[-1]):
        h = a[..., t] * h + x[..., t]
        states.append(h)
    return torch.stack(states, -1)


def assert_same_gradients(found, expected, inputs):
    cotangent = torch.randn_like(expected)
    pairs = zip(
        torch.autograd.grad(found, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent), strict=True
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_states(length, backend):
    a, x, initial = draw(2, 3, length=length)
    torch.testing.assert_close(ops.linear_recurrence(a, x, initial, backend=backend), loop(a, x, initial))
    torch.testing.assert_close(ops.linear_recurrence(a, x, backend=backend), loop(a, x))


@pytest.mark.parametrize("length", [1, 2, 63, 1000])
def test_gradients(length):
    a, x, initial = inputs = [t.requires_grad_() for t in draw(2, 3, length=length)]
    assert_same_gradients(ops.linear_recurrence(a, x, initial), loop(a, x, initial), inputs)
    fixed = a.detach()
    assert_same_gradients(ops.linear_recurrence(fixed, x, initial), loop(fixed, x, initial), (x, initial))


def test_first_and_second_derivatives():
    inputs = [t.requires_grad_() for t in draw(2, length=6)]
    assert gradcheck(ops.linear_recurrence, inputs)
    assert gradgradcheck(ops.linear_recurrence, inputs)


def test_float32_error_over_100k_steps():
    a = 1 - 10 ** (-4 + 3 * torch.rand(2, 1))
    x = torch.randn(2, 100_000)
    exact = loop(a, x)
    assert (ops.linear_recurrence(a, x).double() - exact).norm() / exact.norm() < 1e-5


def test_growing_factors():
    # 3^500 overflows float32. The states do not: they are 0 until the factors are small.
    a, x = torch.full((2, 1000), 3.0), torch.zeros(2, 1000)
    a[:, 500:], x[:, 500:] = 0.5, 1
    a.requires_grad_(), x.requires_grad_()
    y = ops.linear_recurrence(a, x)
    torch.testing.assert_close(y.double(), loop(a, x))
    y[:, 499:].sum().backward()
    assert y.isfinite().all()
    short = ops.linear_recurrence(a[:, :60], torch.ones(2, 60))
    torch.testing.assert_close(short.double(), loop(a[:, :60], torch.ones(2, 60)), rtol=1e-6, atol=0)


def test_zero_gradient_meets_an_overflowing_product():
    a, x = torch.full((2, 1000), 3.0, requires_grad=True), torch.zeros(2, 1000, requires_grad=True)
    grad_a, grad_x = torch.autograd.grad(ops.linear_recurrence(a, x)[:, 3].sum(), (a, x))
    assert not grad_a.any()
    torch.testing.assert_close(grad_x[0, :5], torch.tensor([27.0, 9, 3, 1, 0]))
    assert not grad_x[:, 5:].any()


@pytest.mark.parametrize(
    ("a_shape", "initial_shape"),
    [((5, 3, 20), (5, 3)), ((3, 20), (3,)), ((20,), ()), ((3, 1), (5, 1)), ((1,), (1, 1)), ((), (5, 3))],
)
def test_broadcasting(a_shape, initial_shape):
    a, initial = torch.rand(a_shape, dtype=torch.float64), torch.randn(initial_shape, dtype=torch.float64)
    x = torch.randn(5, 3, 20, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (a, x, initial)]
    expected = loop(a, x, initial.expand(5, 3))
    torch.testing.assert_close(ops.linear_recurrence(a, x, initial), expected)
    assert_same_gradients(ops.linear_recurrence(a, x, initial), expected, inputs)


def test_no_leading_dimension_and_no_batch():
    a, x, initial = draw()
    torch.testing.assert_close(ops.linear_recurrence(a, x, initial), loop(a, x, initial))
    a, x = (t.requires_grad_() for t in (torch.rand(0, 3, 20), torch.randn(0, 3, 20)))
    y = ops.linear_recurrence(a, x)
    y.sum().backward()
    assert y.shape == a.grad.shape == (0, 3, 20)


def test_strides():
    a, x, initial = draw(2, 50, length=3)
    a, x = a.transpose(1, 2), x.transpose(1, 2)
    initial = initial[:, :3]
    torch.testing.assert_close(ops.linear_recurrence(a, x, initial), loop(a, x, initial))
    a, x, initial = draw(2, length=50)
    torch.testing.assert_close(
        ops.linear_recurrence(a.flip(-1)[:, ::2], x[:, ::2]), loop(a.flip(-1)[:, ::2], x[:, ::2])
    )


@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (5, 1), (5, 64)])
def test_inputs_stay_as_they_are(shape):
    given = torch.rand(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    for a, x in (given, [t.t().contiguous().t() for t in given]):
        before = a.clone(), x.clone()
        torch.testing.assert_close(ops.linear_recurrence(a, x), loop(a, x))
        assert torch.equal(a, before[0])
        assert torch.equal(x, before[1])


@pytest.mark.parametrize("numbers", [1, 40, 10**6])
def test_blocks_and_chunks_change_nothing(monkeypatch, numbers):
    monkeypatch.setattr(eager, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(eager, "_LEAST_NUMBERS", numbers)
    a, x, initial = inputs = [t.requires_grad_() for t in draw(5, length=77)]
    assert_same_gradients(ops.linear_recurrence(a, x, initial), loop(a, x, initial), inputs)


def test_complex_takes_the_plain_formula():
    a, x, initial = (torch.complex(t, t) for t in draw(3, length=20))
    found = ops.linear_recurrence(a, x, initial)
    assert found.dtype == torch.complex128
    torch.testing.assert_close(found, loop(a, x, initial))
    real = draw(3, length=20)[0]
    torch.testing.assert_close(ops.linear_recurrence(real, x), loop(real, x))
    assert ops.explain("linear_recurrence", a, x, initial).backend == "reference"


def test_forward_mode_takes_the_plain_formula():
    a, x, _ = draw(3, length=20)
    _, found = torch.func.jvp(lambda x: ops.linear_recurrence(a, x), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(found, loop(a, torch.ones_like(x)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, backend):
    a, x, initial = draw(3, length=1000, dtype=torch.float32)
    a, half = (0.99 * a.abs().clamp_min(0.9)), x.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.linear_recurrence(a, half, initial, backend=backend)
    exact = loop(a, half, initial)
    assert y.dtype == dtype
    assert (y.double() - exact).norm() / exact.norm() < torch.finfo(dtype).eps


def test_meta():
    a, x, initial = (t.to("meta") for t in draw(2, 3))
    assert ops.linear_recurrence(a, x, initial).shape == (2, 3, 100)


def test_compiles_with_changing_sizes():
    compiled = torch.compile(ops.linear_recurrence, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, length in ((2, 10), (3, 33), (4, 100)):
        a, x, initial = inputs = [t.requires_grad_() for t in draw(batch, 3, length=length)]
        assert_same_gradients(compiled(a, x, initial), loop(a, x, initial), inputs)


def test_exports_with_dynamic_sizes():
    class Recurrence(torch.nn.Module):
        def forward(self, a, x):
            return ops.linear_recurrence(a, x)

    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=1 << 20)
    a, x, _ = draw(2, 3, length=50)
    shapes = ({0: batch, 2: length}, {0: batch, 2: length})
    exported = torch.export.export(Recurrence(), (a, x), dynamic_shapes=shapes).module()
    a, x, _ = draw(5, 3, length=333)
    torch.testing.assert_close(exported(a, x), loop(a, x))


@pytest.mark.parametrize(
    ("a", "x", "initial", "error", "message"),
    [
        (torch.rand(3, 8), torch.randn(2, 8), None, ValueError, r"a must broadcast to \(2, 8\) .* got \(3, 8\)"),
        (torch.rand(2, 3, 8), torch.randn(3, 8), None, ValueError, r"a must broadcast to \(3, 8\)"),
        (torch.rand(8), torch.randn(2, 8), torch.zeros(3), ValueError, r"initial must broadcast to \(2,\)"),
        (torch.rand(8), torch.randn(2, 0), None, ValueError, r"x must be \(..., L\) with L >= 1; got shape \(2, 0\)"),
        (torch.rand(()), torch.randn(()), None, ValueError, r"x must be \(..., L\)"),
        (torch.ones(8).long(), torch.randn(8), None, TypeError, "a must be floating point or complex; got torch.int64"),
        (torch.rand(8), torch.ones(8).bool(), None, TypeError, "x must be floating point or complex; got torch.bool"),
        (
            torch.rand(8).cfloat(),
            torch.randn(8),
            None,
            TypeError,
            r"x must be complex as a is; .* x.to\(torch.complex64",
        ),
    ],
)
def test_bad_input(a, x, initial, error, message):
    with pytest.raises(error, match=message):
        ops.linear_recurrence(a, x, initial)


def test_mixed_dtypes_are_computed_in_the_widest():
    a, x, _ = draw(3)
    found = ops.linear_recurrence(a, x.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loop(a, x.float()).float())


def test_flops_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    a, x, _ = (t.requires_grad_() for t in draw(3))
    with FlopCounterMode(display=False) as counter:
        ops.linear_recurrence(a, x).sum().backward()
    assert counter.get_total_flops() == 3 * (2 * 3 * 100)


def error(found, exact):
    return float((found.double() - exact).abs().max() / exact.abs().max())


def plain(a, x, initial):
    """The float32 loop."""
    a, h, states = a.expand(x.shape), initial, []
    for t in range(x.shape[-1]):
        h = a[..., t] * h + x[..., t]
        states.append(h)
    return torch.stack(states, -1)


FACTORS = {
    "near 1": lambda length: torch.full((3, length), 0.99999),
    "nearer 1": lambda length: torch.full((3, length), 1 - 2**-22),
    "1": lambda length: torch.ones(3, length),
    "-1": lambda length: -torch.ones(3, length),
    "near -1": lambda length: torch.full((3, length), -0.99999),
    "above 1": lambda length: torch.full((3, length), 1.0002),
    "varying": lambda length: 1 - 1e-4 * torch.rand(3, length),
    "above and below 1": lambda length: 1 + 2e-3 * (torch.rand(3, length) - 0.5),
    "with zeros": lambda length: torch.full((3, length), 0.99999) * (torch.rand(3, length) > 1e-4),
    "short memory": lambda length: 0.9 + 0.1 * torch.rand(3, length),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", FACTORS)
def test_as_good_as_the_float32_loop(kind):
    length = 20_000
    a, x, initial = FACTORS[kind](length), torch.randn(3, length), 100 * torch.randn(3)
    exact = loop(a, x, initial)
    assert error(ops.linear_recurrence(a, x, initial), exact) <= 1.5 * error(plain(a, x, initial), exact)
    # Backwards in time it is the same recurrence.
    cotangent = torch.randn(3, length)
    tensors = [t.clone().requires_grad_() for t in (a, x, initial)]
    wide = [t.detach().double().requires_grad_() for t in tensors]
    found = torch.autograd.grad(ops.linear_recurrence(*tensors), tensors, cotangent)
    naive = torch.autograd.grad(plain(*tensors), tensors, cotangent)
    truth = torch.autograd.grad(loop(*wide), wide, cotangent.double())
    for name, f, n, e in zip(("a", "x", "initial"), found, naive, truth, strict=True):
        # One number of three, which may be right by chance, has no share in it.
        assert error(f, e) <= max(1.5 * error(n, e), 1e-6), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_long_memory_in_half_precision(dtype):
    a, x = torch.full((1,), 0.99999), torch.randn(2, 50_000).to(dtype)
    exact = loop(a, x)
    assert error(ops.linear_recurrence(a, x.float()), exact) < 1e-5
    assert error(ops.linear_recurrence(a, x), exact) < torch.finfo(dtype).eps


def test_a_state_that_is_no_number_stays_in_its_row_and_its_future():
    for value in (torch.nan, torch.inf, -torch.inf):
        for t in (0, 37, 64, 999):
            for place in ("a", "x", "initial"):
                a, x, initial = draw(4, length=1000, dtype=torch.float32)
                initial[3] = 0
                for row in (1, 3):
                    if place == "initial":
                        initial[row] = value
                    else:
                        {"a": a, "x": x}[place][row, t] = value
                found, exact = ops.linear_recurrence(a, x, initial), loop(a, x, initial)
                assert torch.equal(found.isfinite(), exact.isfinite()), (value, t, place)
                torch.testing.assert_close(
                    found[exact.isfinite()].double(), exact[exact.isfinite()], rtol=1e-5, atol=1e-5
                )
