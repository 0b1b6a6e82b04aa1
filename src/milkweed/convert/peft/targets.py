"""Which layers PEFT's configurations name: structured ones among them, and those that a method cannot adapt."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

from peft import PeftConfig, PeftType, TaskType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn

from milkweed.convert.peft import lora
from milkweed.convert.peft.base_layer import Structured
from milkweed.convert.peft.peft_type import NAME
from milkweed.nn.structured_linear import ConcatLinear

Include = Callable[[PeftConfig, nn.Module], PeftConfig]


def with_structured_layers(include: Include) -> Include:
    """Let peft's resolution of ``"all-linear"`` name structured layers too, and refuse what a method cannot adapt.

    Every method that puts something into layers resolves its targets there, before it changes anything.
    """

    @functools.wraps(include)
    def resolve(peft_config: PeftConfig, model: nn.Module) -> PeftConfig:
        everything = is_all_linear(peft_config)
        config = include(peft_config, model)
        layers = dict(_structured(model))
        if everything and layers:
            heads = {id(module) for module in _heads(config, model)}
            cast(Any, config).target_modules |= {name for name, module in layers.items() if id(module) not in heads}
        if getattr(config, "target_modules", None):
            _check(config, model, layers)
        return config

    return resolve


def is_all_linear(config: PeftConfig) -> bool:
    """Tell whether a configuration names all linear layers at once."""
    named = getattr(config, "target_modules", None)
    return isinstance(named, str) and named.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND


def _structured(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Structured layers by name, also below layers of adapters, under whose names they then are."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if name.startswith(tuple(inside)):
            continue
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(base, Structured) and name:
            yield name, base
        if isinstance(module, BaseTunerLayer) or isinstance(base, Structured):
            inside.append(f"{name}.")


def _heads(config: PeftConfig, model: nn.Module) -> list[nn.Module]:
    """What peft leaves out of all linear layers: the output of a language model, or the head of a classifier."""
    try:
        output = cast(Any, model).get_output_embeddings()
    except (AttributeError, NotImplementedError):
        output = None
    if output is not None:
        return [output]
    if config.task_type != TaskType.SEQ_CLS:
        return []
    return [head for name in SEQ_CLS_HEAD_NAMES if (head := getattr(model, name, None)) is not None][:1]


def _check(config: PeftConfig, model: nn.Module, layers: dict[str, nn.Module]) -> None:
    method = PEFT_TYPE_TO_TUNER_MAPPING.get(cast(PeftType, config.peft_type))
    matches = getattr(method, "_check_target_module_exists", check_target_module_exists)
    for name, layer in layers.items():
        if matches(config, name):
            _check_layer(config, name, layer)
        for part in layer.parts if isinstance(layer, ConcatLinear) else ():
            place = next(place for place, module in layer.named_modules() if module is part)
            if matches(config, f"{name}.{place}"):
                raise ValueError(
                    f"target_modules: {name}.{place} is a part of a packed layer; name {name!r} as a whole"
                )


def _check_layer(config: PeftConfig, name: str, layer: nn.Module) -> None:
    method = type(config).__name__ if config.peft_type not in {PeftType.LORA, NAME} else None
    if isinstance(config, LoraConfig) and config.peft_type == PeftType.LORA:
        method = lora.obstacle(config)
    bias = getattr(config, "bias", "none")
    if method is None and bias.endswith("_only") and isinstance(layer, ConcatLinear):
        raise ValueError(
            f"bias={bias!r} cannot train the bias of {name!r}, a packed layer whose parts have their own; use "
            "bias='all' or 'none'"
        )
    if method is not None:
        raise ValueError(
            f"{method} cannot adapt layer {name!r}, a {type(layer).__name__}: peft's method needs a dense weight. Use "
            "LoraConfig with its default method or milkweed.MonarchAdapterConfig, make the model dense with "
            f"milkweed.densify_(model) first, or leave such layers out, e.g. by exclude_modules=[{name!r}]"
        )
