"""A layer seen from the hidden units that it makes or reads, which block structures cut into groups by their places.

The rows of the layer before the units and the columns of the one after belong to such groups. `milkweed.convert` looks
for the order of units in which both layers lose least.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from milkweed.structures._spectral import roots
from milkweed.structures.monarch import slice_ranks

_POWER_STEPS = 100
Shape = tuple[int, int, int]  # of a Monarch factor


class GroupedUnits(ABC):
    """One layer seen from the hidden units: ``places`` (hidden,) has the group of each place, of ``count`` groups."""

    def __init__(self, places: Tensor, count: int) -> None:
        self.places, self.count = places, count

    @abstractmethod
    def affinity(self) -> Tensor:
        """How well units go together, before there are groups: (hidden, count), the higher the better."""

    @abstractmethod
    def losses(self, groups: Tensor) -> Tensor:
        """What each unit of groups (hidden,) would lose in each group: (hidden, count), shares of the energy."""


class MonarchRows(GroupedUnits):
    """Outputs of a Monarch matrix: place h belongs to left block h mod l."""

    # A group's rows keep, of every block of columns, a subspace of the slice's rank: the best one is spanned by the
    # largest eigenvectors of the slice's rows, once the block's inputs are made uncorrelated by a root of their
    # covariance. What is dropped goes back to the inputs' own coordinates by the inverse root, so that its energy
    # counts the correlations between blocks.

    def __init__(self, weight: Tensor, covariance: Tensor, energy: float, right: Shape, left: Shape) -> None:
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

    @override
    def affinity(self) -> Tensor:
        return _spectral_groups(self.slices, self.count)

    @override
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


class MonarchColumns(GroupedUnits):
    """Inputs of a Monarch matrix: place h belongs to right block h // p."""

    # A group's columns keep, of every left block's outputs, a subspace of the slice's rank. The subspaces count the
    # correlations of the units; the losses of single units leave them out.

    def __init__(self, weight: Tensor, covariance: Tensor, energy: float, right: Shape, left: Shape) -> None:
        (k, q, p), (l, s, _) = right, left  # noqa: E741 - the paper's letter
        super().__init__(torch.arange(weight.shape[1], device=weight.device) // p, k)
        self.ranks = slice_ranks(k, q, l).tolist()
        padded = torch.nn.functional.pad(weight, (0, 0, 0, l * s - len(weight)))
        self.slices = padded.view(s, l, -1).transpose(0, 1)  # (l, s, hidden)
        self.covariance, self.energy = covariance, energy

    @override
    def affinity(self) -> Tensor:
        return _spectral_groups((self.slices * self.covariance.diagonal().sqrt()).mT, self.count)

    @override
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


class BlockRows(GroupedUnits):
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

    @override
    def affinity(self) -> Tensor:
        return -self.lost

    @override
    def losses(self, groups: Tensor) -> Tensor:
        return self.lost


class BlockColumns(GroupedUnits):
    """Inputs of a block-diagonal matrix: each column reaches one block of outputs; correlations are not counted."""

    def __init__(self, weight: Tensor, covariance: Tensor, energy: float, nblocks: int) -> None:
        m, n = weight.shape
        super().__init__(torch.arange(n, device=weight.device) // -(-n // nblocks), nblocks)
        size = -(-m // nblocks)
        blocks = torch.nn.functional.pad(weight, (0, 0, 0, nblocks * size - m)).view(nblocks, size, n)
        energies = (blocks.square().sum(1) * covariance.diagonal()).T
        self.lost = (energies.sum(1, keepdim=True) - energies) / energy

    @override
    def affinity(self) -> Tensor:
        return -self.lost

    @override
    def losses(self, groups: Tensor) -> Tensor:
        return self.lost


def _energies(weight: Tensor, covariance: Tensor) -> Tensor:
    """E(w x)² of each row w."""
    return ((weight @ covariance) * weight).sum(1)


def _spectral_groups(slices: Tensor, count: int) -> Tensor:
    """How near units, with slices (blocks, hidden, p), are to groups found without a start: (hidden, count) cosines."""
    # Units in independent subspaces are orthogonal to each other in the projector onto all of the units' slices (the
    # shape interaction matrix of Costeira and Kanade 1998): where there is an exact answer, this finds it.
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
    # The leading eigenvectors by subspace iteration. Those of the scaled links lie between -1 and 1; adding the space
    # moves them to 0 .. 2, so that the largest positive ones lead.
    generator = torch.Generator().manual_seed(0)
    space = torch.randn(len(links), count, generator=generator).to(links)
    for _ in range(_POWER_STEPS):
        space = torch.linalg.qr(links @ space + space).Q
    lengths = space.norm(dim=1, keepdim=True)
    directions = space / lengths.clamp_min(torch.finfo(space.dtype).tiny)
    # A representative of each group by pivoting (Damle, Minden and Ying, arXiv 1708.07481): the unit that is longest
    # once those before it are projected out.
    rest, found = space, []
    for _ in range(count):
        chosen = int(rest.norm(dim=1).argmax())
        found.append(chosen)
        along = rest[chosen] / rest[chosen].norm().clamp_min(torch.finfo(space.dtype).tiny)
        rest = rest - (rest @ along)[:, None] * along
    return (directions @ directions[found].T).abs().to(slices.dtype)
