"""Monarch updates as a PEFT method: the layer."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from typing_extensions import override

from milkweed.convert.peft.base_layer import StructuredBase, activated, split_activation
from milkweed.convert.peft.config import MonarchAdapterConfig
from milkweed.convert.record import PEFT_UPDATE
from milkweed.convert.sites import LinearSite, has_ordinary_weight, is_conv1d
from milkweed.nn.structured_linear import MonarchLinear
from milkweed.structures import Monarch


class MonarchAdapterLinear(nn.Module, StructuredBase):
    """A dense or structured layer with Monarch updates beside it, one for each adapter."""

    adapter_layer_names = (PEFT_UPDATE,)
    other_param_names = ("r", "lora_alpha", "scaling", "use_rslora", "monarch_dropout")

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: MonarchAdapterConfig, r: int, lora_alpha: float
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.use_rslora: dict[str, bool] = {}
        self.monarch_update = nn.ModuleDict()
        self.monarch_dropout = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        self.in_features, self.out_features = sizes(self.get_base_layer())
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, r, lora_alpha)

    def update_layer(self, adapter_name: str, config: MonarchAdapterConfig, r: int, lora_alpha: float) -> None:
        """Add an adapter."""
        self.r[adapter_name], self.lora_alpha[adapter_name] = r, lora_alpha
        self.use_rslora[adapter_name] = config.use_rslora
        self.scaling[adapter_name] = lora_alpha / (math.sqrt(r) if config.use_rslora else r)
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        self.monarch_dropout[adapter_name] = dropout
        init = "zero" if config.init_weights else "kaiming"
        self.monarch_update[adapter_name] = MonarchLinear(
            self.in_features, self.out_features, config.nblocks, bias=False, rank=r, init=init
        )
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @override
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the layer and its active updates, or to each sample those of the adapter that is named for it."""
        names = kwargs.pop("adapter_names", None)
        args, activation = split_activation(self.get_base_layer(), args, kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        y: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return activated(y, activation)
        dtype = y.dtype
        if names is not None:
            y = self._add_by_sample(x, y, names)
        elif not self.merged:
            for name in self.active_adapters:
                if name in self.monarch_update:
                    y = y + self._update(name, x)
        return activated(y.to(dtype), activation)

    def _update(self, name: str, x: Tensor) -> Tensor:
        update: Any = self.monarch_update[name]
        x = self._cast_input_dtype(x, update.right.dtype)
        y: Tensor = update(self.monarch_dropout[name](x))
        return y * self.scaling[name]

    def _add_by_sample(self, x: Tensor, y: Tensor, names: list[str]) -> Tensor:
        if len(names) != len(x):
            raise ValueError(f"adapter_names must be one for each of the {len(x)} samples; got {len(names)}")
        if self.merged:
            raise ValueError("adapter_names cannot choose among adapters that are merged; call unmerge_adapter() first")
        y = y.clone()
        for name in sorted(set(names) & self.monarch_update.keys()):
            rows = torch.tensor([i for i, each in enumerate(names) if each == name], device=x.device)
            y[rows] = (y[rows] + self._update(name, x[rows])).to(y.dtype)
        return y

    @override
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add updates to the weight; into a structured layer exactly, by its rank."""
        # Every merge is checked for numbers that are not finite, as peft does for a safe one.
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.monarch_update]
        if not names:
            return
        if self.is_structured():
            self.merge_terms([(name, self.matrix(name), None) for name in names])
            return
        base: Any = self.get_base_layer()
        if not has_ordinary_weight(base):
            raise ValueError(
                f"adapters cannot be merged into a {type(base).__name__} whose weight is a "
                f"{type(base.weight).__name__} of {base.weight.dtype}; leave them unmerged, or load the model without "
                "quantisation"
            )
        self._add_to_dense(names, 1.0)
        self.merged_adapters.extend(names)

    @override
    def unmerge(self) -> None:
        """Take merged updates out of the weight again."""
        if self.is_structured():
            self.unmerge_structured()
        elif not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        else:
            self._add_to_dense([name for name in self.merged_adapters if name in self.monarch_update], -1.0)
            self.merged_adapters.clear()

    @torch.no_grad()
    def _add_to_dense(self, names: list[str], sign: float) -> None:
        weight: Any = self.get_base_layer().weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        total = weight.data.to(wide)
        for name in names:
            total = total + sign * self.get_delta_weight(name).to(weight.device, wide)
        total = total.to(weight.dtype)
        if not weight.is_meta and not total.isfinite().all():
            raise ValueError(
                f"adapter {', '.join(names)} cannot be merged: the sum has NaN or infinite numbers in {weight.dtype}"
            )
        weight.data = total

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:
        """What an adapter adds to the weight, in the shape of the base layer's weight."""
        delta = self.matrix(adapter).to_dense()
        return delta.T.contiguous() if is_conv1d(self.get_base_layer()) else delta

    def matrix(self, name: str) -> Monarch:
        """An adapter's update with its scale, detached, in float32 at least."""
        update: Any = self.monarch_update[name]
        matrix: Monarch = update.matrix().detach()
        wide = torch.promote_types(matrix.dtype, torch.float32)
        return Monarch(matrix.right.to(wide), float(self.scaling[name]) * matrix.left.to(wide), matrix.shape)

    @override
    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """The update is a matrix that is added, so LoRA can come near it."""
        return True

    def __repr__(self) -> str:
        return "monarch." + super().__repr__()


def sizes(base: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    site = LinearSite(("",), base, None)
    return site.in_features, site.out_features
