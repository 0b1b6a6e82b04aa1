"""`milkweed convert`: a model of transformers becomes structured, in a folder of its own."""

import argparse
import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from milkweed._registry import registered
from milkweed.cli.arguments import CommandParser
from milkweed.cli.convert.destination import check_out, unwound_when_ended
from milkweed.cli.convert.flags import typed
from milkweed.cli.convert.progress import Steps, watch
from milkweed.cli.convert.texts import read_texts
from milkweed.cli.errors import UsageError
from milkweed.nn.structured_linear.config import is_whole

if TYPE_CHECKING:
    from torch import nn

    from milkweed.cli.convert.choices import Choices
    from milkweed.convert.hub.folder import FolderConversion, Train

OPTIONS = {
    "nblocks": "blocks, of each factor in a Monarch matrix; default: 4",
    "rank": "of each slice (monarch; default: all that fits), or of the low-rank matrix",
    "refine": "rounds of least squares after projecting (monarch)",
}
DTYPES = ("float32", "bfloat16", "float16")
DISTILL_LR = 1e-3
EXAMPLE = """\
  milkweed convert my-encoder --calibrate sentences.txt --out my-encoder-monarch
  milkweed convert my-encoder --nblocks 2 --layers 're:.*(intermediate|output).dense' --plan
  milkweed convert my-encoder --calibrate sentences.txt --sequential --parameters 0.5 --out half
  milkweed convert my-encoder --calibrate sentences.txt --texts 10000 --distill 2 --out my-encoder-distilled
  milkweed convert openai-community/gpt2 --structure low_rank --rank 128 --keep 're:.*c_attn' --out gpt2-low-rank"""


def make_parser() -> CommandParser:
    """The command's own arguments.

    Returns:
        A parser.
    """
    parser = CommandParser(
        "convert",
        "Replace the linear layers of a transformers model by structured ones, without training or with a little of "
        "it. The model's weights must be safetensors; code that comes with a model is not run.",
        EXAMPLE,
    )
    parser.add_argument(
        "source", metavar="PATH-OR-ID", help="folder that transformers saved, or a model's name on the Hugging Face hub"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder for the converted model and its report")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if this command wrote it earlier")
    parser.add_argument("--plan", action="store_true", help="show what would become of each layer; write nothing")
    parser.add_argument("--all", action="store_true", help="list every layer, not one line for all of a kind")
    add_structure(parser)
    add_calibration(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="compute and save in this; default: as the model is stored")
    parser.add_argument("--device", default="cpu", help="where to compute, e.g. cuda; default: cpu")
    add_structure_options(parser)
    return parser


def add_structure(parser: CommandParser) -> None:
    """Add the options that say which layers become what.

    Args:
        parser: Changed in place.
    """
    group = parser.add_argument_group("what becomes what")
    group.add_argument("--structure", choices=sorted(registered("config")), default="monarch", help="default: monarch")
    group.add_argument(
        "--layers",
        action="append",
        metavar="PATTERN",
        help="convert these alone: a layer's name, or 're:' and a regular expression for whole names; may be repeated; "
        "default: all linear layers save output heads",
    )
    group.add_argument("--keep", action="append", metavar="PATTERN", help="leave these dense; may be repeated")
    group.add_argument(
        "--parameters",
        type=budget,
        metavar="BUDGET",
        help="at most so many parameters in the layers to convert, or up to 1: such a share of what they have. Each "
        "stays dense or gets a Monarch matrix of 2 to 8 blocks, by measured error; needs --calibrate",
    )


def add_structure_options(parser: CommandParser) -> None:
    """Add the whole numbers among the fields of the structures' configurations, after all other options.

    Args:
        parser: Changed in place; its default `structure_options` becomes what was added.
    """
    group = parser.add_argument_group("options of the structure")
    owners: dict[str, list[str]] = {}
    for structure, config in registered("config").items():
        for field in filter(is_whole, dataclasses.fields(config)):
            owners.setdefault(field.name, []).append(structure)
    offered = []
    for name, structures in owners.items():
        text = OPTIONS.get(name, f"an option of {', '.join(structures)}")
        # A field of a user's configuration may be called like an option of the command, which then keeps its meaning.
        with suppress(argparse.ArgumentError):
            group.add_argument(f"--{name}", type=positive, help=text)
            offered.append(name)
    parser.set_defaults(structure_options=offered)


def add_calibration(parser: CommandParser) -> None:
    """Add the options about text that the model is meant for.

    Args:
        parser: Changed in place.
    """
    group = parser.add_argument_group("calibration: layers keep their outputs for text like yours, not their weights")
    group.add_argument("--calibrate", type=Path, metavar="FILE.txt", help="one text per line, a few hundred or more")
    group.add_argument(
        "--texts", type=positive, default=1000, help="read at most so many, spread over the file; default: 1000"
    )
    group.add_argument("--max-length", type=positive, default=128, help="tokens kept of each text; default: 128")
    group.add_argument("--batch-size", type=positive, default=32, help="texts at a time; default: 32")
    group.add_argument(
        "--sequential", action="store_true", help="layer by layer, each making up for those before it: better, slower"
    )
    group.add_argument(
        "--permute",
        action="store_true",
        help="also put the hidden units of feed-forward layers into the order in which least is lost: better, slower",
    )
    group.add_argument(
        "--distill",
        type=positive,
        metavar="EPOCHS",
        help="then train the converted model to give the dense one's hidden states and outputs, so many times over the "
        "texts; better still, and slower: both models run for every text",
    )
    group.add_argument(
        "--distill-lr",
        type=learning_rate,
        metavar="LR",
        help=f"its learning rate, after a warm-up over a tenth of its steps; default: {DISTILL_LR:g}",
    )


def positive(text: str) -> int:
    """Read a whole number from 1 on.

    Args:
        text: As typed.

    Returns:
        The number.

    Raises:
        ArgumentTypeError: It is something else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def budget(text: str) -> float:
    """Read a number of parameters, or a share.

    Args:
        text: As typed.

    Returns:
        The number.

    Raises:
        ArgumentTypeError: It is neither.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a share such as 0.5 nor a count such as 12000000")
    return value


def learning_rate(text: str) -> float:
    """Read a learning rate.

    Args:
        text: As typed.

    Returns:
        The number.

    Raises:
        ArgumentTypeError: It is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no learning rate such as {DISTILL_LR:g}")
    return value


def run(arguments: list[str]) -> int:
    """Convert a model and write it with its report.

    Args:
        arguments: The command line after the command.

    Returns:
        The exit code.
    """
    options = make_parser().parse(arguments)
    check(options)

    from milkweed.cli.convert.choices import make_choices

    choices = make_choices(options)
    texts = read_texts(options.calibrate, options.texts) if options.calibrate else []
    console = Console()
    with typed(), unwound_when_ended():
        convert(options, choices, texts, console)
    if not options.plan:
        console.print(
            f"\nWritten to [bold]{escape(str(options.out))}[/], with a page of figures: "
            f"{escape(str(options.out / 'conversion.html'))}\n"
            f"In Python: milkweed.load_pretrained({escape(repr(str(options.out)))})",
            highlight=False,
            soft_wrap=True,
        )
    return 0


def check(options: argparse.Namespace) -> None:
    """Refuse options that need each other, and miss what is not installed, before anything takes time.

    Args:
        options: The command line.

    Raises:
        UsageError: An option lacks another one.
        ModuleNotFoundError: A package is missing.
    """
    if options.out is None and not options.plan:
        raise UsageError("say where to write the converted model with --out DIR, or only look at it with --plan")
    if options.distill and options.plan:
        raise UsageError("--distill and --plan exclude each other: a plan trains nothing")
    for option in ("sequential", "permute", "parameters"):
        if getattr(options, option) and options.calibrate is None:
            raise UsageError(f"--{option} needs --calibrate FILE.txt: it compares the outputs of layers")
    if options.refine and options.calibrate is None:
        raise UsageError("--refine needs --calibrate FILE.txt: without it, a projection is the nearest matrix already")
    if options.distill_lr and not options.distill:
        raise UsageError("--distill-lr needs --distill EPOCHS, whose learning rate it is")
    if options.distill and options.calibrate is None:
        raise UsageError("--distill needs --calibrate FILE.txt: texts to learn from, labels are not needed")
    needed = {"transformers": "hf"} if options.plan else {"transformers": "hf", "matplotlib": "plots"}
    if options.distill:
        needed["lightning"] = "train"
    for package, extra in needed.items():
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f'milkweed convert needs {package}: pip install "milkweed[{extra}]"')


def convert(options: argparse.Namespace, choices: "Choices", texts: list[str], console: Console) -> None:
    """Convert the folder, or only plan, and print what becomes of the layers.

    Args:
        options: The command line.
        choices: What becomes what.
        texts: To calibrate on; may be empty.
        console: Where the plan is printed.
    """
    from milkweed.convert.hub.folder import convert_folder
    from milkweed.convert.hub.source import check_device, find_source, quiet_transformers

    check_device(options.device)
    if options.out is not None:
        check_out(options.out.expanduser().resolve(), options.overwrite)
    with watch() as steps:
        steps.begin(f"reading {options.source}")
        with quiet_transformers():
            source = find_source(options.source, options.out)
            choices.check(source)
        done = convert_folder(
            source,
            None if options.plan else options.out,
            choices.rules,
            texts=texts,
            max_length=options.max_length,
            batch_size=options.batch_size,
            sequential=options.sequential,
            permute=options.permute,
            parameters=options.parameters,
            candidates=choices.candidates,
            dtype=options.dtype,
            device=options.device,
            overwrite=options.overwrite,
            train=trainer(options, steps) if options.distill else None,
            also_write=page_writer(source.name),
            progress=steps,
        )
    print_result(console, done, options.all, calibrated=bool(texts))


def trainer(options: argparse.Namespace, steps: Steps) -> "Train":
    """Make what trains the converted model against the dense one.

    Args:
        options: The command line.
        steps: Told how far it is.

    Returns:
        A function of the converted model, the dense one and the batches.
    """

    def train(student: "nn.Module", teacher: "nn.Module", batches: Sequence[Any]) -> list[float]:
        from milkweed.cli.convert.distilling import distill

        rate = options.distill_lr or DISTILL_LR
        return distill(student, teacher, batches, options.distill, rate, options.device, steps)

    return train


def page_writer(name: str) -> "Callable[[Path, FolderConversion], None]":
    """Make what writes the page of figures.

    Args:
        name: The model's.

    Returns:
        A function of the folder and what was done.
    """

    def write(folder: Path, done: "FolderConversion") -> None:
        from milkweed.cli.convert import page

        page.write_page(done.report, done.timing, name, folder / "conversion.html")

    return write


def print_result(console: Console, done: "FolderConversion", every: bool, *, calibrated: bool) -> None:
    """Print what becomes of the layers, and how long the whole model takes.

    Args:
        console: Where to print.
        done: What was done.
        every: A row for each layer.
        calibrated: Whether there were texts.
    """
    from milkweed.cli.convert.table import print_plan, print_timing

    print_plan(console, done.report, every)
    print_timing(console, done.timing)
    if not calibrated:
        console.print(
            "[yellow]Without --calibrate FILE.txt layers keep their weights, not their outputs on text like yours, and "
            "lose much more.[/]",
            highlight=False,
        )
