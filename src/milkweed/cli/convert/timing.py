"""How long the whole model takes, dense and converted, on this machine."""

import dataclasses
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from milkweed.convert import ConversionPlan
from milkweed.convert.calibrate import evaluating, run_batch
from milkweed.convert.sites import replace

BATCH, LENGTH, MOST_RUNS, PATIENCE = 8, 128, 7, 30.0  # PATIENCE in seconds, for all runs


@dataclasses.dataclass(frozen=True)
class Timing:
    """Medians of alternating runs.

    Attributes:
        shape: Of the inputs.
        device: Where the model was.
        before: Seconds of the dense model.
        after: Seconds of the converted one.
        runs: Of each.
    """

    shape: tuple[int, ...]
    device: str
    before: float
    after: float
    runs: int


def time_model(model: nn.Module, plan: ConversionPlan) -> Timing | None:
    """Run a model dense and converted by turns.

    Args:
        model: The dense model; its layers are exchanged for a while.
        plan: The plan for it.

    Returns:
        The times at 8 × 128 tokens, fewer if they do not fit; None for a model whose inputs cannot be made up.
    """
    batch = BATCH
    while batch:
        inputs = example_inputs(model, batch, LENGTH)
        if inputs is None:
            return None
        try:
            return _alternate(model, plan, inputs)
        except torch.OutOfMemoryError:
            batch //= 2
    return None


def example_inputs(model: nn.Module, batch: int, length: int) -> dict[str, Tensor] | None:
    """Make inputs for a model up.

    Args:
        model: A transformers model.
        batch: How many.
        length: Tokens of each, fewer if the model has fewer positions.

    Returns:
        Arguments by name, or None if it reads neither tokens alone nor images.
    """
    config: Any = model.config
    if model.main_input_name == "pixel_values" and isinstance(getattr(config, "image_size", None), int):
        return {"pixel_values": torch.zeros(batch, config.num_channels, config.image_size, config.image_size)}
    if model.main_input_name != "input_ids" or config.is_encoder_decoder:
        return None
    # Some families count positions from behind the padding token.
    positions = (getattr(config, "max_position_embeddings", None) or length + 2) - 2
    tokens = torch.arange(batch * min(length, positions)) % model.get_input_embeddings().num_embeddings
    return {"input_ids": tokens.view(batch, -1)}


def _alternate(model: nn.Module, plan: ConversionPlan, inputs: dict[str, Tensor]) -> Timing:
    converted = {line.names: plan.layers[line.name] for line in plan.report.converted}
    dense = {names: model.get_submodule(names[0]) for names in converted}
    like = next(model.parameters())
    device = like.device
    inputs = {name: x.to(like) if x.is_floating_point() else x.to(device) for name, x in inputs.items()}
    times: tuple[list[float], list[float]] = ([], [])
    try:
        with evaluating(model):
            start, runs = time.perf_counter(), 0
            # The first run of each makes plans and buffers.
            while runs < 2 or (runs <= MOST_RUNS and time.perf_counter() - start < PATIENCE):
                for layers, taken in zip((dense, converted), times, strict=True):
                    for names, layer in layers.items():
                        replace(model, names, layer)
                    taken.append(_seconds(model, inputs, device))
                runs += 1
    finally:
        for names, layer in dense.items():
            replace(model, names, layer)
    before, after = (statistics.median(taken[1:]) for taken in times)
    return Timing(tuple(next(iter(inputs.values())).shape), str(device), before, after, runs - 1)


def _seconds(model: nn.Module, inputs: dict[str, Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    run_batch(model, inputs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
