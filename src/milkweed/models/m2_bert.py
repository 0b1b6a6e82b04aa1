"""M2-BERT: a bidirectional encoder of gated long convolutions and block-diagonal matrices, and its heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from milkweed._arguments import check_kind, check_probability, check_tensor, checked, plain
from milkweed._suggest import unknown
from milkweed.models.base import Model, check_tokens
from milkweed.nn import GatedMixerBlock
from milkweed.nn.lengths import tokens_without_padding, without_padding
from milkweed.ops import backends
from milkweed.ops._common import autocast_dtype

PADDINGS = ("masked", "legacy")
HEADS = ("classification", "masked_lm", "none")
# Of all norms but those inside mixers, as BERT has it.
_EPS = 1e-12


class M2BertEncoder(nn.Module):
    """Embeddings of tokens, positions and types → blocks of a mixer and a GLU; its options are those of `M2Bert`."""

    def __init__(
        self,
        d_input: int,
        length: int,
        d_model: int,
        depth: int,
        *,
        d_hidden: int | None = None,
        nblocks: int = 4,
        token_types: int = 2,
        pre_norm: bool = False,
        residual_long_conv: bool = True,
        padding: str = "masked",
        dropout: float = 0.0,
        kernel_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"d_input": d_input, "length": length, "d_model": d_model, "depth": depth}
        sizes["token_types"] = token_types
        check_kind(int, **sizes)
        check_kind(str, padding=padding)
        check_probability(dropout=dropout)
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if padding not in PADDINGS:
            raise ValueError(unknown("padding", padding, PADDINGS))
        self.length, self.d_model, self.padding = length, d_model, padding
        self.tokens = nn.Embedding(d_input, d_model)
        self.positions = nn.Embedding(length, d_model)
        self.types = nn.Embedding(token_types, d_model)
        self.norm = nn.LayerNorm(d_model, eps=_EPS)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            GatedMixerBlock(
                d_model,
                length,
                d_hidden=d_hidden,
                nblocks=nblocks,
                dropout=dropout,
                norm_eps=_EPS,
                bidirectional=True,
                residual_long_conv=residual_long_conv,
                pre_norm=pre_norm,
                kernel_options=kernel_options,
            )
            for _ in range(depth)
        )
        # Whether the backward pass computes blocks anew instead of keeping them; transformers switches it by this name.
        self.gradient_checkpointing = False
        for embedding in (self.tokens, self.positions, self.types):
            draw_embedding(embedding)

    def forward(
        self,
        inputs: Tensor,
        lengths: Tensor | None = None,
        token_types: Tensor | None = None,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """Run the encoder as `M2Bert`: (B, L, d_model); ``hidden`` gains the embeddings and every block's output."""
        lengths = None if self.padding == "legacy" else lengths
        x = self._embed(inputs, token_types, lengths)
        if hidden is not None:
            hidden.append(x)
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, lengths=lengths, use_reentrant=False, **backends.checkpoint_options())
            else:
                x = block(x, lengths=lengths)
            if hidden is not None:
                hidden.append(x)
        return x

    def _embed(self, inputs: Tensor, token_types: Tensor | None, lengths: Tensor | None) -> Tensor:
        check_tensor("inputs", inputs)
        embedded = inputs.is_floating_point()
        inputs = without_padding(inputs, lengths) if embedded else tokens_without_padding(inputs, lengths)
        if token_types is not None:
            check_tensor("token_types", token_types)
            token_types = tokens_without_padding(token_types, lengths)
        if not embedded:
            check_tokens(inputs, self.tokens.num_embeddings, "inputs: tokens")
        elif inputs.ndim != 3 or inputs.shape[-1] != self.d_model or inputs.shape[1] == 0:
            raise ValueError(
                f"inputs must be (B, L) tokens or (B, L, d_model={self.d_model}) embedded ones with L >= 1; "
                f"got shape {tuple(inputs.shape)}"
            )
        elif inputs.dtype != self.positions.weight.dtype and autocast_dtype(inputs) is None:
            raise TypeError(
                f"embedded inputs must be {self.positions.weight.dtype} as the parameters are; got {inputs.dtype}; "
                "cast them, or use autocast"
            )
        steps = inputs.shape[1]
        if steps > self.length:
            raise ValueError(
                f"this encoder was built for up to length={self.length} tokens; got shape {tuple(inputs.shape)}; "
                "cut the inputs, or use milkweed.convert.checkpoints.m2.extend_positions"
            )
        x = inputs if embedded else self.tokens(inputs)
        x = x + self.positions.weight[:steps]
        if token_types is None:
            x = x + self.types.weight[0]
        else:
            check_tokens(token_types, self.types.num_embeddings, "token_types")
            if token_types.shape != inputs.shape[:2]:
                raise ValueError(
                    f"token_types must have the inputs' shape {tuple(inputs.shape[:2])}; got {tuple(token_types.shape)}"
                )
            x = x + self.types(token_types)
        normed: Tensor = self.dropout(self.norm(x))
        return normed


class MaskedLmHead(nn.Module):
    """Logits of tokens from an encoder's outputs and its token embedding: the decoder has only a bias of its own."""

    def __init__(self, d_model: int, d_output: int) -> None:
        super().__init__()
        self.dense = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model, eps=_EPS)
        self.bias = nn.Parameter(torch.zeros(d_output))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Compare x (..., d_model) with every token of the embedding (d_output, d_model): (..., d_output)."""
        return F.linear(self.norm(F.gelu(self.dense(x))), embedding, self.bias)


class ClassificationHead(nn.Module):
    """Logits of classes from the first token's output: a linear layer, tanh, dropout, a linear layer."""

    def __init__(self, d_model: int, d_output: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.pooler = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(d_model, d_output)

    def forward(self, x: Tensor) -> Tensor:
        """Classify x (B, L, d_model): (B, d_output)."""
        logits: Tensor = self.classifier(self.dropout(torch.tanh(self.pooler(x[:, 0]))))
        return logits


class M2Bert(Model):
    """M2-BERT with or without a head.

    Args:
        d_input: Number of different tokens.
        d_output: Classes with ``head="classification"``; otherwise not needed.
        length: Longest sequence, in tokens.
        d_model: Channels.
        depth: Number of blocks.
        d_hidden: Channels inside the feed-forward layers; 4 d_model by default.
        nblocks: Blocks of their matrices.
        token_types: Number of token types.
        pre_norm: Whether every mixer normalises its input, as only the published model of 80M and 128 tokens does.
        residual_long_conv: Whether every mixer adds a long convolution of its input.
        head: ``"masked_lm"`` for logits of tokens, ``"classification"`` for those of classes, or ``"none"``.
        padding: ``"masked"``: outputs are those of each sequence alone, whatever its padding; ``"legacy"``: padding is
            read like any other token, as published checkpoints were trained; pad to ``length`` as they did.
        dropout: Probability, after the embeddings, inside the feed-forward layers and before the classifier.
        kernel_options: Further arguments of [`milkweed.nn.LongConv`][], for all long convolutions.

    Raises:
        ValueError: An option is unknown or out of range, or does not fit another.
        TypeError: An option is of another type.

    Source:
        Monarch Mixer (arXiv 2310.12109), section 5.1. The public training code starts all layers with the same numbers;
        here each is drawn by itself.

    Example:
        >>> bert = mw.models.M2Bert(d_input=1000, length=64, d_model=32, depth=1)
        >>> bert(torch.randint(1000, (2, 40)), lengths=torch.tensor([40, 25])).shape
        torch.Size([2, 40, 1000])
    """

    @checked(but=("dropout",))
    def __init__(
        self,
        d_input: int = 30528,
        d_output: int | None = None,
        length: int = 128,
        d_model: int = 768,
        depth: int = 12,
        d_hidden: int | None = None,
        nblocks: int = 4,
        token_types: int = 2,
        pre_norm: bool = False,
        residual_long_conv: bool = True,
        head: str = "masked_lm",
        padding: str = "masked",
        dropout: float = 0.1,
        kernel_options: Mapping[str, Any] | None = None,
    ) -> None:
        dropout = plain(dropout)
        encoder: dict[str, Any] = {
            "d_input": d_input,
            "length": length,
            "d_model": d_model,
            "depth": depth,
            "d_hidden": d_hidden,
            "nblocks": nblocks,
            "token_types": token_types,
            "pre_norm": pre_norm,
            "residual_long_conv": residual_long_conv,
            "padding": padding,
            "dropout": dropout,
            "kernel_options": kernel_options,
        }
        super().__init__(d_output=d_output, head=head, **encoder)
        if head not in HEADS:
            raise ValueError(unknown("head", head, HEADS))
        if head == "masked_lm" and d_output not in {None, d_input}:
            raise ValueError(f"head='masked_lm' predicts the tokens it reads: d_output={d_output} must be {d_input=}")
        if head == "classification" and (d_output is None or d_output < 1):
            raise ValueError(f"head='classification' needs d_output, the number of classes; got {d_output}")
        self.encoder = M2BertEncoder(**encoder)
        self.head: nn.Module | None = None
        if head == "masked_lm":
            self.head = MaskedLmHead(d_model, d_input)
        elif head == "classification":
            assert d_output is not None
            self.head = ClassificationHead(d_model, d_output, dropout)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None, token_types: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            inputs: (B, L) tokens, or (B, L, d_model) embedded ones; 1 <= L <= length.
            lengths: (B,) integers, the valid steps of right-padded sequences; all of them by default, and always with
                ``padding="legacy"``.
            token_types: (B, L) integers; all 0 by default.

        Returns:
            (B, L, d_input), (B, d_output), or without a head (B, L, d_model).
        """
        x = self.encoder(inputs, lengths, token_types)
        if self.head is None:
            return x
        return self.head(x, self.encoder.tokens.weight) if isinstance(self.head, MaskedLmHead) else self.head(x)


@torch.no_grad()
def draw_embedding(embedding: nn.Embedding) -> None:
    """Draw an embedding as BERT does."""
    embedding.weight.normal_(std=0.02)
