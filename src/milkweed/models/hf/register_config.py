"""Tells transformers' Auto classes of the config of M2-BERT: imported once they are there."""

from transformers.models.auto.configuration_auto import AutoConfig

from milkweed.models.hf.m2_bert_config import M2BertConfig

AutoConfig.register(M2BertConfig.model_type, M2BertConfig, exist_ok=True)
