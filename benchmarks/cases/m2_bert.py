"""M2-BERT's encoder against BERT's of the same width and depth, with attention as fast as torch has it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.case import Case, Figure, Outputs, Size, Work, place, register
from milkweed.models import M2Bert

# Sines of large arguments leave kernels an error of 5e-6 in float32, which every layer without a skip makes a third
# larger: 1e-4 after twelve layers at 2,048 tokens.
_TOLERANCE = 1e-3
# Twelve layers in bfloat16.
_HALF_TOLERANCE = 0.1
_TOKENS = 30528
_TINY = {"batch": 1, "length": 16, "d_model": 16, "depth": 2, "heads": 2}


def build(size: Size, *, half: bool = False) -> Work:
    """Both encoders with random weights; each is held against itself in float64, of the first sequence."""
    width, depth, length = size["d_model"], size["depth"], size["length"]
    dtype = torch.bfloat16 if half else torch.float32
    tokens = torch.randint(0, _TOKENS, (size["batch"], length))
    m2 = place(lambda: M2Bert(_TOKENS, length=length, d_model=width, depth=depth, head="none").eval())
    bert = place(lambda: _bert(size), dtype)

    def encode(model: nn.Module, tokens: Tensor) -> Outputs:
        with torch.inference_mode():
            found: Any = model(tokens)
            return {"output": found if isinstance(found, Tensor) else found.last_hidden_state}

    def ours() -> Outputs:
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=half):
            return encode(m2, tokens)

    def truth() -> Mapping[str, Outputs]:
        models = {"ours": m2, "peer": bert}
        return {side: encode(copy.deepcopy(model).double(), tokens[:1]) for side, model in models.items()}

    tolerance = _HALF_TOLERANCE if half else _TOLERANCE
    return Work(
        {"ours": ours, "peer": lambda: encode(bert, tokens)},
        truth,
        {"ours": tolerance, "peer": tolerance},
        # Per token and layer: four dense projections of the mixer, and a GLU of 4 d with four blocks.
        flops=2 * tokens.numel() * depth * (4 * width**2 + 3 * 4 * width**2 // 4),
        bytes=dtype.itemsize * (7 * depth * width**2 + tokens.numel() * width),
        part=lambda outputs: {name: y[:1] for name, y in outputs.items()},
    )


def _bert(size: Size) -> nn.Module:
    try:
        from transformers import BertConfig, BertModel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('BERT is built by transformers: pip install "milkweed[hf]"') from error
    options: dict[str, Any] = {
        "vocab_size": _TOKENS,
        "hidden_size": size["d_model"],
        "intermediate_size": 4 * size["d_model"],
        "num_hidden_layers": size["depth"],
        "num_attention_heads": size["heads"],
        "max_position_embeddings": size["length"],
        "attn_implementation": "sdpa",
    }
    model: nn.Module = BertModel(BertConfig(**options), add_pooling_layer=False).eval()
    return model


def _size(batch: int, length: int) -> Size:
    return {"batch": batch, "length": length, "d_model": 768, "depth": 12, "heads": 12}


for _length, _bar, _floor_bar in ((512, 1.3, None), (2048, 1.8, 0.75), (8192, 3.5, 0.75)):
    register(
        Case(
            f"m2-bert-{_length}",
            f"M2-BERT 80M, one sequence of {_length} tokens",
            "transformers' BERT-base with scaled_dot_product_attention",
            Figure.FORWARD,
            build,
            _size(1, _length),
            _TINY,
            _bar,
            _floor_bar,
        )
    )
register(
    Case(
        "m2-bert-4096",
        "M2-BERT 80M, 4096 tokens, bf16",
        "transformers' BERT-base with scaled_dot_product_attention in bf16",
        Figure.FORWARD,
        partial(build, half=True),
        _size(8, 4096),
        {**_TINY, "depth": 1},
        2.5,
        device="cuda",
        shrinks="batch",
    )
)
