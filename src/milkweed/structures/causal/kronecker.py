"""The default construction: polynomials of one variable, whose products are plain convolutions."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from milkweed import ops
from milkweed.structures.causal.base import CausalBasis


@dataclasses.dataclass(frozen=True, eq=False)
class KroneckerBasis(CausalBasis):
    """q_j(Z) = f⁰_{j_0}(Z) f¹_{j_0; j_1}(Z^{b_0}) f²_{j_0, j_1; j_2}(Z^{b_0 b_1}) ⋯ at the N = 2 n roots of unity.

    Factor f^a in its block of lower digits has the coefficients of column j_a. With identities q_j = Z^j, and the
    product is the causal convolution. Two digits are the paper's form, ℓ_{j_1}(Z) r_{j_1, j_0}(Z^b).

    Source:
        Monarch Mixer (arXiv 2310.12109), appendix on causality by Kronecker substitution. A degree cap on the top digit
        and order p are this library's, see README.md.

    Example:
        >>> basis = mw.structures.KroneckerBasis((torch.eye(2)[None], torch.eye(2).expand(1, 2, 2, 2)))
        >>> x = torch.randn(2, 1, 4)
        >>> torch.allclose(basis.interpolate(basis.evaluate(x)), x, atol=1e-5)
        True
    """

    def multiply(self, kernel: Tensor, u: Tensor) -> Tensor:
        """The first L coefficients of the product.

        Args:
            kernel: (H, L).
            u: (B, H, L).

        Returns:
            (B, H, L).
        """
        return ops.fft_conv(u, kernel)

    def evaluate(self, x: Tensor) -> Tensor:
        """The values at exp(-2πi k / N), k = 0 .. N - 1.

        Args:
            x: (B, H, n).

        Returns:
            (B, H, 2 n), complex.
        """
        return torch.fft.fft(self.to_polynomial(x), 2 * self.length)

    def interpolate(self, values: Tensor) -> Tensor:
        """The sequence from its values.

        Args:
            values: (B, H, 2 n), complex.

        Returns:
            (B, H, n), real.
        """
        self._check_values(values, 2 * self.length)
        return self.from_polynomial(torch.fft.ifft(values).real[..., : self.length])
