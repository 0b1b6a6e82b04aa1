"""Time series of one's own, to be continued: windows of a table of numbers."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from milkweed._arguments import checked
from milkweed._files import path_text
from milkweed._suggest import unknown
from milkweed.data.base import SPLITS, SequenceData
from milkweed.data.batches import ArrayDataset
from milkweed.data.preprocessing import Series
from milkweed.data.series import Distance, Times, numbers, read_table

# The ends of training, validation and test of the ETT data sets, in rows: 12, 4 and 4 months of 30 days.
_ETT_HOURS = (8640, 11520, 14400)
BORDERS = {"etth": _ETT_HOURS, "ettm": tuple(4 * rows for rows in _ETT_HOURS)}


class CsvForecast(SequenceData):
    """Windows of a table: `context` rows as the input, and the `horizon` rows after them as what is asked for.

    Inputs are the target columns and then the covariates, (context, D); targets are (horizon, target columns). Both are
    standardised by mean and standard deviation of the rows for training. Windows of validation and test may look back
    into the rows before, but are asked only for rows of their own. Every row but the first `context` is asked for.

    Args:
        file: A .csv with a header; the rows are equally far apart in time.
        targets: Columns that are forecast; by default all columns of numbers.
        covariates: Further columns that are only read.
        time: Column of time stamps, or of times as numbers; by default the first column, if it holds no numbers.
        context: Rows that are read.
        horizon: Rows that are forecast.
        borders: Where the rows for training, validation and test end, as three row numbers, or `etth` or `ettm` for the
            ETT data sets; by default 70, 80 and 100 percent.
        batch_size: Windows per optimiser step over all processes together.
        seed: Decides the order of the training windows, nothing else.
        limit: At most this many windows per split, for trials.
    """

    @checked(but=("file", "borders"))
    def __init__(
        self,
        file: str,
        targets: list[str] | None = None,
        covariates: list[str] | None = None,
        time: str | None = None,
        context: int = 336,
        horizon: int = 96,
        borders: str | list[int] | None = None,
        batch_size: int = 64,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(batch_size, seed, limit)
        for name, value in (("context", context), ("horizon", horizon)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.file, self.time, self.context, self.horizon = Path(path_text("file", file)), time, context, horizon
        self.targets, self.covariates, self.borders = targets, covariates or [], _borders(borders)
        self.length = context
        self.mean = self.std = np.zeros(0)
        self.columns: list[str] = []
        self.distance: Distance | None = None

    @property
    def d_input(self) -> int:  # type: ignore[override]
        """Columns that are read."""
        return self.split("train").inputs.shape[2]

    @property
    def units(self) -> list[float]:
        """What a standardised 1 is worth in each target column."""
        self.setup()
        return [float(value) for value in self.std[: self.d_output]]

    def load(self) -> dict[str, ArrayDataset]:
        """Read the table and cut it into windows."""
        if not self.file.is_file():
            raise FileNotFoundError(f"data.file={self.file} does not exist; name a .csv with a header")
        table = read_table(self.file)
        self.columns = self._columns(table)
        values = np.stack([numbers(self.file, name, table[name]) for name in self.columns], 1)
        ends = self._ends(len(values))
        self.mean, self.std = values[: ends[0]].mean(0), values[: ends[0]].std(0)
        self.std[self.std == 0] = 1.0
        rows = torch.from_numpy((values - self.mean) / self.std).float()
        count = len(self.targets or [])
        starts = (0, *(end - self.context for end in ends[:2]))
        return {
            name: self._windows(name, rows[start:end], count)
            for name, start, end in zip(SPLITS, starts, ends, strict=True)
        }

    def preprocessing(self) -> Series:
        """Rows of such a table."""
        self.setup()
        return Series(
            self.columns, self.d_output, self.context, self.mean.tolist(), self.std.tolist(), self.time, self.distance
        )

    def _windows(self, name: str, rows: Tensor, count: int) -> ArrayDataset:
        size = self.context + self.horizon
        if len(rows) < size:
            own = len(rows) - (0 if name == "train" else self.context)
            raise ValueError(
                f"{self.file}: the {name} split has {own} rows, too few for data.context={self.context} and "
                f"data.horizon={self.horizon}; lower them, or give data.borders"
            )
        # Views of the rows: windows that overlap take no memory of their own.
        windows = rows.unfold(0, size, 1).transpose(1, 2)
        return ArrayDataset(windows[:, : self.context], windows[:, self.context :, :count])

    def _columns(self, table: dict[str, np.ndarray]) -> list[str]:
        names = list(table)
        first = names[0] if table[names[0]].dtype.kind not in "iuf" else None
        self.time = self.time or first
        for option, wanted in (("targets", self.targets or []), ("covariates", self.covariates), ("time", [self.time])):
            for name in wanted:
                if name is not None and name not in table:
                    raise ValueError(f"data.{option}: {unknown(f'column of {self.file.name}', name, names)}")
        if self.time is not None:
            self.distance = Times.of(self.file, self.time, table[self.time]).distance
        if self.targets is None:
            left = [name for name in names if name != self.time and name not in self.covariates]
            self.targets = [name for name in left if table[name].dtype.kind in "iuf"]
        if not self.targets:
            raise ValueError(f"{self.file} has no column of numbers to forecast")
        doubled = set(self.targets) & set(self.covariates)
        if doubled:
            raise ValueError(f"data.covariates: {min(doubled)!r} is a target already; targets are read, too")
        return [*self.targets, *self.covariates]

    def _ends(self, count: int) -> tuple[int, ...]:
        if self.borders is None:
            return (count * 7 // 10, count * 8 // 10, count)
        if self.borders[-1] > count:
            raise ValueError(f"data.borders ends at row {self.borders[-1]}, and {self.file} has {count} rows")
        return self.borders


def _borders(borders: str | list[int] | None) -> tuple[int, ...] | None:
    if borders is None:
        return None
    if isinstance(borders, str):
        if borders not in BORDERS:
            raise ValueError(unknown("borders", borders, BORDERS))
        return BORDERS[borders]
    rows = tuple(borders)
    if len(rows) != 3 or not all(type(row) is int for row in rows) or not 0 < rows[0] < rows[1] < rows[2]:
        raise ValueError(f"borders={borders} must be three growing row numbers: the ends of train, val and test")
    return rows
