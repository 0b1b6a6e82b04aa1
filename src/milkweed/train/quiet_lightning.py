"""Messages of Lightning that users cannot act upon, and how they are silenced."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

HARMLESS = (
    # Data modules hold their data in memory; worker processes would only copy it. Shown on machines with many cores.
    r".*does not have many workers.*",
    # A CPU run is a normal run here.
    r".*GPU available but not used.*",
    # Between Lightning and torch.
    r".*isinstance\(treespec, LeafSpec\).*",
    # Metrics are logged at the end of epochs, however many batches those have.
    r".*smaller than the logging interval.*",
    # KeepCheckpoints sees to it that an epoch continues in its middle.
    r".*your dataloader is not resumable.*",
)


def quiet() -> None:
    """Silence Lightning's tips and the warnings above; everything else stays audible."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def quietly() -> Iterator[None]:
    """Be quiet for the length of a block, and as audible as before afterwards."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        quiet()
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
