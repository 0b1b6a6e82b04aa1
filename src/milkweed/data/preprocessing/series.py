"""Tables of numbers over time as raw inputs of a forecast."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milkweed.data.preprocessing.arrays import numeric
from milkweed.data.preprocessing.base import Preprocessing, Sample, check_counts, check_finite, check_scale
from milkweed.data.series import Distance, Times, numbers, read_table


class Series(Preprocessing):
    """The rows before a forecast: a .csv with the columns of the training, or an array (rows, columns).

    The last `context` rows are read; earlier ones are ignored. The model reads (number - mean) / std. What it forecasts
    is given in the units of the table, and with time stamps if the table has some.

    Args:
        columns: Names of the columns that are read; the first ``targets`` of them are forecast.
        targets: How many columns are forecast.
        context: Rows that are read.
        mean: Of every column.
        std: The same.
        time: Column of time stamps; None for none.
        distance: Of the time stamps, see `milkweed.data.series.Distance`.
    """

    forecasts = True

    def __init__(
        self,
        columns: list[str],
        targets: int,
        context: int,
        mean: list[float],
        std: list[float],
        time: str | None = None,
        distance: Distance | None = None,
        class_names: None = None,
    ) -> None:
        super().__init__(
            class_names,
            columns=columns,
            targets=targets,
            context=context,
            mean=mean,
            std=std,
            time=time,
            distance=distance,
        )
        check_counts(targets=targets, context=context)
        check_scale(mean, std, len(columns))
        self.columns, self.targets, self.context = list(columns), targets, context
        self.mean, self.std = (torch.tensor(each, dtype=torch.float64) for each in (mean, std))
        self.time, self.distance = time, distance

    def read(self, source: Any, rate: float = 1.0) -> Iterator[tuple[str, Sample]]:
        """Give the last rows of a table."""
        if isinstance(source, str | Path) and Path(source).suffix.lower() in {".csv", ".tsv"}:
            yield str(source), self._of_table(Path(source))
            return
        if isinstance(source, str | Path):
            raise ValueError(f"{source} must be a .csv with the columns {', '.join(self.columns)}")
        values = numeric("the input", source.detach().cpu() if isinstance(source, Tensor) else source)
        values = values[:, None] if values.ndim == 1 and len(self.columns) == 1 else values
        if values.ndim != 2 or values.shape[1] != len(self.columns):
            raise ValueError(
                f"the input must be (rows, {len(self.columns)}), the columns {', '.join(self.columns)}; got shape "
                f"{values.shape}"
            )
        yield "the input", self._sample("the input", values.astype(np.float64))

    def describe(self, outputs: Tensor, sample: Sample) -> dict[str, Any]:
        """The forecast rows in the units of the table."""
        rows = outputs.double() * self.std[: self.targets] + self.mean[: self.targets]
        notes: Any = sample.get("notes", {})
        times = notes["times"].following(self.distance, len(rows)) if "times" in notes else None
        found = []
        for step, row in enumerate(rows.tolist()):
            at = {"step": step + 1} if times is None else {"time": times[step]}
            found.append(at | dict(zip(self.columns, row, strict=False)))
        return {"steps": found}

    def before(self, sample: Sample) -> dict[str, Any]:
        """The rows that are read, in the units of the table."""
        rows = sample["inputs"].double() * self.std + self.mean
        found: dict[str, Any] = dict(zip(self.columns, rows.T.tolist(), strict=True))
        notes: Any = sample.get("notes", {})
        if "times" in notes:
            values = notes["times"].values
            found["time"] = values.tolist() if isinstance(values, np.ndarray) else [str(each) for each in values]
        return found

    def next_steps(self, chunk: Any, position: int) -> Tensor:
        """Refuse streams: a forecast is made of all of its rows at once."""
        raise ValueError("a forecast reads its rows at once; call the predictor on the rows so far")

    def _of_table(self, path: Path) -> Sample:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file; give a .csv with the columns {', '.join(self.columns)}")
        table = read_table(path)
        for name in [*self.columns, *([] if self.time is None else [self.time])]:
            if name not in table:
                there = ", ".join(table)
                raise ValueError(f"{path} has no column {name!r}, which the model was trained on; it has {there}")
        first = max(0, len(table[self.columns[0]]) - self.context)
        table = {name: column[first:] for name, column in table.items()}
        values = np.stack([numbers(path, name, table[name], first + 1) for name in self.columns], 1)
        sample = self._sample(str(path), values)
        if self.time is not None and self.distance is not None:
            times = Times.of(path, self.time, table[self.time], first + 1)
            times.check_distance(path, self.distance)
            sample["notes"] = {"times": times}  # type: ignore[assignment]
        return sample

    def _sample(self, name: str, values: np.ndarray) -> Sample:
        if len(values) < self.context:
            raise ValueError(f"{name} has {len(values)} rows; the model reads {self.context} to forecast what follows")
        inputs = torch.from_numpy(np.ascontiguousarray(values[-self.context :]))
        check_finite(name, inputs)
        return {"inputs": ((inputs - self.mean) / self.std).float()}
