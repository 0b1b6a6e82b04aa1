"""`milkweed evaluate`."""

from pathlib import Path
from typing import Literal

from milkweed._suggest import UsageError
from milkweed.cli.options import Overrides
from milkweed.cli.recipe import find_recipe, is_run

EXAMPLE = """\
  milkweed evaluate runs/digits
  milkweed evaluate runs/smnist --split val --data.root DIR
  milkweed evaluate runs/smnist --rate 2"""


def evaluate(
    run: Path,
    overrides: Overrides,
    *,
    recipe: str | None = None,
    trust: bool = False,
    split: Literal["test", "val"] = "test",
    rate: float = 1.0,
) -> None:
    """Test the model of a finished run again. Options of its recipe, e.g. --data.root, apply.

    Args:
        run: folder of the run, e.g. runs/digits
        recipe (RECIPE): the recipe of the run, if that names classes of your own
        trust: import and run the code that the run's config.yaml names, wherever it comes from
        split: what is tested
        rate (K): at another sampling rate than in training: of the data every K-th sample, without a filter, read in
            steps that are K times as long; 0.5 for two samples for every one, on straight lines
    """
    if not is_run(run) and is_run(Path("runs") / run):
        raise UsageError(f"{run} is no run; did you mean {Path('runs') / run}?")
    for name, _ in overrides:
        if name.partition(".")[0] == "model":
            raise UsageError(f"--{name} cannot be set: the model of {run} is tested as it was trained")

    from lightning.pytorch import Trainer
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from milkweed.cli.build import resolve
    from milkweed.convert import load_pretrained
    from milkweed.data.rates import check_data_rate
    from milkweed.train.at_rate import at_rate, set_rate
    from milkweed.train.quiet_lightning import quiet
    from milkweed.train.recipe.build import build
    from milkweed.train.run_folder import RunFolder
    from milkweed.train.trusted import import_named_classes, import_paths

    quiet()
    rate, folder = check_data_rate(rate), RunFolder(run)
    own = find_recipe(recipe).values if recipe else {}
    import_named_classes(own)
    config = folder.read_config(trust=trust, given=import_paths([own, *(value for _, value in overrides)]))
    if not folder.model.is_file():
        raise FileNotFoundError(f"{folder.path} has no model.safetensors: finish its training with --resume auto")
    resolved = resolve(config, overrides)
    # What only a training needs is not built: callbacks and loggers may write files.
    resolved["trainer"] = {"accelerator": resolved["trainer"]["accelerator"]}
    parts = build(resolved)
    parts.module.model = at_rate(load_pretrained(folder.path), rate)
    set_rate(parts.data, rate)
    trainer = Trainer(
        accelerator=parts.trainer_options["accelerator"],
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=folder.path,
    )
    loader = parts.data.test_dataloader() if split == "test" else parts.data.val_dataloader()
    (metrics,) = trainer.test(parts.module, dataloaders=loader, verbose=False)
    title = escape(f"{folder.name}: {split} split" + (f" at rate {rate:g}" if rate != 1 else ""))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(escape(name.removeprefix("test_")), f"{value:.4f}")
    Console().print(table)
