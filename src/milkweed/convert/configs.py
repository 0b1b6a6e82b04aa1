"""What a dense layer may become; each configuration stands beside its layer."""

from milkweed.nn.structured_linear import (
    BlockDiagonalConfig,
    LayerConfig,
    LowRankConfig,
    MonarchConfig,
    PixelflyConfig,
)

__all__ = ["BlockDiagonalConfig", "LayerConfig", "LowRankConfig", "MonarchConfig", "PixelflyConfig"]
