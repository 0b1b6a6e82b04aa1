"""From continuous time to steps."""

from __future__ import annotations

import torch
from torch import Tensor

from milkweed._suggest import unknown
from milkweed.ops import pairs

DISCRETIZATIONS = ("bilinear", "zoh")


def discretize_diagonal(dt_a: Tensor, method: str = "zoh") -> tuple[Tensor, Tensor]:
    """Discretise x' = a x + b u, mode by mode, in real arithmetic.

    The discrete system is x_t = exp(exponent) x_{t-1} + dt * scale * b u_t.

    Args:
        dt_a: (..., N, 2), a times the step, as real pairs with non-positive real part.
        method: ``"zoh"``: exponent = z, scale = (e^z - 1)/z with z = dt_a; or ``"bilinear"``: exponent =
            log((1 + z/2)/(1 - z/2)), scale = 1/(1 - z/2).

    Returns:
        The exponent and the scale, each (..., N, 2).

    Raises:
        ValueError: The method is unknown.

    Source:
        S4D (arXiv 2206.11893), section 3.1, equation 4. Safe at a → 0, where the paper's quotient is 0/0.
    """
    if method == "zoh":
        return dt_a, _expm1_over(dt_a)
    if method == "bilinear":
        return _log_bilinear(dt_a), pairs.reciprocal(torch.stack([1 - dt_a[..., 0] / 2, -dt_a[..., 1] / 2], -1))
    raise ValueError(unknown("discretization", method, DISCRETIZATIONS))


def _expm1_over(z: Tensor) -> Tensor:
    """(e^z - 1)/z. The Taylor series near 0 keeps the derivative exact too, where the quotient cancels."""
    small = (z.square().sum(-1, keepdim=True) < 1e-4).expand_as(z)
    away = torch.where(small, torch.ones_like(z), z)
    re, im = away[..., 0], away[..., 1]
    numerator = torch.stack(
        [torch.expm1(re) * torch.cos(im) - 2 * torch.sin(im / 2).square(), torch.exp(re) * torch.sin(im)], -1
    )
    near = torch.where(small, z, torch.zeros_like(z))
    one = torch.stack([torch.ones_like(re), torch.zeros_like(re)], -1)
    series = one
    for divisor in (7, 6, 5, 4, 3, 2):
        series = one + pairs.multiply(near, series) / divisor
    return torch.where(small, series, pairs.multiply(numerator, pairs.reciprocal(away)))


def _log_bilinear(z: Tensor) -> Tensor:
    """log((1 + z/2)/(1 - z/2)). At z = -2 the quotient is 0; its logarithm is held at a finite, very negative value."""
    re, im = z[..., 0], z[..., 1]
    above = (1 + re / 2).square() + (im / 2).square()
    below = (1 - re / 2).square() + (im / 2).square()
    # |1 + z/2|² - |1 - z/2|² = 2 Re z: the first form is exact for small z, the second one near z = -2.
    ratio = torch.where(above > below / 4, 2 * re / below, torch.zeros_like(re))
    far = torch.where(above > below / 4, torch.ones_like(re), above.clamp_min(1e-30))
    size = torch.where(above > below / 4, torch.log1p(ratio) / 2, (torch.log(far) - torch.log(below)) / 2)
    return torch.stack([size, torch.atan2(im, 1 - (re.square() + im.square()) / 4)], -1)
