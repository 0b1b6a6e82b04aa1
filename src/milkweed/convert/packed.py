"""Linear layers that hold several matrices one below the other: query, key and value, or a gate and what it gates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

_QUERY_KEY_VALUE = {"c_attn", "qkv", "Wqkv", "qkv_proj", "query_key_value", "in_proj"}
# By the layer that reads their product.
_GATED = {"gate_up_proj": "down_proj", "Wi": "Wo"}
# What models call the number of their heads, of those of keys and values, and the size of one, in that order.
_HEADS = ("num_heads", "num_attention_heads", "n_head")
_FEWER = ("num_key_value_heads", "num_kv_heads", "kv_heads")
_SIZE = ("head_dim", "kv_channels", "head_size")


def part_sizes(parent: nn.Module, name: str, in_features: int, out_features: int) -> tuple[int, ...]:
    """The outputs of each matrix in the layer that a module holds under a name: one alone if it holds no more."""
    if name in _GATED:
        reader: Any = getattr(parent, _GATED[name], None)
        return (out_features // 2,) * 2 if 2 * getattr(reader, "in_features", 0) == out_features else (out_features,)
    if name not in _QUERY_KEY_VALUE:
        return (out_features,)
    sources = [parent, *(each for each in [getattr(parent, "config", None)] if each is not None)]
    heads, fewer, size = (_first(sources, names) for names in (_HEADS, _FEWER, _SIZE))
    if heads and not size and in_features % heads == 0:
        size = in_features // heads
    if fewer and (heads + 2 * fewer) * size == out_features:
        return heads * size, fewer * size, fewer * size
    return (out_features // 3,) * 3 if out_features in {3 * in_features, 3 * heads * size} else (out_features,)


def _first(sources: Iterable[Any], names: Iterable[str]) -> int:
    found = (getattr(source, name, None) for source in sources for name in names)
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), 0)
