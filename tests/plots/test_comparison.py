import itertools
import math

import numpy as np
import pytest

from milkweed.plots.comparison import Curve, Panel, save_comparison_figure, spread_out


def panel(x, count=2, metric="accuracy"):
    runs = [[(epoch, 0.1 * epoch + 0.01 * seed) for epoch in range(1, 6)] for seed in range(3)]
    return Panel("Digits", metric, True, [Curve(f"${n}", [x(n)] * 3, [0.4, 0.5, 0.6], runs) for n in range(count)])


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The figure that would have been written."""
    figures = []
    monkeypatch.setattr("milkweed.plots.comparison.save_figure", lambda figure, path: figures.append(figure))

    def draw(*panels):
        save_comparison_figure(panels, tmp_path / "a.png", "parameters")
        figures[-1].canvas.draw()
        return figures[-1]

    return draw


def test_cost_and_metric_are_where_they_belong(drawn):
    costs, curves = drawn(panel(lambda n: 100.0 * 10**n)).axes
    points = [line.get_xydata()[0] for line in costs.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(sorted(map(tuple, points)), [(100, 0.5), (1000, 0.5)])
    assert costs.get_xscale() == "log"
    assert [text.get_text() for text in costs.texts] == ["$0", "$1"]
    assert [line.get_label() for line in curves.lines] == ["$0", "$1"]
    np.testing.assert_allclose(curves.lines[0].get_ydata(), [0.1 * epoch + 0.01 for epoch in range(1, 6)])


def test_runs_of_equal_cost_get_a_line_each(drawn):
    costs, _ = drawn(panel(lambda n: 100.0, count=3)).axes
    assert [label.get_text() for label in costs.get_yticklabels()] == ["$2", "$1", "$0"]
    assert costs.get_xlabel() == "test accuracy"


@pytest.mark.parametrize("x", [lambda n: math.nan, lambda n: math.nan if n else 5.0])
def test_unknown_costs_are_no_axis(drawn, x):
    costs, _ = drawn(panel(x)).axes
    assert costs.get_xlabel() == "test accuracy"


def test_metrics_that_are_not_finite_leave_a_gap(drawn):
    broken = Panel(
        "Delay", "rmse", False, [Curve("a", [1.0], [math.nan], [[]]), Curve("b", [9.0], [1.0], [[(1, 2.0)]])]
    )
    costs, curves = drawn(broken).axes
    assert [text.get_text() for text in costs.texts] == ["b"]
    assert [len(line.get_xdata()) for line in curves.lines] == [0, 1]


def test_seeds_that_stopped_early_end_the_mean(drawn):
    runs = [[(1, 1.0), (2, 2.0)], [(1, 3.0)]]
    _, curves = drawn(Panel("a", "rmse", False, [Curve("a", [1.0, 1.0], [1.0, 1.0], runs)])).axes
    np.testing.assert_allclose(curves.lines[0].get_xydata(), [(1, 2.0)])


def test_each_panel_has_its_row(drawn):
    figure = drawn(panel(lambda n: 10.0**n), panel(lambda n: 1.0, metric="rmse"))
    assert len(figure.axes) == 4
    with pytest.raises(ValueError, match="no finished run to draw"):
        drawn()


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([0, 20, 40], [0, 20, 40]),
        ([0, 0], [-5, 5]),
        ([0, 0, 0, 100], [-10, 0, 10, 100]),
        ([0, 6, 12], [-4, 6, 16]),
        ([0, 20, 25], [0, 17.5, 27.5]),
        ([], []),
    ],
)
def test_names_move_as_little_as_they_have_to(places, expected):
    found = spread_out(places, 10)
    np.testing.assert_allclose(found, expected)
    assert all(high - low >= 10 - 1e-9 for low, high in itertools.pairwise(found))
