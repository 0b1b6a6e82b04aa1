"""`add_` on structured layers: W + M exactly, in the same class, which saves and loads with its new rank."""

import copy

import pytest
import torch
from torch import nn

import milkweed as mw
from milkweed.nn import (
    BlockDiagonalLinear,
    ButterflyLinear,
    ConcatLinear,
    LowRankLinear,
    MonarchLinear,
    PixelflyLinear,
    build_linear,
)
from milkweed.nn.factory import linear_spec
from milkweed.structures import LowRank, Monarch, monarch_shapes

GROWING = {
    "monarch": lambda n, m, **kw: MonarchLinear(n, m, nblocks=4, **kw),
    "monarch of rank 1": lambda n, m, **kw: MonarchLinear(n, m, nblocks=4, rank=1, **kw),
    "low_rank": lambda n, m, **kw: LowRankLinear(n, m, rank=3, **kw),
    "pixelfly": lambda n, m, **kw: PixelflyLinear(n, m, nblocks=4, rank=2, **kw),
}
UPDATES = {
    "low rank": lambda n, m: LowRank(torch.randn(m, 2), torch.randn(2, n)),
    "monarch": lambda n, m: Monarch(*map(torch.randn, monarch_shapes(n, m, 4, 1)), (m, n)),
    "monarch of other blocks": lambda n, m: Monarch(*map(torch.randn, monarch_shapes(n, m, 3, 2)), (m, n)),
}


def dense(layer):
    return layer.to_linear().weight.double()


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("layer", GROWING)
@pytest.mark.parametrize("sizes", [(48, 32), (50, 33)])
def test_the_layer_grows_exactly(layer, update, sizes):
    torch.manual_seed(0)
    layer, update = GROWING[layer](*sizes), UPDATES[update](*sizes)
    expected, bias = dense(layer) + update.to_dense().double(), layer.bias
    layer.right.requires_grad_(False)
    before = {name: p.requires_grad for name, p in layer.named_parameters()}
    assert layer.add_(update) is layer
    torch.testing.assert_close(dense(layer), expected, rtol=1e-6, atol=1e-5)
    assert layer.bias is bias
    assert {name: p.requires_grad for name, p in layer.named_parameters()} == before

    x = torch.randn(5, sizes[0])
    y = x.double() @ expected.T + bias.double()
    torch.testing.assert_close(layer(x).double(), y, rtol=1e-5, atol=1e-4)
    # It is built again from its options, which say the new rank.
    again = build_linear(linear_spec(layer), *sizes)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))


def test_float64_is_exact_to_its_last_digits():
    layer = MonarchLinear(50, 33, nblocks=4, dtype=torch.float64)
    update = UPDATES["low rank"](50, 33).to(dtype=torch.float64)
    expected = dense(layer) + update.to_dense()
    torch.testing.assert_close(dense(layer.add_(update)), expected, rtol=1e-13, atol=1e-13)


def test_bfloat16_keeps_its_own_factors_and_rounds_the_update_once():
    layer = MonarchLinear(48, 48, nblocks=4, rank=2, dtype=torch.bfloat16)
    right, update = layer.right, UPDATES["monarch"](48, 48)
    layer.add_(update)
    assert layer.right.dtype == torch.bfloat16
    assert torch.equal(layer.right[:, :8], right)
    assert torch.equal(layer.right[:, 8:], update.right.bfloat16())


def test_a_full_layer_stays_full():
    layer = MonarchLinear(32, 32, nblocks=4)  # slices of 8 × 8 with rank 2
    update = LowRank(torch.randn(32, 7), torch.randn(7, 32))
    expected = dense(layer) + update.to_dense().double()
    layer.add_(update)
    assert layer.rank == 8
    torch.testing.assert_close(dense(layer), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("update", UPDATES)
def test_parts_take_their_rows(update):
    torch.manual_seed(0)
    layer = ConcatLinear([MonarchLinear(32, 32, nblocks=4), LowRankLinear(32, 17, rank=2), MonarchLinear(32, 16)])
    update = UPDATES[update](32, 65)
    expected = dense(layer) + update.to_dense().double()
    assert layer.takes_updates
    assert layer.add_(update) is layer
    torch.testing.assert_close(dense(layer), expected, rtol=1e-6, atol=1e-5)
    x = torch.randn(3, 32)
    torch.testing.assert_close(layer(x), layer.to_linear()(x), rtol=1e-4, atol=1e-4)


def test_what_cannot_grow_is_refused_and_stays():
    update = LowRank(torch.randn(16, 1), torch.randn(1, 16))
    for layer in (BlockDiagonalLinear(16, 16), ButterflyLinear(16, 16)):
        assert not layer.takes_updates
        with pytest.raises(ValueError, match=rf"a {type(layer).__name__} cannot take an update: .*densify_"):
            layer.add_(update)
    packed = ConcatLinear([MonarchLinear(16, 16), BlockDiagonalLinear(16, 16)])
    before = copy.deepcopy(packed.state_dict())
    with pytest.raises(ValueError, match="a ConcatLinear cannot take an update"):
        packed.add_(LowRank(torch.randn(32, 1), torch.randn(1, 16)))
    assert all(torch.equal(value, before[name]) for name, value in packed.state_dict().items())
    with pytest.raises(ValueError, match=r"update must be \(out_features, in_features\) = \(16, 16\); got \(8, 16\)"):
        MonarchLinear(16, 16).add_(LowRank(torch.randn(8, 1), torch.randn(1, 16)))
    with pytest.raises(TypeError, match="update must be real, as the layer's parameters are; got"):
        MonarchLinear(16, 16).add_(LowRank(torch.randn(16, 1) * 1j, torch.randn(1, 16)))
    with pytest.raises(TypeError, match="update must be a Monarch or a LowRank matrix; got Tensor"):
        MonarchLinear(16, 16).add_(torch.randn(16, 16))


def test_a_grown_layer_of_a_model_is_trained_and_made_dense():
    model = nn.Sequential(MonarchLinear(32, 32, nblocks=4))
    model[0].add_(UPDATES["low rank"](32, 32))
    x = torch.randn(4, 32)
    model(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    expected = model(x)
    mw.densify_(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
