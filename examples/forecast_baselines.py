# %% [markdown]
# # What a forecast must beat
#
# The same hour of the day before, and the best linear map of what was read. Both read the windows of
# `mw.data.CsvForecast`; errors are means over all windows, steps and columns of its test split, in standardised units,
# as papers give them.
#
#     python examples/forecast_baselines.py ETTh1.csv --borders etth --horizons 96 192 336 720

# %%
import argparse
from functools import partial

import torch
from torch import Tensor

import milkweed as mw


def seasonal_naive(inputs: Tensor, horizon: int, period: int) -> Tensor:
    """Repeat the last period of (N, L, D) inputs: (N, horizon, D)."""
    season = inputs[:, -period:]
    return season.repeat(1, -(-horizon // period), 1)[:, :horizon]


class Linear:
    """Each column by one linear map of its own past, shared by all columns, in float64.

    Inputs and targets are relative to the last value that is read, as in NLinear (Zeng et al., AAAI 2023). The map is
    the solution of ridge regression on the training windows.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, ridge: float) -> None:
        context, horizon = inputs.shape[1], targets.shape[1]
        gram = torch.zeros(context + 1, context + 1, dtype=torch.float64)
        moment = torch.zeros(context + 1, horizon, dtype=torch.float64)
        rows = 0
        for x, y in zip(inputs.split(512), targets.split(512), strict=True):
            read, wanted = _rows(x), _rows(y - x[:, -1:, : y.shape[2]], ones=False)
            gram += read.T @ read
            moment += read.T @ wanted
            rows += len(read)
        gram.diagonal().add_(ridge * rows)
        self.map = torch.linalg.solve(gram, moment)

    def __call__(self, inputs: Tensor, horizon: int) -> Tensor:
        """Forecast (N, L, D): (N, horizon, D)."""
        found = (_rows(inputs) @ self.map).reshape(len(inputs), inputs.shape[2], horizon).transpose(1, 2)
        return found + inputs[:, -1:].double()


def _rows(x: Tensor, ones: bool = True) -> Tensor:
    """(N, L, D) as one row for each window and column, relative to its last value, with a 1 behind."""
    x = x.double()
    if not ones:
        return x.transpose(1, 2).flatten(0, 1)
    found = (x - x[:, -1:]).transpose(1, 2).flatten(0, 1)
    return torch.cat([found, found.new_ones(len(found), 1)], 1)


def errors(forecast, split) -> tuple[float, float]:
    """Mean squared and absolute error over a split."""
    squared, absolute = [], []
    for x, y in zip(split.inputs.split(512), split.targets.split(512), strict=True):
        difference = forecast(x)[..., : y.shape[2]].double() - y
        squared.append(difference.square().sum())
        absolute.append(difference.abs().sum())
    count = split.targets.numel()
    return float(sum(squared) / count), float(sum(absolute) / count)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a forecast must beat: the day before, and the best linear map.")
    parser.add_argument("file")
    parser.add_argument("--borders", default=None)
    parser.add_argument("--context", type=int, default=336)
    parser.add_argument("--horizons", type=int, nargs="+", default=[96])
    parser.add_argument("--period", type=int, default=24, help="rows of a season; 24 for a day of hours")
    given = parser.parse_args()
    print("| horizon | seasonal naive MSE | MAE | linear MSE | MAE | ridge |")
    print("| --- | --- | --- | --- | --- | --- |")
    for horizon in given.horizons:
        data = mw.data.CsvForecast(given.file, context=given.context, horizon=horizon, borders=given.borders)
        train, val, test = (data.split(name) for name in ("train", "val", "test"))
        naive = errors(partial(seasonal_naive, horizon=horizon, period=given.period), test)
        fits = {ridge: Linear(train.inputs, train.targets, ridge) for ridge in (1e-3, 1e-2, 1e-1, 1.0)}
        scores = {ridge: errors(partial(fit, horizon=horizon), val)[0] for ridge, fit in fits.items()}
        best = min(scores, key=scores.__getitem__)
        linear = errors(partial(fits[best], horizon=horizon), test)
        print(f"| {horizon} | {naive[0]:.3f} | {naive[1]:.3f} | {linear[0]:.3f} | {linear[1]:.3f} | {best:g} |")


if __name__ == "__main__":
    main()
