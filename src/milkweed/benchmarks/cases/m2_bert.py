"""M2-BERT's encoder against BERT's of the same width and depth, with attention as fast as torch has it."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from milkweed.benchmarks.registry import Case, Figure, Outputs, Pair, Size, register
from milkweed.models import M2Bert

# Sines of large arguments leave kernels an error of 5e-6 in float32, which every layer without a skip makes a third
# larger: 1e-4 after twelve layers at 2,048 tokens.
_TOLERANCE = 1e-3
_TOKENS = 30528
_TINY = {"length": 16, "d_model": 16, "depth": 2, "heads": 2}


def build(size: Size) -> Pair:
    """Make both encoders with random weights, and one sequence of tokens.

    Args:
        size: ``length``, ``d_model``, ``depth`` and ``heads`` of BERT's attention.

    Returns:
        The pair.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokens = torch.randint(0, _TOKENS, (1, size["length"]))
        sizes = {"length": size["length"], "d_model": size["d_model"], "depth": size["depth"]}
        m2 = M2Bert(_TOKENS, **sizes, head="none").eval()
        bert = _bert(size)

    def run(model: nn.Module) -> Tensor:
        with torch.inference_mode():
            found: Any = model(tokens)
            return found if isinstance(found, Tensor) else found.last_hidden_state

    @cache
    def exact() -> tuple[Tensor, Tensor]:
        return run(copy.deepcopy(m2).double()), run(copy.deepcopy(bert).double())

    @cache
    def apart() -> Tensor:
        ours, theirs = exact()
        return (ours - theirs).float()

    def ours() -> Outputs:
        return {"output": run(m2)}

    def baseline() -> Outputs:
        # The networks differ: what is left after the exact difference is BERT's own error, which the check then sees.
        return {"output": run(bert) + apart()}

    return Pair(ours, baseline, lambda: {"output": exact()[0]}, _TOLERANCE)


def _bert(size: Size) -> nn.Module:
    try:
        from transformers import BertConfig, BertModel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('BERT is built by transformers: pip install "milkweed[hf]"') from error
    config = BertConfig(
        vocab_size=_TOKENS,
        hidden_size=size["d_model"],
        intermediate_size=4 * size["d_model"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        max_position_embeddings=size["length"],
        attn_implementation="sdpa",
    )
    model: nn.Module = BertModel(config, add_pooling_layer=False).eval()
    return model


for _length, _bar in ((512, 1.3), (2048, 1.8), (8192, 3.5)):
    register(
        Case(
            f"m2-bert-{_length}",
            f"M2-BERT 80M, one sequence of {_length} tokens",
            "transformers' BERT-base with scaled_dot_product_attention",
            Figure.FORWARD,
            build,
            {"length": _length, "d_model": 768, "depth": 12, "heads": 12},
            _TINY,
            bar=_bar,
        )
    )
