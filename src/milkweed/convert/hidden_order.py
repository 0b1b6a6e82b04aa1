"""The order of hidden units in which two block structures lose least.

The structures cut units into groups: the rows of the layer before, the columns of the layer after. A unit's place says
its group in every layer at once, its cell. As in clustering by subspaces two steps take turns: the best factors for the
groups as they are, and the best cell for every unit under these factors, where cells keep their sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from milkweed.nn.structured_linear.hidden_units import GroupedUnits

_ROUNDS = 15
# Less than this share of the loss gained in a round is not worth another one.
_LEAST_GAIN = 1e-4


@torch.no_grad()
def best_order(layers: Sequence[GroupedUnits]) -> Tensor:
    """The unit at each place, (hidden,), in an order in which the layers together lose little."""
    # The search is deterministic; it may end in an order that is no better than the present one.
    places = torch.stack([layer.places for layer in layers], 1)
    kinds, cell_of_place = torch.unique(places, dim=0, return_inverse=True)

    def by_cell(found: Sequence[Tensor]) -> Tensor:
        return torch.stack([each[:, kinds[:, index]] for index, each in enumerate(found)]).sum(0)

    cells = assign(-by_cell([layer.affinity() for layer in layers]), cell_of_place)
    best, least = cells, float("inf")
    for _ in range(_ROUNDS):
        losses = by_cell([layer.losses(kinds[cells, index]) for index, layer in enumerate(layers)])
        loss = float(losses.gather(1, cells[:, None]).sum())
        if loss < least:
            best = cells
        if not loss < (1 - _LEAST_GAIN) * least:
            break
        least, cells = loss, assign(losses, cells)
    order = torch.empty_like(best)
    order[cell_of_place.argsort(stable=True)] = best.argsort(stable=True)
    return order


def assign(losses: Tensor, cells: Tensor) -> Tensor:
    """Move units (hidden,) between cells of fixed sizes so that the sum of losses (hidden, cells) is least."""
    # Swaps of units between two cells do most of it, many at a time; what they cannot reach is done by moving units
    # along cycles of cells. An assignment is optimal when its residual graph has no negative cycle (Klein 1967); gains
    # below `least` do not count, so that the sum ends at most a ten-thousandth of what it was above the optimum.
    count = losses.shape[1] + losses.shape[1] % 2  # an empty cell makes the number of cells even
    losses = torch.nn.functional.pad(losses, (0, count - losses.shape[1]))
    sums = losses.gather(1, cells[:, None]).sum().abs()
    least = float(1e-4 * sums / len(losses) + 1e-12 * losses.abs().max())
    table = _members(cells, count)
    while _swap(losses, table, least):
        pass
    _cancel_cycles(losses, table, least)
    found = torch.empty_like(cells)
    cell, seat = (table >= 0).nonzero(as_tuple=True)
    found[table[cell, seat]] = cell
    return found


def _members(cells: Tensor, count: int) -> Tensor:
    """The units of each cell, (cells, most), filled up with -1."""
    sizes = torch.bincount(cells, minlength=count)
    order = cells.argsort(stable=True)
    starts = (sizes.cumsum(0) - sizes)[cells[order]]
    table = torch.full((count, int(sizes.max())), -1, device=cells.device)
    table[cells[order], torch.arange(len(cells), device=cells.device) - starts] = order
    return table


def _swap(losses: Tensor, table: Tensor, least: float) -> bool:
    """Swap the units of all pairs of cells that gain by it, in place, and say whether there were any."""
    moved = False
    for here, there in _tournament(len(table), table.device):
        mine, units = _by_gain(losses, table[here], here, there)
        theirs, others = _by_gain(losses, table[there], there, here)
        swap = mine + theirs > 2 * least
        moved = moved or bool(swap.any())
        table[here], table[there] = torch.where(swap, others, units), torch.where(swap, units, others)
    return moved


def _by_gain(losses: Tensor, units: Tensor, here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """What each unit gains by going from here to there, the most first, and the units in this order."""
    gains = losses[units, here[:, None]] - losses[units, there[:, None]]
    gains, order = gains.masked_fill(units < 0, -torch.inf).sort(1, descending=True)
    return gains, units.gather(1, order)


def _tournament(count: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair an even number of players in rounds, so that each meets each other once."""
    ring = torch.arange(1, count, device=device)
    first = torch.zeros(1, dtype=ring.dtype, device=device)
    for turn in range(count - 1):
        seats = torch.cat([first, ring.roll(turn)])
        yield seats[: count // 2], seats[count // 2 :].flip(0)


def _cancel_cycles(losses: Tensor, table: Tensor, least: float) -> None:
    """Move units along cycles of cells that lower the sum, in place, until there is none."""
    moves, seats = _cheapest_moves(losses, table, torch.arange(len(table), device=table.device))
    while cycle := _negative_cycle(moves + least):
        here = torch.tensor(cycle, device=table.device)
        there = here.roll(-1)
        seat = seats[here, there]
        units = table[here, seat]
        table[there, seat.roll(-1)] = units
        moves[here], seats[here] = _cheapest_moves(losses, table, here)


def _cheapest_moves(losses: Tensor, table: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
    """What it costs at least to move one unit from some cells to each cell, and the seat of that unit."""
    units = table[here]
    costs = losses[units] - losses[units, here[:, None]][..., None]
    found = costs.masked_fill((units < 0)[..., None], torch.inf).min(1)
    return found.values, found.indices


def _negative_cycle(weights: Tensor) -> list[int]:
    """A cycle of negative weight in a graph, by the method of Bellman and Ford; empty if there is none."""
    count = len(weights)
    into = weights.T.contiguous()
    distances = weights.new_zeros(count)
    before = torch.full((count + 1,), count, device=weights.device)  # the last one stands for none
    while True:
        found, through = (into + distances).min(1)
        lower = found < distances
        if not lower.any():
            return []
        distances = torch.where(lower, found, distances)
        before[:-1] = torch.where(lower, through, before[:-1])
        ends = before
        # Doubling the steps back each time: a unit that has more predecessors than there are nodes is in a cycle.
        for _ in range(count.bit_length()):
            ends = ends[ends]
        inside = ends[ends < count]
        if len(inside):
            break
    steps = before.tolist()
    cycle = [int(inside[0])]
    while steps[cycle[-1]] != cycle[0]:
        cycle.append(steps[cycle[-1]])
    return cycle[::-1]
