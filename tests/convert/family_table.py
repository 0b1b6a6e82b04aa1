"""Every family of models that conversion is tried on: a tiny one of each, with a head, and what is to come of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

T = pytest.importorskip("transformers")

_SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_ENCODER = _SIZES | {"intermediate_size": 64}
# Fewer heads of keys and values than of queries.
_DECODER = _ENCODER | _TOKENS | {"num_key_value_heads": 2}
_DEBERTA = _ENCODER | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16}
_T5 = {
    "vocab_size": 50,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_WHISPER = _TOKENS | {
    "vocab_size": 50,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 8,
    "max_source_positions": 10,
    "max_target_positions": 20,
    "decoder_start_token_id": 1,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 8,
}


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of model, and what the default rules do to its linear layers."""

    model: str
    config: Callable[[], Any]
    converted: int  # of all layers
    layers: int
    # Layers of which each matrix is converted by itself, by the end of their names: outputs of each.
    packed: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    # Feed-forward layers whose hidden units can be reordered.
    reordered: int = 2
    inputs: str = "text"


FAMILIES = {
    "bert": Family("BertForSequenceClassification", lambda: T.BertConfig(**_ENCODER), 12, 14),
    "roberta": Family("RobertaForSequenceClassification", lambda: T.RobertaConfig(**_ENCODER), 12, 14),
    "distilbert": Family(
        "DistilBertForSequenceClassification",
        lambda: T.DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
        12,
        14,
    ),
    "deberta": Family(
        "DebertaForSequenceClassification", lambda: T.DebertaConfig(**_DEBERTA), 12, 14, {"in_proj": [32, 32, 32]}
    ),
    "deberta_v2": Family(
        "DebertaV2ForSequenceClassification",
        lambda: T.DebertaV2Config(**_DEBERTA, position_buckets=8, share_att_key=True, norm_rel_ebd="layer_norm"),
        12,
        14,
    ),
    "modernbert": Family(
        "ModernBertForSequenceClassification",
        lambda: T.ModernBertConfig(**_ENCODER, **_TOKENS, cls_token_id=1, sep_token_id=2),
        8,
        10,
        {"Wqkv": [32, 32, 32], "Wi": [64, 64]},
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        lambda: T.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, **_TOKENS),
        8,
        9,
        {"c_attn": [32, 32, 32]},
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        lambda: T.GPTNeoXConfig(**_ENCODER, **_TOKENS),
        8,
        9,
        {"query_key_value": [32, 32, 32]},
    ),
    "llama": Family("LlamaForCausalLM", lambda: T.LlamaConfig(**_DECODER), 14, 15),
    "qwen2": Family("Qwen2ForCausalLM", lambda: T.Qwen2Config(**_DECODER, tie_word_embeddings=True), 14, 15),
    "qwen3": Family("Qwen3ForCausalLM", lambda: T.Qwen3Config(**_DECODER, head_dim=16), 14, 15),
    "gemma": Family("GemmaForCausalLM", lambda: T.GemmaConfig(**_DECODER, head_dim=8), 14, 15),
    "gemma2": Family("Gemma2ForCausalLM", lambda: T.Gemma2Config(**_DECODER, head_dim=8), 14, 15),
    "gemma3": Family("Gemma3ForCausalLM", lambda: T.Gemma3TextConfig(**_DECODER, head_dim=8), 14, 15),
    "mistral": Family("MistralForCausalLM", lambda: T.MistralConfig(**_DECODER), 14, 15),
    "mixtral": Family(
        "MixtralForCausalLM", lambda: T.MixtralConfig(**_DECODER, num_local_experts=4), 32, 33, reordered=8
    ),
    "phi": Family("PhiForCausalLM", lambda: T.PhiConfig(**_DECODER), 12, 13),
    "phi3": Family(
        "Phi3ForCausalLM",
        lambda: T.Phi3Config(**_DECODER),
        8,
        9,
        {"qkv_proj": [32, 16, 16], "gate_up_proj": [64, 64]},
    ),
    "t5": Family("T5ForConditionalGeneration", lambda: T.T5Config(**_T5), 32, 33, reordered=4, inputs="seq2seq"),
    "t5_gated": Family(
        "T5ForConditionalGeneration",
        lambda: T.T5Config(**_T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        36,
        37,
        reordered=4,
        inputs="seq2seq",
    ),
    "whisper": Family(
        "WhisperForConditionalGeneration",
        lambda: T.WhisperConfig(**_WHISPER),
        32,
        33,
        reordered=4,
        inputs="speech",
    ),
    "clip": Family(
        "CLIPModel",
        lambda: T.CLIPConfig(text_config=_ENCODER | _TOKENS, vision_config=dict(_VISION), projection_dim=16),
        24,
        26,
        reordered=4,
        inputs="text and image",
    ),
    "vit": Family("ViTForImageClassification", lambda: T.ViTConfig(**_VISION), 12, 13, inputs="image"),
}
GENERATING = [name for name, family in FAMILIES.items() if family.model.endswith(("LM", "LMHeadModel", "Generation"))]


def build(name):
    """The dense model, with embeddings far enough apart that they tell tokens apart."""
    torch.manual_seed(0)
    model = getattr(T, FAMILIES[name].model)(FAMILIES[name].config()).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight.normal_()
    return model


def batch(name, seed=1):
    """Inputs of a model, of one length."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (3, 9), generator=generator)
    ids[:, -1] = 2  # the end, where CLIP looks
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    image = {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator)}
    return {
        "text": text,
        "image": image,
        "text and image": text | image,
        "seq2seq": text | {"decoder_input_ids": ids.flip(1)},
        "speech": {"input_features": torch.randn(3, 8, 20, generator=generator), "decoder_input_ids": ids},
    }[FAMILIES[name].inputs]


def output(model, inputs):
    """What a model gives at its head."""
    with torch.no_grad():
        found = model(**inputs)
    return found.logits_per_image if "logits_per_image" in found else found.logits


def hidden(model, inputs):
    """What the model under the head gives."""
    with torch.no_grad():
        if "pixel_values" in inputs and "input_ids" in inputs:
            return model.vision_model(inputs["pixel_values"])[0]
        base = getattr(model, model.base_model_prefix, model)
        return base(**inputs)[0]
