"""The theory of state spaces as functions: HiPPO matrices, initial values, discretisation, timescales."""

from milkweed.ssm.diagonal import diagonal
from milkweed.ssm.discretize import discretize_diagonal
from milkweed.ssm.hippo import hippo
from milkweed.ssm.timescale import log_timescale

__all__ = ["diagonal", "discretize_diagonal", "hippo", "log_timescale"]
