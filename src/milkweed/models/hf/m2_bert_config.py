"""What an M2-BERT of transformers is."""

from __future__ import annotations

from typing import Any, Self

from milkweed._suggest import unknown
from milkweed.models.m2_bert import M2Bert

try:
    from transformers.configuration_utils import PretrainedConfig
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('these classes extend transformers: pip install "milkweed[hf]"') from error

POOLINGS = ("attention", "cls", "mean")
_ELSEWHERE = (
    "for M2-BERT's published files use save_m2_folder(...) of milkweed.convert.checkpoints.m2_folder, for a run of "
    "milkweed from_plain(milkweed.load_pretrained(...))"
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
        named = {theirs: given[ours] for theirs, ours in OPTIONS.items()}
        if given["head"] == "classification":
            named["num_labels"] = given["d_output"]
        return cls(**(named | options))


# Theirs to ours.
OPTIONS = {
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
