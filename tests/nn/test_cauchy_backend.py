"""S4 with kernels by Cauchy sums: the same layer, value for value."""

import pytest
import torch
from tests.contracts import sequence_layer as contract

from milkweed.nn import S4
from milkweed.ssm import BASES

NORMAL = [name for name, basis in BASES.items() if basis.correction is not None]


def both(init="legs", **options):
    """Two layers of the same parameters, the default route and the classic one."""
    plain, cauchy = (S4(6, 8, init, backend=b, dtype=torch.float64, **options) for b in (None, "cauchy"))
    cauchy.load_state_dict(plain.state_dict())
    return plain, cauchy


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 1000])
@pytest.mark.parametrize(
    "options",
    [{}, {"channels": 2}, {"bidirectional": True, "n_ssm": 2}, {"channels": 2, "bidirectional": True, "rank": 2}],
)
def test_outputs_and_gradients_are_equal(options, length):
    plain, cauchy = both(**options)
    u = torch.randn(2, length, 6, dtype=torch.float64)
    expected, found = plain(u), cauchy(u)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    for got, wanted in zip(cauchy.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-6, atol=1e-8 * float(wanted.grad.abs().max()))


@pytest.mark.parametrize("init", [*NORMAL, "hippo"])
def test_every_basis(init):
    plain, cauchy = both(init)
    for length in (63, 64):
        expected = plain.filter.system().kernel(length)
        # Undamped modes start at Re Λ = -1e-4, which costs the sums at ω = 1 four digits.
        assert (cauchy.filter.system().kernel(length) - expected).abs().max() < 1e-9 * expected.abs().max()


def test_rate_lengths_and_state():
    plain, cauchy = both()
    u, lengths = torch.randn(2, 30, 6, dtype=torch.float64), torch.tensor([30, 7])
    expected = plain(u, lengths=lengths, rate=2.0, return_state=True)
    torch.testing.assert_close(cauchy(u, lengths=lengths, rate=2.0, return_state=True), expected, rtol=1e-9, atol=1e-9)
    contract.check_steps_equal_forward(cauchy, u)


def test_float32_autocast_and_meta():
    contract.check_autocast(S4(6, 8, backend="cauchy"))
    contract.check_meta(lambda **kwargs: S4(6, 8, backend="cauchy", **kwargs))


def test_compiles_for_one_length():
    layer, u = S4(6, 8, backend="cauchy"), torch.randn(2, 33, 6)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(u), layer(u))


def test_it_says_so():
    assert "backend='cauchy'" in repr(S4(6, 8, backend="cauchy"))
    assert "backend" not in repr(S4(6, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "couchy"}, "did you mean 'cauchy'"),
        ({"discretization": "zoh"}, "backend='cauchy' needs discretization='bilinear'.* got discretization='zoh'"),
        ({"decay": "none"}, "backend='cauchy' needs Re Λ < 0.* got decay='none'"),
        ({"decay": "relu"}, "got decay='relu'"),
    ],
)
def test_what_has_no_cauchy_sums_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        S4(6, 8, **({"backend": "cauchy"} | options))
