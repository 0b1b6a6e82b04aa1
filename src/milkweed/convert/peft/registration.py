"""What peft learns once it is imported: LoRA on structured layers, and the Monarch adapter as a method."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any, cast

from peft import PeftConfig
from peft.tuners import tuners_utils
from peft.tuners.lora import LoraConfig
from peft.tuners.lora import model as lora_model
from peft.utils import hotswap
from peft.utils.peft_types import PeftType, register_peft_method
from torch import nn

from milkweed.convert.peft import lora
from milkweed.convert.peft.base_layer import StructuredBase
from milkweed.convert.peft.config import MonarchAdapterConfig
from milkweed.convert.peft.monarch_model import MonarchAdapterModel
from milkweed.convert.peft.peft_type import NAME, add_member
from milkweed.convert.peft.targets import with_structured_layers


def register() -> None:
    """Extend peft, once."""
    if NAME in PeftType.__members__:
        return
    _check_peft()
    _include_structured_layers()
    _dispatch_structured_layers()
    _check_before_merging()
    add_member(PeftType, NAME)
    register_peft_method(
        name=NAME.lower(), config_cls=MonarchAdapterConfig, model_cls=MonarchAdapterModel, prefix="monarch_"
    )
    _allow_hot_swapping()


def _check_peft() -> None:
    """Refuse a version whose parts, which are extended, are called in another way."""
    expected: dict[tuple[Any, str], list[str]] = {
        (lora_model, "dispatch_default"): ["target", "adapter_name", "config"],
        (tuners_utils, "_maybe_include_all_linear_layers"): ["peft_config", "model"],
        (hotswap, "check_hotswap_configs_compatible"): ["config0", "config1"],
        (tuners_utils.BaseTuner, "_check_merge_allowed"): ["self"],
    }
    for (owner, name), arguments in expected.items():
        found = list(inspect.signature(getattr(owner, name)).parameters)
        if found[: len(arguments)] != arguments:
            raise TypeError(f"{owner.__name__}.{name} takes {', '.join(found)}, not {', '.join(arguments)}")


def _include_structured_layers() -> None:
    name = "_maybe_include_all_linear_layers"
    known = getattr(tuners_utils, name)
    extended = with_structured_layers(known)
    # Methods with shared parameters have imported the function under the same name.
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("peft.") and vars(module).get(name) is known:
            setattr(module, name, extended)


def _dispatch_structured_layers() -> None:
    # Custom modules that are registered on a LoraConfig are lost when it is saved; this is where it is looked up.
    known = lora_model.dispatch_default

    @functools.wraps(known)
    def dispatch(target: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> nn.Module | None:
        found = lora.dispatch(target, adapter_name, config=config, **kwargs)
        return known(target, adapter_name, config=config, **kwargs) if found is None else found

    cast(Any, lora_model).dispatch_default = dispatch


def _check_before_merging() -> None:
    # Merging goes layer by layer: one that refuses must do so before the first is merged.
    known = tuners_utils.BaseTuner._check_merge_allowed

    @functools.wraps(known)
    def check(self: tuners_utils.BaseTuner) -> None:
        known(self)
        for module in self.modules():
            if isinstance(module, StructuredBase):
                module.check_mergeable()

    cast(Any, tuners_utils.BaseTuner)._check_merge_allowed = check


def _allow_hot_swapping() -> None:
    hotswap.CONFIG_KEYS_TO_CHECK[PeftType(NAME)] = ["nblocks", "use_rslora", "lora_dropout"]
    known = hotswap.check_hotswap_configs_compatible

    @functools.wraps(known)
    def check(config0: PeftConfig, config1: PeftConfig) -> None:
        known(config0, config1)
        for config in (config0, config1):
            if isinstance(config, MonarchAdapterConfig) and (config.rank_pattern or config.alpha_pattern):
                raise ValueError(
                    "adapters with rank_pattern or alpha_pattern cannot be hot-swapped, as peft sets one scale for all "
                    "layers; load the other one beside it with load_adapter and choose it with set_adapter"
                )

    hotswap.check_hotswap_configs_compatible = check


register()
