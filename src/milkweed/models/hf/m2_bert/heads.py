"""The encoder with heads."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.modeling_outputs import (
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from milkweed.models.hf.m2_bert.base import M2BertModel, M2BertPreTrainedModel
from milkweed.models.hf.m2_bert.inputs import classification_loss, cross_entropy, named_or_tuple, position_loss
from milkweed.models.hf.m2_bert_config import M2BertConfig
from milkweed.models.m2_bert import ClassificationHead, MaskedLmHead


class M2BertForMaskedLM(M2BertPreTrainedModel):
    """The encoder with logits of tokens, whose decoder is the token embedding."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        self.bert = M2BertModel(config)
        self.head = MaskedLmHead(config.hidden_size, config.vocab_size)
        self.post_init()

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Change the number of tokens, see transformers; new tokens get a bias of 0."""
        embedding = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        old = self.head.bias
        bias = old.new_zeros(embedding.num_embeddings)
        kept = min(len(old), len(bias))
        bias[:kept] = old.detach()[:kept]
        self.head.bias = nn.Parameter(bias)
        return embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple[Tensor, ...]:
        """Predict tokens; the inputs are those of [`milkweed.models.hf.m2_bert.M2BertModel`][].

        ``labels`` are (B, L) tokens, -100 where none is to be predicted.

        Returns:
            ``logits`` (B, L, vocab_size) and with labels the ``loss``.
        """
        encoded = self.bert(
            input_ids, attention_mask, token_type_ids, inputs_embeds, output_hidden_states, return_dict=True
        )
        logits = self.head(encoded.last_hidden_state, self.bert.encoder.tokens.weight)
        loss = None if labels is None else cross_entropy(logits.float(), labels)
        return named_or_tuple(
            self, return_dict, MaskedLMOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states)
        )


class M2BertForSequenceClassification(M2BertPreTrainedModel):
    """The encoder with a classifier of the first token's output, or a regression with one label.

    The config has ``num_labels`` and, for several labels at once, ``problem_type``.
    """

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        self.bert = M2BertModel(config)
        self.head = ClassificationHead(config.hidden_size, config.num_labels or 1, config.hidden_dropout_prob)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Classify; the inputs are those of [`milkweed.models.hf.m2_bert.M2BertModel`][].

        ``labels`` are (B,) classes; numbers for regression; (B, num_labels) numbers 0 or 1 for several labels at once.

        Returns:
            ``logits`` (B, num_labels) and with labels the ``loss``.
        """
        encoded = self.bert(
            input_ids, attention_mask, token_type_ids, inputs_embeds, output_hidden_states, return_dict=True
        )
        logits = self.head(encoded.last_hidden_state)
        loss = None if labels is None else classification_loss(self.config, logits.float(), labels)
        return named_or_tuple(
            self, return_dict, SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states)
        )


class M2BertForTokenClassification(M2BertPreTrainedModel):
    """The encoder with a classifier of every token; the config has ``num_labels``."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        self.bert = M2BertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 1)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TokenClassifierOutput | tuple[Tensor, ...]:
        """Classify tokens; the inputs are those of [`milkweed.models.hf.m2_bert.M2BertModel`][].

        ``labels`` are (B, L) classes, -100 where none is to be predicted.

        Returns:
            ``logits`` (B, L, num_labels) and with labels the ``loss``.
        """
        encoded = self.bert(
            input_ids, attention_mask, token_type_ids, inputs_embeds, output_hidden_states, return_dict=True
        )
        logits = self.classifier(self.dropout(encoded.last_hidden_state))
        loss = None if labels is None else cross_entropy(logits.float(), labels)
        return named_or_tuple(
            self, return_dict, TokenClassifierOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states)
        )


class M2BertForQuestionAnswering(M2BertPreTrainedModel):
    """The encoder with logits of where an answer starts and ends."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        self.bert = M2BertModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> QuestionAnsweringModelOutput | tuple[Tensor, ...]:
        """Find answers; the inputs are those of [`milkweed.models.hf.m2_bert.M2BertModel`][].

        ``start_positions`` and ``end_positions`` are (B,) places of tokens; places behind the text count for nothing.

        Returns:
            ``start_logits`` and ``end_logits`` (B, L) and, with both positions, the ``loss``, their mean.

        Raises:
            ValueError: There is only one of the positions.
        """
        if (start_positions is None) != (end_positions is None):
            raise ValueError("give both start_positions and end_positions, or neither")
        encoded = self.bert(
            input_ids, attention_mask, token_type_ids, inputs_embeds, output_hidden_states, return_dict=True
        )
        start, end = self.qa_outputs(encoded.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (position_loss(start, start_positions) + position_loss(end, end_positions)) / 2
        return named_or_tuple(
            self,
            return_dict,
            QuestionAnsweringModelOutput(
                loss=loss,
                start_logits=start.contiguous(),
                end_logits=end.contiguous(),
                hidden_states=encoded.hidden_states,
            ),
        )
