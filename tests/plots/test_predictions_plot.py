"""Pictures of predictions."""

import pytest

from milkweed.plots import predictions, save_predictions

pytest.importorskip("matplotlib")


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(predictions, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def lines(axes):
    return [line.get_ydata().tolist() for line in axes.get_lines() if len(line.get_ydata()) > 2]


def test_forecasts_follow_what_was_read(drawn, tmp_path):
    steps = [{"time": f"2024-01-01 {hour:02}:00:00", "a": float(hour), "b": -float(hour)} for hour in (10, 11, 12)]
    past = {"time": [f"2024-01-01 {hour:02}:00:00" for hour in range(10)], "a": [1.0] * 10, "b": [2.0] * 10}
    save_predictions([{"input": "t.csv", "steps": steps}], tmp_path / "a.png", [past])
    (figure,) = drawn
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    assert lines(figure.axes[0]) == [[1.0] * 10, [10.0, 11.0, 12.0]]
    assert lines(figure.axes[1]) == [[2.0] * 10, [-10.0, -11.0, -12.0]]


def test_steps_without_times_and_with_lists(drawn, tmp_path):
    steps = [{"step": step, "values": [step * 1.0, 5.0]} for step in range(4)]
    save_predictions([{"input": "x", "steps": steps}, {"input": "y", "steps": steps}], tmp_path / "a.png")
    (figure,) = drawn
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["x: values[0]", "x: values[1]", "y: values[0]", "y: values[1]"]
    assert lines(figure.axes[0]) == [[0.0, 1.0, 2.0, 3.0]]


def test_classes_have_bars_by_probability(drawn, tmp_path):
    shares = {"a$b": 0.2, "yes": 0.7, "c": 0.1}
    save_predictions([{"input": "d/x.wav", "class": "yes", "probability": 0.7, "probabilities": shares}] * 14, tmp_path)
    (figure,) = drawn
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == predictions.INPUTS
    assert [bar.get_width() for bar in shown[0].patches] == [0.7, 0.2, 0.1]
    assert [label.get_text() for label in shown[0].get_yticklabels()] == ["yes", "a$b", "c"]


def test_numbers_and_what_has_no_picture(drawn, tmp_path):
    save_predictions([{"input": "x", "value": 1.0}, {"input": "y", "value": 3.0}], tmp_path / "a.png")
    assert drawn[0].axes[0].get_lines()[0].get_ydata().tolist() == [1.0, 3.0]
    with pytest.raises(ValueError, match="there is no picture of input, text"):
        save_predictions([{"input": "x", "text": "a"}], tmp_path / "a.png")
    with pytest.raises(ValueError, match="no prediction to draw"):
        save_predictions([], tmp_path / "a.png")
