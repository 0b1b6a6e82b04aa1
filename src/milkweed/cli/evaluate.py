"""`milkweed evaluate`."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from milkweed.cli.arguments import CommandParser
from milkweed.cli.describe import recipe_options
from milkweed.cli.errors import UsageError
from milkweed.cli.hints import is_run
from milkweed.cli.options import split_overrides
from milkweed.cli.recipe import find_recipe
from milkweed.cli.train import TRUST

EXAMPLE = """\
  milkweed evaluate runs/digits
  milkweed evaluate runs/smnist --split val --data.root DIR"""


def make_parser() -> CommandParser:
    """The command's own arguments.

    Returns:
        A parser.
    """
    parser = CommandParser(
        "evaluate", "Test the model of a finished run again. Options of its recipe, e.g. --data.root, apply.", EXAMPLE
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of the run, e.g. runs/digits")
    parser.add_argument("--recipe", metavar="RECIPE", help="the recipe of the run, if that names classes of your own")
    parser.add_argument("--trust", action="store_true", help=TRUST)
    parser.add_argument("--split", choices=("test", "val"), default="test", help="default: test")
    return parser


def run(arguments: list[str]) -> int:
    """Test a run's model and print its metrics.

    Args:
        arguments: The command line after the command.

    Returns:
        The exit code.

    Raises:
        FileNotFoundError: If the run has no model yet.
        UsageError: If there is no such run.
    """
    own, overrides = split_overrides(arguments)
    options = make_parser().parse(own, recipe_options)
    if not is_run(options.run) and is_run(Path("runs") / options.run):
        raise UsageError(f"{options.run} is no run; did you mean {Path('runs') / options.run}?")

    from lightning.pytorch import Trainer

    from milkweed.cli.build import build, resolve
    from milkweed.convert import load_pretrained
    from milkweed.train.quiet_lightning import quiet
    from milkweed.train.run_folder import RunFolder
    from milkweed.train.trusted import import_named_classes, import_paths

    quiet()
    folder = RunFolder(options.run)
    recipe = find_recipe(options.recipe).values if options.recipe else {}
    import_named_classes(recipe)
    config = folder.read_config(trust=options.trust, given=import_paths([recipe, *(value for _, value in overrides)]))
    if not folder.model.is_file():
        raise FileNotFoundError(f"{folder.path} has no model.safetensors: finish its training with --resume auto")
    resolved = resolve(config, overrides)
    # What only a training needs is not built: callbacks and loggers may write files.
    resolved["trainer"] = {"accelerator": resolved["trainer"]["accelerator"]}
    parts = build(resolved)
    parts.module.model = load_pretrained(folder.path)
    trainer = Trainer(
        accelerator=parts.trainer_options["accelerator"],
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=folder.path,
    )
    loader = parts.data.test_dataloader() if options.split == "test" else parts.data.val_dataloader()
    (metrics,) = trainer.test(parts.module, dataloaders=loader, verbose=False)
    title = escape(f"{folder.name}: {options.split} split")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(escape(name.removeprefix("test_")), f"{value:.4f}")
    Console().print(table)
    return 0
