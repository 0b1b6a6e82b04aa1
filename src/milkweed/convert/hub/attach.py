"""What a transformers model with structured layers carries, so that transformers saves and loads it by itself."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Any, cast

from torch import nn

from milkweed.convert.hub.transformers_files import CONFIG_KEY, METHOD, is_ours
from milkweed.convert.record import differing_layers, layer_entry, mark, structured_layers
from milkweed.convert.skeleton import skeleton_of
from milkweed.models.base import Model


def attach(model: nn.Module) -> None:
    """Give transformers models in a module that have structured layers what saving needs, and take it off others."""
    for outer in _outermost(model):
        layers = differing_layers(outer, _skeleton(outer))
        for layer in layers.values():
            mark(layer)
        if layers:
            _with_own_config(outer)
        names = [name for paths in layers for name in paths]
        for path, inner in _transformers_models(outer):
            _attach(inner, any(name.startswith(f"{path}." if path else "") for name in names))
        write_config(outer, [layer_entry(names, layer) for names, layer in layers.items()])
    if hasattr(model, "_model_card_text"):  # of sentence-transformers, which would save the dense model's card
        cast(Any, model)._model_card_text = None


def write_config(model: Any, record: list[dict[str, Any]]) -> None:
    """Write a record into the config of the model that it belongs to; configs of models inside have none."""
    configs = {id(inner.config): inner.config for _, inner in _transformers_models(model)}
    for config in configs.values():
        if is_ours(getattr(config, CONFIG_KEY, None)):
            delattr(config, CONFIG_KEY)
    if record:
        setattr(model.config, CONFIG_KEY, _registered()[0](layers=record))


def _with_own_config(model: nn.Module) -> None:
    """Give a model a config of its own, under all names that its modules have for it; others may share this one."""
    if is_ours(getattr(model.config, CONFIG_KEY, None)):
        return
    copies: dict[int, Any] = {}
    copy.deepcopy(model.config, copies)  # notes the copies of the configs inside, too
    kind = sys.modules["transformers.configuration_utils"].PreTrainedConfig
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, kind) and id(value) in copies:
                setattr(module, name, copies[id(value)])


def _attach(model: Any, structured: bool) -> None:
    attached = is_ours(getattr(getattr(model, "hf_quantizer", None), CONFIG_KEY, None))
    if structured and not attached:
        config, quantizer = _registered()
        model.hf_quantizer = quantizer(config())
        model.quantization_method = METHOD
    elif attached and not structured:
        del model.hf_quantizer
        vars(model).pop("quantization_method", None)
    if structured or attached:
        # Else transformers refuses to cast the model, and its Trainer to compile it: both are as for dense layers.
        model.is_quantized = False
        vars(model.config).pop("_is_quantized", None)


def _registered() -> tuple[Any, Any]:
    """The classes of the config and the quantizer, which register themselves as soon as transformers is there."""
    table = sys.modules["transformers.quantizers.auto"]
    return table.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD], table.AUTO_QUANTIZER_MAPPING[METHOD]


def _skeleton(model: nn.Module) -> nn.Module | None:
    try:
        return skeleton_of(model)
    except Exception:  # of any model, so of any kind; saving says what is wrong with its config
        return None


def _outermost(model: nn.Module) -> list[Any]:
    """The transformers models that no other one holds, and that have structured layers or had some."""
    library = sys.modules.get("transformers.modeling_utils")
    if library is None:
        return []
    found: list[Any] = []
    left = [model]
    while left:
        module = left.pop()
        if isinstance(module, library.PreTrainedModel):
            if module not in found and (structured_layers(module) or is_ours(getattr(module.config, CONFIG_KEY, None))):
                found.append(module)
        elif not isinstance(module, Model):  # which is saved by its own config, whatever it is made of
            left.extend(module.children())
    return found


def _transformers_models(model: nn.Module) -> Iterator[tuple[str, Any]]:
    kind = sys.modules["transformers.modeling_utils"].PreTrainedModel
    return ((name, module) for name, module in model.named_modules() if isinstance(module, kind))
