"""Filters: linear maps along the sequence that leave channels apart, with their states and steps."""

from milkweed.nn.filters.base import Filter
from milkweed.nn.filters.causal_monarch import CausalMonarchMixer
from milkweed.nn.filters.explicit_filter import ExplicitFilter
from milkweed.nn.filters.implicit_filter import ImplicitFilter
from milkweed.nn.filters.long_conv import LongConv
from milkweed.nn.filters.online_conv import ConvState, OnlineConv
from milkweed.nn.filters.s4 import S4Filter
from milkweed.nn.filters.s4d import S4DFilter
from milkweed.nn.filters.s4nd import S4NDFilter
from milkweed.nn.filters.state_space import StateSpaceFilter

__all__ = [
    "CausalMonarchMixer",
    "ConvState",
    "ExplicitFilter",
    "Filter",
    "ImplicitFilter",
    "LongConv",
    "OnlineConv",
    "S4DFilter",
    "S4Filter",
    "S4NDFilter",
    "StateSpaceFilter",
]
