"""Every structure against the dense matrix that its definition spells out entry by entry."""

import json
import math

import pytest
import torch
from tests.contracts import structure as contract

import milkweed as mw
from milkweed.structures import (
    BlockDiagonal,
    Chain,
    Circulant,
    Diagonal,
    FlatBlockButterfly,
    LowRank,
    Monarch,
    Permutation,
    Product,
    StructuredMatrix,
    Sum,
    Toeplitz,
)


def randn(*shape, dtype):
    return torch.randn(*shape, dtype=dtype)


def dense_monarch(right, left):
    (k_tot, q_tot, p_tot), (l_tot, s_tot, _) = right.shape, left.shape
    dense = right.new_zeros(l_tot * s_tot, k_tot * p_tot)
    for k in range(k_tot):
        for q in range(q_tot):
            r, l = divmod(k * q_tot + q, l_tot)  # noqa: E741 - the paper's letter
            dense[l::l_tot, k * p_tot : (k + 1) * p_tot] += torch.outer(left[l, :, r], right[k, q])
    return dense


def monarch(k, q, p, l, s, crop=None):  # noqa: E741 - the paper's letter
    def build(dtype):
        right, left = randn(k, q, p, dtype=dtype), randn(l, s, k * q // l, dtype=dtype)
        m, n = crop or (l * s, k * p)
        return Monarch(right, left, crop), dense_monarch(right, left)[:m, :n], right.numel() + left.numel()

    return build


def block_diagonal(k, q, p, crop=None):
    def build(dtype):
        weight = randn(k, q, p, dtype=dtype)
        m, n = crop or (k * q, k * p)
        return BlockDiagonal(weight, crop), torch.block_diag(*weight)[:m, :n], weight.numel()

    return build


def chain(*digits):
    """Each factor as a sum over its own digit, the other digits fixed."""

    def build(dtype):
        size = math.prod(digits)
        factors = tuple(randn(size // b, b, b, dtype=dtype) for b in reversed(digits))
        dense = torch.eye(size, dtype=dtype)
        for position, factor in zip(reversed(range(len(digits))), factors, strict=True):
            step = torch.zeros(size, size, dtype=dtype)
            for column in range(size):
                index = list(_digits_of(column, digits))
                # The block's number: the digits after this one, already transformed, come first.
                others = index[position + 1 :] + index[:position]
                block = 0
                for digit, base in zip(others, (*digits[position + 1 :], *digits[:position]), strict=True):
                    block = block * base + digit
                for value in range(digits[position]):
                    row = [*index[:position], value, *index[position + 1 :]]
                    step[_index_of(row, digits), column] = factor[block, value, index[position]]
            dense = step @ dense
        return Chain(factors), dense, sum(factor.numel() for factor in factors)

    return build


def _digits_of(index, digits):
    for base in [math.prod(digits[t + 1 :]) for t in range(len(digits))]:
        yield index // base
        index %= base


def _index_of(values, digits):
    index = 0
    for value, base in zip(values, digits, strict=True):
        index = index * base + value
    return index


def flat_butterfly(nblocks, count, q, p, crop=None):
    def build(dtype):
        blocks = randn(nblocks, count, q, p, dtype=dtype)
        dense = torch.zeros(nblocks * q, nblocks * p, dtype=dtype)
        for i in range(nblocks):
            for t in range(count):
                j = i if t == 0 else i ^ (1 << (t - 1))
                dense[i * q : (i + 1) * q, j * p : (j + 1) * p] = blocks[i, t]
        m, n = crop or dense.shape
        return FlatBlockButterfly(blocks, crop), dense[:m, :n], blocks.numel()

    return build


def low_rank(dtype):
    left, right = randn(7, 2, dtype=dtype), randn(2, 5, dtype=dtype)
    return LowRank(left, right), left @ right, 24


def diagonal(dtype):
    entries = randn(6, dtype=dtype)
    return Diagonal(entries), torch.diag(entries), 6


def circulant(n):
    def build(dtype):
        column = randn(n, dtype=dtype)
        dense = torch.stack([torch.stack([column[(i - j) % n] for j in range(n)]) for i in range(n)])
        return Circulant(column), dense, n

    return build


def toeplitz(m, n):
    def build(dtype):
        column, row = randn(m, dtype=dtype), randn(n - 1, dtype=dtype)
        entries = [[column[i - j] if i >= j else row[j - i - 1] for j in range(n)] for i in range(m)]
        return Toeplitz(column, row), torch.stack([torch.stack(line) for line in entries]), m + n - 1

    return build


def permutation(dtype):
    index = torch.tensor([2, 0, 3, 1, 4])
    dense = torch.zeros(5, 5, dtype=dtype)
    for i, j in enumerate(index.tolist()):
        dense[i, j] = 1
    return Permutation(index), dense, 0


def product(dtype):
    a, da, na = monarch(3, 4, 2, 2, 5)(dtype)
    reorder, dense, _ = permutation(dtype)
    c, dc, nc = block_diagonal(1, 6, 5)(dtype)
    return Product((a, c, reorder), (9, 4)), (da @ dc @ dense)[:9, :4], na + nc


def total(dtype):
    (a, da, na), (b, db, nb) = flat_butterfly(4, 3, 2, 3)(dtype), monarch(2, 4, 6, 4, 2)(dtype)
    return Sum((a, b)), da + db, na + nb


CASES = {
    "block-diagonal": block_diagonal(3, 4, 2),
    "block-diagonal-cropped": block_diagonal(3, 4, 2, (11, 5)),
    "block-diagonal-square": block_diagonal(3, 4, 4),
    "butterfly": chain(2, 2, 2, 2),
    "chain-uneven": chain(2, 3, 4),
    "circulant": circulant(6),
    "circulant-odd": circulant(7),
    "circulant-1": circulant(1),
    "diagonal": diagonal,
    "flat-butterfly": flat_butterfly(8, 4, 2, 3),
    "flat-butterfly-cropped": flat_butterfly(4, 2, 3, 2, (10, 7)),
    "low-rank": low_rank,
    "monarch-square": monarch(3, 3, 3, 3, 3),
    "monarch-rectangular": monarch(2, 6, 5, 3, 4),
    "monarch-uneven": monarch(5, 7, 2, 7, 3),
    "monarch-l-not-in-q": monarch(5, 7, 3, 5, 2),
    "monarch-cropped": monarch(4, 4, 5, 4, 4, (13, 17)),
    "monarch-1": monarch(1, 1, 1, 1, 1),
    "permutation": permutation,
    "product": product,
    "sum": total,
    "toeplitz": toeplitz(5, 4),
    "toeplitz-tall": toeplitz(7, 1),
    "toeplitz-wide": toeplitz(1, 6),
}
INVERTIBLE = ["block-diagonal-square", "butterfly", "chain-uneven", "circulant", "circulant-odd", "diagonal"]
INVERTIBLE += ["monarch-square", "monarch-1", "permutation"]
DTYPES = [torch.float64, torch.complex128]
every = pytest.mark.parametrize("build", CASES.values(), ids=CASES.keys())
both = pytest.mark.parametrize("dtype", DTYPES, ids=["real", "complex"])


@pytest.fixture(autouse=True)
def double_by_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@every
@both
def test_contract(build, dtype, tmp_path):
    matrix, dense, parameters = build(dtype)
    contract.check_products(matrix, dense)
    contract.check_related_matrices(matrix, dense)
    contract.check_copies(matrix, tmp_path)
    contract.check_conversions(matrix)
    contract.check_counts(matrix, parameters)


@pytest.mark.sampled
@every
@both
def test_gradients(build, dtype):
    contract.check_gradients(build(dtype)[0])


@pytest.mark.sampled
@every
@both
@pytest.mark.parametrize("batch", [(0,), (0, 3)])
def test_gradients_of_nothing(build, dtype, batch):
    matrix = build(dtype)[0]
    x = torch.zeros(*batch[:-1], matrix.shape[1], batch[-1], dtype=dtype, requires_grad=True)
    y = matrix @ x
    assert y.shape == (*batch[:-1], matrix.shape[0], batch[-1])
    (grad,) = torch.autograd.grad(y.abs().sum(), x)
    assert grad.shape == x.shape


@pytest.mark.parametrize("name", INVERTIBLE)
@both
def test_systems_of_equations(name, dtype):
    matrix, dense, _ = CASES[name](dtype)
    contract.check_inverse(matrix, dense)


@both
def test_products_of_invertible_factors(dtype):
    matrix, dense, _ = CASES["monarch-square"](dtype)
    contract.check_inverse(matrix @ matrix.T, dense @ dense.mT)


def test_exported_names_are_all_covered():
    classes = {v for v in vars(mw.structures).values() if isinstance(v, type) and issubclass(v, StructuredMatrix)}
    covered = {type(build(torch.float64)[0]) for build in CASES.values()}
    assert classes - {StructuredMatrix} == covered


def test_kronecker_product_is_one_monarch():
    a, b = torch.randn(3, 4), torch.randn(5, 2)
    contract.close(Monarch.kronecker(a, b).to_dense(), torch.kron(a, b), 1e-14)


@both
def test_a_chain_of_two_is_a_monarch(dtype):
    right, left = randn(4, 3, 3, dtype=dtype), randn(3, 4, 4, dtype=dtype)
    contract.close(Chain((right, left)).to_dense(), Monarch(right, left).to_dense(), 1e-14)


def test_slice_ranks_alternate_where_l_does_not_divide_q():
    ranks = Monarch(torch.randn(5, 7, 3), torch.randn(5, 2, 7)).slice_ranks()
    assert set(ranks.flatten().tolist()) == {1, 2}
    assert ranks.sum(1).tolist() == [7] * 5
    dense = dense_monarch(torch.randn(5, 7, 3), torch.randn(5, 4, 7))
    for k in range(5):
        for l in range(5):  # noqa: E741 - the paper's letter
            assert torch.linalg.matrix_rank(dense[l::5, 3 * k : 3 * k + 3]) == ranks[k, l]


def test_complexity_of_a_chain():
    assert Chain.identity((10, 10, 10)).num_parameters == 3 * 1000 * 10
    assert Chain.identity((8, 8, 12)).num_parameters == 768 * 28
    assert torch.equal(Chain.identity((2, 3, 4)).to_dense(), torch.eye(24))


def test_flops():
    assert Monarch(torch.randn(4, 8, 8), torch.randn(4, 8, 8)).flops(10) == 10 * 2 * 512
    assert LowRank(torch.randn(5, 2), torch.randn(2, 6)).flops() == 44
    assert Permutation.stride(2, 3).flops() == 0


def test_stride_permutation_transposes_a_table():
    x = torch.arange(6.0)
    assert torch.equal(Permutation.stride(2, 3)(x), x.view(2, 3).T.reshape(-1))


def test_half_precision_ffts():
    column, x = torch.randn(12), torch.randn(3, 12)
    y = Circulant(column.half())(x.half())
    assert y.dtype == torch.float16
    contract.close(y.double(), Circulant(column)(x), 2e-2)


def test_not_every_structure_can_be_inverted():
    with pytest.raises(TypeError, match="Toeplitz has no cheap inverse; use"):
        Toeplitz(torch.randn(3), torch.randn(2)).inverse()
    with pytest.raises(TypeError, match="no cheap determinant"):
        LowRank(torch.randn(3, 1), torch.randn(1, 3)).logdet()
    with pytest.raises(ValueError, match="only a square matrix whose blocks are not padded"):
        Monarch(torch.randn(2, 2, 2), torch.randn(2, 2, 2), (3, 3)).inverse()
    with pytest.raises(ValueError, match="needs square blocks"):
        Monarch(torch.randn(2, 4, 2), torch.randn(2, 2, 4)).slogdet()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Monarch(torch.randn(2, 3, 4), torch.randn(2, 3, 4)), ValueError, r"l \* r = 8, k \* q = 6"),
        (lambda: Monarch(torch.randn(2, 3), torch.randn(2, 3, 4)), ValueError, "right must have 3 dimensions"),
        (lambda: Monarch(torch.ones(1, 1, 1, dtype=int), torch.randn(1, 1, 1)), TypeError, "right must be a floating"),
        (lambda: BlockDiagonal(torch.randn(2, 3, 4), (7, 8)), ValueError, r"crop must be .* within \(6, 8\)"),
        (lambda: BlockDiagonal([1, 2]), TypeError, "weight must be a floating-point or complex tensor; got list"),
        (
            lambda: Diagonal(torch.ones(2).to(torch.float8_e5m2)),
            TypeError,
            r"entries must .* got torch.float8_e5m2; use",
        ),
        (lambda: Permutation(torch.tensor([0, 2])), ValueError, "every integer from 0 to n - 1 once"),
        (lambda: Permutation(torch.tensor([0.0, 1.0])), TypeError, "index must be a one-dimensional int64"),
        (lambda: LowRank(torch.randn(3, 2), torch.randn(3, 4)), ValueError, "share their rank"),
        (lambda: Diagonal(torch.randn(3)) @ Diagonal(torch.randn(4)), ValueError, "cannot be multiplied by"),
        (lambda: Diagonal(torch.randn(3)) + Diagonal(torch.randn(4)), ValueError, "terms must have one shape"),
        (lambda: Chain((torch.randn(2, 2, 2), torch.randn(3, 2, 2))), ValueError, r"factors\[1\]"),
        (lambda: Chain([torch.randn(2, 2, 2)]), TypeError, "factors must be a tuple"),
        (lambda: Chain.identity((2, 0)), ValueError, "digits must be positive"),
        (lambda: FlatBlockButterfly(torch.randn(6, 2, 2, 2)), ValueError, "nblocks a power of two"),
        (lambda: FlatBlockButterfly(torch.randn(4, 4, 2, 2)), ValueError, r"neighbours <= log2\(nblocks\) \+ 1"),
        (lambda: Toeplitz(torch.randn(3), torch.randn(2).float()), TypeError, "column and row must have one dtype"),
        (lambda: Product(()), TypeError, "factors must be a tuple of structures"),
        (lambda: Diagonal(torch.randn(3))(torch.randn(4)), ValueError, r"x must be \(\.\.\., 3\) for a 3 × 3 Diagonal"),
        (lambda: Diagonal(torch.randn(3)) @ torch.randn(4, 2), ValueError, r"needs x \(\.\.\., 3, b\)"),
        (lambda: Diagonal(torch.randn(3).to(torch.complex128)).to(dtype=torch.float32), TypeError, "imaginary part"),
        (lambda: Diagonal(torch.randn(3)).to(dtype=torch.int64), TypeError, "dtype must be floating point or complex"),
        (lambda: Diagonal(torch.randn(3)) @ 3, TypeError, "unsupported operand"),
    ],
)
def test_bad_input(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_bad_files(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(FileNotFoundError, match="no file"):
        mw.structures.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot read a structure from"):
        mw.structures.load(path)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"was not written by milkweed\.structures\.save"):
        mw.structures.load(path)
    save_file({"a": torch.ones(1)}, path, {"milkweed.structure": '{"class": "Monarc", "fields": {}}'})
    with pytest.raises(ValueError, match="did you mean 'Monarch'"):
        mw.structures.load(path)
    parts = {"left": {"tensor": "a", "complex": False}, "right": {"tensor": "b", "complex": False}}
    described = json.dumps({"class": "LowRank", "fields": parts})
    save_file(
        {"a": torch.ones(2, 1), "b": torch.ones(1, 2, dtype=torch.complex64)}, path, {"milkweed.structure": described}
    )
    with pytest.raises(
        ValueError, match=r"tensors of one LowRank must have one dtype; got torch.complex64, torch.float"
    ):
        mw.structures.load(path)
    with pytest.raises(TypeError, match="cannot save a Odd"):
        mw.structures.save(type("Odd", (Diagonal,), {})(torch.ones(2)), path)


def test_deep_products_answer_at_once():
    matrix = mw.structures.Diagonal(torch.randn(4))
    for _ in range(60):
        matrix = mw.structures.Product((matrix,))
    assert matrix.shape == (4, 4)


@pytest.mark.parametrize("description", ["null", "3", "[]", '{"tensor": "right", "complex": true}'])
def test_files_that_describe_no_structure(tmp_path, description):
    from safetensors.torch import save_file

    path = tmp_path / "file.safetensors"
    save_file({"right": torch.randn(3, 3)}, path, {"milkweed.structure": description})
    with pytest.raises(ValueError, match="cannot read a structure"):
        mw.structures.load(path)


def test_files_nested_too_deeply(tmp_path):
    from safetensors.torch import save_file

    inner = '{"class": "Diagonal", "fields": {"entries": {"tensor": "a", "complex": false}}}'
    for _ in range(3000):
        inner = '{"class": "Product", "fields": {"factors": [' + inner + '], "crop": null}}'
    path = tmp_path / "file.safetensors"
    save_file({"a": torch.ones(3)}, path, {"milkweed.structure": inner})
    with pytest.raises(ValueError, match="nested too deeply"):
        mw.structures.load(path)


def test_to_takes_a_dtype_as_tensors_do():
    matrix = mw.structures.Diagonal(torch.ones(3))
    assert matrix.to(torch.float64).dtype == torch.float64


def test_a_padded_matrix_says_why_it_has_no_inverse():
    matrix = mw.structures.project_monarch(torch.randn(30, 30), 4).matrix
    with pytest.raises(ValueError, match=r"padded inside; use matrix.to_dense"):
        matrix.solve(torch.randn(30))
    with pytest.raises(ValueError, match="entry of 0"):
        mw.structures.Diagonal(torch.tensor([1.0, 0.0])).inverse()


def test_files_hold_what_they_describe_once(tmp_path):
    from safetensors.torch import save_file

    part = {"class": "Diagonal", "fields": {"entries": {"tensor": "a", "complex": False}}}
    path = tmp_path / "file.safetensors"
    for factors, message in (([part] * 2, "'a' is not stored, or is described twice"), ([part], "holds 'b', which")):
        described = {"class": "Product", "fields": {"factors": factors, "crop": None}}
        tensors = {"a": torch.ones(3)} | ({} if len(factors) == 2 else {"b": torch.ones(3)})
        save_file(tensors, path, {"milkweed.structure": json.dumps(described)})
        with pytest.raises(ValueError, match=message):
            mw.structures.load(path)
    save_file({"a": torch.ones(3)}, path, {"milkweed.structure": '{"class": "Diagonal", "class": "Chain"}'})
    with pytest.raises(ValueError, match="the key 'class' is there twice"):
        mw.structures.load(path)
