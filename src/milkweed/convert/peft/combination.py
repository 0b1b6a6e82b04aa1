"""Several Monarch adapters combined into a new one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

from peft.tuners.tuners_utils import BaseTuner

from milkweed.convert.merging import scaled
from milkweed.convert.peft.config import MonarchAdapterConfig
from milkweed.convert.peft.monarch_adapter import MonarchAdapterLinear
from milkweed.structures import Monarch, project_monarch
from milkweed.structures.monarch_sum import sum_in_blocks


def combine(
    model: BaseTuner,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str,
    svd_rank: int | None,
) -> None:
    """Add an adapter that is a weighted sum of others: exactly ("cat"), or the nearest of a rank ("svd")."""
    if missing := [name for name in adapters if name not in model.peft_config]:
        raise ValueError(f"adapters {missing} do not exist; there are {sorted(model.peft_config)}")
    if adapter_name in model.peft_config:
        raise ValueError(f"adapter_name {adapter_name!r} is taken; delete_adapter({adapter_name!r}) first")
    if len(adapters) != len(weights) or not adapters:
        raise ValueError(f"weights must be one for each adapter; got {len(weights)} for {len(adapters)}")
    if combination_type not in {"cat", "svd"}:
        raise ValueError(f"combination_type must be 'cat' or 'svd'; got {combination_type!r}")
    layers = {
        name: layer
        for name, layer in model.model.named_modules()
        if isinstance(layer, MonarchAdapterLinear) and layer.monarch_update.keys() & set(adapters)
    }
    configs = [cast(MonarchAdapterConfig, model.peft_config[name]) for name in adapters]
    nblocks = max(config.nblocks for config in configs)
    sums = {name: _sum(layer, adapters, weights, nblocks) for name, layer in layers.items()}
    if combination_type == "svd":
        rank = svd_rank or max(config.r for config in configs)
        sums = {name: _nearest(total, nblocks, rank) for name, total in sums.items()}
    ranks = {name: total.right.shape[1] // nblocks for name, total in sums.items()}
    most = max(ranks.values())
    others = {name: rank for name, rank in ranks.items() if rank != most}
    # The scale is in the numbers: lora_alpha is the rank, in every layer.
    model.peft_config[adapter_name] = dataclasses.replace(
        configs[0],
        r=most,
        lora_alpha=most,
        nblocks=nblocks,
        target_modules=list(layers),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        modules_to_save=None,
        rank_pattern=others,
        alpha_pattern=dict(others),
        use_rslora=False,
    )
    model.inject_adapter(model.model, adapter_name)
    for name, layer in layers.items():
        update = layer.monarch_update[adapter_name]
        for factor in ("right", "left"):
            update.get_parameter(factor).data.copy_(getattr(sums[name], factor))
            update.get_parameter(factor).requires_grad_(False)


def _sum(layer: MonarchAdapterLinear, adapters: Sequence[str], weights: Sequence[float], nblocks: int) -> Monarch:
    pairs = zip(adapters, weights, strict=True)
    terms = [scaled(layer.matrix(name), weight) for name, weight in pairs if name in layer.monarch_update]
    return sum_in_blocks(terms, nblocks)


def _nearest(total: Monarch, nblocks: int, rank: int) -> Monarch:
    full = min(total.right.shape[2], total.left.shape[1])
    return project_monarch(total.to_dense(), nblocks, min(rank, full)).matrix
