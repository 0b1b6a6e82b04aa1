"""Linear layer with a Monarch matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from milkweed import ops
from milkweed._arguments import checked
from milkweed._registry import register
from milkweed._suggest import unknown
from milkweed.nn.structured_linear.base import StructuredLinear, dense_weight, orthogonal_blocks, uniform_with_variance
from milkweed.nn.structured_linear.config import LayerConfig
from milkweed.nn.structured_linear.hidden_units import GroupedUnits, MonarchColumns, MonarchRows
from milkweed.structures import LowRank, Monarch, add_monarch, monarch_shapes, project_monarch
from milkweed.structures.transforms import monarch_hadamard


@register("linear", "monarch")
class MonarchLinear(StructuredLinear):
    """Linear layer with a Monarch matrix: two block-diagonal factors with a permutation after each.

    Every (out_features / nblocks) × (in_features / nblocks) slice of the matrix has rank ``rank``. Parameters:
    nblocks · q · (in_block + out_block), where q = nblocks · rank, or min(in_block, out_block) by default.

    Initialisations (``init``):

    - ``"kaiming"``: uniform, with nn.Linear's output variance (a third of the input's).
    - ``"mup"``: normal, each block of the spectral norm that feature learning asks for; ``parameter_groups`` scales the
      learning rate of each factor by in_features over the block's fan-in, so that the rate of a dense layer fits.
    - ``"orthogonal"``: every block has orthonormal rows or columns; lengths are kept where both factors are square.
    - ``"project"``: nn.Linear's own initialisation, projected and scaled back to its norm.
    - ``"hadamard"``: the orthonormal Hadamard transform, exactly; sizes must be one power of two.
    - ``"zero"``: the right factor with nn.Linear's variance, the left one zero: an update that starts at nothing.

    Args:
        in_features: Size of each input.
        out_features: Size of each output.
        nblocks: Blocks per factor; sizes that it does not divide are padded.
        bias: Whether to add a bias.
        rank: Rank of each slice, at most min(in_block, out_block).
        device: Where parameters live.
        dtype: Their dtype.
        init: How parameters are drawn, see above.

    Raises:
        ValueError: Slices would be structurally zero (fewer than ``nblocks`` features per block), the rank is out of
            range, or the initialisation is unknown.

    Source:
        Monarch (arXiv 2204.00595), section 3; their per-block initialisation gives a ninth of the input's variance.
        "mup": Qiu et al., Compute Better Spent (arXiv 2406.06248), on structured layers.

    Example:
        >>> layer = mw.nn.MonarchLinear(1024, 1024, nblocks=16)
        >>> layer(torch.randn(3, 1024)).shape, layer.matrix().num_parameters / 1024**2
        (torch.Size([3, 1024]), 0.125)
        >>> again = mw.nn.MonarchLinear.from_linear(layer.to_linear(), nblocks=16)
        >>> torch.allclose(again.matrix().to_dense(), layer.matrix().to_dense(), atol=1e-4)
        True
    """

    takes_updates = True

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        nblocks: int = 4,
        bias: bool = True,
        rank: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        init: str = "kaiming",
    ) -> None:
        right, left = monarch_shapes(in_features, out_features, nblocks, rank)
        super().__init__(in_features, out_features, bias, device, dtype)
        if init not in _INITIALISATIONS:
            raise ValueError(unknown("init", init, _INITIALISATIONS))
        if init == "hadamard" and (in_features != out_features or in_features & (in_features - 1)):
            raise ValueError(
                f"init='hadamard' needs in_features = out_features, a power of two; got {in_features} and "
                f"{out_features}"
            )
        self.nblocks, self.rank, self.init = nblocks, rank, init
        self.right = nn.Parameter(torch.empty(right, device=device, dtype=dtype))
        self.left = nn.Parameter(torch.empty(left, device=device, dtype=dtype))
        self.reset_parameters()

    @override
    def reset_parameters(self) -> None:
        if not self.right.is_meta:
            _INITIALISATIONS[self.init](self)
        self._reset_bias()

    @override
    def matrix(self) -> Monarch:
        return Monarch(self.right, self.left, (self.out_features, self.in_features))

    def _affine(self, x: Tensor, activation: str | None) -> Tensor:
        (k, _, p), (l, s, _) = self.right.shape, self.left.shape  # noqa: E741 - the paper's letter
        product = partial(ops.monarch_mm, right=self.right, left=self.left, activation=activation)
        return self._by_operation(product, x, (l * s, k * p))

    @override
    def _sum(self, matrix: Monarch, update: Monarch | LowRank) -> tuple[dict[str, Tensor], int]:
        total = add_monarch(matrix, update)
        return {"right": total.right, "left": total.left}, total.right.shape[1] // self.nblocks

    @classmethod
    @checked(but=("linear",))
    def from_linear(
        cls,
        linear: nn.Linear,
        nblocks: int = 4,
        rank: int | None = None,
        *,
        input_covariance: Tensor | None = None,
        refine: int = 0,
    ) -> Self:
        """Project a dense layer.

        Args:
            linear: The dense layer.
            nblocks: Blocks per factor.
            rank: Rank of each slice.
            input_covariance: (in_features, in_features); see `StructuredLinear.from_linear`.
            refine: Rounds of least squares; needs a covariance.

        Returns:
            The layer with the nearest Monarch matrix and the dense layer's bias, device, dtype and training mode; see
            `milkweed.project_monarch`, which also reports the errors.
        """
        found = project_monarch(dense_weight(linear), nblocks, rank, input_covariance=input_covariance, refine=refine)
        factors = {"right": found.matrix.right, "left": found.matrix.left}
        return cls._from(linear, factors, nblocks=nblocks, rank=rank)

    def parameter_rates(self) -> dict[str, float]:
        """Learning rates relative to the model's, one for each factor under ``init="mup"``, else none."""
        if self.init != "mup":
            return {}
        return {name: self.in_features / getattr(self, name).shape[-1] for name in ("right", "left")}

    @property
    @override
    def options(self) -> dict[str, Any]:
        rank = {} if self.rank is None else {"rank": self.rank}
        return {"nblocks": self.nblocks, **rank} | ({} if self.init == "kaiming" else {"init": self.init})


@register("config")
@dataclasses.dataclass(frozen=True)
class MonarchConfig(LayerConfig):
    """Replace by [`milkweed.nn.MonarchLinear`][].

    Args:
        nblocks: Blocks per factor.
        rank: Rank of each slice; as much as fits by default.
        refine: Rounds of least squares after the projection; used where there is calibration.

    Example:
        >>> model = nn.Sequential(nn.Linear(256, 256))
        >>> report = mw.convert_(model, {"0": mw.MonarchConfig(nblocks=4)})
        >>> model[0]
        MonarchLinear(in_features=256, out_features=256, nblocks=4, bias=True)
    """

    nblocks: int = 4
    rank: int | None = None
    refine: int = 0
    name: ClassVar[str] = "monarch"
    fitting: ClassVar[tuple[str, ...]] = ("refine",)

    @override
    def project(self, linear: nn.Linear, input_covariance: Tensor | None) -> StructuredLinear:
        refine = self.refine if input_covariance is not None else 0
        return MonarchLinear.from_linear(
            linear, self.nblocks, self.rank, input_covariance=input_covariance, refine=refine
        )

    @override
    def hidden_units(self, weight: Tensor, covariance: Tensor, energy: float, *, rows: bool) -> GroupedUnits:
        shapes = monarch_shapes(weight.shape[1], weight.shape[0], self.nblocks, self.rank)
        return (MonarchRows if rows else MonarchColumns)(weight, covariance, energy, *shapes)


def _kaiming(layer: MonarchLinear) -> None:
    for factor in (layer.right, layer.left):
        # Both factors scale the variance by 1/√3, together by the 1/3 of nn.Linear.
        uniform_with_variance(factor, 3**-0.5 / factor.shape[-1])


def _mup(layer: MonarchLinear) -> None:
    for factor in (layer.right, layer.left):
        _, fan_out, fan_in = factor.shape
        nn.init.normal_(factor, std=min(1.0, (fan_out / fan_in) ** 0.5) / fan_in**0.5)


def _orthogonal(layer: MonarchLinear) -> None:
    for factor in (layer.right, layer.left):
        orthogonal_blocks(factor)


@torch.no_grad()
def _project(layer: MonarchLinear) -> None:
    dense = nn.Linear(layer.in_features, layer.out_features, bias=False, device=layer.right.device).weight
    found = project_monarch(dense, layer.nblocks, layer.rank).matrix
    scale = dense.norm() / found.to_dense().norm()
    layer.right.copy_(found.right * scale.sqrt())
    layer.left.copy_(found.left * scale.sqrt())


@torch.no_grad()
def _hadamard(layer: MonarchLinear) -> None:
    dense = monarch_hadamard(layer.in_features, norm="ortho", dtype=torch.float64).to_dense()
    found = project_monarch(dense, layer.nblocks, layer.rank).matrix
    layer.right.copy_(found.right)
    layer.left.copy_(found.left)


def _zero(layer: MonarchLinear) -> None:
    uniform_with_variance(layer.right, 1 / (3 * layer.right.shape[-1]))
    nn.init.zeros_(layer.left)


_INITIALISATIONS: dict[str, Callable[[MonarchLinear], None]] = {
    "kaiming": _kaiming,
    "mup": _mup,
    "orthogonal": _orthogonal,
    "project": _project,
    "hadamard": _hadamard,
    "zero": _zero,
}
