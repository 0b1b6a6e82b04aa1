"""The encoder among transformers' classes, and what all of them share."""

from __future__ import annotations

import os
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel

from milkweed.models.hf.m2_bert.card import CARD, write_card
from milkweed.models.hf.m2_bert.inputs import check_mask, lengths_of, named_or_tuple
from milkweed.models.hf.m2_bert_config import OPTIONS, M2BertConfig
from milkweed.models.m2_bert import M2Bert, M2BertEncoder, MaskedLmHead, draw_embedding
from milkweed.nn.wrappers import through_wrappers

_TAGS, _WHOLE = ["milkweed", "m2_bert"], ["GatedMixerBlock"]


class M2BertPreTrainedModel(PreTrainedModel):
    """What the classes below share."""

    config_class = M2BertConfig
    base_model_prefix = "bert"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    model_tags = _TAGS
    # Blocks stay whole where layers are spread over devices.
    _no_split_modules = _WHOLE

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write a folder, see transformers; with a model card, if it has none."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", args[0] if args else True):
            write_card(self, os.path.join(save_directory, CARD))

    @classmethod
    @through_wrappers(changes=False)
    def from_plain(cls, model: M2Bert, **options: Any) -> Self:
        """Take over a plain model, e.g. one that [`milkweed.convert.checkpoints.m2.load_m2_bert`][] made.

        Args:
            model: The model. Its head is taken over by the class that has this head, and left behind by others.
            **options: Of the config, e.g. ``pooling``.

        Returns:
            A model with copies of its parameters, in its mode; a head that the plain model does not have is new.
        """
        made = cls(M2BertConfig.of(model, **options))
        prefix = "" if made.base_model is made else f"{cls.base_model_prefix}."
        own = made.state_dict()
        taken = {(prefix if name.startswith("encoder.") else "") + name: t for name, t in model.state_dict().items()}
        fits = {name: tensor for name, tensor in taken.items() if name in own and own[name].shape == tensor.shape}
        made.load_state_dict(own | fits)
        made.to(dtype=next(model.parameters()).dtype)  # type: ignore[call-arg]
        return made.train(model.training)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Modules are drawn where they are made; this is for those that from_pretrained finds no tensors for.
        if isinstance(module, nn.Embedding):
            draw_embedding(module)
        elif isinstance(module, MaskedLmHead):
            module.bias.zero_()
        elif hasattr(module, "reset_parameters") and next(module.parameters(recurse=False), None) is not None:
            module.reset_parameters()  # type: ignore[operator]


class M2BertModel(M2BertPreTrainedModel):
    """The encoder alone."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__(config)
        self.encoder = M2BertEncoder(**{ours: getattr(config, theirs) for theirs, ours in OPTIONS.items()})
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.encoder.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.encoder.tokens = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Tensor, ...]:
        """Encode.

        Args:
            input_ids: (B, L) tokens.
            attention_mask: (B, L), 1 for tokens and 0 for the padding behind them, at least one token in every row;
                everything by default. With ``padding="legacy"`` it changes nothing here.
            token_type_ids: (B, L).
            inputs_embeds: (B, L, hidden_size), instead of ``input_ids``.
            output_hidden_states: Whether to return the embeddings and every block's output as well; the config's choice
                by default.
            return_dict: Whether to return a named output or a tuple; the config's choice by default.

        Returns:
            ``last_hidden_state`` (B, L, hidden_size) and, if asked for, ``hidden_states``, 1 + num_hidden_layers of
            that shape.

        Raises:
            ValueError: There are no inputs or two, or the mask is not padding on the right.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        inputs = inputs_embeds if input_ids is None else input_ids
        assert inputs is not None
        if attention_mask is not None:
            check_mask(attention_mask, inputs)
        lengths = None if self.config.padding == "legacy" or attention_mask is None else lengths_of(attention_mask)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden: list[Tensor] | None = [] if wanted else None
        x = self.encoder(inputs, lengths, token_type_ids, hidden)
        states = None if hidden is None else tuple(hidden)
        return named_or_tuple(self, return_dict, BaseModelOutput(last_hidden_state=x, hidden_states=states))
