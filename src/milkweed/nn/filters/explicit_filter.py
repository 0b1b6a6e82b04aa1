"""Convolution kernels that are parameters, lag by lag."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from milkweed._arguments import check_dtype, checked
from milkweed.nn.filters.implicit_filter import check_filters, check_lags

# Over L lags of a white signal the sum is 0.002 sqrt(L) times as large: small beside the skip.
_INIT_STD = 2e-3


class ExplicitFilter(nn.Module):
    """Kernels as long as the sequence, every lag a parameter.

    Args:
        d_model: D, kernels.
        l_max: Lags.
        bidirectional: Have a second kernel, for lags -1, -2, ...
        filters: ``"uniform"``, trained like everything else, or ``"special"``: learning rate 1e-3 without weight decay.
        device: Where parameters live.
        dtype: Their dtype; kernels are given in float32 at least.

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.

    Source:
        Simple hardware-efficient long convolutions (arXiv 2302.06646): random kernels of standard deviation 0.002.

    Example:
        >>> mw.nn.ExplicitFilter(8, l_max=100)(50)[0].shape
        torch.Size([8, 50])
    """

    @checked
    def __init__(
        self,
        d_model: int,
        l_max: int,
        *,
        bidirectional: bool = False,
        filters: str = "uniform",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_filters(filters)
        check_dtype(dtype)
        for name, value in (("d_model", d_model), ("l_max", l_max)):
            if value < 1:
                raise ValueError(f"{name} must be an integer of at least 1; got {value}")
        self.d_model, self.l_max, self.filters = d_model, l_max, filters
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.kernel = nn.Parameter(torch.empty(d_model, l_max, **factory))
        self.reverse_kernel = nn.Parameter(torch.empty(d_model, l_max, **factory)) if bidirectional else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the kernels anew, e.g. after ``to_empty`` moved a meta layer to a device."""
        for kernel in self.parameters():
            kernel.normal_(std=_INIT_STD)

    def parameter_settings(self) -> dict[str, tuple[float, float]]:
        """Parameter name to (learning rate, weight decay) of its own, for ``filters="special"``; else nothing."""
        return {} if self.filters == "uniform" else {name: (1e-3, 0.0) for name, _ in self.named_parameters()}

    def forward(self, length: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Give the kernels.

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
        reverse = self.reverse_kernel
        return self._first(self.kernel, length), None if reverse is None else self._first(reverse, length)

    def _first(self, kernel: Tensor, length: int) -> Tensor:
        # A slice would be contiguous for length = l_max only, and an export would be for all lengths but that one.
        cropped = F.pad(kernel, (0, length - self.l_max))
        return cropped.to(torch.promote_types(kernel.dtype, torch.float32))

    @override
    def extra_repr(self) -> str:
        return f"{self.d_model}, l_max={self.l_max}, bidirectional={self.reverse_kernel is not None}"
