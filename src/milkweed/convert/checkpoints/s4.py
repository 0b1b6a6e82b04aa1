"""Layers of the state-spaces/s4 repository as layers of this library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from milkweed._arguments import checked
from milkweed.convert.checkpoints.numbers import stored_numbers
from milkweed.nn import S4, S4D
from milkweed.nn.filters import S4Filter

_MINIMAL_KEYS = {
    "kernel.C",
    "kernel.log_dt",
    "kernel.log_A_real",
    "kernel.A_imag",
    "D",
    "output_linear.0.weight",
    "output_linear.0.bias",
}
# What a full layer holds beside its kernel, and inside it, by the names of version 4.
_OUTER_KEYS = ("D", "output_linear.0.weight", "output_linear.0.bias")
_KERNEL_KEYS = ("inv_dt", "A_real", "A_imag", "B", "C")
_LOW_RANK_KEYS = ("P", "l_kernel")
_RENAMED = {"log_dt": "inv_dt", "inv_w_real": "A_real", "log_w_real": "A_real", "w_imag": "A_imag", "L": "l_kernel"}


@checked
def load_s4d_minimal(state: Mapping[str, Tensor]) -> S4D:
    """Make an S4D layer from a state dict of the minimal S4D (``models/s4/s4d.py``).

    Args:
        state: Its tensors: ``kernel.C`` (H, N/2, 2), ``kernel.log_dt`` (H), ``kernel.log_A_real`` and
            ``kernel.A_imag`` (H, N/2), ``D`` (H), ``output_linear.0.weight`` (2 H, H, 1) and ``.bias`` (2 H). Read
            files with safetensors or ``torch.load(weights_only=True)``.

    Returns:
        A unidirectional layer on (B, L, H) with the original's outputs, in evaluation mode.

    Raises:
        ValueError: Keys are missing or left over, a shape does not fit, or a tensor is not of finite real numbers.

    Source:
        state-spaces/s4 at e757cef. The original works on (B, H, L).
    """
    if set(state) != _MINIMAL_KEYS:
        raise ValueError(f"not a minimal S4D state dict: {_difference(_MINIMAL_KEYS, set(state))}")
    state = {key: stored_numbers(key, value) for key, value in state.items()}
    if state["kernel.C"].ndim != 3 or state["kernel.C"].shape[-1] != 2:
        raise ValueError(f"kernel.C must be (H, N/2, 2) real pairs; got shape {tuple(state['kernel.C'].shape)}")
    state = {name: torch.as_tensor(value) for name, value in state.items()}
    d_model, half, _ = state["kernel.C"].shape
    layer = S4D(d_model, 2 * half, init="lin", device="meta", dtype=state["kernel.C"].dtype)
    renamed = {
        "C": state["kernel.C"][None],
        "log_dt": state["kernel.log_dt"],
        "A_real": state["kernel.log_A_real"],
        "A_imag": state["kernel.A_imag"],
        "D": state["D"][None],
    }
    return _filled(layer, renamed, state["output_linear.0.weight"], state["output_linear.0.bias"])


@checked
def load_s4(state: Mapping[str, Tensor], **options: Any) -> S4 | S4D:
    """Make an S4 or S4D layer from a state dict of the full S4 block, version 3 or 4.

    Sizes, heads, directions, groups of shared A and B, and whether A has a low-rank part, are read off the shapes. The
    readout of a low-rank layer is stored for one kernel length, from which it is freed: C = C̃ (I - Āᴸ)⁻¹.

    Args:
        state: Its tensors, keys ``layer.kernel.…``, ``layer.D`` and ``output_linear.0.…`` in version 4, or
            ``kernel.kernel.…``, ``D`` and ``output_linear.…`` in version 3. Cut off what stands before them.
        **options: What tensors do not determine, as arguments of [`milkweed.nn.S4`][] or [`milkweed.nn.S4D`][]: e.g.
            ``discretization`` where it is not zoh (diagonal) or bilinear (low rank), ``activation``, ``decay`` (theirs:
            ``real_transform``) or ``output`` where it is not GLU.

    Returns:
        A layer on (B, L, H) with the original's outputs, in evaluation mode.

    Raises:
        ValueError: Keys are missing or left over, a shape does not fit, or a tensor is not of finite real numbers.

    Source:
        state-spaces/s4 at e757cef, and its conversion from version 3. The original stores A with the opposite sign of
        its imaginary part. It regularises the ``"dss"`` kernel elsewhere, see [`milkweed.ssm.softmax_kernel`][], which
        shows where |A| (1 - e^(dt L Re A)) is not far above 3e-4.
    """
    tensors = _by_version_4(state)
    low_rank = "P" in tensors
    expected = {*_OUTER_KEYS, *_KERNEL_KEYS, *(_LOW_RANK_KEYS if low_rank else ())}
    if set(tensors) != expected:
        raise ValueError(f"not a state dict of an S4 block: {_difference(expected, set(tensors))}")
    C, D, inv_dt = tensors["C"], tensors["D"], tensors["inv_dt"]
    if C.ndim != 4 or D.ndim != 2 or C.shape[-1] != 2 or inv_dt.ndim != 2 or C.shape[0] not in (len(D), 2 * len(D)):
        raise ValueError(
            f"C must be (channels or twice as many, H, N/2, 2), D (channels, H) and inv_dt (H, 1 or N/2); "
            f"got {tuple(C.shape)}, {tuple(D.shape)} and {tuple(inv_dt.shape)}"
        )
    channels, d_model = D.shape
    found: dict[str, Any] = {
        "d_state": 2 * C.shape[2],
        "n_ssm": tensors["A_real"].shape[0],
        "channels": channels,
        "bidirectional": C.shape[0] == 2 * channels,
        "dtype": C.dtype,
        "device": "meta",  # what the layer would start from takes long, and is not wanted
    }
    tied = inv_dt.shape[1] == 1
    renamed = {
        "log_dt": inv_dt[:, 0] if tied else inv_dt,
        "A_real": tensors["A_real"],
        "A_imag": -tensors["A_imag"],
        "B": tensors["B"].squeeze(0),
        "C": C,
        "D": D,
    }
    output = (tensors["output_linear.0.weight"], tensors["output_linear.0.bias"])
    if not low_rank:
        if options.get("discretization") == "dss":
            renamed["C"] = C / 2  # of this kernel alone the original takes the real part, not twice that
        return _filled(S4D(d_model, **found, init="lin", b_init="ones", dt_tie=tied, **options), renamed, *output)
    layer = S4(d_model, **found, rank=tensors["P"].shape[0], **options)
    _filled(layer, renamed | {"P": tensors["P"]}, *output)
    length = tensors["l_kernel"]
    if length.numel() != 1 or length.is_floating_point() or length.is_complex() or int(length) < 0:
        raise ValueError(f"l_kernel must be one integer of at least 0; got {length}")
    _free_of_length(layer.filter, int(length))
    return layer


def _by_version_4(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by short names of version 4: ``C`` of the kernel, ``D``, ``output_linear.0.weight``, ..."""
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        path = key.removeprefix("layer.").removeprefix("kernel.").removeprefix("kernel.")
        name = _RENAMED.get(path, path)
        if path.startswith("output_linear.") and not path.startswith("output_linear.0."):
            name = path.replace("output_linear.", "output_linear.0.", 1)
        value = stored_numbers(key, value, whole=name == "l_kernel")
        if path == "log_dt":
            value = value.unsqueeze(-1)
        if name in tensors:
            raise ValueError(f"{key!r} is there twice, under two names; give the tensors of one layer")
        tensors[name] = -value if path == "w_imag" else value
    return tensors


@torch.no_grad()
def _free_of_length(layer: S4Filter, length: int) -> None:
    """Solve C̃ = C (I - Ā^L) for C, in float64; a length of 0 says that C is stored as it is."""
    if length == 0:
        return
    exact = S4Filter(layer.d_model, layer.d_state, **_shape_options(layer), device="meta", dtype=torch.float64)
    exact.load_state_dict({name: tensor.double() for name, tensor in layer.state_dict().items()}, assign=True)
    system = exact.system()
    seen = torch.eye(layer.d_state, dtype=torch.float64) - torch.linalg.matrix_power(system.a, length)
    free = torch.linalg.solve(seen, system.c.transpose(0, 1), left=False).transpose(0, 1)
    re, im = (free / 2).chunk(2, -1)
    layer.C.copy_(torch.stack([re, -im], -1))


def _shape_options(layer: S4Filter) -> dict[str, Any]:
    names = ("init", "rank", "discretization", "n_ssm", "decay", "channels", "bidirectional")
    return {name: getattr(layer, name) for name in names}


def _filled(layer: Any, system: Mapping[str, Tensor], weight: Tensor, bias: Tensor) -> Any:
    """A layer on the meta device with copies of the tensors of its filter and its output layer, in its dtypes."""
    own = layer.state_dict()
    tensors = {f"filter.{name}": torch.as_tensor(value) for name, value in system.items()}
    tensors |= {"mix.output.weight": weight.flatten(1), "mix.output.bias": bias}
    copies = {
        # What does not fit is refused below, uncopied.
        name: value.to("cpu", own[name].dtype, copy=True).contiguous()
        if name in own and own[name].shape == value.shape
        else value
        for name, value in tensors.items()
    }
    try:
        layer.load_state_dict(copies, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the tensors do not make one {type(layer).__name__} layer: {error}") from error
    return layer.eval()


def _difference(expected: set[str], found: set[str]) -> str:
    return f"missing {sorted(expected - found)}, unexpected {sorted(found - expected)}"
