"""Tiny models of the families that are converted, from their configs, and batches for each."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

_ENCODER = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_LLAMA = _ENCODER | {"num_key_value_heads": 1, "intermediate_size": 64}
BUILDERS = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**_ENCODER, intermediate_size=64)),
    "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**_ENCODER, intermediate_size=64)),
    "distilbert": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA)),
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=16,
            patch_size=8,
        )
    ),
}
# Linear layers that the default rules convert, of all that there are.
CONVERTED = {
    "bert": (12, 13),
    "roberta": (12, 13),
    "distilbert": (12, 12),
    "gpt2": (8, 9),
    "llama": (14, 15),
    "vit": (12, 13),
}


def build(family):
    torch.manual_seed(0)
    return BUILDERS[family]().eval()


def batches(family, count=20, padded=False):
    generator = torch.Generator().manual_seed(1)
    if family == "vit":
        return [{"pixel_values": torch.randn(4, 3, 16, 16, generator=generator)} for _ in range(count)]
    found = []
    for _ in range(count):
        mask = torch.ones(4, 10, dtype=torch.long)
        if padded:
            mask[2:, 6:] = 0
        found.append({"input_ids": torch.randint(3, 50, (4, 10), generator=generator), "attention_mask": mask})
    return found


def output(model, batch):
    with torch.no_grad():
        return model(**batch)[0]
