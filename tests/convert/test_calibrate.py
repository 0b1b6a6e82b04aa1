"""What layers read, and projections for it."""

import copy

import pytest
import torch
from tests.convert.families import batches, build, output
from torch import nn

import milkweed as mw
from milkweed.convert.budget_search import choose_within
from milkweed.convert.input_moments import Calibration
from milkweed.nn.structured_linear import BlockDiagonalConfig, LowRankConfig


def network(bias=True):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 24, bias), nn.GELU(), nn.Linear(24, 24, bias), nn.GELU(), nn.Linear(24, 12, bias)
    )


def data(count=30):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=generator) * torch.linspace(2, 0.05, 12)[:, None]
    return [torch.randn(8, 5, 12, generator=generator) @ mixing + 0.5 for _ in range(count)]


def test_moments_are_those_of_all_inputs():
    model, batch = network().double(), [x.double() for x in data()]
    found = Calibration(model, {"0": model[0], "2": model[2]}, iter(batch))  # one pass is enough
    x = torch.cat(batch).flatten(0, 1)
    hidden = torch.nn.functional.gelu(model[0](x)).detach()
    for name, rows in (("0", x), ("2", hidden)):
        assert found[name].count == len(rows)
        torch.testing.assert_close(found[name].covariance(centred=False), rows.T @ rows / len(rows))
        torch.testing.assert_close(found[name].mean, rows.mean(0))
        torch.testing.assert_close(found[name].covariance(centred=True), torch.cov(rows.T, correction=0))


def test_padding_does_not_count():
    model, padded = build("bert"), batches("bert", 3, padded=True)
    layer = {"q": model.encoder.layer[0].attention.self.query}
    found = Calibration(model, layer, padded)["q"]
    assert found.count == 3 * (2 * 10 + 2 * 6)
    for batch in padded:
        batch["input_ids"][2:, 6:] = 7
    again = Calibration(model, layer, padded)["q"]
    torch.testing.assert_close((again.mean, again.covariance(True)), (found.mean, found.covariance(True)))


def test_memory_is_bounded_by_passes():
    model, batch = network(), data(3)
    layers = {name: model[int(name)] for name in "024"}
    whole = Calibration(model, layers, batch)
    split = Calibration(model, layers, batch, memory_limit=8 * 24**2)
    for name in layers:
        assert torch.equal(whole[name].covariance(centred=True), split[name].covariance(centred=True))
        assert list(split._moments) == [name]
    with pytest.raises(TypeError, match="must be a list"):
        Calibration(model, layers, iter(batch), memory_limit=1)


def test_the_mode_of_every_module_is_kept_and_no_hook_is_left():
    model = network()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    for sequential in (False, True):
        mw.plan_conversion(model, mw.MonarchConfig(2), data(), sequential=sequential, tokens=None)
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_pre_hooks for m in model.modules())


def outputs_error(model, dense):
    x = torch.cat(data())
    with torch.no_grad():
        expected = dense(x)
        return float((model(x) - expected).norm() / expected.norm())


@pytest.mark.parametrize("bias", [True, False])
def test_each_step_of_calibration_helps(bias):
    dense, found = network(bias), {}
    for label, options in (
        ("plain", {}),
        ("aware", {"calibration": data()}),
        ("sequential", {"calibration": data(), "sequential": True}),
    ):
        model = copy.deepcopy(dense)
        mw.convert_(model, mw.plan_conversion(model, {"re:.*": mw.MonarchConfig(2, rank=2)}, tokens=None, **options))
        found[label] = outputs_error(model, dense)
    assert found["sequential"] < found["aware"] < found["plain"]


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_reported_output_errors_are_those_of_the_layers(bias, sequential):
    dense = network(bias).double()
    batch = [x.double() for x in data()]
    model = copy.deepcopy(dense)
    plan = mw.plan_conversion(model, mw.MonarchConfig(3), batch, sequential=sequential, tokens=None)
    report = mw.convert_(model, plan)
    x = z = torch.cat(batch)
    with torch.no_grad():
        for name in range(0, 5, 2):
            if not sequential:
                z = x
            x_bias = 0 if dense[name].bias is None else dense[name].bias
            expected, found = dense[name](x), model[name](z)
            error = float((found - expected).norm() / (expected - x_bias).norm())
            (line,) = [line for line in report.layers if line.name == str(name)]
            assert line.output_error == pytest.approx(error, rel=1e-4)
            x, z = (torch.nn.functional.gelu(t) for t in (expected, found))


@pytest.mark.parametrize("config", [mw.MonarchConfig(2, rank=1), LowRankConfig(3), BlockDiagonalConfig(3)])
def test_a_bias_makes_up_for_the_mean_error(config):
    dense = network().double()
    x = torch.cat([batch.double() for batch in data()]) + 2  # far from zero: most of the energy is in the mean
    plan = mw.plan_conversion(dense, config, [x], tokens=None)
    with torch.no_grad():
        expected, found = dense[0](x), plan.layers["0"](x)
        without = torch.nn.functional.linear(x, plan.layers["0"].matrix().to_dense(), dense[0].bias)
    torch.testing.assert_close(found.mean((0, 1)), expected.mean((0, 1)))
    assert (found - expected).norm() < 0.8 * (without - expected).norm()


def test_a_packed_layer_after_converted_ones():
    model, inputs = build("gpt2"), batches("gpt2")
    dense = copy.deepcopy(model)
    plan = mw.plan_conversion(model, mw.MonarchConfig(1, rank=32), inputs, sequential=True, tokens=None)
    mw.convert_(model, plan)
    # With one block of full rank nothing is lost, whatever is regressed on.
    torch.testing.assert_close(output(model, inputs[0]), output(dense, inputs[0]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sequential", [False, True])
def test_what_is_changed_in_place_between_two_layers_is_read_anew(sequential):
    class Changed(nn.Module):
        def __init__(self, in_place):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.in_place = nn.Linear(12, 12), nn.Linear(12, 12), in_place

        def forward(self, x):
            x = x.clone()
            y = self.a(x)
            other = x.flip(-1).square() - 1
            x = x.copy_(other) if self.in_place else other
            return y + self.b(x)

    found = [
        mw.plan_conversion(Changed(in_place), mw.MonarchConfig(3), data(), sequential=sequential, tokens=None)
        for in_place in (True, False)
    ]
    for name in "ab":
        torch.testing.assert_close(found[0].layers[name].state_dict(), found[1].layers[name].state_dict())


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(("constant", "spread"), [(0.0, 1e-3), (0.1, 1e-3), (1 / 3, 1e-3), (1000.0, 0.1)])
def test_inputs_that_hardly_vary(sequential, constant, spread):
    torch.manual_seed(0)
    x = spread * torch.randn(1000, 32) + constant
    x[:, 0] = constant
    layer = nn.Sequential(nn.Linear(32, 32))
    plan = mw.plan_conversion(layer, mw.MonarchConfig(4), list(x.chunk(8)), sequential=sequential, tokens=None)
    best = mw.project_monarch(layer[0].weight.detach().double(), 4, input_covariance=torch.cov(x.double().T))
    with torch.no_grad():
        wide = copy.deepcopy(layer).double()
        lost = plan.layers["0"].double()(x.double()) - wide(x.double())
        varying = (x.double() - x.double().mean(0)) @ layer[0].weight.double().T
    # Against the optimum for the exact covariance, the bias taking the mean.
    error = lost.square().sum() / varying.square().sum()
    assert float(error) ** 0.5 == pytest.approx(best.output_error, rel=1e-3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sequential", [False, True])
def test_inputs_that_do_not_vary_at_all(sequential, bias):
    x = torch.zeros(20, 12) if not bias else torch.full((20, 12), 0.3)
    layer = nn.Sequential(nn.Linear(12, 12, bias))
    plan = mw.plan_conversion(layer, mw.MonarchConfig(3), [x], sequential=sequential, tokens=None)
    torch.testing.assert_close(plan.layers["0"](x), layer(x))


class Sometimes(nn.Module):
    """Calls b once for positive batches, twice or not at all for others."""

    def __init__(self, times):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.times = nn.Linear(12, 12), nn.Linear(12, 12), times

    def forward(self, x):
        y = self.a(x)
        for _ in range(1 if x.mean() > 0 else self.times):
            y = self.b(y)
        return y


@pytest.mark.parametrize("times", [0, 2])
@pytest.mark.parametrize("first", [1, -1])
def test_layers_that_only_some_batches_reach(times, first):
    """One block of full rank loses nothing, if all that a layer reads is looked at."""
    model = Sometimes(times)
    batch = [first * (x.abs() + 0.1) for x in data(4)] + [-first * (x.abs() + 0.1) for x in data(4)]
    plan = mw.plan_conversion(model, mw.MonarchConfig(1), batch, sequential=True, tokens=None)
    assert set(plan.layers) == {"a", "b"}
    converted = copy.deepcopy(model)
    mw.convert_(converted, plan)
    for x in batch:
        torch.testing.assert_close(converted(x), model(x), rtol=1e-3, atol=1e-4)


def test_inputs_that_cannot_be_paired():
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x):
            y = self.a(x)
            return self.b(y[y[..., 0] > 0])

    with pytest.raises(ValueError, match="'b' reads other numbers of inputs in the converted model"):
        mw.plan_conversion(Chooses(), mw.MonarchConfig(6, rank=1), data(), sequential=True, tokens=None)


def test_a_decoder_has_a_mask_of_its_own():
    class EncoderDecoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x, attention_mask, decoder_input_ids, decoder_attention_mask=None):
            return self.encoder(x) + self.decoder(decoder_input_ids)

    mask = torch.ones(2, 5, dtype=torch.long)
    mask[:, 3:] = 0
    x = torch.randn(2, 5, 12)
    batch = {"x": x, "attention_mask": mask, "decoder_input_ids": x}
    model = EncoderDecoder()
    layers = {"encoder": model.encoder, "decoder": model.decoder}
    assert [Calibration(model, layers, [batch])[name].count for name in layers] == [6, 10]
    batch["decoder_attention_mask"] = 1 - mask
    assert [Calibration(model, layers, [batch])[name].count for name in layers] == [6, 4]


def test_errors_of_tiny_weights_are_measured():
    layer = nn.Sequential(nn.Linear(12, 12))
    small = copy.deepcopy(layer)
    with torch.no_grad():
        small[0].weight.mul_(1e-22)
    (a,), (b,) = (
        mw.plan_conversion(m, mw.MonarchConfig(3, rank=1), tokens=None).report.converted for m in (layer, small)
    )
    assert b.relative_error == pytest.approx(a.relative_error, rel=1e-3)


class TestBudget:
    def options(self):
        return {
            "a": [(10, 0.5, "a8"), (20, 0.2, "a4"), (40, 0.0, "a")],
            "b": [(10, 0.1, "b8"), (15, 0.2, "worse"), (20, 0.05, "b4"), (40, 0.0, "b")],
        }

    def test_the_steepest_step_comes_first(self):
        chosen = {budget: choose_within(self.options(), budget) for budget in (20, 30, 40, 50, 80)}
        assert chosen[20] == {"a": "a8", "b": "b8"}
        assert chosen[30] == {"a": "a4", "b": "b8"}
        assert chosen[50] == {"a": "a", "b": "b8"}
        assert chosen[80] == {"a": "a", "b": "b"}

    def test_errors_fall_as_the_budget_rises(self):
        errors = {key: {label: error for _, error, label in found} for key, found in self.options().items()}
        sums = []
        for budget in range(20, 81):
            chosen = choose_within(self.options(), budget)
            sums.append(sum(errors[name][label] for name, label in chosen.items()))
        assert sums == sorted(sums, reverse=True)

    def test_too_little(self):
        with pytest.raises(ValueError, match="parameters=19 is less than the 20 that the cheapest"):
            choose_within(self.options(), 19)
        with pytest.raises(ValueError, match="none of the candidates fits layer 'a'"):
            choose_within({"a": []}, 3)

    def test_a_model_within_a_budget_is_better_than_a_uniform_one(self):
        dense = network()
        with torch.no_grad():  # one layer loses nothing: its share is better spent on the others
            dense[2].weight.copy_(torch.outer(torch.randn(24), torch.randn(24)))
        candidates = [mw.MonarchConfig(2, rank=rank) for rank in (1, 2, 3)]
        uniform, free = copy.deepcopy(dense), copy.deepcopy(dense)
        rules = {"re:.*": mw.MonarchConfig(2, rank=2)}
        report = mw.convert_(uniform, mw.plan_conversion(uniform, rules, data(), tokens=None))
        budget = sum(line.parameters_after for line in report.converted)
        plan = mw.plan_conversion(free, rules, data(), parameters=budget, candidates=candidates, tokens=None)
        assert all(type(free[i]) is nn.Linear for i in (0, 2, 4))  # planning leaves the model as it was
        found = mw.convert_(free, plan)
        assert sum(line.parameters_after for line in found.layers) <= budget
        assert report.converted
        assert outputs_error(free, dense) < outputs_error(uniform, dense)

    def test_a_budget_needs_calibration_and_candidates(self):
        with pytest.raises(ValueError, match="needs calibration"):
            mw.plan_conversion(network(), parameters=0.5, candidates=[mw.MonarchConfig(2)])
        with pytest.raises(ValueError, match="needs candidates"):
            mw.plan_conversion(network(), calibration=data(), parameters=0.5)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"parameters": float("nan")}, ValueError, "parameters must be above 0 and finite; got nan"),
            ({"parameters": float("inf")}, ValueError, "above 0 and finite"),
            ({"parameters": -0.5}, ValueError, "got -0.5"),
            ({"parameters": "0.5"}, TypeError, "parameters must be a number"),
            ({"parameters": True}, TypeError, "parameters must be a number"),
            ({"candidates": mw.MonarchConfig(4)}, TypeError, "candidates must be a list"),
            ({"candidates": [4]}, TypeError, "None to stay dense; got 4"),
            ({"candidates": [mw.MonarchConfig(2)], "parameters": 0.01}, ValueError, "raise the share to 0"),
        ],
    )
    def test_bad_budgets(self, options, error, message):
        with pytest.raises(error, match=message):
            mw.plan_conversion(
                network(), None, data(), **{"parameters": 0.9, "candidates": [None, mw.MonarchConfig(2)]} | options
            )

    def test_candidates_may_come_from_a_generator(self):
        candidates = (mw.MonarchConfig(nblocks, rank=1) for nblocks in (1, 2, 3))
        plan = mw.plan_conversion(network(), None, data(), parameters=0.9, candidates=candidates, tokens=None)
        assert len(plan.report.converted) == 3

    def test_outputs_that_cannot_be_compared(self):
        class Scalar(nn.Module):
            def __init__(self, scale):
                super().__init__()
                self.inner, self.scale = nn.Linear(12, 12), scale

            def forward(self, x):
                return (
                    self.inner(x).mean() if self.scale is None else {"loss": x.mean(), "y": self.inner(x) * self.scale}
                )

        options = {"parameters": 0.9, "candidates": [mw.MonarchConfig(2, rank=1)], "tokens": None}
        with pytest.raises(ValueError, match="no floating-point tensor of two dimensions"):
            mw.plan_conversion(Scalar(None), None, data(), **options)
        with pytest.raises(ValueError, match="outputs that are not finite"):
            mw.plan_conversion(Scalar(float("inf")), None, data(), **options)
        assert mw.plan_conversion(Scalar(1.0), None, data(), **options).report.converted

    def test_a_budget_out_of_reach_costs_no_pass_over_the_batches(self):
        class Untouched(list):
            def __iter__(self):
                raise AssertionError("the batches were read")

        with pytest.raises(ValueError, match="parameters=10 is less than the"):
            mw.plan_conversion(network(), None, Untouched(data()), parameters=10, candidates=[mw.MonarchConfig(2)])


class TestBadCalibration:
    @pytest.mark.parametrize("sequential", [False, True])
    def test_a_layer_is_never_reached(self, sequential):
        class Partial(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.unused = nn.Linear(12, 12), nn.Linear(12, 12)

            def forward(self, x):
                return self.used(x)

        with pytest.raises(ValueError, match="never reached layer 'unused'; skip it with the rule"):
            mw.plan_conversion(Partial(), mw.MonarchConfig(2), data(), sequential=sequential)

    @pytest.mark.parametrize("sequential", [False, True])
    def test_not_a_number(self, sequential):
        batch = data()
        batch[3][0, 0, 0] = torch.nan
        model = network()
        with pytest.raises(ValueError, match="layer '0' inputs that are NaN, infinite"):
            mw.plan_conversion(model, mw.MonarchConfig(2), batch, sequential=sequential)
        assert isinstance(model[0], nn.Linear)

    @pytest.mark.parametrize("sequential", [False, True])
    def test_nothing(self, sequential):
        with pytest.raises(ValueError, match="calibration"):
            mw.plan_conversion(network(), mw.MonarchConfig(2), [], sequential=sequential)
        with pytest.raises(TypeError, match="iterable of batches"):
            mw.plan_conversion(network(), mw.MonarchConfig(2), torch.randn(3, 12), sequential=sequential)
        with pytest.raises(ValueError, match="needs calibration"):
            mw.plan_conversion(network(), mw.MonarchConfig(2), sequential=True)
