import numpy as np
import pytest
import torch

from milkweed.plots.monarch import (
    MonarchFit,
    block_diagonal_picture,
    fit_monarch,
    fitting_nblocks,
    matrix_picture,
    save_monarch,
)

PNG = b"\x89PNG\r\n\x1a\n"


def png_size(path):
    content = path.read_bytes()
    assert content.startswith(PNG)
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_blocks_stand_at_their_place():
    blocks = torch.arange(1.0, 19).view(3, 2, 3)
    picture = block_diagonal_picture(blocks)
    assert picture.shape == (6, 9)
    assert np.array_equal(np.nan_to_num(picture), torch.block_diag(*blocks).numpy())
    assert np.array_equal(np.isnan(picture), torch.block_diag(*torch.ones_like(blocks)).numpy() == 0)


def test_large_blocks_keep_their_structure():
    blocks = torch.randn(4, 100, 50)
    picture = block_diagonal_picture(blocks, most=40)
    assert picture.shape == (40, 40)
    stored = np.kron(np.eye(4), np.ones((10, 10))) == 1
    assert np.array_equal(np.isfinite(picture), stored)
    # 100 × 50 entries in 10 × 10 cells: cell (0, 0) of the last block shows its largest entry, sign included.
    corner = blocks[3, :10, :5].flatten()
    assert picture[30, 30] == corner[corner.abs().argmax()].item()


def test_small_matrices_are_drawn_as_they_are():
    matrix = torch.randn(5, 7, dtype=torch.float64)
    assert np.array_equal(matrix_picture(matrix), matrix.float().numpy())


def test_complex_matrices_are_drawn_by_their_magnitude():
    matrix = torch.tensor([[3 + 4j, -2], [0, 1j]])
    assert matrix_picture(matrix).tolist() == [[5, 2], [0, 1]]


@pytest.mark.parametrize("shape", [(1000, 300), (257, 256), (10, 999)])
def test_cells_show_the_largest_entry_around(shape):
    matrix = torch.zeros(shape)
    matrix[shape[0] // 2, shape[1] // 3] = -7
    picture = matrix_picture(matrix)
    assert picture.shape == (min(shape[0], 256), min(shape[1], 256))
    row, column = np.unravel_index(picture.argmin(), picture.shape)
    assert picture.min() == -7
    assert picture.max() == 0
    assert row / picture.shape[0] == pytest.approx(0.5, abs=0.01 + 1 / shape[0])
    assert column / picture.shape[1] == pytest.approx(1 / 3, abs=0.01)


def test_numbers_of_blocks_that_fit():
    assert fitting_nblocks((64, 64)) == [1, 2, 4, 8]
    assert fitting_nblocks((10, 768)) == [1, 2]
    assert fitting_nblocks((64, 64), rank=16) == [1, 2, 4]
    assert fitting_nblocks((64, 64), rank=65) == []


@pytest.mark.parametrize(("m", "n"), [(12, 20), (20, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_one_block_of_full_rank_is_the_matrix(m, n, dtype):
    dense = torch.randn(m, n, dtype=dtype)
    fit = fit_monarch(dense, 1)
    torch.testing.assert_close(fit.matrix.to_dense(), dense)
    assert fit.relative_error == 0
    assert fit.nblocks == 1
    # That is what its shapes say, too.
    assert fit.parameters == min(m, n) * (m + n)
    assert fit.share == fit.parameters / (m * n)


def truncated_slices(dense, nblocks, rank):
    """‖W − M‖ / ‖W‖ where M keeps ``rank`` singular values of each slice: rows ≡ l, columns of block k."""
    lost = 0.0
    width = dense.shape[1] // nblocks
    for k in range(nblocks):
        for l in range(nblocks):  # noqa: E741 - the paper's letter
            values = np.linalg.svd(dense[l::nblocks, k * width : (k + 1) * width], compute_uv=False)
            lost += (values[rank:] ** 2).sum()
    return np.sqrt(lost) / np.linalg.norm(dense)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize(("nblocks", "rank", "kept"), [(2, None, 12), (4, None, 3), (4, 2, 2), (6, 1, 1)])
def test_errors_are_those_of_truncated_slices(dtype, nblocks, rank, kept):
    dense = torch.randn(48, 72, dtype=dtype)
    expected = truncated_slices(dense.numpy().astype(complex), nblocks, kept)
    fit = fit_monarch(dense, nblocks, rank)
    assert fit.relative_error == pytest.approx(expected, rel=1e-5)
    assert fit.parameters == nblocks * nblocks * kept * (72 + 48) // nblocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(32, 32), (300, 20), (8, 600)])
def test_figure(tmp_path, dtype, shape):
    dense = torch.randn(shape, dtype=dtype)
    fits = [fit_monarch(dense, nblocks) for nblocks in (1, 2)]
    path = tmp_path / "monarch.png"
    save_monarch(dense, fits, 2, path, "a matrix")
    width, height = png_size(path)
    assert width == 1740
    upper = min(max(shape[0] / shape[1], 0.6), 1)
    assert height == pytest.approx(150 * (3.15 * (1 + upper) + 3), abs=1)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("entry", [0.0, 1e-30, 1e15])
def test_figure_of_a_constant_matrix(tmp_path, entry):
    dense = torch.full((6, 6), entry)
    save_monarch(dense, [fit_monarch(dense, 2)], 2, tmp_path / "monarch.png", "constant")
    assert png_size(tmp_path / "monarch.png")


def test_figure_of_a_single_entry(tmp_path):
    dense = torch.ones(1, 1)
    save_monarch(dense, [fit_monarch(dense, 1)], 1, tmp_path / "monarch.png", "one")
    assert png_size(tmp_path / "monarch.png")


def test_many_blocks(tmp_path):
    dense = torch.randn(128, 128)
    save_monarch(dense, [fit_monarch(dense, 128, 1)], 128, tmp_path / "monarch.png", "as many blocks as features")
    assert png_size(tmp_path / "monarch.png")


def test_the_chosen_nblocks_must_be_there(tmp_path):
    dense = torch.randn(8, 8)
    fit = fit_monarch(dense, 2)
    assert isinstance(fit, MonarchFit)
    with pytest.raises(ValueError, match=r"one with nblocks=4; got \[2\]"):
        save_monarch(dense, [fit], 4, tmp_path / "monarch.png", "none")
    assert list(tmp_path.iterdir()) == []
