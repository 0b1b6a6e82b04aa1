"""`milkweed inspect`."""

from pathlib import Path

from milkweed._suggest import UsageError
from milkweed.cli.options import Overrides
from milkweed.cli.recipe import find_recipe

REPORT = "conversion.json"
EXAMPLE = """\
  milkweed inspect digits --model.d_model 256 --data.batch_size 32 --levels 4
  milkweed inspect my-encoder-monarch"""


def inspect(recipe: str, overrides: Overrides, *, levels: int = 3) -> None:
    """Show layers, parameters, FLOPs and memory of a recipe, without data and without allocating anything.

    Args:
        recipe: a name listed by `milkweed recipes`, or a YAML file; or a folder of `milkweed convert`, whose report is
            shown again
        levels: how deep the layers are unfolded
    """
    if (Path(recipe) / REPORT).is_file():
        _show_conversion(recipe, overrides)
        return
    found = find_recipe(recipe)

    import torch
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from milkweed.cli.build import resolve
    from milkweed.train.model_costs import example_inputs, model_costs
    from milkweed.train.recipe.build import build

    config = resolve(found.values, overrides)
    try:
        with torch.device("meta"):
            parts = build(config)
        data, model = parts.data, parts.module.model
        inputs = example_inputs(data, data.batch_size)
        report = model_costs(model, inputs)
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        raise UsageError(
            f"inspect computes on PyTorch's meta device, where nothing is allocated: {error}; a layer of your own has "
            "to make its tensors where its input is, as in torch.arange(L, device=u.device). --debug shows where"
        ) from error
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer")
    table.add_column("class")
    table.add_column("parameters", justify="right")
    table.add_column("forward FLOPs", justify="right")
    for layer in report.layers:
        if layer.level <= levels:
            flops = f"{layer.flops:,}" if layer.flops else ""
            table.add_row("  " * layer.level + layer.name, layer.kind, f"{layer.parameters:,}", flops)
    console.print(table)
    rows = Table.grid(padding=(0, 3))
    rows.add_row(
        "inputs",
        " × ".join(map(str, inputs.shape)) + (" (batch, length)" if data.tokens else " (batch, length, features)"),
    )
    rows.add_row("parameters", f"{megabytes(report.parameter_bytes)}")
    rows.add_row("gradients", f"{megabytes(report.gradient_bytes)}")
    rows.add_row("AdamW state", f"{megabytes(2 * report.gradient_bytes)}")
    rows.add_row("kept for the backward pass", f"{megabytes(report.activation_bytes)}")
    rows.add_row("[bold]together, at least[/]", f"[bold]{megabytes(report.training_bytes)}[/]")
    console.print(rows, highlight=False)
    if report.uncounted:
        console.print(f"[dim]FLOPs of {', '.join(report.uncounted)} are not counted.[/]", highlight=False)


def _show_conversion(folder: str, overrides: Overrides) -> None:
    """Show what `milkweed convert` showed."""
    if overrides:
        raise UsageError(f"{folder} is a converted model, which has no options such as --{overrides[0][0]}")

    from rich.console import Console

    from milkweed.cli.convert.table import print_headline, print_plan
    from milkweed.convert import FolderConversion

    done, console = FolderConversion.load(folder), Console()
    print_headline(console, done)
    print_plan(console, done.report, False)


def megabytes(count: int) -> str:
    """Write a number of bytes for people."""
    return f"{count / 1e6:,.1f} MB"
