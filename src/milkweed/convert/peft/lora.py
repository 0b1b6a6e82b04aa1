"""LoRA on structured layers."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import LoraConfig
from peft.tuners.lora import layer as lora
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from typing_extensions import override

from milkweed.convert.peft.base_layer import Structured, StructuredBase, activated, looking_dense, split_activation
from milkweed.structures import LowRank

# What reads nothing of the layer below; all other initialisations and variants read its weight.
_INITIALISATIONS = {"true", "false", "none", "gaussian", "orthogonal", "eva"}
_VARIANTS = {"use_bdlora", "alora_invocation_tokens", "velora_config", "monteclora_config"}
_NAMES = {"use_dora": "DoRA (use_dora)", "kasa_config": "KaSA (kasa_config)"}


class StructuredLoraLinear(StructuredBase, lora.Linear):
    """LoRA beside a structured layer; merged, it becomes part of the layer's rank."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        lora.Linear.__init__(self, base_layer, adapter_name, config=config, **kwargs)
        self.fan_in_fan_out = False  # whatever the dense layers of the model have

    @override
    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        if isinstance(module, Structured):
            return module.in_features, module.out_features
        return cast(tuple[int, int], super()._get_in_out_features(module))

    @property
    @override
    def lora_variants(self) -> dict[tuple[str, ...], Any]:
        known = super().lora_variants
        return (
            {keys: variant for keys, variant in known.items() if set(keys) <= _VARIANTS}
            if self.is_structured()
            else known
        )

    @override
    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any) -> None:
        with looking_dense(self.get_base_layer()):
            super().update_layer(adapter_name, r, lora_alpha, config=config, **kwargs)

    @override
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        args, activation = split_activation(self.get_base_layer(), args, kwargs)
        return activated(super().forward(x, *args, **kwargs), activation)

    @override
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        if not self.is_structured():
            super().merge(safe_merge, adapter_names)
            return
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.lora_A]
        for name in names:
            if name in self.lora_variant:
                raise ValueError(
                    f"adapter {name!r} cannot be merged into a {type(self.get_base_layer()).__name__}: it is a "
                    f"{type(self.lora_variant[name]).__name__}, which changes a dense weight; make the model dense "
                    "with milkweed.densify_(model) first"
                )
        self.merge_terms([(name, self._matrix(name), self._bias(name)) for name in names])

    @override
    def unmerge(self) -> None:
        if self.is_structured():
            self.unmerge_structured()
        else:
            super().unmerge()

    @torch.no_grad()
    def _matrix(self, name: str) -> LowRank:
        a, b = cast(Tensor, self.lora_A[name].weight), cast(Tensor, self.lora_B[name].weight)
        wide = torch.promote_types(a.dtype, torch.float32)
        return LowRank(float(self.scaling[name]) * b.to(wide), a.to(wide))

    @torch.no_grad()
    def _bias(self, name: str) -> Tensor | None:
        return self.lora_B[name].bias * self.scaling[name] if self.lora_bias[name] else None


def dispatch(target: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> nn.Module | None:
    """Make the layer with LoRA of a structured one; None for any other."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if not isinstance(base, Structured) or kwargs.get("parameter_name") is not None:
        return None
    kwargs.pop("parameter_name", None)
    return StructuredLoraLinear(target, adapter_name, config=config, **kwargs)


def obstacle(config: LoraConfig) -> str | None:
    """The part of a LoRA configuration that needs a dense weight, or None."""
    variants = [name for name, field in config.__dataclass_fields__.items() if field.metadata.get("is_lora_variant")]
    for name in variants:
        if getattr(config, name) and name not in _VARIANTS:
            return _NAMES.get(name, name)
    if str(config.init_lora_weights).lower() not in _INITIALISATIONS:
        return f"LoRA with init_lora_weights={config.init_lora_weights!r}"
    return None
