"""Train small S4 and S4D models for a long time in half precision: ``python -m tests.nn.long_run --steps 10000``.

Everything learns at 0.01 under bfloat16 autocast, the systems' parameters too, for which recipes take a tenth of it. A
run fails at the first loss, gradient or parameter that is not finite. It prints a JSON line per model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from milkweed.models import SequenceModel
from milkweed.nn import S4, S4D

LAYERS = {
    "s4 legs bilinear": {"name": "s4", "init": "legs", "discretization": "bilinear"},
    "s4 legt zoh": {"name": "s4", "init": "legt", "discretization": "zoh"},
    "s4d legs zoh": {"name": "s4d", "init": "legs", "discretization": "zoh"},
    "s4d inv bilinear": {"name": "s4d", "init": "inv", "discretization": "bilinear"},
}
LENGTH, DELAY = 256, 50


def train(layer: dict[str, str], steps: int) -> dict[str, float]:
    """Learn to give a white noise back after a delay.

    Args:
        layer: As ``SequenceModel`` takes it.
        steps: Of AdamW.

    Returns:
        The mean loss of the first and the last steps, and how far the systems went.

    Raises:
        FloatingPointError: A loss, gradient or parameter is not finite.
    """
    torch.manual_seed(0)
    model = SequenceModel(1, 1, 16, 2, {"d_state": 16, **layer}, pooling="none")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for step in range(steps):
        u = torch.randn(4, LENGTH, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(u)
        loss = F.mse_loss(y.float()[:, DELAY:], u[:, :-DELAY])
        optimizer.zero_grad()
        loss.backward()
        gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
        optimizer.step()
        _require_finite(step, {"loss": loss, **gradients, **dict(model.named_parameters())})
        losses.append(loss.item())
    few = max(1, steps // 20)
    return {"first_loss": sum(losses[:few]) / few, "last_loss": sum(losses[-few:]) / few, **_extent(model)}


def _require_finite(step: int, tensors: dict[str, Tensor | None]) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.isfinite().all():
            raise FloatingPointError(f"{name} is not finite at step {step}")


@torch.no_grad()
def _extent(model: SequenceModel) -> dict[str, float]:
    layers = [layer for layer in model.modules() if isinstance(layer, S4 | S4D)]
    steps = torch.cat([layer.filter.log_dt.flatten() for layer in layers])
    kernels = torch.stack([layer.filter.system().kernel(100 * LENGTH).abs().amax() for layer in layers])
    return {
        "least_log_dt": steps.min().item(),
        "largest_log_dt": steps.max().item(),
        "largest_kernel_at_100_times_the_length": kernels.max().item(),
    }


def main() -> int:
    """Train every model.

    Returns:
        The exit status: 0 if all stayed finite.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--only", choices=LAYERS, help="one of the models")
    options = parser.parse_args()
    failed = False
    for name in [options.only] if options.only else LAYERS:
        start = time.perf_counter()
        try:
            found: dict[str, object] = dict(train(LAYERS[name], options.steps))
        except FloatingPointError as error:
            found, failed = {"failure": str(error)}, True
        found["minutes"] = round((time.perf_counter() - start) / 60, 2)
        sys.stdout.write(json.dumps({"model": name, "steps": options.steps, **found}) + "\n")
        sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
