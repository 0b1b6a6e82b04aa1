"""Windows of tables of numbers, and forecasts of them."""

import numpy as np
import pytest
import torch

import milkweed as mw

pandas = pytest.importorskip("pandas")


def table(path, rows=200, **changes):
    random = np.random.RandomState(0)
    frame = pandas.DataFrame(
        {
            "date": pandas.date_range("2024-01-01", periods=rows, freq="h").astype(str),
            "load": np.arange(rows, dtype=float),
            "price": random.randn(rows) * 5 + 30,
            "wind": random.randn(rows),
        }
    )
    for name, change in changes.items():
        change(frame) if callable(change) else frame.__setitem__(name, change)
    frame.to_csv(path, index=False)
    return str(path)


def data(file, **options):
    return mw.data.CsvForecast(file, **({"context": 10, "horizon": 4, "batch_size": 8} | options))


def test_windows_are_those_of_the_table(tmp_path):
    found = data(table(tmp_path / "t.csv"))
    values = pandas.read_csv(tmp_path / "t.csv")[["load", "price", "wind"]].to_numpy()
    mean, std = values[:140].mean(0), values[:140].std(0)
    scaled = torch.from_numpy((values - mean) / std).float()
    assert [len(found.split(name)) for name in ("train", "val", "test")] == [140 - 13, 20 - 3, 40 - 3]
    train, val, test = (found.split(name) for name in ("train", "val", "test"))
    assert torch.equal(train.inputs[5], scaled[5:15])
    assert torch.equal(train.targets[5], scaled[15:19])
    # Windows of validation and test read rows before, and are asked for their own alone.
    assert torch.equal(val.inputs[0], scaled[130:140])
    assert torch.equal(val.targets[0], scaled[140:144])
    assert torch.equal(val.targets[-1], scaled[156:160])
    assert torch.equal(test.targets[0], scaled[160:164])
    assert torch.equal(test.targets[-1], scaled[196:200])
    assert found.units == pytest.approx(std.tolist())


def test_columns_and_borders(tmp_path):
    found = data(table(tmp_path / "t.csv"), targets=["wind"], covariates=["load"], borders=[100, 150, 190])
    assert (found.d_input, found.d_output) == (2, 1)
    assert [len(found.split(name)) for name in ("train", "val", "test")] == [87, 47, 37]
    values = pandas.read_csv(tmp_path / "t.csv")
    wind = (values["wind"] - values["wind"][:100].mean()) / values["wind"][:100].std(ddof=0)
    assert torch.equal(found.split("train").inputs[0, :, 0], torch.tensor(wind[:10].to_numpy()).float())
    assert torch.equal(found.split("train").targets[0, :, 0], torch.tensor(wind[10:14].to_numpy()).float())


def test_borders_of_ett(tmp_path):
    found = data(table(tmp_path / "t.csv", rows=17420), context=336, horizon=96, borders="etth")
    assert [len(found.split(name)) for name in ("train", "val", "test")] == [8640 - 431, 2880 - 95, 2880 - 95]


def _swap(frame):
    frame.loc[[5, 6], "date"] = frame.loc[[6, 5], "date"].to_numpy()


def _gap(frame):
    later = pandas.to_datetime(frame["date"][7:]) + pandas.Timedelta(hours=1)
    frame.loc[7:, "date"] = later.astype(str)


def _hole(frame):
    frame.loc[9, "price"] = np.nan


BAD = {
    "out of order": ({"x": _swap}, {}, r"row 7: the time 2024-01-01 05:00:00 is not after the one before"),
    "a gap": ({"x": _gap}, {}, r"row 8: the time .* does not follow at the same distance"),
    "NaN": ({"x": _hole}, {}, "row 10: a number of .price. is missing"),
    "no times": ({"date": "soon"}, {}, "holds no time stamps"),
    "an unknown target": ({}, {"targets": ["laod"]}, "did you mean|Known|laod"),
    "a target that is text": ({"kind": "a"}, {"targets": ["kind"]}, "no number"),
    "twice": ({}, {"targets": ["load"], "covariates": ["load"]}, "'load' is a target already"),
    "a long horizon": (
        {},
        {"horizon": 90},
        r"the val split has 20 rows, too few for data\.context=10 and data\.horizon=90",
    ),
    "borders beyond": ({}, {"borders": [100, 150, 300]}, "has 200 rows"),
    "borders that shrink": ({}, {"borders": [100, 50, 150]}, "three growing row numbers"),
    "unknown borders": ({}, {"borders": "ett"}, "etth"),
    "no rows of context": ({}, {"context": 0}, "context=0 must be at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(case, tmp_path):
    changes, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        data(table(tmp_path / "t.csv", **changes), **options).setup()


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist; name a \.csv"):
        data(str(tmp_path / "none.csv")).setup()
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(ValueError, match="no table that can be read"):
        data(str(tmp_path / "t.csv")).setup()


def test_the_model_continues_each_context():
    model = mw.models.Forecaster(3, 2, horizon=5, d_model=8, depth=1).eval()
    x, lengths = torch.randn(4, 20, 3), torch.tensor([20, 13, 7, 1])
    found = model(x, lengths)
    assert found.shape == (4, 5, 2)
    for row, length, expected in zip(x, lengths.tolist(), found, strict=True):
        torch.testing.assert_close(model(row[None, :length])[0], expected, rtol=1e-5, atol=1e-5)
    padded = x.clone()
    padded[1, 13:] = torch.nan
    torch.testing.assert_close(model(padded, lengths), found)


def test_level_and_range_of_each_series_do_not_matter():
    model = mw.models.Forecaster(1, 1, horizon=5, d_model=8, depth=1).eval()
    x = torch.randn(4, 50, 1, dtype=torch.float32)
    torch.testing.assert_close(model(100 * x + 7), 100 * model(x) + 7, rtol=1e-3, atol=1e-2)
    plain = mw.models.Forecaster(1, 1, horizon=5, d_model=8, depth=1, instance_norm=False).eval()
    assert not torch.allclose(plain(100 * x + 7), 100 * plain(x) + 7, rtol=1e-2, atol=1e-1)


@pytest.mark.parametrize(("option", "message"), [({"horizon": 0}, "horizon"), ({"d_output": 4}, "d_output=4")])
def test_forecasters_that_cannot_be(option, message):
    with pytest.raises(ValueError, match=message):
        mw.models.Forecaster(**({"d_input": 3, "d_output": 2, "horizon": 5} | option))


def test_errors_in_both_units():
    task = mw.tasks.Forecast(units=[2.0, 10.0])
    outputs, targets = torch.randn(6, 4, 2), torch.randn(6, 4, 2)
    task.update_averages("test", outputs, {"targets": targets}, torch.tensor(0.0))
    errors = (outputs - targets).double()
    original = errors * torch.tensor([2.0, 10.0])
    found = {name: metric.compute().item() for name, metric in task.averages("test").items()}
    assert found["test_mse"] == pytest.approx(errors.square().mean().item(), rel=1e-5)
    assert found["test_mae"] == pytest.approx(errors.abs().mean().item(), rel=1e-5)
    assert found["test_mse_original"] == pytest.approx(original.square().mean().item(), rel=1e-5)
    assert found["test_mae_original"] == pytest.approx(original.abs().mean().item(), rel=1e-5)
    with pytest.raises(ValueError, match="Forecaster"):
        task.loss("train", torch.randn(6, 8), {"targets": targets})
