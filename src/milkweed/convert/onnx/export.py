"""A model becomes an ONNX file: the whole way."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from milkweed._arguments import checked, plain
from milkweed.convert.hub.conversion_progress import FolderError, Progress
from milkweed.convert.onnx import checking, writing
from milkweed.convert.onnx.graph import Graph
from milkweed.convert.onnx.kinds import find_graphs
from milkweed.convert.onnx.loading import load
from milkweed.convert.onnx.quantizing import quantize
from milkweed.convert.onnx.result import OnnxExport, OnnxFile
from milkweed.convert.onnx.tracing import NEWEST_OPSET, OLDEST_OPSET, OPSET, trace

PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@checked(but=("model", "file", "inputs"))
def export_onnx(
    model: str | os.PathLike[str] | nn.Module,
    file: str | os.PathLike[str],
    *,
    int8: bool = False,
    overwrite: bool = False,
    opset: int = OPSET,
    length: int | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
) -> OnnxExport:
    """Write a model as an ONNX file, after comparing it with torch in ONNX Runtime at sizes that were not traced.

    The batch and the length are free unless `length` is given. Inputs and outputs have the names that transformers has
    for them; a folder of sentence-transformers gives ``last_hidden_state`` and ``sentence_embedding``, its pooling
    included; an encoder-decoder gives two files, ``encoder_NAME.onnx`` and ``decoder_NAME.onnx``, whose decoder has no
    cache; a stepper gives one step, with the tensors of its state as inputs and outputs. Weights of more than 2 GB are
    in ``NAME.onnx_data`` beside the file. All is computed in float32. Needs the extra ``onnx``.

    Args:
        model: A folder that milkweed, transformers or sentence-transformers saved, also that of a finished run; or a
            model or stepper in memory.
        file: Where; its name ends in ``.onnx``. If its folder is new or empty (the one above, for ``onnx/model.onnx``),
            the tokenizer and config are copied there too.
        int8: Round weights to 8 bits by ONNX Runtime's dynamic quantiser.
        overwrite: Replace `file`.
        opset: The version of ONNX's operations, 18 to 23.
        length: Export for inputs of this one length.
        inputs: For a module that is neither milkweed's nor transformers': examples by the names of its arguments. Their
            first axis is the batch, all others stay as they are.
        progress: Told how far it is; without it warnings are Python's.

    Returns:
        What was written, with its largest difference from torch and the time of both.

    Raises:
        ValueError: The model cannot be read or exported, differs in ONNX Runtime by more than 1e-4 of an output's
            largest number, or the file cannot be written. Nothing is left.
        TypeError: An argument is of another type.
        ModuleNotFoundError: An extra is missing.

    Example:
        >>> mw.convert.export_onnx("my-encoder-monarch", "my-encoder-monarch/onnx/model.onnx")  # doctest: +SKIP
    """
    opset, length, steps = plain(opset), plain(length), progress or Progress()
    place = _check(model, file, opset, length, inputs)
    writing.check_place(place, overwrite)
    check_packages()
    loaded = load(model, steps)
    graphs = find_graphs(loaded, inputs, length)
    targets = [place.with_name(f"{graph.prefix}{place.name}") for graph in graphs]
    for target in targets:
        writing.check_place(target, overwrite)
    home = writing.home_of(place)
    alone = loaded.folder is not None and writing.is_new(home)
    with writing.staged(place) as folder:
        files = [
            _export(graph, folder / target.name, target, loaded.name, opset, int8, steps)
            for graph, target in zip(graphs, targets, strict=True)
        ]
    beside = writing.accompany(loaded.folder, home) if alone and loaded.folder is not None else ()
    return OnnxExport(tuple(files), tuple(beside))


def check_packages() -> None:
    """Miss what is not installed before anything takes time."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"exporting to ONNX needs {package}: pip install 'milkweed[onnx]'")


def _check(model: object, file: object, opset: int, length: int | None, inputs: Mapping[str, Tensor] | None) -> Path:
    if not isinstance(model, str | os.PathLike | nn.Module):
        raise TypeError(f"model must be a folder or a torch.nn.Module; got {type(model).__name__}")
    if not isinstance(file, str | os.PathLike):
        raise TypeError(f"file must be a path; got {type(file).__name__}")
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ValueError(f"{opset=} is not supported; expected {OLDEST_OPSET} to {NEWEST_OPSET}")
    if length is not None and length < 1:
        raise ValueError(f"length must be at least 1; got {length}")
    if inputs is None:
        return Path(file).expanduser()
    if not isinstance(inputs, Mapping) or not all(isinstance(x, Tensor) for x in inputs.values()) or not inputs:
        raise TypeError(f"inputs must be a mapping of names to tensors; got {type(inputs).__name__}")
    if not isinstance(model, nn.Module):
        raise ValueError("inputs are for a module in memory; a folder says itself what its model reads")
    return Path(file).expanduser()


def _export(graph: Graph, staged: Path, target: Path, name: str, opset: int, int8: bool, steps: Progress) -> OnnxFile:
    """Make one file, and compare it before it takes its place."""
    what = f"{graph.prefix.rstrip('_')} of {name}" if graph.prefix else name
    steps.begin(f"tracing {what}")
    model = trace(graph, what, opset)
    steps.begin(f"writing {what}")
    writing.save(model, staged, target)
    del model
    opened = checking.session(staged)
    difference = checking.largest_difference(graph, opened, steps)
    if not difference <= checking.TOLERANCE:
        raise FolderError(
            f"{what} gives other numbers in ONNX Runtime than in torch: they differ by {difference:.1e} of an output's "
            f"largest, more than {checking.TOLERANCE:.0e}; nothing was written"
        )
    rounded = None
    if int8:
        steps.begin(f"rounding {what} to 8 bits")
        full = staged.rename(staged.with_name(f"float-{staged.name}"))
        quantize(full, staged, target)
        for path in staged.parent.glob(f"{full.stem}.*"):
            path.unlink()
        opened = checking.session(staged)
        rounded = checking.mean_cosine(graph, opened, steps)
    steps.begin(f"timing {what}")
    shapes = {each.name: tuple(each.shape) for each in opened.get_outputs()}
    return OnnxFile(
        path=target,
        bytes=writing.size_of(staged),
        opset=opset,
        inputs={key: each.shape for key, each in graph.inputs.items()},
        outputs=shapes,
        limits={axis: graph.limits[axis] for axis in graph.axes if axis in graph.limits},
        difference=difference,
        int8_cosine=rounded,
        times=checking.times(graph, opened),
    )
