"""Learning rate schedules, as factors on each group's own rate."""

import math
from collections.abc import Callable


def warmup_cosine(total_steps: int, warmup_steps: int = 0, final: float = 0.0) -> Callable[[int], float]:
    """Linear warm-up to 1, then half a cosine down to `final` at the last step; a factor by step (0, 1, …).

    Step 0 already moves, by 1 / warmup_steps. A training shorter than its warm-up, as in a quick trial, is all warm-up.
    """
    return _warmup_then(lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)), total_steps, warmup_steps, final)


def warmup_linear(total_steps: int, warmup_steps: int = 0, final: float = 0.0) -> Callable[[int], float]:
    """Linear warm-up to 1, as for `warmup_cosine`, then a straight line down to `final`."""
    return _warmup_then(lambda progress: 1.0 - progress, total_steps, warmup_steps, final)


def warmup_constant(warmup_steps: int = 0) -> Callable[[int], float]:
    """Linear warm-up to 1, as for `warmup_cosine`, then 1."""
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps={warmup_steps} must be at least 0")
    return lambda step: min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def _warmup_then(
    shape: Callable[[float], float], total_steps: int, warmup_steps: int, final: float
) -> Callable[[int], float]:
    """A warm-up, then a shape that falls from 1 to 0 over the rest, stretched to end at `final`."""
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps={warmup_steps} must be at least 0")
    if not 0.0 <= final <= 1.0:
        raise ValueError(f"final={final} must lie between 0 and 1: it is the last factor on the learning rate")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return final + (1.0 - final) * shape(progress)

    return factor
