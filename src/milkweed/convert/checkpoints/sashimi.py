"""The SaShiMi backbone of the state-spaces/s4 repository as a model of this library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from milkweed._arguments import checked
from milkweed.convert.checkpoints.numbers import stored_numbers
from milkweed.convert.checkpoints.s4 import load_s4
from milkweed.models import Sashimi
from milkweed.nn import S4, S4D

_FEED_FORWARD = {"ff.0.0": "up", "ff.2": "down"}


@checked
def load_sashimi(
    state: Mapping[str, Tensor], d_input: int, d_output: int, *, encoder: str = "embedding", **options: Any
) -> Sashimi:
    """Make a Sashimi from a state dict of the standalone backbone (``models/sashimi/sashimi.py``), key for key.

    Sizes, poolings and the U-net are read off the tensors. The backbone has no encoder and no head; those of the result
    are new, and may be filled afterwards (``model.encoder``, ``model.head``).

    Args:
        state: Its tensors: ``d_layers.…``, ``c_layers.…``, ``u_layers.…`` and ``norm.…``.
        d_input: Different tokens, or features with ``encoder="linear"``.
        d_output: Outputs per step.
        encoder: As in [`milkweed.models.Sashimi`][].
        **options: What tensors do not determine about the layers, see [`milkweed.convert.checkpoints.s4.load_s4`][].

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: Keys are missing or left over, a shape does not fit, or a tensor is not of finite real numbers.

    Source:
        state-spaces/s4 at e757cef.
    """
    groups = _grouped(state)
    try:
        model, renamed = _rebuilt(groups, d_input, d_output, encoder, options)
        for part in (model.encoder, model.head):
            part.to_empty(device="cpu").reset_parameters()
        fresh = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(("encoder.", "head."))}
        model.load_state_dict({name: tensor.clone() for name, tensor in renamed.items()} | fresh, assign=True)
    except (KeyError, IndexError, RuntimeError) as error:
        raise ValueError(f"the tensors do not make one Sashimi backbone: {error}") from error
    return model.eval()


def _grouped(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by module (``d_layers.0``, ``c_layers.1``, ``u_layers.0.2``, ``norm``) and name inside it."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        match = re.fullmatch(r"([dc]_layers\.\d+|u_layers\.\d+\.\d+|norm)\.(.+)", key)
        if match is None:
            raise ValueError(f"not a Sashimi backbone: unexpected {key!r}")
        groups.setdefault(match[1], {})[match[2]] = stored_numbers(key, value, whole=key.endswith(".l_kernel"))
    return groups


def _rebuilt(
    groups: dict[str, dict[str, Tensor]], d_input: int, d_output: int, encoder: str, options: Mapping[str, Any]
) -> tuple[Sashimi, dict[str, Tensor]]:
    """A model of the same shape, and its tensors under their names here."""
    down, center = _ordered(groups, "d_layers."), _ordered(groups, "c_layers.")
    up = [
        _ordered(groups, f"u_layers.{level}.") for level in range(len({k.split(".")[1] for k in groups if "u_" in k}))
    ]
    pools = [index for index, group in enumerate(down) if "linear.weight" in group]
    before = [down[start + 1 : end] for start, end in zip([-1, *pools[:-1]], pools, strict=True)]
    layers = {id(group): load_s4(_inside(group), **options) for group in _state_spaces(center, before, up)}
    first, d_model = next(iter(layers.values())), len(groups["norm"]["weight"])
    hidden = [group["layer.ff.0.0.weight"] for group in center if "layer.ff.0.0.weight" in group]
    sizes, width = [], d_model
    for index in pools:
        out, into = down[index]["linear.weight"].shape[:2]
        sizes.append((into // width, out // width))
        width = out
    with torch.device("meta"):
        model = Sashimi(
            d_input,
            d_output,
            d_model,
            depth=sum(id(group) in layers for group in center),
            pool=[pool for pool, _ in sizes],
            expand=sizes[0][1] if sizes else 2,
            ff=hidden[0].shape[0] // hidden[0].shape[1] if hidden else 0,
            layer=_spec(first),
            unet=bool(before and before[0]),
            encoder=encoder,
        )
    renamed = {f"norm.{name}": tensor for name, tensor in groups["norm"].items()}
    for level, index in enumerate(pools):
        path = "levels" + ".inner" * level
        renamed |= _linear(f"{path}.down", down[index], "linear.")
        mirrored = up[len(pools) - 1 - level]
        renamed |= _linear(f"{path}.up", mirrored[0], "linear.")
        renamed |= _blocks(f"{path}.before", before[level], layers) | _blocks(f"{path}.after", mirrored[1:], layers)
    return model, renamed | _blocks("levels" + ".inner" * len(pools) + ".blocks", center, layers)


def _ordered(groups: dict[str, dict[str, Tensor]], prefix: str) -> list[dict[str, Tensor]]:
    count = sum(name.startswith(prefix) for name in groups)
    return [groups[f"{prefix}{index}"] for index in range(count)]


def _state_spaces(*parts: Any) -> list[dict[str, Tensor]]:
    """The groups of sequence layers in any nesting of lists."""
    found = []
    for part in parts:
        if isinstance(part, list):
            found += _state_spaces(*part)
        elif any(name.startswith("layer.layer.kernel.") for name in part):
            found.append(part)
    return found


def _inside(group: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("layer."): tensor for name, tensor in group.items() if name.startswith("layer.")}


def _spec(layer: S4 | S4D) -> dict[str, Any]:
    """The layer as plain values, for a network of several widths."""
    low_rank = isinstance(layer, S4)
    own: Any = layer.filter
    spec: dict[str, Any] = {"name": "s4" if low_rank else "s4d", "d_state": own.d_state}
    if own.n_ssm != own.d_model:
        spec["n_ssm"] = own.n_ssm
    if low_rank:
        spec["rank"] = own.rank
    else:
        spec |= {"init": "lin", "b_init": "ones", "dt_tie": own.log_dt.ndim == 1}
    spec |= {name: getattr(own, name) for name in ("discretization", "decay", "channels", "bidirectional")}
    return spec | {"activation": layer.mix.activation, "output": layer.mix.kind}


def _blocks(path: str, groups: list[dict[str, Tensor]], layers: Mapping[int, S4 | S4D]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for index, group in enumerate(groups):
        block = f"{path}.{index}"
        renamed |= {f"{block}.norm.norm.{name}": group[f"norm.{name}"] for name in ("weight", "bias")}
        if id(group) in layers:
            found = layers[id(group)].state_dict()
            renamed |= {f"{block}.layer.{name}": tensor for name, tensor in found.items()}
        else:
            for theirs, ours in _FEED_FORWARD.items():
                renamed |= _linear(f"{block}.layer.{ours}", group, f"layer.{theirs}.")
    return renamed


def _linear(path: str, group: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{path}.weight": group[f"{prefix}weight"].flatten(1), f"{path}.bias": group[f"{prefix}bias"]}
