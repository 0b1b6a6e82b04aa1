"""What a model can be called with: inputs made up, texts completed, and whether it runs at all."""

from __future__ import annotations

import inspect
import traceback
from typing import Any

import torch
from torch import Tensor, nn

from milkweed.convert.hub.conversion_progress import FolderError
from milkweed.convert.hub.exchange import exchanged
from milkweed.convert.input_moments import evaluating, run_batch
from milkweed.convert.plan import ConversionPlan

SAMPLES_PER_TOKEN = 320  # 20 ms of sound at 16 kHz, as models of speech cut it


def longest_input(model: nn.Module) -> int | None:
    """How many tokens a model has positions for; None if there is no such limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        return None
    # RoBERTa and its kin count positions from behind the padding token.
    behind = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if "position" in name and isinstance(module, nn.Embedding) and module.padding_idx is not None
    ]
    return limit - max(behind, default=0)


def known_tokens(model: Any) -> int | None:
    """How many tokens a model has embeddings for; None if it does not read tokens alone."""
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:  # several towers
        return None
    return embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else None


def with_decoder(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the decoder of an encoder-decoder the same texts, each token to be guessed from those before it."""
    if "decoder_input_ids" not in inspect.signature(model.forward).parameters:
        return batch
    config: Any = model.config
    known = (getattr(config, f"{name}_token_id", None) for name in ("decoder_start", "bos", "pad"))
    start = next((token for token in known if isinstance(token, int)), 0)
    names = {"input_ids": ("decoder_input_ids", start), "attention_mask": ("decoder_attention_mask", 1)}
    shifted = {
        names[key][0]: torch.cat([torch.full_like(value[:, :1], names[key][1]), value[:, :-1]], 1)
        for key, value in batch.items()
        if key in names
    }
    return batch | shifted


def example_inputs(model: nn.Module, batch: int, length: int) -> dict[str, Tensor] | None:
    """Make up inputs for a model: tokens, images or sound, in its dtype and on its device.

    None if it reads something else, or does not run on what was made up; tokens are fewer where positions are.
    """
    found = _made_up(model, batch, length)
    if found is None:
        return None
    like = next(model.parameters())
    found = {name: x.to(like) if x.is_floating_point() else x.to(like.device) for name, x in found.items()}
    return None if failure(model, found) is not None else found


def failure(model: nn.Module, inputs: Any) -> Exception | None:
    """The error that one run of a model raises, or None; a lack of memory is raised, as the model is not its cause."""
    try:
        with evaluating(model):
            run_batch(model, inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any model, so of any kind
        return error
    return None


def check_runs(model: nn.Module, plan: ConversionPlan, batches: list[Any] | None) -> None:
    """Refuse a plan whose model would not run, e.g. where a module reads the weight of a layer itself."""
    inputs = batches[-1] if batches else example_inputs(model, 1, 16)
    if inputs is None:
        return
    with exchanged(model, plan):
        error = failure(model, inputs)
        if error is None:
            return
        place = _where(model, error)
    line = plan.report.converted[0].name if place is None else place
    raise FolderError(
        f"the converted model would not run: {type(error).__name__} in {place or 'the model'}: {first_line(error)}; "
        f"leave such layers dense, e.g. by the rule {{{line!r}: None}}"
    ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank, or its kind."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _where(model: nn.Module, error: BaseException) -> str | None:
    """The innermost module at work when an error was raised."""
    names = {module: name for name, module in model.named_modules() if name}
    at_work = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = [names[module] for module in at_work if isinstance(module, nn.Module) and module in names]
    return found[-1] if found else None


def _made_up(model: nn.Module, batch: int, length: int) -> dict[str, Tensor] | None:
    config: Any = model.config
    if model.main_input_name == "pixel_values" and isinstance(getattr(config, "image_size", None), int):
        return {"pixel_values": torch.zeros(batch, config.num_channels, config.image_size, config.image_size)}
    if model.main_input_name == "input_values":
        return {"input_values": torch.randn(batch, length * SAMPLES_PER_TOKEN)}
    known = known_tokens(model)
    if model.main_input_name != "input_ids" or known is None:
        return None
    tokens = torch.arange(batch * min(length, longest_input(model) or length)) % known
    return with_decoder(model, {"input_ids": tokens.view(batch, -1)})
