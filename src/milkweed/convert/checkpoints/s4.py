"""Layers of the state-spaces/s4 repository, as this library's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from milkweed.nn import S4D

_MINIMAL_KEYS = {
    "kernel.C",
    "kernel.log_dt",
    "kernel.log_A_real",
    "kernel.A_imag",
    "D",
    "output_linear.0.weight",
    "output_linear.0.bias",
}


def load_s4d_minimal(state: Mapping[str, Tensor]) -> S4D:
    """Make an S4D layer from a state dict of the minimal S4D (``models/s4/s4d.py``).

    Args:
        state: Its tensors: ``kernel.C`` (H, N/2, 2), ``kernel.log_dt`` (H), ``kernel.log_A_real`` and
            ``kernel.A_imag`` (H, N/2), ``D`` (H), ``output_linear.0.weight`` (2 H, H, 1) and ``.bias`` (2 H). Read
            files with safetensors or ``torch.load(weights_only=True)``.

    Returns:
        A unidirectional layer on (B, L, H) with the original's outputs, in evaluation mode.

    Raises:
        ValueError: Keys are missing or left over, or a shape does not fit.

    Source:
        state-spaces/s4 at e757cef. The original works on (B, H, L).
    """
    if set(state) != _MINIMAL_KEYS:
        missing, extra = sorted(_MINIMAL_KEYS - set(state)), sorted(set(state) - _MINIMAL_KEYS)
        raise ValueError(f"not a minimal S4D state dict: missing {missing}, unexpected {extra}")
    if state["kernel.C"].ndim != 3 or state["kernel.C"].shape[-1] != 2:
        raise ValueError(f"kernel.C must be (H, N/2, 2) real pairs; got shape {tuple(state['kernel.C'].shape)}")
    d_model, pairs, _ = state["kernel.C"].shape
    layer = S4D(d_model, 2 * pairs, init="lin", dtype=state["kernel.C"].dtype)
    renamed = {
        "C": state["kernel.C"][None],
        "log_dt": state["kernel.log_dt"],
        "log_A_real": state["kernel.log_A_real"],
        "A_imag": state["kernel.A_imag"],
        "D": state["D"],
        "output.weight": state["output_linear.0.weight"].flatten(1),
        "output.bias": state["output_linear.0.bias"],
    }
    try:
        layer.load_state_dict({name: torch.as_tensor(value) for name, value in renamed.items()})
    except RuntimeError as error:
        raise ValueError(f"the tensors do not make one S4D layer: {error}") from error
    return layer.eval()
