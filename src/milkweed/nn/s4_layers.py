"""S4, S4D and S4ND: their filters inside the mixing layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from milkweed._arguments import checked
from milkweed._registry import register
from milkweed.nn.filters.s4 import S4Filter
from milkweed.nn.filters.s4d import S4DFilter
from milkweed.nn.filters.s4nd import S4NDFilter
from milkweed.nn.filters.systems import DenseSystem, DiagonalSystem, SoftmaxSystem
from milkweed.nn.options import takes_options_of
from milkweed.nn.sequence_layer import Mixing, SequenceLayer, divide_options


@register("layer", "s4d")
class S4D(SequenceLayer):
    """Diagonal state space layer: ``y = GLU(W gelu(K * u + D u))`` with the kernels K of a diagonal system per channel.

    Args:
        d_model: H, channels in and out.
        *args: ``d_state`` and ``init`` may be given by position.
        **options: Those of [`milkweed.nn.filters.S4DFilter`][], [`milkweed.nn.filters.StateSpaceFilter`][] and
            [`milkweed.nn.SequenceLayer`][].

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.

    Source:
        S4D (arXiv 2206.11893).

    Example:
        >>> layer = mw.nn.S4D(64, d_state=32, init="lin", bidirectional=True, dropout=0.1)
        >>> layer(torch.randn(8, 1000, 64)).shape
        torch.Size([8, 1000, 64])
    """

    filter: S4DFilter

    @takes_options_of(S4DFilter, SequenceLayer)
    @checked
    def __init__(self, d_model: int, *args: Any, **options: Any) -> None:
        own, mixing = divide_options(options)
        super().__init__(S4DFilter(d_model, *args, **own), **mixing)

    def system(self, rate: float = 1.0) -> DiagonalSystem | SoftmaxSystem:
        """The discrete system of the layer's filter; ``system().kernel(length)`` are its kernels."""
        return self.filter.system(rate)


@register("layer", "s4")
class S4(SequenceLayer):
    """State space layer with any HiPPO basis: ``y = GLU(W gelu(K * u + D u))``, one system per channel.

    Args:
        d_model: H, channels in and out.
        *args: ``d_state`` and ``init`` may be given by position.
        **options: Those of [`milkweed.nn.filters.S4Filter`][], [`milkweed.nn.filters.StateSpaceFilter`][] and
            [`milkweed.nn.SequenceLayer`][].

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.

    Source:
        S4 (arXiv 2111.00396) and How to Train Your HiPPO (arXiv 2206.12037).

    Example:
        >>> layer = mw.nn.S4(64, init="legt")
        >>> y, state = layer(torch.randn(8, 1000, 64), return_state=True)
        >>> y.shape, state.shape
        (torch.Size([8, 1000, 64]), torch.Size([8, 64, 64]))
    """

    filter: S4Filter

    @takes_options_of(S4Filter, SequenceLayer)
    @checked
    def __init__(self, d_model: int, *args: Any, **options: Any) -> None:
        own, mixing = divide_options(options)
        super().__init__(S4Filter(d_model, *args, **own), **mixing)

    def system(self, rate: float = 1.0) -> DenseSystem:
        """The discrete system of the layer's filter; ``system().kernel(length)`` are its kernels."""
        return self.filter.system(rate)


class S4ND(nn.Module):
    """State space layer for images (``dims=2``) and volumes (``dims=3``), with one system per channel and axis.

    Args:
        d_model: H, channels in and out.
        *args: ``dims``, ``d_state`` and ``init`` may be given by position.
        **options: Those of [`milkweed.nn.filters.S4NDFilter`][] and [`milkweed.nn.SequenceLayer`][].

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.

    Source:
        S4ND (arXiv 2210.06583).

    Example:
        >>> layer = mw.nn.S4ND(16, dims=2)
        >>> layer(torch.randn(4, 32, 28, 16)).shape
        torch.Size([4, 32, 28, 16])
    """

    @takes_options_of(S4NDFilter, SequenceLayer)
    def __init__(self, d_model: int, *args: Any, **options: Any) -> None:
        super().__init__()
        own, mixing = divide_options(options)
        self.filter = S4NDFilter(d_model, *args, **own)
        self.mix = Mixing(d_model, self.filter.channels, **mixing)

    def reset_parameters(self) -> None:
        """Draw all parameters anew, e.g. after ``to_empty`` moved a meta layer to a device."""
        self.filter.reset_parameters()
        self.mix.reset_parameters()

    def forward(self, u: Tensor, *, rate: float | Sequence[float] = 1.0) -> Tensor:
        """Filter a batch of images or volumes and mix their channels.

        Args:
            u: (B, *spatial, d_model) with ``dims`` spatial axes, each at least 1 long.
            rate: Distance between neighbours relative to training, one value or one per axis, as in the filter.

        Returns:
            (B, *spatial, d_model).

        Raises:
            ValueError: The shape does not fit, or a rate is not above 0.
        """
        y = self.filter(u, rate=rate)
        # All points as one sequence, which a tied dropout drops whole.
        mixed: Tensor = self.mix(y.to(u.dtype).flatten(1, -2), u.flatten(1, -2))
        return mixed.unflatten(1, u.shape[1:-1])
