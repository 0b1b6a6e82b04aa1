"""Experts as transformers keeps them, and tiny mixtures of them."""

import importlib

import pytest
import torch

transformers = pytest.importorskip("transformers")

_SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
_MIXTRAL = _SIZES | {"intermediate_size": 64, "num_local_experts": 4}
_QWEN = _SIZES | {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64}
_DEEPSEEK = _SIZES | {
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}


class Config:
    """The options of experts, as attributes."""

    _experts_implementation = "batched_mm"

    def __init__(self, options):
        vars(self).update(options)


def _moe(module, name, **options):
    kind = getattr(importlib.import_module(f"transformers.models.{module}.modeling_{module}"), name)
    return kind(Config(options))


# Of each way in which a class can keep experts: gates or none, rows one after the other or by turns, biases, transposed
# matrices, a gating of its own, a norm behind.
EXPERTS = {
    "mixtral": lambda: _moe(
        "mixtral", "MixtralExperts", num_local_experts=4, hidden_size=8, intermediate_size=6, hidden_act="silu"
    ),
    "nemotron_h": lambda: _moe(
        "nemotron_h",
        "NemotronHExperts",
        n_routed_experts=4,
        hidden_size=8,
        moe_intermediate_size=6,
        moe_latent_size=None,
        mlp_hidden_act="relu2",
    ),
    "gpt_oss": lambda: _moe(
        "gpt_oss",
        "GptOssExperts",
        num_local_experts=5,
        hidden_size=8,
        intermediate_size=6,
        swiglu_alpha=1.7,
        swiglu_limit=0.4,
    ),
    "privacy_filter": lambda: _moe(
        "openai_privacy_filter",
        "OpenAIPrivacyFilterExperts",
        num_local_experts=5,
        hidden_size=8,
        intermediate_size=6,
        swiglu_alpha=1.7,
        swiglu_limit=0.4,
    ),
    "muse_spark": lambda: _moe(
        "muse_spark",
        "MuseSparkExperts",
        num_local_experts=4,
        moe_hidden_size=8,
        moe_intermediate_size=6,
        hidden_act="silu",
        post_norm_eps=1e-6,
    ),
}


def make(kind):
    torch.manual_seed(0)
    experts = EXPERTS[kind]()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return experts


def routed(experts, dtype):
    """Inputs of which none goes to the third expert, and one to an expert that is elsewhere, where that can be said."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, 8, generator=generator).to(dtype)
    index = torch.tensor([0, 1, 3])[torch.stack([torch.randperm(3, generator=generator)[:2] for _ in range(9)])]
    weights = torch.rand(9, 2, generator=generator).to(dtype)
    return x, index, weights


MODELS = {
    "mixtral": lambda **more: transformers.MixtralForCausalLM(transformers.MixtralConfig(**_MIXTRAL | more)),
    "qwen2_moe": lambda: transformers.Qwen2MoeForCausalLM(
        transformers.Qwen2MoeConfig(**_QWEN, shared_expert_intermediate_size=48)
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**_QWEN, head_dim=16)),
    "olmoe": lambda: transformers.OlmoeForCausalLM(
        transformers.OlmoeConfig(**_SIZES, intermediate_size=48, num_experts=4, num_experts_per_tok=2)
    ),
    "phimoe": lambda: transformers.PhimoeForCausalLM(transformers.PhimoeConfig(**_MIXTRAL)),
    "deepseek_v3": lambda: transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**_DEEPSEEK)),
    "gpt_oss": lambda: transformers.GptOssForCausalLM(transformers.GptOssConfig(**_MIXTRAL, head_dim=16)),
}
# Layers of experts: of two blocks with four experts of three matrices, DeepSeek's first block aside.
MIXTURES = dict.fromkeys(MODELS, 24) | {"deepseek_v3": 12}


def build(family, **more):
    torch.manual_seed(0)
    return MODELS[family](**more).eval()


def mixture(family):
    """A model whose weights are not all near zero, so that each expert counts."""
    model = build(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 3:
                parameter.normal_(std=0.1)
    return model


def batches(count=12):
    generator = torch.Generator().manual_seed(1)
    shape = (4, 10)
    return [
        {
            "input_ids": torch.randint(3, 50, shape, generator=generator),
            "attention_mask": torch.ones(shape, dtype=torch.long),
        }
        for _ in range(count)
    ]


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits
