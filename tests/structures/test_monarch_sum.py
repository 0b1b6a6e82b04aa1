"""Sums of Monarch and low-rank matrices: exact for all sizes, with the ranks that they need and no more."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milkweed.structures import BlockDiagonal, LowRank, Monarch, add_monarch, monarch_shapes
from milkweed.structures.monarch_sum import matrix_rows


def monarch(m, n, nblocks, rank=None, dtype=torch.float64):
    right, left = monarch_shapes(n, m, nblocks, rank)
    return Monarch(torch.randn(right, dtype=dtype), torch.randn(left, dtype=dtype), (m, n))


def low_rank(m, n, rank, dtype=torch.float64):
    return LowRank(torch.randn(m, rank, dtype=dtype), torch.randn(rank, n, dtype=dtype))


def dense_by_definition(matrix):
    """The entries of the class's formula, one by one."""
    (k, q, p), (l, s, _) = matrix.right.shape, matrix.left.shape  # noqa: E741
    m, n = matrix.shape
    out = torch.zeros(l * s, k * p, dtype=torch.float64)
    for f in range(k * q):
        block, target = f // q, f % l
        out[target::l, block * p : (block + 1) * p] += torch.outer(
            matrix.left[target, :, f // l].double(), matrix.right[block, f % q].double()
        )
    return out[:m, :n]


def assert_is_the_sum(total, *terms):
    expected = sum(t.left @ t.right if isinstance(t, LowRank) else dense_by_definition(t) for t in terms)
    assert total.shape == tuple(expected.shape)
    torch.testing.assert_close(total.to_dense(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dense_by_definition(total), expected, rtol=1e-12, atol=1e-12)


def slice_rank(matrix):
    return matrix.right.shape[1] // matrix.left.shape[0]


def test_equal_blocks_add_their_ranks_and_keep_their_factors():
    a, b = monarch(24, 48, 4, 2), monarch(24, 48, 4, 1)
    total = add_monarch(a, b)
    assert slice_rank(total) == 3
    assert_is_the_sum(total, a, b)
    # Side by side: the first two features of each slice are those of a, bit for bit.
    assert torch.equal(total.right[:, : 2 * 4], a.right)
    assert torch.equal(total.left.unflatten(2, (4, 3))[..., :2].flatten(2), a.left)


def test_a_low_rank_matrix_adds_its_rank_to_every_slice():
    a, b = monarch(24, 48, 4, 1), low_rank(24, 48, 2)
    total = add_monarch(a, b)
    assert slice_rank(total) == 3
    assert_is_the_sum(total, a, b)


@pytest.mark.parametrize(
    ("blocks", "other", "expected"),
    [(4, 2, 2), (2, 4, 1 + 4), (4, 4, 2), (3, 1, 2)],  # finer, coarser: four slices of rank 1 meet in each, equal, one
)
def test_other_numbers_of_blocks_take_only_the_rank_they_need(blocks, other, expected):
    a, b = monarch(48, 48, blocks, 1), monarch(48, 48, other, 1)
    total = add_monarch(a, b)
    assert slice_rank(total) == expected
    assert_is_the_sum(total, a, b)


def test_a_full_slice_needs_no_more():
    a, b = monarch(30, 50, 4), low_rank(30, 50, 20)  # slices of 8 × 13
    total = add_monarch(a, b)
    assert slice_rank(total) == 8
    assert (total.right.shape, total.left.shape) == monarch_shapes(50, 30, 4, 8)
    assert_is_the_sum(total, a, b)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 40), st.integers(2, 40), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)
)
def test_any_size(m, n, right, left, other, rank):
    smallest = min(m, n)
    right, left, other = (min(value, smallest) for value in (right, left, other))
    a = monarch(m, n, (right, left), 1 if right == left else None)
    b = monarch(m, n, other, min(rank, -(-m // other), -(-n // other)))
    assert_is_the_sum(add_monarch(a, b), a, b)
    c = low_rank(m, n, rank)
    assert_is_the_sum(add_monarch(add_monarch(a, b), c), a, b, c)


@pytest.mark.parametrize(("start", "stop"), [(0, 16), (8, 24), (3, 17), (5, 6), (-4, 40), (20, 31)])
def test_rows(start, stop):
    a = monarch(30, 50, 4)
    padded = torch.nn.functional.pad(dense_by_definition(a), (0, 0, 10, 10))
    assert_is_the_sum(matrix_rows(a, start, stop), LowRank(padded[10 + start : 10 + stop], torch.eye(50).double()))


def test_rows_keep_ranks_where_blocks_begin():
    assert slice_rank(matrix_rows(monarch(96, 32, 4, 2), 32, 64)) == 2


def test_gradients():
    a, b, c = monarch(9, 7, 2), monarch(9, 7, 3, 1), low_rank(9, 7, 2)

    def total(ar, al, br, bl, cl, cr):
        one = add_monarch(Monarch(ar, al, a.crop), Monarch(br, bl, b.crop))
        return add_monarch(one, LowRank(cl, cr)).to_dense()

    tensors = [t.requires_grad_() for t in (a.right, a.left, b.right, b.left, c.left, c.right)]
    assert torch.autograd.gradcheck(total, tensors)


def test_numbers_outside_the_matrix_do_not_matter():
    a = monarch(7, 7, 2)
    a.right[1, :, -1] = torch.nan  # column 7 of 8
    total = add_monarch(Monarch(a.right, a.left, (7, 7)), low_rank(7, 7, 1))
    assert total.right.isfinite().all()


def test_complex_and_mixed_precision():
    a, b = monarch(12, 12, 3, 1, torch.float32), low_rank(12, 12, 1, torch.complex128)
    total = add_monarch(a, b)
    assert total.dtype == torch.complex128
    torch.testing.assert_close(total.to_dense(), a.to_dense() + b.to_dense())


def test_refusals():
    a = monarch(12, 12, 3)
    with pytest.raises(ValueError, match=r"b must have the shape of a, \(12, 12\); got \(12, 9\)"):
        add_monarch(a, low_rank(12, 9, 1))
    with pytest.raises(TypeError, match="b must be a Monarch or a LowRank matrix; got BlockDiagonal"):
        add_monarch(a, BlockDiagonal(torch.randn(3, 4, 4)))
    with pytest.raises(TypeError, match="a must be a Monarch matrix; got LowRank"):
        add_monarch(low_rank(12, 12, 1), a)
