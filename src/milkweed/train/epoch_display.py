"""How a training shows that it moves: a live bar in a terminal, one line per epoch elsewhere."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console


class EpochLines(Callback):
    """Print one line after every epoch, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's metrics."""
        if trainer.is_global_zero:
            of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
            metrics = "  ".join(f"{name} {value:.4f}" for name, value in sorted(trainer.callback_metrics.items()))
            self.console.print(
                f"epoch {trainer.current_epoch + 1}{of}  {metrics}", highlight=False, markup=False, soft_wrap=True
            )


def progress_callback(console: Console) -> Callback:
    """Choose the display that suits the console."""
    return RichProgressBar(leave=False) if console.is_terminal else EpochLines(console)
