"""The contract of structures: a matrix whose dense form is known from elsewhere."""

import copy
import pickle

import torch
from torch.autograd import gradcheck

from milkweed import structures


def close(found, expected, tolerance=1e-10):
    dtype = torch.promote_types(found.dtype, expected.dtype)
    torch.testing.assert_close(found.to(dtype), expected.to(dtype), rtol=tolerance, atol=tolerance)


def _draw(*shape, like):
    return torch.randn(*shape, dtype=torch.get_default_dtype() if like.dtype == torch.bool else like.dtype)


def check_products(matrix, dense):
    m, n = matrix.shape
    assert (m, n) == tuple(dense.shape)
    close(matrix.to_dense(), dense)
    dense = matrix.to_dense()
    for lead in [(), (1,), (5,), (2, 3), (0,)]:
        x = _draw(*lead, n, like=matrix)
        close(matrix(x), x @ dense.mT)
        assert matrix(x).dtype == dense.dtype
    x = _draw(n, like=matrix)
    close(matrix @ x, dense @ x)
    x = _draw(3, n, 4, like=matrix)
    close(matrix @ x, dense @ x)
    strided = _draw(4, n, like=matrix).T
    close(matrix @ strided, dense @ strided)
    y = _draw(2, 5, m, like=matrix)
    close(y @ matrix, y @ dense)


def check_related_matrices(matrix, dense):
    close(matrix.T.to_dense(), dense.mT)
    close(matrix.T.T.to_dense(), dense)
    assert type(matrix.conj()) is type(matrix)
    close(matrix.conj().to_dense(), dense.conj())
    close(matrix.H.to_dense(), dense.mH)
    close((matrix.H @ matrix).to_dense(), dense.mH @ dense)
    close((matrix @ matrix.T @ matrix).to_dense(), dense @ dense.mT @ dense)
    close((matrix + matrix).to_dense(), 2 * dense)


def check_copies(matrix, tmp_path):
    expected = matrix.to_dense()
    path = tmp_path / "matrix.safetensors"
    structures.save(matrix, path)
    copies = [pickle.loads(pickle.dumps(matrix)), copy.deepcopy(matrix), structures.load(path)]
    for copied in copies:
        assert repr(copied) == repr(matrix)
        assert torch.equal(copied.to_dense(), expected)


def check_conversions(matrix):
    if matrix.dtype == torch.bool:
        return
    exact, low = matrix.to_dense(), torch.complex64 if matrix.dtype.is_complex else torch.float32
    single = matrix.to(dtype=low)
    assert single.dtype == single.to_dense().dtype == low
    close(single.to_dense(), exact, 1e-4)
    wide = _draw(3, matrix.shape[1], like=matrix)
    assert single(wide).dtype == wide.dtype
    if not matrix.dtype.is_complex:
        assert matrix(wide.to(torch.complex128)).dtype == torch.complex128
        half = matrix.to(dtype=torch.bfloat16)
        x = torch.randn(4, matrix.shape[1], dtype=torch.float32)
        y = half(x.bfloat16())
        assert y.dtype == torch.bfloat16
        assert (y.float() - x @ single.to_dense().T).norm() < 0.05 * (x @ single.to_dense().T).norm()
    assert matrix.to("meta").device.type == "meta"
    assert matrix.to("meta").shape == matrix.shape


def check_gradients(matrix):
    tensors = [t.detach().clone().requires_grad_() for _, t in matrix.named_tensors() if t.dtype == matrix.dtype]
    if not tensors:
        return
    x = _draw(2, matrix.shape[1], like=matrix).requires_grad_()

    def product(x, *tensors):
        remaining = iter(tensors)
        return matrix._map(lambda t: next(remaining) if t.dtype == matrix.dtype else t)(x)

    assert gradcheck(product, (x, *tensors))


def check_counts(matrix, parameters, flops=None):
    assert matrix.num_parameters == parameters
    assert matrix.flops(3) == 3 * matrix.flops()
    if flops is not None:
        assert matrix.flops() == flops


def check_inverse(matrix, dense):
    n = matrix.shape[0]
    close(matrix.inverse().to_dense().to(dense.dtype) @ dense, torch.eye(n), 1e-7)
    for shape in [(n,), (n, 3), (2, n, 3)]:
        b = _draw(*shape, like=matrix)
        found = matrix.solve(b)
        assert found.shape == b.shape
        close(dense @ found.to(dense.dtype), b, 1e-7)
    sign, logarithm = matrix.slogdet()
    expected = torch.linalg.slogdet(dense)
    close(sign, expected.sign, 1e-7)
    close(logarithm, expected.logabsdet, 1e-7)
    if dense.is_complex() and not sign.is_complex():
        assert float(sign) in {-1.0, 1.0}
    elif dense.is_complex() or sign > 0:
        close(matrix.logdet().exp(), torch.linalg.det(dense), 1e-6)
    else:
        assert matrix.logdet().isnan()
