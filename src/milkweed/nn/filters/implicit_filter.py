"""Convolution kernels that a small network computes from the lag."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from milkweed import ops
from milkweed._arguments import check_dtype, checked, got, is_kind
from milkweed._suggest import unknown
from milkweed.nn.precision import KeepsFloat32, at_least_float32
from milkweed.ops._common import is_known
from milkweed.ops._export import first
from milkweed.ops.backends import arranged_for_export

# How a filter's parameters are trained.
FILTERS = ("special", "uniform")
# The envelopes of the channels reach this value after between 0.3 and 1.5 times l_max.
_TARGET, _FASTEST, _SLOWEST = 1e-2, 0.3, 1.5


class ImplicitFilter(KeepsFloat32):
    """Kernels as long as the sequence from a network of the lag with sines as activations, under a decaying envelope.

    ``k(n) = W3 sin(f (W2 sin(f (W1 sin(f (W0 z(n))))))) exp(-t |delta|)`` with biases on all but the last layer, where
    ``z = [t, cos(w f_i), -sin(w f_i)]`` are features of the lag n, ``t = n / (T - 1)``, ``w = 2 pi n / T`` with the
    time scale T, and ``delta`` runs from slow to fast over the channels. One vector of frequencies f serves every layer
    and both directions. All of it depends on the lag alone: a kernel for a shorter sequence is the first part of the
    whole one.

    Args:
        d_model: D, kernels.
        l_max: Lags of the longest kernel.
        bidirectional: Compute a second kernel, for lags -1, -2, ..., by a network of its own.
        emb_dim: Features of a lag: 1 + 2 * bands, odd.
        width: Of the hidden layers.
        freq: What the frequencies start from.
        time_scale: T, lags in which time runs from 0 to 1; ``l_max`` by default. The envelopes are at 1 % after 0.3 to
            1.5 times as many.
        filters: ``"uniform"``, trained like everything else, or ``"special"``: learning rate 1e-3 and weight decay 0.1
            for the network, learning rate 1e-5 for the features, whatever the model's are.
        device: Where parameters live.
        dtype: Their dtype, float32 at least: in a model of half precision they stay in float32.

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.

    Source:
        Hyena (arXiv 2302.10866), section 3.3, with the frequencies shared by the layers as in the code of Monarch Mixer
        (arXiv 2310.12109), whose special rates never reached its optimiser: published models were trained uniformly.
        The features z are parameters, as there.

    Example:
        >>> mw.nn.ImplicitFilter(8, l_max=100, width=16)(60)[0].shape
        torch.Size([8, 60])
    """

    @checked
    def __init__(
        self,
        d_model: int,
        l_max: int,
        *,
        bidirectional: bool = False,
        emb_dim: int = 5,
        width: int = 128,
        freq: float = 10.0,
        time_scale: int | None = None,
        filters: str = "uniform",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        time_scale = l_max if time_scale is None else time_scale
        check_filters(filters)
        check_dtype(dtype)
        for name, value in (("d_model", d_model), ("l_max", l_max), ("width", width), ("time_scale", time_scale)):
            if value < 1:
                raise ValueError(f"{name} must be an integer of at least 1; got {value}")
        if emb_dim < 3 or emb_dim % 2 == 0:
            raise ValueError(
                f"emb_dim must be odd and at least 3, as 1 + 2 * bands; got {emb_dim}; use {max(emb_dim + 1, 3)}"
            )
        if not 0 < freq < math.inf:
            raise ValueError(f"freq must be above 0 and finite; got {freq}")
        self.d_model, self.l_max, self.time_scale, self.freq, self.filters = d_model, l_max, time_scale, freq, filters
        factory: dict[str, Any] = {"device": device, "dtype": at_least_float32(dtype)}
        self.positions = nn.Parameter(torch.empty(l_max, emb_dim, **factory))
        self.frequency = nn.Parameter(torch.empty(width, **factory))

        def network() -> nn.ModuleList:
            widths = [emb_dim, width, width, width]
            hidden = [nn.Linear(p, q, **factory) for p, q in itertools.pairwise(widths)]
            return nn.ModuleList([*hidden, nn.Linear(width, d_model, bias=False, **factory)])

        self.layers = network()
        self.reverse_layers = network() if bidirectional else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew, e.g. after ``to_empty`` moved a meta layer to a device."""
        self.positions.copy_(self.features())
        self.frequency.fill_(self.freq)
        for layer in (*self.layers, *(self.reverse_layers or ())):
            layer.reset_parameters()

    def features(self) -> Tensor:
        """What the features of the lags, ``positions``, start from.

        Returns:
            (l_max, emb_dim) float64: time, cosines and negated sines of the bands.
        """
        bands = (self.positions.shape[1] - 1) // 2
        n = torch.arange(self.l_max, dtype=torch.float64)
        # Where n is: transformers builds models on the meta device, and leaves only linspace on the CPU.
        frequencies = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64, device=n.device)
        angles = frequencies * (2 * math.pi / self.time_scale) * n[:, None]
        return torch.cat([n[:, None] / max(self.time_scale - 1, 1), angles.cos(), -angles.sin()], -1)

    def parameter_roles(self) -> dict[str, str]:
        """Name the parameters that are not decayed: the features, whose zero means nothing."""
        return {"positions": "no_decay"}

    def parameter_settings(self) -> dict[str, tuple[float, float]]:
        """Parameter name to (learning rate, weight decay) of its own, for ``filters="special"``; else nothing."""
        if self.filters == "uniform":
            return {}
        network = {name: (1e-3, 0.1 if p.ndim > 1 else 0.0) for name, p in self.named_parameters()}
        return network | {"positions": (1e-5, 0.0)}

    def forward(self, length: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Compute the kernels.

        Args:
            length: L, lags from 1 to l_max; all of them by default.

        Returns:
            (d_model, L) for lags 0 .. L - 1, and for a bidirectional filter (d_model, L) for lags -1 .. -L, else None;
            in float32 at least.

        Raises:
            ValueError: There are no so many lags.
        """
        length = self.l_max if length is None else length
        check_lags(length, self.l_max)
        # With a length that is not known yet, an exported program keeps all lags, a constant, and takes the first.
        whole = arranged_for_export() and not is_known(length)
        features, decay = self.positions if whole else self.positions[:length], self._decay()
        kernel = ops.implicit_kernel(features, self.frequency, [*self.layers.parameters()], decay)
        kernel = first(kernel, length) if whole else kernel
        if self.reverse_layers is None:
            return kernel, None
        reverse = ops.implicit_kernel(features, self.frequency, [*self.reverse_layers.parameters()], decay)
        return kernel, first(reverse, length) if whole else reverse

    def _decay(self) -> Tensor:
        """(d_model,), |delta| per lag: no parameter, and computed here so that no change of dtype rounds it."""
        slow, fast = (-math.log(_TARGET) / reach for reach in (_SLOWEST, _FASTEST))
        dtype = torch.promote_types(self.frequency.dtype, torch.float32)
        delta = torch.linspace(slow, fast, self.d_model, dtype=dtype, device=self.frequency.device)
        return delta / max(self.time_scale - 1, 1)

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.d_model}, l_max={self.l_max}, bidirectional={self.reverse_layers is not None}, "
            f"time_scale={self.time_scale}"
        )


def check_filters(filters: str) -> None:
    """Refuse an unknown ``filters``, the way to train a filter."""
    if filters not in FILTERS:
        raise ValueError(unknown("filters", filters, FILTERS))


def check_lags(length: int, l_max: int) -> None:
    """Refuse to give more lags than a filter has."""
    if not is_kind(length, int) or not 1 <= length <= l_max:
        raise ValueError(
            f"length must be in 1 .. l_max={l_max}; got {got(length)}; build the layer with a larger l_max"
        )
