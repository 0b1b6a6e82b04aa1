"""`milkweed evaluate`."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from milkweed.cli.arguments import CommandParser
from milkweed.cli.options import split_overrides

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
    """
    own, overrides = split_overrides(arguments)
    options = make_parser().parse(own)

    from lightning.pytorch import Trainer

    from milkweed.cli.build import build, resolve
    from milkweed.convert import load_pretrained
    from milkweed.train.noise import quiet
    from milkweed.train.run_folder import RunFolder

    quiet()
    folder = RunFolder(options.run)
    config = folder.read_config()
    if not folder.model.is_file():
        raise FileNotFoundError(f"{folder.path} has no model.safetensors: finish its training with --resume auto")
    parts = build(resolve(config, overrides))
    parts.task.model = load_pretrained(folder.path)
    trainer = Trainer(
        accelerator=parts.trainer_options["accelerator"],
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=folder.path,
    )
    loader = parts.data.test_dataloader() if options.split == "test" else parts.data.val_dataloader()
    (metrics,) = trainer.test(parts.task, dataloaders=loader, verbose=False)
    title = f"{folder.name}: {options.split} split"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name.removeprefix("test_"), f"{value:.4f}")
    Console().print(table)
    return 0
