"""The structured linear layers under their contract, and what is particular to each."""

import pytest
import torch
from tests.contracts import linear as contract
from tests.ops.test_monarch import dense_monarch
from torch import nn

from milkweed import ops, structures
from milkweed.nn import (
    BlockDiagonalLinear,
    ButterflyLinear,
    LowRankLinear,
    Mlp,
    MonarchLinear,
    PixelflyLinear,
    parameter_groups,
)
from milkweed.nn.structured_linear import ConcatLinear
from milkweed.structures import Chain

CASES = {
    "monarch-square": (MonarchLinear, (16, 16), {"nblocks": 4}),
    "monarch-wide": (MonarchLinear, (16, 63), {"nblocks": 4}),
    "monarch-narrow-uneven": (MonarchLinear, (47, 20), {"nblocks": 3}),
    "monarch-rank": (MonarchLinear, (17, 31), {"nblocks": 5, "rank": 2, "bias": False}),
    "monarch-one-block": (MonarchLinear, (7, 5), {"nblocks": 1, "rank": 1}),
    "block-diagonal": (BlockDiagonalLinear, (12, 20), {"nblocks": 4}),
    "block-diagonal-uneven": (BlockDiagonalLinear, (13, 7), {"nblocks": 3, "bias": False}),
    "block-diagonal-shuffled": (BlockDiagonalLinear, (12, 19), {"nblocks": 4, "shuffle": True}),
    "butterfly": (ButterflyLinear, (13, 9), {}),
    "butterfly-digits": (ButterflyLinear, (11, 24), {"digits": (2, 3, 4), "bias": False}),
    "low-rank": (LowRankLinear, (13, 7), {"rank": 3}),
    "pixelfly": (PixelflyLinear, (13, 18), {"rank": 3}),
    "pixelfly-few": (PixelflyLinear, (17, 9), {"nblocks": 8, "rank": 1, "neighbours": 2, "bias": False}),
}


def build(case, **kwargs):
    layer, sizes, options = CASES[case]
    return layer(*sizes, **options, **kwargs)


def weight(layer):
    """The matrix from the parameters, by definitions written here or beside the structures' own tests."""
    p = {name: value.detach() for name, value in layer.named_parameters()}
    match layer:
        case MonarchLinear():
            dense = dense_monarch(p["right"], p["left"])
        case BlockDiagonalLinear():
            dense = torch.block_diag(*p["weight"])
            if layer.shuffle:
                dense = dense.view(layer.nblocks, -1, dense.shape[1]).transpose(0, 1).flatten(0, 1)
        case ButterflyLinear():
            dense = Chain(tuple(p[f"factors.{t}"] for t in range(len(layer.digits)))).to_dense()
        case LowRankLinear():
            dense = p["left"] @ p["right"]
        case PixelflyLinear():
            nblocks, count, rows, columns = p["blocks"].shape
            dense = torch.zeros(nblocks * rows, nblocks * columns, dtype=p["blocks"].dtype)
            for i in range(nblocks):
                for t in range(count):
                    j = i if t == 0 else i ^ (1 << (t - 1))
                    dense[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] = p["blocks"][i, t]
            dense = dense[: layer.out_features, : layer.in_features] + p["left"] @ p["right"]
    return dense[: layer.out_features, : layer.in_features]


@pytest.mark.parametrize("case", CASES)
class TestContract:
    def test_equals_dense(self, case):
        layer = build(case, dtype=torch.float64)
        contract.check_equals_dense(layer, weight(layer))

    def test_to_linear(self, case):
        layer = build(case, dtype=torch.float64)
        contract.check_to_linear(layer, weight(layer))

    @pytest.mark.sampled(2)
    def test_gradients(self, case):
        contract.check_gradients(build(case, dtype=torch.float64))

    @pytest.mark.sampled(2)
    def test_compiles_and_exports(self, case):
        contract.check_compiles_and_exports(build(case))

    def test_autocast(self, case):
        contract.check_autocast(build(case))

    def test_copies(self, case):
        contract.check_copies(build(case))

    def test_meta(self, case):
        contract.check_meta(lambda **kwargs: build(case, **kwargs))

    @pytest.mark.sampled(2)
    def test_functional_transforms(self, case):
        contract.check_functional_transforms(build(case, dtype=torch.float64), build(case, dtype=torch.float64))

    def test_from_linear(self, case):
        layer, sizes, options = CASES[case]
        options = {name: value for name, value in options.items() if name not in {"bias", "shuffle"}}
        contract.check_from_linear(layer, sizes, options, exact=layer is not PixelflyLinear)


INITIALISED = {
    "monarch": lambda *sizes: MonarchLinear(*sizes, bias=False),
    "monarch-16": lambda *sizes: MonarchLinear(*sizes, 16, bias=False),
    "monarch-rank": lambda *sizes: MonarchLinear(*sizes, rank=8, bias=False),
    "monarch-project": lambda *sizes: MonarchLinear(*sizes, bias=False, init="project"),
    "block-diagonal": lambda *sizes: BlockDiagonalLinear(*sizes, bias=False),
    "butterfly": lambda *sizes: ButterflyLinear(*sizes, bias=False),
    "chain": lambda *sizes: ButterflyLinear(*sizes, (8, 16, 8), bias=False),
    "low-rank": lambda *sizes: LowRankLinear(*sizes, 64, bias=False),
    "pixelfly": lambda *sizes: PixelflyLinear(*sizes, rank=64, bias=False),
}


@pytest.mark.sampled
@pytest.mark.parametrize("build", INITIALISED.values(), ids=INITIALISED.keys())
@pytest.mark.parametrize("sizes", [(1024, 1024), (256, 1024), (1024, 256)])
def test_output_variance_is_that_of_a_dense_layer(build, sizes):
    # E‖W x‖² = ‖W‖² for white x, so the norm of the weight tells it without drawing inputs; a few layers, since one
    # draw of a thin layer is not enough for 5%. A dense layer gives a third of the input's variance.
    with torch.no_grad():
        norms = torch.stack([build(*sizes).matrix().to_dense().square().sum() for _ in range(6)])
    assert abs(norms.mean() / sizes[1] * 3 - 1) < 0.05
    x = torch.randn(512, sizes[0])
    assert abs(build(*sizes)(x).var() / nn.Linear(*sizes, bias=False)(x).var() - 1) < 0.2


def test_orthogonal_initialisation_keeps_lengths():
    layer = MonarchLinear(64, 64, 8, bias=False, init="orthogonal", dtype=torch.float64)
    x = torch.randn(5, 64, dtype=torch.float64)
    torch.testing.assert_close(layer(x).norm(dim=1), x.norm(dim=1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("nblocks", [2, 4, 8])
def test_hadamard_initialisation_is_exact(nblocks):
    weight = MonarchLinear(64, 64, nblocks, init="hadamard", dtype=torch.float64).matrix().to_dense()
    signs = [[(-1) ** (i & j).bit_count() / 8 for j in range(64)] for i in range(64)]
    torch.testing.assert_close(weight, torch.tensor(signs, dtype=torch.float64), rtol=0, atol=1e-13)


def test_projected_initialisation_is_the_nearest_to_a_dense_one():
    torch.manual_seed(3)
    layer = MonarchLinear(48, 32, init="project")
    torch.manual_seed(3)
    dense = nn.Linear(48, 32, bias=False).weight
    found = layer.matrix().to_dense()
    nearest = structures.project_monarch(dense, 4).matrix.to_dense()
    torch.testing.assert_close(found, nearest * (dense.norm() / nearest.norm()))


def test_mup_scales_norms_and_learning_rates():
    model = nn.Sequential(
        MonarchLinear(256, 1024, 4, init="mup"), MonarchLinear(1024, 64, 4, init="mup"), nn.Linear(64, 2)
    )
    for layer in model[:2]:
        for factor in (layer.right, layer.left):
            # A Gaussian block of this deviation has a spectral norm near √(fan_out/fan_in) + a constant.
            norms = torch.linalg.matrix_norm(factor.detach(), 2)
            ratio = (factor.shape[1] / factor.shape[2]) ** 0.5
            assert (norms / ratio < 3.2).all()
            assert (norms / ratio > 0.9).all()
    groups = {group["name"]: group for group in parameter_groups(model, lr=0.1, weight_decay=0.2)}
    rates = {id(p): group["lr"] for group in groups.values() for p in group["params"]}
    assert rates[id(model[0].right)] == pytest.approx(0.1 * 256 / 64)
    assert rates[id(model[0].left)] == pytest.approx(0.1 * 256 / 64)
    assert rates[id(model[1].right)] == pytest.approx(0.1 * 1024 / 256)
    assert rates[id(model[1].left)] == pytest.approx(0.1 * 1024 / 16)
    assert rates[id(model[2].weight)] == rates[id(model[0].bias)] == 0.1
    assert groups["decay x4"]["weight_decay"] == groups["decay"]["weight_decay"] == 0.2
    assert sum(len(group["params"]) for group in groups.values()) == 8
    torch.optim.AdamW(groups.values())


def test_from_linear_with_known_inputs_keeps_outputs():
    linear = nn.Linear(48, 32)
    mix = torch.diag(torch.logspace(0, -2, 48)) @ torch.randn(48, 48)
    x = torch.randn(500, 48) @ mix.T
    covariance = x.T.double() @ x.double() / 500

    def error(layer):
        return float((layer(x) - linear(x)).detach().norm() / linear(x).detach().norm())

    plain, weighted = MonarchLinear.from_linear(linear), MonarchLinear.from_linear(linear, input_covariance=covariance)
    refined = MonarchLinear.from_linear(linear, input_covariance=covariance, refine=5)
    assert error(refined) < error(weighted) < error(plain)
    for layer, options in [
        (BlockDiagonalLinear, {}),
        (LowRankLinear, {"rank": 6}),
        (PixelflyLinear, {"rank": 3}),
    ]:
        assert error(layer.from_linear(linear, **options, input_covariance=covariance)) < error(
            layer.from_linear(linear, **options)
        )


def test_frozen_layers_stay_frozen_when_multiplied_out():
    layer = MonarchLinear(16, 16).requires_grad_(False)
    layer.bias.requires_grad_()
    for dense in (layer.to_linear(), ConcatLinear([layer, layer]).to_linear()):
        assert not dense.weight.requires_grad
        assert dense.bias.requires_grad


@pytest.mark.parametrize("biases", [(False, True), (True, False), (True, True), (False, False)])
def test_packed_parts_may_differ_in_having_a_bias(biases):
    parts = [MonarchLinear(12, 8, nblocks=2, bias=bias) for bias in biases]
    packed, x = ConcatLinear(parts), torch.randn(3, 12)
    expected = torch.cat(
        [x @ part.matrix().to_dense().T + (0 if part.bias is None else part.bias) for part in parts], -1
    )
    torch.testing.assert_close(packed.to_linear()(x), expected)
    torch.testing.assert_close(packed(x), expected)
    assert (packed.to_linear().bias is not None) is any(biases)


def test_packed_parts_have_one_dtype():
    parts = [MonarchLinear(12, 8, nblocks=2, dtype=dtype) for dtype in (torch.float32, torch.float64)]
    with pytest.raises(ValueError, match=r"parts must be layers of one dtype; got torch\.float32, torch\.float64"):
        ConcatLinear(parts)


def test_from_linear_needs_a_linear():
    with pytest.raises(TypeError, match=r"linear must be a torch\.nn\.Linear; got Conv1d"):
        MonarchLinear.from_linear(nn.Conv1d(4, 4, 1))


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
        ((16, 16, 4, True, None, None, None, "kaming"), "did you mean 'kaiming'"),
        ((16, 32, 4, True, None, None, None, "hadamard"), "a power of two; got 16 and 32"),
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


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BlockDiagonalLinear(8, 3, 4), "nblocks must be in 1 .. out_features=3; got nblocks=4"),
        (
            lambda: LowRankLinear(8, 3, 4),
            "rank must be in 1 .. 3, the smaller of in_features and out",
        ),
        (lambda: LowRankLinear(0, 3, 1), "in_features must be at least 1"),
        (lambda: PixelflyLinear(8, 8, 3, rank=1), "nblocks must be a power of two"),
        (lambda: PixelflyLinear(8, 8, 4, rank=1, neighbours=4), "neighbours=4"),
        (lambda: PixelflyLinear(8, 8, 4, rank=9), "rank must be in 1 .. 8"),
        (lambda: ButterflyLinear(8, 9, (2, 4)), "multiply to at least 9"),
        (lambda: ButterflyLinear(8, 8, ()), "digits must be positive"),
    ],
)
def test_bad_options(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_wrong_dtype():
    with pytest.raises(TypeError, match=r"x must be torch\.float32 as the layer's parameters are; got torch\.float64"):
        MonarchLinear(16, 16)(torch.randn(2, 16, dtype=torch.float64))


@pytest.mark.sampled
@pytest.mark.parametrize("backend", ["eager", "reference", "triton"])
@pytest.mark.parametrize("case", CASES)
def test_activation_in_the_same_pass(case, backend):
    if backend == "triton":
        pytest.importorskip("triton")
    layer = build(case)
    dense = layer.to_linear().double()
    x = torch.randn(5, layer.in_features, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    cotangent = torch.randn(5, layer.out_features)
    expected = torch.nn.functional.gelu(dense(wide))
    with ops.use_backend(backend):
        y = layer(x, activation="gelu")
        (grad,) = torch.autograd.grad(y, x, cotangent)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6)
    (wanted,) = torch.autograd.grad(expected, wide, cotangent.double())
    torch.testing.assert_close(grad.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_unknown_activation(case):
    layer = build(case)
    with pytest.raises(ValueError, match="activation='tanhh' is unknown"):
        layer(torch.randn(2, layer.in_features), activation="tanhh")


def test_the_bias_gets_its_gradient_where_nothing_else_does():
    for layer in (MonarchLinear(16, 19), BlockDiagonalLinear(16, 19)):
        layer.requires_grad_(False)
        layer.bias.requires_grad_()
        x = torch.randn(7, 16)
        (layer(x) * torch.arange(7.0)[:, None]).sum().backward()
        torch.testing.assert_close(layer.bias.grad, torch.full((19,), 21.0))


@pytest.mark.parametrize("linear", [{"name": "dense"}, {"name": "monarch"}, {"name": "low_rank", "rank": 3}])
def test_mlp_is_its_layers(linear):
    mlp = Mlp(20, 28, linear)
    x = torch.randn(3, 20)
    up, down = (part if isinstance(part, nn.Linear) else part.to_linear() for part in (mlp.up, mlp.down))
    torch.testing.assert_close(mlp(x), down(torch.nn.functional.gelu(up(x))))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (MonarchLinear, {"nblocks": 2}),
        (BlockDiagonalLinear, {"nblocks": 2}),
        (LowRankLinear, {"rank": 2}),
        (ButterflyLinear, {}),
        (PixelflyLinear, {}),
    ],
)
def test_dense_layers_within_wrappers_and_of_mixed_numbers(kind, options):
    linear, x = nn.Linear(8, 8), torch.randn(3, 8)
    plain = kind.from_linear(linear, **options)
    for wrapped in (torch.compile(linear, backend="eager"), nn.DataParallel(linear)):
        assert torch.equal(kind.from_linear(wrapped, **options)(x), plain(x))
    linear.bias = nn.Parameter(torch.ones(8, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"linear\.bias must have linear\.weight's dtype torch\.float32; got"):
        kind.from_linear(linear, **options)
