"""M2-BERT among transformers' classes: the plain network inside, registered with the Auto classes on import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milkweed._arguments import check_tensor
from milkweed._suggest import unknown
from milkweed.models.m2_bert import ClassificationHead, M2Bert, M2BertEncoder, MaskedLmHead, draw_embedding
from milkweed.nn.lengths import valid_steps
from milkweed.nn.wrappers import through_wrappers

try:
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
        AutoModelForTextEncoding,
        PretrainedConfig,
        PreTrainedModel,
    )
    from transformers.modeling_outputs import (
        BaseModelOutput,
        MaskedLMOutput,
        ModelOutput,
        SequenceClassifierOutput,
    )
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('these classes extend transformers: pip install "milkweed[hf]"') from error

POOLINGS = ("attention", "cls", "mean")
_PROBLEMS = ("multi_label_classification", "regression", "single_label_classification")
# What transformers' collators give where nothing is to be predicted.
_IGNORED = -100
_ELSEWHERE = (
    "for M2-BERT's published files use from_plain(load_m2_bert(read_m2_checkpoint(...))) of "
    "milkweed.convert.checkpoints.m2, for a run of milkweed from_plain(milkweed.load_pretrained(...))"
)


class M2BertConfig(PretrainedConfig):
    """What an M2-BERT is, by the names that BERT has for it.

    Args:
        vocab_size: Number of different tokens.
        hidden_size: Channels.
        num_hidden_layers: Blocks.
        intermediate_size: Channels inside the feed-forward layers; four times ``hidden_size`` by default.
        max_position_embeddings: Longest sequence, in tokens.
        type_vocab_size: Number of token types.
        monarch_mlp_nblocks: Blocks of the feed-forward layers' matrices.
        pre_norm: As in [`milkweed.models.M2Bert`][].
        residual_long_conv: As there.
        padding: ``"masked"`` or ``"legacy"``, as there.
        hidden_dropout_prob: Dropout, as there.
        kernel_options: As there.
        pooling: How ``M2BertForTextEncoding`` makes one vector of a text: ``"mean"`` over its tokens, ``"cls"`` for the
            first, or ``"attention"`` for a mean with learned weights.
        pad_token_id: The token of the padding.
        **options: Those of every transformers config.

    Raises:
        ValueError: The pooling is unknown.
    """

    model_type = "m2_bert"

    def __init__(
        self,
        vocab_size: int = 30528,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        intermediate_size: int | None = None,
        max_position_embeddings: int = 128,
        type_vocab_size: int = 2,
        monarch_mlp_nblocks: int = 4,
        pre_norm: bool = False,
        residual_long_conv: bool = True,
        padding: str = "masked",
        hidden_dropout_prob: float = 0.1,
        kernel_options: dict[str, Any] | None = None,
        pooling: str = "mean",
        pad_token_id: int = 0,
        **options: Any,
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(unknown("pooling", pooling, POOLINGS))
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = 4 * hidden_size if intermediate_size is None else intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.monarch_mlp_nblocks = monarch_mlp_nblocks
        self.pre_norm = pre_norm
        self.residual_long_conv = residual_long_conv
        self.padding = padding
        self.hidden_dropout_prob = hidden_dropout_prob
        self.kernel_options = kernel_options
        self.pooling = pooling
        super().__init__(**({"pad_token_id": pad_token_id} | options))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a config from its values; see transformers.

        Returns:
            As there.

        Raises:
            ValueError: They are those of another model, such as M2-BERT's own files, whose weights have other names;
                transformers would go on with random ones.
        """
        if config_dict.get("model_type", cls.model_type) != cls.model_type or "hyena_emb_dim" in config_dict:
            kind = config_dict.get("model_type")
            raise ValueError(f"the config is not one of these classes' (model_type={kind!r}); {_ELSEWHERE}")
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Find the values of a config in a folder or on the hub; see transformers.

        Returns:
            As there.

        Raises:
            FileNotFoundError: There is no ``config.json``.
        """
        found = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not found[0]:
            raise FileNotFoundError(f"{pretrained_model_name_or_path} has no config.json; {_ELSEWHERE}")
        return found

    @classmethod
    def of(cls, model: M2Bert, **options: Any) -> Self:
        """Describe a plain model; further options of the config, e.g. ``pooling``, may be given."""
        given = model.options
        named = {theirs: given[ours] for theirs, ours in _OPTIONS.items()}
        if given["head"] == "classification":
            named["num_labels"] = given["d_output"]
        return cls(**(named | options))


# Theirs to ours.
_OPTIONS = {
    "vocab_size": "d_input",
    "max_position_embeddings": "length",
    "hidden_size": "d_model",
    "num_hidden_layers": "depth",
    "intermediate_size": "d_hidden",
    "monarch_mlp_nblocks": "nblocks",
    "type_vocab_size": "token_types",
    "pre_norm": "pre_norm",
    "residual_long_conv": "residual_long_conv",
    "padding": "padding",
    "hidden_dropout_prob": "dropout",
    "kernel_options": "kernel_options",
}


class M2BertPreTrainedModel(PreTrainedModel):
    """What the classes below share."""

    config_class = M2BertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True

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
        self.encoder = M2BertEncoder(**{ours: getattr(config, theirs) for theirs, ours in _OPTIONS.items()})
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
            _check_mask(attention_mask, inputs)
        lengths = None if self.config.padding == "legacy" or attention_mask is None else _lengths(attention_mask)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden: list[Tensor] | None = [] if wanted else None
        x = self.encoder(inputs, lengths, token_type_ids, hidden)
        states = None if hidden is None else tuple(hidden)
        return _out(self, return_dict, BaseModelOutput(last_hidden_state=x, hidden_states=states))


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
        loss = None if labels is None else _cross_entropy(logits.float(), labels)
        return _out(self, return_dict, MaskedLMOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states))


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
        loss = None if labels is None else self._loss(logits.float(), labels)
        return _out(
            self, return_dict, SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=encoded.hidden_states)
        )

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        kind: str | None = self.config.problem_type
        check_tensor("labels", labels)
        if kind is None:
            several = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
            kind = "regression" if self.config.num_labels == 1 else several
        if kind not in _PROBLEMS:
            raise ValueError(unknown("config.problem_type", kind, _PROBLEMS))
        if kind == "single_label_classification":
            return _cross_entropy(logits, labels)
        regression = kind == "regression"
        single = regression and logits.shape[1] == 1 and labels.shape == logits.shape[:1]
        if labels.shape != logits.shape and not single:
            fix = "" if regression else ", 0 or 1 for every class; classes are (B,) integers"
            raise ValueError(
                f"labels must be numbers (B, num_labels) = {tuple(logits.shape)}{fix}; got {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )
        labels = labels.reshape(logits.shape).to(logits.dtype)
        return (F.mse_loss if regression else F.binary_cross_entropy_with_logits)(logits, labels)


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
        return _out(self, return_dict, TextEncodingOutput(self._pooled(x, attention_mask), x, encoded.hidden_states))

    def _pooled(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.config.pooling == "cls":
            return x[:, 0]
        real = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        # Where nothing of a row is real every weight would be NaN; its mean is then over all of it.
        scores = x.new_zeros(x.shape[:2]) if self.score is None else self.score(x).squeeze(-1)
        weights = scores.float().masked_fill(~real, torch.finfo(torch.float32).min).softmax(-1)
        return torch.einsum("bl,bld->bd", weights.to(x.dtype), x)


def _check_mask(mask: Tensor, inputs: Tensor) -> None:
    check_tensor("attention_mask", mask)
    if mask.shape != inputs.shape[:2]:
        raise ValueError(
            f"attention_mask must be (B, L) = {tuple(inputs.shape[:2])} as the inputs are; got shape "
            f"{tuple(mask.shape)}"
        )


def _lengths(mask: Tensor) -> Tensor:
    """(B, L) mask to (B,) numbers of tokens."""
    lengths = mask.sum(-1, dtype=torch.int64)
    if torch.compiler.is_compiling() or mask.is_meta:
        return lengths
    if not torch.equal(mask, valid_steps(lengths, mask.shape[-1]).to(mask.dtype)):
        raise ValueError(
            "attention_mask must be (B, L) with 1 for tokens and 0 for the padding behind them; "
            f"got another mask of shape {tuple(mask.shape)}; use tokenizer.padding_side = 'right'"
        )
    empty = (lengths == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"attention_mask has no token in row {empty[0]}; drop empty texts, or keep their [CLS]")
    return lengths


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the integers (...) that are not -100, of logits (..., C)."""
    check_tensor("labels", labels)
    expected, count = logits.shape[:-1], logits.shape[-1]
    if labels.shape != expected or labels.is_floating_point():
        raise ValueError(
            f"labels must be integers of shape {tuple(expected)}; got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        strange = labels[(labels != _IGNORED) & ((labels < 0) | (labels >= count))]
        if strange.numel():
            raise ValueError(
                f"labels must be in 0 .. {count - 1}, or {_IGNORED} where nothing is predicted; got {int(strange[0])}"
            )
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten().long(), ignore_index=_IGNORED)


def _out(model: PreTrainedModel, return_dict: bool | None, output: Any) -> Any:
    wanted = model.config.return_dict if return_dict is None else return_dict
    return output if wanted else output.to_tuple()


AutoConfig.register(M2BertConfig.model_type, M2BertConfig, exist_ok=True)
AutoModel.register(M2BertConfig, M2BertModel, exist_ok=True)
AutoModelForMaskedLM.register(M2BertConfig, M2BertForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(M2BertConfig, M2BertForSequenceClassification, exist_ok=True)
AutoModelForTextEncoding.register(M2BertConfig, M2BertForTextEncoding, exist_ok=True)
