"""The encoder with one vector per text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from milkweed.models.hf.m2_bert.base import M2BertModel, M2BertPreTrainedModel
from milkweed.models.hf.m2_bert.inputs import named_or_tuple
from milkweed.models.hf.m2_bert_config import M2BertConfig


@dataclass
class TextEncodingOutput(ModelOutput):
    """What `M2BertForTextEncoding` returns.

    Attributes:
        sentence_embedding: (B, hidden_size).
        last_hidden_state: (B, L, hidden_size).
        hidden_states: The embeddings and every block's output, if asked for.
    """

    sentence_embedding: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class M2BertForTextEncoding(M2BertPreTrainedModel):
    """The encoder with one vector per text, made as ``pooling`` of the config says."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        self.bert = M2BertModel(config)
        self.score = nn.Linear(config.hidden_size, 1) if config.pooling == "attention" else None
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TextEncodingOutput | tuple[Tensor, ...]:
        """Encode texts; the inputs are those of [`milkweed.models.hf.m2_bert.M2BertModel`][].

        Means leave the padding out, with ``padding="legacy"`` too.

        Returns:
            ``sentence_embedding`` (B, hidden_size) and ``last_hidden_state``.
        """
        encoded = self.bert(
            input_ids, attention_mask, token_type_ids, inputs_embeds, output_hidden_states, return_dict=True
        )
        x = encoded.last_hidden_state
        return named_or_tuple(
            self, return_dict, TextEncodingOutput(self._pooled(x, attention_mask), x, encoded.hidden_states)
        )

    def _pooled(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.config.pooling == "cls":
            return x[:, 0]
        real = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        # Where nothing of a row is real every weight would be NaN; its mean is then over all of it.
        scores = x.new_zeros(x.shape[:2]) if self.score is None else self.score(x).squeeze(-1)
        weights = scores.float().masked_fill(~real, torch.finfo(torch.float32).min).softmax(-1)
        return torch.einsum("bl,bld->bd", weights.to(x.dtype), x)
