"""M2-BERT among transformers' classes: the plain network inside.

The Auto classes of transformers find them once milkweed and transformers are both imported, in either order.
"""

from milkweed.models.hf.m2_bert.base import M2BertModel, M2BertPreTrainedModel
from milkweed.models.hf.m2_bert.heads import (
    M2BertForMaskedLM,
    M2BertForQuestionAnswering,
    M2BertForSequenceClassification,
    M2BertForTokenClassification,
)
from milkweed.models.hf.m2_bert.text_encoding import M2BertForTextEncoding, TextEncodingOutput
from milkweed.models.hf.m2_bert_config import POOLINGS, M2BertConfig

__all__ = [
    "POOLINGS",
    "M2BertConfig",
    "M2BertForMaskedLM",
    "M2BertForQuestionAnswering",
    "M2BertForSequenceClassification",
    "M2BertForTextEncoding",
    "M2BertForTokenClassification",
    "M2BertModel",
    "M2BertPreTrainedModel",
    "TextEncodingOutput",
]
