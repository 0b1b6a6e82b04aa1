"""`milkweed data`."""

from typing import TYPE_CHECKING, Any, Literal

from milkweed.cli.options import Overrides
from milkweed.cli.recipe import find_recipe

if TYPE_CHECKING:
    from milkweed.data import SequenceData

EXAMPLE = """\
  milkweed data check wav-folder --data.root my-recordings
  milkweed data check my.yaml"""


def data(what: Literal["check"], recipe: str, overrides: Overrides) -> None:
    """Read the data of a recipe as a training would, and say what is there, or what is missing and where to put it.

    Args:
        what: check: read everything, and show splits, sizes, lengths and classes
        recipe: a name listed by `milkweed recipes`, or a YAML file; options of its data, e.g. --data.root, apply
    """
    found = find_recipe(recipe)

    from rich.console import Console

    from milkweed.cli.build import resolve
    from milkweed.train.recipe.build import class_of

    config = resolve(found.values, overrides)
    kind: Any = class_of("data", config["data"]["class_path"])
    module = kind(**(config["data"]["init_args"] | {"seed": config["seed"]}))
    module.setup()
    module.check_processes(1)  # a batch must not be larger than the training split
    console = Console()
    for table in (splits(module), classes(module)):
        if table is not None:
            console.print(table)
    console.print(summary(module), highlight=False, markup=False)


def splits(module: "SequenceData") -> Any:
    """A row for each split: how many samples, and how long they are."""
    from milkweed.cli.tables import plain_table
    from milkweed.data.base import SPLITS

    rows = []
    for name in SPLITS:
        split = module.split(name)
        lengths = split.lengths
        rows.append(
            (
                name,
                f"{len(split):,}",
                f"{int(lengths.min()):,}",
                f"{int(lengths.median()):,}",
                f"{int(lengths.max()):,}",
            )
        )
    return plain_table(("split", "samples", "shortest", "median", "longest"), rows)


def classes(module: "SequenceData", most: int = 20) -> Any:
    """A row for each class: how often it occurs in each split; None where there are no classes, or very many."""
    from milkweed.cli.tables import plain_table
    from milkweed.data.base import SPLITS

    names = getattr(module, "class_names", None)
    if not names or len(names) > most or module.split("train").targets.ndim != 1:
        return None
    counts = [module.split(name).targets.bincount(minlength=len(names)).tolist() for name in SPLITS]
    return plain_table(
        ("class", *SPLITS), [(name, *map("{:,}".format, row)) for name, *row in zip(names, *counts, strict=True)]
    )


def summary(module: "SequenceData") -> str:
    """What a model of these data reads and gives."""
    reads = f"{module.d_input} different tokens" if module.tokens else f"{module.d_input} features per step"
    names = getattr(module, "class_names", None)
    gives = f"{len(names)} classes" if names else f"{module.d_output} numbers"
    columns = getattr(module, "columns", None)
    if columns:
        at = f" at the times in {module.time}" if getattr(module, "time", None) else ""
        reads = f"{', '.join(columns)}{at}"
    return f"{type(module).__name__}: {module.length:,} steps, {reads}, {gives}. The data can be trained on."
