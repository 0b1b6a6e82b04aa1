"""The definition, in differentiable torch functions."""

from __future__ import annotations

import torch
from torch import Tensor

from milkweed.ops._common import compute_dtype, without_autocast


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
    """Evaluate the network and its envelope over all lags at once: (D, L)."""
    layers = ((weight_0, bias_0), (weight_1, bias_1), (weight_2, bias_2))
    dtype = compute_dtype(features, frequency, weight_3, decay, *(p for layer in layers for p in layer))
    with without_autocast(features):
        x = features.to(dtype)
        for weight, bias in layers:
            x = torch.sin(frequency.to(dtype) * (x @ weight.to(dtype).T + bias.to(dtype)))
        lags = torch.arange(features.shape[0], device=features.device)
        return weight_3.to(dtype) @ x.T * torch.exp(-decay.to(dtype)[:, None] * lags)
