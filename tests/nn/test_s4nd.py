"""S4ND against direct convolutions in two and more dimensions, and what a layer on images has to stand."""

import copy
import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck

from milkweed import nn as mwnn
from milkweed.nn import S4ND
from milkweed.nn.filters import S4DFilter, S4Filter

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
GRID = [(kind, both) for kind in ("s4", "s4d") for both in (True, False)]


def build(kind="s4", bidirectional=True, dims=2, **kwargs):
    return S4ND(3, dims, 8, kind=kind, bidirectional=bidirectional, **kwargs)


def filter_only(**kwargs):
    """The convolution and the skip alone, in float64."""
    return build(activation="none", output="none", dtype=torch.float64, **kwargs)


def axis_kernels(layer, axis, length, rate):
    """(heads H, 2 length - 1) for lags 1 - length .. length - 1, from the equations in complex128."""
    system = layer.filter.axes[axis]
    p = {name: value.detach() for name, value in system.named_parameters()}
    copies = system.d_model // system.n_ssm
    A = -torch.exp(p["A_real"]) + 1j * p["A_imag"]
    C = torch.view_as_complex(p["C"])
    dt = torch.exp(p["log_dt"])[:, None] * rate
    if layer.filter.bandlimit is not None:
        slow = (
            dt * max(rate, 1) / rate * p["A_imag"].abs().repeat(copies, 1) / (2 * math.pi) <= layer.filter.bandlimit / 2
        )
        C = C * slow
    if isinstance(system, S4DFilter):
        a = torch.exp(dt * A.repeat(copies, 1))
        b = (a - 1) / A.repeat(copies, 1)
        lags = torch.einsum("rhn,hn,hnl->rhl", C, b, a[..., None] ** torch.arange(length)).real * 2
    else:
        P, B = torch.view_as_complex(p["P"]), torch.view_as_complex(p["B"])
        A, P, B, C = (torch.cat([x, x.conj()], -1) for x in (A, P, B, C))
        A = (torch.diag_embed(A) - torch.einsum("rsn,rsm->snm", P, P.conj())).repeat(copies, 1, 1)
        eye, dt = torch.eye(A.shape[-1], dtype=A.dtype), dt[..., None]
        back = torch.linalg.inv(eye - dt / 2 * A)
        a, x = back @ (eye + dt / 2 * A), back @ (dt * B.repeat(copies, 1)[..., None])
        lags = []
        for _ in range(length):
            lags.append((C * x[..., 0]).sum(-1).real)
            x = a @ x
        lags = torch.stack(lags, -1)
    past = lags[0]
    future = lags[1, :, : length - 1] if system.bidirectional else torch.zeros_like(past[:, : length - 1])
    return torch.cat([future.flip(-1), past], -1)


def direct(layer, u, rates=None):
    """``filter_only`` by loops over all lags of all axes: (B, *spatial, H)."""
    sizes = u.shape[1:-1]
    rates = rates or (1.0,) * len(sizes)
    kernels = [
        axis_kernels(layer, axis, size, rate).unflatten(0, (layer.filter.kernel_rank, layer.filter.d_model))
        for axis, (size, rate) in enumerate(zip(sizes, rates, strict=True))
    ]
    y = layer.filter.D.detach()[0] * u
    for lags in itertools.product(*[range(1 - size, size) for size in sizes]):
        weight = 1
        for kernel, lag, size in zip(kernels, lags, sizes, strict=True):
            weight = weight * kernel[..., lag + size - 1]
        read = [slice(max(-lag, 0), size - max(lag, 0)) for lag, size in zip(lags, sizes, strict=True)]
        write = [slice(max(lag, 0), size - max(-lag, 0)) for lag, size in zip(lags, sizes, strict=True)]
        y[:, *write] += weight.sum(0) * u[:, *read]
    return y


@pytest.mark.parametrize(("kind", "bidirectional"), GRID)
class TestContract:
    @pytest.mark.parametrize("sizes", [(7,), (5, 6), (1, 9), (4, 1), (1, 1), (3, 5, 4), (2, 1, 3), (2, 3, 1, 2)])
    def test_equals_direct_convolution(self, kind, bidirectional, sizes):
        layer = filter_only(kind=kind, bidirectional=bidirectional, dims=len(sizes), dt_max=0.9)
        u = torch.randn(2, *sizes, 3, dtype=torch.float64)
        torch.testing.assert_close(layer(u), direct(layer, u), **TIGHT)

    def test_rates_per_axis(self, kind, bidirectional):
        layer = filter_only(kind=kind, bidirectional=bidirectional, bandlimit=0.3, dt_max=0.9)
        u = torch.randn(1, 5, 4, 3, dtype=torch.float64)
        for rates in ((0.5, 3.0), (1.0, 2.0)):
            torch.testing.assert_close(layer(u, rate=rates), direct(layer, u, rates), **TIGHT)
        assert torch.equal(layer(u, rate=2.0), layer(u, rate=[2.0, 2.0]))

    def test_autocast(self, kind, bidirectional):
        layer = build(kind, bidirectional, gate=True)
        u = torch.randn(2, 9, 12, 3)
        exact = layer(u)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(u)
        y.float().square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
        assert (y.float() - exact).norm() / exact.norm() < 8 * torch.finfo(torch.bfloat16).eps
        half = copy.deepcopy(layer).bfloat16()
        assert half(u.bfloat16()).dtype == torch.bfloat16

    def test_meta(self, kind, bidirectional):
        layer = build(kind, bidirectional, device="meta")
        assert all(p.is_meta for p in layer.parameters())
        u = torch.randn(2, 4, 5, 3)
        assert layer(u.to("meta")).shape == u.shape
        layer.to_empty(device="cpu").reset_parameters()
        assert layer(u).isfinite().all()


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["s4", "s4d"])
@pytest.mark.parametrize("options", [{}, {"channels": 2, "kernel_rank": 2, "gate": True, "bandlimit": 0.9}])
def test_all_parameters_have_gradients(kind, options):
    layer = S4ND(2, 2, 4, kind=kind, dt_max=0.9, dtype=torch.float64, **options)
    names, values = zip(*layer.named_parameters(), strict=True)
    u = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    def function(u, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (u,))

    assert gradcheck(function, (u, *values))


@pytest.mark.parametrize("bidirectional", [False, [False, True], [True, False], True])
def test_causality_per_axis(bidirectional):
    layer = build(bidirectional=bidirectional, dtype=torch.float64)
    both = [bidirectional] * 2 if isinstance(bidirectional, bool) else bidirectional
    u = torch.randn(5, 4, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda u: layer(u[None])[0].sum(-1), u).abs().sum(-1)
    for axis, two_sided in enumerate(both):
        # (output point, input point) along this axis
        along = jacobian.amax((1 - axis, 3 - axis))
        future = along.triu(1)
        if two_sided:
            assert (future[torch.ones_like(future).triu(1).bool()] > 1e-8 * along.max()).all()
        else:
            assert future.max() < 1e-12 * along.max()
        assert (along.diagonal() > 0).all()


def test_rank_is_a_sum_of_outer_products():
    layer = filter_only(kernel_rank=3)
    u = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(layer(u), direct(layer, u), **TIGHT)


def test_heads_are_mixed():
    torch.manual_seed(0)
    layer = build(channels=2, output="linear", dtype=torch.float64)
    u = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    heads = []
    for head in range(2):
        alone = filter_only()
        with torch.no_grad():
            alone.filter.D.copy_(layer.filter.D[head : head + 1])
            for axis, own in zip(layer.filter.axes, alone.filter.axes, strict=True):
                for name, value in own.named_parameters():
                    source = dict(axis.named_parameters())[name]
                    rows = slice(3 * head, 3 * head + 3)
                    value.copy_(source[rows] if name == "log_dt" else source[:, rows] if name == "C" else source)
        heads.append(torch.nn.functional.gelu(direct(alone, u)))
    torch.testing.assert_close(layer(u), layer.mix.output(torch.cat(heads, -1)), **TIGHT)


@pytest.mark.parametrize("bandlimit", [None, 0.5])
@pytest.mark.parametrize(("kind", "init"), [("s4d", "lin"), ("s4d", "legs"), ("s4", "legs")])
def test_finer_resolution_of_the_same_blocks(kind, init, bandlimit):
    # Each pixel split into 2 × 2 of the same colour is the same input to a continuous system under zero-order hold.
    layer = S4ND(
        4,
        2,
        16,
        init,
        kind=kind,
        axis_options={"discretization": "zoh"},
        bidirectional=False,
        bandlimit=bandlimit,
        dt_max=0.9,
        dtype=torch.float64,
    )
    u = torch.randn(2, 9, 6, 4, dtype=torch.float64)
    fine = u.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(layer(fine, rate=0.5)[:, 1::2, 1::2], layer(u), **TIGHT)
    tall = u.repeat_interleave(3, 1)
    torch.testing.assert_close(layer(tall, rate=(1 / 3, 1.0))[:, 2::3], layer(u), **TIGHT)


def smooth_image(size, d_model):
    """A sum of waves of at most three periods, which fade out at the border, at size × size points of [0, 1)²."""
    generator = torch.Generator().manual_seed(0)
    at = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    waves = torch.stack([torch.sin(math.pi * at) * torch.sin(math.pi * k * at) for k in range(1, 7)])
    weights = torch.randn(6, 6, d_model, generator=generator, dtype=torch.float64)
    return torch.einsum("ix,jy,ijc->xyc", waves, waves, weights)[None]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("kind", ["s4", "s4d"])
def test_finer_resolution_of_a_smooth_image(kind, bidirectional):
    def differences(size, seed):
        """From the coarse output, of the fine one with the right rate and of the one without."""
        torch.manual_seed(seed)
        scale = {"dt_min": 2 / size, "dt_max": 6.4 / size}
        layer = S4ND(
            8, 2, 16, kind=kind, bidirectional=bidirectional, bandlimit=0.5, output="none", dtype=torch.float64, **scale
        )
        torch.nn.init.zeros_(layer.filter.D)
        coarse, image = layer(smooth_image(size, 8)), smooth_image(2 * size, 8)
        pooled = [
            y.unflatten(1, (size, 2)).unflatten(3, (size, 2)).mean((2, 4))
            for y in (layer(image, rate=0.5), layer(image))
        ]
        return [(y - coarse).norm() / coarse.norm() for y in pooled]

    right, wrong = torch.tensor([[d.item() for d in differences(64, seed)] for seed in range(4)]).T
    assert right.max() < 0.1 < 0.8 < wrong.mean()
    # What remains is the step of the discretisation: of first order.
    assert differences(128, 0)[0] < 0.6 * right[0]


@pytest.mark.parametrize("kind", ["s4", "s4d"])
def test_bandlimit_reads_only_modes_that_both_resolutions_see(kind):
    layer = S4ND(4, 2, 32, kind=kind, bandlimit=0.8, dt_min=0.1, dt_max=0.9, dtype=torch.float64)
    u = torch.randn(1, 12, 10, 4, dtype=torch.float64)
    for rate in (0.25, 1.0, 4.0):
        before = layer(u, rate=rate)
        changed = copy.deepcopy(layer)
        with torch.no_grad():
            for axis in changed.filter.axes:
                cycles = axis.log_dt.exp()[:, None] * max(rate, 1) * axis.A_imag.abs() / (2 * math.pi)
                fast = cycles > 0.4
                assert fast.any()
                assert not fast.all()
                axis.C[:, fast] = 1e3
        assert torch.equal(changed(u, rate=rate), before)


def test_bandlimit_keeps_white_noise_in_the_band():
    # At a fine grid, white noise would excite modes too fast for the grid of training, which therefore never saw them.
    u = torch.randn(1, 128, 128, 8, dtype=torch.float64)
    kept = (torch.fft.fftfreq(128).abs()[:, None] <= 1 / 8) & (torch.fft.rfftfreq(128) <= 1 / 8)

    def energy_above(bandlimit):
        torch.manual_seed(0)
        layer = S4ND(
            8,
            2,
            64,
            "lin",
            kind="s4d",
            bandlimit=bandlimit,
            dt_min=0.05,
            dt_max=0.1,
            activation="none",
            output="none",
            dtype=torch.float64,
        )
        torch.nn.init.zeros_(layer.filter.D)
        energy = torch.fft.rfft2(layer(u, rate=0.25), dim=(1, 2)).abs().square().sum((0, 3))
        return energy[~kept].sum() / energy.sum()

    assert energy_above(0.8) < 0.1 < 0.5 < energy_above(None)


def test_compiles_and_exports():
    for layer in (build("s4"), build("s4d", [False, True], channels=2, bandlimit=0.5)):
        u = torch.randn(2, 9, 12, 3)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(u), layer(u))
        torch.testing.assert_close(compiled(u, rate=(0.5, 2.0)), layer(u, rate=(0.5, 2.0)))
        compiled(u).sum().backward()
        dims = {
            0: torch.export.Dim("batch"),
            1: torch.export.Dim("height", max=1 << 12),
            2: torch.export.Dim("width", max=1 << 12),
        }
        exported = torch.export.export(layer, (u,), dynamic_shapes=(dims,)).module()
        for shape in ((5, 20, 11), (3, 2, 30)):
            other = torch.randn(*shape, 3)
            torch.testing.assert_close(exported(other), layer(other))


def test_copies():
    layer = build()
    u = torch.randn(2, 4, 5, 3)
    fresh = copy.deepcopy(layer)
    assert torch.equal(fresh(u), layer(u))
    fresh.reset_parameters()
    assert not torch.equal(fresh(u), layer(u))
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(u), layer(u))
    # One skip for the layer, none per axis.
    assert [name for name in layer.state_dict() if name.split(".")[-1] == "D"] == ["filter.D"]


def test_tied_dropout_drops_whole_channels():
    layer = build(activation="none", output="none", dropout=0.5, tie_dropout=True)
    y = layer(torch.randn(16, 4, 5, 3))
    dropped = (y == 0).flatten(1, 2)
    assert torch.equal(dropped.any(1), dropped.all(1))
    assert dropped.any()
    assert not dropped.all()


def test_parameter_groups():
    groups = {g["name"]: g for g in mwnn.parameter_groups(build(), lr=1e-2, weight_decay=0.1)}
    assert len(groups["ssm"]["params"]) == 2 * len(S4Filter.ssm_parameters)
    assert groups["ssm"]["weight_decay"] == 0


def test_frozen_parameters():
    layer = build(frozen=["A", "D", "dt"])
    frozen = [name for name, p in layer.named_parameters() if not p.requires_grad]
    names = ("log_dt", "A_real", "A_imag")
    assert sorted(frozen) == sorted(
        ["filter.D", *(f"filter.axes.{axis}.{name}" for axis in range(2) for name in names)]
    )


@pytest.mark.parametrize("kernel_rank", [1, 4])
def test_size_of_the_output_at_the_start(kernel_rank):
    torch.manual_seed(0)
    layer = S4ND(64, 2, bidirectional=False, kernel_rank=kernel_rank, dt_min=0.02, activation="none", output="none")
    torch.nn.init.zeros_(layer.filter.D)
    assert 0.6 < layer(torch.randn(1, 64, 64, 64)).std() < 1.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 0}, "dims must be an integer of at least 1; got 0"),
        ({"kernel_rank": 0}, "kernel_rank must be an integer of at least 1"),
        ({"kind": "s4dd"}, "did you mean 's4d'"),
        ({"init": "lges"}, "did you mean 'legs'"),
        ({"axis_options": {"n_smm": 1}}, "axis_options='n_smm' is unknown; did you mean 'n_ssm'"),
        ({"axis_options": {"b_init": "ones"}}, "axis_options='b_init' is unknown"),
        ({"axis_options": {"n_ssm": 2}}, "n_ssm must divide d_model=3; got n_ssm=2"),
        ({"bandlimit": 0.0}, "bandlimit must be above 0"),
        ({"bidirectional": [True]}, r"bidirectional must be one value, or one per axis for dims=2; got \[True\]"),
        ({"dt_min": (1e-3, 1e-3, 1e-3)}, "dt_min must be one value, or one per axis"),
        ({"dt_min": 1.0}, "expected 0 < dt_min <= dt_max"),
        ({"frozen": ["Q"]}, "frozen='Q' is unknown"),
        ({"channels": 2, "output": "none"}, "output='none' cannot mix"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        S4ND(**({"d_model": 3, "d_state": 8} | options))


@pytest.mark.parametrize(
    ("shape", "rate", "message"),
    [
        ((2, 5, 3), 1.0, r"u must be \(B, L1, L2, d_model\) with d_model=3, for dims=2; got shape \(2, 5, 3\)"),
        ((2, 5, 5, 5, 3), 1.0, "u must be"),
        ((2, 5, 5, 4), 1.0, "d_model=3"),
        ((2, 0, 5, 3), 1.0, "at least one point on every axis"),
        ((2, 5, 5, 3), (1.0,), "rate must be one value, or one per axis for dims=2"),
        ((2, 5, 5, 3), (1.0, 0.0), "rate must be above 0 and finite"),
        ((2, 5, 5, 3), -1.0, "rate must be above 0 and finite"),
    ],
)
def test_bad_input(shape, rate, message):
    with pytest.raises(ValueError, match=message):
        build()(torch.randn(*shape), rate=rate)


def test_an_empty_batch():
    assert build()(torch.randn(0, 4, 5, 3)).shape == (0, 4, 5, 3)
