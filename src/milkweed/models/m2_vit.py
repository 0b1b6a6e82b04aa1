"""M2-ViT: images as a sequence of patches, mixed by gated long convolutions and block-diagonal matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from milkweed._arguments import check_probability, check_tensor, checked, is_kind, plain
from milkweed._suggest import unknown
from milkweed.models.base import Model
from milkweed.nn import S4ND, GatedMixer, LongConv, Mlp, ResidualBlock
from milkweed.nn.lengths import check_lengths, mean_of_steps
from milkweed.nn.options import layer_options
from milkweed.ops._common import autocast_dtype

MIXERS = ("long_conv", "s4nd")


class M2Vit(Model):
    """Patches in reading order → residual blocks of a mixer over patches and a block-diagonal MLP → mean → head.

    The defaults are M2-ViT-b: the shape of ViT-b with a quarter of its feed-forward weights. Every mixer and every MLP
    stands in a residual branch behind a norm, as in ViT; the block of M2-BERT, which has no skip around its mixer, is
    [`milkweed.nn.GatedMixerBlock`][].

    Args:
        d_input: Channels of the image.
        d_output: Classes.
        size: Height and width of the image, multiples of ``patch``.
        patch: Height and width of a patch.
        d_model: Channels inside.
        depth: Number of blocks, of a mixer and an MLP each.
        d_hidden: Channels inside the MLPs; 4 d_model by default.
        nblocks: Blocks of their matrices.
        mixer: ``"long_conv"``, a bidirectional [`milkweed.nn.GatedMixer`][] over the patches row by row, or ``"s4nd"``,
            an [`milkweed.nn.S4ND`][] over both axes.
        mixer_options: Of ``"s4nd"``, its arguments; of ``"long_conv"``, those of its [`milkweed.nn.LongConv`][], by
            default ``{"width": 64}``.
        dropout: Probability, at the end of every branch.

    Raises:
        ValueError: An option is unknown or out of range.
        TypeError: An option is of another type.

    Source:
        Monarch Mixer (arXiv 2310.12109), section 5.2, M2-ViT-b with about 45M parameters. Its code and weights were
        not published: the pre-norm residual branches, the mean over patches instead of a class token, and the width of
        the filters' networks are choices made here, and come to 45.6M.

    Example:
        >>> vit = mw.models.M2Vit(1, 10, size=(28, 28), patch=7, d_model=32, depth=1)
        >>> vit(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    @checked(but=("size", "mixer_options", "dropout"))
    def __init__(
        self,
        d_input: int = 3,
        d_output: int = 1000,
        size: Sequence[int] = (224, 224),
        patch: int = 16,
        d_model: int = 768,
        depth: int = 12,
        d_hidden: int | None = None,
        nblocks: int = 4,
        mixer: str = "long_conv",
        mixer_options: Mapping[str, Any] | None = None,
        dropout: float = 0.0,
    ) -> None:
        dropout = plain(dropout)
        check_probability(dropout=dropout)
        size = plain(size)
        rows, columns = _grid(size, patch)
        super().__init__(
            d_input=d_input,
            d_output=d_output,
            size=list(size),
            patch=patch,
            d_model=d_model,
            depth=depth,
            d_hidden=d_hidden,
            nblocks=nblocks,
            mixer=mixer,
            mixer_options=mixer_options,
            dropout=dropout,
        )
        for name, value in (
            ("d_input", d_input),
            ("d_output", d_output),
            ("d_model", d_model),
            ("depth", depth),
            ("d_hidden", d_hidden),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if mixer not in MIXERS:
            raise ValueError(unknown("mixer", mixer, MIXERS))
        self.d_input, self.size, self.patch, self.mixer = d_input, (size[0], size[1]), patch, mixer
        self.encoder = nn.Linear(d_input * patch**2, d_model)
        self.positions = nn.Parameter(torch.empty(rows, columns, d_model))
        nn.init.normal_(self.positions, std=0.02)
        hidden = d_hidden or 4 * d_model
        linear = {"name": "block_diagonal", "nblocks": nblocks}
        self.blocks = nn.ModuleList(
            ResidualBlock(layer, d_model, dropout=dropout)
            for _ in range(depth)
            for layer in (_mixer(mixer, d_model, rows * columns, mixer_options), Mlp(d_model, hidden, linear))
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, d_output)

    def parameter_roles(self) -> dict[str, str]:
        """Name the parameters that are not decayed.

        Returns:
            Parameter name to role.
        """
        return {"positions": "no_decay"}

    def forward(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            inputs: Images (B, d_input, height, width), or their pixels in reading order, (B, height * width, d_input),
                as data modules of sequences give them.
            lengths: Not used: all images are of one size.

        Returns:
            (B, d_output).

        Raises:
            ValueError: The inputs are of another shape or kind.
        """
        x = self.encoder(self._patches(inputs)) + self.positions
        if lengths is not None:
            check_lengths(lengths, inputs)
        x = x if self.mixer == "s4nd" else x.flatten(1, 2)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(mean_of_steps(self.norm(x).flatten(1, -2)))
        return logits

    def _patches(self, inputs: Tensor) -> Tensor:
        """(B, rows, columns, d_input * patch * patch)."""
        check_tensor("inputs", inputs)
        height, width = self.size
        if inputs.ndim == 3 and tuple(inputs.shape[1:]) == (height * width, self.d_input):
            inputs = inputs.transpose(1, 2).unflatten(2, (height, width))
        if inputs.ndim != 4 or tuple(inputs.shape[1:]) != (self.d_input, height, width):
            raise ValueError(
                f"inputs must be images (B, {self.d_input}, {height}, {width}) or their pixels in reading order, "
                f"(B, {height * width}, {self.d_input}), for d_input={self.d_input} and size={list(self.size)}; "
                f"got shape {tuple(inputs.shape)}"
            )
        if not inputs.is_floating_point():
            raise ValueError(f"inputs must be floating point; got {inputs.dtype}; use inputs.float()")
        if inputs.dtype != self.positions.dtype and autocast_dtype(inputs) is None:
            raise ValueError(
                f"inputs must be {self.positions.dtype} as the parameters are; got {inputs.dtype}; cast them, or use "
                "autocast"
            )
        split = inputs.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        return split.permute(0, 2, 4, 1, 3, 5).flatten(3)


def _grid(size: Sequence[int], patch: int) -> tuple[int, int]:
    """Rows and columns of patches."""
    if patch < 1:
        raise ValueError(f"patch must be at least 1; got {patch}")
    if not isinstance(size, Sequence) or len(size) != 2 or not all(is_kind(length, int) for length in size):
        raise ValueError(f"size must be the image's height and width, e.g. [28, 28]; got {size!r}")
    for length in size:
        if length < patch or length % patch:
            nearest = max(round(length / patch), 1) * patch
            raise ValueError(
                f"size must hold multiples of patch={patch}; got {size}; crop or pad {length} to {nearest}, or choose "
                "another patch"
            )
    return size[0] // patch, size[1] // patch


def _mixer(kind: str, d_model: int, patches: int, options: Mapping[str, Any] | None) -> nn.Module:
    if kind == "s4nd":
        return S4ND(d_model, **layer_options("mixer_options", options, S4ND, ("d_model", "dims")))
    options = {"width": 64} if options is None else options
    options = layer_options("mixer_options", options, LongConv, ("d_model", "l_max", "bidirectional"))
    # The residual branch is what the second long convolution of M2-BERT stands for.
    return GatedMixer(
        d_model,
        patches,
        bidirectional=True,
        residual_long_conv=False,
        kernel_options=options,
    )
