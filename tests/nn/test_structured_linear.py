"""The structured linear layers under their contract, and what is particular to each."""

import pytest
import torch
from tests.contracts import linear as contract
from tests.ops.test_monarch import dense_monarch
from torch import nn

from milkweed.nn import BlockDiagonalLinear, MonarchLinear

CASES = {
    "monarch-square": (MonarchLinear, (16, 16), {"nblocks": 4}),
    "monarch-wide": (MonarchLinear, (16, 63), {"nblocks": 4}),
    "monarch-narrow-uneven": (MonarchLinear, (47, 20), {"nblocks": 3}),
    "monarch-rank": (MonarchLinear, (17, 31), {"nblocks": 5, "rank": 2, "bias": False}),
    "monarch-one-block": (MonarchLinear, (7, 5), {"nblocks": 1, "rank": 1}),
    "block-diagonal": (BlockDiagonalLinear, (12, 20), {"nblocks": 4}),
    "block-diagonal-uneven": (BlockDiagonalLinear, (13, 7), {"nblocks": 3, "bias": False}),
}


def build(case, **kwargs):
    layer, sizes, options = CASES[case]
    return layer(*sizes, **options, **kwargs)


def weight(layer):
    factors = [f.detach() for f in (layer._factors())]
    padded = dense_monarch(*factors) if isinstance(layer, MonarchLinear) else torch.block_diag(*factors[0])
    return padded[: layer.out_features, : layer.in_features]


@pytest.mark.parametrize("case", CASES)
class TestContract:
    def test_equals_dense(self, case):
        layer = build(case, dtype=torch.float64)
        contract.check_equals_dense(layer, weight(layer))

    def test_to_linear(self, case):
        layer = build(case, dtype=torch.float64)
        contract.check_to_linear(layer, weight(layer))

    def test_gradients(self, case):
        contract.check_gradients(build(case, dtype=torch.float64))

    def test_compiles_and_exports(self, case):
        contract.check_compiles_and_exports(build(case))

    def test_autocast(self, case):
        contract.check_autocast(build(case))

    def test_copies(self, case):
        contract.check_copies(build(case))

    def test_meta(self, case):
        contract.check_meta(lambda **kwargs: build(case, **kwargs))


@pytest.mark.parametrize("layer", [MonarchLinear, BlockDiagonalLinear])
@pytest.mark.parametrize("sizes", [(1024, 1024), (256, 1024), (1024, 256)])
def test_output_variance_is_that_of_a_dense_layer(layer, sizes):
    # Averaged over layers: one draw of a layer is not enough for 5%.
    x = torch.randn(512, sizes[0])
    with torch.no_grad():
        ours = torch.stack([layer(*sizes, bias=False)(x).var() for _ in range(8)]).mean()
        dense = torch.stack([nn.Linear(*sizes, bias=False)(x).var() for _ in range(8)]).mean()
    assert abs(ours / dense - 1) < 0.05


@pytest.mark.parametrize(
    ("sizes", "count"), [((768, 768), 768 * 768 // 2), ((768, 3072), 737_280), ((3072, 768), 737_280)]
)
def test_parameter_counts_at_four_blocks(sizes, count):
    assert sum(p.numel() for p in MonarchLinear(*sizes, bias=False, device="meta").parameters()) == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, 300, 16), "nblocks=16 needs in_features >= 241; got in_features=100"),
        ((300, 100, 16), "nblocks=16 needs out_features >= 241; got out_features=100"),
        ((3, 8, 4), "nblocks=4 needs in_features >= 4; got in_features=3"),
        ((0, 8, 1), "in_features must be at least 1; got in_features=0"),
        ((8, 8, 0), "nblocks must be at least 1"),
        ((16, 16, 4, True, 5), r"rank must be in 1 .. 4 .*; got rank=5"),
        ((16, 16, 4, True, 0), "got rank=0"),
    ],
)
def test_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        MonarchLinear(*arguments)


def test_the_suggested_size_works():
    MonarchLinear(241, 300, 16)


def test_wrong_feature_size():
    with pytest.raises(ValueError, match=r"x must be \(..., in_features=16\); got shape \(2, 15\)"):
        MonarchLinear(16, 16)(torch.randn(2, 15))
