"""How time and memory of layers grow with the sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.case import Case, Figure, Size, Work, register
from benchmarks.cases import causal_mixer, fft_conv, long_conv, m2_bert, s4, s4d

_BAR = 1.15
_LENGTHS = tuple(2**power for power in range(10, 17))
_LAYER = {"batch": 4, "d_model": 64, "d_state": 64}


def _add(
    name: str,
    description: str,
    build: Callable[[Size], Work],
    size: Size,
    *,
    bar: float = _BAR,
    lengths: Sequence[int] = _LENGTHS,
) -> None:
    tiny = {**dict.fromkeys(size, 4), "batch": min(2, size["batch"])}
    peer = "itself at other lengths"
    register(Case(f"growth-{name}", description, peer, Figure.GROWTH, build, size, tiny, bar, lengths=lengths))


_add("s4", "S4 layer (LegS), all gradients", s4.build_layer, _LAYER)
_add("s4d", "S4D layer, all gradients", s4d.build_layer, _LAYER)
_add(
    "fft-conv",
    "causal convolution, all gradients",
    partial(fft_conv.build, training=True),
    {"batch": 4, "channels": 64},
)
_add(
    "causal-mixer",
    "causal Monarch mixer of order 2",
    causal_mixer.build,
    {"batch": 4, "d_model": 64},
    bar=1.5,  # O(p L^{1 + 1/p}) is what it promises
)
_add("long-conv", "LongConv layer, all gradients", long_conv.build, {"batch": 4, "d_model": 64})
_add(
    "m2-bert",
    "a block of M2-BERT 80M with its embeddings",
    m2_bert.build,
    {"batch": 1, "d_model": 768, "depth": 1, "heads": 12},
    lengths=tuple(2**power for power in range(9, 16)),
)
