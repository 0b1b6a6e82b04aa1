"""What all tasks of an encoder of tokens share: how it is trained, and where it starts."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from milkweed._arguments import checked
from milkweed._files import path_text
from milkweed.convert import load_pretrained
from milkweed.convert.checkpoints.m2 import WEIGHT_FILES, extend_positions, load_m2_bert, read_m2_checkpoint
from milkweed.convert.safetensors_files import SUFFIX, written_by_milkweed
from milkweed.models import M2Bert
from milkweed.tasks.base import Task

# Of an encoder, what its tensors and their meaning depend on, and the option that sets it.
ARCHITECTURE = {
    "d_input": "data.vocabulary_size",
    "length": "data.length",
    "d_model": "model.d_model",
    "depth": "model.depth",
    "d_hidden": "model.d_hidden",
    "nblocks": "model.nblocks",
    "token_types": "model.token_types",
    "pre_norm": "model.pre_norm",
    "residual_long_conv": "model.residual_long_conv",
    "padding": "model.padding",
    "kernel_options": "model.kernel_options",
}


class TokenTask(Task):
    """A task of a model of tokens (B, L), with random weights or a pretrained encoder, and BERT's betas.

    Args:
        pretrained: Where the encoder starts, and the head if it is of the same kind: a run, a folder or file written by
            `save_pretrained`, or one as M2-BERT's authors publish it; one for shorter texts is extended. None to start
            afresh.
    """

    betas = (0.9, 0.98)

    @checked(but=("pretrained",))
    def __init__(self, pretrained: str | None) -> None:
        pretrained = pretrained if pretrained is None else path_text("pretrained", pretrained)
        super().__init__()
        self.pretrained = pretrained

    def prepare(self, model: nn.Module) -> None:
        """Take over the pretrained weights."""
        if self.pretrained is not None:
            start_from(model, self.pretrained)

    def check_inputs(self, stage: str, batch_idx: int, inputs: torch.Tensor) -> None:
        """Refuse inputs that are not tokens."""
        check_token_batch(stage, batch_idx, inputs)


def check_token_batch(stage: str, batch_idx: int, inputs: torch.Tensor) -> None:
    """Refuse inputs that are not (B, L) integers."""
    if inputs.ndim != 2 or 0 in inputs.shape or inputs.is_floating_point():
        raise ValueError(
            f"{stage} batch {batch_idx}: inputs must be (batch, length) integers with neither of them 0, got "
            f"{inputs.dtype} of shape {tuple(inputs.shape)}; use a data module of tokens, such as Text"
        )


def start_from(model: nn.Module, path: str) -> None:
    """Give an M2-BERT the encoder of a pretrained one, in place, and its head if the two are alike.

    An encoder for shorter texts than the model's is extended by
    `milkweed.convert.checkpoints.m2.extend_positions`. Its kernels are kept if the model's ``kernel_options`` name
    the encoder's length as their ``time_scale``, and stretched otherwise.
    """
    if not isinstance(model, M2Bert):
        raise TypeError(f"task.pretrained needs a model with an encoder, M2Bert; got {type(model).__name__}")
    source = read_encoder(path, model.options)
    if source.options["length"] < model.options["length"]:
        keeps = "time_scale" in (model.options["kernel_options"] or {})
        source = extend_positions(source, model.options["length"], "keep" if keeps else "stretch")
    differing = {
        option: (source.options[name], option_of_this)
        for name, option in ARCHITECTURE.items()
        if source.options[name] != (option_of_this := model.options[name])
    }
    if differing:
        there = ", ".join(f"{name.partition('.')[2]}={values[0]}" for name, values in differing.items())
        here = ", ".join(str(values[1]) for values in differing.values())
        fix = " ".join(f"{name}={_written(values[0])}" for name, values in differing.items())
        raise ValueError(f"task.pretrained={path} has {there}, and this model {here}; use {fix}")
    model.encoder.load_state_dict(source.encoder.state_dict())
    heads = [{} if part is None else part.state_dict() for part in (model.head, source.head)]
    shapes = [{name: tensor.shape for name, tensor in head.items()} for head in heads]
    if model.head is not None and shapes[0] == shapes[1]:
        model.head.load_state_dict(heads[1])


def read_encoder(path: str, options: dict[str, Any]) -> M2Bert:
    """Read a pretrained model; its padding, which published files do not say, is taken from `options`."""
    file = Path(path)
    if file.is_dir():
        found = [file / name for name in WEIGHT_FILES if (file / name).is_file()]
        if not found:
            raise FileNotFoundError(f"task.pretrained={path} holds neither {' nor '.join(WEIGHT_FILES)}; name a run")
        file = found[0]
    if not file.is_file():
        raise FileNotFoundError(f"task.pretrained={path} does not exist; name a run, e.g. runs/m2-bert-mlm")
    if file.suffix == SUFFIX and written_by_milkweed(file):
        model = load_pretrained(file)
        if not isinstance(model, M2Bert):
            raise TypeError(f"task.pretrained={path} is a {type(model).__name__}; expected an M2Bert")
        return model
    return load_m2_bert(read_m2_checkpoint(file), padding=options["padding"])


def _written(value: Any) -> str:
    return "null" if value is None else f'"{value}"' if isinstance(value, dict) else str(value).lower()
