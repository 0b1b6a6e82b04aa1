"""Reverse sparsification: train structured layers for most of a run, multiply them out, finish dense."""

from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from rich.console import Console
from torch.nn.parallel import DistributedDataParallel

from milkweed.convert.record import structured_layers
from milkweed.nn.options import takes_options_of
from milkweed.train.densified import Densified
from milkweed.train.module import OptimisedModule
from milkweed.train.moments import dense_states


@dataclass(frozen=True)
class DensifyOptions:
    """When and how structured linear layers become dense.

    Args:
        at: When: below 1, a fraction of all optimiser steps (0.9 leaves the last tenth to dense layers); a whole number
            from 2 on, the optimiser steps done before. 1 is neither, and refused.
        state: AdamW's state of the dense weights: ``reset`` to nothing, or ``carry``, from that of the factors by the
            product rule. All other parameters, biases of the structured layers included, keep theirs.
        warmup_steps: Optimiser steps over which the learning rate of the dense weights rises from 0 to the schedule's;
            0 for none.
    """

    at: int | float = 0.9
    state: Literal["reset", "carry"] = "reset"
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        number = isinstance(self.at, int | float)
        if not (number and (0 < self.at < 1 or (isinstance(self.at, int) and self.at > 1))):
            raise ValueError(
                f"densify.at={self.at!r} must be a fraction of all steps between 0 and 1, or a whole number of steps, "
                "2 or more"
            )
        if self.state not in {"reset", "carry"}:
            raise ValueError(f"densify.state={self.state!r} must be 'reset' or 'carry'")
        if type(self.warmup_steps) is not int or self.warmup_steps < 0:
            raise ValueError(f"densify.warmup_steps={self.warmup_steps!r} must be a whole number from 0 on")

    def step(self, total: float) -> int:
        """The step before which layers become dense, out of a total; at least the last step is dense."""
        if isinstance(self.at, int):
            if self.at >= total:
                raise ValueError(f"densify.at={self.at} is never reached: the training has {total} steps")
            return self.at
        if total == float("inf"):
            raise ValueError(
                f"densify.at={self.at} is a fraction of a training without end; set trainer.max_epochs, or give a "
                "number of steps"
            )
        return min(round(self.at * total), int(total) - 1)


class Densify(Callback):
    """Multiply a task's structured linear layers out in the middle of its training and go on with dense ones.

    The loss is the same right before and after. Optimiser groups are made anew, as dense weights may learn at other
    rates; the schedule goes on. The task remembers that it is dense: a training may be resumed on either side.

    Its options are those of `DensifyOptions`; it prints to the console, if there is one, when it happens.

    Source:
        Monarch (arXiv 2204.00595), section 4.2, "reverse sparsification": GPT-2 with the last tenth dense.
    """

    @takes_options_of(DensifyOptions)
    def __init__(self, *options: Any, console: Console | None = None, **named: Any) -> None:
        self.options, self.console = DensifyOptions(*options, **named), console
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse, before anything is trained, what could not be made dense later."""
        if stage != "fit":
            return
        if not isinstance(pl_module, OptimisedModule):
            raise TypeError(f"densify needs a module of milkweed.train; got {type(pl_module).__name__}")
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise TypeError(
                f"densify cannot change parameters under {type(trainer.strategy).__name__}; use trainer.strategy=ddp "
                "or one device"
            )
        if not pl_module.densified and not structured_layers(pl_module.model):
            raise ValueError(
                "densify finds no structured linear layer in the model; leave it out, or use e.g. "
                "model.linear.name=monarch"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Work out the step."""
        assert isinstance(pl_module, OptimisedModule)
        if not pl_module.densified:
            self._step = self.options.step(trainer.estimated_stepping_batches)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Make the layers dense if it is time; always between two optimiser steps."""
        assert isinstance(pl_module, OptimisedModule)
        if not pl_module.densified and trainer.global_step >= self._step:
            self._make_dense(trainer, pl_module)
            if self.console is not None and trainer.is_global_zero:
                text = describe(pl_module.densified, trainer.estimated_stepping_batches)
                self.console.print(text, highlight=False, soft_wrap=True)

    def _make_dense(self, trainer: Trainer, task: OptimisedModule) -> None:
        before, schedule = task.optimizers(use_pl_optimizer=False), task.lr_schedulers().state_dict()
        carry = self.options.state == "carry"
        structured = structured_layers(task.model)
        states = {names[0]: dense_states(layer, before.state, carry) for layer, names in structured.items()}
        task.densify(trainer.global_step, self.options.warmup_steps)
        wrap_again(trainer, task)
        trainer.strategy.setup_optimizers(trainer)
        after, scheduler = task.optimizers(use_pl_optimizer=False), task.lr_schedulers()
        for group in after.param_groups:
            for parameter in group["params"]:
                if before.state.get(parameter):
                    after.state[parameter] = before.state[parameter]
        for name, of_layer in states.items():
            for leaf, state in of_layer.items():
                after.state[task.model.get_submodule(name).get_parameter(leaf)] = state
        position = {name: schedule[name] for name in ("last_epoch", "_step_count")}
        scheduler.load_state_dict({**scheduler.state_dict(), **position})
        task.set_rates()


def describe(densified: Densified, total: float) -> str:
    """Say in one line what has become dense, out of a total of optimiser steps."""
    of = f" of {total:,.0f}" if total != float("inf") else ""
    return (
        f"step {densified.step:,}{of}: {len(densified.layers)} structured layers multiplied out, dense from here on; "
        f"{densified.parameters_before:,} -> {densified.parameters_after:,} parameters"
    )


def wrap_again(trainer: Trainer, task: LightningModule) -> None:
    """Let a distributed training average the gradients of the parameters that there are now."""
    wrapped = trainer.strategy.model
    if isinstance(wrapped, DistributedDataParallel):
        # Parameters that stay would otherwise report to the old wrapper too, which waits for those that are gone.
        wrapped._remove_autograd_hooks()
        trainer.strategy.model = task
        trainer.strategy.configure_ddp()
