"""`milkweed convert`: a model of transformers becomes structured, in a folder of its own."""

import argparse
import copy
import dataclasses
import importlib.util
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from milkweed._registry import registered
from milkweed.cli.arguments import CommandParser
from milkweed.cli.convert.destination import check_space, copy_side_files, staged, writing
from milkweed.cli.convert.progress import Steps, watch
from milkweed.cli.convert.texts import read_texts
from milkweed.cli.errors import UsageError
from milkweed.nn.structured_linear.config import is_whole

if TYPE_CHECKING:
    from torch import nn

    from milkweed.cli.convert.batches import WatchedBatches
    from milkweed.cli.convert.choices import Choices
    from milkweed.cli.convert.source import Source
    from milkweed.cli.convert.timing import Timing
    from milkweed.convert import ConversionPlan, ConversionReport

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
    from milkweed.cli.convert.source import quiet_transformers

    choices = make_choices(options)
    texts = read_texts(options.calibrate, options.texts) if options.calibrate else []
    console = Console()
    place = nullcontext() if options.plan else staged(options.out, options.overwrite)
    with quiet_transformers(), place as folder:
        convert(options, choices, texts, folder, console)
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


def convert(
    options: argparse.Namespace, choices: "Choices", texts: list[str], folder: Path | None, console: Console
) -> None:
    """Read, plan, print and, if there is a folder for it, write.

    Args:
        options: The command line.
        choices: What becomes what.
        texts: To calibrate on; may be empty.
        folder: Where to write, or None.
        console: Where the plan is printed.
    """
    from milkweed.cli.convert.batches import make_batches
    from milkweed.cli.convert.memory import give_back, inner_layers_only
    from milkweed.cli.convert.source import check_device, find_source, load_model
    from milkweed.cli.convert.table import print_plan, print_timing
    from milkweed.convert import plan_conversion

    check_device(options.device)
    with watch() as steps:
        steps.begin(f"reading {options.source}")
        source = find_source(options.source, options.out)
        rehearsal = choices.rehearse(source)
        if folder is not None:
            check_space(folder, rehearsal, options.dtype)
        model = load_model(source, rehearsal, options.dtype, options.device, steps)
        if options.distill:
            check_trainable(model)

        def tell(text: str, done: int, total: int) -> None:
            steps.tell(text, done, total)
            give_back()

        batches = None
        # A budget and an order of units are judged by the model's outputs.
        with inner_layers_only(model, rehearsal, whole_outputs=options.permute or options.parameters is not None):
            if texts:
                steps.begin(f"tokenising {len(texts):,} texts")
                batches = make_batches(source, model, texts, options.max_length, options.batch_size, steps)
                give_back()
            steps.begin("calibrating" if texts else "projecting")
            plan = plan_conversion(
                model,
                choices.rules,
                batches,
                sequential=options.sequential,
                permute=options.permute,
                parameters=options.parameters,
                candidates=choices.candidates,
                progress=tell,
            )
        report, timing = plan.report, None
        if folder is not None:
            report, timing = write(plan, model, source, batches, folder, options, steps)
    print_plan(console, report, options.all)
    print_timing(console, timing)
    if not texts:
        console.print(
            "[yellow]Without --calibrate FILE.txt layers keep their weights, not their outputs on text like yours, and "
            "lose much more.[/]",
            highlight=False,
        )


def check_trainable(model: "nn.Module") -> None:
    """Refuse to train weights of half precision: small steps would be lost in their rounding.

    Args:
        model: The model.

    Raises:
        UsageError: It is in half precision.
    """
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if dtype != "float32":
        raise UsageError(f"--distill trains in float32, and this model is {dtype}; add --dtype float32")


def write(
    plan: "ConversionPlan",
    model: "nn.Module",
    source: "Source",
    batches: "WatchedBatches | None",
    folder: Path,
    options: argparse.Namespace,
    steps: Steps,
) -> "tuple[ConversionReport, Timing | None]":
    """Measure the model before and after, convert it and fill its folder.

    Args:
        plan: The plan.
        model: The dense model, converted in place.
        source: Where it is from.
        batches: Of the calibration texts.
        folder: An empty folder.
        options: The command line.
        steps: Told what is going on.

    Returns:
        What was done, and the times, if they could be measured.
    """
    from milkweed.cli.convert.inputs import check_runs
    from milkweed.cli.convert.memory import give_back
    from milkweed.cli.convert.page import write_page
    from milkweed.cli.convert.timing import time_model
    from milkweed.convert import convert_, save_pretrained

    steps.begin("measuring the whole model, dense and converted")
    check_runs(model, plan, batches)
    timing = time_model(model, plan)
    give_back()
    teacher = copy.deepcopy(model) if options.distill else None
    report = convert_(model, plan)
    if teacher is not None and batches is not None:
        from milkweed.cli.convert.distilling import distill

        rate = options.distill_lr or DISTILL_LR
        losses = distill(model, teacher, batches, options.distill, rate, options.device, steps)
        report = dataclasses.replace(report, distillation_losses=tuple(losses))
    steps.begin("writing")
    with writing(options.out):
        left_out = copy_side_files(source.folder, folder)
        if left_out:
            steps.warn(f"{', '.join(left_out)} of {source.name}: links that leave the folder, not copied")
        save_pretrained(model, folder)
        report.save(folder / "conversion.json", None if timing is None else timing.as_dict())
        write_page(report, timing, source.name, folder / "conversion.html")
    return report, timing
