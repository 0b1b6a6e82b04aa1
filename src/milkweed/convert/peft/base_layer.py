"""What LoRA's layer and the Monarch adapter's do alike with a structured layer under them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from typing_extensions import override

from milkweed.convert.merging import become_, is_finite, own_copy
from milkweed.nn.structured_linear import ConcatLinear, StructuredLinear
from milkweed.ops._epilogue import ACTIVATIONS
from milkweed.structures import LowRank, Monarch

Structured = StructuredLinear | ConcatLinear


class StructuredBase(BaseTunerLayer):
    """A tuner layer that may stand on a structured layer, whose rank grows when an adapter is merged into it."""

    # The layer as it was before anything was merged into it; in a list, so that it is no part of the module.
    _unmerged: list[nn.Module]

    def is_structured(self) -> bool:
        """Tell whether the layer below is structured; it may have been made dense since."""
        return isinstance(self.get_base_layer(), Structured)

    def check_mergeable(self) -> None:
        """Refuse to merge into a structure that cannot hold the sum."""
        base: Any = self.get_base_layer()
        if self.is_structured() and not base.takes_updates:
            raise ValueError(
                f"adapters cannot be merged into a {type(base).__name__}: W + M does not have its structure; make the "
                "model dense with milkweed.densify_(model) first, or leave them unmerged"
            )

    def merge_terms(self, terms: Sequence[tuple[str, Monarch | LowRank, Tensor | None]]) -> None:
        """Add each adapter's matrix, and what it adds to the bias, to the structured layer: all or, on error, none."""
        if not terms:
            return
        self.check_mergeable()
        base: Any = self.get_base_layer()
        merged: Any = own_copy(base)
        for _, matrix, bias in terms:
            merged.add_(matrix)
            if bias is not None:
                _add_bias(merged, bias)
        names = [name for name, _, _ in terms]
        if not is_finite(merged):
            raise ValueError(f"adapter {', '.join(names)} cannot be merged: the sum has NaN or infinite numbers")
        if not self.merged:
            self._unmerged = [own_copy(base)]
        become_(base, merged)
        self.merged_adapters.extend(names)

    def unmerge_structured(self) -> None:
        """Put the structured layer back as it was, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        become_(self.get_base_layer(), self._unmerged.pop())
        self.merged_adapters.clear()

    @property
    @override
    def weight(self) -> Tensor:
        # Of a structured layer only the dtype and the device are asked for, as by T5.
        base = self.get_base_layer()
        found = getattr(base, "weight", None)
        return next(base.parameters()).new_empty(1) if found is None else found

    @override
    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, torch.dtype]:
        if not isinstance(base_layer, Structured):
            found: tuple[torch.device, torch.dtype] = super()._get_base_layer_device_and_dtype(base_layer)
            return found
        parameter = next(base_layer.parameters())
        return parameter.device, parameter.dtype


@contextmanager
def looking_dense(base: nn.Module) -> Iterator[None]:
    """Give a structured layer what is read of a dense one to no more end than its dtype, its device or its presence."""
    # In the instance's own dictionary, where it is neither a parameter nor a buffer.
    shown: dict[str, Tensor] = {}
    if isinstance(base, Structured):
        first = next(base.parameters())
        parts = base.parts if isinstance(base, ConcatLinear) else [base]
        shown["weight"] = first.detach().new_empty(1)
        if all(part.bias is not None for part in parts):
            shown["bias"] = first.detach().new_empty(base.out_features)
        shown = {name: value for name, value in shown.items() if not hasattr(base, name)}
    vars(base).update(shown)
    try:
        yield
    finally:
        for name in shown:
            del vars(base)[name]


def split_activation(
    base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], str | None]:
    """Take the activation out of the arguments of a structured layer: with adapters beside it, it comes after them."""
    if not isinstance(base, StructuredLinear):
        return args, None
    return args[1:], kwargs.pop("activation", args[0] if args else None)


def activated(y: Tensor, activation: str | None) -> Tensor:
    """Apply an activation by name."""
    return y if activation is None else ACTIVATIONS[activation](y)


def _add_bias(base: Any, update: Tensor) -> None:
    parts: list[Any] = list(base.parts) if isinstance(base, ConcatLinear) else [base]
    for part, piece in zip(parts, update.split([part.out_features for part in parts]), strict=True):
        if part.bias is None:
            raise RuntimeError("Impossible to merge LoRA with `lora_bias=True` because the base layer has no bias.")
        old = cast(nn.Parameter, part.bias)
        part.bias = nn.Parameter(old.detach() + piece.to(old), old.requires_grad)
