"""Messages of Lightning that tell our users nothing they could act upon."""

import logging
import warnings

HARMLESS = (
    # Data modules hold their data in memory; worker processes would only copy it. Shown on machines with many cores.
    r".*does not have many workers.*",
    # A CPU run is a normal run here.
    r".*GPU available but not used.*",
    # Between Lightning and torch.
    r".*isinstance\(treespec, LeafSpec\).*",
    # KeepCheckpoints sees to it that an epoch continues in its middle.
    r".*your dataloader is not resumable.*",
)


def quiet() -> None:
    """Silence Lightning's tips and the warnings above; everything else stays audible."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)
