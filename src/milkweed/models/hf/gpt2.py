"""GPT-2, dense or structured."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from milkweed._arguments import checked
from milkweed.models.base import Model, check_tokens
from milkweed.nn import Stepper, build_linear, check_spec
from milkweed.nn.lengths import tokens_without_padding
from milkweed.nn.stepping import check_batch_size
from milkweed.nn.structured_linear import ConcatLinear, StructuredLinear


class Gpt2(Model):
    """transformers' GPT-2 from scratch, its attention and feed-forward layers structured on request.

    Query, key and value, packed in GPT-2, become three matrices. Embedding and head are one, and stay dense.

    Args:
        d_input: Number of different tokens.
        d_output: The same.
        length: Longest context, in tokens.
        d_model: Channels.
        depth: Number of blocks.
        heads: Attention heads, which must divide ``d_model``.
        linear: The linear layers of all blocks as plain values: ``{"name": "dense"}``, GPT-2's own, or, e.g.,
            ``{"name": "monarch", "nblocks": 4}``, drawn as the layer does itself, with biases of 0 as GPT-2's.
        dropout: Probability, in all places where GPT-2 has it.
        vocabulary: The characters that the tokens stand for, for those who use the model, as ``model.vocabulary``; not
            needed to run it.

    Raises:
        ValueError: A size is below 1, or does not fit another.

    Source:
        Monarch (arXiv 2204.00595) replaces the same layers of GPT-2.

    Example:
        >>> model = mw.models.Gpt2(96, 96, length=64, d_model=32, depth=2, linear={"name": "monarch", "nblocks": 2})
        >>> model(torch.randint(96, (2, 50))).shape
        torch.Size([2, 50, 96])
    """

    @checked(but=("linear",))
    def __init__(
        self,
        d_input: int,
        d_output: int,
        length: int,
        d_model: int = 128,
        depth: int = 4,
        heads: int = 4,
        linear: Mapping[str, Any] | None = None,
        dropout: float = 0.0,
        vocabulary: str | None = None,
    ) -> None:
        linear = check_spec("linear", {"name": "dense"} if linear is None else linear)
        super().__init__(
            d_input=d_input,
            d_output=d_output,
            length=length,
            d_model=d_model,
            depth=depth,
            heads=heads,
            linear=linear,
            dropout=dropout,
            vocabulary=vocabulary,
        )
        sizes = {"d_input": d_input, "length": length, "d_model": d_model, "depth": depth, "heads": heads}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if d_input != d_output:
            raise ValueError(f"GPT-2 predicts the tokens that it reads: d_output={d_output} must be d_input={d_input}")
        if d_model % heads:
            raise ValueError(f"heads must divide d_model; got heads={heads}, d_model={d_model}")
        if vocabulary is not None and len(vocabulary) != d_input:
            raise ValueError(f"vocabulary must have d_input={d_input} characters; got {len(vocabulary)}")
        self.d_input, self.length, self.vocabulary = d_input, length, vocabulary
        self.gpt2 = _build(d_input, length, d_model, depth, heads, dropout)
        if linear["name"] != "dense":
            for block in self.gpt2.transformer.h:  # type: ignore[union-attr]
                _replace(block, d_model, linear)

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            inputs: (B, L) tokens, L <= length.
            lengths: (B,) valid steps of right-padded sequences. No step sees the padding after it; with them, padding
                may be anything.

        Returns:
            Logits for the next token at every step, (B, L, d_output).

        Raises:
            ValueError: The inputs are not tokens, or too many.
        """
        inputs = tokens_without_padding(inputs, lengths)
        check_tokens(inputs, self.d_input, "inputs: tokens")
        if inputs.shape[1] > self.length:
            raise ValueError(f"this Gpt2 was built for contexts up to length={self.length}; got {tuple(inputs.shape)}")
        # Without a mask transformers looks for packed sequences by value, and meta tensors have none.
        mask = inputs.new_ones(1, 1, inputs.shape[1], inputs.shape[1]).bool() if inputs.is_meta else None
        # transformers fails to split the heads of an empty batch.
        given = inputs if inputs.shape[0] else inputs.new_zeros(1, inputs.shape[1])
        logits: Tensor = self.gpt2(input_ids=given, attention_mask=mask, use_cache=False).logits
        return logits if inputs.shape[0] else logits[:0]

    def stepper(self) -> Stepper:
        """Give the model as a recurrence over tokens, whose state, keys and values of all tokens so far, grows.

        Returns:
            A stepper, ``logits, state = stepper(tokens, state)`` with tokens (B,), for at most ``length`` tokens.

        Example:
            >>> stepper = mw.models.Gpt2(96, 96, length=64, d_model=32, depth=2).eval().stepper()
            >>> logits, state = stepper.read(torch.randint(96, (2, 50)), stepper.initial_state(batch_size=2))
            >>> stepper(torch.randint(96, (2,)), state)[0].shape
            torch.Size([2, 96])
        """
        return _Gpt2Stepper(self)


class _Gpt2Stepper(Stepper):
    """GPT-2 token by token: its state is a pair of keys and values, (B, heads, tokens, channels), for each block."""

    def __init__(self, model: Gpt2) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        # Newer versions of transformers have another name for it.
        options = inspect.signature(self.model.gpt2.forward).parameters
        self._cache_name = "cache" if "cache" in options else "past_key_values"

    def initial_state(self, batch_size: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """Give no keys and values."""
        check_batch_size(batch_size)
        config: Any = self.model.gpt2.config
        weight = next(self.model.parameters())
        nothing = weight.new_zeros(batch_size, config.n_head, 0, config.n_embd // config.n_head)
        return tuple((nothing, nothing) for _ in range(config.n_layer))

    def forward(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read one token of each sequence, (B,)."""
        if u.ndim != 1:
            raise ValueError(f"tokens must be (B,); got shape {tuple(u.shape)}")
        logits, state = self.read(u[:, None], state)
        return logits[:, 0], state

    def read(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read many tokens of each sequence, (B, L)."""
        check_tokens(u, self.model.d_input, "inputs: tokens")
        read, longest = state[0][0].shape[2], self.model.length
        if read + u.shape[1] > longest:
            raise ValueError(
                f"this Gpt2 was built for contexts up to length={longest}; it has read {read} tokens, and got "
                f"{u.shape[1]} more"
            )
        if not u.shape[0]:  # transformers fails to split the heads of an empty batch
            grown = tuple(
                tuple(each.new_zeros(0, each.shape[1], read + u.shape[1], each.shape[3]) for each in pair)
                for pair in state
            )
            return state[0][0].new_zeros(0, u.shape[1], self.model.d_input), grown
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        for block, (keys, values) in enumerate(state if read else ()):
            cache.update(keys, values, block)
        logits = self.model.gpt2(input_ids=u, use_cache=True, **{self._cache_name: cache}).logits
        return logits, tuple((layer.keys, layer.values) for layer in cache.layers)


def _build(tokens: int, length: int, d_model: int, depth: int, heads: int, dropout: float) -> nn.Module:
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('Gpt2 is built by transformers: pip install "milkweed[hf]"') from error
    config = GPT2Config(
        vocab_size=tokens,
        n_positions=length,
        n_embd=d_model,
        n_layer=depth,
        n_head=heads,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: nn.Module = GPT2LMHeadModel(config)
    return model


def _replace(block: nn.Module, d_model: int, linear: Mapping[str, Any]) -> None:
    parts = [_linear(linear, d_model, d_model) for _ in range(3)]
    block.attn.c_attn = ConcatLinear(parts)  # type: ignore[union-attr]
    block.attn.c_proj = _linear(linear, d_model, d_model)  # type: ignore[union-attr]
    block.mlp.c_fc = _linear(linear, d_model, 4 * d_model)  # type: ignore[union-attr]
    block.mlp.c_proj = _linear(linear, 4 * d_model, d_model)  # type: ignore[union-attr]


def _linear(spec: Mapping[str, Any], in_features: int, out_features: int) -> StructuredLinear:
    layer = build_linear(spec, in_features, out_features)
    assert isinstance(layer, StructuredLinear)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
