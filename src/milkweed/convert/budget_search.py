"""One configuration for each layer, the least error within a number of parameters."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def choose_within(options: Mapping[str, Sequence[tuple[int, float, T]]], budget: int) -> dict[str, T]:
    """Pick an option (cost, error, what it stands for) for each layer: little error, costs within a budget."""
    # Every layer starts at its cheapest option; then the step that lowers the error most per parameter is taken, over
    # the lower convex hull of each layer's options, until the next step does not fit. The steps and their order do not
    # depend on the budget, so a higher budget never gives a layer a worse option. At budgets where a step ends this is
    # the optimum; between them it is less than one step away from it.
    # Errors that are NaN or infinite cannot be compared: such options are left out.
    options = {name: [each for each in found if math.isfinite(each[1])] for name, found in options.items()}
    check_budget({name: [cost for cost, _, _ in found] for name, found in options.items()}, budget)
    hulls = {name: _lower_hull(found) for name, found in options.items()}
    cost = sum(hull[0][0] for hull in hulls.values())
    position = dict.fromkeys(hulls, 0)
    steps = [(_slope(hull, 0), name) for name, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, name = heapq.heappop(steps)
        hull, at = hulls[name], position[name]
        cost += hull[at + 1][0] - hull[at][0]
        if cost > budget:
            break
        position[name] = at + 1
        if at + 2 < len(hull):
            heapq.heappush(steps, (_slope(hull, at + 1), name))
    return {name: hull[position[name]][2] for name, hull in hulls.items()}


def check_budget(costs: Mapping[str, Sequence[int]], budget: int, whole: int | None = None) -> None:
    """Refuse a budget that no choice meets; ``whole`` is what it was given as a share of, if it was."""
    for name, found in costs.items():
        if not found:
            raise ValueError(
                f"none of the candidates fits layer {name!r}; add None to keep it dense, or smaller nblocks"
            )
    least = sum(min(found) for found in costs.values())
    if least > budget:
        fix = f"raise it to {least}" if whole is None else f"raise the share to {math.ceil(1e3 * least / whole) / 1e3}"
        raise ValueError(
            f"parameters={budget} is less than the {least} that the cheapest candidates need; {fix}, or add candidates "
            "with more blocks or lower rank"
        )


def _slope(hull: Sequence[tuple[int, float, T]], at: int) -> float:
    """Change of the error per parameter from one option to the next; the steepest fall comes first."""
    return (hull[at + 1][1] - hull[at][1]) / (hull[at + 1][0] - hull[at][0])


def _lower_hull(options: Sequence[tuple[int, float, T]]) -> list[tuple[int, float, T]]:
    hull: list[tuple[int, float, T]] = []
    for option in sorted(options, key=lambda each: (each[0], each[1])):
        if hull and option[1] >= hull[-1][1]:
            continue  # dearer and no better
        # The last point lies above the line from the one before it to the new one: it is no corner of the hull.
        while len(hull) > 1 and _slope([hull[-2], option], 0) <= _slope(hull, len(hull) - 2):
            hull.pop()
        hull.append(option)
    return hull
