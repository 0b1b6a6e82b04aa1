"""Probabilities that are as often right as they say: one temperature, fitted on the validation split."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from milkweed.data.base import SequenceData
from milkweed.data.batches import EvaluationBatches
from milkweed.tasks.classification import Classification

BINS = 15
# Temperatures beyond these say that all, or none, of the validation split is known.
LOWEST, HIGHEST = 0.05, 20.0
_HALVINGS = 60


def calibrate(module: LightningModule, data: SequenceData) -> dict[str, float] | None:
    """Fit the temperature of a trained classifier and set it; its errors of calibration, or None if not asked for.

    Every process goes through both splits as a whole, so that all find the same, however the model is spread.
    """
    task = getattr(module, "task", None)
    if not isinstance(task, Classification) or not task.calibrate:
        return None
    found, logits = {}, {}
    for name in ("val", "test"):
        logits[name] = all_logits(module, data, name)
    temperature = fit_temperature(*logits["val"])
    task.temperature.fill_(temperature)
    found["temperature"] = temperature
    for name, (values, targets) in logits.items():
        found[f"{name}_calibration_error_before"] = calibration_error(values, targets)
        found[f"{name}_calibration_error"] = calibration_error(values / temperature, targets)
    return found


@torch.no_grad()
def all_logits(module: LightningModule, data: SequenceData, name: str) -> tuple[Tensor, Tensor]:
    """Logits (N, K) of a whole split in float64, and its targets (N,)."""
    split, rows = data.split(name), []
    training = module.training
    module.eval()
    for places in EvaluationBatches(len(split), min(len(split), data.batch_size)):
        batch = {key: value.to(module.device) for key, value in split[places].items()}
        outputs = module.task.run_model(module.model, batch)
        rows.append((outputs.double().cpu(), batch["targets"].cpu()))
    module.train(training)
    logits, targets = (torch.cat(each) for each in zip(*rows, strict=True))
    return logits, targets


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature at which the cross entropy of logits (N, K) / temperature is least.

    Source:
        Guo et al. (arXiv 1706.04599), section 4.2. The cross entropy is convex in 1 / temperature, so its derivative
        is halved into.
    """
    logits = logits.double()
    own = logits.gather(1, targets[:, None])[:, 0]

    def slope(inverse: float) -> float:
        return float(((logits * inverse).softmax(1) * logits).sum(1).sub(own).mean())

    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / (low * high) ** 0.5


def calibration_error(logits: Tensor, targets: Tensor) -> float:
    """The expected calibration error: mean distance of confidence and accuracy over 15 equal bins of confidence."""
    return float(multiclass_calibration_error(logits.softmax(1).float(), targets, logits.shape[1], BINS))


def described(found: dict[str, float]) -> dict[str, Any]:
    """What `calibration.json` holds."""
    return {"format": 1, "bins": BINS, **found}
