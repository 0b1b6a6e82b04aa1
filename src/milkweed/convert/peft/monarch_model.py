"""Monarch updates as a PEFT method: the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from peft.tuners import tuners_utils
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import nn
from typing_extensions import override

from milkweed.convert.peft.base_layer import Structured
from milkweed.convert.peft.combination import combine
from milkweed.convert.peft.config import MonarchAdapterConfig
from milkweed.convert.peft.monarch_adapter import MonarchAdapterLinear, sizes
from milkweed.convert.peft.targets import is_all_linear
from milkweed.convert.sites import is_conv1d
from milkweed.structures import monarch_shapes


class MonarchAdapterModel(BaseTuner):
    """A model with Monarch updates beside its linear layers, see `MonarchAdapterConfig`."""

    prefix = "monarch_"
    tuner_layer_cls = MonarchAdapterLinear
    target_module_mapping: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    @override
    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        # Whatever is wrong with a target is said before anything is changed.
        everything, asked = is_all_linear(peft_config), peft_config.target_modules
        tuners_utils._maybe_include_all_linear_layers(peft_config, model)
        fitting, small = set(), ""
        for name, target in _targets(self, peft_config, model):
            base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
            reason = _obstacle(peft_config, name, base)
            if reason is None:
                fitting.add(name)
            elif everything:
                small = small or f"{name!r}: {reason}"
            else:
                raise ValueError(
                    f"layer {name!r} cannot have a Monarch adapter: {reason}; or leave it out with "
                    f"exclude_modules=[{name!r}]"
                )
        if everything:
            peft_config.target_modules = fitting
        if not fitting:
            shown = sorted(asked) if isinstance(asked, set) else asked
            why = f"all linear layers are too small, the first {small}" if small else "it names no layer"
            raise ValueError(f"no layer can have a Monarch adapter of target_modules={shown!r}: {why}")

    @override
    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        r, alpha = _rank_and_alpha(peft_config, current_key)
        if isinstance(target, MonarchAdapterLinear):
            target.update_layer(adapter_name, peft_config, r, alpha)
            return
        layer = MonarchAdapterLinear(target, adapter_name, peft_config, r, alpha)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    @override
    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # Updates are made where the layer is, and what is put back keeps its own weight.
        setattr(parent, child_name, new_module)

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "cat",
        svd_rank: int | None = None,
    ) -> None:
        """Add an adapter that is the weighted sum of others: exactly ("cat"), or the nearest of a rank ("svd")."""
        combine(self, adapters, weights, adapter_name, combination_type, svd_rank)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hand ``adapter_names``, one for each sample, to the layers."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        self._check_adapter_names(names, kwargs.get("num_beams"))
        handles = [
            module.register_forward_pre_hook(partial(_give_names, names=list(names)), with_kwargs=True)
            for module in self.modules()
            if isinstance(module, MonarchAdapterLinear | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_adapter_names(self, names: list[str], num_beams: int | None) -> None:
        if self.training:
            raise ValueError("adapter_names chooses adapters by sample in evaluation only; call model.eval()")
        if isinstance(num_beams, int) and num_beams > 1:
            raise ValueError(
                f"adapter_names cannot be used with beam search; got num_beams={num_beams}; use num_beams=1"
            )
        unknown = set(names) - self.peft_config.keys() - {"__base__"}
        if unknown:
            raise ValueError(f"adapter_names has {sorted(unknown)}, adapters are {sorted(self.peft_config)}")


def _give_names(module: nn.Module, args: Any, kwargs: dict[str, Any], names: list[str]) -> tuple[Any, dict[str, Any]]:
    return args, kwargs | {"adapter_names": names}


def _targets(tuner: BaseTuner, config: MonarchAdapterConfig, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that a configuration names; not what is inside the layers of earlier adapters."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if not name.startswith(tuple(inside)) and name and tuner._check_target_module_exists(config, name):
            yield name, module
        if isinstance(module, BaseTunerLayer):
            inside.append(f"{name}.")


def _obstacle(config: MonarchAdapterConfig, name: str, base: nn.Module) -> str | None:
    if not (isinstance(base, nn.Linear | Structured) or is_conv1d(base)):
        return f"it is a {type(base).__name__}, not a torch.nn.Linear, a Conv1D or a structured layer"
    try:
        monarch_shapes(*sizes(base), config.nblocks, _rank_and_alpha(config, name)[0])
    except ValueError as error:
        return str(error)
    return None


def _rank_and_alpha(config: MonarchAdapterConfig, name: str) -> tuple[int, float]:
    rank = config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), name), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(list(config.alpha_pattern), name), config.lora_alpha)
    return rank, cast(float, alpha)
