"""The linear layers of a model: where they are, and which of them can be replaced without harm."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from milkweed.convert.packed import part_sizes
from milkweed.nn.filters import ImplicitFilter
from milkweed.nn.structured_linear import AdaptedLinear

# Modules whose fast paths read `weight` of their children instead of calling them.
_READ_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
# Classes that do so only where a config asks for slow, exact sums over shards, or (of DeBERTa) for what none asks for.
_MENTION_ONLY = {"BloomAttention", "BloomMLP", "DisentangledSelfAttention"}
# What every weight has, one that stands for another too: kinds are asked for, numbers are not.
_KIND_ASKED = re.compile(
    r"\bself\.(\w+)\.weight\.(?:dtype|device)\b|\bisinstance\(self\.(\w+)\.weight, torch\.Tensor\)"
)

# Of checksums: integers by size, an odd factor, and how many are summed at a time.
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ODD = 6364136223846793005
_STRETCH = 2**20


@dataclasses.dataclass(frozen=True)
class LinearSite:
    """A linear layer and all paths under which a model reaches it."""

    names: tuple[str, ...]  # paths, the first one being the layer's name
    module: nn.Module  # A ``torch.nn.Linear`` or transformers' ``Conv1D``; for adapters also a structured layer
    obstacle: str | None  # why it cannot be replaced, or None
    sizes: tuple[int, ...] = ()  # outputs of the matrices that it holds one below the other, if there are several
    marked: bool = False  # whether its parent asks for the dtype of its weight

    @property
    def name(self) -> str:
        """The first path."""
        return self.names[0]

    @property
    def in_features(self) -> int:
        """Size of each input."""
        # A quantised weight may have other sizes than the layer.
        return int(self.weight.shape[0] if is_conv1d(self.module) else self.module.in_features)  # type: ignore[arg-type]

    @property
    def out_features(self) -> int:
        """Size of each output."""
        return int(self.weight.shape[1] if is_conv1d(self.module) else self.module.out_features)  # type: ignore[arg-type]

    @property
    def parts(self) -> int:
        """How many matrices it holds: 3 for a packed query, key and value, 2 for a gate and what it gates, else 1."""
        return len(self.sizes) or 1

    def linears(self) -> list[nn.Linear]:
        """View the layer as dense layers, one for each part, in the order of outputs; they share its memory."""
        bias = self._bias
        weight = self.weight.T if is_conv1d(self.module) else self.weight
        sizes = list(self.sizes) or [len(weight)]
        pieces = zip(
            weight.detach().split(sizes),
            [None] * self.parts if bias is None else bias.detach().split(sizes),
            strict=True,
        )
        return [self._view(*piece) for piece in pieces]

    def _view(self, weight: Tensor, bias: Tensor | None) -> nn.Linear:
        with torch.device("meta"):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)
        if bias is not None:
            linear.bias = nn.Parameter(bias, requires_grad=self._bias is not None and self._bias.requires_grad)
        return linear.train(self.module.training)

    @property
    def weight(self) -> Tensor:
        """The layer's own weight, (out, in) or, of a ``Conv1D``, (in, out)."""
        return cast(Tensor, self.module.weight)

    @property
    def _bias(self) -> Tensor | None:
        return cast("Tensor | None", self.module.bias)


def find_sites(model: nn.Module) -> list[LinearSite]:
    """List every linear layer of a model once, in the model's order; obstacles say which cannot be replaced."""
    paths: defaultdict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if name and (isinstance(module, nn.Linear) or is_conv1d(module)):
            paths[module].append(name)
    owners = parameter_owners(model)
    return [_site(model, tuple(names), module, owners) for module, names in paths.items()]


def _site(model: nn.Module, names: tuple[str, ...], module: nn.Module, owners: Mapping[int, set[str]]) -> LinearSite:
    owner, _, leaf = names[0].rpartition(".")
    found = LinearSite(names, module, _obstacle(model, names, module, owners), (), asks_for_dtype(model, names))
    sizes = part_sizes(model.get_submodule(owner), leaf, found.in_features, found.out_features)
    return dataclasses.replace(found, sizes=sizes) if len(sizes) > 1 else found


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' ``Conv1D``, whose weight is transposed; transformers is not imported."""
    library = sys.modules.get("transformers.pytorch_utils")
    return library is not None and type(module) is library.Conv1D


def replace(model: nn.Module, names: tuple[str, ...], module: nn.Module) -> None:
    """Put a module in the place of another, under all its paths."""
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)


@torch.no_grad()
def digest(module: nn.Module) -> tuple[object, ...]:
    """Shape, dtype, whether trained, and a checksum of weight and bias: any change of them changes it."""
    noted: list[object] = []
    for parameter in (module.weight, module.bias):
        if not isinstance(parameter, Tensor):
            noted.append(None)
            continue
        bits = None if parameter.is_meta else checksum(parameter)
        noted.append((tuple(parameter.shape), parameter.dtype, parameter.requires_grad, bits))
    return tuple(noted)


def checksum(parameter: Tensor) -> int:
    """A sum of the bits with a weight for each place, modulo 2⁶⁴: the same on all devices."""
    bits = parameter.detach().contiguous().reshape(-1).view(_WORDS[parameter.element_size()])
    weights = torch.arange(1, min(_STRETCH, len(bits)) + 1, device=bits.device) * _ODD + 1
    total = 0
    for stretch in bits.split(_STRETCH):
        total = (total * _ODD + int((stretch.long() * weights[: len(stretch)]).sum())) % 2**64
    return total


def name_without_adapter(model: nn.Module, name: str) -> str:
    """The name of a layer as it was before an adapter was put around it."""
    parent, _, child = name.rpartition(".")
    return parent if child == "base" and isinstance(model.get_submodule(parent), AdaptedLinear) else name


def parameter_owners(model: nn.Module) -> dict[int, set[str]]:
    """The names of the modules that hold each parameter, by its id; a module that occurs twice counts once."""
    found: defaultdict[int, set[str]] = defaultdict(set)
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                found[id(parameter)].add(name)
    return found


def has_ordinary_weight(module: nn.Module) -> bool:
    """Whether a layer's weight is a plain tensor of floating-point numbers, not quantised or sparse."""
    weight = cast(Tensor, module.weight)
    ordinary = type(weight) is nn.Parameter and weight.layout == torch.strided and weight.is_floating_point()
    return ordinary and weight.itemsize > 1  # torch computes nothing in 8 bits


def weight_obstacle(names: Sequence[str], module: nn.Module, owners: Mapping[int, set[str]]) -> str | None:
    """Why a layer's weight cannot be exchanged for another, or None; owners are from `parameter_owners`."""
    if not (type(module) is nn.Linear or is_conv1d(module)):
        return f"it is a {type(module).__name__}, which may compute more than a linear layer"
    weight = cast(Tensor, module.weight)
    if "weight" not in module._parameters and type(weight) is Tensor:
        return "its weight is computed from other parameters, as by weight_norm; remove the parametrisation first"
    if not has_ordinary_weight(module):
        kind = weight.layout if weight.layout != torch.strided else f"{type(weight).__name__}, {weight.dtype}"
        return f"its weight is quantised or sparse ({kind}), not an ordinary tensor of floating-point numbers"
    for parameter in module._parameters.values():
        others = owners[id(parameter)] - set(names) if parameter is not None else set()
        if others:
            return f"its weight is tied to {min(others)}"
    return None


def reader_of_weight(model: nn.Module, names: Sequence[str]) -> str | None:
    """Why a layer cannot be replaced, if a parent reads its weight instead of calling it, or None."""
    for name in names:
        parent = model.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, _READ_WEIGHTS) or name.rpartition(".")[2] in _weights_read(type(parent)):  # type: ignore[arg-type]
            return f"its parent {type(parent).__name__} reads the weight itself"
        parts = name.split(".")
        if any(isinstance(model.get_submodule(".".join(parts[:end])), ImplicitFilter) for end in range(len(parts))):
            return "an ImplicitFilter reads the weight itself, to compute kernels"
    return None


def _forward(parent: type[nn.Module]) -> str:
    """The source of the forward pass of a class, empty if there is none."""
    try:
        return inspect.getsource(parent.forward)
    except (OSError, TypeError):
        return ""


@functools.cache
def _weights_read(parent: type[nn.Module]) -> frozenset[str]:
    """Children whose weight the forward pass of a class reads, as WavLM's does."""
    if parent.__name__ in _MENTION_ONLY:
        return frozenset()
    return frozenset(re.findall(r"\bself\.(\w+)\.weight\b", _KIND_ASKED.sub("", _forward(parent))))


def asks_for_dtype(model: nn.Module, names: Sequence[str]) -> bool:
    """Whether a parent of a layer asks for the dtype of its weight, as T5 does."""
    parents = (name.rpartition(".") for name in names)
    return any(leaf in _kinds_asked(type(model.get_submodule(owner))) for owner, _, leaf in parents)  # type: ignore[arg-type]


@functools.cache
def _kinds_asked(parent: type[nn.Module]) -> frozenset[str]:
    return frozenset(name for pair in _KIND_ASKED.findall(_forward(parent)) for name in pair if name)


def _obstacle(model: nn.Module, names: Sequence[str], module: nn.Module, owners: Mapping[int, set[str]]) -> str | None:
    if isinstance(model.get_submodule(names[0].rpartition(".")[0]), AdaptedLinear):
        return "it has an adapter; merge it first, or convert before adding adapters"
    found = weight_obstacle(names, module, owners) or reader_of_weight(model, names)
    return found or what_would_be_lost(module)


def what_would_be_lost(module: nn.Module) -> str | None:
    """What is attached to a layer that another one in its place would not have, or None."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hooks):
        return "it has hooks, which would be lost"
    if "forward" in vars(module):
        return "its forward was replaced on the layer itself, as by offloading, which would be lost"
    return None
