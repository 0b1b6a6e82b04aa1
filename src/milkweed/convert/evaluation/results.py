"""What was measured of a whole model, dense and converted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of the whole model.

    Args:
        name: What it is, e.g. ``"perplexity"``.
        after: Of the converted model; of both models where they are compared with each other.
        before: Of the dense model; None where both are compared.
        better: ``"higher"`` or ``"lower"``; None if that is not known.
        worst: The worst of the texts, where each has a value.
        detail: How it was measured, in words.

    Example:
        >>> mw.convert.Figure("perplexity", after=24.1, before=21.9, better="lower").text()
        '21.90 -> 24.10 (+10.0%)'
    """

    name: str
    after: float
    before: float | None = None
    better: str | None = None
    worst: float | None = None
    detail: str = ""

    def text(self) -> str:
        """Write the value down for people.

        Returns:
            Before, after and the change, or the one value of a comparison and its worst.
        """
        if self.before is None:
            return _number(self.after) + ("" if self.worst is None else f" (lowest {_number(self.worst)})")
        return f"{_number(self.before)} -> {_number(self.after)} ({self._change()})"

    def _change(self) -> str:
        before, change = self.before or 0.0, self.after - (self.before or 0.0)
        if not math.isfinite(change):
            return "not finite"
        # Shares and correlations are told by their difference, all else relative to what it was.
        if abs(before) <= 1 or not before:
            return f"{change:+.4f}"
        return f"{change / abs(before):+.1%}"


@dataclasses.dataclass(frozen=True)
class EndToEnd:
    """Figures of the whole model, dense and converted, on data that calibration never saw.

    Args:
        figures: The one that counts first; none if nothing was measured.
        data: On what.
        seed: Of what is drawn, e.g. which tokens are hidden; None if nothing is.
        missing: Why there is no figure, and how to get one.

    Example:
        >>> mw.convert.EndToEnd((), missing="no texts were given").figures
        ()
    """

    figures: tuple[Figure, ...]
    data: str = ""
    seed: int | None = None
    missing: str = ""

    def lines(self) -> list[tuple[str, str, str]]:
        """Write the figures down for people.

        Returns:
            Name, value and detail of each, or one line that says why there are none.
        """
        if not self.figures:
            return [("end to end", "not measured", self.missing)]
        return [(figure.name, figure.text(), figure.detail) for figure in self.figures]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a file.

        Returns:
            All fields; a number that is not finite, which JSON has no word for, as a text.
        """
        figures = [{key: _plain(value) for key, value in dataclasses.asdict(each).items()} for each in self.figures]
        return {"figures": figures, "data": self.data, "seed": self.seed, "missing": self.missing}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EndToEnd:
        """Read what `as_dict` gave.

        Args:
            values: The plain values; fields that are not there have their defaults.

        Returns:
            The figures.
        """
        figures = tuple(Figure(**{key: _read(key, value) for key, value in each.items()}) for each in values["figures"])
        return cls(figures, **{key: values[key] for key in ("data", "seed", "missing") if key in values})


def _number(value: float) -> str:
    """Write a figure with as many places as tell it apart."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read(key: str, value: Any) -> Any:
    return float(value) if key in {"after", "before", "worst"} and value is not None else value
