import copy

import numpy as np
import pytest
import torch
from PIL import Image

from milkweed.models import MlpMixer, SequenceModel
from milkweed.nn.filters import S4DFilter, S4Filter
from milkweed.plots.kernels import (
    eigenvalues,
    kernel_picture,
    lag_edges,
    layer_kernels,
    save_kernels,
    state_space_layers,
    timescales,
)

LAYERS = {
    "s4d": lambda: S4DFilter(6, 8),
    "s4": lambda: S4Filter(6, 8, n_ssm=2),
    "both directions": lambda: S4DFilter(6, 8, bidirectional=True),
    "heads": lambda: S4DFilter(6, 8, channels=3, bidirectional=True),
    "real, a step per mode": lambda: S4DFilter(6, 4, init="real", dt_tie=False),
    "one channel": lambda: S4Filter(1, 2, "fout"),
    "half": lambda: S4DFilter(6, 8, dtype=torch.bfloat16),
}


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]()


def impulse_response(layer, length):
    """(H, L): what each channel answers to an impulse on itself, by the layer's forward pass without its output."""
    bare = copy.deepcopy(layer).double()
    torch.nn.init.zeros_(bare.D)
    impulse = torch.zeros(1, length, bare.d_model, dtype=torch.float64)
    impulse[:, 0] = 1
    with torch.no_grad():
        return bare(impulse)[0].T


@pytest.mark.parametrize("kind", ["s4d", "s4", "real, a step per mode", "one channel"])
def test_kernels_are_impulse_responses(kind):
    layer = LAYERS[kind]()
    found = layer_kernels(layer, 40)
    assert found.future is None
    assert found.kernel.shape == (1, layer.d_model, 40)
    torch.testing.assert_close(found.kernel[0].double(), impulse_response(layer, 40), atol=1e-5, rtol=1e-4)


def test_kernels_of_both_directions():
    layer = LAYERS["both directions"]()
    found = layer_kernels(layer, 9)
    bare = copy.deepcopy(layer).double()
    torch.nn.init.zeros_(bare.D)
    impulse = torch.zeros(1, 19, 6, dtype=torch.float64)
    impulse[:, 9] = 1
    with torch.no_grad():
        answer = bare(impulse)[0].T
    torch.testing.assert_close(found.kernel[0].double(), answer[:, 9:18], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.future[0].double(), answer[:, :9].flip(-1), atol=1e-5, rtol=1e-4)
    order = layer.log_dt.argsort(descending=True)
    torch.testing.assert_close(found.rows().double(), answer[order, :18], atol=1e-5, rtol=1e-4)


def test_a_layer_stays_as_it_is(layer):
    before = copy.deepcopy(layer.state_dict())
    random = torch.get_rng_state()
    found = layer_kernels(layer, 16)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert all(parameter.dtype == before[name].dtype for name, parameter in layer.named_parameters())
    again = layer_kernels(layer, 16)
    assert torch.equal(found.fresh.C, again.fresh.C)
    assert not torch.equal(found.fresh.C, found.layer.C)
    assert not torch.equal(found.fresh.C, layer_kernels(layer, 16, seed=1).fresh.C)


def test_rows_go_from_short_memory_to_long(layer):
    found = layer_kernels(layer, 16)
    sides = 1 if found.future is None else 2
    assert found.rows().shape == (layer.channels * layer.d_model, 16 * sides)
    steps = timescales(found.layer, per_channel=True)[found.order()]
    assert steps.shape == (layer.d_model,)
    assert (steps.diff() >= 0).all()


def test_timescales_and_eigenvalues():
    layer = S4DFilter(4, 6, init="lin", dt_min=0.01, dt_max=0.01)
    torch.testing.assert_close(timescales(layer), torch.full((4,), 100.0, dtype=torch.float64))
    expected = torch.complex(torch.full((4, 3), -0.5), torch.arange(3) * torch.pi * torch.ones(4, 1)).flatten()
    torch.testing.assert_close(eigenvalues(layer), expected.to(torch.complex128), atol=1e-5, rtol=1e-5)
    real = S4DFilter(2, 3, init="real", decay="softplus", dt_tie=False)
    assert timescales(real).shape == (6,)
    assert timescales(real, per_channel=True).shape == (2,)
    assert sorted(eigenvalues(real).real.tolist()) == pytest.approx([-3, -3, -2, -2, -1, -1], rel=1e-5)


def test_half_of_the_energy():
    layer = S4DFilter(1, 1, init="real", dt_min=0.1, dt_max=0.1)
    # e^{-0.1 l} has the energy (1 - e^{-0.2 l}) / (1 - e^{-0.2}) in its first l lags.
    assert layer_kernels(layer, 500).half_energy().tolist() == [[4]]
    assert layer_kernels(layer, 2).half_energy().tolist() == [[1]]


@pytest.mark.parametrize("length", [1, 2, 3, 100, 5000])
@pytest.mark.parametrize("log", [True, False])
def test_edges_cover_all_lags_once(length, log):
    edges = lag_edges(length, cells=50, log=log)
    assert edges[0] == 0
    assert edges[-1] == length
    assert (np.diff(edges) >= 1).all()
    assert len(edges) <= 52
    if length <= 3:
        assert edges.tolist() == list(range(length + 1))
    elif length == 5000:
        widths = np.diff(edges)
        assert (widths[-1] > 100 * widths[0]) if log else (widths.max() - widths.min() <= 1)


@pytest.mark.parametrize("log", [True, False])
def test_cells_show_the_largest_entry_around_with_its_sign(log):
    rows = torch.zeros(3, 1000)
    rows[0, 700], rows[1, 0], rows[1, 700] = -4, 2, 1
    edges, cells = kernel_picture(rows, 1000, log)
    assert cells.shape == (3, len(edges) - 1)
    at = np.searchsorted(edges, 700, side="right") - 1
    assert cells[0, at] == -1
    assert (np.delete(cells[0], at) == 0).all()
    assert (cells[1, 0], cells[1, at]) == (1, 0.5)
    assert (cells[2] == 0).all()


def test_the_future_lies_left():
    rows = torch.zeros(1, 200)
    rows[0, 99], rows[0, 102] = -1, 0.5  # lags -1 and 2
    edges, cells = kernel_picture(rows, 100)
    assert edges[0] == -100
    assert edges[-1] == 100
    assert cells[0, list(edges).index(-1)] == -1
    assert cells[0, list(edges).index(2)] == 0.5
    assert np.count_nonzero(cells) == 2


def test_very_many_kernels_are_thinned():
    cells = kernel_picture(torch.arange(1.0, 2001)[:, None].expand(-1, 4), 4)[1]
    assert cells.shape == (256, 4)


def test_layers_of_a_model():
    model = SequenceModel(1, 2, 4, 2, {"name": "s4", "d_state": 4})
    assert [type(each) for each in state_space_layers(model).values()] == [S4Filter, S4Filter]
    assert all(model.get_submodule(f"{name}.filter") is each for name, each in state_space_layers(model).items())
    assert state_space_layers(MlpMixer(1, 2, 16, d_model=4, depth=1)) == {}


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("length", [2, 300])
def test_figure(tmp_path, layer, length, log):
    path, shown = tmp_path / "kernel.png", []
    save_kernels({"a": layer_kernels(layer, length)}, path, "one layer", log=log, show=shown.append)
    with Image.open(path) as image:
        assert image.width == 2175
    assert shown == [0]
    assert list(tmp_path.iterdir()) == [path]


def test_a_row_of_panels_per_layer(tmp_path):
    found = {name: layer_kernels(make(), 20) for name, make in list(LAYERS.items())[:3]}
    with torch.no_grad():
        found["s4d"].layer.A_real.add_(torch.randn_like(found["s4d"].layer.A_real) * 3)
        found["s4"].kernel.zero_()
    save_kernels(found, tmp_path / "kernel.png", "three layers")
    with Image.open(tmp_path / "kernel.png") as image:
        assert image.height == pytest.approx(150 * (0.5 + 3 * 3.35), abs=2)
