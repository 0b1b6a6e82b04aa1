"""What a distilled model is judged by: how far its hidden states and outputs are from those of another model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from milkweed.convert.input_moments import attention_mask, evaluating, run_batch

_HIDDEN_STATES = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")


def distance(student: nn.Module, teacher: nn.Module, batch: Any) -> Tensor:
    """The squared error relative to the teacher's variance, so that no layer outweighs another.

    It is the mean over the outputs and all hidden states that both models give; the teacher runs without gradients, in
    evaluation mode.

    Source:
        Hidden states as targets: TinyBERT (arXiv 1909.10351), section 3, here relative to each layer's variance and
        without attention maps, as both models have the same layers.
    """
    with evaluating(teacher):
        targets = states_of(teacher, batch)
    found, mask = states_of(student, batch), attention_mask(batch)
    shapes, expected = ([tuple(each.shape) for each in states] for states in (found, targets))
    if shapes != expected or not shapes:
        raise ValueError(
            "student and teacher must give floating-point tensors of the same shapes; got "
            f"{shapes or 'none'} from the student and {expected or 'none'} from the teacher"
        )
    return torch.stack([relative_error(*pair, mask) for pair in zip(found, targets, strict=True)]).mean()


def relative_error(found: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of (..., n) over the variance of the target; 1 for a constant guess at the mean.

    The mask (B, L) says which positions count; tensors of other leading shapes ignore it.
    """
    found, target = found.float(), target.float()
    if mask is not None and target.shape[: mask.ndim] == mask.shape:
        found, target = found[mask], target[mask]
    variance = (target - target.mean(0)).square().mean()
    return (found - target).square().mean() / variance.clamp_min(torch.finfo(torch.float32).tiny)


def states_of(model: nn.Module, batch: Any) -> list[Tensor]:
    """Hidden states and outputs of a transformers model, or the tensors that any other model gives."""
    if hasattr(model, "config") and hasattr(model.config, "output_hidden_states"):
        outputs = run_batch(model, {**batch, "output_hidden_states": True})
        hidden = [getattr(outputs, name, None) or () for name in _HIDDEN_STATES]
        return [*(state for states in hidden for state in states[1:]), outputs[0]]
    outputs = run_batch(model, batch)
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    found = outputs if isinstance(outputs, tuple | list) else [outputs]
    return [each for each in found if isinstance(each, Tensor) and each.is_floating_point()]
