"""The order of hidden units: what may be reordered, and that conversions gain by it."""

import copy

import pytest
import torch
from tests.convert.families import BUILDERS, batches, build, output
from torch import nn
from torch.nn import functional as F

import milkweed as mw
from milkweed.convert.hidden_order import assign, best_order
from milkweed.convert.input_moments import Calibration
from milkweed.convert.passes.order import find_feed_forwards, hidden_orders, is_free, reordered
from milkweed.convert.sites import find_sites
from milkweed.nn import BlockDiagonalLinear, MonarchLinear
from milkweed.nn.structured_linear import BlockDiagonalConfig, LowRankConfig


class FeedForward(nn.Module):
    def __init__(self, d, hidden, activation=F.gelu, bias=True):
        super().__init__()
        self.fc1, self.fc2, self.activation = nn.Linear(d, hidden, bias), nn.Linear(hidden, d, bias), activation

    def forward(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class Gated(nn.Module):
    def __init__(self, d, hidden):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(d, hidden, bias=False), nn.Linear(d, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, d, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def sites_of(model):
    return {site.name: site for site in find_sites(model)}


def inputs(d, count=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator) * torch.linspace(2, 0.1, d)[:, None]
    return [torch.randn(16, d, generator=generator) @ mixing for _ in range(count)]


def everywhere(sites, config):
    return dict.fromkeys(sites, config)


def orders_for(model, config, data):
    sites = sites_of(model)
    choices = config if isinstance(config, dict) else everywhere(sites, config)
    moments = Calibration(model, {name: sites[name].module for name in choices}, data)
    return sites, choices, hidden_orders(model, sites, choices, moments, data)


@pytest.mark.parametrize("family", BUILDERS)
def test_every_family_stays_the_same(family):
    model, data = build(family), batches(family, 2, padded=family != "vit")
    sites = sites_of(model)
    pairs = find_feed_forwards(sites, everywhere(sites, mw.MonarchConfig(2)))
    assert len(pairs) == 2
    assert {len(pair.makers) for pair in pairs} == {2 if family == "llama" else 1}
    before = {name: site.module for name, site in sites.items()}
    expected, state = output(model, data[0]), {k: v.clone() for k, v in model.state_dict().items()}
    orders = {}
    for seed, pair in enumerate(pairs):
        assert is_free(model, pair, sites, data[:1])
        hidden = sites[pair.reader].in_features
        orders[pair] = torch.randperm(hidden, generator=torch.Generator().manual_seed(seed))
    with reordered(model, sites, orders) as there:
        assert model.get_submodule(pairs[0].reader) is there[pairs[0].reader].module
        torch.testing.assert_close(output(model, data[0]), expected, rtol=1e-5, atol=1e-5)
    assert all(model.get_submodule(name) is module for name, module in before.items())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("d", "hidden", "nblocks"), [(24, 96, 2), (32, 128, 4), (36, 144, 6), (96, 384, 4)])
@pytest.mark.parametrize("structure", ["monarch", "block_diagonal"])
def test_shuffled_structures_are_recovered(structure, d, hidden, nblocks, seed):
    torch.manual_seed(seed)
    layer = MonarchLinear if structure == "monarch" else BlockDiagonalLinear
    config = mw.MonarchConfig(nblocks) if structure == "monarch" else BlockDiagonalConfig(nblocks)
    model = FeedForward(d, hidden).double()
    model.fc1, model.fc2 = (
        layer(d, hidden, nblocks).to_linear().double(),
        layer(hidden, d, nblocks).to_linear().double(),
    )
    data = [x.double() for x in inputs(d)]
    mixed = torch.randperm(hidden, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.fc1.weight.copy_(model.fc1.weight[mixed].clone())
        model.fc1.bias.copy_(model.fc1.bias[mixed].clone())
        model.fc2.weight.copy_(model.fc2.weight[:, mixed].clone())
    _, _, orders = orders_for(model, config, data)
    ((pair, order),) = orders.items()
    assert pair.names == ("fc1", "fc2")
    assert torch.equal(order.sort().values, torch.arange(hidden))
    expected = [model(x) for x in data]
    with reordered(model, sites_of(model), orders):
        first = layer.from_linear(model.fc1, nblocks)
        second = layer.from_linear(model.fc2, nblocks)
        hidden_units = [F.gelu(first(x)) for x in data]
        found = [second(h) for h in hidden_units]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_configuration_says_how_its_structure_groups_units():
    class Own(mw.MonarchConfig):
        def hidden_units(self, *matrices, rows):
            seen.append(rows)
            return super().hidden_units(*matrices, rows=rows)

    class Silent(mw.MonarchConfig):
        def hidden_units(self, *matrices, rows):
            return None

    seen, model, data = [], FeedForward(31, 67), inputs(31)
    _, _, expected = orders_for(model, mw.MonarchConfig(4), data)
    _, _, found = orders_for(model, Own(4), data)
    assert seen == [True, False]
    assert [order.tolist() for order in found.values()] == [order.tolist() for order in expected.values()]
    assert orders_for(model, Silent(4), data)[2] == {}


@pytest.mark.parametrize("config", [mw.MonarchConfig(4), mw.MonarchConfig(3, rank=1), BlockDiagonalConfig(4)])
@pytest.mark.parametrize("model", [FeedForward(31, 67), FeedForward(32, 64, F.relu, bias=False), Gated(24, 61)])
def test_errors_fall(config, model):
    data = inputs(next(model.children()).in_features)
    sites, choices, orders = orders_for(model, config, data)
    assert len(orders) == 1

    def lost():
        total = 0.0
        layers = {name: model.get_submodule(name) for name in choices}
        moments = Calibration(model, layers, data)
        for name, linear in layers.items():
            # Against the definition: the converted layer on the very inputs, mean error aside where there is a bias.
            covariance = moments[name].covariance(centred=linear.bias is not None)
            difference = (linear.weight - config.project(linear, covariance).matrix().to_dense()).double().detach()
            whole = linear.weight.double().detach()
            energy = torch.trace(whole @ moments[name].covariance(centred=False) @ whole.T)
            total += float(torch.trace(difference @ covariance @ difference.T) / energy)
        return total

    before = lost()
    with reordered(model, sites, orders):
        assert lost() < before


def test_an_order_that_does_not_help_is_not_taken():
    torch.manual_seed(0)
    model = FeedForward(16, 32)
    model.fc1, model.fc2 = MonarchLinear(16, 32, 4).to_linear(), MonarchLinear(32, 16, 4).to_linear()
    data = inputs(16)
    sites = sites_of(model)
    # Full rank loses nothing in any order.
    _, _, orders = orders_for(model, mw.MonarchConfig(1, rank=16), data)
    assert orders == {}
    _, _, orders = orders_for(model, {"fc1": mw.MonarchConfig(4), "fc2": LowRankConfig(4)}, data)
    assert orders == {}
    assert find_feed_forwards(sites, {"fc1": mw.MonarchConfig(4)}) == []


def cumulate(x):
    return x.cumsum(-1)


class Scaled(nn.Module):
    """A layer norm as trained, with a weight for each hidden unit."""

    def __init__(self, hidden):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        nn.init.normal_(self.norm.weight, 1, 0.1)

    def forward(self, x):
        return self.norm(x)


def pooled(x):
    return F.avg_pool1d(x[:, None], 3, stride=1, padding=1)[:, 0]


def grouped_softmax(x):
    return x.unflatten(-1, (4, -1)).softmax(-1).flatten(-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("activation", "free"),
    [
        (F.relu, True),
        (torch.tanh, True),
        # These mix units, though all alike: the order does not matter to them.
        (lambda x: x.softmax(-1), True),
        (lambda x: F.layer_norm(x, x.shape[-1:]), True),
        (Scaled(32), False),
        (cumulate, False),
        (pooled, False),
        (grouped_softmax, False),
    ],
)
def test_activations_that_tell_units_apart_are_found(activation, free, dtype):
    torch.manual_seed(0)
    model = FeedForward(16, 32, activation).to(dtype)
    sites = sites_of(model)
    (pair,) = find_feed_forwards(sites, everywhere(sites, mw.MonarchConfig(4)))
    data = [x.to(dtype) for x in inputs(16)]
    assert is_free(model, pair, sites, data[:1]) == free
    assert sites_of(model)["fc1"].module is sites["fc1"].module


def test_hidden_units_read_elsewhere_are_left_alone():
    class Leaking(FeedForward):
        def forward(self, x):
            hidden = F.gelu(self.fc1(x))
            return {"y": self.fc2(hidden), "states": (hidden,)}

    model = Leaking(16, 32)
    _, _, orders = orders_for(model, mw.MonarchConfig(4), inputs(16))
    assert orders == {}


def test_a_pair_that_the_batch_does_not_reach_is_left_alone():
    model = nn.ModuleDict({"mlp": FeedForward(16, 32)})
    model.forward = lambda x: x + 1
    sites = sites_of(model)
    (pair,) = find_feed_forwards(sites, everywhere(sites, mw.MonarchConfig(4)))
    assert not is_free(model, pair, sites, inputs(16)[:1])


def test_layers_reached_twice_tied_hooked_or_of_other_sizes_are_no_pair():
    twice = nn.ModuleDict({"a": FeedForward(16, 32), "b": FeedForward(16, 32)})
    twice["b"].fc1 = twice["a"].fc1
    tied = FeedForward(32, 32)
    tied.fc2.weight = tied.fc1.weight
    hooked = FeedForward(16, 32)
    hooked.fc1.register_forward_hook(lambda *_: None)
    packed = FeedForward(16, 64)
    packed.fc2 = nn.Linear(32, 16)
    for model in (twice, tied, hooked, packed):
        sites = {name: site for name, site in sites_of(model).items() if site.obstacle is None}
        assert find_feed_forwards(sites, everywhere(sites, mw.MonarchConfig(4))) == []


@pytest.mark.parametrize("count", [1, 2, 5, 6, 36])
@pytest.mark.parametrize("tied", [False, True])
def test_units_are_assigned_as_well_as_can_be(count, tied):
    optimize = pytest.importorskip("scipy.optimize")
    generator = torch.Generator().manual_seed(count)
    losses = torch.rand(151, count, generator=generator, dtype=torch.float64)
    losses = losses.round() if tied else losses
    start = torch.arange(151) * count // 190  # cells of different sizes, some empty
    found = assign(losses, start)
    assert torch.equal(torch.bincount(found, minlength=count), torch.bincount(start, minlength=count))
    slots = start.sort().values
    rows, columns = optimize.linear_sum_assignment(losses[:, slots].numpy())
    least = losses[rows, slots[columns]].sum()
    before = losses.gather(1, start[:, None]).sum()
    assert least <= losses.gather(1, found[:, None]).sum() + 1e-9 <= least + 1e-4 * before + 2e-9


def test_the_best_order_of_many_blocks_is_one():
    torch.manual_seed(0)
    weight, covariance = torch.randn(61, 53, dtype=torch.float64), torch.eye(53, dtype=torch.float64)
    energy = float(weight.square().sum())
    rows = mw.MonarchConfig(7, rank=1).hidden_units(weight, covariance, energy, rows=True)
    columns = mw.MonarchConfig(5).hidden_units(weight.T, torch.eye(61, dtype=torch.float64), energy, rows=False)
    assert torch.equal(best_order([rows, columns]).sort().values, torch.arange(61))
    assert torch.equal(best_order([rows, columns]), best_order([rows, columns]))


@torch.no_grad()
def reorder_by_hand(model, orders):
    for pair, order in orders.items():
        for name in pair.makers:
            layer = model.get_submodule(name)
            rows = layer.weight[order] if isinstance(layer, nn.Linear) else layer.weight[:, order]
            layer.weight.copy_(rows.clone())
            if layer.bias is not None:
                layer.bias.copy_(layer.bias[order].clone())
        layer = model.get_submodule(pair.reader)
        columns = layer.weight[:, order] if isinstance(layer, nn.Linear) else layer.weight[order]
        layer.weight.copy_(columns.clone())


def in_double(data):
    return [{k: v.double() if v.is_floating_point() else v for k, v in batch.items()} for batch in data]


@pytest.mark.sampled
@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("family", BUILDERS)
def test_a_plan_is_that_of_the_model_in_the_other_order(family, sequential, tmp_path):
    model, data = build(family).double(), in_double(batches(family))
    config = {r"re:(?!.*(pooler|classifier|lm_head)).*": mw.MonarchConfig(2)}
    sites = sites_of(model)
    choices = {name: mw.MonarchConfig(2) for name in sites if not name.endswith(("pooler.dense", "classifier", "head"))}
    moments = Calibration(model, {name: sites[name].module for name in choices}, data)
    orders = hidden_orders(model, sites, choices, moments, data)
    assert len(orders) == 2

    other, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    reorder_by_hand(other, orders)
    expected = mw.plan_conversion(other, config, data, sequential=sequential, tokens=None)
    plan = mw.plan_conversion(model, config, data, sequential=sequential, permute=True, tokens=None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(model.get_submodule(name) is site.module for name, site in sites.items())
    for line, wanted in zip(plan.report.converted, expected.report.converted, strict=True):
        assert line.names == wanted.names
        assert line.relative_error == pytest.approx(wanted.relative_error, rel=1e-5)
        assert line.output_error == pytest.approx(wanted.output_error, rel=1e-5)

    mw.convert_(model, plan)
    mw.convert_(other, expected)
    found = output(model, data[0])
    torch.testing.assert_close(found, output(other, data[0]), rtol=1e-5, atol=1e-5)
    mw.save_pretrained(model, tmp_path)
    torch.testing.assert_close(output(mw.load_pretrained(tmp_path), data[0]), found)
    mw.densify_(model)
    torch.testing.assert_close(output(model, data[0]), found, rtol=1e-5, atol=1e-5)


def test_plans_lose_less():
    model, data = Gated(24, 64), inputs(24)
    lost = [
        sum(
            line.output_error**2
            for line in mw.plan_conversion(model, mw.MonarchConfig(4), data, permute=on).report.layers
        )
        for on in (False, True)
    ]
    assert lost[1] < lost[0]


def test_a_budget_chooses_before_the_order_is_sought():
    model, data = nn.ModuleDict({"mlp": FeedForward(24, 64)}), inputs(24)
    model.forward = model["mlp"].forward
    candidates = [mw.MonarchConfig(2), mw.MonarchConfig(4)]
    plans = [
        mw.plan_conversion(model, mw.MonarchConfig(4), data, parameters=0.4, candidates=candidates, permute=on)
        for on in (False, True)
    ]
    assert [line.layer for line in plans[0].report.layers] == [line.layer for line in plans[1].report.layers]
    assert sum(x.output_error**2 for x in plans[1].report.layers) < sum(
        x.output_error**2 for x in plans[0].report.layers
    )


def test_a_budget_may_keep_one_layer_of_a_pair_dense():
    model, data = nn.ModuleDict({"mlp": FeedForward(24, 64)}), inputs(24)
    model.forward = model["mlp"].forward
    candidates = [None, mw.MonarchConfig(4)]
    plan = mw.plan_conversion(model, mw.MonarchConfig(4), data, parameters=0.7, candidates=candidates, permute=True)
    assert len(plan.report.converted) == 1


def test_memory_of_the_calibration_may_be_bounded(monkeypatch):
    monkeypatch.setattr("milkweed.convert.input_moments._LEAST_MEMORY", 8 * 64**2)
    model, data = FeedForward(24, 64), inputs(24)
    bounded = mw.plan_conversion(model, mw.MonarchConfig(4), data, permute=True)
    monkeypatch.undo()
    free = mw.plan_conversion(model, mw.MonarchConfig(4), data, permute=True)
    assert [x.output_error for x in bounded.report.layers] == [x.output_error for x in free.report.layers]


def test_what_permute_needs_is_said():
    with pytest.raises(ValueError, match="permute=True needs calibration"):
        mw.plan_conversion(FeedForward(16, 32), mw.MonarchConfig(4), permute=True)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    with pytest.raises(ValueError, match=r"found no hidden units among the 2 layers.*fc1 before fc2"):
        mw.plan_conversion(model, mw.MonarchConfig(4), inputs(16), permute=True)
