"""The backend of exported programs: when it is taken, and what its graphs are made of."""

import pytest
import torch

import milkweed as mw
from milkweed import ops

SHAPES = [  # k, q, p, l, s: with runs of q / l numbers, and without
    (4, 8, 6, 4, 5),
    (2, 6, 3, 4, 3),
    (4, 6, 3, 4, 2),
    (1, 5, 7, 5, 1),
]


def exported(function, *args, strict=False):
    class Program(torch.nn.Module):
        def forward(self, *args):
            return function(*args)

    return torch.export.export(Program(), args, strict=strict)


def operations(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("strict", [False, True])
def test_exporting_takes_the_export_backend(strict):
    x, right, left = torch.randn(3, 12), torch.randn(3, 4, 4), torch.randn(4, 2, 3)
    chosen = []

    def multiply(x, right, left):
        chosen.append(ops.explain("monarch_mm", x, right, left))
        return ops.monarch_mm(x, right, left)

    assert ops.explain("monarch_mm", x, right, left).backend == "eager"
    program = exported(ops.monarch_mm, x, right, left, strict=strict)
    assert not any("milkweed" in name for name in operations(program))
    torch.testing.assert_close(program.module()(x, right, left), ops.monarch_mm(x, right, left))
    with ops.use_backend("eager"):
        kept = exported(ops.monarch_mm, x, right, left, strict=strict)
    assert "milkweed.monarch_mm.default" in operations(kept)
    if not strict:
        exported(multiply, x, right, left)
        assert str(chosen[0]) == "monarch_mm: export (the program is being exported)"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [(5,), (2, 3), (0,)])
def test_monarch_and_block_diagonal(shape, rows):
    k, q, p, l, s = shape  # noqa: E741 - the paper's letter
    wide = {"dtype": torch.float64, "requires_grad": True}
    right, left, bias = torch.randn(k, q, p, **wide), torch.randn(l, s, k * q // l, **wide), torch.randn(s * l, **wide)
    x = torch.randn(*rows, k * p, **wide)
    dense = mw.Monarch(right, left).to_dense()
    blocks = torch.block_diag(*right)
    for backend in ("export", "eager"):
        y = ops.monarch_mm(x, right, left, bias=bias, activation="gelu", backend=backend)
        torch.testing.assert_close(y, torch.nn.functional.gelu(x @ dense.T + bias))
        y = ops.block_diagonal_mm(x, right, backend=backend)
        torch.testing.assert_close(y, x @ blocks.T)
    inputs = (x, right, left, bias)
    found = torch.autograd.grad(ops.monarch_mm(*inputs[:3], bias=bias, backend="export").square().sum(), inputs)
    expected = torch.autograd.grad((x @ dense.T + bias).square().sum(), inputs)
    torch.testing.assert_close(found, expected)
