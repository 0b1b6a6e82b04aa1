"""`milkweed convert`: a model of transformers becomes structured, in a folder of its own."""

import argparse
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from milkweed._suggest import UsageError

if TYPE_CHECKING:
    from torch import nn

    from milkweed.convert.hub.conversion_progress import Progress
    from milkweed.convert.hub.folder import Train
    from milkweed.convert.hub.folder_conversion import FolderConversion

DISTILL_LR = 1e-3
EXAMPLE = """\
  milkweed convert my-encoder --calibrate sentences.txt --out my-encoder-monarch
  milkweed convert my-encoder --nblocks 2 --layers 're:.*(intermediate|output).dense' --plan
  milkweed convert my-encoder --calibrate sentences.txt --sequential --parameters 0.5 --out half
  milkweed convert my-encoder --calibrate sentences.txt --texts 10000 --distill 2 --out my-encoder-distilled
  milkweed convert my-encoder --calibrate sentences.txt --metric-data stsb-dev.csv --out my-encoder-monarch
  milkweed convert openai-community/gpt2 --structure low_rank --rank 128 --keep 're:.*c_attn' --out gpt2-low-rank"""


def positive(text: str) -> int:
    """Read a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _above_zero(text: str, otherwise: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is {otherwise}")
    return value


def budget(text: str) -> float:
    """Read a number of parameters, or a share."""
    return _above_zero(text, "neither a share such as 0.5 nor a count such as 12000000")


def learning_rate(text: str) -> float:
    """Read a learning rate."""
    return _above_zero(text, f"no learning rate such as {DISTILL_LR:g}")


def share(text: str) -> float:
    """Read a share below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share from 0 to below 1, such as 0.1")
    return value


def further_options() -> dict[str, str]:
    """Options of the configurations that a user registered: the whole numbers among their fields."""
    if "milkweed.nn" not in sys.modules:  # nobody can have registered any
        return {}
    import dataclasses

    from milkweed._registry import registered
    from milkweed.nn.structured_linear.config import is_whole

    owners: dict[str, list[str]] = {}
    for structure, config in registered("config").items():
        for field in filter(is_whole, dataclasses.fields(config)):
            owners.setdefault(field.name, []).append(structure)
    # A field may be called like an option of the command, which then keeps its meaning.
    own = {*inspect.signature(convert).parameters, "help", "debug"}
    return {name: f"an option of {', '.join(of)}" for name, of in owners.items() if name not in own}


def convert(
    source: str,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    plan: bool = False,
    all: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    device: str = "cpu",
    structure: str = "monarch",
    layers: list[str] | None = None,
    keep: list[str] | None = None,
    parameters: Annotated[float, budget] | None = None,
    calibrate: Path | None = None,
    texts: Annotated[int, positive] = 1000,
    max_length: Annotated[int, positive] = 128,
    batch_size: Annotated[int, positive] = 32,
    sequential: bool = False,
    permute: bool = False,
    distill: Annotated[int, positive] | None = None,
    distill_lr: Annotated[float, learning_rate] | None = None,
    metric: str | None = None,
    metric_data: Path | None = None,
    held_out: Annotated[float, share] = 0.1,
    nblocks: Annotated[int, positive] | None = None,
    rank: Annotated[int, positive] | None = None,
    refine: Annotated[int, positive] | None = None,
    neighbours: Annotated[int, positive] | None = None,
    **further: Annotated[int, positive] | None,
) -> None:
    """Replace the linear layers of a transformers model by structured ones, without training or with a little of it.

    The model's weights must be safetensors; code that comes with a model is not run.

    Args:
        source (PATH-OR-ID): folder that transformers saved, or a model's name on the Hugging Face hub
        out (DIR): new folder for the converted model and its report
        overwrite: replace DIR if this command wrote it earlier
        plan: show what would become of each layer; write nothing
        all: list every layer, not one line for all of a kind
        dtype: compute and save in this; default: as the model is stored
        device: where to compute, e.g. cuda

    what becomes what:
        structure (NAME): block_diagonal, low_rank, monarch, pixelfly, or one that a module given to --import registers
        layers (PATTERN): convert these alone: a layer's name, or 're:' and a regular expression for whole names; may be
            repeated; default: all linear layers except output heads
        keep (PATTERN): leave these dense; may be repeated
        parameters (BUDGET): at most so many parameters in the layers to convert, or up to 1: such a share of what they
            have. Each stays dense or gets a Monarch matrix of 2 to 8 blocks, by measured error; needs --calibrate

    calibration: layers keep their outputs for text like yours, not their weights:
        calibrate (FILE.txt): one text per line, a few hundred or more
        texts (NUMBER): read at most so many, spread over the file
        max_length (NUMBER): tokens kept of each text
        batch_size (NUMBER): texts at a time
        sequential: layer by layer, each making up for those before it: better, slower
        permute: also put the hidden units of feed-forward layers into the order in which least is lost: better, slower
        distill (EPOCHS): then train the converted model to give the dense one's hidden states and outputs, so many
            times over the texts; better still, and slower: both models run for every text
        distill_lr (LR): its learning rate, after a warm-up over a tenth of its steps; default: 0.001

    the whole model, dense and converted:
        metric (NAME): what to measure: cosine, perplexity, agreement, error, with a table also accuracy or spearman; or
            MODULE:FUNCTION of your own, called with the model and held-out batches; default: what fits the model
        metric_data (FILE): what to measure it on: a text per line, or a table (.csv, .tsv) of a text, or two, and a
            label or score; a metric of your own gets it as held_out.file
        held_out (SHARE): of the texts to calibrate on, hold back so many to measure on, unless --metric-data is given

    options of the structure:
        nblocks (NUMBER): blocks, of each factor in a Monarch matrix; default: 4
        rank (NUMBER): of each slice (monarch; default: all that fits), or of the low-rank matrix
        refine (NUMBER): rounds of least squares after projecting (monarch)
        neighbours (NUMBER): blocks in each block row (pixelfly); default: log2(nblocks) + 1
        **further: those of your own
    """
    if out is None and not plan:
        raise UsageError("say where to write the converted model with --out DIR, or only look at it with --plan")
    if distill and plan:
        raise UsageError("--distill and --plan exclude each other: a plan trains nothing")
    if plan and (metric or metric_data):
        raise UsageError("--metric and --plan exclude each other: a plan measures no model end to end")
    if distill_lr and not distill:
        raise UsageError("--distill-lr needs --distill EPOCHS, whose learning rate it is")
    if calibrate is None:
        compares = "it compares the outputs of layers"
        given = {"sequential": sequential, "permute": permute, "parameters": parameters, "refine": refine}
        why = dict.fromkeys(given, compares) | {
            "refine": "without it, a projection is the nearest matrix already",
            "distill": "texts to learn from, labels are not needed",
        }
        for option, value in (given | {"distill": distill}).items():
            if value:
                raise UsageError(f"--{option} needs --calibrate FILE.txt: {why[option]}")
    check_packages(training=bool(distill))

    from rich.console import Console
    from rich.markup import escape

    from milkweed.cli.convert.choices import make_choices
    from milkweed.cli.convert.destination import check_out, unwound_when_ended
    from milkweed.cli.convert.flags import typed
    from milkweed.cli.convert.metric import find_metric
    from milkweed.cli.convert.progress import watch
    from milkweed.cli.convert.table import print_headline, print_plan
    from milkweed.cli.convert.texts import read_texts
    from milkweed.convert.hub.folder import convert_folder
    from milkweed.convert.hub.source import check_device, find_source, quiet_transformers

    fields = {"nblocks": nblocks, "rank": rank, "refine": refine, "neighbours": neighbours, **further}
    choices = make_choices(structure, fields, layers or [], keep or [], parameters)
    lines = read_texts(calibrate, texts) if calibrate else []
    measured = None if metric is None else find_metric(metric)
    console = Console()
    switches = [name for name, option in inspect.signature(convert).parameters.items() if option.default is False]
    with typed(switches), unwound_when_ended():
        check_device(device)
        if out is not None:
            check_out(out.expanduser().resolve(), overwrite)
        with watch() as steps:
            steps.begin(f"reading {source}")
            with quiet_transformers():
                found = find_source(source, out)
                choices.check(found)
            done = convert_folder(
                found,
                None if plan else out,
                choices.rules,
                texts=lines,
                max_length=max_length,
                batch_size=batch_size,
                sequential=sequential,
                permute=permute,
                parameters=parameters,
                candidates=choices.candidates,
                dtype=dtype,
                device=device,
                overwrite=overwrite,
                train=trainer(distill, distill_lr or DISTILL_LR, device, steps) if distill else None,
                metric=measured,
                metric_data=metric_data,
                held_out=held_out,
                also_write=page_writer(),
                progress=steps,
            )
        print_headline(console, done)
        print_plan(console, done.report, all)
    if not lines:
        console.print(
            "[yellow]Without --calibrate FILE.txt layers keep their weights, not their outputs on text like yours, and "
            "lose much more.[/]",
            highlight=False,
        )
    if out is not None and not plan:
        console.print(
            f"\nWritten to [bold]{escape(str(out))}[/], with a page of figures: "
            f"{escape(str(out / 'conversion.html'))}\n"
            f"In Python: milkweed.load_pretrained({escape(repr(str(out)))})",
            highlight=False,
            soft_wrap=True,
        )


def check_packages(*, training: bool) -> None:
    """Miss what is not installed before anything takes time."""
    needed = {"transformers": "hf"} | ({"lightning": "train"} if training else {})
    for package, extra in needed.items():
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f'milkweed convert needs {package}: pip install "milkweed[{extra}]"')


def trainer(epochs: int, rate: float, device: str, steps: "Progress") -> "Train":
    """Make what trains the converted model against the dense one, on the batches."""

    def train(student: "nn.Module", teacher: "nn.Module", batches: Sequence[Any]) -> list[float]:
        from milkweed.cli.convert.distilling import distill

        return distill(student, teacher, batches, epochs, rate, device, steps)

    return train


def page_writer() -> "Callable[[Path, FolderConversion], None]":
    """Make what writes the page of figures about a model."""

    def write(folder: Path, done: "FolderConversion") -> None:
        from milkweed.plots import conversion_page

        conversion_page.write_page(done, folder / "conversion.html", " ".join(["milkweed", *sys.argv[1:]]))

    return write
