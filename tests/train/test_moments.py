import pytest
import torch

from milkweed.nn import structured_linear as sl
from milkweed.train.moments import ProductRule, dense_states, smallest_preimage, spread

LAYERS = {
    "monarch": lambda: sl.MonarchLinear(12, 20, nblocks=3),
    "monarch of rank 1": lambda: sl.MonarchLinear(16, 12, nblocks=4, rank=1),
    "low rank": lambda: sl.LowRankLinear(10, 14, rank=3),
    "block diagonal": lambda: sl.BlockDiagonalLinear(12, 8, nblocks=4),
    "butterfly": lambda: sl.ButterflyLinear(16, 16),
}


def factors(layer):
    return {name: p for name, p in layer.named_parameters() if name != "bias"}


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]()


def test_product_rule_is_the_derivative_of_the_weight(layer):
    own = factors(layer)
    change = [torch.randn_like(p) for p in own.values()]
    dense = torch.randn(layer.out_features, layer.in_features)
    rule = ProductRule(layer, own)
    pulled = torch.autograd.grad(layer.matrix().to_dense(), list(own.values()), dense)
    for found, expected in zip(rule.pull(dense), pulled, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
    # The transposed operator: <J d, G> = <d, Jᵀ G>.
    inner = sum((a * b).sum() for a, b in zip(change, pulled, strict=True))
    assert torch.allclose((rule.push(change) * dense).sum(), inner, rtol=1e-4, atol=1e-4)


def test_two_factors_by_hand():
    layer = sl.LowRankLinear(5, 7, rank=2)
    (first, a), (_, b) = factors(layer).items()
    left, right = (a, b) if a.shape[0] == 7 else (b, a)
    d_left, d_right = torch.randn_like(left), torch.randn_like(right)
    change = [d_left, d_right] if left is a else [d_right, d_left]
    expected = d_left @ right + left @ d_right
    assert torch.allclose(ProductRule(layer, factors(layer)).push(change), expected, atol=1e-6), first


def test_first_moment_explains_those_of_the_factors_and_is_the_smallest(layer):
    gradient = torch.randn(layer.out_features, layer.in_features)
    rule = ProductRule(layer, factors(layer))
    moments = rule.pull(gradient)
    found = smallest_preimage(rule, moments)
    for again, moment in zip(rule.pull(found), moments, strict=True):
        assert torch.allclose(again, moment, rtol=1e-3, atol=1e-3)
    # The part left out is orthogonal to the part found, so that found is the projection on what the structure sees.
    assert abs(((gradient - found) * found).sum()) < 1e-3 * gradient.square().sum()


def test_first_moment_of_blocks_is_exact():
    layer = LAYERS["block diagonal"]()
    gradient = torch.randn(8, 12)
    rule = ProductRule(layer, factors(layer))
    inside = torch.block_diag(*[torch.ones(2, 3)] * 4)
    assert torch.allclose(smallest_preimage(rule, rule.pull(gradient)), gradient * inside, atol=1e-6)


def test_second_moment_of_equal_entries_is_exact(layer):
    rule = ProductRule(layer, factors(layer), squared=True)
    v = rule.pull(torch.full((layer.out_features, layer.in_features), 0.3))
    assert torch.allclose(spread(rule, v), torch.tensor(0.3), rtol=1e-4)


def test_squared_rule_squares_every_derivative():
    layer = LAYERS["monarch"]()
    own = factors(layer)
    jacobian = torch.autograd.functional.jacobian(
        lambda *p: torch.func.functional_call(
            Dense(layer), dict(zip(("layer.right", "layer.left"), p, strict=True)), ()
        ),
        (layer.right, layer.left),
    )
    v = [torch.rand_like(p) for p in own.values()]
    expected = sum((j.square() * each).flatten(2).sum(2) for j, each in zip(jacobian, v, strict=True))
    assert list(own) == ["right", "left"]
    assert torch.allclose(ProductRule(layer, own, squared=True).push(v), expected, atol=1e-6)


class Dense(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return self.layer.matrix().to_dense()


def trained(layer):
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(6, layer.in_features)).square().sum().backward()
        optimizer.step()
    return optimizer.state


def test_states_of_weight_and_bias(layer):
    state = trained(layer)
    carried = dense_states(layer, state, carry=True)
    assert carried["weight"]["exp_avg"].shape == (layer.out_features, layer.in_features)
    assert (carried["weight"]["exp_avg_sq"] >= carried["weight"]["exp_avg"].square()).all()
    assert carried["weight"]["step"] == 3
    assert all(torch.isfinite(each).all() for each in carried["weight"].values())
    for kept in (carried, dense_states(layer, state, carry=False)):
        assert all(torch.equal(kept["bias"][name], state[layer.bias][name]) for name in state[layer.bias])
    assert set(dense_states(layer, state, carry=False)) == {"bias"}


def test_packed_layers_are_stacked():
    packed = sl.ConcatLinear([sl.MonarchLinear(12, 12, nblocks=3) for _ in range(3)])
    state = trained(packed)
    found = dense_states(packed, state, carry=True)
    assert found["weight"]["exp_avg"].shape == (36, 12)
    assert torch.equal(found["bias"]["exp_avg"], torch.cat([state[part.bias]["exp_avg"] for part in packed.parts]))
    middle = dense_states(packed.parts[1], state, carry=True)["weight"]
    assert torch.equal(found["weight"]["exp_avg_sq"][12:24], middle["exp_avg_sq"])


def test_untrained_and_vanished_factors():
    layer = sl.MonarchLinear(12, 12, nblocks=3)
    assert dense_states(layer, {}, carry=True) == {}
    with torch.no_grad():
        layer.left.zero_()
    state = trained(layer)
    with torch.no_grad():
        layer.left.zero_()
        layer.right.zero_()
    assert not dense_states(layer, state, carry=True)["weight"]["exp_avg"].any()
