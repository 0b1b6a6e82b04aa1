"""The causal product step by step, and continued after a prefix, against the product of the whole sequence."""

import math

import pytest
import torch

from milkweed.structures.causal import (
    BivariateBasis,
    CausalStream,
    ChebyshevBasis,
    KroneckerBasis,
    causal_product,
    triangular,
)

KINDS = {"kronecker": KroneckerBasis, "bivariate": BivariateBasis, "chebyshev": ChebyshevBasis}


def random_bases(cls, digits, heads):
    def factors(sizes):
        frees = [torch.randn(heads, *sizes[:a], b, b, dtype=torch.float64) for a, b in enumerate(sizes)]
        return tuple(triangular(0.5 * f / math.sqrt(f.shape[-1])) for f in frees)

    output = cls.for_output(factors(cls.output_digits(digits)))
    return {"output_basis": output, "kernel_basis": cls(factors(digits)), "input_basis": cls(factors(digits))}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "digits",
    [(7,), (4, 2), (5, 3), (3, 5), (2, 1), (1, 6), (3, 2, 4), (2, 3, 2, 2)],
    ids=lambda d: "x".join(map(str, d)),
)
def test_steps_equal_the_product(kind, digits):
    bases = random_bases(KINDS[kind], digits, heads=2)
    length = math.prod(digits) - bases["output_basis"].lead
    k, u = torch.randn(4, length).double(), torch.randn(3, 4, length).double()
    expected = causal_product(k, u, **bases)
    stream = CausalStream(k, **bases)
    for start in {0, 1, length // 2, length - 1}:
        y, state = stream.state_after(u[..., :start])
        torch.testing.assert_close(y, expected[..., :start], rtol=1e-9, atol=1e-10)
        for t in range(start, length):
            y, state = stream.step(u[..., t], state)
            torch.testing.assert_close(y, expected[..., t], rtol=1e-9, atol=1e-10)
        _, final = stream.state_after(u)
        for found, wanted in zip(state, final, strict=True):
            for name, tensor in found._asdict().items():
                torch.testing.assert_close(tensor, getattr(wanted, name), rtol=1e-9, atol=1e-10, msg=name)
