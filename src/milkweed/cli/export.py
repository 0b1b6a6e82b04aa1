"""`milkweed export`: a model becomes an ONNX file."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from milkweed._suggest import UsageError

if TYPE_CHECKING:
    from milkweed.convert import OnnxExport

EXAMPLE = """\
  milkweed export my-encoder-monarch --onnx my-encoder-monarch/onnx/model.onnx
  milkweed export my-encoder-monarch --onnx small/model.onnx --int8
  milkweed export runs/digits --onnx digits.onnx
  milkweed export runs/smnist --onnx step.onnx --stepper"""


MOST_THREADS = 1024


def positive(text: str) -> int:
    """Read a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def thread_count(text: str) -> int:
    """Read a number of threads that a computer can have."""
    found = positive(text)
    if found > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text} is more than {MOST_THREADS:,} threads")
    return found


def export(
    folder: str,
    *,
    onnx: Path | None = None,
    int8: bool = False,
    overwrite: bool = False,
    stepper: bool = False,
    length: Annotated[int, positive] | None = None,
    opset: Annotated[int, positive] = 20,
    threads: Annotated[int, thread_count] | None = None,
) -> None:
    """Write a model as an ONNX file, for ONNX Runtime and other runtimes, compared with torch before it is written.

    Batch and length stay free. The model may be dense or converted: a folder of `milkweed convert`, of a finished run,
    of transformers or of sentence-transformers, whose pooling becomes part of the graph.

    Args:
        folder (FOLDER): the folder that holds the model
        onnx (FILE.onnx): the new file; folder/onnx/model.onnx is where sentence-transformers and optimum look for it.
            If its folder is new, the tokenizer and config are copied there too
        int8: round weights to 8 bits by ONNX Runtime's quantiser: a quarter of the size
        overwrite: replace FILE.onnx
        stepper: export one step of a recurrent model, with its states as inputs and outputs, for streaming
        length (NUMBER): for inputs of this one length
        opset (NUMBER): the version of ONNX's operations, 18 to 23
        threads (NUMBER): how many torch and ONNX Runtime use while they are compared; default: as torch does
    """
    if onnx is None:
        raise UsageError("say where to write the model with --onnx FILE.onnx")

    from rich.console import Console

    from milkweed.cli.convert.destination import unwound_when_ended
    from milkweed.cli.convert.flags import typed
    from milkweed.cli.convert.progress import watch
    from milkweed.convert import export_onnx
    from milkweed.convert.onnx.export import check_packages

    check_packages()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    with typed(["int8", "overwrite"]), unwound_when_ended(), watch() as steps:
        source: Any = find(folder)
        done = export_onnx(
            read_stepper(folder, steps) if stepper else source,
            onnx,
            int8=int8,
            overwrite=overwrite,
            length=length,
            opset=opset,
            progress=steps,
        )
    print_export(Console(), done)


def find(folder: str) -> str:
    """The folder as given, or the run of that name."""
    run = Path("runs") / folder
    if not Path(folder).expanduser().exists() and (run / "model.safetensors").is_file():
        raise UsageError(f"{folder} does not exist; did you mean {run}?")
    return folder


def read_stepper(folder: str, steps: Any) -> Any:
    """Read a model and take its stepper."""
    from milkweed.convert.onnx.loading import load

    model: Any = load(folder, steps).model
    if not callable(getattr(model, "stepper", None)):
        raise UsageError(f"--stepper: {folder} holds a {type(model).__name__}, which has no steps")
    return model.eval().stepper()


def print_export(console: Any, done: "OnnxExport") -> None:
    """Print what was written, and how to use it."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    for file in done.files:
        table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in file.rows():
            table.add_row(escape(name), escape(text))
        console.print(table, highlight=False)
    if done.beside:
        console.print(f"Copied beside it: {escape(', '.join(done.beside))}", highlight=False)
    first = os.fspath(done.files[0].path)
    console.print(
        f"In Python: onnxruntime.InferenceSession({escape(repr(first))}).run(None, {{name: array, ...}})",
        highlight=False,
        soft_wrap=True,
    )
