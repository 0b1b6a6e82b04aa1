"""The Monarch paper's models: published architectures with attention and feed-forward layers replaced at nblocks 4."""

import pytest
import torch
from torch import nn

from milkweed.models import MlpMixer
from milkweed.nn import MonarchLinear

transformers = pytest.importorskip("transformers")
Conv1D = transformers.pytorch_utils.Conv1D


def monarch_parameters(in_features, out_features, bias):
    layer = MonarchLinear(in_features, out_features, nblocks=4, bias=bias, device="meta")
    return sum(p.numel() for p in layer.parameters())


def converted_count(model, replaced):
    """Parameters with the named linear layers replaced, and how many matrices those are.

    GPT-2 packs query, key and value into one layer, which becomes three Monarch matrices.
    """
    total, matrices = sum(p.numel() for p in model.parameters()), 0
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, Conv1D)) or not any(part in name for part in replaced):
            continue
        in_features, out_features = module.weight.shape if isinstance(module, Conv1D) else module.weight.T.shape
        parts = 3 if name.endswith("c_attn") else 1
        total -= sum(p.numel() for p in module.parameters())
        total += parts * monarch_parameters(in_features, out_features // parts, module.bias is not None)
        matrices += parts
    return total, matrices


def gpt2(**sizes):
    return transformers.GPT2Model(transformers.GPT2Config(**sizes))


def bert(**sizes):
    return transformers.BertModel(transformers.BertConfig(**sizes))


def mixer():
    return MlpMixer(768, 1000, length=196, d_model=768, depth=12, token_dim=384, channel_dim=3072)


LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
CASES = {
    "gpt2-small": (gpt2, ["attn.c_", "mlp.c_"], 6 * 12, 71.3e6),
    "gpt2-medium": (lambda: gpt2(n_embd=1024, n_layer=24, n_head=16), ["attn.c_", "mlp.c_"], 6 * 24, 166.1e6),
    "bert-base": (bert, ["encoder.layer"], 6 * 12, 56.4e6),
    "bert-large": (lambda: bert(**LARGE), ["encoder.layer"], 6 * 24, 146.4e6),
    "vit-b": (
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000)),
        ["layer"],
        6 * 12,
        33.5e6,
    ),
    "mixer-b": (mixer, ["channels"], 2 * 12, 21.0e6),
}


@pytest.mark.parametrize("case", CASES)
def test_counts_of_the_paper(case):
    build, replaced, matrices, expected = CASES[case]
    with torch.device("meta"):
        model = build()
    found = converted_count(model, replaced)
    assert found[1] == matrices
    # Written with one decimal, cut off rather than rounded.
    assert found[0] == pytest.approx(expected, abs=0.1e6)
