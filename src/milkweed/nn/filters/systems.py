"""Discrete linear systems, one per channel, in the forms in which layers need them: kernel, states, single steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from milkweed import ops, ssm
from milkweed.ops import pairs
from milkweed.ops.backends import arranged_for_export


class KernelSystem(ABC):
    """A causal filter of each of H channels with R readouts, known by its kernels alone."""

    @abstractmethod
    def kernel(self, length: int) -> Tensor:
        """What an impulse gives at l = 0 .. L - 1: (R, H, L)."""


class LinearSystem(KernelSystem):
    """x_t = Ā x_{t-1} + B̄ u_t and y_t = C x_t for each of H channels, with R readouts C; its kernel is C Ā^l B̄."""

    b: Tensor

    @property
    @abstractmethod
    def state_shape(self) -> tuple[int, ...]:
        """The state of one sequence: (H, ...)."""

    @abstractmethod
    def response(self, state: Tensor, length: int) -> Tensor:
        """C Ā^(l+1) x for l = 0 .. L - 1, what a state (B, H, ...) adds to the outputs: (B, R, H, L)."""

    @abstractmethod
    def driven(self, u: Tensor) -> Tensor:
        """The state that inputs (B, H, L) leave behind, from zero: (B, H, ...)."""

    @abstractmethod
    def decayed(self, state: Tensor, steps: Tensor) -> Tensor:
        """Ā^steps x for states (B, H, ...) and steps (B,)."""

    @abstractmethod
    def stepping(self) -> tuple[Tensor, ...]:
        """What a step needs, real tensors, computed once."""

    @staticmethod
    @abstractmethod
    def step(u: Tensor, state: Tensor, *constants: Tensor) -> tuple[Tensor, Tensor]:
        """One step from u (B, H), with the constants of ``stepping``: y (B, R, H) and the next state."""


@dataclass(frozen=True)
class DiagonalSystem(LinearSystem):
    """Ā = exp(exponent), mode by mode, in real arithmetic."""

    exponent: Tensor  # (H, N', 2)
    b: Tensor  # (H, N', 2), B̄
    c: Tensor  # (R, H, N', 2); outputs are twice the real part, for conjugate pairs of which one is stored

    @property
    @override
    def state_shape(self) -> tuple[int, ...]:
        return tuple(self.exponent.shape)

    @override
    def kernel(self, length: int) -> Tensor:
        return ops.diagonal_ssm_kernel(pairs.multiply(self.c, self.b), self.exponent, length)

    @override
    def response(self, state: Tensor, length: int) -> Tensor:
        after_one = pairs.multiply(pairs.multiply(self.c, pairs.exp(self.exponent)), state[:, None])
        return ops.diagonal_ssm_kernel(after_one, self.exponent, length)

    @override
    def driven(self, u: Tensor) -> Tensor:
        return pairs.multiply(ops.diagonal_ssm_state(u, self.exponent), self.b)

    @override
    def decayed(self, state: Tensor, steps: Tensor) -> Tensor:
        return pairs.multiply(pairs.exp_of_steps(self.exponent, steps[:, None, None]), state)

    @override
    def stepping(self) -> tuple[Tensor, Tensor, Tensor]:
        # C (R, H, 2 N') for the real numbers of a state.
        return pairs.exp(self.exponent), self.b, (self.c * self.c.new_tensor([2.0, -2.0])).flatten(-2)

    @staticmethod
    @override
    def step(u: Tensor, state: Tensor, *constants: Tensor) -> tuple[Tensor, Tensor]:
        a, b, c = constants
        if arranged_for_export():  # few other runtimes have complex numbers
            state = pairs.multiply(a, state) + b * u[..., None, None]
            return (c * state.flatten(-2)[:, None]).sum(-1), state
        # As complex numbers, which take fewer calls.
        drive = torch.view_as_complex(b) * u[..., None]
        z = torch.addcmul(drive, torch.view_as_complex(a), torch.view_as_complex(state.contiguous()))
        state = torch.view_as_real(z)
        return (c * state.flatten(-2)[:, None]).sum(-1), state


@dataclass(frozen=True)
class SoftmaxSystem(KernelSystem):
    """The DSS_softmax kernel: it is normalised over the length, so no recurrence can know it from the start."""

    A: Tensor  # (H, N', 2)
    exponent: Tensor  # (H, N', 2), A times the step
    c: Tensor  # (R, H, N', 2); outputs are twice the real part, for conjugate pairs of which one is stored
    growing: bool  # Whether some Re A may be above 0

    @override
    def kernel(self, length: int) -> Tensor:
        return ssm.softmax_kernel(self.c, self.A, self.exponent, length, growing=self.growing)


@dataclass(frozen=True)
class DenseSystem(LinearSystem):
    """Any real Ā."""

    a: Tensor  # (H, N, N)
    b: Tensor  # (H, N)
    c: Tensor  # (R, H, N)

    @property
    @override
    def state_shape(self) -> tuple[int, ...]:
        return tuple(self.b.shape)

    @override
    def kernel(self, length: int) -> Tensor:
        return ops.dense_ssm_kernel(self.a, self.b, self.c, length)

    @override
    def response(self, state: Tensor, length: int) -> Tensor:
        after_one = torch.einsum("hmn,bhn->bhm", self.a, state)
        return ops.dense_ssm_kernel(self.a, after_one[:, None], self.c, length)

    @override
    def driven(self, u: Tensor) -> Tensor:
        return ops.dense_ssm_state(u, self.a, self.b)

    @override
    def decayed(self, state: Tensor, steps: Tensor) -> Tensor:
        return ops.dense_ssm_advance(state, self.a, steps)

    @override
    def stepping(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.a, self.b, self.c

    @staticmethod
    @override
    def step(u: Tensor, state: Tensor, *constants: Tensor) -> tuple[Tensor, Tensor]:
        a, b, c = constants
        if arranged_for_export():  # other runtimes turn a over in every step for the sum below
            state = (a @ state[..., None])[..., 0] + b * u[..., None]
            return (c * state[:, None]).sum(-1), state
        state = torch.einsum("hmn,bhn->bhm", a, state) + b * u[..., None]
        return torch.einsum("rhn,bhn->brh", c, state), state


@dataclass(frozen=True)
class CauchySystem(DenseSystem):
    """A bilinearly discretised diagonal minus low-rank system, whose kernels are computed by Cauchy sums."""

    Lambda: Tensor  # (H, N/2) complex, with negative real part
    P: Tensor  # (rank, H, N/2) complex
    B: Tensor  # (H, N/2) complex
    dt: Tensor  # (H,)

    @override
    def kernel(self, length: int) -> Tensor:
        if arranged_for_export():  # few other runtimes have complex numbers
            return super().kernel(length)
        # c reads the real state [Re z, Im z]: it is [2 Re C, -2 Im C].
        re, im = (self.c / 2).chunk(2, -1)
        return ssm.cauchy_kernel(self.Lambda, self.P, self.B, torch.complex(re, -im), self.dt, length)
