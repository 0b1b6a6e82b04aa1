"""Remember a signal in a basis while it arrives, and read its past back."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from milkweed._arguments import check_real, checked
from milkweed.ssm.basis import basis_functions
from milkweed.ssm.discretize import discretize
from milkweed.ssm.hippo import BASES, hippo


class Reconstruction:
    """A signal's past as N coefficients in a HiPPO basis, updated with every sample.

    Sample k is held over the step of length ``dt`` that ends at time (k + 1) dt: ``(j + 0.5) * dt`` ago is the middle
    of the sample j before the last.

    Args:
        name: As in [`milkweed.ssm.hippo`][]. ``chebt`` forgets nothing, so that its coefficients grow without bound
            after its window, 2/dt samples; the Fourier bases have odd sizes only.
        d_state: N, the number of coefficients.
        dt: Time between samples, in units in which the basis is as in ``hippo``: ``legt`` covers 2/dt samples.
        scaled: Stretch the basis with the time that has passed, x' = (A x + B u)/t, so that it always covers the whole
            past evenly. For ``legs`` only; the coefficients do not depend on ``dt`` then.
        method: As in [`milkweed.ssm.discretize`][].

    Raises:
        ValueError: An option is unknown or out of range, or ``scaled`` with another basis.

    Source:
        How to Train Your HiPPO (arXiv 2206.12037), section 3; ``scaled``: HiPPO (arXiv 2008.07669), section 3, but
        exact between samples: in log t the system is time-invariant.

    Example:
        >>> memory = mw.ssm.Reconstruction("legs", 32, dt=0.01)
        >>> coefficients = memory.final(torch.ones(500))
        >>> memory.past(coefficients, torch.tensor([0.5, 1.0])).round(decimals=1)
        tensor([1., 1.], dtype=torch.float64)
    """

    @checked
    def __init__(self, name: str, d_state: int, *, dt: float = 0.01, scaled: bool = False, method: str = "zoh") -> None:
        self._A, self._B = hippo(name, d_state)
        if scaled and name != "legs":
            raise ValueError(f"scaled=True is for name='legs', whose measure covers the whole past; got name={name!r}")
        self._constant = discretize(self._A, self._B, dt, method)
        self.name, self.d_state, self.dt, self.scaled, self.method = name, d_state, dt, scaled, method

    @checked
    def coefficients(self, u: Tensor) -> Tensor:
        """Run over a signal.

        Args:
            u: (..., T).

        Returns:
            (..., T, N) float64, the coefficients after each sample.

        Raises:
            ValueError: ``u`` has no samples.
        """
        return torch.stack(list(self._states(u)), -2)

    @checked
    def final(self, u: Tensor) -> Tensor:
        """Run over a signal without keeping what came between.

        Args:
            u: (..., T).

        Returns:
            (..., N) float64, the coefficients after the last sample.

        Raises:
            ValueError: ``u`` has no samples.
        """
        for state in self._states(u):
            last = state
        return last

    @checked
    def past(self, coefficients: Tensor, ago: Tensor, elapsed: float | None = None) -> Tensor:
        """Read the past back from the coefficients at one time.

        Args:
            coefficients: (..., N).
            ago: (K,), how long before that time, within the basis' window.
            elapsed: For ``scaled``: that time itself, the number of samples so far times ``dt``.

        Returns:
            (..., K) float64.

        Raises:
            ValueError: A shape does not fit, a time lies outside of what the basis covers, or ``elapsed`` is missing
                or of no use.
        """
        if coefficients.ndim < 1 or coefficients.shape[-1] != self.d_state:
            raise ValueError(
                f"coefficients must be (..., N) with N={self.d_state}; got shape {tuple(coefficients.shape)}"
            )
        if self.scaled != (elapsed is not None):
            wanted = "needs elapsed, the number of samples so far times dt" if self.scaled else "takes no elapsed"
            raise ValueError(f"scaled={self.scaled} {wanted}; got elapsed={elapsed}")
        check_real(ago=ago)
        if ago.ndim != 1:
            raise ValueError(f"ago must be (K,); got shape {tuple(ago.shape)}")
        window = BASES[self.name].window if elapsed is None else elapsed
        if ago.numel() and not 0 <= float(ago.min()) <= float(ago.max()) <= window:
            raise ValueError(f"ago must lie in 0 .. {window:g}; got {float(ago.min()):g} .. {float(ago.max()):g}")
        # The whole past, in the time in which the basis does not change: e^-t runs from 1 now to 0 at the start.
        times = ago if elapsed is None else -torch.log1p(-ago.double() / elapsed)
        return coefficients.double() @ basis_functions(self.name, self.d_state, times)

    def _states(self, u: Tensor) -> Iterator[Tensor]:
        if u.ndim < 1 or u.shape[-1] == 0:
            raise ValueError(f"u must be (..., T) with at least one sample; got shape {tuple(u.shape)}")
        u = u.double()
        x = u.new_zeros(*u.shape[:-1], self.d_state)
        for k, (a_bar, b_bar) in enumerate(self._steps(u.shape[-1])):
            x = x @ a_bar.T + u[..., k, None] * b_bar
            yield x

    def _steps(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        if not self.scaled:
            for _ in range(count):
                yield self._constant
            return
        # From time 0, infinitely long ago in log t, a constant input has settled after the first sample.
        yield torch.zeros_like(self._A), -torch.linalg.solve(self._A, self._B)
        for k in range(1, count):
            yield discretize(self._A, self._B, math.log1p(1 / k), self.method)
