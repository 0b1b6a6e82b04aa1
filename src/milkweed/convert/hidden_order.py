"""The order of hidden units in which two block structures lose least.

The structures cut units into groups: the rows of the layer before, the columns of the layer after. A unit's place says
its group in every layer at once, its cell. As in clustering by subspaces two steps take turns: the best factors for the
groups as they are, and the best cell for every unit under these factors, where cells keep their sizes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from milkweed.convert.configs import BlockDiagonalConfig, LayerConfig, MonarchConfig
from milkweed.structures._spectral import roots
from milkweed.structures.monarch import monarch_shapes, slice_ranks

_ROUNDS = 15
# Less than this share of the loss gained in a round is not worth another one.
_LEAST_GAIN = 1e-4
_POWER_STEPS = 100


class GroupedUnits(ABC):
    """One layer seen from the hidden units, which its structure cuts into groups.

    Args:
        places: (hidden,), the group of each place.
        count: How many groups.
    """

    def __init__(self, places: Tensor, count: int) -> None:
        self.places, self.count = places, count

    @abstractmethod
    def affinity(self) -> Tensor:
        """How well units go together, before there are groups.

        Returns:
            (hidden, count): the higher, the better the unit is off in this group.
        """

    @abstractmethod
    def losses(self, groups: Tensor) -> Tensor:
        """What each unit would lose in each group, with the best factors for the groups as they are.

        Args:
            groups: (hidden,), the group of each unit.

        Returns:
            (hidden, count), shares of the energy of the layer's outputs.
        """


def grouped_units(
    config: LayerConfig, weight: Tensor, covariance: Tensor, energy: float, rows: bool
) -> GroupedUnits | None:
    """See a layer from its hidden units.

    Args:
        config: What the layer becomes.
        weight: (m, n), in float64.
        covariance: (n, n), of its inputs, in float64.
        energy: Of its outputs; losses are shares of it.
        rows: Whether the units are its outputs, else they are its inputs.

    Returns:
        The view, or None where the structure's dependence on the order is not known.
    """
    if type(config) is MonarchConfig:
        shapes = monarch_shapes(weight.shape[1], weight.shape[0], config.nblocks, config.rank)
        return (_MonarchRows if rows else _MonarchColumns)(weight, covariance, energy, *shapes)
    if type(config) is BlockDiagonalConfig:
        return (_BlockRows if rows else _BlockColumns)(weight, covariance, energy, config.nblocks)
    return None


@torch.no_grad()
def best_order(layers: Sequence[GroupedUnits]) -> Tensor:
    """Search for the order of hidden units in which the layers together lose least.

    Args:
        layers: Views of all layers that share the units.

    Returns:
        (hidden,): the unit at each place. The search is deterministic; it may end in an order that is no better than
        the one as it was.
    """
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
    """Spread units over cells of fixed sizes so that the sum of their losses is least.

    Swaps of units between two cells do most of it, many at a time; what they cannot reach is done by moving units along
    cycles of cells.

    Args:
        losses: (hidden, cells), of each unit in each cell.
        cells: (hidden,), where each unit is.

    Returns:
        (hidden,), where each unit is afterwards; the sum is never higher, and the least possible up to a ten-thousandth
        of what it was.

    Source:
        An assignment is optimal when its residual graph has no negative cycle (Klein 1967).
    """
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
        for _ in range(count.bit_length()):
            ends = ends[ends]
        inside = ends[ends < count]  # who has so many before it has been led into a cycle
        if len(inside):
            break
    steps = before.tolist()
    cycle = [int(inside[0])]
    while steps[cycle[-1]] != cycle[0]:
        cycle.append(steps[cycle[-1]])
    return cycle[::-1]


class _MonarchRows(GroupedUnits):
    """Outputs of a Monarch matrix: place h belongs to left block h mod l.

    A group's rows keep, of every block of columns, a subspace of the slice's rank.
    """

    def __init__(
        self,
        weight: Tensor,
        covariance: Tensor,
        energy: float,
        right: tuple[int, int, int],
        left: tuple[int, int, int],
    ) -> None:
        (k, q, p), l = right, left[0]  # noqa: E741 - the paper's letter
        super().__init__(torch.arange(len(weight), device=weight.device) % l, l)
        self.ranks = slice_ranks(k, q, l).tolist()
        extra = k * p - weight.shape[1]
        weight = torch.nn.functional.pad(weight, (0, extra))
        self.covariance = torch.nn.functional.pad(covariance, (0, extra, 0, extra))
        own = self.covariance.view(k, p, k, p)
        root, self.inverse = roots(torch.stack([own[block, :, block] for block in range(k)]))
        self.slices = weight.view(-1, k, p).transpose(0, 1) @ root  # (k, hidden, p)
        self.energy = energy

    def affinity(self) -> Tensor:
        return _spectral_groups(self.slices, self.count)

    def losses(self, groups: Tensor) -> Tensor:
        found = []
        for group in range(self.count):
            members = self.slices[:, groups == group]
            vectors = torch.linalg.eigh(members.mT @ members).eigenvectors
            lost = []
            for block, ranks in enumerate(self.ranks):
                dropped = vectors[block, :, : vectors.shape[2] - ranks[group]]
                lost.append(self.slices[block] @ (dropped @ (dropped.mT @ self.inverse[block])))
            found.append(_energies(torch.cat(lost, 1), self.covariance) / self.energy)
        return torch.stack(found, 1)


class _MonarchColumns(GroupedUnits):
    """Inputs of a Monarch matrix: place h belongs to right block h // p.

    A group's columns keep, of every left block's outputs, a subspace of the slice's rank. What units lose is told
    without their correlations, which are counted in the subspaces only.
    """

    def __init__(
        self,
        weight: Tensor,
        covariance: Tensor,
        energy: float,
        right: tuple[int, int, int],
        left: tuple[int, int, int],
    ) -> None:
        (k, q, p), (l, s, _) = right, left  # noqa: E741 - the paper's letter
        super().__init__(torch.arange(weight.shape[1], device=weight.device) // p, k)
        self.ranks = slice_ranks(k, q, l).tolist()
        padded = torch.nn.functional.pad(weight, (0, 0, 0, l * s - len(weight)))
        self.slices = padded.view(s, l, -1).transpose(0, 1)  # (l, s, hidden)
        self.covariance, self.energy = covariance, energy

    def affinity(self) -> Tensor:
        return _spectral_groups((self.slices * self.covariance.diagonal().sqrt()).mT, self.count)

    def losses(self, groups: Tensor) -> Tensor:
        found = []
        for group in range(self.count):
            own = groups == group
            members = self.slices[:, :, own]
            vectors = torch.linalg.eigh(members @ self.covariance[own][:, own] @ members.mT).eigenvectors
            lost = sum(
                (vectors[block, :, : vectors.shape[2] - rank].mT @ self.slices[block]).square().sum(0)
                for block, rank in enumerate(self.ranks[group])
            )
            found.append(lost * self.covariance.diagonal() / self.energy)
        return torch.stack(found, 1)


class _BlockRows(GroupedUnits):
    """Outputs of a block-diagonal matrix: each row reads one block of inputs, which stands in for the others."""

    def __init__(self, weight: Tensor, covariance: Tensor, energy: float, nblocks: int) -> None:
        m, n = weight.shape
        super().__init__(torch.arange(m, device=weight.device) // -(-m // nblocks), nblocks)
        energies, read = _energies(weight, covariance), weight @ covariance
        size = -(-n // nblocks)
        explained = []
        for start in range(0, nblocks * size, size):
            own = slice(start, start + size)
            inverse = torch.linalg.pinv(covariance[own, own], hermitian=True, rtol=1e-12)
            explained.append(((read[:, own] @ inverse) * read[:, own]).sum(1))
        self.lost = (energies[:, None] - torch.stack(explained, 1)) / energy

    def affinity(self) -> Tensor:
        return -self.lost

    def losses(self, groups: Tensor) -> Tensor:
        return self.lost


class _BlockColumns(GroupedUnits):
    """Inputs of a block-diagonal matrix: each column reaches one block of outputs; correlations are not counted."""

    def __init__(self, weight: Tensor, covariance: Tensor, energy: float, nblocks: int) -> None:
        m, n = weight.shape
        super().__init__(torch.arange(n, device=weight.device) // -(-n // nblocks), nblocks)
        size = -(-m // nblocks)
        blocks = torch.nn.functional.pad(weight, (0, 0, 0, nblocks * size - m)).view(nblocks, size, n)
        energies = (blocks.square().sum(1) * covariance.diagonal()).T
        self.lost = (energies.sum(1, keepdim=True) - energies) / energy

    def affinity(self) -> Tensor:
        return -self.lost

    def losses(self, groups: Tensor) -> Tensor:
        return self.lost


def _energies(weight: Tensor, covariance: Tensor) -> Tensor:
    """E(w x)² of each row w."""
    return ((weight @ covariance) * weight).sum(1)


def _spectral_groups(slices: Tensor, count: int) -> Tensor:
    """How near units are to each of some groups, found without a start.

    Units in independent subspaces are orthogonal to each other in the projector onto all of the units' slices: where
    there is an exact answer, this finds it.

    Args:
        slices: (blocks, hidden, p), a row for each unit.
        count: Groups.

    Returns:
        (hidden, count), cosines.

    Source:
        The projector is the shape interaction matrix of Costeira and Kanade (1998); a representative of each group is
        taken by pivoting as in Damle, Minden and Ying (arXiv 1708.07481).
    """
    links = 0.0
    for each in slices:
        values, vectors = torch.linalg.eigh(each.mT @ each)
        kept = values > 1e-10 * values[-1]
        rows = each @ (vectors[:, kept] * values[kept].rsqrt())
        links = links + (rows @ rows.T).float().square()
    assert isinstance(links, Tensor)
    links.fill_diagonal_(0)
    degree = links.sum(1).clamp_min(torch.finfo(links.dtype).tiny).rsqrt()
    links *= degree[:, None] * degree
    generator = torch.Generator().manual_seed(0)
    space = torch.randn(len(links), count, generator=generator).to(links)
    for _ in range(_POWER_STEPS):
        space = torch.linalg.qr(links @ space + space).Q
    lengths = space.norm(dim=1, keepdim=True)
    directions = space / lengths.clamp_min(torch.finfo(space.dtype).tiny)
    rest, found = space, []
    for _ in range(count):
        chosen = int(rest.norm(dim=1).argmax())
        found.append(chosen)
        along = rest[chosen] / rest[chosen].norm().clamp_min(torch.finfo(space.dtype).tiny)
        rest = rest - (rest @ along)[:, None] * along
    return (directions @ directions[found].T).abs().to(slices.dtype)
