"""What a training costs while it runs: the time of a step and the largest memory."""

import statistics
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

try:
    import resource
except ImportError:  # not on Windows, where memory is not measured
    resource = None

# Enough for a steady median; a training of any length keeps no more.
REMEMBERED_STEPS = 1000
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class RunningCosts(Callback):
    """Measure the median time of an optimiser step and the peak memory; both travel in the checkpoints."""

    def __init__(self) -> None:
        self.peak = 0
        self.seconds: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        self._since = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What has been measured so far."""
        return {"peak": self.peak, "seconds": list(self.seconds)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what a checkpoint knows."""
        self.peak = state_dict["peak"]
        self.seconds = deque(state_dict["seconds"], maxlen=REMEMBERED_STEPS)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what the process needed before."""
        forget_peak(pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the clock. The loss is looked at in every step, so that a GPU is never more than one step behind."""
        self.seconds.append((time.perf_counter() - self._since) * trainer.accumulate_grad_batches)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the peak before the checkpoint of the epoch is written."""
        self.peak = max(self.peak, peak_memory(pl_module.device))

    def results(self, trainer: Trainer) -> dict[str, Any]:
        """Median seconds of a step, and the peak of the process that needed most; every process has to ask."""
        peak = trainer.strategy.reduce(
            torch.tensor(self.peak, device=trainer.strategy.root_device, dtype=torch.float64), reduce_op="max"
        )
        return {
            "seconds_per_step": round(statistics.median(self.seconds), 6) if self.seconds else None,
            "peak_memory_bytes": int(peak) or None,
            "peak_memory_of": "gpu" if trainer.strategy.root_device.type == "cuda" else "process",
        }


def forget_peak(device: torch.device) -> None:
    """Let the peak begin at what is in use now; where the system cannot, it is that of the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        _RESET.write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors on a GPU, or of everything that the process holds in memory, libraries included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if resource is None:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
