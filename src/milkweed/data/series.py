"""Tables of numbers over time: read, checked, and continued by further time stamps."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Distance = str | float
"""Between two rows: a frequency of pandas, such as "h", "15min" or "MS", or a number where times are numbers."""


def read_table(file: Path) -> dict[str, np.ndarray]:
    """Read a .csv with a header: its columns by name."""
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('tables are read by pandas: pip install "milkweed[data]"') from error
    try:
        frame = pandas.read_csv(file, sep="\t" if file.suffix == ".tsv" else ",")
    except (ValueError, OSError) as error:  # which pandas' own errors are, too
        raise ValueError(f"{file} is no table that can be read: {error}") from error
    if frame.empty:
        raise ValueError(f"{file} has no rows")
    if frame.columns.duplicated().any():
        raise ValueError(f"{file} has two columns {frame.columns[frame.columns.duplicated()][0]!r}")
    return {str(name): frame[name].to_numpy() for name in frame.columns}


def numbers(file: Path, name: str, values: np.ndarray, first_row: int = 1) -> np.ndarray:
    """A column as float64; texts and numbers that are missing or not finite are refused by row."""
    if values.dtype.kind not in "iuf":
        raise ValueError(
            f"{file}: the column {name!r} holds {values[0]!r}, no number; name columns of numbers as data.targets"
        )
    found = values.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(found))
    if bad.size:
        raise ValueError(
            f"{file}, row {bad[0] + first_row}: a number of {name!r} is missing, or is NaN or infinite ({bad.size} "
            "such); fill it or drop the rows"
        )
    return found


@dataclass(frozen=True)
class Times:
    """Time stamps that are in order and equally far apart: every hour, every month, or every 0.1 of a unit."""

    values: Any  # pandas.DatetimeIndex, or numbers
    distance: Distance | None  # None of a single row

    @classmethod
    def of(cls, file: Path, column: str, values: np.ndarray, first_row: int = 1) -> "Times":
        """Read time stamps, and refuse those that are out of order or not equally far apart, by their row."""
        if values.dtype.kind in "iuf":
            return cls._of_numbers(file, column, values.astype(np.float64), first_row)
        import pandas

        try:
            stamps = pandas.DatetimeIndex(pandas.to_datetime(pandas.Series(values), errors="raise"))
        except (ValueError, TypeError) as error:
            if "utc" in str(error):  # offsets from UTC that change, as with summer time
                return cls.of(file, column, pandas.to_datetime(pandas.Series(values), utc=True).to_numpy(), first_row)
            raise ValueError(f"{file}: the column {column!r} holds no time stamps: {error}") from error
        missing = np.flatnonzero(stamps.isna())
        if missing.size:
            raise ValueError(
                f"{file}, row {missing[0] + first_row}: the time in {column!r} is missing; fill it or drop the row"
            )
        if len(stamps) == 1:
            return cls(stamps, None)
        steps = stamps[1:] - stamps[:-1]
        behind = np.flatnonzero(steps <= pandas.Timedelta(0))
        if behind.size:
            at = int(behind[0])
            raise ValueError(
                f"{file}, row {at + 1 + first_row}: the time {stamps[at + 1]} is not after the one before "
                f"({stamps[at]}); sort the rows, and drop doubled ones"
            )
        unequal = np.flatnonzero(steps != steps[0])
        if not unequal.size:
            return cls(stamps, pandas.tseries.frequencies.to_offset(steps[0]).freqstr)
        calendar = _inferred(stamps)  # months, quarters, years, days of business are not equally long
        if calendar is None:
            at = int(unequal[0])
            raise ValueError(
                f"{file}, row {at + 1 + first_row}: the time {stamps[at + 1]} does not follow at the same distance "
                f"({stamps[at]}); sort the rows, and fill gaps or drop the rows around them"
            )
        return cls(stamps, calendar)

    @classmethod
    def _of_numbers(cls, file: Path, column: str, values: np.ndarray, first_row: int) -> "Times":
        numbers(file, column, values, first_row)
        steps = np.diff(values)
        if not len(steps):
            return cls(values, None)
        wrong = np.flatnonzero(~np.isclose(steps, steps[0], rtol=1e-6, atol=0) | (steps <= 0))
        if wrong.size:
            at = int(wrong[0])
            raise ValueError(
                f"{file}, row {at + 1 + first_row}: {column}={values[at + 1]:g} does not follow {values[at]:g} at the "
                f"distance of the rows before, {steps[0]:g}; sort the rows, and fill gaps"
            )
        return cls(values, float((values[-1] - values[0]) / len(steps)))

    def check_distance(self, file: Path, distance: Distance) -> None:
        """Refuse rows that are not as far apart as those of the training."""
        if self.distance is None or self.distance == distance:
            return
        numeric = isinstance(self.distance, float), isinstance(distance, float)
        if all(numeric) and np.isclose(self.distance, distance, rtol=1e-6):
            return
        if not any(numeric):
            import pandas

            stamps = pandas.date_range(self.values[0], periods=len(self.values), freq=distance)
            if (stamps == self.values).all():  # a few rows may fit several frequencies
                return
        raise ValueError(
            f"{file}: its rows are {self.distance} apart, those of the training were {distance}; give rows at the same "
            "distance"
        )

    def following(self, distance: Distance, count: int) -> list[Any]:
        """The time stamps of the rows that follow: texts, or numbers where times are numbers."""
        last = self.values[-1]
        if isinstance(distance, float):
            return [float(last + distance * step) for step in range(1, count + 1)]
        import pandas

        stamps = pandas.date_range(last, periods=count + 1, freq=distance)[1:]
        return [str(stamp) for stamp in stamps]


def _inferred(stamps: Any) -> str | None:
    import pandas

    if len(stamps) < 3:
        return None
    with warnings.catch_warnings():  # pandas 3 will give an object where it gives a text
        warnings.simplefilter("ignore")
        found = pandas.infer_freq(stamps)
    return getattr(found, "freqstr", found)
