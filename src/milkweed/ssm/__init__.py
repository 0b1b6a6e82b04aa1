"""The theory of state spaces as functions: HiPPO matrices and bases, initial values, discretisation, timescales."""

from milkweed.ssm.basis import basis, basis_functions, measure
from milkweed.ssm.cauchy import cauchy_kernel
from milkweed.ssm.diagonal import COMBINATIONS, DIAGONAL_INITS, diagonal
from milkweed.ssm.discretize import DISCRETIZATIONS, discretize, discretize_diagonal, discretize_dplr
from milkweed.ssm.hippo import BASES, HippoBasis, hippo
from milkweed.ssm.nplr import NPLR, nplr, real_dplr
from milkweed.ssm.reconstruct import Reconstruction
from milkweed.ssm.softmax import softmax_kernel
from milkweed.ssm.timescale import log_timescale

__all__ = [
    "BASES",
    "COMBINATIONS",
    "DIAGONAL_INITS",
    "DISCRETIZATIONS",
    "NPLR",
    "HippoBasis",
    "Reconstruction",
    "basis",
    "basis_functions",
    "cauchy_kernel",
    "diagonal",
    "discretize",
    "discretize_diagonal",
    "discretize_dplr",
    "hippo",
    "log_timescale",
    "measure",
    "nplr",
    "real_dplr",
    "softmax_kernel",
]
