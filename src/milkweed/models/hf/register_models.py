"""Tells transformers' Auto classes of the classes of M2-BERT: imported once they are there."""

from transformers.models.auto import modeling_auto as auto

from milkweed.models.hf import m2_bert, register_config  # noqa: F401

auto.AutoModel.register(m2_bert.M2BertConfig, m2_bert.M2BertModel, exist_ok=True)
for name in ("MaskedLM", "QuestionAnswering", "SequenceClassification", "TextEncoding", "TokenClassification"):
    getattr(auto, f"AutoModelFor{name}").register(
        m2_bert.M2BertConfig, getattr(m2_bert, f"M2BertFor{name}"), exist_ok=True
    )
