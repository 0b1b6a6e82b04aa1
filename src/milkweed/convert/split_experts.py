"""Experts that transformers keeps in 3-d parameters, as one linear layer for each expert and matrix.

Its mixtures of experts (Mixtral, Qwen-MoE, DeepSeek, gpt-oss, …) hold ``gate_up_proj`` (experts, 2 hidden, n), or
``up_proj`` (experts, hidden, n) where there is no gate, and ``down_proj`` (experts, n, hidden); in some each matrix is
transposed, has a bias, or has the rows of gate and up by turns. What a class does between the matrices is its own
``_apply_gate``. This is the agreement of transformers' decorator ``use_experts_implementation``, which marks such a
class by the attributes that are read here; transformers itself is not imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_UP, _DOWN = "up_proj", "down_proj"
_BIAS = "_bias"
# No name of these is changed, or taken for part of another tensor, by what transformers does to names in files.
_GATE_LAYER, _UP_LAYER, _DOWN_LAYER = "gate_linear", "up_linear", "down_linear"
_MARKS = ("has_gate", "has_bias", "is_transposed", "is_concatenated")
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# Of transformers, where a class has no gating of its own: the activation of gate, times up.
_DEFAULT_GATE = "_default_apply_gate"


class SplitExperts(nn.Module):
    """Experts as linear layers, such as ``split.3.gate_linear``, ``…up_linear``, ``…down_linear``; called as before.

    The layers are views of the fused parameters, which the fused module keeps. Under the names of those stand buffers
    of a number or two: whoever reads a saved model without knowing of the split finds other sizes there and stops.

    Args:
        fused: A module for which `is_fused` holds.
    """

    act_fn: nn.Module
    post_expert_norm: nn.Module

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        self._kind: Any = type(fused)
        # Everything else that the class may use: activation, limits, norms, config.
        self._carried = [name for name in vars(fused) if name not in _OF_EVERY_MODULE]
        for name in self._carried:
            setattr(self, name, getattr(fused, name))
        weights = fused_names(fused)
        for name, parameter in fused._parameters.items():
            if name not in weights:
                self.register_parameter(name, parameter)
        for name, buffer in fused._buffers.items():
            self.register_buffer(name, buffer, persistent=name not in fused._non_persistent_buffers_set)
        for name, child in fused.named_children():
            self.add_module(name, child)
        for name in weights:
            self.register_buffer(name, _marker(fused, name))
        self.split = nn.ModuleList(nn.ModuleDict(layers) for layers in _layers(fused))
        self.train(fused.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Send inputs to their experts, weigh and add what these give.

        Args:
            hidden_states: (tokens, n).
            top_k_index: (tokens, k), the experts of each input. An index that is no expert's counts for nothing, which
                is how transformers marks what another device computes.
            top_k_weights: (tokens, k).

        Returns:
            (tokens, n).
        """
        compute = self._exported if torch.compiler.is_exporting() else self._sorted
        found = compute(hidden_states, top_k_index)
        if getattr(self, "has_post_expert_norm", False):
            found = self.post_expert_norm(found)
        weighted = found.view(*top_k_index.shape, found.shape[-1]) * top_k_weights[..., None]
        return weighted.sum(-2).to(hidden_states.dtype)

    def _sorted(self, hidden_states: Tensor, top_k_index: Tensor) -> Tensor:
        """What the experts give for each pair of a token and one of its experts, (pairs, n)."""
        experts, order = top_k_index.reshape(-1).sort(stable=True)
        counts = torch.bincount(experts, minlength=len(self.split))[: len(self.split)].tolist()
        pieces = hidden_states[order[: sum(counts)] // top_k_index.shape[-1]].split(counts)
        found = [self._expert(expert, x) for expert, x in zip(self._experts(), pieces, strict=True) if len(x)]
        if sum(counts) < len(order) or not found:
            found.append(hidden_states.new_zeros(len(order) - sum(counts), hidden_states.shape[-1]))
        return torch.cat(found)[order.argsort()]

    def _exported(self, hidden_states: Tensor, top_k_index: Tensor) -> Tensor:
        """The same without a step that reads numbers, for graphs."""
        choices = top_k_index.reshape(-1)
        found = hidden_states.new_zeros(choices.shape[0], hidden_states.shape[-1])
        for number, expert in enumerate(self._experts()):
            places = (choices == number).nonzero()[:, 0]
            y = self._expert(expert, hidden_states[places // top_k_index.shape[-1]])
            found = found.index_copy(0, places, y.to(found.dtype))
        return found

    def _experts(self) -> Iterator[dict[str, nn.Module]]:
        return (dict(expert.items()) for expert in self.split)  # type: ignore[operator]

    def _expert(self, layers: dict[str, nn.Module], x: Tensor) -> Tensor:
        up = layers[_UP_LAYER](x)
        hidden = self._gated(layers[_GATE_LAYER](x), up) if _GATE_LAYER in layers else self.act_fn(up)
        found: Tensor = layers[_DOWN_LAYER](hidden)
        return found

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        apply = self._kind._apply_gate
        found: Tensor
        if apply.__name__ == _DEFAULT_GATE:
            found = self.act_fn(gate) * up
        elif self.is_concatenated:
            found = apply(self, torch.cat([gate, up], -1))
        else:
            found = apply(self, torch.stack([gate, up], -1).flatten(-2))
        return found

    def can_fuse(self) -> bool:
        """Whether all layers are dense, so that `to_fused` can put them together."""
        return all(type(layer) is nn.Linear for expert in self._experts() for layer in expert.values())

    @torch.no_grad()
    def to_fused(self) -> nn.Module:
        """Put dense layers together, as a module of the class that they come from."""
        fused = self._kind.__new__(self._kind)
        nn.Module.__init__(fused)
        for name in self._carried:
            setattr(fused, name, getattr(self, name))
        weights = fused_names(self)
        for name in weights:
            fused.register_parameter(name, self._together(name))
        for name, parameter in self._parameters.items():
            fused.register_parameter(name, parameter)
        for name, buffer in self._buffers.items():
            if name not in weights:
                fused.register_buffer(name, buffer, persistent=name not in self._non_persistent_buffers_set)
        for name, child in self.named_children():
            if child is not self.split:
                fused.add_module(name, child)
        return fused.train(self.training)

    def _together(self, name: str) -> nn.Parameter:
        kind = "bias" if name.endswith(_BIAS) else "weight"
        pieces = [[getattr(expert[role], kind) for role in _roles(self, name)] for expert in self._experts()]
        each = [torch.cat(p) if self.is_concatenated else torch.stack(p, 1).flatten(0, 1) for p in pieces]
        if kind == "weight" and self.is_transposed:
            each = [matrix.T for matrix in each]
        return nn.Parameter(torch.stack(each), any(p.requires_grad for several in pieces for p in several))


def is_fused(module: Any) -> bool:
    """Whether a module holds experts in 3-d parameters, of ordinary numbers and of sizes that fit."""
    if isinstance(module, SplitExperts) or not all(isinstance(getattr(module, mark, None), bool) for mark in _MARKS):
        return False
    if any(name not in module._parameters for name in fused_names(module)) or getattr(
        module, "_is_expert_parallel", False
    ):
        return False
    up, down = (module._parameters[name] for name in _weights(module))
    if not all(
        type(p) is nn.Parameter and p.is_floating_point() and p.itemsize > 1 and p.ndim == 3 for p in (up, down)
    ):
        return False
    made, read = (2, 1) if module.is_transposed else (1, 2)
    return len(up) == len(down) and up.shape[made] == len(_roles(module, _UP)) * down.shape[read]


def fused_names(module: Any) -> list[str]:
    """The names of the fused parameters."""
    return [name + end for name in _weights(module) for end in (("", _BIAS) if module.has_bias else ("",))]


def _weights(module: Any) -> list[str]:
    return ["gate_up_proj" if module.has_gate else _UP, _DOWN]


def _roles(module: Any, name: str) -> list[str]:
    """The layers whose weights or biases a fused parameter holds."""
    if name.startswith(_DOWN):
        return [_DOWN_LAYER]
    return [_GATE_LAYER, _UP_LAYER] if module.has_gate else [_UP_LAYER]


def _marker(fused: Any, name: str) -> Tensor:
    """As few numbers as transformers can cut into gate and up, and into experts, when it saves, and put together."""
    parameter = fused._parameters[name]
    shape = [1] * parameter.ndim
    shape[-1 if fused.is_transposed or parameter.ndim == 2 else 1] = len(_roles(fused, name))
    return torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)


def _layers(fused: Any) -> Iterator[dict[str, nn.Module]]:
    """The linear layers of each expert, on the memory of the fused parameters."""
    for number in range(len(fused.down_proj)):
        found: dict[str, nn.Module] = {}
        for name in _weights(fused):
            weight, bias = fused._parameters[name], fused._parameters.get(name + _BIAS)
            rows = weight.detach()[number].T if fused.is_transposed else weight.detach()[number]
            for place, role in enumerate(_roles(fused, name)):
                linear = found[role] = _empty(_part(fused, name, rows, place), biased=bias is not None)
                linear.weight = nn.Parameter(_part(fused, name, rows, place), weight.requires_grad)
                if bias is not None:
                    linear.bias = nn.Parameter(_part(fused, name, bias.detach()[number], place), bias.requires_grad)
        yield found


def _part(fused: Any, name: str, rows: Tensor, place: int) -> Tensor:
    """The rows of gate or of up: all of one after those of the other, or by turns."""
    count = len(_roles(fused, name))
    return rows.chunk(count)[place] if fused.is_concatenated else rows[place::count]


def _empty(weight: Tensor, biased: bool) -> nn.Linear:
    with torch.device("meta"):
        return nn.Linear(weight.shape[1], weight.shape[0], bias=biased)
