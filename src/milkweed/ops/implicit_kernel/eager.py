"""The network over blocks of lags that stay in cache; README.md derives it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from milkweed.ops._common import compute_dtype, register_differentiable, rows_per_block, slices, without_autocast
from milkweed.ops._huge_pages import on_huge_pages
from milkweed.ops.implicit_kernel import reference

# One block of kernels. Half of it and twice as much measure the same.
_BLOCK_BYTES = 2**20
# Fewer lags than this leave matrix products too narrow.
_LEAST_LAGS = 256


class _Plan:
    """The network in the dtype of computation, with time along the memory, and its blocks of lags."""

    def __init__(self, features: Tensor, frequency: Tensor, network: Sequence[Tensor], decay: Tensor) -> None:
        self.dtype = compute_dtype(features, frequency, decay, *network)
        self.features = features.to(self.dtype)
        self.frequency = frequency.to(self.dtype)[:, None]
        *hidden, last = (tensor.to(self.dtype) for tensor in network)
        self.weights, self.biases, self.last = hidden[::2], [bias[:, None] for bias in hidden[1::2]], last
        # The frequencies scale the weights instead of the much larger products.
        self.scaled = [
            (self.frequency * weight, self.frequency * bias)
            for weight, bias in zip(self.weights, self.biases, strict=True)
        ]
        self.decay = decay.to(torch.float64)[:, None]
        self.length = features.shape[0]
        row_bytes = decay.shape[0] * (8 if self.dtype == torch.float64 else 4)
        self.step = rows_per_block(self.length, row_bytes, features.device, budget=_BLOCK_BYTES, least=_LEAST_LAGS)
        self.envelope = self._envelope(torch.arange(min(self.step, self.length), device=features.device))

    def _envelope(self, lags: Tensor) -> Tensor:
        return torch.exp((-self.decay * lags).to(self.dtype))

    def blocks(self) -> Iterator[slice]:
        return slices(self.length, self.step)

    def start_of_envelope(self, lags: slice) -> Tensor:
        """(D, 1): exp(-decay (m + n)) is the product of this, for the block's first lag m, and `envelope` at n."""
        return self._envelope(torch.full((1,), lags.start, device=self.features.device))

    def hidden(self, lags: slice) -> tuple[list[Tensor], list[Tensor]]:
        """The arguments (W, n) of the three sines, and what goes into each layer."""
        inputs, arguments = [self.features[lags].T], []
        for weight, bias in self.scaled:
            arguments.append(torch.addmm(bias, weight, inputs[-1]))
            inputs.append(arguments[-1].sin())
        return arguments, inputs


@torch.library.custom_op("milkweed::implicit_kernel", mutates_args=())
def implicit_kernel(
    features: Tensor,
    frequency: Tensor,
    weight_0: Tensor,
    bias_0: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    weight_3: Tensor,
    decay: Tensor,
) -> Tensor:
    """Evaluate the kernels block by block; the arguments are those of `milkweed.ops.implicit_kernel`."""
    network = (weight_0, bias_0, weight_1, bias_1, weight_2, bias_2, weight_3)
    with without_autocast(features):
        plan = _Plan(features, frequency, network, decay)
        out = on_huge_pages(torch.empty(decay.shape[0], plan.length, dtype=plan.dtype, device=features.device))
        for lags in plan.blocks():
            _, inputs = plan.hidden(lags)
            block = (plan.start_of_envelope(lags) * plan.last) @ inputs[-1]
            torch.mul(block, plan.envelope[:, : block.shape[1]], out=out[:, lags])
    return out


@implicit_kernel.register_fake
def _(features: Tensor, *others: Tensor) -> Tensor:
    return features.new_empty(others[-1].shape[0], features.shape[0], dtype=compute_dtype(features, *others))


@torch.library.custom_op("milkweed::implicit_kernel_backward", mutates_args=())
def _backward(
    grad: Tensor,
    features: Tensor,
    frequency: Tensor,
    network: Sequence[Tensor],
    decay: Tensor,
    needs_features: bool,
    needs_decay: bool,
) -> list[Tensor]:
    with without_autocast(features):
        plan = _Plan(features, frequency, network, decay)
        return _gradients_by_blocks(
            grad, plan, _empty_gradients(features, frequency, network, decay), needs_features, needs_decay
        )


def _gradients_by_blocks(
    grad: Tensor, plan: _Plan, grads: list[Tensor], needs_features: bool, needs_decay: bool
) -> list[Tensor]:
    grad_features, grad_frequency, *grad_network, grad_decay = grads
    last_sum = torch.zeros_like(plan.last)
    decay_sum = torch.zeros_like(plan.last[:, 0])
    # By the arguments of the sines: products with the layer's inputs, and sums over the lags.
    weight_sums = [torch.zeros_like(weight) for weight in plan.weights]
    bias_sums = [torch.zeros_like(bias) for bias in plan.biases]
    for lags in plan.blocks():
        arguments, inputs = plan.hidden(lags)
        start = plan.start_of_envelope(lags)
        upstream = grad[:, lags] * plan.envelope[:, : lags.stop - lags.start] * start
        last_sum.addmm_(upstream, inputs[-1].T)
        if needs_decay:
            numbers = torch.arange(lags.start, lags.stop, device=grad.device)
            decay_sum -= ((plan.last @ inputs[-1]).mul_(upstream) @ numbers.to(plan.dtype)).reshape(-1)
        dx = plan.last.T @ upstream
        for i in (2, 1, 0):
            d_argument = dx.mul_(arguments[i].cos_())
            weight_sums[i].addmm_(d_argument, inputs[i].T)
            bias_sums[i] += d_argument.sum(1, keepdim=True)
            if i or needs_features:
                dx = plan.scaled[i][0].T @ d_argument
        if needs_features:
            grad_features[lags] = dx.T
    frequency_sum = torch.zeros_like(plan.frequency)
    for i, (weight_sum, bias_sum) in enumerate(zip(weight_sums, bias_sums, strict=True)):
        frequency_sum += (weight_sum * plan.weights[i]).sum(1, keepdim=True) + bias_sum * plan.biases[i]
        grad_network[2 * i].copy_(plan.frequency * weight_sum)
        grad_network[2 * i + 1].copy_((plan.frequency * bias_sum)[:, 0])
    grad_network[-1].copy_(last_sum)
    grad_frequency.copy_(frequency_sum[:, 0])
    grad_decay.copy_(decay_sum)
    return grads


def _empty_gradients(features: Tensor, frequency: Tensor, network: Sequence[Tensor], decay: Tensor) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (features, frequency, *network, decay)]


@_backward.register_fake
def _(
    grad: Tensor, features: Tensor, frequency: Tensor, network: Sequence[Tensor], decay: Tensor, *needs: bool
) -> list[Tensor]:
    return _empty_gradients(features, frequency, network, decay)


def _gradients(grad: Tensor, inputs: Sequence[Any], kept: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor]:
    features, frequency, *network, decay = inputs
    return _backward(grad, features, frequency, network, decay, needed[0], needed[-1])


register_differentiable(implicit_kernel, reference.implicit_kernel, _gradients)


@register_flop_formula(torch.ops.milkweed.implicit_kernel)
def _flops(features_shape: Any, frequency_shape: Any, *args: Any, **kwargs: Any) -> int:
    (length, inputs), (width,), channels = features_shape, frequency_shape, args[-1][0]
    return int(2 * length * width * (inputs + 2 * width + channels))


@register_flop_formula(torch.ops.milkweed.implicit_kernel_backward)
def _backward_flops(grad_shape: Any, features_shape: Any, frequency_shape: Any, *args: Any, **kwargs: Any) -> int:
    (channels, length), (_, inputs), (width,) = grad_shape, features_shape, frequency_shape
    return int(2 * length * width * (2 * inputs + 6 * width + 2 * channels))
